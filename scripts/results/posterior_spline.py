"""Flow matching against a neural spline flow on the features of a trained posterior, docs/POSTERIOR.md.

    pip install zuko
    python scripts/results/posterior_spline.py --train delphes_1.parquet --test delphes_11.parquet

Both see the same features of the encoder of a trained model, which stays as it is, and learn the same six
coordinates from the same events for the same number of epochs. The spline flow is the autoregressive one of
`zuko`, as nu2-Flows uses coupling layers of splines (arXiv:2307.02405). Printed are, with the scatter of the
seeds, CRPS of some observables over that of the velocity's first seed, the energy score of the six momenta,
the coverage of 68 % intervals of 64 samples, times and parameters.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import topreco
from topreco.config import VelocityConfig
from topreco.core.events import DileptonEvents, FloatArray, Posterior, Truth
from topreco.core.observables import observable_values
from topreco.core.posterior import sample_values
from topreco.core.skim import read_skims
from topreco.network.tasks.frame import turned
from topreco.network.tasks.posterior import PosteriorNetwork
from topreco.network.tasks.summaries import DIMENSIONS
from topreco.network.tasks.velocity import VelocityHead, integrate
from topreco.network.tokens import Inputs
from topreco.validation.calibration import crps, energy_score

OBSERVABLES = ("m_tt", "pt_top", "pt_tt", "c_hel", "c_han", "cos_1k")
N_SAMPLES = 64
STEPS = 8
BATCH = 256


class Features(NamedTuple):
    """What both learn from."""

    context: Tensor
    end: Tensor
    axes: Tensor
    events: DileptonEvents
    truth: Truth


def read(paths: Sequence[str], n: int) -> tuple[DileptonEvents, Truth]:
    """The first n events with two leptonic tops."""
    events, truth = read_skims(paths)
    if truth is None:
        raise SystemExit(f"{', '.join(paths)}: no truth")
    usable = truth.valid & truth.dileptonic
    return events[usable][:n], truth[usable][:n]


@torch.no_grad()
def features(network: PosteriorNetwork, events: DileptonEvents, truth: Truth) -> Features:
    """Features and standardised coordinates of events."""
    parts = []
    for start in range(0, len(events), 512):
        part = slice(start, start + 512)
        event = network.event(Inputs.from_events(events[part], tokens=network.config.tokens))
        tops = network.on_shell(turned(torch.from_numpy(truth.tops[part]).float(), event.axes))
        parts.append((event.features.context, network.coordinates(tops[:, None])[:, 0], event.axes))
    context, end, axes = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return Features(context, end, axes, events, truth)


class Velocity(nn.Module):
    """The velocity field of the package on standardised features."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.head = VelocityHead(VelocityConfig(), n, DIMENSIONS)

    def loss(self, context: Tensor, end: Tensor) -> Tensor:
        """Squared error at eight times."""
        noise = torch.randn(len(end), 8, DIMENSIONS)
        t = (torch.arange(8)[:, None] + torch.rand(len(end), 8, 1)) / 8
        found = self.head.of(context)((1 - t) * noise + t * end[:, None], t)
        return (found - (end[:, None] - noise)).square().mean()

    def sample(self, context: Tensor) -> Tensor:
        """Samples, shape (n, k, 6)."""
        return integrate(self.head.of(context), torch.randn(len(context), N_SAMPLES, DIMENSIONS), STEPS)


class Spline(nn.Module):
    """Autoregressive neural spline flow."""

    def __init__(self, n: int) -> None:
        super().__init__()
        import zuko

        self.flow = zuko.flows.NSF(
            DIMENSIONS, n, transforms=4, bins=8, hidden_features=(160, 160), activation=nn.SiLU
        )

    def loss(self, context: Tensor, end: Tensor) -> Tensor:
        """Negative logarithm of the density."""
        # The splines end at ±5 standard deviations.
        found: Tensor = -self.flow(context).log_prob(end.clamp(-4.9, 4.9)).mean()
        return found

    def sample(self, context: Tensor) -> Tensor:
        """Samples, shape (n, k, 6)."""
        found: Tensor = self.flow(context).sample((N_SAMPLES,)).transpose(0, 1)
        return found


def fit(model: Any, data: Features, epochs: int) -> float:
    """Train by AdamW with a falling rate; seconds of CPU time."""
    started = time.process_time()
    n_steps = epochs * (len(data.end) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=n_steps)
    for _ in range(epochs):
        order = torch.randperm(len(data.end))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            part = order[start : start + BATCH]
            optimiser.zero_grad()
            model.loss(data.context[part], data.end[part]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    return time.process_time() - started


@torch.no_grad()
def judge(model: Any, network: PosteriorNetwork, data: Features) -> dict[str, float]:
    """Scores of samples on events that were not trained on."""
    started = time.process_time()
    drawn = torch.cat([model.sample(part) for part in data.context.split(64)])
    seconds = time.process_time() - started
    tops = turned(network.tops(drawn), data.axes.mT).double().numpy()
    posterior = Posterior.equal(tops)
    values = sample_values(posterior, data.events.lepton_p4, OBSERVABLES)
    pair = data.truth.tops
    true = observable_values(OBSERVABLES, pair, pair.sum(1), data.events.lepton_p4)
    found: dict[str, float] = {"events/s": len(drawn) / seconds}
    for name in OBSERVABLES:
        found[f"CRPS {name}"] = float(np.nanmean(crps(true[name], values[name], posterior.weight)))
        low, high = np.nanquantile(values[name], [0.16, 0.84], axis=1)
        found[f"68 % {name}"] = float(np.mean((true[name] > low) & (true[name] < high)))
    momenta: FloatArray = tops[..., 1:].reshape(*tops.shape[:2], -1)
    found["energy score"] = float(
        np.nanmean(energy_score(pair[..., 1:].reshape(len(pair), -1), momenta, posterior.weight))
    )
    return found


def main() -> None:
    """Train both with each seed and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="dilepton")
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--test", nargs="+", required=True)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--test-events", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = topreco.load(options.model).model.networks[0]
    train = features(network, *read(options.train, options.events))
    test = features(network, *read(options.test, options.test_events))
    mean, std = train.context.mean(0), train.context.std(0).clamp(min=1e-6)
    train, test = (each._replace(context=(each.context - mean) / std) for each in (train, test))
    kinds: dict[str, Callable[[int], nn.Module]] = {"flow matching": Velocity, "spline flow": Spline}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for seed in range(options.seeds):
        for name, kind in kinds.items():
            torch.manual_seed(seed)
            model = kind(train.context.shape[1])
            row = {"parameters": float(sum(p.numel() for p in model.parameters()))}
            row["training, CPU s"] = fit(model, train, options.epochs)
            rows[name].append(row | judge(model, network, test))
    print("| | " + " | ".join(kinds) + " |\n|---|" + "---:|" * len(kinds))
    for key in rows["flow matching"][0]:
        cells = [np.array([row[key] for row in rows[name]]) for name in kinds]
        print(f"| {key} | " + " | ".join(f"{x.mean():.4g} ± {x.std(ddof=1):.2g}" for x in cells) + " |")


if __name__ == "__main__":
    main()
