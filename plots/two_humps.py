"""Events with two humps: one as a picture, how many there are, and which jets are the b quarks.

    python plots/two_humps.py dilepton SKIM... --point dilepton-point

MODEL is a method with samples, SKIM a file of `topreco skim` with truth of simulated events. Writes
``two_humps.png`` and ``two_humps.csv``, the numbers of docs/POSTERIOR.md.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import topreco
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, Posterior, Truth
from topreco.core.files import write_csv
from topreco.core.fourvector import delta_r
from topreco.core.humps import Humps, assign_b, two_humps, two_solutions
from topreco.core.method import Sampler, as_sampler
from topreco.core.observables import OBSERVABLES, observable_values, pair_values
from topreco.core.posterior import sample_values
from topreco.core.skim import read_skims
from topreco.evaluation.fill import true_values
from topreco.evaluation.style import COLOURS, figure_style

OBSERVABLES_WITH_HUMPS = ("m_tt", "pt_top", "y_top", "pt_tt", "cos_1k", "c_hel", "c_han")
N_SAMPLES = 64
N_MORE = 256
"""Samples of some events, in which more humps are found."""
N_PICTURE = 1000
_CHUNK = 2000
_MATCHED = 0.3
_LEAST = 20


def read(paths: list[Path]) -> tuple[DileptonEvents, Truth]:
    """Dileptonic events of skims with known tops."""
    events, truth = read_skims(paths)
    usable = truth.valid & truth.dileptonic
    return events[usable], truth[usable]


def sample(method: Sampler, events: DileptonEvents, n: int) -> Posterior:
    """Samples of all events."""
    starts = range(0, len(events), _CHUNK)
    return Posterior.concatenate([method.sample(events[i : i + _CHUNK], n) for i in starts])


# ---- numbers ---------------------------------------------------------------------------------------------


def fraction(passed: BoolArray) -> tuple[float, float]:
    """Fraction and its binomial error."""
    found = float(passed.mean()) if len(passed) else np.nan
    return found, float(np.sqrt(found * (1 - found) / max(len(passed), 1)))


def cluster_means(values: FloatArray, weight: FloatArray, humps: Humps) -> FloatArray:
    """Mean of each hump, shape (n, 2)."""
    inside = np.stack([weight * (humps.cluster == i) for i in (0, 1)], axis=1)
    total = inside.sum(axis=2)
    return np.asarray((inside * values[:, None]).sum(axis=2) / np.where(total > 0, total, np.nan))


def hump_rows(events: DileptonEvents, truth: Truth, posterior: Posterior) -> list[dict[str, Any]]:
    """Events with two humps in each observable and the six momenta, and whether the likelier is nearer."""
    weight = posterior.weight
    values = sample_values(posterior, events.lepton_p4, OBSERVABLES_WITH_HUMPS)
    true = true_values(OBSERVABLES_WITH_HUMPS, truth)
    found = {}
    for name, column in values.items():
        humps = two_humps(column, weight)
        found[name] = humps, abs(cluster_means(column, weight, humps) - true[name][:, None])
    humps, p4 = two_solutions(posterior)
    difference = p4[..., 1:] - truth.tops[:, None, :, 1:]
    found["six momenta"] = humps, np.sqrt((difference**2).sum(axis=(2, 3)))
    rows = []
    for name, (humps, distance) in found.items():
        two = humps.two
        row = {"samples": weight.shape[1], "quantity": name, "events": len(two), "with two humps": two.sum()}
        # Of a handful nothing can be said.
        if two.sum() >= _LEAST:
            nearer, error = fraction(distance[two, 0] < distance[two, 1])
            row |= {
                "likelier is nearer": f"{nearer:.3f}",
                "error": f"{error:.3f}",
                "mean probability": f"{humps.probability[two, 0].mean():.3f}",
            }
        rows.append(row)
    return rows


def b_rows(events: DileptonEvents, truth: Truth, posterior: Posterior) -> list[dict[str, Any]]:
    """How often the b jets are right, in events whose two b quarks are two jets within ΔR < 0.3."""
    separation = delta_r(events.jets[:, None], truth.b[:, :, None])
    separation = np.where(events.jet_mask[:, None], separation, np.inf)
    right = separation.argmin(axis=2)
    matched = (separation.min(axis=2) < _MATCHED).all(axis=1) & (right[:, 0] != right[:, 1])
    candidates = events.b_candidates
    positions = np.arange(events.jets.shape[1])
    both = (candidates[..., None] == positions).any(axis=1)
    chosen = (np.sort(candidates, axis=1) == np.sort(right, axis=1)).all(axis=1)
    rows = []
    for name, among, subset in (
        ("all jets", events.jet_mask, matched),
        ("b candidates (both right)", both, matched & chosen),
    ):
        found = assign_b(posterior[subset], events.lepton_p4[subset], events.jets[subset], among[subset])
        best = found.probability.max(axis=(1, 2))
        posterior_right, error = fraction((found.b == right[subset]).all(axis=1))
        selection, selection_error = fraction((candidates[subset] == right[subset]).all(axis=1))
        rows.append(
            {
                "jets": name,
                "events": int(subset.sum()),
                "posterior right": f"{posterior_right:.3f}",
                "error": f"{error:.3f}",
                "mean probability": f"{best.mean():.3f}",
                "selection right": f"{selection:.3f}",
                "its error": f"{selection_error:.3f}",
            }
        )
    return rows


# ---- picture ---------------------------------------------------------------------------------------------


def example(humps: Humps, distance_in_mass: FloatArray) -> int:
    """Event whose humps are farthest apart, of those whose solutions also differ in m(tt̄)."""
    usable = humps.two & (humps.probability[:, 1] > 0.25) & (distance_in_mass > 80)
    if not usable.any():
        raise SystemExit("no event with two clear humps in these files; give more of them")
    return int(np.where(usable, humps.separation, -np.inf).argmax())


def draw(
    event: DileptonEvents, truth: Truth, method: Sampler, point: topreco.Method, analytic: Sampler
) -> Figure:
    """Samples of one event in pT(t) and c_hel against m(tt̄), both solutions, other answers and the truth."""
    x_name, y_names = "m_tt", ("pt_top", "c_hel")
    names = (x_name, *y_names)
    posterior, draws = method.sample(event, N_PICTURE), analytic.sample(event)
    humps, p4 = two_solutions(posterior)
    samples = sample_values(posterior, event.lepton_p4, names)
    drawn = sample_values(draws, event.lepton_p4, names)
    leptons = np.repeat(event.lepton_p4, 2, axis=0)
    solutions = observable_values(names, p4[0], p4[0].sum(axis=1), leptons)
    answers = {m.name: pair_values(m(event), event.lepton_p4, names) for m in (method, point, analytic)}
    true = true_values(names, truth)
    share = draws.weight[0] / draws.weight[0].max()
    with figure_style():
        figure = Figure(figsize=(20, 9), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, y_name in zip(panels, y_names, strict=True):
            axes.scatter(drawn[x_name][0], drawn[y_name][0], s=60 * share, color=COLOURS[3], marker="x")
            for i in (0, 1):
                inside = humps.cluster[0] == i
                axes.scatter(
                    samples[x_name][0, inside], samples[y_name][0, inside], s=14, color=COLOURS[i], alpha=0.5
                )
                axes.plot(
                    solutions[x_name][i],
                    solutions[y_name][i],
                    "o",
                    markersize=18,
                    color=COLOURS[i],
                    markeredgecolor="black",
                )
            for marker, values in zip("Dsv", answers.values(), strict=True):
                axes.plot(
                    values[x_name][0],
                    values[y_name][0],
                    marker,
                    markersize=15,
                    color="white",
                    markeredgecolor="black",
                    markeredgewidth=2,
                )
            axes.plot(true[x_name][0], true[y_name][0], "*", markersize=28, color="black")
            limits = [
                np.quantile(np.concatenate([samples[name][0], true[name]]), [0.002, 0.998])
                for name in (x_name, y_name)
            ]
            room = [0.05 * (high - low) for low, high in limits]
            axes.set_xlim(limits[0][0] - room[0], limits[0][1] + room[0])
            axes.set_ylim(limits[1][0] - room[1], limits[1][1] + room[1])
            axes.set_xlabel(OBSERVABLES[x_name].axis_label)
            axes.set_ylabel(OBSERVABLES[y_name].axis_label)
        percent = [f"{100 * p:.0f} %" for p in humps.probability[0]]
        handles = [
            entry("o", COLOURS[0], f"samples, first solution ({percent[0]})"),
            entry("o", COLOURS[1], f"samples, second solution ({percent[1]})"),
            *(
                entry(marker, "white", f"{name}{' (mean)' if name == method.name else ''}")
                for marker, name in zip("Dsv", answers, strict=True)
            ),
            entry("x", COLOURS[3], f"draws of {analytic.name}"),
            entry("*", "black", "truth"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=20, frameon=False)
    return figure


def entry(marker: str, colour: str, label: str) -> Line2D:
    """Entry of the legend."""
    edge = colour if marker == "x" else "black"
    return Line2D(
        [],
        [],
        color=colour,
        marker=marker,
        markersize=14,
        linestyle="none",
        markeredgecolor=edge,
        label=label,
    )


def main() -> None:
    """Sample, write the numbers, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("skims", nargs="+", type=Path, metavar="SKIM")
    parser.add_argument("--name", default="dilepton")
    parser.add_argument(
        "--point", default="dilepton-point", help="method with one answer, a name or a model file"
    )
    parser.add_argument("--point-name", default="dilepton-point")
    parser.add_argument("--analytic", default="sonnenschein")
    parser.add_argument("--events-with-more", type=int, default=5000, help=f"events with {N_MORE} samples")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", type=Path, default=Path("docs/tables"))
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    given = parser.parse_args()
    method = as_sampler(topreco.load(given.model, name=given.name, threads=given.threads))
    point = topreco.load(given.point, name=given.point_name, threads=given.threads)
    analytic = as_sampler(topreco.load(given.analytic, threads=given.threads))
    events, truth = read(given.skims)
    posterior = sample(method, events, N_SAMPLES)
    few = slice(given.events_with_more)
    more = sample(method, events[few], N_MORE)
    for name, rows in (
        (
            "two_humps",
            [*hump_rows(events, truth, posterior), *hump_rows(events[few], truth[few], more)],
        ),
        ("b_assignment", b_rows(events, truth, posterior)),
    ):
        write_csv(given.tables / f"{name}.csv", rows)
        print(given.tables / f"{name}.csv")
    humps, p4 = two_solutions(posterior)
    m_tt = observable_values(["m_tt"], p4, p4.sum(axis=2), None)["m_tt"]
    i = example(humps, abs(m_tt[:, 1] - m_tt[:, 0]))
    figure = draw(events[[i]], truth[[i]], method, point, analytic)
    figure.savefig(given.figures / "two_humps.png", dpi=50)
    print(given.figures / "two_humps.png")


if __name__ == "__main__":
    main()
