"""Reconstructed objects as tensors, and the tokens that a network sees.

`Inputs` is the boundary between numpy and torch; `build_tokens` turns it into `Tokens`. Neither holds
anything but reconstructed quantities: no truth, no generator weight, no event number.

The order of tokens is fixed: ℓ⁺, ℓ⁻, the jets, MET and, where configured, the b candidates for ℓ⁺ and ℓ⁻.
Readout tokens and spurions follow; they belong to the encoder (`topreco.network.encoder`).

The scalars of a token are, in this order (`token_features` names them, and the schema in a model file keeps
the names):

1. the one-hot of its type, ``type_…``, one for each of `TOKEN_TYPES`;
2. ``charge``, ``muon``; ``btag``, only where `tokens.btag` is ``score``; ``tagged``;
3. with `tokens.b_candidates` ``flag``, ``b_candidate_plus`` and ``b_candidate_minus``;
4. with `tokens.btag` ``working_points``, ``passes_L``, ``passes_M``, ``passes_T``, ``passes_XT`` and
   ``passes_XXT``: 1 for each working point that the jet passes, so that going from one to the next is one
   weight;
5. the features of `tokens.features`: ``jet:NAME`` of jets and b candidates, ``lepton:NAME`` of ℓ⁺ and ℓ⁻,
   then ``event:NAME``, the same on all of these tokens and MET.

Inside an encoder, ``log_scale`` follows where the normalisation is that of the event (`encoder_features`),
and then the `query_scalars` of its readout tokens. What a configuration adds stands after all else that the
token has. The columns of the layers that read the scalars of two configurations correspond by name. A feature
has no meaning, and is zero, on tokens that it does not belong to (`feature_applies`).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from topreco.config import EncoderConfig, TokensConfig
from topreco.core import fourvector
from topreco.core.constants import PDG_MUON
from topreco.core.events import WORKING_POINTS, DileptonEvents

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

PASSES = tuple(f"passes_{name}" for name in WORKING_POINTS)
"""Flags of the working points that a jet passes."""

_JETS = frozenset({"jet", "b_candidate_plus", "b_candidate_minus"})
_LEPTONS = frozenset({"lepton_plus", "lepton_minus"})
_APPLIES_TO = {
    "btag": _JETS,
    "log_scale": frozenset(TOKEN_TYPES),
    **dict.fromkeys(PASSES, _JETS),
    "jet:": _JETS,
    "lepton:": _LEPTONS,
    "event:": _JETS | _LEPTONS | {"met"},
}
"""Types of tokens for which a feature has a meaning; all where nothing is said. Those of `tokens.features` go
by their kind."""

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
    jet_working_points
        Number of working points that each jet passes, shape (n, J); None, as all that follows, for networks
        that do not see it.
    jet_features, lepton_features, event_features
        Features in the order of `tokens.features`, shape (n, J, F), (n, 2, F) and (n, F).
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
    jet_working_points: Int[Tensor, "n J"] | None = None
    jet_features: Float[Tensor, "n J Fj"] | None = None
    lepton_features: Float[Tensor, "n 2 Fl"] | None = None
    event_features: Float[Tensor, "n Fe"] | None = None

    @classmethod
    def from_events(
        cls, events: DileptonEvents, dtype: torch.dtype = torch.float32, tokens: TokensConfig | None = None
    ) -> "Inputs":
        """Tensors of events; they share no memory with them.

        Parameters
        ----------
        events
            Selected events.
        dtype
            Floating-point type, that of the network.
        tokens
            What the network sees; None for what every network does.

        Raises
        ------
        TopRecoError
            If the events lack what the network sees.
        """
        kinds = {
            "lepton_flavour": torch.int64,
            "jet_mask": torch.bool,
            "jet_tagged": torch.bool,
            "b_candidates": torch.int64,
            "jet_working_points": torch.int64,
        }
        tokens = tokens or TokensConfig()
        arrays = {name: getattr(events, name) for name in cls._fields if name not in cls._field_defaults}
        arrays |= further_inputs(events, tokens)
        return cls(**{name: torch.tensor(x, dtype=kinds.get(name, dtype)) for name, x in arrays.items()})

    @classmethod
    def from_columns(cls, columns: Mapping[str, Tensor]) -> Self:
        """The fields among the columns of a training."""
        return cls(**{name: columns[name] for name in cls._fields if name in columns})

    def columns(self) -> dict[str, Tensor]:
        """The fields that there are, by name."""
        return {name: field for name, field in self._asdict().items() if field is not None}

    def map(self, function: Callable[[Tensor], Tensor]) -> "Inputs":
        """A function of each field that there is."""
        return Inputs(**{name: function(field) for name, field in self.columns().items()})

    def to(self, device: torch.device | str) -> "Inputs":
        """The same objects on a device."""
        return self.map(lambda field: field.to(device))

    def take(self, index: Tensor | slice) -> "Inputs":
        """The events that an index, a mask or a slice selects."""
        return self.map(lambda field: field[index])

    def charge_exchanged(self) -> "Inputs":
        """Exchange ℓ⁺ and ℓ⁻ with their features and b candidates; jets and MET stay.

        The tops of such events are exchanged as well, up to the charge asymmetry of production.
        """
        return self._replace(
            lepton_plus=self.lepton_minus,
            lepton_minus=self.lepton_plus,
            lepton_flavour=self.lepton_flavour.flip(1),
            b_candidates=self.b_candidates.flip(1),
            lepton_features=None if self.lepton_features is None else self.lepton_features.flip(1),
        )


def further_inputs(events: DileptonEvents, tokens: TokensConfig) -> dict[str, Any]:
    """Arrays of events beyond those that every network sees, see `DileptonEvents.further_inputs`."""
    return events.further_inputs(
        working_points=tokens.btag == "working_points", features=tokens.features.model_dump()
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
    btag, passes = (("btag",), ()) if config.btag == "score" else ((), PASSES)
    types = tuple(f"type_{name}" for name in TOKEN_TYPES)
    return (*types, "charge", "muon", *btag, "tagged", *flags, *passes, *config.features.names)


def own_feature(name: str) -> bool:
    """Return True for a scalar that `tokens.features` adds."""
    return ":" in name


def is_continuous(name: str) -> bool:
    """Return True for a scalar that is standardised; the others are flags."""
    return name in ("btag", "log_scale") or own_feature(name)


def encoder_features(config: EncoderConfig) -> tuple[str, ...]:
    """Names of the scalar features inside an encoder: those of its tokens and, per event, log(scale)."""
    log_scale = ("log_scale",) if config.normalisation.kind == "event_mass" else ()
    return (*token_features(config.tokens), *log_scale)


def feature_applies(features: tuple[str, ...], types: tuple[str, ...]) -> Bool[Tensor, "T F"]:
    """True where a feature has a meaning for tokens of a type, shape (T, F).

    A b-tag score does not for leptons; there, it must stay zero rather than be shifted by the mean score.
    """
    kinds = [name.partition(":")[0] + ":" if own_feature(name) else name for name in features]
    return torch.tensor([[kind in _APPLIES_TO.get(name, TOKEN_TYPES) for name in kinds] for kind in types])


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

    def of_jets(values: Tensor) -> Tensor:
        """A feature of jets, which b candidates share, from its values (n, J)."""
        return column(jets=values, candidates=(picked * values[:, None]).sum(-1))

    columns = [column(leptons=charge), column(leptons=muon)]
    if config.btag == "score":
        columns.append(of_jets(all_btag))
    columns.append(of_jets(all_tagged))
    if config.b_candidates == "flag":
        columns += [column(jets=picked[:, leg]) for leg in range(2)]
    if config.btag == "working_points":
        counts = _given(inputs.jet_working_points, "jet_working_points")
        passed = [inputs.jet_mask & (counts > number) for number in range(len(PASSES))]
        columns += [of_jets(flag.to(all_jets.dtype)) for flag in passed]
    own = config.features
    if own.jet:
        values = torch.where(inputs.jet_mask[..., None], _given(inputs.jet_features, "jet_features"), 0)
        columns += [of_jets(feature) for feature in values.unbind(-1)]
    if own.lepton:
        columns += [column(leptons=x) for x in _given(inputs.lepton_features, "lepton_features").unbind(-1)]
    if own.event:
        of_event = _given(inputs.event_features, "event_features")
        columns += [x[:, None].expand(-1, all_mask.shape[1]) for x in of_event.unbind(-1)]

    names = tuple(f"type_{name}" for name in TOKEN_TYPES)
    one_hot = type_scalars(names, token_types(config)).to(all_p4)
    scalars = torch.cat([one_hot.expand(n, -1, -1), torch.stack(columns, -1)], -1)
    return Tokens(all_p4, scalars * all_mask[..., None], all_mask)


def _given(field: Tensor | None, name: str) -> Tensor:
    """A field that the configuration needs."""
    if field is None:
        raise ValueError(f"{name}: the network sees it, but the inputs were made without; give their tokens")
    return field


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
