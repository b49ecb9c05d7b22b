"""Calibration of predicted quantiles on events that a network has not been trained on."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from topreco.core import fourvector
from topreco.core.events import QUANTILE_LEVELS, FloatArray
from topreco.core.ratios import effective_number
from topreco.network.task import TrainingError
from topreco.network.tasks.scales import logarithm

MEDIAN = QUANTILE_LEVELS.index(0.5)
LOW, HIGH = QUANTILE_LEVELS.index(0.16), QUANTILE_LEVELS.index(0.84)
"""Positions of the median and of the limits of the 68 % interval among `QUANTILE_LEVELS`."""
BIN_EVENTS = 1500
"""Number of events in a bin of the calibration, if there are enough: their coverage is known to 1.2 %."""
MIN_EVENTS = 39
"""Smallest number of events that calibrate: of fewer, not even the largest and the smallest residual are the
limits of a 95 % interval."""


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
        """The same function with more knots after the last one."""
        more = np.arange(1, n_bins - len(self.knots) + 1)
        repeats = np.r_[np.ones(len(self.knots) - 1, dtype=int), 1 + len(more)]
        knots = np.r_[self.knots, self.knots[-1] + more]
        return Calibration(knots, self.shift.repeat(repeats, 0), self.stretch.repeat(repeats, 0))


def calibrated(
    u: Float[Tensor, "n K levels"], shift: Float[Tensor, "n K"], stretch: Float[Tensor, "n K levels"]
) -> Float[Tensor, "n K levels"]:
    """Quantiles with median and distances from it corrected, still rising; see `Calibration`."""
    half = 0.5 * (u[..., HIGH] - u[..., LOW])
    median = u[..., MEDIAN]
    limits = (median + shift * half)[..., None] + stretch * (u - median[..., None])
    # The outer interval never lies inside the inner one.
    rising = [limits[..., MEDIAN]]
    for level in reversed(range(MEDIAN)):
        rising.insert(0, torch.minimum(rising[0], limits[..., level]))
    for level in range(MEDIAN + 1, len(QUANTILE_LEVELS)):
        rising.append(torch.maximum(rising[-1], limits[..., level]))
    return torch.stack(rising, -1)


def check_events(weight: FloatArray, what: str) -> None:
    """Raise if there are too few events to calibrate.

    Parameters
    ----------
    weight
        Weights ≥ 0, shape (n,).
    what
        Beginning of the message.

    Raises
    ------
    TrainingError
        If there are fewer than `MIN_EVENTS` effective events.
    """
    n = effective_number(weight)
    # Rounding of the sums must not count.
    if n < MIN_EVENTS - 1e-6:
        raise TrainingError(
            f"{what}: {len(weight)} events, worth {n:.3g} of equal weight, to calibrate the quantiles; they "
            f"promise no more than {100 * max(n - 1, 0) / (n + 1):.0f} % of the truth in an interval, and "
            f"95 % need {MIN_EVENTS}"
        )


def fit_calibration(
    u: FloatArray, truth: FloatArray, weight: FloatArray, log_mass: FloatArray, *, n_bins: int
) -> Calibration:
    """Calibration with which, in bins of predicted m_tt, each quantile has its share of the events below.

    The limits are the order statistics of conformal prediction [1]_: of n events the (n + 1) p-th for the
    share p, so that a new event lies within with at least that probability; with weights n is their effective
    number. A target whose truth is known for fewer than `MIN_EVENTS` events of a bin is not corrected there.

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

    References
    ----------
    .. [1] V. Vovk, A. Gammerman, G. Shafer, Algorithmic Learning in a Random World, Springer 2005;
       Y. Romano, E. Patterson, E. Candès, arXiv:1905.03222.
    """
    k, n_levels = u.shape[1:]
    order = np.argsort(log_mass, kind="stable")
    groups = np.array_split(order, n_bins)
    knots = np.array([np.median(log_mass[group]) for group in groups])
    shift, stretch = np.zeros((n_bins, k)), np.ones((n_bins, k, n_levels))
    for b, group in enumerate(groups):
        for target in range(k):
            chosen = group[np.isfinite(truth[group, target])]
            n = effective_number(weight[chosen])
            if n < MIN_EVENTS - 1e-6:
                continue
            own, t = (x[chosen, target].astype(np.float64) for x in (u, truth))
            w = weight[chosen]
            half = np.maximum(0.5 * (own[:, HIGH] - own[:, LOW]), np.finfo(np.float32).tiny)
            shift[b, target] = _quantile((t - own[:, MEDIAN]) / half, w, 0.5)
            median = own[:, MEDIAN] + shift[b, target] * half
            for i, level in enumerate(QUANTILE_LEVELS):
                if i == MEDIAN:
                    continue
                # t < median + f d, with d < 0 below the median: f is a quantile of the ratio.
                distance = own[:, i] - own[:, MEDIAN]
                share = level if distance[0] > 0 else 1 - level
                # One more event, whose residual may be as large as can be.
                factor = _quantile((t - median) / distance, w, min(share * (1 + 1 / n), 1.0))
                stretch[b, target, i] = max(factor, 0.0)
    return Calibration(knots, shift, stretch)


def _quantile(values: FloatArray, weight: FloatArray, share: float) -> float:
    return float(np.quantile(values, share, weights=weight, method="inverted_cdf"))


# softplus(this) = 1: untrained quantiles are one unit apart.
_UNIT = 0.541324854612918


def rising_quantiles(out: Float[Tensor, "n K levels"]) -> Float[Tensor, "n K levels"]:
    """Quantiles that rise, from what a network gives: the median, and the steps on either side of it."""
    median = out[..., MEDIAN, None]
    steps = functional.softplus(out + _UNIT)
    below = -steps[..., :MEDIAN].flip(-1).cumsum(-1).flip(-1)
    above = steps[..., MEDIAN + 1 :].cumsum(-1)
    return torch.cat([median + below, median, median + above], -1)


class CalibratedQuantiles(nn.Module):
    """A network whose quantiles are corrected as a function of the predicted m_tt.

    Parameters
    ----------
    n_bins
        Number of knots.

    Attributes
    ----------
    knots
        ln of the predicted m_tt in GeV between which the calibration is interpolated, shape (B,).
    shift
        Shift of the median in half-widths of the 68 % interval, shape (B, K).
    stretch
        Factors of the distances of the quantiles from the median, shape (B, K, levels).
    """

    knots: Tensor
    shift: Tensor
    stretch: Tensor

    def __init__(self, n_bins: int) -> None:
        super().__init__()
        self._bins = n_bins

    def set_calibration(self, calibration: Calibration) -> None:
        """Take a calibration in place of the one before."""
        like = next(self.parameters())
        for name, value in calibration.extended(self._bins)._asdict().items():
            self.register_buffer(name, torch.as_tensor(value, dtype=like.dtype, device=like.device))

    def calibrated(
        self, u: Float[Tensor, "n K levels"], p4: Float[Tensor, "n 2 4"]
    ) -> Float[Tensor, "n K levels"]:
        """Corrected quantiles of u, shape (n, K, levels).

        Parameters
        ----------
        u
            Quantiles as trained.
        p4
            Predicted four-momenta (E, px, py, pz) of t and t̄ in GeV, shape (n, 2, 4).
        """
        log_mass = logarithm(fourvector.mass(p4.sum(1)))
        return calibrated(u, self._at(self.shift, log_mass), self._at(self.stretch, log_mass))

    def calibrate(self, found: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]], what: str) -> int:
        """Correct the quantiles on events that the network was not trained on.

        Parameters
        ----------
        found
            Of batches: quantiles of u as trained, shape (n, K, levels), true u, NaN where unknown, shape
            (n, K), weights, shape (n,), and predicted four-momenta of t and t̄ in GeV, shape (n, 2, 4).
        what
            Beginning of an error's message.

        Returns
        -------
        n_events
            Number of events.

        Raises
        ------
        TrainingError
            If they are too few, see `check_events`.
        """
        collected = []
        for u, residual, weight, p4 in found:
            log_mass = fourvector.mass(p4.sum(1)).log()
            collected.append(tuple(x.cpu() for x in (u, residual, weight.double(), log_mass.double())))
        if not collected:
            raise TrainingError(f"{what}: no validation events, which quantiles need")
        arrays = [torch.cat(parts).numpy() for parts in zip(*collected, strict=True)]
        n_events = len(arrays[0])
        check_events(arrays[2], what)
        n_bins = max(1, min(len(self.knots), n_events // BIN_EVENTS))
        self.set_calibration(fit_calibration(*arrays, n_bins=n_bins))
        return n_events

    def _at(self, table: Tensor, log_mass: Float[Tensor, "n"]) -> Tensor:
        """A table over the knots, linear between them and constant outside."""
        if len(self.knots) == 1:
            return table.expand(log_mass.shape[0], *table.shape[1:])
        lower, upper = self.knots[:-1], self.knots[1:]
        fraction = ((log_mass[:, None] - lower) / (upper - lower)).clamp(0, 1)
        steps = (table[1:] - table[:-1]).flatten(1)
        return (table[0].flatten() + fraction @ steps).reshape(-1, *table.shape[1:])
