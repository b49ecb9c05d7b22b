"""The full geometric-algebra network: kernels of the package beside the operations of lgatr, on one thread.

    python scripts/bench/bench_full.py --json full.json

The same weights three times: as lgatr computes by default (the sparse geometric product), with its dense
one, and with the kernels of `topreco.network.kernels.lgatr_packed`. Toy events with at most 7 jets, padded
to as many tokens as the model has, go through the whole network, for their tops alone and with all weights'
gradients.
Times are those of the process on the CPU, medians over repeats that alternate between the three; only ratios
mean anything. Compiling the kernels, once for each machine, is not timed. The largest difference of a
four-momentum is that of a component, as a part of the top's energy.
"""

import argparse
import copy
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from topreco.core.events import toy_events
from topreco.core.files import write_text
from topreco.core.versions import versions
from topreco.network.backbones.lgatr import LGATrBackbone
from topreco.network.inference import predict
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs
from topreco.reconstruction.network import NetworkMethod

MAX_JETS = 7


def variants(network: TopNetwork) -> dict[str, TopNetwork]:
    """The network by each way to compute it."""
    networks = {name: copy.deepcopy(network) for name in ("lgatr", "lgatr, dense product", "kernels")}
    for name, each in networks.items():
        for part in each.modules():
            if isinstance(part, LGATrBackbone):
                part.packed = name == "kernels"
            if hasattr(part, "primitives"):
                part.primitives = dataclasses.replace(part.primitives, sparse_gp=name == "lgatr")
    return networks


def compare(calls: dict[str, Callable[[], object]], events: int, repeats: int) -> dict[str, float]:
    """Median events per second of each, after one call to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            rates[name].append(events / (time.process_time() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def gradients(network: TopNetwork, inputs: Inputs) -> None:
    """Forwards and backwards through the network."""
    network.zero_grad()
    network(inputs).square().mean().backward()


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="dilepton-full", help="shipped model or model file")
    parser.add_argument("--events", type=int, default=1024, help="events per call")
    parser.add_argument("--train-events", type=int, default=128, help="events per call with gradients")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    networks = variants(NetworkMethod(options.model).artefact.networks[0])
    events = toy_events(options.events, max_jets=MAX_JETS, seed=1)
    answers = {
        name: predict([network], events, batch_size=options.events, quantiles=False).p4
        for name, network in networks.items()
    }
    inputs = Inputs.from_events(
        toy_events(options.train_events, max_jets=MAX_JETS, seed=1), dtype=torch.float32
    )
    results = {
        "inference": compare(
            {
                name: partial(predict, [network], events, batch_size=options.events, quantiles=False)
                for name, network in networks.items()
            },
            options.events,
            options.repeats,
        ),
        "with gradients": compare(
            {name: partial(gradients, network, inputs) for name, network in networks.items()},
            options.train_events,
            options.repeats,
        ),
    }
    table = Table("way", *results, "largest difference", title="events/s, and how many times the first")
    expected = answers["lgatr"]
    differences = {
        name: float((abs(p4 - expected).max(-1) / expected[..., 0]).max()) for name, p4 in answers.items()
    }
    for name in networks:
        rates = [f"{found[name]:,.0f} ({found[name] / found['lgatr']:.1f})" for found in results.values()]
        table.add_row(name, *rates, f"{differences[name]:.1e}")
    Console().print(table)
    if options.json is not None:
        sizes = {"inference": options.events, "with gradients": options.train_events}
        content = {
            "versions": versions(),
            "model": options.model,
            "events": sizes,
            "rates": results,
            "difference": differences,
        }
        write_text(options.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
