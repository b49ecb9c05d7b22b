"""Trained networks on events: `DileptonEvents` to `TopPair` or `Posterior`. No truth reaches this module."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from topreco.core.events import (
    QUANTILE_LEVELS,
    DileptonEvents,
    FloatArray,
    IntArray,
    Posterior,
    TopPair,
    mass_quality,
)
from topreco.core.posterior import normal_noise
from topreco.network.splits import fold_of
from topreco.network.tasks.posterior import PosteriorNetwork
from topreco.network.tasks.summaries import DIMENSIONS, SUMMARISED
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs

# Matrix products of few rows take other code paths, which round differently. From this many rows on, and in
# multiples of it, the prediction for an event does not depend on how many others are in its batch.
_BATCH_MULTIPLE = 64


def predict(
    networks: Sequence[TopNetwork | PosteriorNetwork],
    events: DileptonEvents,
    *,
    batch_size: int = 256,
    quantiles: bool = True,
) -> TopPair:
    """Reconstruct the top-quark pair of each event with the network that has not seen it.

    Parameters
    ----------
    networks
        One network per fold.
    events
        Selected events, any number.
    batch_size
        Events per forward pass; results depend on it by rounding only.
    quantiles
        Evaluate the quantiles, too, of networks that have them.

    Returns
    -------
    pair
        Four-momenta of t and t̄ in GeV, double precision; NaN and not valid where an input that exists or
        the output is not finite. With quantiles, uncertainty and quality if the networks have them. Of a
        posterior, values of the observables: their means.

    Raises
    ------
    ValueError
        If there is no network or the batch size is not positive.
    """
    check_call(networks, batch_size)
    first = networks[0]
    outputs: Callable[[Any, Inputs], tuple[Tensor, ...]]
    spread = [(len(SUMMARISED), len(QUANTILE_LEVELS)), (2, 4)]
    if isinstance(first, PosteriorNetwork):
        shapes: list[tuple[int, ...]] = [(2, 4), (len(SUMMARISED),), *spread]
        outputs, names = PosteriorNetwork.predictions, SUMMARISED
    elif quantiles and first.quantiles is not None:
        names = first.quantiles.observables
        shapes = [(2, 4), (len(names), len(QUANTILE_LEVELS)), (2, 4)]
        outputs = TopNetwork.predictions
    else:
        shapes, outputs, names = [(2, 4)], lambda network, inputs: (network(inputs),), ()
    columns = [np.full((len(events), *shape), np.nan) for shape in shapes]
    for network, chosen in batches(networks, events, batch_size):
        for column, predicted in zip(columns, forward(network, events[chosen], outputs), strict=True):
            column[chosen] = predicted
    valid = np.isfinite(columns[0]).all(axis=(1, 2))
    for column in columns:
        column[~valid] = np.nan
    if not names:
        return TopPair(columns[0], valid)
    p4, *means, limits, std = columns
    observables = {name: means[0][:, i] for i, name in enumerate(names)} if means else None
    if not quantiles:
        return TopPair(p4, valid, observables=observables)
    by_name = {name: limits[:, i] for i, name in enumerate(names)}
    return TopPair(
        p4,
        valid,
        observables=observables,
        quality=mass_quality(by_name),
        uncertainty=std,
        quantiles=by_name,
    )


def sample(
    networks: Sequence[PosteriorNetwork],
    events: DileptonEvents,
    *,
    n_samples: int = 64,
    seed: int = 1,
    batch_size: int = 64,
) -> Posterior:
    """Samples of the top-quark pair of each event, from the network that has not seen it.

    Parameters
    ----------
    networks
        One network per fold.
    events
        Selected events, any number.
    n_samples
        Number of samples of each event. The first of many are those of few.
    seed
        Seed of the noise, which also depends on the key of the event (dataset, run, luminosity block, event).
    batch_size
        Events per forward pass; results depend on it by rounding only.

    Returns
    -------
    posterior
        Samples in GeV, double precision, of equal weight; NaN and of no weight where an input that exists is
        not finite.

    Raises
    ------
    ValueError
        If there is no network, or a number is not positive.
    """
    check_call(networks, batch_size)
    if n_samples < 1:
        raise ValueError(f"sample: n_samples {n_samples} found, at least 1 expected")
    samples = np.full((len(events), n_samples, 2, 4), np.nan)
    for network, chosen in batches(networks, events, batch_size):
        part = events[chosen]
        noise = normal_noise(part, (n_samples, DIMENSIONS), seed)

        def drawn(network: Any, inputs: Inputs, rows: Tensor, noise: FloatArray = noise) -> tuple[Tensor]:
            own = torch.from_numpy(noise).to(inputs.met)[rows.to(inputs.met.device)]
            return (network.sample(inputs, own),)

        samples[chosen] = forward(network, part, drawn, rows=True)[0]
    return Posterior.equal(samples)


def check_call(networks: Sequence[Any], batch_size: int) -> None:
    """Raise unless there is a network and the batch size is positive."""
    if not networks:
        raise ValueError("predict: at least one network expected, got none")
    if batch_size < 1:
        raise ValueError(f"predict: batch_size {batch_size} found, at least 1 expected")


def batches(
    networks: Sequence[Any], events: DileptonEvents, batch_size: int
) -> Iterator[tuple[Any, IntArray]]:
    """Each network in evaluation mode, with the positions of a batch of its events."""
    fold = fold_of(events, len(networks))
    for number, network in enumerate(networks):
        mine = np.flatnonzero(fold == number)
        with _evaluating(network):
            for start in range(0, len(mine), batch_size):
                yield network, mine[start : start + batch_size]


@contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    training = network.training
    # Either call walks through all modules, a fifteenth of the time for 64 events.
    if training:
        network.eval()
    try:
        yield
    finally:
        if training:
            network.train()


# Not inference_mode: lgatr keeps the constants that it makes here, and a training in this process needs them.
@torch.no_grad()
def forward(
    network: Any, events: DileptonEvents, outputs: Callable[..., tuple[Tensor, ...]], *, rows: bool = False
) -> list[FloatArray]:
    """Outputs of the network, NaN for events that are not finite; with `rows` it is told which they are."""
    parameter = next(network.parameters())
    # A value beyond the network's precision is an infinity, not an error.
    with np.errstate(over="ignore"):
        inputs = Inputs.from_events(events, parameter.dtype, network.config.tokens)
    finite = _finite(inputs).nonzero()[:, 0]
    filled = -(-len(finite) // _BATCH_MULTIPLE) * _BATCH_MULTIPLE
    padded = finite[torch.arange(filled) % max(len(finite), 1)]
    columns = []
    batch = inputs.take(padded).to(parameter.device)
    for predicted in outputs(network, batch, *((padded,) if rows else ())):
        column = torch.full((len(events), *predicted.shape[1:]), torch.nan, dtype=torch.float64)
        column[finite] = predicted[: len(finite)].double().cpu()
        columns.append(column.numpy())
    return columns


def _finite(inputs: Inputs) -> Bool[Tensor, " n"]:
    """True where everything that exists in an event is finite, shape (n,)."""
    padded = ~inputs.jet_mask
    finite = inputs.jets.isfinite().all(-1)
    if inputs.jet_working_points is None:
        finite &= inputs.jet_btag.isfinite()
    if inputs.jet_features is not None:
        finite &= inputs.jet_features.isfinite().all(-1)
    everything = (finite | padded).all(-1)
    for field in (inputs.lepton_plus, inputs.lepton_minus, inputs.met):
        everything &= field.isfinite().all(-1)
    for further in (inputs.lepton_features, inputs.event_features):
        if further is not None:
            everything &= further.isfinite().flatten(1).all(-1)
    return everything
