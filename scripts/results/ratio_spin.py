"""Learned against true ratio of densities of tt̄ with and without spin correlation, docs/UNFOLDING.md.

    python scripts/results/ratio_spin.py --events 30000 100000 --output results/ratio_spin

A has the spin correlation of leading-order QCD, B has none. Both are hard processes of Pythia without shower
(extra `sim`), so that the incoming momentum fractions x₁, x₂ follow from t and t̄ up to the intrinsic
transverse momentum of some GeV, and the true ratio of the densities of t, t̄, ℓ⁺ and ℓ⁻ is known:

    p_A/p_B = Σᵢ P(i | t, t̄) wᵢ,   P(i | t, t̄) ∝ f₁(x₁) f₂(x₂) Ãᵢ(β, Θ)   for i = gg, qq̄

with wᵢ = 1 − q̂⁺ᵀ C′ᵢ q̂⁻ of `topreco.core.spin`, the parton densities of the tune and Ãᵢ of [1]_, appendix A.
A is B with events accepted with the probability wᵢ/2 of their own initial state; no event is in both. What
learns is the task `ratio` (*network*), with four-momenta and the observables of the recipe, and for
comparison the small networks of OmniFold (*MLP*) with the few observables that the ratio depends on, and a
fit of the coefficients of the products of direction cosines, in which the ratio is linear (*linear*).

``ratio_spin.csv`` has the correlation of learned and true log-ratio of events that their network has not
seen, of B, the smallest p of the closure, and the AUC of boosted trees (extra `calibration`) that tell A from
B in 20 observables, before and after weighting B; they learn from one half of the events.
``ratio_spin_closure.csv`` has χ² of A against weighted B in each of the observables, in bins of equal
population. Samples and models stay in OUTPUT, so that
the same command continues.

References
----------
.. [1] Y. Afik, J. R. M. de Nova, Entanglement and quantum tomography with top quarks at the LHC,
   arXiv:2003.02280.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import RectBivariateSpline
from scipy.stats import chi2 as chi2_distribution

import topreco
from topreco.config import RatioTrainConfig, SimulationConfig, load_config
from topreco.core.constants import M_TOP
from topreco.core.events import PRODUCTIONS, BoolArray, DileptonEvents, FloatArray, Truth, dataset_id
from topreco.core.files import writable_folder, write_csv, write_text
from topreco.core.observables import compute_observables, spin_basis
from topreco.core.skim import SkimWriter, read_skims
from topreco.core.spin import event_spin_weight, spin_correlation_weight
from topreco.evaluation.figures import save
from topreco.evaluation.style import Label, canvas
from topreco.measurement.classifier import Classifier, ClassifierSettings, cross_fitted, fit_log_ratio
from topreco.network.train_ratio import train_ratio
from topreco.simulation.decays import find_decays
from topreco.simulation.pythia import generate, settings, start_pythia

SQRT_S = 13000.0
OBSERVED = (
    *("m_tt", "pt_top", "y_tt", "y_top", "y_antitop", "delta_abs_y", "cos_theta_star", "delta_phi_ll"),
    *("c_hel", "c_han", "c_flip_r", "c_flip_n", "cos_1k", "cos_2k", "cos_1r", "cos_2r"),
    *("cos_1k_2k", "cos_1r_2r", "cos_1n_2n", "cos_1r_2k"),
)
"""Observables of the closure."""
BINS = 20
_CHUNK = 10_000
_HARD_PROCESS = (
    *("PartonLevel:ISR = off", "PartonLevel:FSR = off", "PartonLevel:MPI = off", "HadronLevel:all = off"),
    *("24:onMode = off", "24:onIfAny = 11 13"),
)
_QUARKS = (1, 2, 3, 4, 5)


def pythia(seed: int) -> Any:
    """A generator of hard processes without shower."""
    config = SimulationConfig(sqrt_s=SQRT_S, mpi=False)
    return start_pythia([*settings(config, seed), *_HARD_PROCESS])


def hard_events(generator: Any, n: int) -> Truth:
    """Truth of hard processes with electrons and muons."""
    events = generate(generator, n, refill=True)
    decays = find_decays(events)
    gluons = (events.parton_id == 21).all(axis=1)
    return Truth(
        tops=decays.top,
        w=decays.w,
        b=decays.top - decays.w,
        lepton=decays.lepton,
        neutrino=decays.w - decays.lepton,
        via_tau=np.zeros((n, 2), bool),
        dileptonic=np.ones(n, bool),
        production=np.where(gluons, PRODUCTIONS.index("gg"), PRODUCTIONS.index("qq")).astype(np.int8),
    )


def as_events(truth: Truth, name: str, first: int) -> DileptonEvents:
    """Partons in the places of reconstructed objects, which a skim needs; networks do not see them here."""
    n = len(truth)
    tagged = np.ones((n, 2), bool)
    return DileptonEvents(
        lepton_plus=truth.lepton[:, 0],
        lepton_minus=truth.lepton[:, 1],
        lepton_flavour=np.full((n, 2), 13),
        jets=truth.b,
        jet_mask=tagged,
        jet_btag=tagged.astype(float),
        jet_tagged=tagged,
        b_candidates=np.tile([0, 1], (n, 1)),
        met=truth.neutrino.sum(axis=1)[:, 1:3],
        dataset=np.full(n, dataset_id(name), np.uint64),
        run=np.ones(n, np.uint32),
        luminosity_block=np.ones(n, np.uint32),
        event=np.arange(first, first + n, dtype=np.uint64),
        weight=np.ones(n),
    )


def make_sample(path: Path, n: int, seed: int, *, correlated: bool) -> None:
    """Write a skim of n hard processes with the spin correlation of QCD, or without."""
    if path.is_file():
        return
    generator, rng = pythia(seed), np.random.default_rng(seed)
    done = 0
    with SkimWriter(path) as writer:
        while done < n:
            truth = hard_events(generator, min(_CHUNK, (n - done) * (1 + correlated) + 100))
            if correlated:
                truth = truth[2 * rng.random(len(truth)) < event_spin_weight(truth)]
            truth = truth[: n - done]
            writer.write(as_events(truth, path.stem, done), truth)
            done += len(truth)


class TrueRatio:
    """Σᵢ P(i | t, t̄) wᵢ of hard processes."""

    def __init__(self) -> None:
        density = pythia(1).getPDFPtr(2212)
        self._x, self._scale = np.linspace(np.log(5e-4), np.log(0.98), 150), np.linspace(9.5, 17.0, 40)
        self._xf = {
            code: RectBivariateSpline(
                self._x,
                self._scale,
                [[density.xf(code, np.exp(x), np.exp(q)) for q in self._scale] for x in self._x],
            )
            for code in (21, *_QUARKS, *(-q for q in _QUARKS))
        }

    def gluons(self, tops: FloatArray) -> FloatArray:
        """P(gg | t, t̄), shape (n,)."""
        system = tops.sum(axis=1)
        x = [(system[:, 0] + sign * system[:, 3]) / SQRT_S for sign in (1, -1)]
        top_mass = np.sqrt(tops[:, :, 0] ** 2 - tops[:, :, 3] ** 2)
        log_scale = 2 * np.log(top_mass.min(axis=1))

        def xf(code: int, leg: int) -> FloatArray:
            found: FloatArray = self._xf[code].ev(np.log(x[leg]), log_scale)
            return np.maximum(found, 0.0)

        cos = spin_basis(tops, signed=False)[:, 0, 2]
        mass = np.sqrt((tops[..., 0] ** 2 - (tops[..., 1:] ** 2).sum(-1)).clip(0)).mean(axis=1)
        s = system[:, 0] ** 2 - (system[:, 1:] ** 2).sum(-1)
        b2 = np.clip(1 - 4 * mass**2 / s, 0, 1)
        sin2 = 1 - cos**2
        of_gg = (7 + 9 * b2 * cos**2) / (192 * (1 - b2 * cos**2) ** 2)
        of_gg = of_gg * (1 + 2 * b2 * sin2 - b2**2 * (1 + sin2**2))
        of_qq = (2 - b2 * sin2) / 18
        gg = of_gg * xf(21, 0) * xf(21, 1)
        qq = of_qq * sum(xf(q, 0) * xf(-q, 1) + xf(-q, 0) * xf(q, 1) for q in _QUARKS)
        return np.asarray(gg / (gg + qq))

    def __call__(self, truth: Truth) -> FloatArray:
        """Ratio of each event, shape (n,)."""
        share = self.gluons(truth.tops)
        weight = [spin_correlation_weight(truth.tops, truth.w_lepton, i) for i in ("gg", "qq")]
        return np.asarray(share * weight[0] + (1 - share) * weight[1])


_PRODUCTS = ("cos_1k_2k", "cos_1r_2r", "cos_1n_2n", "cos_1r_2k", "cos_1k_2r")
LEARNERS = ("linear", "MLP", "network")
FOLDS, MEMBERS = 5, 2
STEPS = 10_000
"""Steps of the small networks; with fewer of them they learn too little, whatever the number of events."""
_SMALLEST_RATIO = 0.03


def inputs(truth: Truth) -> tuple[FloatArray, FloatArray]:
    """All that the ratio depends on, shapes (n, 3) and (n, 4).

    The first are β² of the tops in the tt̄ frame, cos²θ* and y(tt̄)²: the ratio does not change when the beams
    are exchanged, nor when z is reflected. The second are the products of direction cosines in which it is
    linear.
    """
    names = ("m_tt", "y_tt", "cos_theta_star", *_PRODUCTS)
    found = compute_observables(names, truth.tops, truth.tops.sum(1), truth.w_lepton, truth.valid)
    beta2 = np.maximum(1 - (2 * M_TOP / found["m_tt"]) ** 2, 0.0)
    kk, rr, nn, rk, kr = (found[name] for name in _PRODUCTS)
    kinematics = np.stack([beta2, found["cos_theta_star"] ** 2, found["y_tt"] ** 2], axis=1)
    return kinematics, np.stack([kk, rr, nn, rk + kr], axis=1)


def small_networks(a: Truth, b: Truth) -> FloatArray:
    """Log-ratio of the events of B, by the networks of OmniFold; the mean of some seeds, cross-fitted."""
    x = np.concatenate([np.concatenate(inputs(truth), axis=1) for truth in (a, b)])
    in_a = np.arange(len(x)) < len(a)
    fold = np.arange(len(x)) % FOLDS
    batch = ClassifierSettings().batch_size
    settings = ClassifierSettings(epochs=max(1, round(STEPS * batch / len(x) * FOLDS / (FOLDS - 1))))
    members = []
    for member in range(MEMBERS):

        def fit_on(used: BoolArray, number: int, member: int = member) -> Classifier:
            return fit_log_ratio(x[used], 1.0 * in_a[used], 1.0 * ~in_a[used], settings, (member, number))

        members.append(cross_fitted(fit_on, x, fold, FOLDS))
    found: FloatArray = np.mean(members, axis=0)[~in_a]
    return found


def linear_form(a: Truth, b: Truth) -> FloatArray:
    """Log-ratio of the events of B from p_A/p_B = 1 + Σₖ cₖ Pₖ, cross-fitted.

    Pₖ are the products of direction cosines, cₖ polynomials of second degree in β², cos²θ* and y(tt̄)², whose
    coefficients minimise the cross-entropy of A and B: Newton's steps with the expected second derivative.
    """
    x = []
    for truth in (a, b):
        kinematics, products = inputs(truth)
        z = np.concatenate([np.ones((len(kinematics), 1)), kinematics], axis=1)
        monomials = np.stack(
            [z[:, i] * z[:, j] for i, j in itertools.combinations_with_replacement(range(4), 2)]
        )
        x.append(np.concatenate([monomials.T * product[:, None] for product in products.T], axis=1))
    rows, in_a = np.concatenate(x), np.repeat([1.0, 0.0], [len(a), len(b)])
    fold = np.arange(len(rows)) % FOLDS

    def fit_on(used: BoolArray, number: int) -> Callable[[FloatArray], FloatArray]:  # noqa: ARG001
        own, target = rows[used], in_a[used]
        theta = np.zeros(rows.shape[1])
        for _ in range(8):
            ratio = np.maximum(1 + own @ theta, _SMALLEST_RATIO)
            slope = 1 / (1 + ratio) - target / ratio
            curvature = 1 / (ratio * (1 + ratio) ** 2)
            theta -= np.linalg.solve((own.T * curvature) @ own, own.T @ slope)
        return lambda wanted: np.log(np.maximum(1 + wanted @ theta, _SMALLEST_RATIO))

    return cross_fitted(fit_on, rows, fold, FOLDS)[len(a) :]


# ---- comparison ------------------------------------------------------------------------------------------


def observables(truth: Truth) -> dict[str, FloatArray]:
    """Values of `OBSERVED`, by name."""
    return compute_observables(OBSERVED, truth.tops, truth.tops.sum(1), truth.w_lepton, truth.valid)


def closure(a: FloatArray, b: FloatArray, weight: FloatArray) -> tuple[float, int, float]:
    """χ² of A against weighted B in bins of equal population, degrees of freedom and p."""
    edges = np.unique(np.quantile(a, np.linspace(0, 1, BINS + 1)[1:-1]))

    def share(values: FloatArray, w: FloatArray) -> tuple[FloatArray, FloatArray]:
        cell = np.searchsorted(edges, values, side="right")
        sums = np.bincount(cell, weights=w, minlength=len(edges) + 1)
        squares = np.bincount(cell, weights=w**2, minlength=len(edges) + 1)
        return sums / w.sum(), squares / w.sum() ** 2

    (first, v1), (second, v2) = share(a, np.ones(len(a))), share(b, weight)
    found = float(((first - second) ** 2 / (v1 + v2)).sum())
    return found, len(edges), float(chi2_distribution.sf(found, len(edges)))


def auc(a: FloatArray, b: FloatArray, weight: FloatArray, seed: int = 1) -> tuple[float, float]:
    """Area under the ROC curve of boosted trees, of the half that they have not seen, and its error.

    Parameters
    ----------
    a, b
        Observables, shape (n, d) each.
    weight
        Weights of the events of B.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    x = np.concatenate([a, b])
    y = np.r_[np.ones(len(a)), np.zeros(len(b))]
    w = np.r_[np.ones(len(a)), weight * len(a) / weight.sum()]
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[::2], order[1::2]
    trees = HistGradientBoostingClassifier(
        max_iter=50, learning_rate=0.1, early_stopping=True, random_state=seed
    )
    trees.fit(x[train], y[train], sample_weight=w[train])
    score = trees.predict_proba(x[test])[:, 1]
    found = float(roc_auc_score(y[test], score, sample_weight=w[test]))
    # Of the hypothesis 1/2: variance of a mean rank, with effective numbers of events.
    number = [w[test][y[test] == of].sum() ** 2 / (w[test][y[test] == of] ** 2).sum() for of in (0, 1)]
    return found, float(np.sqrt((1 / number[0] + 1 / number[1]) / 12))


def draw(learned: FloatArray, true: FloatArray, correlation: float, n: int, folder: Path) -> None:
    """Learned against true log-ratio."""
    with canvas(Label()) as (figure, (axes,)):
        limits = (-3.0, 0.8)
        image = axes.hist2d(true, learned, bins=80, range=[limits, limits], norm="log", cmin=1)[3]
        axes.plot(limits, limits, color="0.3", linewidth=1.5)
        figure.colorbar(image, ax=axes, label="Events")
        axes.set_xlabel(r"True $\log\,p_A/p_B$")
        axes.set_ylabel(r"Learned $\log\,p_A/p_B$")
        axes.text(-2.8, 0.4, f"{n:,} events each, $\\rho$ = {correlation:.3f}", size="x-small")
    save(figure, folder / "ratio_spin", formats=["png"])


def rounded(x: float) -> float:
    """Four significant digits."""
    return float(f"{x:.4g}")


class Comparison:
    """Comparison of A with weighted B; that without weights and with the true ratio is made once.

    Parameters
    ----------
    a, b
        Observables, by name.
    true
        True ratio of the events of B.
    """

    def __init__(self, a: dict[str, FloatArray], b: dict[str, FloatArray], true: FloatArray) -> None:
        self._a, self._b = a, b
        self._known = {name: self.of(w) for name, w in {"before": np.ones(len(true)), "true": true}.items()}

    def of(self, weight: FloatArray) -> tuple[tuple[float, float], dict[str, tuple[float, int, float]]]:
        """AUC and its error, and what `closure` gives for each of the observables."""
        both = [np.stack([of[name] for name in OBSERVED], axis=1) for of in (self._a, self._b)]
        return auc(*both, weight), {name: closure(self._a[name], self._b[name], weight) for name in OBSERVED}

    def all_of(self, weight: FloatArray) -> dict[str, Any]:
        """What `of` gives, by name of the weights."""
        return {"before": self._known["before"], "learned": self.of(weight), "true": self._known["true"]}


def compare(
    n: int, learner: str, learned: FloatArray, true: FloatArray, comparison: Comparison
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Rows of both tables."""
    weight = np.exp(learned)
    row: dict[str, Any] = {"events": n, "learner": learner}
    row["correlation"] = rounded(float(np.corrcoef(learned, true)[0, 1]))
    row["slope"] = rounded(float(np.polyfit(true, learned, 1)[0]))
    row["mean_weight"] = rounded(float(weight.mean()))
    row["effective_share"] = rounded(float(weight.sum() ** 2 / (weight**2).sum() / n))
    row["largest"] = rounded(float(weight.max()))
    closures = []
    for name, ((area, error), of_observables) in comparison.all_of(weight).items():
        row[f"auc_{name}"], row["auc_error"] = rounded(area), rounded(error)
        for observable, (chi2, bins, p) in of_observables.items():
            closures.append(
                {"events": n, "learner": learner, "weights": name, "observable": observable}
                | {"chi2": rounded(chi2), "degrees": bins, "p": rounded(p)}
            )
    row["smallest_p"] = min(c["p"] for c in closures if c["weights"] == "learned")
    return row, closures


def main() -> None:
    """Generate, train, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--events", type=int, nargs="+", required=True, help="numbers of events of A, and of B"
    )
    parser.add_argument("--learners", nargs="+", default=list(LEARNERS), choices=LEARNERS, help="what learns")
    parser.add_argument("--config", default="ratio.yaml", help="recipe of the training")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--output", type=Path, required=True, help="folder for samples and models")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of tables and figures")
    given = parser.parse_args()
    folder = writable_folder(given.output)
    most = max(given.events)
    paths = {name: folder / f"{name}_{most}.parquet" for name in ("a", "b")}
    make_sample(paths["a"], most, 1, correlated=True)
    make_sample(paths["b"], most, 2, correlated=False)
    (_, all_a), (all_events, all_b) = (read_skims([path]) for path in paths.values())
    assert all_a is not None
    assert all_b is not None
    true_ratio = TrueRatio()
    rows, closures = [], []
    for n in sorted(given.events):
        a, b, events = all_a[:n], all_b[:n], all_events[:n]
        results = {learner: folder / f"{learner}_{n}.json" for learner in given.learners}
        if any(not path.is_file() for path in results.values()):
            true = np.log(true_ratio(b))
            comparison = Comparison(observables(a), observables(b), np.exp(true))
        for learner, result in results.items():
            if not result.is_file():
                started = time.process_time()
                if learner != "network":
                    learned = (small_networks if learner == "MLP" else linear_form)(a, b)
                else:
                    own = [f'a=["{paths["a"]}"]', f'b=["{paths["b"]}"]', f"data.max_events={n}"]
                    own += ["model.inputs=generated", f"output={folder / str(n)}"]
                    path = train_ratio(load_config(RatioTrainConfig, given.config, [*given.set, *own]))
                    model: Any = topreco.load(path)
                    learned = model.log_ratio(events, b)
                seconds = time.process_time() - started
                print(f"{n} events, {learner}: {seconds:.0f} CPU seconds", flush=True)
                row, closure_rows = compare(n, learner, learned, true, comparison)
                content = {"row": row | {"cpu_s": round(seconds)}, "closure": closure_rows}
                write_text(result, json.dumps(content))
                draw(learned, true, row["correlation"], n, given.docs / "figures")
            content = json.loads(result.read_text())
            rows.append(content["row"])
            closures += content["closure"]
            print(content["row"], flush=True)
            write_csv(given.docs / "tables" / "ratio_spin.csv", rows)
            write_csv(given.docs / "tables" / "ratio_spin_closure.csv", closures)


if __name__ == "__main__":
    main()
