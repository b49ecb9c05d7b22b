"""Time of the smeared reconstruction beside a plain numpy version, in one run on one thread.

    python scripts/bench/bench_smearing.py --json smearing.json

Sonnenschein with 100 draws per event, with response, weights and averaging, on reconstructed events: exact
tt̄ events whose objects are shaken by the shipped response. Numbers are medians over repeats that alternate
between the two, so that other load on the machine hits both. Takes about a minute.
"""

import numpy as np
import numpy_smearing
from bench_solvers import exact_events
from measuring import alternate, parser, rates, report

from topreco.core.constants import M_B
from topreco.core.events import DileptonEvents, toy_events
from topreco.core.fourvector import from_three_momentum
from topreco.solvers.response import load_detector_response
from topreco.solvers.smearing import smear_and_solve

DRAWS = 100
# Events that numpy smears at a time: more take more memory and are not faster.
CHUNK = 100


def shaken_events(rng: np.random.Generator, n: int) -> DileptonEvents:
    """Events with two jets each, whose energies and MET are off as in a detector."""
    exact = exact_events(rng, n)
    events = toy_events(n, max_jets=2)
    jets = np.stack([exact["b"], exact["bbar"]], 1)
    momentum = jets[..., 1:] * rng.normal(1.0, 0.15, (n, 2, 1)).clip(0.5)
    fields = {name: getattr(events, name) for name in events.__dataclass_fields__}
    return DileptonEvents(
        **fields
        | {
            "lepton_plus": exact["lepton_plus"],
            "lepton_minus": exact["lepton_minus"],
            "jets": from_three_momentum(momentum, M_B),
            "jet_mask": np.ones((n, 2), bool),
            "b_candidates": np.tile([0, 1], (n, 1)),
            "met": exact["met"] - (momentum - jets[..., 1:]).sum(1)[:, :2] + rng.normal(0.0, 10.0, (n, 2)),
        }
    )


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    arguments = parser(__doc__)
    arguments.add_argument("--events", type=int, default=1000)
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    response = load_detector_response()
    rng = np.random.default_rng(options.seed)
    events = shaken_events(rng, options.events)
    n = len(events)

    def plain() -> float:
        parts = [
            numpy_smearing.smear_and_solve(events[i : i + CHUNK], response, rng, DRAWS)
            for i in range(0, n, CHUNK)
        ]
        return float(np.concatenate([solved for _, _, solved in parts]).mean() / DRAWS)

    def ours(method: str) -> float:
        return float(smear_and_solve(events, response, method=method, n_draws=DRAWS).n_solved.mean() / DRAWS)

    runs = {
        "numpy": plain,
        "sonnenschein": lambda: ours("sonnenschein"),
        "ellipse": lambda: ours("ellipse"),
    }
    solved = ", ".join(f"{name} {run():.4f}" for name, run in runs.items())
    times = alternate(runs, repeats=options.repeats)
    rows = rates(times, n, ratio_to="numpy", unit="µs/event")
    report(
        f"Smeared reconstruction, {DRAWS} draws per event", rows, options.json, [f"Solved draws: {solved}."]
    )


if __name__ == "__main__":
    main()
