"""Observables of top-quark pairs, the same functions for reconstruction and truth."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from topreco import fourvector
from topreco.events import FloatArray


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

    @property
    def axis_label(self) -> str:
        """Label with unit, for an axis."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label

    def residual(self, pred: FloatArray, truth: FloatArray) -> FloatArray:
        """Residual of predicted against true values, shape (n,)."""
        return (pred - truth) / truth if self.relative else pred - truth


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
    return (directions[..., 0, :] * directions[..., 1, :]).sum(-1)


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
        momenta = fourvector.to_rest_frame(fourvector.to_rest_frame(leptons, system), parents)[..., 1:]
        return momenta / fourvector.namespace(momenta).sqrt((momenta**2).sum(-1))[..., None]


OBSERVABLES: dict[str, Observable] = {
    observable.name: observable
    for observable in (
        Observable("m_tt", r"$m_{t\bar{t}}$", "GeV", True, lambda tops, system, _: fourvector.mass(system)),
        Observable(
            "pt_tt", r"$p_{T}^{t\bar{t}}$", "GeV", False, lambda tops, system, _: fourvector.pt(system)
        ),
        Observable("y_tt", r"$y_{t\bar{t}}$", "", False, lambda tops, system, _: fourvector.rapidity(system)),
        Observable("pt_top", r"$p_{T}^{t}$", "GeV", True, lambda tops, system, _: fourvector.pt(tops[:, 0])),
        Observable(
            "pt_antitop", r"$p_{T}^{\bar{t}}$", "GeV", True, lambda tops, system, _: fourvector.pt(tops[:, 1])
        ),
        Observable("y_top", r"$y_{t}$", "", False, lambda tops, system, _: fourvector.rapidity(tops[:, 0])),
        Observable(
            "y_antitop", r"$y_{\bar{t}}$", "", False, lambda tops, system, _: fourvector.rapidity(tops[:, 1])
        ),
        Observable("m_top", r"$m_{t}$", "GeV", True, lambda tops, system, _: fourvector.mass(tops[:, 0])),
        Observable(
            "m_antitop", r"$m_{\bar{t}}$", "GeV", True, lambda tops, system, _: fourvector.mass(tops[:, 1])
        ),
        Observable("c_hel", r"$c_{hel}$", "", False, lambda tops, _, leptons: c_hel(tops, leptons)),
    )
}
"""Every observable by name."""
