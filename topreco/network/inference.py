"""Trained networks on events: `DileptonEvents` in, `TopPair` out. No truth reaches this module."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from topreco.core.events import QUANTILE_LEVELS, DileptonEvents, FloatArray, TopPair, mass_quality
from topreco.network.splits import fold_of
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs

# Matrix products of few rows take other code paths, which round differently. From this many rows on, and in
# multiples of it, the prediction for an event does not depend on how many others are in its batch.
_BATCH_MULTIPLE = 64


def predict(
    networks: Sequence[TopNetwork], events: DileptonEvents, *, batch_size: int = 256, quantiles: bool = True
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
        the output is not finite. With quantiles, uncertainty and quality if the networks have them.

    Raises
    ------
    ValueError
        If there is no network or the batch size is not positive.
    """
    if not networks:
        raise ValueError("predict: at least one network expected, got none")
    if batch_size < 1:
        raise ValueError(f"predict: batch_size {batch_size} found, at least 1 expected")
    fold = fold_of(events, len(networks))
    own = networks[0].quantiles if quantiles else None
    columns = [np.full((len(events), 2, 4), np.nan)]
    if own is not None:
        columns.append(np.full((len(events), len(own.observables), len(QUANTILE_LEVELS)), np.nan))
        columns.append(np.full((len(events), 2, 4), np.nan))
    for number, network in enumerate(networks):
        mine = np.flatnonzero(fold == number)
        training = network.training
        # Either call walks through all modules, a fifteenth of the time for 64 events.
        if training:
            network.eval()
        try:
            for start in range(0, len(mine), batch_size):
                chosen = mine[start : start + batch_size]
                for column, predicted in zip(
                    columns, _forward(network, events[chosen], quantiles), strict=True
                ):
                    column[chosen] = predicted
        finally:
            if training:
                network.train()
    p4 = columns[0]
    valid = np.isfinite(p4).all(axis=(1, 2))
    for column in columns:
        column[~valid] = np.nan
    if own is None:
        return TopPair(p4=p4, valid=valid)
    by_name = {name: columns[1][:, i] for i, name in enumerate(own.observables)}
    return TopPair(p4, valid, quality=mass_quality(by_name), uncertainty=columns[2], quantiles=by_name)


# Not inference_mode: lgatr keeps the constants that it makes here, and a training in this process needs them.
@torch.no_grad()
def _forward(network: TopNetwork, events: DileptonEvents, quantiles: bool) -> list[FloatArray]:
    """Everything that the network predicts, NaN for events that are not finite."""
    parameter = next(network.parameters())
    # A value beyond the network's precision is an infinity, not an error.
    with np.errstate(over="ignore"):
        inputs = Inputs.from_events(events, dtype=parameter.dtype)
    finite = _finite(inputs).nonzero()[:, 0]
    filled = -(-len(finite) // _BATCH_MULTIPLE) * _BATCH_MULTIPLE
    padded = finite[torch.arange(filled) % max(len(finite), 1)]
    columns = []
    batch = inputs.take(padded).to(parameter.device)
    for predicted in network.predictions(batch) if quantiles else (network(batch),):
        column = torch.full((len(events), *predicted.shape[1:]), torch.nan, dtype=torch.float64)
        column[finite] = predicted[: len(finite)].double().cpu()
        columns.append(column.numpy())
    return columns


def _finite(inputs: Inputs) -> Bool[Tensor, " n"]:
    """True where everything that exists in an event is finite, shape (n,)."""
    padded = ~inputs.jet_mask
    finite = (inputs.jets.isfinite().all(-1) & inputs.jet_btag.isfinite()) | padded
    everything = finite.all(-1)
    for field in (inputs.lepton_plus, inputs.lepton_minus, inputs.met):
        everything &= field.isfinite().all(-1)
    return everything
