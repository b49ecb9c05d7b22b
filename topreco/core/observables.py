"""Observables of top-quark pairs, the same functions for reconstruction and truth.

The functions take numpy arrays or torch tensors of four-momenta (E, px, py, pz) in GeV; index 0 of the axis
of length two is t with ℓ⁺, 1 is t̄ with ℓ⁻. In place of arrays they take awkward arrays of one record per
event: `tops` with the fields ``top`` and ``antitop``, `leptons` with ``lepton_plus`` and ``lepton_minus``,
`b` with ``b`` and ``bbar``, each a Lorentz vector. An argument left out is taken from the first one, and
the result is an awkward array. `docs/OBSERVABLES.md` lists every observable with definition and reference.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from topreco.core import fourvector
from topreco.core.constants import M_TOP
from topreco.core.errors import TopRecoError, nearest
from topreco.core.events import BoolArray, FloatArray, TopPair

AXES = ("k", "r", "n")
"""Names of the axes of `spin_basis`, in their order."""

Axis = Literal["k", "r", "n"]


@dataclass(frozen=True)
class Observable:
    """A quantity of the tt̄ pair and how it is shown.

    Attributes
    ----------
    name
        Key in configurations, histograms and tables.
    label
        Axis label in mathtext, without unit.
    unit
        Unit, empty if none.
    relative
        Residuals are (p − t)/t if true, else p − t, which is meant for quantities that cross zero.
    compute
        From four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4), of the tt̄ system, shape
        (n, 4), and of ℓ⁺ and ℓ⁻, shape (n, 2, 4), to values of shape (n,).
    """

    name: str
    label: str
    unit: str
    relative: bool
    compute: Callable[[FloatArray, FloatArray, FloatArray], FloatArray]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle a known observable by its name: its function may be a lambda."""
        known = OBSERVABLES.get(self.name) is self
        return (_known_observable, (self.name,)) if known else super().__reduce_ex__(protocol)

    @property
    def axis_label(self) -> str:
        """Label with unit, for an axis."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label

    def residual(self, pred: FloatArray, truth: FloatArray) -> FloatArray:
        """Residual of predicted against true values, shape (n,)."""
        return (pred - truth) / truth if self.relative else pred - truth


# ---- awkward arrays --------------------------------------------------------------------------------------

_RECORD_FIELDS = {
    "tops": ("top", "antitop"),
    "leptons": ("lepton_plus", "lepton_minus"),
    "b": ("b", "bbar"),
}
"""Fields of the awkward records that may stand for an argument of shape (n, 2, 4)."""


def accepts_awkward(*, returns: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a function of arrays (n, 2, 4) take awkward records too, see the module's docstring.

    Parameters
    ----------
    returns
        Fields of the four-momenta in the result, shape (n, 2, 4), which becomes records of `vector`; without
        them the result becomes a regular awkward array.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        pairs = [name for name in signature.parameters if name in _RECORD_FIELDS]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not any(_is_awkward(value) for value in (*args, *kwargs.values())):
                return function(*args, **kwargs)
            given = signature.bind_partial(*args, **kwargs).arguments
            records = next(value for value in given.values() if _is_awkward(value))
            for name in pairs:
                value = given.get(name, records)
                given[name] = _pair_of(value, name, function.__name__) if _is_awkward(value) else value
            return _awkward(function(**given), returns)

        return call

    return decorate


def _is_awkward(value: Any) -> bool:
    # Looked up, not imported: without awkward arrays the package is not needed.
    awkward = sys.modules.get("awkward")
    return awkward is not None and isinstance(value, awkward.Array)


def _pair_of(records: Any, argument: str, function: str) -> FloatArray:
    """Four-momenta (n, 2, 4) of the two fields that stand for an argument."""
    fields = _RECORD_FIELDS[argument]
    if not set(fields) <= set(records.fields):
        raise TopRecoError(
            f"{function}: {argument} as awkward array need the fields {' and '.join(fields)}, "
            f"found {', '.join(records.fields) or records.type}"
        )
    return np.stack([fourvector.from_awkward(records[field]) for field in fields], axis=1)


def _awkward(values: Any, fields: tuple[str, ...]) -> Any:
    import awkward as ak

    if fields:
        return ak.zip(
            {name: fourvector.to_awkward(values[:, i]) for i, name in enumerate(fields)}, depth_limit=1
        )
    return ak.from_numpy(values, regulararray=True) if isinstance(values, np.ndarray) else values


# ---- kinematics ------------------------------------------------------------------------------------------


@accepts_awkward()
def m_tt(tops: Any) -> Any:
    """Invariant mass of the tt̄ pair.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).

    Returns
    -------
    m_tt
        Mass in GeV, shape (...); NaN where spacelike.
    """
    return fourvector.mass(tops.sum(-2))


@accepts_awkward()
def beta_t(tops: Any) -> Any:
    """Speed of on-shell tops in the rest frame of their pair, β = √(1 − 4 m_t²/m_tt²), m_t = 172.5 GeV [1]_.

    Below 2 m_t, where samples of a posterior and off-shell tops may be, it is 0.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).

    Returns
    -------
    beta
        In units of c, shape (...); NaN where the pair is spacelike.

    References
    ----------
    .. [1] Y. Afik, J. R. M. de Nova, arXiv:2003.02280.
    """
    return _beta(m_tt(tops))


def _beta(mass: Any) -> Any:
    xp = fourvector.namespace(mass)
    with np.errstate(invalid="ignore", divide="ignore"):
        square = 1 - (2 * M_TOP / mass) ** 2
        # A NaN stays one.
        return xp.sqrt(xp.where(square < 0, xp.zeros_like(square), square))


@accepts_awkward()
def relative_velocity(tops: Any) -> Any:
    """Velocity of t̄ in the rest frame of t for on-shell tops, 2β/(1 + β²) with β of `beta_t`.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).

    Returns
    -------
    velocity
        In units of c, shape (...); NaN where the pair is spacelike.
    """
    return _relative(beta_t(tops))


def _relative(beta: Any) -> Any:
    return 2 * beta / (1 + beta**2)


@accepts_awkward()
def delta_abs_y(tops: Any) -> Any:
    """Difference of absolute rapidities Δ|y| = |y(t)| − |y(t̄)|, whose sign counts the charge asymmetry.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).

    Returns
    -------
    delta_abs_y
        Shape (...); NaN where a top has no rapidity.
    """
    y = fourvector.rapidity(tops)
    return abs(y[..., 0]) - abs(y[..., 1])


@accepts_awkward()
def cos_theta_star(tops: Any) -> Any:
    """Cosine of the angle Θ of the top to the beam (0, 0, 1) in the tt̄ rest frame.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).

    Returns
    -------
    cos_theta_star
        In [−1, 1], shape (...); NaN where the pair is not timelike, or at rest.
    """
    return _top_direction(tops)[..., 2]


@accepts_awkward()
def delta_phi_ll(leptons: Any) -> Any:
    """Azimuthal angle |Δφ(ℓ⁺, ℓ⁻)| between the leptons in the laboratory.

    Parameters
    ----------
    leptons
        Four-momenta (E, px, py, pz) in GeV of ℓ⁺ and ℓ⁻, shape (..., 2, 4).

    Returns
    -------
    delta_phi_ll
        In [0, π], shape (...).
    """
    return abs(fourvector.delta_phi(leptons[..., 0, :], leptons[..., 1, :]))


@accepts_awkward(returns=("neutrino", "antineutrino"))
def neutrinos(tops: Any, leptons: Any, b: Any) -> Any:
    """Neutrinos that tops, leptons and chosen b jets leave, ν = t − ℓ⁺ − b and ν̄ = t̄ − ℓ⁻ − b̄.

    Massless only where the method built its tops from neutrinos and the same b jets. The predictions of
    networks are means over what the event leaves open, and so are these.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).
    leptons
        Four-momenta in GeV of ℓ⁺ and ℓ⁻, shape (..., 2, 4).
    b
        Four-momenta in GeV of the b jets chosen for t and t̄, as `DileptonEvents.b_candidate_p4`, shape
        (..., 2, 4).

    Returns
    -------
    neutrinos
        Four-momenta (E, px, py, pz) in GeV of ν and ν̄, shape (..., 2, 4); NaN without a b jet.
    """
    return tops - leptons - b


@accepts_awkward()
def w_masses(tops: Any, b: Any) -> Any:
    """Masses of the W bosons that tops and chosen b jets leave, W⁺ = t − b and W⁻ = t̄ − b̄.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).
    b
        Four-momenta in GeV of the b jets chosen for t and t̄, as `DileptonEvents.b_candidate_p4`, shape
        (..., 2, 4).

    Returns
    -------
    masses
        Masses in GeV of W⁺ and W⁻, shape (..., 2); NaN where spacelike or without a b jet.
    """
    return fourvector.mass(tops - b)


# ---- spin ------------------------------------------------------------------------------------------------


@accepts_awkward()
def lepton_directions(tops: Any, leptons: Any) -> Any:
    """Directions of the leptons in the rest frames of their tops, on the axes of the tt̄ rest frame.

    From the laboratory one boost to the tt̄ rest frame, from there each lepton by one boost along its top's
    direction to that top's rest frame.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).
    leptons
        Four-momenta in GeV of ℓ⁺, which goes with t, and ℓ⁻, shape (..., 2, 4).

    Returns
    -------
    directions
        Unit vectors, shape (..., 2, 3); NaN where a top is not timelike.
    """
    system = tops.sum(-2)[..., None, :]
    # numpy would warn about spacelike tops, which are meant to become NaN.
    with np.errstate(invalid="ignore", divide="ignore"):
        parents = fourvector.to_rest_frame(tops, system)
        return _unit(fourvector.to_rest_frame(fourvector.to_rest_frame(leptons, system), parents)[..., 1:])


@accepts_awkward()
def spin_basis(tops: Any, *, signed: bool = True) -> Any:
    """Axes {k, r, n} of the spin correlation in the tt̄ rest frame [1]_ [2]_.

    k is the direction of the top, r = (p̂ − k cosΘ)/sinΘ lies in the plane of beam and top, and
    n = (p̂ × k)/sinΘ is normal to it, where p̂ = (0, 0, 1) is not boosted and cosΘ = p̂·k. These are the axes
    for t; those for t̄ are −k, −r and −n.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).
    signed
        Multiply r and n by the sign of cosΘ (+1 at zero), as a symmetric initial state needs for
        coefficients odd in r or n not to vanish.

    Returns
    -------
    axes
        Unit vectors k, r, n, shape (..., 3, 3); NaN where the pair is not timelike. Where the top flies along
        the beam there is no plane, and r and n are NaN.

    References
    ----------
    .. [1] W. Bernreuther, D. Heisler, Z.-G. Si, A set of top quark spin correlation and polarization
       observables for the LHC, arXiv:1508.05271.
    .. [2] CMS Collaboration, Measurement of the top quark polarization and tt̄ spin correlations using
       dilepton final states at √s = 13 TeV, arXiv:1907.03729.
    """
    k = _top_direction(tops)
    xp = fourvector.namespace(k)
    kx, ky, cos = k[..., 0], k[..., 1], k[..., 2]
    # More precise near the beam than √(1 − cos²).
    sin = xp.sqrt(kx**2 + ky**2)
    sign = xp.where(cos < 0, -xp.ones_like(cos), xp.ones_like(cos)) if signed else xp.ones_like(cos)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = (sign / sin)[..., None]
        r = scale * xp.stack([-kx * cos, -ky * cos, sin**2], -1)
        n = scale * xp.stack([-ky, kx, xp.zeros_like(cos)], -1)
    return xp.stack([k, r, n], -2)


@accepts_awkward()
def spin_cosines(tops: Any, leptons: Any) -> Any:
    """Cosines of the leptons to the spin axes, cosθ₁ⁱ = ℓ̂⁺·i and cosθ₂ⁱ = ℓ̂⁻·(−i) for i in k, r, n [1]_.

    Their means and those of their products are polarisations and spin correlations, see
    `topreco.core.spin.spin_coefficients`.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).
    leptons
        Four-momenta in GeV of ℓ⁺, which goes with t, and ℓ⁻, shape (..., 2, 4).

    Returns
    -------
    cosines
        Shape (..., 2, 3): leg 1 or 2, and axis k, r or n of `spin_basis`, whose NaN they have.

    References
    ----------
    .. [1] CMS Collaboration, arXiv:1907.03729.
    """
    axes = spin_basis(tops)[..., None, :, :]
    directions = lepton_directions(tops, leptons)[..., None, :]
    cosines = _bounded((axes * directions).sum(-1))
    xp = fourvector.namespace(cosines)
    return xp.stack([cosines[..., 0, :], -cosines[..., 1, :]], -2)


@accepts_awkward()
def c_hel(tops: Any, leptons: Any) -> Any:
    """Cosine of the angle between the leptons in the rest frames of their tops, c_hel = ℓ̂⁺·ℓ̂⁻ [1]_.

    Its mean measures the spin correlation, D = −3⟨c_hel⟩. The boosts are those of `lepton_directions`.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).
    leptons
        Four-momenta in GeV of ℓ⁺, which goes with t, and ℓ⁻, shape (..., 2, 4).

    Returns
    -------
    c_hel
        In [−1, 1], shape (...); NaN where a top is not timelike.

    References
    ----------
    .. [1] CMS Collaboration, Measurement of the top quark polarization and tt̄ spin correlations using
       dilepton final states at √s = 13 TeV, arXiv:1907.03729.
    """
    directions = lepton_directions(tops, leptons)
    return _bounded((directions[..., 0, :] * directions[..., 1, :]).sum(-1))


@accepts_awkward()
def c_flipped(tops: Any, leptons: Any, axis: Axis) -> Any:
    """c_hel with the component of one lepton along an axis reversed, c_hel − 2 (ℓ̂⁺·i)(ℓ̂⁻·i) [1]_.

    With i = k it is `c_han`. Its mean is a third of D⁽ⁱ⁾ [2]_, see `topreco.core.spin.spin_coefficients`.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).
    leptons
        Four-momenta in GeV of ℓ⁺, which goes with t, and ℓ⁻, shape (..., 2, 4).
    axis
        ``k``, ``r`` or ``n``.

    Returns
    -------
    c_flipped
        In [−1, 1], shape (...); NaN where a top is not timelike or there is no such axis.

    Raises
    ------
    TopRecoError
        If the axis is another.

    References
    ----------
    .. [1] CMS Collaboration, Measurements of polarization and spin correlation and observation of
       entanglement in top quark pairs using lepton+jets events at √s = 13 TeV, arXiv:2409.11067.
    .. [2] F. Maltoni, C. Severi, S. Tentori, E. Vryonidou, Quantum detection of new physics in top-quark pair
       production at the LHC, arXiv:2401.08751.
    """
    if axis not in AXES:
        raise TopRecoError(f"c_flipped: axis {axis!r}; allowed are {', '.join(AXES)}")
    directions = lepton_directions(tops, leptons)
    along = (directions * spin_basis(tops)[..., None, AXES.index(axis), :]).sum(-1)
    return _bounded(c_hel(tops, leptons) - 2 * along[..., 0] * along[..., 1])


@accepts_awkward()
def c_han(tops: Any, leptons: Any) -> Any:
    """c_hel with the component along the top reversed, c_han = c_hel − 2 (ℓ̂⁺·k)(ℓ̂⁻·k) [1]_.

    Its mean is −1/3 for a scalar that decays to tt̄, as that of c_hel is +1/3 for a pseudoscalar.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).
    leptons
        Four-momenta in GeV of ℓ⁺, which goes with t, and ℓ⁻, shape (..., 2, 4).

    Returns
    -------
    c_han
        In [−1, 1], shape (...); NaN where a top is not timelike.

    References
    ----------
    .. [1] CMS Collaboration, Observation of a pseudoscalar excess at the top quark pair production
       threshold, arXiv:2503.22382.
    """
    return c_flipped(tops, leptons, "k")


def _top_direction(tops: Any) -> Any:
    """Direction of the top in the tt̄ rest frame, shape (..., 3)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return _unit(fourvector.to_rest_frame(tops[..., 0, :], tops.sum(-2))[..., 1:])


def _unit(vectors: Any) -> Any:
    return vectors / fourvector.namespace(vectors).sqrt((vectors**2).sum(-1))[..., None]


def _bounded(cosine: Any) -> Any:
    # Rounding leads out of the range of a cosine, and of the last bin of a histogram.
    return fourvector.namespace(cosine).clip(cosine, -1.0, 1.0)


# ---- registry --------------------------------------------------------------------------------------------


def _flipped(axis: Axis) -> Observable:
    return Observable(
        f"c_flip_{axis}",
        rf"$c_{{hel}}^{{({axis})}}$",
        "",
        False,
        lambda tops, _, leptons: c_flipped(tops, leptons, axis),
    )


def _polarisation(leg: int, axis: int) -> Observable:
    return Observable(
        f"cos_{leg + 1}{AXES[axis]}",
        rf"$\cos\theta_{leg + 1}^{AXES[axis]}$",
        "",
        False,
        lambda tops, _, leptons: spin_cosines(tops, leptons)[:, leg, axis],
    )


def _correlation(first: int, second: int) -> Observable:
    def compute(tops: FloatArray, _: FloatArray, leptons: FloatArray) -> FloatArray:
        cosines: FloatArray = spin_cosines(tops, leptons)
        return cosines[:, 0, first] * cosines[:, 1, second]

    i, j = AXES[first], AXES[second]
    return Observable(f"cos_1{i}_2{j}", rf"$\cos\theta_1^{i}\,\cos\theta_2^{j}$", "", False, compute)


_KINEMATICS = (
    Observable("m_tt", r"$m_{t\bar{t}}$", "GeV", True, lambda tops, system, _: fourvector.mass(system)),
    Observable("pt_tt", r"$p_{T}^{t\bar{t}}$", "GeV", False, lambda tops, system, _: fourvector.pt(system)),
    Observable("y_tt", r"$y_{t\bar{t}}$", "", False, lambda tops, system, _: fourvector.rapidity(system)),
    Observable("pt_top", r"$p_{T}^{t}$", "GeV", True, lambda tops, *_: fourvector.pt(tops[:, 0])),
    Observable("pt_antitop", r"$p_{T}^{\bar{t}}$", "GeV", True, lambda tops, *_: fourvector.pt(tops[:, 1])),
    Observable("y_top", r"$y_{t}$", "", False, lambda tops, *_: fourvector.rapidity(tops[:, 0])),
    Observable("y_antitop", r"$y_{\bar{t}}$", "", False, lambda tops, *_: fourvector.rapidity(tops[:, 1])),
    Observable("m_top", r"$m_{t}$", "GeV", True, lambda tops, *_: fourvector.mass(tops[:, 0])),
    Observable("m_antitop", r"$m_{\bar{t}}$", "GeV", True, lambda tops, *_: fourvector.mass(tops[:, 1])),
)
_ANGLES = (
    Observable("delta_abs_y", r"$\Delta|y|$", "", False, lambda tops, *_: delta_abs_y(tops)),
    Observable("cos_theta_star", r"$\cos\theta^{*}$", "", False, lambda tops, *_: cos_theta_star(tops)),
    Observable(
        "delta_phi_ll", r"$|\Delta\phi(\ell\ell)|$", "", False, lambda _t, _s, leptons: delta_phi_ll(leptons)
    ),
)


def _of_mass(function: Callable[[Any], Any]) -> Callable[[Any, Any, Any], Any]:
    return lambda _tops, system, _leptons: function(fourvector.mass(system))


_OF_M_TT: Mapping[str, Callable[[Any], Any]] = {
    "beta_t": _beta,
    "relative_velocity": lambda mass: _relative(_beta(mass)),
}
_THRESHOLD = tuple(
    Observable(name, label, "", False, _of_mass(_OF_M_TT[name]))
    for name, label in (("beta_t", r"$\beta_{t}$"), ("relative_velocity", r"$v_{rel}$"))
)
_C_HEL = Observable("c_hel", r"$c_{hel}$", "", False, lambda tops, _, leptons: c_hel(tops, leptons))
_C_FLIPPED = (
    Observable("c_han", r"$c_{han}$", "", False, lambda tops, _, leptons: c_han(tops, leptons)),
    _flipped("r"),
    _flipped("n"),
)
_POLARISATION = tuple(_polarisation(leg, axis) for leg in range(2) for axis in range(3))
_CORRELATION = tuple(_correlation(first, second) for first in range(3) for second in range(3))
_SPIN = (_C_HEL, *_C_FLIPPED, *_POLARISATION, *_CORRELATION)

OBSERVABLES: dict[str, Observable] = {o.name: o for o in (*_KINEMATICS, *_ANGLES, *_THRESHOLD, *_SPIN)}
"""Every observable by name."""

# They need the directions of the leptons in the rest frames of their tops.
_SHARED = {observable.name for observable in _SPIN}

OBSERVABLE_GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(observable.name for observable in members)
    for group, members in (
        ("default", (*_KINEMATICS, _C_HEL)),
        ("angles", _ANGLES),
        ("threshold", _THRESHOLD),
        ("polarisation", _POLARISATION),
        ("correlation", _CORRELATION),
        ("spin", _SPIN),
        ("all", OBSERVABLES.values()),
    )
}
"""Names that stand for several observables in a configuration."""


def observable_values(names: Iterable[str], tops: Any, system: Any, leptons: Any) -> dict[str, Any]:
    """Values of several observables, the directions of the leptons computed once for all of them.

    Parameters
    ----------
    names
        Observables.
    tops, system, leptons
        Four-momenta as `Observable.compute` takes them.

    Returns
    -------
    values
        By name, each as `Observable.compute` gives it.
    """
    names = tuple(dict.fromkeys(names))
    if not set(names) & _SHARED:
        return {name: OBSERVABLES[name].compute(tops, system, leptons) for name in names}
    directions, axes = lepton_directions(tops, leptons), spin_basis(tops)
    along = (axes[..., None, :, :] * directions[..., None, :]).sum(-1)
    helicity = (directions[..., 0, :] * directions[..., 1, :]).sum(-1)
    shared = {"c_hel": _bounded(helicity)}
    for i, flipped in enumerate(_C_FLIPPED):
        shared[flipped.name] = _bounded(helicity - 2 * along[..., 0, i] * along[..., 1, i])
    cosines = _bounded(along)
    for i, first in enumerate(AXES):
        shared[f"cos_1{first}"], shared[f"cos_2{first}"] = cosines[..., 0, i], -cosines[..., 1, i]
        for j, second in enumerate(AXES):
            shared[f"cos_1{first}_2{second}"] = -cosines[..., 0, i] * cosines[..., 1, j]
    return {
        name: shared[name] if name in shared else OBSERVABLES[name].compute(tops, system, leptons)
        for name in names
    }


def observable_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of observables from a configuration, groups replaced by their members, each once, in order.

    Raises
    ------
    TopRecoError
        If a name is neither an observable nor a group.
    """
    found: dict[str, None] = {}
    for name in names:
        if name not in OBSERVABLES and name not in OBSERVABLE_GROUPS:
            raise TopRecoError(
                f"unknown observable {name!r}{nearest(name, [*OBSERVABLES, *OBSERVABLE_GROUPS])}; "
                f"allowed: {', '.join(OBSERVABLES)}, and the groups {', '.join(OBSERVABLE_GROUPS)}"
            )
        found |= dict.fromkeys(OBSERVABLE_GROUPS.get(name, (name,)))
    return tuple(found)


def compute_observables(
    names: Iterable[str], tops: FloatArray, system: FloatArray, leptons: FloatArray, valid: BoolArray
) -> dict[str, FloatArray]:
    """Observables of four-momenta, in double precision, each of shape (n,).

    Parameters
    ----------
    names
        Observables.
    tops, system, leptons
        Four-momenta (E, px, py, pz) in GeV as for `Observable.compute`.
    valid
        Events to compute, shape (n,); the others are NaN.
    """
    momenta = [np.asarray(p4[valid], np.float64) for p4 in (tops, system, leptons)]
    # A method's overflowing momenta are events without a value, not a reason to warn.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        computed = observable_values(names, *momenta)
    found = {name: np.full(len(valid), np.nan) for name in computed}
    for name, values in computed.items():
        found[name][valid] = values
    return found


def pair_values(pair: TopPair, leptons: FloatArray, names: Iterable[str]) -> dict[str, FloatArray]:
    """Observables as a method predicts them: its own value where it has one, else that of its four-momenta.

    `beta_t` and `relative_velocity` are those of its own m(tt̄). Whatever fills, writes or unfolds an
    observable takes it from here.

    Parameters
    ----------
    pair
        Prediction of a method for n events.
    leptons
        Four-momenta (E, px, py, pz) in GeV of ℓ⁺ and ℓ⁻, shape (n, 2, 4).
    names
        Observables.

    Returns
    -------
    values
        By name in the order given, in double precision, NaN where not valid, each of shape (n,).
    """
    names = tuple(dict.fromkeys(names))
    own: Mapping[str, FloatArray] = pair.observables or {}
    if "m_tt" in own:
        mass = np.asarray(own["m_tt"], np.float64)
        own = {name: function(mass) for name, function in _OF_M_TT.items() if name in names} | dict(own)
    absent = [name for name in names if name not in own]
    computed = compute_observables(absent, pair.p4, pair.system, leptons, pair.valid) if absent else {}
    return {
        name: np.where(pair.valid, np.asarray(own[name], np.float64), np.nan)
        if name in own
        else computed[name]
        for name in names
    }


def _known_observable(name: str) -> Observable:
    return OBSERVABLES[name]
