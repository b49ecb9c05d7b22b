"""Columns that tasks about top quarks keep of each event."""

import numpy as np
import torch

from topreco.config import TokensConfig
from topreco.core.events import DileptonEvents, Truth
from topreco.core.observables import c_hel
from topreco.network.task import Columns, TrainingError
from topreco.network.tokens import Inputs


def top_columns(events: DileptonEvents, truth: Truth | None, tokens: TokensConfig | None = None) -> Columns:
    """Reconstructed objects, true ``tops`` in GeV, shape (n, 2, 4), and true ``c_hel``, shape (n,).

    c_hel includes the leptons of τ decays and is NaN where a lepton is unknown; rotation, reflection and
    charge exchange leave it as it is.

    Parameters
    ----------
    events, truth
        Selected events and their truth.
    tokens
        What the network sees; None for what every network does.

    Raises
    ------
    TrainingError
        If there is no truth, or a feature that the network sees is not finite.
    TopRecoError
        If the events lack what the network sees.
    """
    if truth is None:
        raise TrainingError("the four-momenta of t and t̄ are learnt from truth, and these events have none")
    inputs = Inputs.from_events(events, tokens=tokens)
    if tokens is not None:
        check_features(inputs, tokens)
    return inputs.columns() | {
        "tops": torch.from_numpy(truth.tops.astype(np.float32)),
        "c_hel": torch.from_numpy(c_hel(truth.tops, truth.lepton).astype(np.float32)),
    }


def check_features(inputs: Inputs, tokens: TokensConfig) -> None:
    """Raise for features that would make the loss non-finite.

    Parameters
    ----------
    inputs
        Objects of events.
    tokens
        What the network sees of them.

    Raises
    ------
    TrainingError
        If a feature is NaN or infinite where there is an object.
    """
    for kind, names in tokens.features.model_dump().items():
        values = getattr(inputs, f"{kind}_features")
        for name, column in zip(names, () if values is None else values.unbind(-1), strict=True):
            # What a padded slot holds is never read.
            bad = ~column.isfinite() & inputs.jet_mask if kind == "jet" else ~column.isfinite()
            if bad.any():
                raise TrainingError(
                    f"tokens.features.{kind}: {name!r} is NaN or infinite in {int(bad.sum())} places of "
                    f"{len(column)} events; finite values expected"
                )
