"""Time of the analytic solvers beside plain numpy versions of the same methods, in one run on one thread.

    python scripts/bench/bench_solvers.py --json solvers.json

Unsmeared: exact events. Smeared: for each event 100 copies with energies, directions and W masses varied
(drawn beforehand, not timed), solved in chunks. Takes about a minute; numbers are medians over repeats that
alternate between the two, so that other load on the machine hits both. Batched LAPACK calls of numpy on small
matrices are serial.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy_ellipse
import numpy_sonnenschein
from measuring import Measurement, alternate, parser, rates, report

from topreco.core.constants import M_B, M_MUON, M_TOP, M_W
from topreco.core.fourvector import boost, from_three_momentum, mass
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


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("--events", type=int, default=20_000)
    arguments.add_argument("--smeared-events", type=int, default=500)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    rng = np.random.default_rng(options.seed)
    samples = {
        "unsmeared": (exact_events(rng, options.events), options.events),
        f"{DRAWS} smearings": (smeared_events(rng, options.smeared_events), options.smeared_events),
    }
    rows: list[Measurement] = []
    notes = []
    for sample, (event, events) in samples.items():
        for method, plain in ((sonnenschein, numpy_sonnenschein), (ellipse, numpy_ellipse)):
            name = f"{method.__name__.rsplit('.', 1)[-1]}, {sample}"
            runs = {
                "numpy": partial(in_chunks, plain.solve, event),
                "compiled": partial(in_chunks, method.solve, event),
            }
            solved = [f"{(run() > 0).mean():.4f} {kind}" for kind, run in runs.items()]
            notes.append(f"{name}: solved {' and '.join(solved)}.")
            times = alternate(runs, repeats=options.repeats)
            rows += rates(times, events, ratio_to="numpy", unit="µs/event", prefix=f"{name}: ")
    report("Analytic solvers beside plain numpy", rows, options.json, notes)


if __name__ == "__main__":
    main()
