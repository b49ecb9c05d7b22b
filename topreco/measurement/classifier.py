"""A small network of few columns, in numpy: log-ratios of two weighted samples, and mean weights.

What `topreco.network.tasks.ratio` learns from whole events, this learns from a handful of observables, fast
enough for hundreds of bootstrap replicas.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from topreco.core.events import FloatArray, IntArray

LARGEST_OUTPUT = 8.0
"""Absolute value at which a log-ratio ends, relative to that of the sums of weights; a mean, in units of the
mean absolute value."""
_LARGEST_INPUT = 5.0

_Single = npt.NDArray[np.float32]


class ClassifierSettings(NamedTuple):
    """Size and training of the network.

    Attributes
    ----------
    hidden
        Width of its two hidden layers.
    epochs
        Passes over the rows.
    batch_size
        Rows per step.
    learning_rate
        Of Adam at the beginning; it falls to zero as a cosine.
    """

    hidden: int = 32
    epochs: int = 10
    batch_size: int = 500
    learning_rate: float = 5e-3


class Classifier(NamedTuple):
    """A trained network.

    Attributes
    ----------
    mean, std
        Standardisation of the columns, shape (d,).
    layers
        Weights and biases.
    offset, scale
        What is added to the output, and the factor of it.
    """

    mean: FloatArray
    std: FloatArray
    layers: Sequence[tuple[_Single, _Single]]
    offset: float
    scale: float

    def __call__(self, x: FloatArray) -> FloatArray:
        """Output for rows of shape (n, d), shape (n,)."""
        values = _standardised(x, self.mean, self.std)
        out = _forward(values, self.layers)[-1][:, 0].astype(np.float64)
        return self.offset + self.scale * np.clip(out, -LARGEST_OUTPUT, LARGEST_OUTPUT)


def fit_log_ratio(
    x: FloatArray, a: FloatArray, b: FloatArray, settings: ClassifierSettings, seed: Sequence[int]
) -> Classifier:
    """Network whose output is the logarithm of the ratio of the densities that the weights a and b describe.

    Its loss, a softplus(−f) + b softplus(f), is cross-entropy; the minimum is f(x) = log ⟨a⟩/⟨b⟩ at x. A row
    may belong to both samples. The ratio is that of the sums of weights too, not of normalised densities.

    Parameters
    ----------
    x
        Columns, shape (n, d), finite.
    a, b
        Weights ≥ 0 in the numerator and in the denominator, shape (n,), each with a positive sum.
    settings
        Size and training.
    seed
        Numbers that seed initial weights and order.
    """
    half = len(x) / 2
    return _fit(
        x,
        np.stack([a * half / a.sum(), b * half / b.sum()], 1),
        "ratio",
        settings,
        seed,
        np.log(a.sum() / b.sum()),
        1.0,
    )


def fit_mean(x: FloatArray, y: FloatArray, settings: ClassifierSettings, seed: Sequence[int]) -> Classifier:
    """Network whose output is the mean of y, shape (n,), at given x."""
    scale = float(np.abs(y).mean()) or 1.0
    offset = float(y.mean())
    target = np.stack([(y - offset) / scale, np.ones(len(y))], 1)
    return _fit(x, target, "mean", settings, seed, offset, scale)


def cross_fitted(
    fit_on: Any, x: FloatArray | IntArray, fold: IntArray, folds: int, others: Any = None
) -> FloatArray:
    """Outputs for rows by networks that have not seen them.

    Parameters
    ----------
    fit_on
        Function that trains without a fold: its mask of rows to train on, shape (n,), and its number.
    x
        Columns, shape (n, d), or numbers of rows, shape (n,).
    fold
        Fold of each row, shape (n,).
    folds
        Number of folds.
    others
        Function of outputs; None leaves them as they are.
    """
    found = np.zeros(len(x))
    for number in range(folds):
        mine = fold == number
        if mine.any():
            values = fit_on(~mine, number)(x[mine])
            found[mine] = values if others is None else others(values)
    return found


def _fit(
    x: FloatArray,
    target: FloatArray,
    kind: Literal["ratio", "mean"],
    settings: ClassifierSettings,
    seed: Sequence[int],
    offset: float,
    scale: float,
) -> Classifier:
    """Adam on minibatches; rows of the target are (a, b), or (y, 1)."""
    rng = np.random.default_rng(list(seed))
    std = x.std(axis=0)
    mean, std = x.mean(axis=0), np.where(std > 0, std, 1.0)
    values, wanted = _standardised(x, mean, std), target.astype(np.float32)
    sizes = [x.shape[1], settings.hidden, settings.hidden, 1]
    layers = []
    for n_in, n_out in itertools.pairwise(sizes):
        # Biases spread the bends over the data: without them all networks begin as odd functions of the
        # standardised columns. The last layer begins with zero, a ratio with 1.
        begins = np.float32(n_out > 1)
        weight = rng.normal(0, 1 / np.sqrt(n_in), (n_in, n_out)).astype(np.float32)
        bias = rng.normal(0, 0.5, n_out).astype(np.float32)
        layers.append((begins * weight, begins * bias))
    parameters = [p for layer in layers for p in layer]
    first = [np.zeros_like(p) for p in parameters]
    second = [np.zeros_like(p) for p in parameters]
    n = len(x)
    batch = min(settings.batch_size, n)
    steps = n // batch
    total = steps * settings.epochs
    step = 0
    for _ in range(settings.epochs):
        order = rng.permutation(n)
        for start in range(0, steps * batch, batch):
            rows = order[start : start + batch]
            gradients = _gradients(values[rows], wanted[rows], kind, layers)
            step += 1
            rate = settings.learning_rate * 0.5 * (1 + np.cos(np.pi * (step - 1) / total))
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m[...] += 0.1 * (g - m)
                v[...] += 0.01 * (g * g - v)
                p[...] -= np.float32(rate / (1 - 0.9**step)) * m / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
    return Classifier(mean, std, layers, float(offset), float(scale))


def _standardised(x: FloatArray, mean: FloatArray, std: FloatArray) -> _Single:
    return np.clip((x - mean) / std, -_LARGEST_INPUT, _LARGEST_INPUT).astype(np.float32)


def _forward(x: _Single, layers: Sequence[tuple[_Single, _Single]]) -> list[_Single]:
    """Outputs of all layers, the input first; tanh between them."""
    outputs = [x]
    for number, (weight, bias) in enumerate(layers):
        linear = outputs[-1] @ weight + bias
        outputs.append(np.tanh(linear) if number < len(layers) - 1 else linear)
    return outputs


def _gradients(
    x: _Single, target: _Single, kind: Literal["ratio", "mean"], layers: Sequence[tuple[_Single, _Single]]
) -> list[_Single]:
    """Gradients of the mean loss of a batch by the weights and biases of the layers."""
    outputs = _forward(x, layers)
    f = outputs[-1][:, 0]
    if kind == "ratio":
        probability = 0.5 * (1 + np.tanh(0.5 * f))
        slope = target[:, 1] * probability - target[:, 0] * (1 - probability)
    else:
        slope = f - target[:, 0]
    gradient = slope[:, None] / np.float32(len(x))
    found: list[_Single] = []
    for number in reversed(range(len(layers))):
        found = [outputs[number].T @ gradient, gradient.sum(axis=0), *found]
        if number:
            gradient = (gradient @ layers[number][0].T) * (1 - outputs[number] ** 2)
    return found
