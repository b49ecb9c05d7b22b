"""Measures of a model of the task `tokens`: its encoding, and events drawn from it, docs/PRETRAINING.md.

    python scripts/results/encoding.py results/tokens/model.safetensors test.parquet --output results/encoding

Needs the extra `calibration`. Written are `encoding.json` with all numbers, `encoding.md` with the tables,
`encoding.png` with spectra, and `generated.parquet`, a skim of the drawn events for any other tool.

- Resolution: half the width of the central 68 % of decoded − measured, for pT and masses relative to the
  measured value.
- Codes in use: 2 to the power of the entropy in bits of each integer of jets.
- Classifier: area under the ROC curve of boosted trees that tell measured events from decoded, and from drawn
  ones; half of the events are for learning. 0.5: no difference is found. Inputs are ln pT, η, φ and mass of
  the objects in the axes of the event, the numbers of b-tag working points, and m_ll and m_lb.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, FloatArray
from topreco.core.files import writable_folder, write_text
from topreco.core.skim import Skim, SkimWriter
from topreco.network.model_file import load_model
from topreco.network.tasks.encoding import JET, coordinates
from topreco.network.tasks.frame import in_own_axes, own_axes
from topreco.network.tasks.next_tokens import NextTokenNetwork, as_events
from topreco.network.tokens import Inputs

N_JETS = 4
_BATCH = 1024


def main() -> None:
    """Write all results."""
    parser = argparse.ArgumentParser(description="Measures of an encoding; see the file's beginning.")
    parser.add_argument("model", type=Path)
    parser.add_argument("skim", type=Path)
    parser.add_argument("--output", type=Path, default=Path("results/encoding"))
    parser.add_argument("--events", type=int, default=10_000, help="measured, and as many drawn")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    model = load_model(options.model)
    network = model.networks[0]
    if not isinstance(network, NextTokenNetwork):
        raise TopRecoError(f"{options.model}: a model of the task 'tokens' expected, {network.kind!r} found")
    output = writable_folder(options.output)
    events = Skim(options.skim).read()[0][: options.events]
    whole = Inputs.from_events(events, tokens=network.config.tokens)
    # A model of rotated events knows them at any azimuth.
    rotated = model.metadata["training"]["augment_rotation"]
    measured = whole if rotated else own(whole)
    n = len(events)
    with torch.no_grad():
        decoded = concatenated([network.round_trip(part) for part in batches(measured)])
        nats = torch.cat([network(part) for part in batches(measured)])
    generator = torch.Generator().manual_seed(options.seed)
    drawn = concatenated([network.generate(min(_BATCH, n - i), generator) for i in range(0, n, _BATCH)])
    samples = {
        "measured": as_events(own(truncated(measured, network)), "measured"),
        "decoded": as_events(own(decoded), "decoded"),
        "generated": as_events(own(drawn)),
    }
    found: dict[str, Any] = {
        "events": n,
        "encoding": network.config.encoding,
        "levels": network.encoding.levels,
        "codes": network.config.codes,
        "bits_per_event": float(nats.sum((1, 2)).mean() / np.log(2)),
        "bits_of_labels": float(nats[..., 0].sum(1).mean() / np.log(2)),
        "codes_in_use": codes_in_use(network, measured),
        "resolution": resolutions(truncated(measured, network), decoded),
        "auc": {
            name: classifier(samples["measured"], samples[name], options.seed)
            for name in ("decoded", "generated")
        },
        "means": {name: means(sample) for name, sample in samples.items()},
    }
    write_text(output / "encoding.json", json.dumps(found, indent=1) + "\n")
    write_text(output / "encoding.md", table(found))
    with SkimWriter(output / "generated.parquet") as writer:
        writer.write(samples["generated"], None)
    draw(samples, output / "encoding.png")
    print(table(found))


def own(inputs: Inputs) -> Inputs:
    """Events in their own axes."""
    return in_own_axes(inputs, own_axes(inputs))


def batches(inputs: Inputs) -> list[Inputs]:
    """Parts of a size that fits."""
    return [inputs.take(slice(i, i + _BATCH)) for i in range(0, len(inputs.jet_mask), _BATCH)]


def concatenated(parts: list[Inputs]) -> Inputs:
    """One from several."""
    return Inputs(**{name: torch.cat([getattr(p, name) for p in parts]) for name in parts[0].columns()})


def truncated(inputs: Inputs, network: NextTokenNetwork) -> Inputs:
    """Objects that the network counts, of which it decodes all."""
    return network.inputs(network.objects(inputs))._replace(jet_tagged=cut(inputs.jet_tagged, network))


def cut(flags: torch.Tensor, network: NextTokenNetwork) -> torch.Tensor:
    """The leading jets."""
    n_jets = network.config.tokens.max_jets
    return torch.nn.functional.pad(flags, (0, max(0, n_jets - flags.shape[1])))[:, :n_jets]


def codes_in_use(network: NextTokenNetwork, inputs: Inputs) -> list[float]:
    """Effective number of values of each integer of jets."""
    objects = network.objects(inputs)
    p4 = objects.p4[:, JET:][objects.exists[:, JET:]]
    kind = torch.full((len(p4),), JET)
    codes = network.encoding.encode(coordinates(p4, kind), kind)
    effective = []
    for column in codes.T:
        share = torch.bincount(column).double() / len(column)
        effective.append(float((-(share * share.clamp(min=1e-300).log()).sum()).exp()))
    return effective


def in_order(inputs: Inputs) -> SimpleNamespace:
    """Arrays in double precision, jets in the order of the inputs: decoded ones are not sorted again."""
    return SimpleNamespace(
        **{name: (x.double() if x.is_floating_point() else x).numpy() for name, x in inputs.columns().items()}
    )


def objects_of(events: Any) -> dict[str, FloatArray]:
    """Four-momenta by kind, those of jets that are there."""
    met = np.stack([np.hypot(*events.met.T), *events.met.T, np.zeros(len(events.met))], 1)
    return {
        "leptons": np.concatenate([events.lepton_plus, events.lepton_minus]),
        "jets": events.jets[events.jet_mask],
        "MET": met,
    }


def masses(events: Any) -> dict[str, FloatArray]:
    """m_ll, and the smaller m_lb of ℓ⁺ with one of the two leading jets, NaN without a jet."""
    pairs = events.lepton_plus[:, None] + events.jets[:, :2]
    m_lb = np.where(events.jet_mask[:, :2], fourvector.mass(pairs), np.inf).min(1)
    return {
        "m_ll": fourvector.mass(events.lepton_plus + events.lepton_minus),
        "m_lb": np.where(np.isfinite(m_lb), m_lb, np.nan),
    }


def width(values: FloatArray) -> float:
    """Half the width of the central 68 %."""
    low, high = np.nanquantile(values, [0.16, 0.84])
    return float(high - low) / 2


def resolutions(measured: Inputs, decoded: Inputs) -> dict[str, float]:
    """Resolution of the coordinates of all kinds of objects, and of masses."""
    found = {}
    one, two = in_order(measured), in_order(decoded)
    before, after = objects_of(one), objects_of(two)
    for kind in before:
        a, b = after[kind], before[kind]
        found[f"{kind} pT"] = width(fourvector.pt(a) / fourvector.pt(b) - 1)
        if kind != "MET":
            found[f"{kind} η"] = width(fourvector.eta(a) - fourvector.eta(b))
        found[f"{kind} φ"] = width(fourvector.delta_phi(a, b))
    # Rounding may leave a light jet with less than no mass.
    old, new = (np.maximum(fourvector.mass_squared(each["jets"]), 1e-2) for each in (before, after))
    found["jets m"] = width(np.sqrt(new / old) - 1)
    there, back = masses(one), masses(two)
    return found | {name: width(back[name] / there[name] - 1) for name in there}


def features(events: DileptonEvents) -> FloatArray:
    """What a classifier sees, shape (n, f); NaN where there is no jet."""
    met = np.stack([np.hypot(*events.met.T), *events.met.T, np.zeros(len(events))], 1)
    columns = []
    for p4 in (events.lepton_plus, events.lepton_minus, met):
        columns += [np.log(fourvector.pt(p4) + 0.1), fourvector.eta(p4), fourvector.phi(p4)]
    for i in range(N_JETS):
        there = events.jet_mask[:, i]
        p4 = np.where(there[:, None], events.jets[:, i], [1.0, 1.0, 0.0, 0.0])
        own = [np.log(fourvector.pt(p4)), fourvector.eta(p4), fourvector.phi(p4)]
        own.append(np.log(np.maximum(fourvector.mass_squared(p4), 1e-2)))
        own.append(np.asarray(events.jet_working_points)[:, i].astype(float))
        columns += [np.where(there, x, np.nan) for x in own]
    columns += [events.n_jets.astype(float), *masses(events).values()]
    return np.stack(columns, 1)


def classifier(a: DileptonEvents, b: DileptonEvents, seed: int) -> float:
    """Area under the ROC curve of boosted trees on half of the events."""
    half = len(a) // 2
    xa, xb = features(a), features(b)
    trees = HistGradientBoostingClassifier(max_iter=200, early_stopping=True, random_state=seed)
    trees.fit(np.concatenate([xa[:half], xb[:half]]), np.repeat([0, 1], half))
    rest = np.concatenate([xa[half:], xb[half:]])
    labels = np.repeat([0, 1], [len(xa) - half, len(xb) - half])
    return float(roc_auc_score(labels, trees.predict_proba(rest)[:, 1]))


def means(events: DileptonEvents) -> dict[str, float]:
    """Means of spectra."""
    objects = {f"{kind} pT": float(fourvector.pt(p4).mean()) for kind, p4 in objects_of(events).items()}
    tagged = float((np.asarray(events.jet_working_points) >= 2).sum(1).mean())
    own = {"number of jets": float(events.n_jets.mean()), "jets with M": tagged}
    return objects | own | {name: float(np.nanmean(x)) for name, x in masses(events).items()}


def table(found: dict[str, Any]) -> str:
    """Both tables."""
    used = ", ".join(f"{x:.0f}" for x in found["codes_in_use"])
    summary = (
        f"{found['encoding']}, {found['levels']} × {found['codes']}, in use for jets {used}; "
        f"{found['bits_per_event']:.1f} bits of an event, of which labels {found['bits_of_labels']:.1f}; AUC "
        f"decoded {found['auc']['decoded']:.3f}, generated {found['auc']['generated']:.3f}; "
        f"{found['events']} events"
    )
    lines = [
        summary,
        "",
        "| resolution | |",
        "|---|---:|",
        *(f"| {name} | {value:.4f} |" for name, value in found["resolution"].items()),
        "",
        "| mean | measured | decoded | generated |",
        "|---|---:|---:|---:|",
    ]
    for name in found["means"]["measured"]:
        values = " | ".join(f"{found['means'][sample][name]:.2f}" for sample in found["means"])
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines) + "\n"


def draw(samples: dict[str, DileptonEvents], path: Path) -> None:
    """Spectra of all samples."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    spectra = {
        "leading jet pT [GeV]": (lambda e: fourvector.pt(e.jets[:, 0])[e.jet_mask[:, 0]], (20, 400)),
        "pT of MET [GeV]": (lambda e: np.hypot(*e.met.T), (0, 300)),
        "m(ll) [GeV]": (lambda e: masses(e)["m_ll"], (0, 400)),
        "m(lb) [GeV]": (lambda e: masses(e)["m_lb"], (0, 300)),
    }
    for axis, (name, (values, limits)) in zip(axes.flat, spectra.items(), strict=True):
        for sample, events in samples.items():
            filled = sample == "measured"
            axis.hist(
                values(events),
                bins=40,
                range=limits,
                density=True,
                histtype="stepfilled" if filled else "step",
                label=sample,
                **({"color": "0.8"} if filled else {}),
            )
        axis.set_xlabel(name)
        axis.set_ylabel("density")
        axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
