"""An event as a backbone sees it: tokens, normalisation and spurions, the part that all tasks share.

An `Encoder` is held by the network of a task, which decides how many vectors and scalars each token gives,
which readout tokens there are, and what becomes of them (`topreco.network.readout`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from lgatr import embed_vector
from torch import Tensor, nn

from topreco.config import EncoderConfig
from topreco.core.errors import TopRecoError
from topreco.network.backbones import build_backbone
from topreco.network.spurions import build_spurions, spurion_types, vector_spurions
from topreco.network.tokens import (
    FIRST_JET,
    PASSES,
    Inputs,
    Tokens,
    build_tokens,
    encoder_features,
    feature_applies,
    is_continuous,
    own_feature,
    token_types,
    type_scalars,
    visible_mass,
)


class Queries(NamedTuple):
    """Momenta and scalars of the readout tokens of an event.

    Attributes
    ----------
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (n, Q, 4); None for none.
    scalars
        Scalars, shape (n, Q, `Encoder.query_scalars`); None if the encoder has no place for any.
    """

    p4: Float[Tensor, "n Q 4"] | None = None
    scalars: Float[Tensor, "n Q s"] | None = None


class Encoded(NamedTuple):
    """Output of the backbone for each token.

    Attributes
    ----------
    vectors
        In units of the scale, shape (n, T, V, 4): first the tokens of the objects, then the readout tokens,
        then the spurions.
    scalars
        Shape (n, T, S).
    mask
        True where there is an object, shape (n, objects).
    """

    vectors: Float[Tensor, "n T V 4"]
    scalars: Float[Tensor, "n T S"]
    mask: Bool[Tensor, "n objects"]


class Encoder(nn.Module):
    """A backbone with everything between it and the objects of an event.

    Parameters
    ----------
    config
        Tokens, normalisation, spurions and backbone.
    vectors, scalars
        Vectors, at least one, and scalars that each token gives.
    queries
        Types of the readout tokens, entries of `topreco.network.tokens.TOKEN_TYPES`.
    query_scalars
        Scalars that a readout token takes in besides its type.

    Attributes
    ----------
    config
        Configuration of the encoder.
    spurions
        Reference multivectors, shape (k, 16).
    feature_mean, feature_std
        Standardisation of the scalar features, shape (F,).
    """

    spurions: Tensor
    feature_mean: Tensor
    feature_std: Tensor
    _applies: Tensor
    _query_scalars: Tensor
    _spurion_scalars: Tensor

    def __init__(
        self,
        config: EncoderConfig,
        *,
        vectors: int,
        scalars: int,
        queries: Sequence[str] = (),
        query_scalars: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.query_scalars = query_scalars
        features = encoder_features(config)
        spurions = build_spurions(config.spurions)
        self._channels = config.spurions.embed == "channel"
        self.backbone = build_backbone(
            config.backbone,
            in_channels=1 + len(spurions) if self._channels else 1,
            in_scalars=len(features) + query_scalars,
            out_vectors=vectors,
            out_scalars=scalars,
        )
        if self.backbone.components == 4:
            # Refuses a bivector now rather than in the first event.
            vector_spurions(spurions, config.spurions)

        self.register_buffer("spurions", spurions)
        self.register_buffer("feature_mean", torch.zeros(len(features)))
        self.register_buffer("feature_std", torch.ones(len(features)))
        # Everything below follows from the configuration and need not be saved.
        for name, value in {
            "_applies": feature_applies(features, token_types(config.tokens)),
            "_query_scalars": type_scalars(features, tuple(queries)),
            "_spurion_scalars": type_scalars(features, spurion_types(config.spurions)),
        }.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def jets(self) -> slice:
        """Positions of the jets among the tokens."""
        return slice(FIRST_JET, FIRST_JET + self.config.tokens.max_jets)

    def tokens(self, inputs: Inputs) -> Tokens:
        """Tokens of reconstructed objects."""
        return build_tokens(inputs, self.config.tokens)

    def visible(self, tokens: Tokens) -> Float[Tensor, "n 4"]:
        """Sum of leptons and jets in GeV, shape (n, 4)."""
        return tokens.p4[:, : FIRST_JET + self.config.tokens.max_jets].sum(1)

    def scale(self, tokens: Tokens) -> Float[Tensor, "n"]:
        """Normalisation of each event in GeV, the number that divides its four-momenta, shape (n,).

        It depends on reconstructed objects only. Losses in scaled units divide targets by it.
        """
        normalisation = self.config.normalisation
        if normalisation.kind == "constant":
            return torch.full_like(tokens.p4[:, 0, 0], normalisation.scale)
        total = self.visible(tokens)
        if normalisation.include_met:
            total = total + tokens.p4[:, FIRST_JET + self.config.tokens.max_jets]
        return visible_mass(total)

    @torch.no_grad()
    def fit_standardisation(self, inputs: Inputs) -> None:
        """Set mean and standard deviation of the continuous features from training events.

        Each is taken over the tokens that exist and for which the feature has a meaning; flags and
        one-hots stay as they are, but for working points that no jet passes: their weights will not be
        trained, so that they must count nothing where another era has them.

        Parameters
        ----------
        inputs
            Training events; a few ten thousand suffice.

        Raises
        ------
        TopRecoError
            If one of `tokens.features` is constant.
        """
        tokens = self.tokens(inputs)
        scalars = self._with_scale(tokens.scalars, self.scale(tokens)).double()
        for i, name in enumerate(encoder_features(self.config)):
            if not is_continuous(name) and name not in PASSES:
                continue
            values = scalars[..., i][tokens.mask & self._applies[:, i]]
            if not len(values):
                continue
            if name in PASSES:
                if not values.any():
                    self.feature_std[i] = torch.inf
                continue
            std = values.std(correction=0)
            if own_feature(name):
                _check_feature(name, values, std)
                self.feature_mean[i], self.feature_std[i] = values.mean(), std
                continue
            self.feature_mean[i] = values.mean()
            # A feature that never varies carries nothing; any finite divisor does.
            self.feature_std[i] = torch.where(std > 1e-6, std, torch.ones_like(std))

    def _with_scale(self, scalars: Float[Tensor, "n T F"], scale: Float[Tensor, "n"]) -> Tensor:
        """Scalars with log(scale), which a scale that differs between events must not hide."""
        if self.config.normalisation.kind == "constant":
            return scalars
        return torch.cat([scalars, scale.log()[:, None, None].expand(-1, scalars.shape[1], 1)], -1)

    def forward(
        self,
        tokens: Tokens,
        scale: Float[Tensor, "n"],
        *,
        queries: Queries | None = None,
        spurions: Float[Tensor, "k 16"] | None = None,
        sees: Bool[Tensor, "objects objects"] | None = None,
    ) -> Encoded:
        """Vectors and scalars of each token.

        Parameters
        ----------
        tokens
            Tokens in GeV.
        scale
            Normalisation of each event in GeV, shape (n,).
        queries
            Momenta and scalars of the readout tokens; zero by default.
        spurions
            Reference multivectors in place of the encoder's, shape (k, 16).
        sees
            Whether an object (first axis) attends to another one; None for all to all, which every backbone
            can. Readout tokens and spurions are then seen by all and see each other alone.
        """
        # Not len(), which would fix the number of events where an export traces it.
        n = tokens.mask.shape[0]
        queries = queries or Queries()
        spurions = self.spurions if spurions is None else spurions
        n_queries = len(self._query_scalars)
        # Without momenta of their own they collect those of the others.
        query_p4 = tokens.p4.new_zeros((1, n_queries, 4))
        if queries.p4 is not None:
            query_p4 = queries.p4 / scale[:, None, None]
        geometry = tokens.p4 / scale[:, None, None]
        if self.backbone.components == 16:
            geometry, query_p4 = embed_vector(geometry), embed_vector(query_p4)
        else:
            spurions = vector_spurions(spurions, self.config.spurions)
        scalars = (self._with_scale(tokens.scalars, scale) - self.feature_mean) / self.feature_std
        scalars = scalars * (self._applies & tokens.mask[..., None])

        further = []
        if n_queries:
            further.append((query_p4, self._query_scalars))
        if len(spurions) and not self._channels:
            further.append((spurions, self._spurion_scalars))
        mask = tokens.mask
        # The first token always exists, so it knows log(scale) where that is a feature.
        log_scale = scalars[:, :1, -1:]
        for own_geometry, type_only in further:
            k = len(type_only)
            own_scalars = type_only.expand(n, -1, -1)
            if self.config.normalisation.kind == "event_mass":
                own_scalars = torch.cat([own_scalars[..., :-1], log_scale.expand(-1, k, -1)], -1)
            geometry = torch.cat([geometry, own_geometry.expand(n, -1, -1)], 1)
            scalars = torch.cat([scalars, own_scalars], 1)
            mask = torch.cat([mask, mask.new_ones((n, k))], 1)
        if self.query_scalars:
            scalars = torch.cat([scalars, self._places_of_queries(tokens, scalars, queries)], -1)
        geometry = geometry[..., None, :]
        if self._channels:
            constant = spurions.expand(n, geometry.shape[1], -1, -1)
            geometry = torch.cat([geometry, constant], -2)
        if sees is None:
            vectors, out = self.backbone(geometry, scalars, mask)
        else:
            n_objects = sees.shape[0]
            whole = sees.new_zeros((mask.shape[1], mask.shape[1]))
            whole[:n_objects, :n_objects] = sees
            whole[:, n_objects:] = True
            backbone: Any = self.backbone
            vectors, out = backbone(geometry, scalars, mask, sees=whole)
        return Encoded(vectors, out, tokens.mask)

    def _places_of_queries(self, tokens: Tokens, scalars: Tensor, queries: Queries) -> Tensor:
        """Scalars of the readout tokens at their places among all tokens, zero elsewhere."""
        places = scalars.new_zeros((*scalars.shape[:2], self.query_scalars))
        if queries.scalars is not None:
            first = tokens.mask.shape[1]
            places[:, first : first + len(self._query_scalars)] = queries.scalars
        return places


def _check_feature(name: str, values: Tensor, std: Tensor) -> None:
    """Raise unless a feature varies in the training events."""
    key, _, branch = name.partition(":")
    # What is left of the rounding of single precision is no variation.
    if not std > 1e-6 * values.abs().max():
        raise TopRecoError(
            f"tokens.features.{key}: {branch!r} is {values[0]:g} in all training events, so nothing can be "
            "learnt from it; leave it out"
        )
