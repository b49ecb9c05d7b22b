r"""What a prior from the mixture of QCD tt̄ and a threshold state does to a posterior, docs/SIGNALS.md.

    python scripts/results/signals_prior.py --background qcd_tight.parquet --signal threshold_tight.parquet \
        -o docs/tables/signals_prior.csv

The generated spectrum of the mixture is (1 − f) g + f g_s in the m(tt̄) of on-shell tops with the generated
three-momenta (`topreco.core.prior`), g that of the training and g_s that of generated events of the state,
which are made here without hadrons. Spin needs no weight: tt̄ of gluons is a singlet at threshold too. Bias
and coverage of the state and of QCD, and coverage of both together in the proportion of the mixture. Coverage
of m(tt̄) is that of the on-shell tops, since samples have no others.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import topreco
from topreco.config import SimulationConfig, load_config
from topreco.core.events import DileptonEvents, FloatArray, Posterior, Truth
from topreco.core.files import write_csv
from topreco.core.observables import compute_observables
from topreco.core.posterior import effective_samples, observable_mean, sample_quantiles, sample_values
from topreco.core.prior import M_TT_EDGES, Prior, on_shell_spectrum
from topreco.core.skim import Skim
from topreco.reconstruction.posterior import FromSamples

FRACTIONS = (0.0, 0.01, 0.1, 0.5, 1.0)
LEVELS = (0.16, 0.84)


def generated_spectrum(recipe: str, n_events: int) -> FloatArray:
    """Generated events of a resonance in bins of `M_TT_EDGES`; the last is open."""
    from topreco.simulation.decays import find_decays
    from topreco.simulation.pythia import generate, settings, start_pythia

    config = load_config(SimulationConfig, recipe, ["mpi=false"])
    events = generate(start_pythia([*settings(config, 900), "HadronLevel:all = off"]), n_events, refill=True)
    z, _ = on_shell_spectrum(find_decays(events).top)
    return np.histogram(np.minimum(z, M_TT_EDGES[-1]), M_TT_EDGES)[0].astype(float)


def of_sample(posterior: Posterior, events: DileptonEvents, truth: Truth) -> dict[str, FloatArray]:
    """Residuals, and whether the central 68 % interval holds the truth, of each event."""
    names = ("m_tt", "c_hel", "c_han")
    values = sample_values(posterior, events.lepton_p4, names)
    true = compute_observables(names, truth.tops, truth.tops.sum(1), truth.lepton, truth.valid)
    on_shell = {**true, "m_tt": on_shell_spectrum(truth.tops)[0]}
    found = {"effective samples": effective_samples(posterior)}
    for name in names:
        mean = observable_mean(name, values[name], posterior.weight)
        relative = true[name] if name == "m_tt" else 1.0
        found[f"bias {name}"] = (mean - true[name]) / relative
        low, high = sample_quantiles(values[name], posterior.weight, LEVELS).T
        found[f"{name} in 68 %"] = ((on_shell[name] >= low) & (on_shell[name] <= high)).astype(float)
    return found


def rows_of(
    samples: dict[str, tuple[DileptonEvents, Truth, float]],
    method: Any,
    spectrum: FloatArray,
    n_samples: int,
) -> list[dict[str, Any]]:
    """Rows of the table.

    Parameters
    ----------
    samples
        Events of ``QCD`` and of the state with truth, and the selected share of generated events.
    method
        Posterior with spectra of its training.
    spectrum
        Generated events of the state in `M_TT_EDGES`.
    n_samples
        Samples of each event.
    """
    prior = Prior.from_histogram(spectrum, M_TT_EDGES, name="state")
    # Takes the spectra of the training.
    state = FromSamples(method, prior=prior).prior
    assert state is not None
    drawn = {}
    for name, (events, _, _) in samples.items():
        posterior = method.sample(events, n_samples)
        drawn[name] = (posterior, np.exp(state.log_ratio(posterior.samples)))
    rows = []
    for fraction in FRACTIONS:
        row: dict[str, Any] = {"share": fraction}
        together: dict[str, list[tuple[float, float, float]]] = {}
        for name, (events, truth, selected) in samples.items():
            posterior, ratio = drawn[name]
            with np.errstate(divide="ignore"):
                added = np.log((1 - fraction) + fraction * ratio)
            weighted = dataclasses.replace(posterior, log_weight=posterior.log_weight + added)
            part = selected * ((1 - fraction) if name == "QCD" else fraction)
            for key, values in of_sample(weighted, events, truth).items():
                # Without samples in the prior there is no answer.
                known = values[np.isfinite(values)]
                mean = float(known.mean()) if len(known) else np.nan
                error = float(known.std() / np.sqrt(max(len(known), 1)))
                row |= {f"{name} {key}": round(mean, 4), f"{name} {key} error": round(error, 4)}
                if key.endswith("68 %"):
                    together.setdefault(key, []).append((part, mean, error))
        for key, parts in together.items():
            part, mean, error = np.array(parts).T
            row[f"mixture {key}"] = round(float((part * mean).sum() / part.sum()), 4)
            row[f"mixture {key} error"] = round(float(np.hypot(*(part * error)) / part.sum()), 4)
        rows.append(row)
    return rows


def read(path: str, most: int) -> tuple[DileptonEvents, Truth, float]:
    """The first events of a skim, and the share of generated events that it has selected."""
    skim = Skim(path)
    events, truth = skim.read()
    assert truth is not None
    return events[:most], truth[:most], skim.metadata["n_selected"] / skim.metadata["n_generated"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--background", required=True, help="skim of QCD tt̄")
    parser.add_argument("--signal", required=True, help="skim of the threshold state, selected alike")
    parser.add_argument("--recipe", default="sim/threshold_13tev.yaml")
    parser.add_argument("--method", default="dilepton")
    parser.add_argument("--events", type=int, default=700, help="largest number of each sample")
    parser.add_argument("--samples", type=int, default=256, help="of each event")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    samples = {"QCD": read(given.background, given.events), "state": read(given.signal, given.events)}
    spectrum = generated_spectrum(given.recipe, 2000)
    rows = rows_of(samples, topreco.load(given.method), spectrum, given.samples)
    write_csv(given.output, rows)


if __name__ == "__main__":
    main()
