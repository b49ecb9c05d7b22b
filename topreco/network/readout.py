"""Readout: from vectors and scalars of all tokens to those of an event, or of each top."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from topreco.config import ReadoutKind
from topreco.network.encoder import Encoded

QUERY_TYPES = ("readout_top", "readout_antitop")
"""Types of the readout tokens of t and t̄."""


class Legs(NamedTuple):
    """Vector and scalars of each top.

    Attributes
    ----------
    vectors
        In units of the scale, shape (n, 2, 4).
    scalars
        Shape (n, 2, s).
    """

    vectors: Float[Tensor, "n 2 4"]
    scalars: Float[Tensor, "n 2 s"]


def queries_of(kind: ReadoutKind) -> tuple[str, ...]:
    """Types of the readout tokens that a readout needs."""
    return QUERY_TYPES if kind == "query_tokens" else ()


def read_legs(encoded: Encoded, kind: ReadoutKind) -> Legs:
    """One vector and its scalars for t and t̄ each.

    Mean and sum run over the objects that exist, not over spurions: those stand in every event and would only
    add a constant number of terms.

    Parameters
    ----------
    encoded
        Two vectors per token, the first for t, the second for t̄, and an even number of scalars, whose first
        half is that of t.
    kind
        Tokens to read: the first one, the mean or sum of all objects, or the readout tokens of t and t̄.
    """
    vectors, mask = encoded.vectors, encoded.mask
    # Not −1: there may be no scalars at all.
    scalars = encoded.scalars.reshape(*encoded.scalars.shape[:2], 2, encoded.scalars.shape[-1] // 2)
    n_objects = mask.shape[1]
    match kind:
        case "first_token":
            legs = vectors[:, 0], scalars[:, 0]
        case "query_tokens":
            # Top from the first readout token, antitop from the second, each its own channel.
            places = [(n_objects, 0), (n_objects + 1, 1)]
            legs = (
                torch.stack([vectors[:, token, leg] for token, leg in places], 1),
                torch.stack([scalars[:, token, leg] for token, leg in places], 1),
            )
        case _:
            legs = (
                over_objects(vectors, mask, mean=kind == "mean"),
                over_objects(scalars, mask, mean=kind == "mean"),
            )
    return Legs(*legs)


def over_objects(values: Float[Tensor, "n T *d"], mask: Bool[Tensor, "n objects"], *, mean: bool) -> Tensor:
    """Sum or mean over the objects of an event, without readout tokens and spurions, shape (n, ...).

    Parameters
    ----------
    values
        Of each token, vectors or scalars of `Encoded`, shape (n, T, ...).
    mask
        True where there is an object, the mask of `Encoded`.
    mean
        Mean rather than sum.
    """
    weight = mask.to(values.dtype)
    if mean:
        weight = weight / weight.sum(1, keepdim=True)
    weight = weight.reshape(*weight.shape, *[1] * (values.ndim - 2))
    return (values[:, : mask.shape[1]] * weight).sum(1)
