"""Monotone recalibration of the response of m_tt: shrinkage to the mean, undone after the reconstruction.

It moves RB and slope, and the width with them; the correlation with the truth, which is the
information in the event, stays as it is. `docs/UNCERTAINTY.md` compares it with what a training can do.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from topreco.core.errors import TopRecoError
from topreco.core.events import FloatArray
from topreco.core.files import to_json, write_text

_FORMAT = "topreco response curve 1"
_LEAST = 2


@dataclass(frozen=True, eq=False)
class ResponseCurve:
    """A rising function from predicted to recalibrated m_tt, linear in logarithms between its points.

    Outside of them it continues with the factor of the outermost point.

    Attributes
    ----------
    predicted, corrected
        Points in GeV, both rising, shape (k,).
    """

    predicted: NDArray[np.floating[Any]]
    corrected: NDArray[np.floating[Any]]

    def __post_init__(self) -> None:
        shapes = {np.shape(self.predicted), np.shape(self.corrected)}
        if len(shapes) > 1 or np.ndim(self.predicted) != 1 or len(self.predicted) < _LEAST:
            raise TopRecoError(f"response curve: at least {_LEAST} points expected, found shapes {shapes}")
        for name in ("predicted", "corrected"):
            values = np.asarray(getattr(self, name))
            if not (values[0] > 0 and np.isfinite(values).all() and (np.diff(values) > 0).all()):
                raise TopRecoError(f"response curve: {name!r} does not rise from above 0: {values.tolist()}")

    def factor(self, m_tt: FloatArray) -> FloatArray:
        """Ratio of the recalibrated to the predicted mass in GeV, of the shape of `m_tt`."""
        x = np.log(self.predicted)
        ratio: FloatArray = np.exp(np.interp(np.log(m_tt), x, np.log(self.corrected) - x))
        return ratio

    def to_dict(self) -> dict[str, list[float]]:
        """The points as plain data."""
        return {name: np.asarray(getattr(self, name)).tolist() for name in ("predicted", "corrected")}

    def write(self, path: str | Path) -> None:
        """Write the curve as JSON, whole or not at all."""
        write_text(path, to_json({"format": _FORMAT, **self.to_dict()}))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file of `write`.

        Raises
        ------
        TopRecoError
            If the file is missing or something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            found = content["format"]
            points = [np.array(content.get(name), dtype=np.float64) for name in ("predicted", "corrected")]
        except OSError as error:
            raise TopRecoError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, TypeError, KeyError) as error:
            raise TopRecoError(f"{path}: no response curve ({error})") from error
        if found != _FORMAT:
            raise TopRecoError(f"{path}: format {found!r} found, {_FORMAT!r} expected")
        try:
            return cls(*points)
        except TopRecoError as error:
            raise TopRecoError(f"{path}: {error}") from error


def fit_response_curve(
    predicted: FloatArray,
    truth: FloatArray,
    weight: FloatArray,
    *,
    bins_of: Literal["prediction", "truth"],
    n_bins: int = 25,
) -> ResponseCurve:
    """Response curve from simulated events.

    In bins of the *prediction* it gives the mean truth of such events: the meaning of a reconstructed mass
    in this sample, whose spectrum it contains. In bins of the *truth* it inverts the
    mean response, exp⟨ln m⟩ at given truth: the slope becomes one, as analytic methods have it, and the
    residual wider.

    Parameters
    ----------
    predicted, truth
        Predicted and true m_tt in GeV, shape (n,); events without either are left out.
    weight
        Event weights, which count with their absolute value, shape (n,).
    bins_of
        Quantity in whose bins the other is averaged.
    n_bins
        Number of bins of equal population.

    Raises
    ------
    TopRecoError
        If there are fewer than ten events for each bin.
    """
    from scipy.optimize import isotonic_regression

    good = np.isfinite(predicted) & np.isfinite(truth) & (weight != 0)
    if good.sum() < 10 * n_bins:
        raise TopRecoError(f"response curve: {good.sum()} events with truth found, {10 * n_bins} expected")
    x, y = (truth, predicted) if bins_of == "truth" else (predicted, truth)
    x, y, w = np.log(x[good]), np.log(y[good]), np.abs(weight[good])
    groups = np.array_split(np.argsort(x, kind="stable"), n_bins)
    centre = np.array([np.average(x[group], weights=w[group]) for group in groups])
    mean = np.array([np.average(y[group], weights=w[group]) for group in groups])
    mean = isotonic_regression(mean, weights=[w[group].sum() for group in groups]).x
    # Where the curve is flat, pools of bins: their middle stands for all.
    levels, place = np.unique(mean, return_inverse=True)
    size = np.bincount(place)
    middle = np.bincount(place, weights=centre) / size
    points = (levels, middle) if bins_of == "truth" else (middle, levels)
    return ResponseCurve(*(np.exp(each) for each in points))
