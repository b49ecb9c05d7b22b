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

import copy
import dataclasses
from functools import partial

import torch
from measuring import Measurement, alternate, parser, rates, report

from topreco.core.events import toy_events
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


def gradients(network: TopNetwork, inputs: Inputs) -> None:
    """Forwards and backwards through the network."""
    network.zero_grad()
    network(inputs).square().mean().backward()


def main() -> None:
    """Measure and print one table."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="dilepton-full", help="shipped model or model file")
    arguments.add_argument("--events", type=int, default=1024, help="events per call")
    arguments.add_argument("--train-events", type=int, default=128, help="events per call with gradients")
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    networks = variants(NetworkMethod(options.model).model.networks[0])
    events, few = (toy_events(n, max_jets=MAX_JETS, seed=1) for n in (options.events, options.train_events))
    inputs = Inputs.from_events(few, dtype=torch.float32)
    inference = {
        name: partial(predict, [network], events, batch_size=options.events, quantiles=False)
        for name, network in networks.items()
    }
    training = {name: partial(gradients, network, inputs) for name, network in networks.items()}
    rows = []
    for what, runs, n in (
        ("inference", inference, len(events)),
        ("with gradients", training, len(few)),
    ):
        seconds = alternate(runs, repeats=options.repeats)
        rows += rates(seconds, n, ratio_to="lgatr", prefix=f"{what}, ")
    expected, *others = (run().p4 for run in inference.values())
    differences = [float((abs(p4 - expected).max(-1) / expected[..., 0]).max()) for p4 in others]
    for name, difference in zip([*networks][1:], differences, strict=True):
        rows.append(Measurement(f"largest difference, {name}", "of the top's energy", difference))
    note = f"{options.model}: {len(events)} toy events, {len(few)} with gradients."
    report("Full geometric algebra, one thread", rows, options.json, [note])


if __name__ == "__main__":
    main()
