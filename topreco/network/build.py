"""The complete network: objects in GeV in, top momenta in GeV out.

Token building, normalisation, spurions, backbone, readout and head are all inside, so that a trained
network is one thing that can be saved, exported and called.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from lgatr import embed_vector
from torch import Tensor, nn

from topreco.config import LGATrConfig, LGATrSlimConfig, ModelConfig
from topreco.network.heads import Head, soft_assignment, visible_mass
from topreco.network.lgatr import LGATrBackbone
from topreco.network.lgatr_slim import LGATrSlimBackbone
from topreco.network.spurions import build_spurions, spurion_types, vector_spurions
from topreco.network.tokens import (
    CONTINUOUS,
    FIRST_JET,
    Objects,
    Tokens,
    build_tokens,
    charge_exchange,
    feature_applies,
    model_features,
    token_types,
    type_scalars,
)
from topreco.network.transformer import TransformerBackbone

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


def build_backbone(config: ModelConfig, in_channels: int, in_scalars: int, out_scalars: int) -> Backbone:
    """Untrained backbone of the configured kind.

    Parameters
    ----------
    config
        Configuration of the model.
    in_channels, in_scalars
        Geometric objects and scalars per token.
    out_scalars
        Scalars per token of the output.
    """
    backbone = config.backbone
    if isinstance(backbone, LGATrConfig):
        return LGATrBackbone(backbone, in_channels, in_scalars, out_scalars)
    if isinstance(backbone, LGATrSlimConfig):
        return LGATrSlimBackbone(backbone, in_channels, in_scalars, out_scalars)
    return TransformerBackbone(backbone, in_channels, in_scalars, out_scalars)


class _Raw(NamedTuple):
    """What a backbone says about each top, before the head.

    Attributes
    ----------
    vectors
        In units of the scale, shape (n, 2, 4).
    scalars
        As many as the head needs, shape (n, 2, s).
    jet_scalars
        As many per jet as the head needs, shape (n, 2, J, t).
    """

    vectors: Float[Tensor, "n 2 4"]
    scalars: Float[Tensor, "n 2 s"]
    jet_scalars: Float[Tensor, "n 2 J t"]


class TopNetwork(nn.Module):
    """A network from reconstructed objects to the four-momenta of top and antitop.

    Parameters
    ----------
    config
        Configuration of the model.

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
    _exchange_rows: Tensor
    _exchange_columns: Tensor
    _exchange_signs: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        features = model_features(config)
        types = token_types(config.tokens)
        spurions = build_spurions(config.spurions)
        self._channels = config.spurions.embed == "channel"
        self._jets = slice(FIRST_JET, FIRST_JET + config.tokens.max_jets)

        self.head = Head(config.head, config.m_top)
        self.backbone = build_backbone(
            config,
            in_channels=1 + len(spurions) if self._channels else 1,
            in_scalars=len(features),
            out_scalars=2 * (self.head.scalars + self.head.jet_scalars),
        )
        if self.backbone.components == 4:
            # Complains about a bivector now rather than in the first event.
            vector_spurions(spurions, config.spurions)

        self.register_buffer("spurions", spurions)
        self.register_buffer("feature_mean", torch.zeros(len(features)))
        self.register_buffer("feature_std", torch.ones(len(features)))
        # Everything below follows from the configuration and need not be saved.
        exchange_rows, exchange_columns, exchange_signs = charge_exchange(config.tokens)
        for name, value in {
            "_applies": feature_applies(features, types),
            "_readout_scalars": type_scalars(features, _READOUT_TYPES),
            "_spurion_scalars": type_scalars(features, spurion_types(config.spurions)),
            "_exchange_rows": torch.tensor(exchange_rows),
            "_exchange_columns": torch.tensor(exchange_columns),
            "_exchange_signs": torch.tensor(exchange_signs),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, objects: Objects) -> Float[Tensor, "n 2 4"]:
        """Four-momenta (E, px, py, pz) in GeV of top and antitop, shape (n, 2, 4).

        They are timelike with E > 0 whatever the input.
        """
        tokens = build_tokens(objects, self.config.tokens)
        return self.forward_tokens(tokens, self.scale_of(tokens))

    def forward_tokens(
        self,
        tokens: Tokens,
        scale: Float[Tensor, "n"],
        spurions: Float[Tensor, "k 16"] | None = None,
    ) -> Float[Tensor, "n 2 4"]:
        """Four-momenta of top and antitop from tokens.

        This is the entry at which a Lorentz transformation of everything the network sees, the spurions
        included, can be applied.

        Parameters
        ----------
        tokens
            Tokens in GeV.
        scale
            Normalisation of each event in GeV, shape (n,).
        spurions
            Reference multivectors in place of the model's, shape (k, 16).
        """
        spurions = self.spurions if spurions is None else spurions
        raw = self._raw(tokens, scale, spurions)
        if self.config.charge_symmetric:
            exchanged = self._raw(self._charge_exchanged(tokens), scale, spurions)
            raw = _Raw(*(0.5 * (own + other.flip(1)) for own, other in zip(raw, exchanged, strict=True)))
        return self.head(
            raw.vectors, raw.scalars, self._visible(tokens), scale, self._decay(tokens, raw.jet_scalars)
        )

    def scale(self, objects: Objects) -> Float[Tensor, "n"]:
        """Normalisation of each event in GeV, the number that divides its four-momenta, shape (n,).

        It depends on reconstructed objects only. Losses in scaled units divide targets by it.
        """
        return self.scale_of(build_tokens(objects, self.config.tokens))

    def scale_of(self, tokens: Tokens) -> Float[Tensor, "n"]:
        """Normalisation of each event in GeV from its tokens, shape (n,)."""
        normalisation = self.config.normalisation
        if normalisation.kind == "constant":
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

    def _decay(self, tokens: Tokens, jet_scalars: Float[Tensor, "n 2 J s"]) -> Float[Tensor, "n 2 4"] | None:
        """Lepton and softly assigned jets of each top in GeV, shape (n, 2, 4), if the head wants them."""
        if not self.head.jet_scalars:
            return None
        # The leptons stand in the order of their tops.
        bottoms = soft_assignment(jet_scalars[..., 0], tokens.p4[:, self._jets], tokens.mask[:, self._jets])
        return tokens.p4[:, :FIRST_JET] + bottoms

    def _charge_exchanged(self, tokens: Tokens) -> Tokens:
        rows = self._exchange_rows
        scalars = tokens.scalars[:, rows][..., self._exchange_columns] * self._exchange_signs
        return Tokens(tokens.p4[:, rows], scalars, tokens.mask[:, rows])

    def _with_scale(self, scalars: Float[Tensor, "n T F"], scale: Float[Tensor, "n"]) -> Tensor:
        """Scalars with log(scale), which a scale that differs between events must not hide."""
        if self.config.normalisation.kind == "constant":
            return scalars
        return torch.cat([scalars, scale.log()[:, None, None].expand(-1, scalars.shape[1], 1)], -1)

    def _raw(self, tokens: Tokens, scale: Float[Tensor, "n"], spurions: Float[Tensor, "k 16"]) -> _Raw:
        """What the backbone says about each top."""
        n, n_objects = tokens.mask.shape
        geometry = tokens.p4 / scale[:, None, None]
        if self.backbone.components == 16:
            geometry = embed_vector(geometry)
        else:
            spurions = vector_spurions(spurions, self.config.spurions)
        scalars = (self._with_scale(tokens.scalars, scale) - self.feature_mean) / self.feature_std
        scalars = scalars * (self._applies & tokens.mask[..., None])

        model_tokens = []
        if self.config.readout == "query_tokens":
            # They have no momentum of their own but collect that of the others.
            model_tokens.append((geometry.new_zeros((2, geometry.shape[-1])), self._readout_scalars))
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
        out = out.reshape(*out.shape[:2], 2, self.head.scalars + self.head.jet_scalars)
        jet_scalars = out[:, self._jets, :, self.head.scalars :].transpose(1, 2)
        vectors, out = self._readout(vectors, out[..., : self.head.scalars], tokens.mask, n_objects)
        # Under autocast a backbone may answer in half precision, in which momenta would lose their mass.
        return _Raw(vectors.to(tokens.p4), out.to(tokens.p4), jet_scalars.to(tokens.p4))

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
        match self.config.readout:
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


def build_network(config: ModelConfig) -> TopNetwork:
    """Untrained network of a configuration; its weights come from torch's global generator.

    Raises
    ------
    ValueError
        If a backbone cannot be built as configured.
    """
    return TopNetwork(config)
