"""Events per second and core of each shipped model, in several ways, side by side in one run on one thread.

    python scripts/bench/bench_inference.py [MODEL ...] [--batch 64] [--json FILE]

The measure is what the package `lgatr` offers: its own network in eager mode, with the weights of the model,
on tokens padded to 7 jets. The shipped models read 6 jets, so one masked jet is put behind them in front of
the backbone, which changes no answer. Beside it: the model as `topreco.load` gives it, with `torch.compile`
(where a C++ compiler is found) and exported to onnxruntime, which pad to 6 jets. All get the same selected
events (by default simulated), as many per call and per forward pass as the batch. Every answer is compared
with the measure's: a component of a top's momentum must not differ by more than 1e-4 of its energy.

The rates of `topreco.load` hold all that a user pays for, numpy to numpy; the measure gets tensors. Calls
with less than 64 events cost `topreco` as much as 64, since batches are filled up so that an answer does not
depend on the others; the measure does not fill up.
"""

import copy
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Measurement, alternate, parser, rates, report, sample
from torch import Tensor, nn

from topreco.config import SelectionConfig
from topreco.core.events import DileptonEvents
from topreco.core.shipped import shipped_models
from topreco.input.nano import open_events
from topreco.input.selection import select
from topreco.network.inference import predict
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import FIRST_JET, Inputs
from topreco.reconstruction.network import NetworkMethod
from topreco.reconstruction.onnx import OnnxMethod

BATCHES = (1, 64, 1024, 8192)
LONG = 1024
JETS = 7
REFERENCE = "package, padded to 7 jets"
LOADED = "as loaded"
COMPILED = "torch.compile"
ONNX = "onnxruntime"
TARGETS = {"lgatr_slim": 2.5, "lgatr": 5.0}
TOLERANCE = 1e-4


class Padded(nn.Module):
    """A backbone that gets more jets than the model reads, all of them masked.

    Parameters
    ----------
    backbone
        The backbone.
    position
        Number of tokens before the additional ones.
    extra
        Number of those.
    """

    def __init__(self, backbone: Any, position: int, extra: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.components = backbone.components
        self.position = position
        self.extra = extra

    def forward(self, geometry: Tensor, scalars: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors and scalars of the tokens that the model knows."""
        padded = (self._pad(x) for x in (geometry, scalars, mask))
        vectors, out = self.backbone(*padded)
        return self._unpad(vectors), self._unpad(out)

    def _pad(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros((len(x), self.extra, *x.shape[2:]))
        return torch.cat([x[:, : self.position], zeros, x[:, self.position :]], 1)

    def _unpad(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, : self.position], x[:, self.position + self.extra :]], 1)


def package_network(network: TopNetwork) -> TopNetwork:
    """The network with the package's own operations, padded to `JETS` jets."""
    plain = copy.deepcopy(network).eval()
    if hasattr(plain.encoder.backbone, "packed"):
        plain.encoder.backbone.packed = False
    jets = network.config.tokens.max_jets
    if jets < JETS:
        plain.encoder.backbone = Padded(plain.encoder.backbone, FIRST_JET + jets, JETS - jets)
    return plain


def selected_events(files: list[str]) -> DileptonEvents:
    """Selected events of NanoAOD files."""
    parts = [select(open_events(file), SelectionConfig(), dataset="bench").events for file in files]
    return DileptonEvents.concatenate(parts)


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of a component of a top's four-momentum (n, 2, 4), relative to its energy."""
    return float((np.abs(found - expected) / expected[..., :1]).max())


def compare(
    name: str,
    events: DileptonEvents,
    batches: list[int],
    *,
    repeats: int,
    seconds: float,
    without: list[str],
) -> tuple[list[Measurement], list[str]]:
    """Measurements of one model, and notes on them."""
    trained = NetworkMethod(name, threads=1, quantiles=False)
    network = trained.model.networks[0]
    plain = package_network(network)
    notes = [f"{name}: {way} was left out." for way in without]
    compiled = None
    if COMPILED not in without:
        if shutil.which("c++") or shutil.which("g++"):
            compiled = copy.deepcopy(network).eval()
            compiled.compile(dynamic=True)
        else:
            notes.append(f"{name}: no C++ compiler was found, so nothing was compiled by torch.")
    rows: list[Measurement] = []
    worst: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        exported = None
        if ONNX not in without:
            from topreco.network.export.onnx import export_onnx

            exported, *_ = export_onnx(trained.model, Path(folder) / "model.onnx", quantiles=False)
        for batch in batches:
            chosen = events[np.arange(batch) % len(events)]
            runs = ways(name, chosen, plain, compiled, exported, batch)
            expected = runs[REFERENCE]()
            for way, run in runs.items():
                difference = largest_difference(run(), expected)
                worst[way] = max(worst.get(way, 0.0), difference)
                if not difference <= TOLERANCE:
                    sys.exit(
                        f"error: {name}, {way}, batch {batch}: differs by {difference:.1e} of the energy"
                    )
            # One call of many events is long enough.
            enough = 0.0 if batch >= LONG else seconds
            times = alternate(runs, repeats=repeats, min_seconds=enough, warm=True)
            target = TARGETS.get(network.config.backbone.kind)
            targets = {} if target is None else {LOADED: target}
            prefix = f"{name}, batch {batch}: "
            rows += rates(times, batch, ratio_to=REFERENCE, targets=targets, prefix=prefix)
    del worst[REFERENCE]
    differences = ", ".join(f"{way} {value:.0e}" for way, value in worst.items())
    notes.append(f"{name}: largest difference from the package, relative to the energy: {differences}.")
    return rows, notes


def ways(
    name: str,
    events: DileptonEvents,
    plain: TopNetwork,
    compiled: TopNetwork | None,
    exported: Path | None,
    batch: int,
) -> dict[str, Callable[[], np.ndarray]]:
    """Functions that reconstruct the events, by name."""
    inputs = Inputs.from_events(events)

    def package() -> np.ndarray:
        with torch.no_grad():
            return plain(inputs).double().numpy()

    loaded = NetworkMethod(name, threads=1, batch_size=batch, quantiles=False)
    found = {REFERENCE: package, LOADED: lambda: loaded(events).p4}
    if compiled is not None:
        found[COMPILED] = lambda: predict([compiled], events, batch_size=batch, quantiles=False).p4
    if exported is not None:
        session = OnnxMethod(exported, threads=1, batch_size=batch, quantiles=False)
        found[ONNX] = lambda: session(events).p4
    return found


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "models",
        nargs="*",
        default=sorted(set(shipped_models()) - {"dilepton"}),
        help="networks of four-momenta",
    )
    arguments.add_argument("--batch", type=int, action="append", help=f"by default {BATCHES}")
    arguments.add_argument("--files", nargs="+", default=[], help="NanoAOD of the events")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=0.3, help="of each way in each round, at least")
    arguments.add_argument("--without", action="append", default=[], choices=(COMPILED, ONNX))
    options = arguments.parse_args()
    torch.set_num_threads(1)
    events = selected_events(sample(options.files))
    rows: list[Measurement] = []
    jets = f"{events.n_jets.mean():.2f} jets in the mean"
    notes = [
        f"{len(events)} selected events, repeated where the batch is larger; {jets}.",
        "Four-momenta alone, without the uncertainties that some models have.",
    ]
    for name in options.models:
        found, said = compare(
            name,
            events,
            options.batch or list(BATCHES),
            repeats=options.repeats,
            seconds=options.seconds,
            without=options.without,
        )
        rows += found
        notes += said
    report("Inference, one thread", rows, options.json, notes)


if __name__ == "__main__":
    main()
