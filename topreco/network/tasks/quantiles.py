"""Uncertainty of each event: quantiles of true observables around what a network of tops predicts.

A small network sees the event once more, with the predicted four-momenta of t and t̄ in its readout tokens,
and answers for every observable x with the quantiles of

    u = T(x_true) − T(x_pred)

with a monotone T that makes u of one size everywhere: a logarithm for masses and energies, asinh(x / 50 GeV)
for momenta, nothing for rapidities and cosines. Since T is monotone, T⁻¹(T(x_pred) + u_q) is the quantile of
x_true itself. It is trained by the pinball loss [1]_, whose minimum is the conditional quantile, and
recalibrated on events that it has not seen, in the spirit of conformalised quantile regression [2]_.

References
----------
.. [1] R. Koenker, G. Bassett, Regression quantiles, Econometrica 46 (1978) 33.
.. [2] Y. Romano, E. Patterson, E. Candès, Conformalized quantile regression, NeurIPS 2019, arXiv:1905.03222.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from topreco.config import ModelConfig, QuantilesConfig
from topreco.core import fourvector
from topreco.core.events import QUANTILE_LEVELS, FloatArray
from topreco.core.observables import OBSERVABLES
from topreco.network.encoder import EventNetwork
from topreco.network.tokens import Objects, build_tokens

SCALE = 50.0
"""Momentum in GeV below which T is linear and above which it is logarithmic."""

_MEDIAN = QUANTILE_LEVELS.index(0.5)
_LOW, _HIGH = QUANTILE_LEVELS.index(0.16), QUANTILE_LEVELS.index(0.84)
# softplus(this) = 1: untrained quantiles are one unit apart.
_UNIT = 0.541324854612918
_SMALLEST = 1e-3


class _Scale(NamedTuple):
    """A monotone transformation, its inverse, and the range that the inverse is confined to."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    low: float | None = None
    high: float | None = None


def _identity(x: Tensor) -> Tensor:
    return x


def _momentum(x: Tensor) -> Tensor:
    return torch.asinh(x / SCALE)


def _from_momentum(x: Tensor) -> Tensor:
    return SCALE * torch.sinh(x)


def _logarithm(x: Tensor) -> Tensor:
    return x.clamp(min=_SMALLEST).log()


_LINEAR = _Scale(_identity, _identity)
_COSINE = _Scale(_identity, _identity, -1.0, 1.0)
_POSITIVE = _Scale(_momentum, _from_momentum, 0.0)
_LOGARITHMIC = _Scale(_logarithm, torch.exp)
_SCALES = {
    "m_tt": _LOGARITHMIC,
    "pt_tt": _POSITIVE,
    "y_tt": _LINEAR,
    "pt_top": _POSITIVE,
    "pt_antitop": _POSITIVE,
    "y_top": _LINEAR,
    "y_antitop": _LINEAR,
    "delta_abs_y": _LINEAR,
    "cos_theta_star": _COSINE,
    "c_hel": _COSINE,
}
# Of each top: energy, momentum along and across its predicted transverse direction, and along the beam. In
# these axes an uncertainty can be told without telling a direction.
_COMPONENTS = (_LOGARITHMIC, *[_Scale(_momentum, _from_momentum)] * 3)


class Spread(NamedTuple):
    """What is known of the uncertainty of each event.

    Attributes
    ----------
    quantiles
        Of the observables at `QUANTILE_LEVELS`, rising, in GeV where the observable has a unit,
        shape (n, observables, levels).
    p4_std
        Half the width of the 68 % interval of each component (E, px, py, pz) of t and t̄ in GeV,
        shape (n, 2, 4).
    """

    quantiles: Float[Tensor, "n observables levels"]
    p4_std: Float[Tensor, "n 2 4"]


class QuantileNetwork(EventNetwork):
    """Quantiles of the truth around predicted tops.

    Parameters
    ----------
    config
        Configuration of the model, with `quantiles`.

    Attributes
    ----------
    observables
        Names of the observables, in the order of the answer.
    value_mean, value_std
        Standardisation of the transformed predictions, shape (K,), K = observables and 2 × 4 components.
    unit
        Typical size of u, shape (K,).
    knots
        ln of the predicted m_tt in GeV between which the calibration is interpolated, shape (B,).
    shift
        Shift of the median in half-widths of the 68 % interval, shape (B, K).
    stretch
        Factors of the distances of the quantiles from the median, shape (B, K, levels).
    """

    value_mean: Tensor
    value_std: Tensor
    unit: Tensor
    knots: Tensor
    shift: Tensor
    stretch: Tensor

    def __init__(self, config: ModelConfig) -> None:
        own = config.quantiles or QuantilesConfig()
        config = config.model_copy(update={"spurions": own.spurions or config.spurions})
        super().__init__(config, own.backbone, "query_tokens", scalars=own.hidden // 2)
        self.observables: tuple[str, ...] = own.observables
        self._scales = [*(_SCALES[name] for name in own.observables), *_COMPONENTS, *_COMPONENTS]
        k = len(self._scales)
        self.layers = nn.Sequential(
            nn.Linear(2 * (own.hidden // 2) + k, own.hidden),
            nn.SiLU(),
            nn.Linear(own.hidden, own.hidden),
            nn.SiLU(),
            nn.Linear(own.hidden, k * len(QUANTILE_LEVELS)),
        )
        self.register_buffer("value_mean", torch.zeros(k))
        self.register_buffer("value_std", torch.ones(k))
        self.register_buffer("unit", torch.ones(k))
        self.set_calibration(Calibration.none(k, own.calibration_bins))

    def forward(self, objects: Objects, p4: Float[Tensor, "n 2 4"]) -> Spread:
        """Calibrated quantiles and the uncertainty of the four-momenta.

        Parameters
        ----------
        objects
            Reconstructed objects.
        p4
            Predicted four-momenta (E, px, py, pz) of t and t̄ in GeV, shape (n, 2, 4).
        """
        predicted = self.values(objects, p4, p4)
        u = self.calibrated_quantiles(objects, p4)
        limits = torch.stack(
            [_back(scale, predicted[:, i, None] + u[:, i]) for i, scale in enumerate(self._scales)], 1
        )
        n_observables = len(self.observables)
        half = 0.5 * (limits[:, n_observables:, _HIGH] - limits[:, n_observables:, _LOW]).reshape(-1, 2, 4)
        cos, sin = _transverse(p4)
        along, across = half[..., 1], half[..., 2]
        p4_std = torch.stack(
            [
                half[..., 0],
                torch.sqrt((cos * along) ** 2 + (sin * across) ** 2),
                torch.sqrt((sin * along) ** 2 + (cos * across) ** 2),
                half[..., 3],
            ],
            -1,
        )
        return Spread(limits[:, :n_observables], p4_std)

    def values(
        self, objects: Objects, p4: Float[Tensor, "n 2 4"], axes: Float[Tensor, "n 2 4"]
    ) -> Float[Tensor, "n K"]:
        """T of the observables and of the components of some tops, shape (n, K).

        Parameters
        ----------
        objects
            Reconstructed objects, whose leptons enter spin observables.
        p4
            Four-momenta of t and t̄ in GeV, shape (n, 2, 4).
        axes
            Predicted tops, whose transverse directions are the axes of the components, shape (n, 2, 4).
        """
        leptons = torch.stack([objects.lepton_plus, objects.lepton_minus], 1)
        system = p4.sum(1)
        # An observable computes in the kind of array that it gets.
        compute: list[Any] = [OBSERVABLES[name].compute for name in self.observables]
        columns: list[Tensor] = [each(p4, system, leptons) for each in compute]
        cos, sin = _transverse(axes)
        energy, px, py, pz = p4.unbind(-1)
        components = torch.stack([energy, cos * px + sin * py, cos * py - sin * px, pz], -1).flatten(1)
        columns += components.unbind(-1)
        return torch.stack([s.forward(x) for s, x in zip(self._scales, columns, strict=True)], 1)

    def residual_quantiles(self, objects: Objects, p4: Float[Tensor, "n 2 4"]) -> Float[Tensor, "n K levels"]:
        """Quantiles of u as trained, before the calibration, shape (n, K, levels)."""
        tokens = build_tokens(objects, self.config.tokens)
        raw = self.raw(tokens, self.scale_of(tokens), self.spurions, queries=p4)
        values = (self.values(objects, p4, p4) - self.value_mean) / self.value_std
        # Unusual events must not drive the layers into overflow.
        features = torch.cat([raw.scalars.flatten(1), values.clamp(-10, 10)], 1)
        answer = self.layers(features).unflatten(1, (len(self._scales), len(QUANTILE_LEVELS)))
        median = answer[..., _MEDIAN, None]
        steps = functional.softplus(answer + _UNIT)
        below = -steps[..., :_MEDIAN].flip(-1).cumsum(-1).flip(-1)
        above = steps[..., _MEDIAN + 1 :].cumsum(-1)
        u: Tensor = self.unit[:, None] * torch.cat([median + below, median, median + above], -1)
        return u

    def calibrated_quantiles(
        self, objects: Objects, p4: Float[Tensor, "n 2 4"]
    ) -> Float[Tensor, "n K levels"]:
        """Quantiles of u, corrected as a function of the predicted m_tt, shape (n, K, levels)."""
        log_mass = _logarithm(fourvector.mass(p4.sum(1)))
        u = self.residual_quantiles(objects, p4)
        return calibrated(u, self._at(self.shift, log_mass), self._at(self.stretch, log_mass))

    def _at(self, table: Tensor, log_mass: Float[Tensor, "n"]) -> Tensor:
        """A table over the knots, linear between them and constant outside."""
        if len(self.knots) == 1:
            return table.expand(len(log_mass), *table.shape[1:])
        lower, upper = self.knots[:-1], self.knots[1:]
        fraction = ((log_mass[:, None] - lower) / (upper - lower)).clamp(0, 1)
        steps = (table[1:] - table[:-1]).flatten(1)
        return (table[0].flatten() + fraction @ steps).reshape(-1, *table.shape[1:])

    def set_calibration(self, calibration: "Calibration") -> None:
        """Take a calibration in place of the one before."""
        own = self.config.quantiles or QuantilesConfig()
        for name, value in calibration.extended(own.calibration_bins)._asdict().items():
            self.register_buffer(name, torch.as_tensor(value, dtype=self.unit.dtype, device=self.unit.device))

    @torch.no_grad()
    def fit_scales(self, objects: Objects, p4: Tensor, truth: Float[Tensor, "n K"]) -> None:
        """Set the standardisation of features, predictions and residuals from training events.

        Parameters
        ----------
        objects, p4
            Training events and predicted tops.
        truth
            T of the true values, NaN where unknown, shape (n, K).
        """
        self.fit_standardisation(objects)
        predicted = self.values(objects, p4, p4).double()
        residual = truth.double() - predicted
        self.value_mean.copy_(predicted.mean(0))
        self.value_std.copy_(_positive(predicted.std(0, correction=0)))
        spread = [residual[:, k][residual[:, k].isfinite()].abs().sum() for k in range(residual.shape[1])]
        known = residual.isfinite().sum(0).clamp(min=1)
        self.unit.copy_(_positive(torch.stack(spread) / known))


def pinball_loss(
    quantiles: Float[Tensor, "n K levels"], truth: Float[Tensor, "n K"], unit: Float[Tensor, "K"]
) -> Float[Tensor, "n K"]:
    """Pinball loss max(τ d, (τ − 1) d) of d = (truth − quantile)/unit, summed over levels τ, shape (n, K).

    Unknown truth (NaN) counts nothing.

    Parameters
    ----------
    quantiles
        Quantiles at `QUANTILE_LEVELS`, shape (n, K, levels).
    truth
        True values, shape (n, K).
    unit
        Unit of each target, shape (K,).
    """
    level = quantiles.new_tensor(QUANTILE_LEVELS)
    known = truth.isfinite()
    distance = (torch.where(known, truth, 0.0)[..., None] - quantiles) / unit[:, None]
    loss = torch.maximum(level * distance, (level - 1) * distance).sum(-1)
    return loss * known


# ---- calibration -----------------------------------------------------------------------------------------


class Calibration(NamedTuple):
    """Corrections of the quantiles at B values of the predicted m_tt.

    Attributes
    ----------
    knots
        ln(m_tt / GeV), rising, shape (B,).
    shift
        Of the median, in half-widths of the 68 % interval, shape (B, K).
    stretch
        Factors of the distances from the median, shape (B, K, levels).
    """

    knots: FloatArray
    shift: FloatArray
    stretch: FloatArray

    @classmethod
    def none(cls, k: int, n_bins: int) -> "Calibration":
        """One that changes nothing, for K targets."""
        return cls(
            np.arange(float(n_bins)), np.zeros((n_bins, k)), np.ones((n_bins, k, len(QUANTILE_LEVELS)))
        )

    def extended(self, n_bins: int) -> "Calibration":
        """The same function with more knots, behind the last one."""
        more = np.arange(1, n_bins - len(self.knots) + 1)
        repeats = np.r_[np.ones(len(self.knots) - 1, dtype=int), 1 + len(more)]
        knots = np.r_[self.knots, self.knots[-1] + more]
        return Calibration(knots, self.shift.repeat(repeats, 0), self.stretch.repeat(repeats, 0))


def calibrated(
    u: Float[Tensor, "n K levels"], shift: Float[Tensor, "n K"], stretch: Float[Tensor, "n K levels"]
) -> Float[Tensor, "n K levels"]:
    """Quantiles with median and distances from it corrected, still rising; see `Calibration`."""
    half = 0.5 * (u[..., _HIGH] - u[..., _LOW])
    median = u[..., _MEDIAN]
    limits = (median + shift * half)[..., None] + stretch * (u - median[..., None])
    # The outer interval never lies inside the inner one.
    rising = [limits[..., _MEDIAN]]
    for level in reversed(range(_MEDIAN)):
        rising.insert(0, torch.minimum(rising[0], limits[..., level]))
    for level in range(_MEDIAN + 1, len(QUANTILE_LEVELS)):
        rising.append(torch.maximum(rising[-1], limits[..., level]))
    return torch.stack(rising, -1)


def fit_calibration(
    u: FloatArray, truth: FloatArray, weight: FloatArray, log_mass: FloatArray, *, n_bins: int
) -> Calibration:
    """Calibration with which, in bins of predicted m_tt, each quantile has its share of the events below.

    Parameters
    ----------
    u
        Quantiles of the residuals as trained, shape (n, K, levels).
    truth
        True residuals, NaN where unknown, shape (n, K).
    weight
        Weights ≥ 0, shape (n,).
    log_mass
        ln of the predicted m_tt in GeV, shape (n,).
    n_bins
        Number of bins of equal population.
    """
    k, n_levels = u.shape[1:]
    order = np.argsort(log_mass, kind="stable")
    groups = np.array_split(order, n_bins)
    knots = np.array([np.median(log_mass[group]) for group in groups])
    shift, stretch = np.zeros((n_bins, k)), np.ones((n_bins, k, n_levels))
    for b, group in enumerate(groups):
        for target in range(k):
            chosen = group[np.isfinite(truth[group, target])]
            if not weight[chosen].sum() > 0:
                continue
            own, t = (x[chosen, target].astype(np.float64) for x in (u, truth))
            w = weight[chosen]
            half = np.maximum(0.5 * (own[:, _HIGH] - own[:, _LOW]), np.finfo(np.float32).tiny)
            shift[b, target] = _quantile((t - own[:, _MEDIAN]) / half, w, 0.5)
            median = own[:, _MEDIAN] + shift[b, target] * half
            for i, level in enumerate(QUANTILE_LEVELS):
                if i == _MEDIAN:
                    continue
                # t < median + f d, with d < 0 below the median: f is a quantile of the ratio.
                distance = own[:, i] - own[:, _MEDIAN]
                share = level if distance[0] > 0 else 1 - level
                factor = _quantile((t - median) / distance, w, share)
                stretch[b, target, i] = max(factor, 0.0)
    return Calibration(knots, shift, stretch)


def _quantile(values: FloatArray, weight: FloatArray, share: float) -> float:
    return float(np.quantile(values, share, weights=weight, method="inverted_cdf"))


# ---- small things ----------------------------------------------------------------------------------------


def _transverse(p4: Float[Tensor, "n 2 4"]) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
    """Cosine and sine of the azimuth, shape (n, 2) each."""
    pt = fourvector.pt(p4).clamp(min=_SMALLEST)
    return p4[..., 1] / pt, p4[..., 2] / pt


def _back(scale: _Scale, x: Tensor) -> Tensor:
    """From T(x) to x, within the range that x can have."""
    value = scale.inverse(x)
    return value if scale.low is None else value.clamp(scale.low, scale.high)


def _positive(x: Tensor) -> Tensor:
    # Toy data may not vary at all; any finite divisor does.
    return torch.where(x > _SMALLEST, x, torch.ones_like(x))
