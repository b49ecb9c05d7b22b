r"""Spin density matrix of top-quark pairs with its covariance, and what quantum information makes of it.

The matrix is ρ = ¼ [1⊗1 + B₁·σ⊗1 + 1⊗B₂·σ − Σ C_ij σᵢ⊗σⱼ] on the axes k, r, n, with the coefficients of
`topreco.core.spin`, whose axes for t̄ are the reversed ones. All fifteen are means over events.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from topreco.core.errors import TopRecoError
from topreco.core.events import FloatArray, IntArray, TopPair
from topreco.core.observables import AXES, pair_values
from topreco.core.spin import SpinCoefficient, spin_sample

COEFFICIENTS = (
    *(f"B_{leg}{axis}" for leg in (1, 2) for axis in AXES),
    *(f"C_{first}{second}" for first in AXES for second in AXES),
)
"""Names of the fifteen coefficients in the order of `SpinDensity`."""

_N_POLARISATIONS = 6
_PAULI = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
# k is the axis of quantisation: σ_z, then σ_x and σ_y for r and n.
_SPIN_OPERATORS = _PAULI[[2, 0, 1]]
_STEP = 1e-6

Complex = npt.NDArray[np.complex128]


class SpinDensity(NamedTuple):
    """Coefficients of the spin density matrix and their covariance.

    Attributes
    ----------
    values
        B₁, B₂ and C_ij in the order of `COEFFICIENTS`, shape (15,).
    covariance
        Shape (15, 15).
    n
        Number of events.
    n_eff
        Effective number (Σw)²/Σw².
    """

    values: FloatArray
    covariance: FloatArray
    n: int
    n_eff: float

    @property
    def correlation(self) -> FloatArray:
        """C_ij with the axes of t̄ reversed, shape (3, 3)."""
        return self.values[_N_POLARISATIONS:].reshape(3, 3)

    @property
    def matrix(self) -> Complex:
        """Density matrix ρ, shape (4, 4): the first index of the product is that of t."""
        return _matrix(self.values)

    def derived(self, function: Callable[[FloatArray], float]) -> SpinCoefficient:
        """Value and error, by propagation of the covariance, of a function of the coefficients.

        Parameters
        ----------
        function
            Of an array as `values`, such as `concurrence_margin` and `chsh`.
        """
        if not np.isfinite(self.values).all():
            return SpinCoefficient(np.nan, np.nan)
        gradient = np.array(
            [
                (function(self.values + step) - function(self.values - step)) / (2 * _STEP)
                for step in _STEP * np.eye(len(self.values))
            ]
        )
        variance = gradient @ self.covariance @ gradient
        return SpinCoefficient(float(function(self.values)), float(np.sqrt(variance)))


def _matrix(values: FloatArray) -> Complex:
    one = np.eye(2)
    first, second = values[:3], values[3:_N_POLARISATIONS]
    c = values[_N_POLARISATIONS:].reshape(3, 3)
    rho = np.kron(one, one).astype(np.complex128)
    for i, left in enumerate(_SPIN_OPERATORS):
        rho += first[i] * np.kron(left, one) + second[i] * np.kron(one, left)
        for j, right in enumerate(_SPIN_OPERATORS):
            rho -= c[i, j] * np.kron(left, right)
    return rho / 4


def concurrence_margin(values: FloatArray) -> float:
    """Concurrence before it is cut off at zero, λ₁ − λ₂ − λ₃ − λ₄: positive for entangled pairs [1]_.

    The λ are the square roots of the eigenvalues of ρ (σ_y⊗σ_y) ρ* (σ_y⊗σ_y), the largest first. The
    concurrence is max(0, margin), which has no gaussian error near 0. Fluctuations may make ρ have
    negative eigenvalues; such an eigenvalue of the product counts as 0.

    Parameters
    ----------
    values
        Coefficients as in `SpinDensity.values`.

    Returns
    -------
    margin
        1 for a singlet.

    References
    ----------
    .. [1] W. K. Wootters, Entanglement of formation of an arbitrary state of two qubits,
       quant-ph/9709029, Eq. (12); for tops Y. Afik, J. R. M. de Nova, arXiv:2003.02280.
    """
    rho = _matrix(values)
    flip = np.kron(_PAULI[1], _PAULI[1])
    found = np.linalg.eigvals(rho @ flip @ rho.conj() @ flip).real
    roots = np.sort(np.sqrt(np.maximum(found, 0.0)))
    return float(roots[3] - roots[:3].sum())


def chsh(values: FloatArray) -> float:
    """Largest mean of the CHSH operator, 2√(m₁ + m₂): above 2 Bell's inequality is violated [1]_.

    m₁ and m₂ are the larger eigenvalues of CᵀC. Noise enters squared and so biases it upwards: compare with
    the bias that `bootstrap` gives.

    Parameters
    ----------
    values
        Coefficients as in `SpinDensity.values`.

    Returns
    -------
    marker
        2√2 for a singlet.

    References
    ----------
    .. [1] R., P. and M. Horodecki, Violating Bell inequality by mixed spin-½ states, Phys. Lett. A 200 (1995)
       340; for tops C. Severi, C. D. E. Boschi, F. Maltoni, M. Sioli, arXiv:2110.10112.
    """
    c = values[_N_POLARISATIONS:].reshape(3, 3)
    return float(2 * np.sqrt(np.linalg.eigvalsh(c.T @ c)[1:].sum()))


# ---- from events -----------------------------------------------------------------------------------------


def spin_density(
    tops: Any, leptons: Any = None, weight: Any = None, *, group: IntArray | None = None
) -> SpinDensity:
    """Spin density matrix of events, not corrected for acceptance or resolution.

    With x the fifteen quantities whose weighted means are the coefficients, the covariance is
    Σ w² (x − x̄)(x − x̄)ᵀ/(Σw)².
    Weights may be negative.

    Parameters
    ----------
    tops, leptons, weight
        As of `topreco.core.spin.spin_coefficients`.
    group
        Number that is equal for events that are not independent, such as copies of a hard event, shape (n,);
        None: all are independent.

    Returns
    -------
    density
        NaN where the sum of weights is not positive; a covariance of NaN for one event.

    Raises
    ------
    TopRecoError
        If weights or groups are not one finite number per event.
    """
    return _density(*_columns(tops, leptons, weight, group))


def bootstrap(
    tops: Any,
    leptons: Any = None,
    weight: Any = None,
    *,
    group: IntArray | None = None,
    replicas: int = 200,
    seed: int = 1,
) -> FloatArray:
    """Coefficients of bootstrap samples, in which each event counts a Poisson number of times.

    Parameters
    ----------
    tops, leptons, weight, group
        As of `spin_density`; a group counts as one.
    replicas
        Number of samples.
    seed
        Seed of the Poisson numbers.

    Returns
    -------
    values
        Coefficients of each sample, shape (replicas, 15). The mean of a function of them less that of the
        sample is its bias.

    Raises
    ------
    TopRecoError
        If weights or groups are not one finite number per event.
    """
    x, w, inverse = _columns(tops, leptons, weight, group)
    n = int(inverse.max()) + 1 if len(inverse) else 0
    rng = np.random.default_rng(seed)
    found = np.full((replicas, len(COEFFICIENTS)), np.nan)
    for row in found:
        replica = w * rng.poisson(1.0, n)[inverse]
        if (total := replica.sum()) > 0:
            row[:] = replica @ x / total
    return found


def binned_spin_density(
    pair: TopPair,
    leptons: FloatArray,
    weight: FloatArray | None = None,
    *,
    m_tt: Sequence[float],
    abs_cos_theta: Sequence[float] = (0.0, 1.0),
    group: IntArray | None = None,
) -> list[list[SpinDensity]]:
    """Spin density matrices in bins of m(tt̄) and |cosΘ|, which have no event in common.

    Parameters
    ----------
    pair
        Prediction of a method, or `TopPair` of generated tops.
    leptons
        Four-momenta (E, px, py, pz) in GeV of ℓ⁺ and ℓ⁻, shape (n, 2, 4).
    weight
        Signed weights, shape (n,); None counts.
    m_tt, abs_cos_theta
        Rising edges, in GeV and from 0 to 1; the last ones belong to their bins.
    group
        As of `spin_density`.

    Returns
    -------
    densities
        First index m(tt̄), second |cosΘ|.

    Raises
    ------
    TopRecoError
        If edges do not rise, or weights or groups are not one finite number per event.
    """
    for name, edges in (("m_tt", m_tt), ("abs_cos_theta", abs_cos_theta)):
        if len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise TopRecoError(f"binned_spin_density: rising edges of {name} expected, {list(edges)} found")
    values = pair_values(pair, leptons, ("m_tt", "cos_theta_star"))
    rows, columns = (
        _bin(found, np.asarray(edges, float))
        for found, edges in ((values["m_tt"], m_tt), (np.abs(values["cos_theta_star"]), abs_cos_theta))
    )
    weight = np.ones(len(pair)) if weight is None else np.asarray(weight, np.float64)
    _check_length("weights", weight, len(pair))
    numbers = np.arange(len(pair)) if group is None else np.asarray(group)
    _check_length("groups", numbers, len(pair))

    def of(chosen: npt.NDArray[np.bool_]) -> SpinDensity:
        return spin_density(pair[chosen], leptons[chosen], weight[chosen], group=numbers[chosen])

    return [
        [of((rows == i) & (columns == j)) for j in range(len(abs_cos_theta) - 1)]
        for i in range(len(m_tt) - 1)
    ]


def _bin(values: FloatArray, edges: FloatArray) -> IntArray:
    place = np.searchsorted(edges, values, side="right") - 1
    place[values == edges[-1]] = len(edges) - 2
    return np.where(np.isfinite(values), place, -1)


def _check_length(what: str, values: Any, n: int) -> None:
    if np.shape(values) != (n,):
        raise TopRecoError(f"spin density: {n} events but {what} of shape {np.shape(values)}")


def _columns(
    tops: Any, leptons: Any, weight: Any, group: IntArray | None
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Quantities whose means the coefficients are, (n, 15), weights and group of each known event."""
    values, w, known = spin_sample(tops, leptons, weight)
    x = np.stack(list(_quantities(values)), axis=-1)
    if group is None:
        return x, w, np.arange(len(w))
    _check_length("groups", group, len(known))
    return x, w, np.unique(np.asarray(group)[known], return_inverse=True)[1]


def _quantities(values: Any) -> Iterator[FloatArray]:
    for leg in (1, 2):
        for axis in AXES:
            yield 3 * values[f"cos_{leg}{axis}"]
    for first in AXES:
        for second in AXES:
            yield -9 * values[f"cos_1{first}_2{second}"]


def _density(x: FloatArray, w: FloatArray, inverse: IntArray) -> SpinDensity:
    size = len(COEFFICIENTS)
    n, total = len(w), w.sum()
    if not total > 0:
        return SpinDensity(np.full(size, np.nan), np.full((size, size), np.nan), n, 0.0)
    mean = w @ x / total
    influence = np.zeros((int(inverse.max()) + 1, size))
    np.add.at(influence, inverse, w[:, None] * (x - mean))
    covariance = influence.T @ influence / total**2
    if np.count_nonzero(w) < 2:
        covariance = np.full((size, size), np.nan)
    return SpinDensity(mean, covariance, n, float(total**2 / (w**2).sum()))
