"""Trained ratios of densities on events; the only inference that may be given truth, for generated inputs."""

from collections.abc import Sequence

import numpy as np
import torch

from topreco.core.events import DileptonEvents, FloatArray, Truth
from topreco.network.inference import batches, check_call, forward
from topreco.network.tasks.ratio import RatioNetwork, event_columns


def log_ratio(
    networks: Sequence[RatioNetwork],
    events: DileptonEvents,
    truth: Truth | None = None,
    *,
    batch_size: int = 256,
) -> FloatArray:
    """Calibrated log p_A/p_B of each event, by the network that has not seen it.

    Parameters
    ----------
    networks
        One network per fold.
    events
        Selected events, any number.
    truth
        Their truth, for networks that see generated tops and leptons.
    batch_size
        Events per forward pass; results depend on it by rounding only.

    Returns
    -------
    log_ratio
        Double precision, shape (n,); NaN where an input that exists is not finite.

    Raises
    ------
    TrainingError
        If the networks see generated tops and leptons, and there are none, or some are unknown.
    """
    check_call(networks, batch_size)
    found = np.full(len(events), np.nan)
    generated = networks[0].config.inputs == "generated"
    for network, chosen in batches(networks, events, batch_size):
        if generated:
            own = None if truth is None else truth[chosen]
            with torch.no_grad():
                parameter = next(network.parameters())
                columns = event_columns(network.config, events[chosen], own)
                there = {name: column.to(parameter) for name, column in columns.items()}
                found[chosen] = network(there).double().cpu().numpy()
        else:
            found[chosen] = forward(network, events[chosen], lambda own, inputs: (own(inputs.columns()),))[0]
    return found
