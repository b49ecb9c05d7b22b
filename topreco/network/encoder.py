"""Events as a backbone sees them: tokens, normalisation, spurions and readout, shared by all networks."""

from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from lgatr import embed_vector
from torch import Tensor, nn

from topreco.config import BackboneConfig, LGATrConfig, LGATrSlimConfig, LLoCaConfig, ModelConfig
from topreco.core import fourvector
from topreco.core.constants import M_ELECTRON
from topreco.network.backbones.lgatr import LGATrBackbone
from topreco.network.backbones.lgatr_slim import LGATrSlimBackbone
from topreco.network.backbones.lloca import LLoCaBackbone
from topreco.network.backbones.transformer import TransformerBackbone
from topreco.network.spurions import build_spurions, spurion_types, vector_spurions
from topreco.network.tasks.heads import visible_mass
from topreco.network.tokens import (
    CONTINUOUS,
    FIRST_JET,
    Objects,
    Tokens,
    build_tokens,
    feature_applies,
    model_features,
    token_types,
    type_scalars,
)

_READOUT_TYPES = ("readout_top", "readout_antitop")


@runtime_checkable
class Backbone(Protocol):
    """What all backbones have in common: two vectors and S scalars per token."""

    components: int
    """Components of a geometric object: 16 of a multivector or 4 of a vector."""

    def __call__(
        self,
        geometry: Float[Tensor, "n T C components"],
        scalars: Float[Tensor, "n T F"],
        mask: Bool[Tensor, "n T"],
    ) -> tuple[Float[Tensor, "n T 2 4"], Float[Tensor, "n T S"]]:
        """Vectors and scalars of each token."""
        ...


def build_backbone(config: BackboneConfig, in_channels: int, in_scalars: int, out_scalars: int) -> Backbone:
    """Untrained backbone of the configured kind.

    Parameters
    ----------
    config
        Kind and sizes.
    in_channels, in_scalars
        Geometric objects and scalars per token.
    out_scalars
        Scalars per token of the output.
    """
    if isinstance(config, LGATrConfig):
        return LGATrBackbone(config, in_channels, in_scalars, out_scalars)
    if isinstance(config, LGATrSlimConfig):
        return LGATrSlimBackbone(config, in_channels, in_scalars, out_scalars)
    if isinstance(config, LLoCaConfig):
        return LLoCaBackbone(config, in_channels, in_scalars, out_scalars)
    return TransformerBackbone(config, in_channels, in_scalars, out_scalars)


class Raw(NamedTuple):
    """What a backbone says about each top, before a head makes sense of it.

    Attributes
    ----------
    vectors
        In units of the scale, shape (n, 2, 4).
    scalars
        As many as asked for, shape (n, 2, s).
    jet_scalars
        As many per jet as asked for, shape (n, 2, J, t).
    """

    vectors: Float[Tensor, "n 2 4"]
    scalars: Float[Tensor, "n 2 s"]
    jet_scalars: Float[Tensor, "n 2 J t"]


class EventNetwork(nn.Module):
    """A backbone with everything between it and the objects of an event.

    Parameters
    ----------
    config
        Configuration of the model: tokens, normalisation, spurions.
    backbone
        Kind and sizes of the backbone.
    readout
        Where the answers about t and t̄ are taken from.
    scalars, jet_scalars
        Scalars per top, and per jet and top, in the answer.

    Attributes
    ----------
    config
        Configuration of the model.
    spurions
        Reference multivectors, shape (k, 16).
    feature_mean, feature_std
        Standardisation of the scalar features, shape (F,).
    """

    spurions: Tensor
    feature_mean: Tensor
    feature_std: Tensor
    _applies: Tensor
    _readout_scalars: Tensor
    _spurion_scalars: Tensor

    def __init__(
        self,
        config: ModelConfig,
        backbone: BackboneConfig,
        readout: Literal["first_token", "mean", "sum", "query_tokens"],
        *,
        scalars: int,
        jet_scalars: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self._readout_kind = readout
        self._scalars = scalars
        self._jet_scalars = jet_scalars
        features = model_features(config)
        types = token_types(config.tokens)
        spurions = build_spurions(config.spurions)
        self._channels = config.spurions.embed == "channel"
        self._jets = slice(FIRST_JET, FIRST_JET + config.tokens.max_jets)
        self.backbone = build_backbone(
            backbone,
            in_channels=1 + len(spurions) if self._channels else 1,
            in_scalars=len(features),
            out_scalars=2 * (scalars + jet_scalars),
        )
        if self.backbone.components == 4:
            # Complains about a bivector now rather than in the first event.
            vector_spurions(spurions, config.spurions)

        self.register_buffer("spurions", spurions)
        self.register_buffer("feature_mean", torch.zeros(len(features)))
        self.register_buffer("feature_std", torch.ones(len(features)))
        # Everything below follows from the configuration and need not be saved.
        for name, value in {
            "_applies": feature_applies(features, types),
            "_readout_scalars": type_scalars(features, _READOUT_TYPES),
            "_spurion_scalars": type_scalars(features, spurion_types(config.spurions)),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def scale(self, objects: Objects) -> Float[Tensor, "n"]:
        """Normalisation of each event in GeV, the number that divides its four-momenta, shape (n,).

        It depends on reconstructed objects only. Losses in scaled units divide targets by it.
        """
        return self.scale_of(build_tokens(objects, self.config.tokens))

    def scale_of(self, tokens: Tokens) -> Float[Tensor, "n"]:
        """Normalisation of each event in GeV from its tokens, shape (n,)."""
        normalisation = self.config.normalisation
        if normalisation.kind != "event_mass":
            return torch.full_like(tokens.p4[:, 0, 0], normalisation.scale)
        total = self._visible(tokens)
        if normalisation.include_met:
            total = total + tokens.p4[:, FIRST_JET + self.config.tokens.max_jets]
        return visible_mass(total)

    @torch.no_grad()
    def fit_standardisation(self, objects: Objects) -> None:
        """Set mean and standard deviation of the continuous features from training events.

        Each is taken over the tokens that exist and for which the feature has a meaning; flags and
        one-hots stay as they are.

        Parameters
        ----------
        objects
            Training events; a few ten thousand suffice.
        """
        tokens = build_tokens(objects, self.config.tokens)
        scalars = self._with_scale(tokens.scalars, self.scale_of(tokens)).double()
        for i, name in enumerate(model_features(self.config)):
            if name not in CONTINUOUS:
                continue
            values = scalars[..., i][tokens.mask & self._applies[:, i]]
            if not len(values):
                continue
            std = values.std(correction=0)
            self.feature_mean[i] = values.mean()
            # A feature that never varies carries nothing; any finite divisor does.
            self.feature_std[i] = torch.where(std > 1e-6, std, torch.ones_like(std))

    def _visible(self, tokens: Tokens) -> Float[Tensor, "n 4"]:
        """Sum of leptons and jets in GeV, shape (n, 4)."""
        return tokens.p4[:, : FIRST_JET + self.config.tokens.max_jets].sum(1)

    def _with_scale(self, scalars: Float[Tensor, "n T F"], scale: Float[Tensor, "n"]) -> Tensor:
        """Scalars with log(scale), which a scale that differs between events must not hide."""
        if self.config.normalisation.kind != "event_mass":
            return scalars
        return torch.cat([scalars, scale.log()[:, None, None].expand(-1, scalars.shape[1], 1)], -1)

    def raw(
        self,
        tokens: Tokens,
        scale: Float[Tensor, "n"],
        spurions: Float[Tensor, "k 16"],
        queries: Float[Tensor, "n 2 4"] | None = None,
    ) -> Raw:
        """What the backbone says about each top.

        Parameters
        ----------
        tokens
            Tokens in GeV.
        scale
            Normalisation of each event in GeV, shape (n,).
        spurions
            Reference multivectors, shape (k, 16).
        queries
            Four-momenta in GeV of the readout tokens, shape (n, 2, 4); without, they have none.
        """
        n, n_objects = tokens.mask.shape
        # Without momenta of their own they collect those of the others.
        none = tokens.p4.new_zeros((1, 2, 4))
        queries = none if queries is None else queries / scale[:, None, None]
        geometry = tokens.p4 / scale[:, None, None]
        if self.config.normalisation.kind == "object_mass":
            masses = fourvector.mass_squared(tokens.p4).clamp(min=M_ELECTRON**2).sqrt()
            geometry = tokens.p4 / masses[..., None]
        if self.backbone.components == 16:
            geometry, queries = embed_vector(geometry), embed_vector(queries)
        else:
            spurions = vector_spurions(spurions, self.config.spurions)
        scalars = (self._with_scale(tokens.scalars, scale) - self.feature_mean) / self.feature_std
        scalars = scalars * (self._applies & tokens.mask[..., None])

        model_tokens = []
        if self._readout_kind == "query_tokens":
            model_tokens.append((queries, self._readout_scalars))
        if len(spurions) and not self._channels:
            model_tokens.append((spurions, self._spurion_scalars))
        mask = tokens.mask
        # The first token always exists, so it knows log(scale) where that is a feature.
        log_scale = scalars[:, :1, -1:]
        for own_geometry, type_only in model_tokens:
            k = len(type_only)
            own_scalars = type_only.expand(n, -1, -1)
            if self.config.normalisation.kind == "event_mass":
                own_scalars = torch.cat([own_scalars[..., :-1], log_scale.expand(-1, k, -1)], -1)
            geometry = torch.cat([geometry, own_geometry.expand(n, -1, -1)], 1)
            scalars = torch.cat([scalars, own_scalars], 1)
            mask = torch.cat([mask, mask.new_ones((n, k))], 1)
        geometry = geometry[..., None, :]
        if self._channels:
            constant = spurions.expand(n, geometry.shape[1], -1, -1)
            geometry = torch.cat([geometry, constant], -2)

        vectors, out = self.backbone(geometry, scalars, mask)
        out = out.reshape(*out.shape[:2], 2, self._scalars + self._jet_scalars)
        jet_scalars = out[:, self._jets, :, self._scalars :].transpose(1, 2)
        vectors, out = self._readout(vectors, out[..., : self._scalars], tokens.mask, n_objects)
        # Under autocast a backbone may answer in half precision, in which momenta would lose their mass.
        return Raw(vectors.to(tokens.p4), out.to(tokens.p4), jet_scalars.to(tokens.p4))

    def _readout(
        self,
        vectors: Float[Tensor, "n T 2 4"],
        scalars: Float[Tensor, "n T 2 s"],
        mask: Bool[Tensor, "n objects"],
        n_objects: int,
    ) -> tuple[Float[Tensor, "n 2 4"], Float[Tensor, "n 2 s"]]:
        """One vector and its scalars per top from those of all tokens.

        Mean and sum run over the objects that exist, not over spurions: those stand in every event and
        would only add a constant number of terms.
        """
        match self._readout_kind:
            case "first_token":
                return vectors[:, 0], scalars[:, 0]
            case "query_tokens":
                # Top from the first readout token, antitop from the second, each its own channel.
                legs = [(n_objects, 0), (n_objects + 1, 1)]
                return (
                    torch.stack([vectors[:, token, leg] for token, leg in legs], 1),
                    torch.stack([scalars[:, token, leg] for token, leg in legs], 1),
                )
            case kind:
                weight = mask.to(vectors.dtype)
                if kind == "mean":
                    weight = weight / weight.sum(1, keepdim=True)
                weight = weight[:, :, None, None]
                return (
                    (vectors[:, :n_objects] * weight).sum(1),
                    (scalars[:, :n_objects] * weight).sum(1),
                )
