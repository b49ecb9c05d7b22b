"""Tokens of generated events: for the task `ratio` alone, which weights simulation.

No method that runs on data may see truth, so nothing else may import this module; the import contracts of
`pyproject.toml` check it.
"""

import numpy as np
import torch
from torch import Tensor

from topreco.config import EncoderConfig, TokensConfig
from topreco.core.events import Truth
from topreco.network.task import Columns
from topreco.network.tokens import Tokens, token_features, type_scalars

TRUTH_COLUMN = "generated"
"""Column with the four-momenta in GeV of ℓ⁺, ℓ⁻, t and t̄, shape (n, 4, 4)."""

_CONFIG = TokensConfig(max_jets=2, b_candidates="none")
_TYPES = ("lepton_plus", "lepton_minus", "readout_top", "readout_antitop", "met")


def truth_encoder(config: EncoderConfig) -> EncoderConfig:
    """The configuration of an encoder for `truth_tokens`: t and t̄ are in the places of jets."""
    return config.encoder.model_copy(update={"tokens": _CONFIG})


def truth_columns(truth: Truth) -> Columns:
    """Generated tops and leptons of events; leptons are W less neutrino, a τ before its decay."""
    p4 = np.concatenate([truth.w_lepton, truth.tops], axis=1)
    return {TRUTH_COLUMN: torch.from_numpy(p4.astype(np.float32))}


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
