"""Reference multivectors that break Lorentz symmetry to what beam and detector leave of it.

Without them an equivariant network could not know where the beam is. They are never rescaled with the
event's momenta, and never change with the event.
"""

import torch
from jaxtyping import Float
from lgatr import extract_vector, get_spurions
from torch import Tensor

from topreco.config import SpurionConfig


def build_spurions(config: SpurionConfig, dtype: torch.dtype = torch.float32) -> Float[Tensor, "k 16"]:
    """Spurions as multivectors, the beams first and then the time direction.

    Parameters
    ----------
    config
        Which reference directions there are.
    dtype
        Floating-point type.

    Returns
    -------
    spurions
        Multivectors, shape (k, 16); k = 0 where symmetry is not broken.
    """
    return get_spurions(config.beam, config.time, config.mirror, dtype=dtype)


def spurion_types(config: SpurionConfig) -> tuple[str, ...]:
    """Token type of each spurion: both beams share one, so that a reflection z → −z only permutes them."""
    beams = 0 if config.beam is None else 2 if config.mirror and config.beam != "xyplane" else 1
    return ("beam",) * beams + ("time",) * config.time


def vector_spurions(spurions: Float[Tensor, "k 16"], config: SpurionConfig) -> Float[Tensor, "k 4"]:
    """Spurions as a network of vectors and scalars sees them, shape (k, 4).

    Parameters
    ----------
    spurions
        Multivectors, shape (k, 16).
    config
        What they are.

    Raises
    ------
    ValueError
        If one is a bivector, whose vector part vanishes.
    """
    if config.beam == "xyplane":
        raise ValueError(
            "spurions.beam: 'xyplane' is a bivector, which a network of vectors cannot see; allowed for "
            "backbone.kind 'lgatr_slim' and 'transformer': lightlike, spacelike, timelike or null"
        )
    return extract_vector(spurions)
