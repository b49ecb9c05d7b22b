r"""Task `tokens`: the objects of an event, each as a few integers, are predicted one after the other.

In the order ℓ⁺, ℓ⁻, MET, leading jet, second jet, … a causal transformer sees the objects before the next
one, as they are after encoding and decoding (`topreco.network.tasks.encoding`), and the cross-entropy of the
next object's integers is the loss:

    −ln p(event) = −Σᵢ [ln p(bᵢ | objects before i) + Σₗ ln p(cᵢₗ | bᵢ, cᵢ₁, …, cᵢ₍ₗ₋₁₎, objects before i)].

bᵢ is the flavour of a lepton, the number of b-tag working points that a jet passes, or that there is no
further jet; cᵢₗ are the integers of the momentum. So the network is a density of encoded events, from which
events can be drawn. The idea and its use before a training with truth are those of OmniJet-α [1]_.

The causal transformer is the backbone of an `Encoder` that is told which token attends to which. A training
that begins with it lets all attend to all.

References
----------
.. [1] J. Birk, A. Hallin, G. Kasieczka, OmniJet-α: the first cross-task foundation model for particle
   physics, arXiv:2403.05618.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from topreco.config import NextTokenConfig
from topreco.core.constants import M_ELECTRON, M_MUON, PDG_ELECTRON, PDG_MUON
from topreco.core.events import WORKING_POINTS, DileptonEvents, dataset_id
from topreco.core.pairing import b_candidates
from topreco.network.encoder import Encoder
from topreco.network.task import Columns, Evaluated
from topreco.network.tasks.encoding import JET, KINDS, build_encoding, coordinates, fit_encoding, momenta
from topreco.network.tasks.unlabelled import UnlabelledTask
from topreco.network.tokens import FIRST_JET, Inputs

SCHEMA_VERSION = 1

_STOP = len(WORKING_POINTS) + 1
"""Label that says that there is no further jet; those below count working points, or muons."""
_LABELS = _STOP + 1
_FIRST = KINDS.index("jet")


class Objects(NamedTuple):
    """Objects of events in the order in which they are predicted.

    Attributes
    ----------
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (n, R, 4).
    label
        1 for a muon, number of working points that a jet passes, shape (n, R).
    exists
        True where there is an object, shape (n, R); jets come without gaps.
    """

    p4: Float[Tensor, "n R 4"]
    label: Int[Tensor, "n R"]
    exists: Bool[Tensor, "n R"]


class CodeHead(nn.Module):
    """Logits of the label and the integers of an object, each given those before it.

    Parameters
    ----------
    config
        Sizes.
    levels
        Integers of an object besides the label.
    """

    def __init__(self, config: NextTokenConfig, levels: int) -> None:
        super().__init__()
        self.sizes = (_LABELS, *[config.codes] * levels)
        self.state_in = nn.Linear(config.scalars, config.hidden)
        self.kind = nn.Embedding(len(KINDS), config.hidden)
        self.known = nn.ModuleList(nn.Embedding(len(KINDS) * size, config.hidden) for size in self.sizes[:-1])
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(config.hidden),
                nn.Linear(config.hidden, config.hidden),
                nn.SiLU(),
                nn.Linear(config.hidden, size),
            )
            for size in self.sizes
        )

    def start(self, state: Float[Tensor, "*n S"], kind: Int[Tensor, "*n"]) -> Float[Tensor, "*n H"]:
        """What is known before the first integer of an object of a kind."""
        h: Tensor = self.state_in(state) + self.kind(kind)
        return h

    def logits(
        self, level: int, h: Float[Tensor, "*n H"], kind: Int[Tensor, "*n"]
    ) -> Float[Tensor, "*n codes"]:
        """Logits of an integer, 0 for the label; labels that a kind cannot have are impossible."""
        found: Tensor = self.layers[level](h).float()
        if level:
            return found
        largest = torch.tensor([1, 1, 0, _STOP], device=found.device)[kind]
        return found.masked_fill(torch.arange(_LABELS, device=found.device) > largest[..., None], -torch.inf)

    def further(
        self, level: int, h: Float[Tensor, "*n H"], code: Int[Tensor, "*n"], kind: Int[Tensor, "*n"]
    ) -> Float[Tensor, "*n H"]:
        """What is known once an integer is."""
        if level + 1 == len(self.sizes):
            return h
        return h + self.known[level](kind * self.sizes[level] + code)


class NextTokenNetwork(nn.Module):
    """A causal transformer over the encoded objects of an event.

    Parameters
    ----------
    config
        Configuration of the model.

    Attributes
    ----------
    encoder
        The part that a training with truth begins with.
    encoding
        Integers of objects.
    tagged
        Share of the jets with a number of working points that count as b-tagged, shape (6,).
    """

    kind = "tokens"
    tagged: Tensor
    _kinds: Tensor
    _places: Tensor
    _sees: Tensor

    def __init__(self, config: NextTokenConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, vectors=1, scalars=config.scalars)
        self.encoding = build_encoding(config)
        self.start = nn.Parameter(torch.zeros(config.scalars))
        self.head = CodeHead(config, self.encoding.levels)
        self.register_buffer("tagged", torch.zeros(_STOP))
        n_jets = config.tokens.max_jets
        kinds = torch.tensor([*range(_FIRST), *[JET] * n_jets])
        # Of each object its place among the tokens: MET stands behind the jets there.
        places = torch.tensor([0, 1, FIRST_JET + n_jets, *range(FIRST_JET, FIRST_JET + n_jets)])
        rank = places.argsort()
        for name, value in {
            "_kinds": kinds,
            "_places": places,
            "_sees": rank[:, None] >= rank,
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, inputs: Inputs) -> Float[Tensor, "n R L"]:
        """−ln p of label and integers of each object, zero where there is none, shape (n, R, 1 + levels).

        Parameters
        ----------
        inputs
            Reconstructed objects.
        """
        objects = self.objects(inputs)
        kind = self._kinds.expand(objects.label.shape)
        codes = self.encoding.encode(coordinates(objects.p4, kind), kind)
        before = objects._replace(p4=self.decoded(codes, objects.label))
        h = self.head.start(self.states(before), kind)
        # There is a next jet, or the first place without one.
        asked = objects.exists.clone()
        asked[:, _FIRST:] |= objects.exists[:, _FIRST - 1 : -1]
        label = torch.where(objects.exists, objects.label, torch.where(kind == JET, _STOP, 0))
        found = []
        for level, code in enumerate([label, *codes.unbind(-1)]):
            logits = self.head.logits(level, h, kind)
            nats = functional.cross_entropy(logits.flatten(0, 1), code.flatten(), reduction="none")
            counts = asked if level == 0 else objects.exists
            found.append(torch.where(counts, nats.reshape(code.shape), 0.0))
            h = self.head.further(level, h, code, kind)
        return torch.stack(found, -1)

    # ---- objects and inputs ----

    def objects(self, inputs: Inputs) -> Objects:
        """Objects in the order in which they are predicted; jets beyond the last place do not count."""
        n_jets = self.config.tokens.max_jets
        tokens = self.encoder.tokens(inputs)
        counts = inputs.jet_working_points
        assert counts is not None
        counts = functional.pad(counts, (0, max(0, n_jets - counts.shape[1])))[:, :n_jets]
        exists = tokens.mask[:, self._places]
        muon = (inputs.lepton_flavour == PDG_MUON).long()
        label = torch.cat([muon, torch.zeros_like(muon[:, :1]), counts.clamp(0, _STOP - 1)], 1)
        return Objects(tokens.p4[:, self._places], label * exists, exists)

    def inputs(self, objects: Objects) -> Inputs:
        """Reconstructed objects without b-tag scores and b candidates."""
        n, n_jets = len(objects.label), self.config.tokens.max_jets
        label = objects.label[:, _FIRST:]
        exists = objects.exists[:, _FIRST:]
        return Inputs(
            lepton_plus=objects.p4[:, 0],
            lepton_minus=objects.p4[:, 1],
            lepton_flavour=torch.where(objects.label[:, :2] == 1, PDG_MUON, PDG_ELECTRON),
            jets=objects.p4[:, _FIRST:],
            jet_mask=exists,
            jet_btag=objects.p4.new_zeros((n, n_jets)),
            jet_tagged=(self.tagged[label] > 0.5) & exists,
            b_candidates=label.new_full((n, 2), -1),
            met=objects.p4[:, 2, 1:3],
            jet_working_points=label * exists,
        )

    def decoded(self, codes: Int[Tensor, "n R levels"], label: Int[Tensor, "n R"]) -> Float[Tensor, "n R 4"]:
        """Four-momenta in GeV that integers and labels stand for, shape (n, R, 4)."""
        kind = self._kinds.expand(label.shape)
        mass = torch.where(label == 1, M_MUON, M_ELECTRON)
        return momenta(self.encoding.decode(codes, kind), kind, mass)

    def round_trip(self, inputs: Inputs) -> Inputs:
        """The same objects after encoding and decoding."""
        objects = self.objects(inputs)
        kind = self._kinds.expand(objects.label.shape)
        codes = self.encoding.encode(coordinates(objects.p4, kind), kind)
        return self.inputs(objects._replace(p4=self.decoded(codes, objects.label)))

    def states(self, objects: Objects) -> Float[Tensor, "n R S"]:
        """What is known before each object, of the objects before it alone, shape (n, R, scalars)."""
        tokens = self.encoder.tokens(self.inputs(objects))
        encoded = self.encoder(tokens, self.encoder.scale(tokens), sees=self._sees)
        after = encoded.scalars[:, self._places[:-1]]
        return torch.cat([self.start.to(after).expand(len(after), 1, -1), after], 1)

    # ---- preparation and generation ----

    @torch.no_grad()
    def fit_encoding(self, inputs: Inputs) -> None:
        """Set the encoding and all scales from training events."""
        self.encoder.fit_standardisation(inputs)
        objects = self.objects(inputs)
        fit_encoding(self.encoding, objects.p4, self._kinds, objects.exists)
        exists = objects.exists[:, _FIRST:]
        tagged = functional.pad(inputs.jet_tagged, (0, max(0, exists.shape[1] - inputs.jet_tagged.shape[1])))
        of_jets = objects.label[:, _FIRST:][exists]
        n = torch.bincount(of_jets, minlength=_STOP)
        passed = torch.bincount(of_jets, tagged[:, : exists.shape[1]][exists].double(), minlength=_STOP)
        # Where no jet is, as many pass as one would think: all but the loosest.
        usual = (torch.arange(_STOP) > 1).double()
        self.tagged.copy_(torch.where(n > 0, passed / n.clamp(min=1), usual))

    @torch.no_grad()
    def generate(self, n: int, generator: torch.Generator) -> Inputs:
        """Events that are drawn one object after the other.

        Parameters
        ----------
        n
            Number of events.
        generator
            Random numbers, of the device of the network.
        """
        device = self.start.device
        n_objects = len(self._kinds)
        objects = Objects(
            torch.zeros((n, n_objects, 4), device=device),
            torch.zeros((n, n_objects), dtype=torch.int64, device=device),
            torch.zeros((n, n_objects), dtype=torch.bool, device=device),
        )
        # The first tokens always exist, also before they are drawn; nobody sees them.
        objects.exists[:, :_FIRST] = True
        codes = objects.label.new_zeros((n, n_objects, self.encoding.levels))
        for place in range(n_objects):
            kind = self._kinds[place].expand(n)
            h = self.head.start(self.states(objects)[:, place], kind)
            drawn = []
            for level in range(len(self.head.sizes)):
                probability = self.head.logits(level, h, kind).softmax(-1)
                code = torch.multinomial(probability, 1, generator=generator)[:, 0]
                drawn.append(code)
                h = self.head.further(level, h, code, kind)
            if place >= _FIRST:
                # MET, which is before the first jet, always exists.
                objects.exists[:, place] = objects.exists[:, place - 1] & (drawn[0] < _STOP)
            objects.label[:, place] = drawn[0] * objects.exists[:, place]
            codes[:, place] = torch.stack(drawn[1:], -1)
            p4 = self.decoded(codes, objects.label) * objects.exists[..., None]
            objects.p4[:, place] = p4[:, place]
        return self.inputs(objects)


def as_events(inputs: Inputs, name: str = "generated") -> DileptonEvents:
    """Generated or decoded objects as events of their own, with b candidates, numbered from 0.

    Parameters
    ----------
    inputs
        Objects without b-tag scores.
    name
        Name of their dataset.
    """
    n = len(inputs.jet_mask)
    # A generated jet may have more pT than the one before it.
    pt = torch.where(inputs.jet_mask, inputs.jets[..., 1:3].square().sum(-1), -1.0)
    order = pt.argsort(dim=1, descending=True, stable=True)
    jets = inputs.jets.gather(1, order[..., None].expand(-1, -1, 4))
    points = inputs.jet_working_points
    assert points is not None
    there = inputs.jet_mask.gather(1, order)
    lepton_plus, lepton_minus, met = (
        each.double().cpu().numpy() for each in (inputs.lepton_plus, inputs.lepton_minus, inputs.met)
    )
    p4 = torch.where(there[..., None], jets, 0.0).double().cpu().numpy()
    mask = there.cpu().numpy()
    tagged = inputs.jet_tagged.gather(1, order).cpu().numpy()
    return DileptonEvents(
        lepton_plus=lepton_plus,
        lepton_minus=lepton_minus,
        lepton_flavour=inputs.lepton_flavour.cpu().numpy(),
        jets=p4,
        jet_mask=mask,
        jet_btag=np.where(mask, np.nan, 0.0),
        jet_tagged=tagged,
        b_candidates=b_candidates(lepton_plus, lepton_minus, p4, mask, tagged),
        met=met,
        dataset=np.full(n, dataset_id(name), np.uint64),
        run=np.ones(n, np.uint32),
        luminosity_block=np.ones(n, np.uint32),
        event=np.arange(n, dtype=np.uint64),
        weight=np.ones(n),
        jet_working_points=points.gather(1, order).cpu().numpy(),
    )


def task_schema(config: NextTokenConfig) -> dict[str, Any]:
    """Outputs of a model of this configuration, as plain JSON data that is stored with trained weights."""
    return {
        "version": SCHEMA_VERSION,
        "output": ["label", "codes"],
        "encoding": config.encoding,
        "levels": build_encoding(config).levels,
        "codes": config.codes,
    }


class NextTokenTask(UnlabelledTask[NextTokenNetwork]):
    """Pre-training by the prediction of the next object."""

    name = NextTokenNetwork.kind

    def build(self) -> NextTokenNetwork:
        """Untrained network."""
        return NextTokenNetwork(self.model)

    def prepare(self, network: NextTokenNetwork, sample: Columns) -> None:
        """Make the encoding of the objects and all standardisations.

        With `augment_rotation` φ is that of rotated events, the same at any azimuth.
        """
        generator = torch.Generator().manual_seed(0)
        n = len(sample["jet_mask"])
        network.fit_encoding(self.seen(self.augment(sample, self.draw(n, generator))))

    def loss(self, network: NextTokenNetwork, columns: Columns) -> tuple[Tensor, None]:
        """Cross-entropy of an event in nats."""
        return network(self.seen(columns)).sum((1, 2)), None

    def metrics(self, batches: Iterable[Evaluated[NextTokenNetwork]]) -> dict[str, float]:
        """Mean loss; in bits ``label`` and ``momentum`` of an event, and ``jet`` of one jet's momentum."""
        sums = torch.zeros(5, dtype=torch.float64)
        for network, columns, _, weight in batches:
            inputs = self.seen(columns)
            nats = network(inputs)
            n_jets = network.objects(inputs).exists[:, _FIRST:].sum(1)
            parts = [
                nats[..., 0].sum(1),
                nats[..., 1:].sum((1, 2)),
                nats[:, _FIRST:, 1:].sum((1, 2)),
                n_jets.to(nats),
                torch.ones_like(nats[:, 0, 0]),
            ]
            sums += (weight * torch.stack(parts)).double().sum(1).cpu()
        label, momentum, jet, n_jets, total = sums.tolist()
        if not total > 0:
            return {}
        bits = 1 / math.log(2)
        return {
            "loss": (label + momentum) / total,
            "label": bits * label / total,
            "momentum": bits * momentum / total,
            "jet": bits * jet / n_jets if n_jets > 0 else math.nan,
        }

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Bits of an event."""
        return (
            f"loss {metrics['loss']:.4f}, bits of an event: labels {metrics['label']:.2f}, momenta "
            f"{metrics['momentum']:.2f} ({metrics['jet']:.2f} for a jet)"
        )
