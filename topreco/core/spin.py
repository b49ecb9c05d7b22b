r"""Spin of top-quark pairs: coefficients measured from events, and weights of leading-order QCD.

At leading order the leptons of both legs follow |M|² ∝ A (1 − q̂⁺ᵀ C′ q̂⁻) with q̂± their directions in the rest
frames of their tops, both on the axes k, r and n of `topreco.core.observables.spin_basis`. The coefficients
that experiments publish have the axes −k, −r and −n for t̄, so that C = −C′.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import PRODUCTIONS, BoolArray, FloatArray, TopPair, Truth
from topreco.core.observables import (
    AXES,
    OBSERVABLE_GROUPS,
    accepts_awkward,
    lepton_directions,
    pair_values,
    spin_basis,
    spin_cosines,
)

# ---- coefficients ----------------------------------------------------------------------------------------


class SpinCoefficient(NamedTuple):
    """A coefficient of the spin density matrix and its statistical error."""

    value: float
    error: float


def spin_coefficients(tops: Any, leptons: Any = None, weight: Any = None) -> dict[str, SpinCoefficient]:
    """Polarisations, spin correlations and entanglement markers as weighted means over events [1]_.

    With cosθ₁ⁱ and cosθ₂ⁱ of `topreco.core.observables.spin_cosines`:

    - B₁ⁱ = 3⟨cosθ₁ⁱ⟩ and B₂ⁱ = 3⟨cosθ₂ⁱ⟩, called ``B_1k`` to ``B_2n``;
    - C_ij = −9⟨cosθ₁ⁱ cosθ₂ʲ⟩, ``C_kk`` to ``C_nn``, and their sums and differences, ``C_rk+C_kr``,
      ``C_rk-C_kr`` and so on, whose errors hold the correlation of the two;
    - D = −tr C/3 = −3⟨c_hel⟩, ``D``;
    - D⁽ⁱ⁾ = −D − 2 C_ii/3 = 3⟨c_flipped⟩ [2]_, ``D_k``, ``D_r`` and ``D_n``. Any of the four D below −1/3
      shows entanglement. The D̃ of [3]_ is −D⁽ⁿ⁾.

    Nothing is corrected for acceptance or resolution, so cuts bias all of them.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4). From a `TopPair`, or the records of
        `topreco.reconstruct`, means are taken of the method's own values of the observables ``cos_1k`` …
        ``cos_1k_2k`` … ``c_hel``, ``c_han`` and ``c_flip_r`` …, where it has them.
    leptons
        Four-momenta in GeV of ℓ⁺, which goes with t, and ℓ⁻, shape (n, 2, 4).
    weight
        Signed event weights, shape (n,); None counts.

    Returns
    -------
    coefficients
        By name; NaN where the sum of weights is not positive, with an error of NaN for fewer than two events.
        Events without all of the observables do not count, nor do those of weight 0.

    Raises
    ------
    TopRecoError
        If the weights are not one finite number per event.

    References
    ----------
    .. [1] CMS Collaboration, Measurement of the top quark polarization and tt̄ spin correlations using
       dilepton final states at √s = 13 TeV, arXiv:1907.03729.
    .. [2] F. Maltoni, C. Severi, S. Tentori, E. Vryonidou, Quantum detection of new physics in top-quark pair
       production at the LHC, arXiv:2401.08751.
    .. [3] CMS Collaboration, Measurements of polarization and spin correlation and observation of
       entanglement in top quark pairs using lepton+jets events at √s = 13 TeV, arXiv:2409.11067.
    """
    values, w, _ = spin_sample(tops, leptons, weight)
    return {name: _mean(column, w) for name, column in _coefficients_of_events(values)}


def spin_sample(
    tops: Any, leptons: Any = None, weight: Any = None
) -> tuple[dict[str, FloatArray], FloatArray, BoolArray]:
    """Observables of spin of the events that have all of them, and their weights.

    Parameters
    ----------
    tops, leptons, weight
        As of `spin_coefficients`.

    Returns
    -------
    values
        By name of the observable, each of shape (m,).
    weight
        Shape (m,).
    known
        The events that have them, shape (n,).

    Raises
    ------
    TopRecoError
        If the weights are not one finite number per event.
    """
    own, valid = None, None
    if isinstance(tops, TopPair):
        tops, own, valid = tops.p4, tops.observables, tops.valid
    elif "observables" in getattr(tops, "fields", ()):
        own = {name: np.asarray(tops.observables[name]) for name in tops.observables.fields}
    # Records may hold the leptons too.
    given = (tops,) if leptons is None else (tops, leptons)
    values = _spin_observables(*given, valid=valid, own=own)
    n = len(values["c_hel"])
    w = np.ones(n) if weight is None else np.asarray(weight, np.float64)
    if w.shape != (n,):
        raise TopRecoError(f"spin_coefficients: {n} events but weights of shape {w.shape}")
    if unusable := int((~np.isfinite(w)).sum()):
        raise TopRecoError(f"spin_coefficients: {unusable} of {len(w)} weights are not finite")
    known: BoolArray = np.asarray(np.isfinite(list(values.values())).all(axis=0))
    w = w[known]
    return {name: column[known] for name, column in values.items()}, w, known


_C_FLIPPED = {"k": "c_han", "r": "c_flip_r", "n": "c_flip_n"}
_SPIN = ("c_hel", *_C_FLIPPED.values(), *OBSERVABLE_GROUPS["polarisation"], *OBSERVABLE_GROUPS["correlation"])


@accepts_awkward()
def _spin_observables(
    tops: Any, leptons: Any, *, valid: BoolArray | None, own: Mapping[str, FloatArray] | None
) -> dict[str, FloatArray]:
    """Observables whose means the coefficients are, NaN where not valid, each of shape (n,)."""
    valid = np.ones(len(tops), np.bool_) if valid is None else valid
    if own:
        return pair_values(TopPair(tops, valid, observables=own), leptons, _SPIN)
    # One evaluation of the cosines for all of them.
    cosines = np.where(valid[:, None, None], spin_cosines(tops, leptons), np.nan)
    products = cosines[:, 0, :, None] * cosines[:, 1, None, :]
    values = {f"cos_{leg + 1}{a}": cosines[:, leg, i] for leg in range(2) for i, a in enumerate(AXES)}
    values |= {f"cos_1{a}_2{b}": products[:, i, j] for i, a in enumerate(AXES) for j, b in enumerate(AXES)}
    # The axes of the second leg are reversed.
    values["c_hel"] = -np.trace(products, axis1=1, axis2=2)
    return values | {_C_FLIPPED[axis]: values["c_hel"] + 2 * products[:, i, i] for i, axis in enumerate(AXES)}


def _coefficients_of_events(values: Mapping[str, FloatArray]) -> Iterator[tuple[str, FloatArray]]:
    """Name of each coefficient, and per event the values whose mean it is, shape (n,)."""
    for name in OBSERVABLE_GROUPS["polarisation"]:
        yield name.replace("cos_", "B_"), 3 * values[name]
    c = {f"{a}{b}": -9 * values[f"cos_1{a}_2{b}"] for a in AXES for b in AXES}
    for axes, column in c.items():
        yield f"C_{axes}", column
    for a, b in ("rk", "nr", "nk"):
        yield f"C_{a}{b}+C_{b}{a}", c[a + b] + c[b + a]
        yield f"C_{a}{b}-C_{b}{a}", c[a + b] - c[b + a]
    yield "D", -3 * values["c_hel"]
    for axis, name in _C_FLIPPED.items():
        yield f"D_{axis}", 3 * values[name]


def _mean(values: FloatArray, weight: FloatArray) -> SpinCoefficient:
    total = weight.sum()
    if total <= 0:
        return SpinCoefficient(np.nan, np.nan)
    mean = (weight * values).sum() / total
    error = np.sqrt((weight**2 * (values - mean) ** 2).sum()) / total
    # One event has no spread.
    return SpinCoefficient(float(mean), float(error) if np.count_nonzero(weight) > 1 else np.nan)


# ---- leading order ---------------------------------------------------------------------------------------


# C′ of a spin-0 resonance on the axes k, r, n, whatever its mass: w = 1 + c_hel and w = 1 − c_han.
_RESONANCES = {"pseudoscalar": (-1.0, -1.0, -1.0), "scalar": (-1.0, 1.0, 1.0)}


def spin_correlation_matrix(beta: FloatArray, cos_theta: FloatArray, initial: str) -> FloatArray:
    """Spin correlation C′ of tt̄ at leading order, of QCD [1]_ or of a spin-0 resonance.

    Parameters
    ----------
    beta
        Velocity of the tops in the tt̄ rest frame in units of c, shape (...).
    cos_theta
        Cosine of the angle between top and beam there, shape (...).
    initial
        ``gg`` or ``qq`` for QCD, ``pseudoscalar`` (C′ = −1) or ``scalar`` (C′ = diag(−1, 1, 1)) for the
        decay of a resonance.

    Returns
    -------
    matrix
        C′ on the axes k, r, n, shape (..., 3, 3).

    Raises
    ------
    TopRecoError
        If `initial` is another.

    References
    ----------
    .. [1] Y. Afik, J. R. M. de Nova, Entanglement and quantum tomography with top quarks at the LHC,
       arXiv:2003.02280, appendix A.
    """
    if initial in _RESONANCES:
        shape = np.broadcast_shapes(np.shape(beta), np.shape(cos_theta))
        return np.broadcast_to(np.diag(_RESONANCES[initial]), (*shape, 3, 3))
    b2, cos2 = np.asarray(beta) ** 2, np.asarray(cos_theta) ** 2
    sin2 = 1 - cos2
    sin, cos = np.sqrt(sin2), np.asarray(cos_theta)
    if initial == "gg":
        quartic = 1 + sin2**2
        norm = 1 + 2 * b2 * sin2 - b2**2 * quartic
        rr = -(1 - b2 * (2 - b2) * quartic)
        nn = -(1 - 2 * b2 + b2**2 * quartic)
        kk = -(1 - 2 * b2 * sin2 * cos2 - b2**2 * quartic)
        rk = np.sqrt(1 - b2) * b2 * 2 * sin * cos * sin2
    elif initial == "qq":
        norm = 2 - b2 * sin2
        rr = (2 - b2) * sin2
        nn = -b2 * sin2
        kk = b2 + cos2 * (2 - b2)
        rk = np.sqrt(1 - b2) * 2 * sin * cos
    else:
        raise TopRecoError(
            f"spin_correlation_matrix: initial is {initial!r}; allowed are gg, qq, {', '.join(_RESONANCES)}"
        )
    zero = np.zeros_like(norm)
    rows = [[kk, rk, zero], [rk, rr, zero], [zero, zero, nn]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2) / norm[..., None, None]


def spin_correlation_weight(tops: Any, leptons: Any, initial: str, scale: float = 1.0) -> Any:
    """Weight 1 − κ q̂⁺ᵀ C′ q̂⁻ that gives events without tt̄ spin correlation κ times that at leading order.

    Its mean over isotropic leptons is 1.

    Parameters
    ----------
    tops
        True four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    leptons
        True charged leptons of the W bosons in GeV, a τ before its decay, shape (n, 2, 4).
    initial
        What made the pair: the partons ``gg`` or ``qq``, or a resonance, ``pseudoscalar`` or ``scalar``.
    scale
        κ, 1 for the full correlation.

    Returns
    -------
    weight
        At least 0 for |κ| ≤ 1, shape (n,); NaN where a momentum is unknown.

    Raises
    ------
    TopRecoError
        If `initial` is another.
    """
    system = tops.sum(-2)
    axes = spin_basis(tops, signed=False)
    # Along the beam r and n are arbitrary, and nothing depends on them.
    axes = np.where(np.isnan(axes), np.array([[np.nan] * 3, [1, 0, 0], [0, 1, 0]]), axes)
    with np.errstate(invalid="ignore"):
        top = fourvector.to_rest_frame(tops[..., 0, :], system)[..., 1:]
        # Both tops have this momentum; their masses may differ.
        beta = 2 * np.sqrt((top**2).sum(-1)) / fourvector.mass(system)
    q = np.einsum("...ai,...li->...la", axes, lepton_directions(tops, leptons))
    matrix = spin_correlation_matrix(np.minimum(beta, 1.0), np.clip(axes[..., 0, 2], -1.0, 1.0), initial)
    return 1 - scale * np.einsum("...a,...ab,...b->...", q[..., 0, :], matrix, q[..., 1, :])


def event_spin_weight(truth: Truth, scale: float = 1.0, *, present: float = 0.0) -> FloatArray:
    """Weight of each event that changes its spin correlation, by its production channel.

    The ratio w(`scale`)/w(`present`) of `spin_correlation_weight`: the defaults add the correlation of QCD to
    a sample without, ``scale=0, present=1`` removes it from one that has it, and ``scale=κ, present=1``
    makes it κ times as large.

    Parameters
    ----------
    truth
        Generated tops, W bosons and neutrinos: the charged lepton is the difference of the last two, which
        holds for a τ too.
    scale
        Correlation wanted, in units of that of QCD. Beyond ±1 some weights are negative.
    present
        Correlation that the sample has, in the same units.

    Returns
    -------
    weight
        Shape (n,); NaN where the production is neither gg nor qq̄, a momentum is unknown, or the event cannot
        occur with the correlation present.
    """
    weight = np.full(len(truth), np.nan)
    for initial in ("gg", "qq"):
        chosen = truth.production == PRODUCTIONS.index(initial)
        tops, leptons = truth.tops[chosen], truth.w_lepton[chosen]
        wanted = spin_correlation_weight(tops, leptons, initial, scale)
        had = spin_correlation_weight(tops, leptons, initial, present)
        weight[chosen] = wanted / np.where(had > 0, had, np.nan)
    return weight
