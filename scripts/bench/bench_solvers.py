"""Time of the analytic solvers beside plain numpy versions of the same methods, in one run on one thread.

    python scripts/bench/bench_solvers.py --json solvers.json

Unsmeared: exact events. Smeared: for each event 100 copies with energies, directions and W masses varied
(drawn beforehand, not timed), solved in chunks. Takes about a minute; numbers are medians over repeats that
alternate between the two, so that other load on the machine hits both. Batched LAPACK calls of numpy on small
matrices are serial.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy_ellipse
import numpy_sonnenschein

from topreco.constants import M_B, M_MUON, M_TOP, M_W
from topreco.fourvector import boost, from_three_momentum, mass
from topreco.solvers import ellipse, sonnenschein

Arguments = dict[str, Any]
DRAWS = 100
CHUNK = 10_000


def _decay(rng: np.random.Generator, parent: np.ndarray, m_1: float, m_2: float) -> list[np.ndarray]:
    """Two-body decay of four-momenta (n, 4), isotropic in the rest frame."""
    m = mass(parent)
    momentum = np.sqrt((m**2 - (m_1 + m_2) ** 2) * (m**2 - (m_1 - m_2) ** 2)) / (2 * m)
    direction = rng.normal(size=(len(m), 3))
    direction *= (momentum / np.linalg.norm(direction, axis=1))[:, None]
    velocity = parent[:, 1:] / parent[:, :1]
    return [
        boost(from_three_momentum(sign * direction, m_k), velocity) for sign, m_k in ((1, m_1), (-1, m_2))
    ]


def exact_events(rng: np.random.Generator, n: int) -> Arguments:
    """Arguments of the solvers for random events that meet all constraints."""
    m_tt = 2 * M_TOP + 5 + rng.exponential(120, n)
    pt, phi, y = rng.exponential(40, n), rng.uniform(-np.pi, np.pi, n), rng.normal(0, 1, n)
    m_t = np.hypot(m_tt, pt)
    system = np.stack([m_t * np.cosh(y), pt * np.cos(phi), pt * np.sin(phi), m_t * np.sinh(y)], -1)
    event: Arguments = {}
    met = np.zeros((n, 2))
    for top, lepton, b in zip(
        _decay(rng, system, M_TOP, M_TOP), ("lepton_plus", "lepton_minus"), ("b", "bbar"), strict=True
    ):
        w, event[b] = _decay(rng, top, M_W, M_B)
        event[lepton], neutrino = _decay(rng, w, M_MUON, 0.0)
        met += neutrino[:, 1:3]
    event["met"] = met
    for name, m_0 in (("m_top", M_TOP), ("m_antitop", M_TOP), ("m_w_plus", M_W), ("m_w_minus", M_W)):
        event[name] = np.full(n, m_0)
    return event


def smeared_events(rng: np.random.Generator, n: int) -> Arguments:
    """The same with 100 variations of each event that keep object masses and the MET balance."""
    event = {name: np.repeat(value, DRAWS, axis=0) for name, value in exact_events(rng, n).items()}
    for name, width, angle in (
        ("lepton_plus", 0.02, 0.001),
        ("lepton_minus", 0.02, 0.001),
        ("b", 0.15, 0.05),
        ("bbar", 0.15, 0.05),
    ):
        p4 = event[name]
        scale = np.exp(rng.normal(0, width, len(p4)))[:, None]
        size = np.linalg.norm(p4[:, 1:], axis=1, keepdims=True)
        momentum = p4[:, 1:] * scale + angle * size * rng.normal(size=(len(p4), 3))
        event["met"] = event["met"] - (momentum - p4[:, 1:])[:, :2]
        event[name] = from_three_momentum(momentum, mass(p4))
    for name in ("m_w_plus", "m_w_minus"):
        event[name] = event[name] + np.clip(2.1 * rng.standard_cauchy(len(event[name])) / 2, -10, 10)
    return event


def in_chunks(solve: Callable[..., Any], event: Arguments) -> np.ndarray:
    """Numbers of solutions, solving at most `CHUNK` rows at a time."""
    n = len(event["met"])
    return np.concatenate(
        [
            solve(**{name: value[start : start + CHUNK] for name, value in event.items()})[1]
            for start in range(0, n, CHUNK)
        ]
    )


def compare(event: Arguments, events: int, repeats: int, ours: Any, plain: Any) -> dict[str, float]:
    """Median times per event of both implementations, their ratio, and how often they solve an event."""
    in_chunks(ours.solve, {name: value[:1] for name, value in event.items()})
    times: dict[str, list[float]] = {"numba": [], "numpy": []}
    solved = {}
    for _ in range(repeats):
        for name, module in (("numba", ours), ("numpy", plain)):
            start = time.perf_counter()
            count = in_chunks(module.solve, event)
            times[name].append(time.perf_counter() - start)
            solved[name] = float((count > 0).mean())
    medians = {name: 1e6 * statistics.median(value) / events for name, value in times.items()}
    return {
        "numba_us_per_event": medians["numba"],
        "numpy_us_per_event": medians["numpy"],
        "ratio": medians["numpy"] / medians["numba"],
        "numba_solved": solved["numba"],
        "numpy_solved": solved["numpy"],
    }


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--smeared-events", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    samples = {
        "unsmeared": (exact_events(rng, options.events), options.events),
        f"{DRAWS} smearings": (smeared_events(rng, options.smeared_events), options.smeared_events),
    }
    results: dict[str, dict[str, float]] = {}
    print(f"{'':28}{'numba':>12}{'numpy':>12}{'ratio':>8}{'solved':>10}{'':>8}")
    print(f"{'':28}{'µs/event':>12}{'µs/event':>12}{'':>8}{'numba':>10}{'numpy':>8}")
    for sample, (event, events) in samples.items():
        for method, plain in ((sonnenschein, numpy_sonnenschein), (ellipse, numpy_ellipse)):
            name = f"{method.__name__.rsplit('.', 1)[-1]}, {sample}"
            r = results[name] = compare(event, events, options.repeats, method, plain)
            print(
                f"{name:28}{r['numba_us_per_event']:12.2f}{r['numpy_us_per_event']:12.2f}{r['ratio']:8.1f}"
                f"{r['numba_solved']:10.4f}{r['numpy_solved']:8.4f}"
            )
    if options.json:
        versions = {"numba": numba.__version__, "numpy": np.__version__}
        options.json.write_text(
            json.dumps(
                {"versions": versions, "options": vars(options), "results": results}, default=str, indent=2
            )
        )


if __name__ == "__main__":
    main()
