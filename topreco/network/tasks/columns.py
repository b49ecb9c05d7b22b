"""Columns that tasks about top quarks keep of each event."""

import numpy as np
import torch

from topreco.core.events import DileptonEvents, Truth
from topreco.core.observables import c_hel
from topreco.network.task import Columns, TrainingError
from topreco.network.tokens import Inputs


def top_columns(events: DileptonEvents, truth: Truth | None) -> Columns:
    """Reconstructed objects, true ``tops`` in GeV, shape (n, 2, 4), and true ``c_hel``, shape (n,).

    c_hel includes the leptons of τ decays and is NaN where a lepton is unknown; rotation, reflection and
    charge exchange leave it as it is.

    Raises
    ------
    TrainingError
        If there is no truth.
    """
    if truth is None:
        raise TrainingError("the four-momenta of t and t̄ are learnt from truth, and these events have none")
    return Inputs.from_events(events)._asdict() | {
        "tops": torch.from_numpy(truth.tops.astype(np.float32)),
        "c_hel": torch.from_numpy(c_hel(truth.tops, truth.lepton).astype(np.float32)),
    }
