"""Tokens of generated events: for the task `ratio` alone, which weights simulation.

No method that runs on data may see truth, so nothing else may import this module; the import contracts of
`pyproject.toml` check it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from topreco.config import EncoderConfig, TokensConfig
from topreco.core.events import BoolArray, Truth
from topreco.core.observables import OBSERVABLES, compute_observables
from topreco.network.task import Columns
from topreco.network.tokens import Tokens, token_features, type_scalars

TRUTH_COLUMN = "generated"
"""Column with the four-momenta in GeV of ℓ⁺, ℓ⁻, t and t̄, shape (n, 4, 4)."""
VALUES_COLUMN = "generated_observables"
"""Column with true values of observables, momenta compressed logarithmically, shape (n, k)."""

_MOMENTUM = 50.0
"""Momentum in GeV from which on observables are compressed."""

_CONFIG = TokensConfig(max_jets=2, b_candidates="none")
_TYPES = ("lepton_plus", "lepton_minus", "readout_top", "readout_antitop", "met")


def truth_encoder(config: EncoderConfig) -> EncoderConfig:
    """The configuration of an encoder for `truth_tokens`: t and t̄ are in the places of jets."""
    return config.encoder.model_copy(update={"tokens": _CONFIG})


def truth_columns(truth: Truth, observables: Sequence[str] = ()) -> Columns:
    """Generated tops and leptons of events; leptons are W less neutrino, a τ before its decay.

    Parameters
    ----------
    truth
        Generated events.
    observables
        Names of observables whose true values are wanted too.
    """
    p4 = np.concatenate([truth.w_lepton, truth.tops], axis=1)
    columns = {TRUTH_COLUMN: torch.from_numpy(p4.astype(np.float32))}
    if not observables:
        return columns
    known: BoolArray = np.asarray(np.isfinite(p4).all(axis=(1, 2)))
    found = compute_observables(observables, truth.tops, truth.tops.sum(1), truth.w_lepton, known)
    values = [
        np.arcsinh(found[name] / _MOMENTUM) if OBSERVABLES[name].unit == "GeV" else found[name]
        for name in observables
    ]
    stacked = np.stack(values, axis=1)
    # A top exactly along the beam has no axes r and n, so that nothing depends on them.
    stacked = np.where(known[:, None] & ~np.isfinite(stacked), 0.0, stacked)
    return columns | {VALUES_COLUMN: torch.from_numpy(stacked.astype(np.float32))}


def truth_tokens(p4: Tensor) -> Tokens:
    """Tokens of ℓ⁺, ℓ⁻, t and t̄, and an empty one where MET has its place.

    Parameters
    ----------
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (n, 4, 4).
    """
    n = len(p4)
    features = token_features(_CONFIG)
    scalars = type_scalars(features, _TYPES).to(p4)
    charge = features.index("charge")
    scalars[0, charge], scalars[1, charge] = 1.0, -1.0
    mask = torch.ones((n, len(_TYPES)), dtype=torch.bool, device=p4.device)
    mask[:, -1] = False
    padded = torch.cat([p4, p4.new_zeros((n, 1, 4))], 1)
    return Tokens(padded, scalars * mask[..., None], mask)
