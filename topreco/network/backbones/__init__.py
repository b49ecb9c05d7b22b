"""Backbones: networks from tokens to vectors and scalars.

A backbone is an `nn.Module` that satisfies `Backbone`, made from its own class of configuration. To add one,
write it in a file of this folder, its configuration in `topreco.config.model` (exported by `topreco.config`),
and an entry in `BACKBONES`.
"""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from topreco.config import (
    BackboneConfig,
    LGATrConfig,
    LGATrSlimConfig,
    LLoCaConfig,
    PETConfig,
    TransformerConfig,
)
from topreco.network.backbones.lgatr import LGATrBackbone
from topreco.network.backbones.lgatr_slim import LGATrSlimBackbone
from topreco.network.backbones.lloca import LLoCaBackbone
from topreco.network.backbones.pet import PETBackbone
from topreco.network.backbones.transformer import TransformerBackbone


@runtime_checkable
class Backbone(Protocol):
    """Interface of all backbones.

    A class is constructed as ``cls(config, in_channels, in_scalars, out_vectors, out_scalars)``: geometric
    objects and scalars per token of the input, vectors and scalars per token of the output.

    It depends neither on the order of the tokens nor on the number of masked ones. One that can also be told
    which token attends to which takes ``sees`` besides, as `TransformerBackbone` does. Muon trains the
    matrices whose name contains ``.blocks.``, AdamW all others.

    Attributes
    ----------
    components
        Components of a geometric object: 16 of a multivector or 4 of a vector.
    """

    components: int

    def __call__(
        self,
        geometry: Float[Tensor, "n T C components"],
        scalars: Float[Tensor, "n T F"],
        mask: Bool[Tensor, "n T"],
    ) -> tuple[Float[Tensor, "n T V 4"], Float[Tensor, "n T S"]]:
        """Vectors and scalars of each token; those of masked tokens are undefined."""
        ...


BACKBONES: dict[type, Any] = {
    LGATrSlimConfig: LGATrSlimBackbone,
    LGATrConfig: LGATrBackbone,
    LLoCaConfig: LLoCaBackbone,
    TransformerConfig: TransformerBackbone,
    PETConfig: PETBackbone,
}
"""Class of the backbone by class of its configuration."""


def build_backbone(
    config: BackboneConfig, *, in_channels: int, in_scalars: int, out_vectors: int, out_scalars: int
) -> Backbone:
    """Untrained backbone of the configured kind.

    Parameters
    ----------
    config
        Kind and sizes.
    in_channels, in_scalars
        Geometric objects and scalars per token of the input.
    out_vectors, out_scalars
        Vectors and scalars per token of the output.
    """
    return BACKBONES[type(config)](config, in_channels, in_scalars, out_vectors, out_scalars)
