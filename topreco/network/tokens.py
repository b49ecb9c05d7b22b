"""Reconstructed objects as tensors, and the tokens that a network sees.

`Inputs` is the boundary between numpy and torch; `build_tokens` turns it into `Tokens`. Neither holds
anything but reconstructed quantities: no truth, no generator weight, no event number.

The order of tokens is fixed: ℓ⁺, ℓ⁻, the jets, MET and, where configured, the b candidates for ℓ⁺ and ℓ⁻.
Readout tokens and spurions follow; they belong to the encoder (`topreco.network.encoder`).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from topreco.config import EncoderConfig, TokensConfig
from topreco.core import fourvector
from topreco.core.constants import PDG_MUON
from topreco.core.events import DileptonEvents

SCHEMA_VERSION = 1

TOKEN_TYPES = (
    "lepton_plus",
    "lepton_minus",
    "jet",
    "met",
    "b_candidate_plus",
    "b_candidate_minus",
    "beam",
    "time",
    "readout_top",
    "readout_antitop",
)
"""Vocabulary of the type one-hot, the same for every model whether or not it uses all."""

FIRST_JET = 2
"""Position of the leading jet among the tokens."""

CONTINUOUS = frozenset({"btag", "log_scale"})
"""Scalar features that are standardised; the others are flags."""

_APPLIES_TO = {
    "btag": frozenset({"jet", "b_candidate_plus", "b_candidate_minus"}),
    "log_scale": frozenset(TOKEN_TYPES),
}

# Two leptons above 20 GeV have more mass than this, unless rounding destroys it.
MASS_FLOOR = 1.0
"""Smallest invariant mass, in GeV, that the visible system counts with."""


class Inputs(NamedTuple):
    """Reconstructed objects of a batch of events: what every network takes in.

    Attributes
    ----------
    lepton_plus, lepton_minus
        Four-momenta (E, px, py, pz) in GeV, shape (n, 4).
    lepton_flavour
        |pdgId| of the positive and the negative lepton, shape (n, 2).
    jets
        Four-momenta in GeV in falling pT, shape (n, J, 4); where masked, the content is ignored.
    jet_mask
        True where there is a jet, shape (n, J).
    jet_btag, jet_tagged
        b-tag score and whether it passes the working point, shape (n, J).
    b_candidates
        Index into the jets of the b candidate for ℓ⁺ and of that for ℓ⁻, −1 where there is none,
        shape (n, 2).
    met
        Missing transverse momentum (px, py) in GeV, shape (n, 2).
    """

    lepton_plus: Float[Tensor, "n 4"]
    lepton_minus: Float[Tensor, "n 4"]
    lepton_flavour: Int[Tensor, "n 2"]
    jets: Float[Tensor, "n J 4"]
    jet_mask: Bool[Tensor, "n J"]
    jet_btag: Float[Tensor, "n J"]
    jet_tagged: Bool[Tensor, "n J"]
    b_candidates: Int[Tensor, "n 2"]
    met: Float[Tensor, "n 2"]

    @classmethod
    def from_events(cls, events: DileptonEvents, dtype: torch.dtype = torch.float32) -> "Inputs":
        """Tensors of events; they share no memory with them.

        Parameters
        ----------
        events
            Selected events.
        dtype
            Floating-point type, that of the network.
        """
        kinds = {
            "lepton_flavour": torch.int64,
            "jet_mask": torch.bool,
            "jet_tagged": torch.bool,
            "b_candidates": torch.int64,
        }
        return cls(
            **{
                name: torch.tensor(getattr(events, name), dtype=kinds.get(name, dtype))
                for name in cls._fields
            }
        )

    @classmethod
    def from_columns(cls, columns: Mapping[str, Tensor]) -> Self:
        """The fields among the columns of a training."""
        return cls(*(columns[name] for name in cls._fields))

    def to(self, device: torch.device | str) -> "Inputs":
        """The same objects on a device."""
        return Inputs(*(field.to(device) for field in self))

    def take(self, index: Tensor | slice) -> "Inputs":
        """The events that an index, a mask or a slice selects."""
        return Inputs(*(field[index] for field in self))

    def charge_exchanged(self) -> "Inputs":
        """Exchange ℓ⁺ and ℓ⁻ with their b candidates; jets and MET stay.

        The tops of such events are exchanged as well, up to the charge asymmetry of production.
        """
        return self._replace(
            lepton_plus=self.lepton_minus,
            lepton_minus=self.lepton_plus,
            lepton_flavour=self.lepton_flavour.flip(1),
            b_candidates=self.b_candidates.flip(1),
        )


class Tokens(NamedTuple):
    """Tokens of a batch of events, padded and masked.

    Attributes
    ----------
    p4
        Four-momenta (E, px, py, pz) in GeV, zero where masked, shape (n, T, 4).
    scalars
        The features `token_features` names, not standardised, zero where masked, shape (n, T, F).
    mask
        True where there is a token, shape (n, T).
    """

    p4: Float[Tensor, "n T 4"]
    scalars: Float[Tensor, "n T F"]
    mask: Bool[Tensor, "n T"]


def visible_mass(p4: Float[Tensor, "n 4"]) -> Float[Tensor, "n"]:
    """Invariant mass of the visible system in GeV, at least `MASS_FLOOR`, shape (n,)."""
    return fourvector.mass_squared(p4).clamp(min=MASS_FLOOR**2).sqrt()


def token_types(config: TokensConfig) -> tuple[str, ...]:
    """Type of the token in each position, entries of `TOKEN_TYPES`."""
    candidates = ("b_candidate_plus", "b_candidate_minus") if config.b_candidates == "token" else ()
    return ("lepton_plus", "lepton_minus", *("jet",) * config.max_jets, "met", *candidates)


def token_features(config: TokensConfig) -> tuple[str, ...]:
    """Names of the scalar features of `Tokens`, in their order."""
    flags = ("b_candidate_plus", "b_candidate_minus") if config.b_candidates == "flag" else ()
    return (*(f"type_{name}" for name in TOKEN_TYPES), "charge", "muon", "btag", "tagged", *flags)


def encoder_features(config: EncoderConfig) -> tuple[str, ...]:
    """Names of the scalar features inside an encoder: those of its tokens and, per event, log(scale)."""
    log_scale = ("log_scale",) if config.normalisation.kind == "event_mass" else ()
    return (*token_features(config.tokens), *log_scale)


def feature_applies(features: tuple[str, ...], types: tuple[str, ...]) -> Bool[Tensor, "T F"]:
    """True where a feature has a meaning for tokens of a type, shape (T, F).

    A b-tag score does not for leptons; there, it must stay zero rather than be shifted by the mean score.
    """
    return torch.tensor([[kind in _APPLIES_TO.get(name, TOKEN_TYPES) for name in features] for kind in types])


def type_scalars(features: tuple[str, ...], types: tuple[str, ...]) -> Float[Tensor, "T F"]:
    """Scalars of tokens about which nothing but the type is known, shape (T, F)."""
    rows = [[float(name == f"type_{kind}") for name in features] for kind in types]
    return torch.tensor(rows).reshape(len(types), len(features))


def _resize(values: Tensor, length: int) -> Tensor:
    """Truncate or zero-pad axis 1."""
    missing = length - values.shape[1]
    if missing <= 0:
        return values[:, :length]
    return functional.pad(values, (0,) * (2 * (values.ndim - 2)) + (0, missing))


def build_tokens(inputs: Inputs, config: TokensConfig) -> Tokens:
    """Tokens of reconstructed objects.

    MET becomes the massless transverse four-vector (pT, px, py, 0). A b candidate beyond the `max_jets`
    leading jets is still seen as a token of its own, but as a flag it is lost with its jet.

    Parameters
    ----------
    inputs
        Reconstructed objects; the padded length J of their jets may be anything.
    config
        Which tokens and features there are.
    """
    n = inputs.jet_mask.shape[0]
    # `where` rather than a product: what stands in a padded slot may be NaN.
    all_jets = torch.where(inputs.jet_mask[..., None], inputs.jets, 0)
    all_btag = torch.where(inputs.jet_mask, inputs.jet_btag, 0)
    all_tagged = (inputs.jet_mask & inputs.jet_tagged).to(all_jets.dtype)
    positions = torch.arange(all_jets.shape[1], device=all_jets.device)
    is_candidate = (inputs.b_candidates[..., None] == positions) & inputs.jet_mask[:, None]
    picked = is_candidate.to(all_jets.dtype)

    px, py = inputs.met.unbind(-1)
    met = fourvector.pack((px.square() + py.square()).sqrt(), px, py, torch.zeros_like(px))
    present = inputs.jet_mask.new_ones((n, 1))
    p4 = [inputs.lepton_plus[:, None], inputs.lepton_minus[:, None], _resize(all_jets, config.max_jets)]
    mask = [present, present, _resize(inputs.jet_mask, config.max_jets), present]
    p4.append(met[:, None])
    n_candidates = 0
    if config.b_candidates == "token":
        n_candidates = 2
        p4.append((picked[..., None] * all_jets[:, None]).sum(2))
        mask.append(is_candidate.any(-1))
    all_p4, all_mask = torch.cat(p4, 1), torch.cat(mask, 1)

    def column(
        *, leptons: Tensor | None = None, jets: Tensor | None = None, candidates: Tensor | None = None
    ) -> Tensor:
        """A feature of all tokens from its values where it has any, shape (n, T)."""
        zeros = all_p4.new_zeros
        parts = [
            zeros((n, 2)) if leptons is None else leptons,
            zeros((n, config.max_jets)) if jets is None else _resize(jets, config.max_jets),
            zeros((n, 1)),
        ]
        if n_candidates:
            parts.append(zeros((n, 2)) if candidates is None else candidates)
        return torch.cat(parts, 1)

    muon = (inputs.lepton_flavour == PDG_MUON).to(all_p4.dtype)
    charge = torch.tensor([1.0, -1.0], dtype=all_p4.dtype, device=all_p4.device).expand(n, 2)
    columns = [
        column(leptons=charge),
        column(leptons=muon),
        column(jets=all_btag, candidates=(picked * all_btag[:, None]).sum(-1)),
        column(jets=all_tagged, candidates=(picked * all_tagged[:, None]).sum(-1)),
    ]
    if config.b_candidates == "flag":
        columns += [column(jets=picked[:, leg]) for leg in range(2)]

    names = tuple(f"type_{name}" for name in TOKEN_TYPES)
    one_hot = type_scalars(names, token_types(config)).to(all_p4)
    scalars = torch.cat([one_hot.expand(n, -1, -1), torch.stack(columns, -1)], -1)
    return Tokens(all_p4, scalars * all_mask[..., None], all_mask)


def encoder_schema(config: EncoderConfig) -> dict[str, Any]:
    """Inputs that an encoder of this configuration expects, as plain JSON data.

    It is stored with trained weights: a change to the tokens, their order or their features changes the
    schema, so that old weights are refused rather than fed with something else.
    """
    return {
        "version": SCHEMA_VERSION,
        "tokens": list(token_types(config.tokens)),
        "features": list(encoder_features(config)),
        "p4": ["E", "px", "py", "pz"],
        "unit": "GeV",
        "met": ["pT", "px", "py", "0"],
        "b_candidates": config.tokens.b_candidates,
        "normalisation": config.normalisation.model_dump(mode="json"),
        "spurions": config.spurions.model_dump(mode="json"),
    }


def schema_hash(schema: dict[str, Any]) -> str:
    """SHA-256 of a schema, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(schema, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
