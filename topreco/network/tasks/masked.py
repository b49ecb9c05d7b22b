"""Task `masked`: hidden objects are predicted from the others, and the others cleaned of noise.

Each lepton, MET and one of the jets are hidden at random: their tokens keep their type, and nothing else. The
others get noise on ln pT, η and φ. For each token the network gives a correction of its three-momentum; the
loss is the distance to what was measured. No truth is needed: this is the masked prediction of language
models [1]_ and images [2]_ with the measured event as its own label, and denoising beside it.

The prediction of a hidden object is a mean over what it may have been.

References
----------
.. [1] J. Devlin et al., BERT: pre-training of deep bidirectional transformers for language understanding,
   arXiv:1810.04805.
.. [2] K. He et al., Masked autoencoders are scalable vision learners, arXiv:2111.06377.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from topreco.config import MaskedConfig
from topreco.core import fourvector
from topreco.network.encoder import Encoder
from topreco.network.task import Columns, Evaluated
from topreco.network.tasks.unlabelled import UnlabelledTask
from topreco.network.tokens import FIRST_JET, Inputs, Tokens, token_features, token_types, type_scalars

SCHEMA_VERSION = 1
HIDE, NOISE = "hide", "noise"
"""Columns of random numbers: uniform ones that choose what is hidden, shape (n, T), and normal ones, shape
(n, T, 3)."""

_VALIDATION_SEED = 20_260_701


class Recovered(NamedTuple):
    """Objects as they were measured, as the network saw them, and what it makes of them.

    Attributes
    ----------
    momenta, seen, measured
        Three-momenta in GeV: found by the network, seen by it (zero where hidden), and measured,
        shape (n, T, 3).
    hidden, noisy
        True where a token was hidden, and where one was not, shape (n, T); neither for empty slots.
    scale
        Normalisation of each event in GeV, shape (n,).
    """

    momenta: Float[Tensor, "n T 3"]
    seen: Float[Tensor, "n T 3"]
    measured: Float[Tensor, "n T 3"]
    hidden: Bool[Tensor, "n T"]
    noisy: Bool[Tensor, "n T"]
    scale: Float[Tensor, "n"]

    @property
    def squared_error(self) -> Float[Tensor, "n T"]:
        """Squared distance of the found momenta from the measured ones in GeV², shape (n, T)."""
        return (self.momenta - self.measured).square().sum(-1)

    @property
    def losses(self) -> Float[Tensor, "n"]:
        """Mean over the hidden objects of an event plus that over the others, shape (n,)."""
        scale = self.scale[:, None, None]
        each = functional.smooth_l1_loss(self.momenta / scale, self.measured / scale, reduction="none").sum(
            -1
        )
        return _mean(each, self.hidden) + _mean(each, self.noisy)


def _mean(values: Float[Tensor, "n T"], mask: Bool[Tensor, "n T"]) -> Float[Tensor, "n"]:
    """Mean of each event where a mask is true, 0 where it is so nowhere."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


class MaskedNetwork(nn.Module):
    """An encoder whose only vector of each token corrects its momentum.

    Parameters
    ----------
    config
        Configuration of the model.

    Attributes
    ----------
    encoder
        The part that a training with truth begins with.
    """

    kind = "masked"
    _types: Tensor

    def __init__(self, config: MaskedConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, vectors=1, scalars=0)
        types = type_scalars(token_features(config.tokens), token_types(config.tokens))
        self.register_buffer("_types", types, persistent=False)

    def forward(self, inputs: Inputs, hide: Float[Tensor, "n T"], noise: Float[Tensor, "n T 3"]) -> Recovered:
        """Objects recovered from what is left of an event.

        Parameters
        ----------
        inputs
            Reconstructed objects.
        hide
            Numbers from 0 to 1 that choose what is hidden, see `hidden_tokens`.
        noise
            Normal noise, shape (n, T, 3).
        """
        tokens = self.encoder.tokens(inputs)
        hidden = hidden_tokens(tokens.mask, hide, self.encoder.jets, self.config.hide)
        p4 = smeared(tokens.p4, self.config.noise * noise)
        left = Tokens(
            torch.where(hidden[..., None], 0.0, p4),
            torch.where(hidden[..., None], self._types, tokens.scalars),
            tokens.mask,
        )
        # Of what is left alone: the mass of the whole event would tell.
        scale = self.encoder.scale(left)
        correction = self.encoder(left, scale).vectors[:, : hidden.shape[1], 0, 1:].to(p4)
        seen = left.p4[..., 1:]
        return Recovered(
            seen + correction * scale[:, None, None],
            seen,
            tokens.p4[..., 1:],
            hidden,
            tokens.mask & ~hidden,
            scale,
        )


def hidden_tokens(
    mask: Bool[Tensor, "n T"], chance: Float[Tensor, "n T"], jets: slice, probability: float
) -> Bool[Tensor, "n T"]:
    """Which objects are hidden: of the jets at most one, for those that are hidden are alike.

    Parameters
    ----------
    mask
        True where there is a token, shape (n, T).
    chance
        Independent uniform numbers from 0 to 1, shape (n, T).
    jets
        Positions of the jets.
    probability
        Probability for each lepton, the MET, and any of the jets.
    """
    hidden = mask & (chance < probability)
    # Of the smallest of J numbers the distribution is 1 − (1 − x)^J.
    of_jets = torch.where(mask[:, jets], chance[:, jets], 1.0)
    smallest = of_jets.amin(1, keepdim=True)
    n_jets = mask[:, jets].sum(1, keepdim=True)
    some = (1 - (1 - smallest) ** n_jets) < probability
    hidden[:, jets] = mask[:, jets] & some & (of_jets == smallest)
    return hidden


def smeared(p4: Float[Tensor, "n T 4"], shift: Float[Tensor, "n T 3"]) -> Float[Tensor, "n T 4"]:
    """Four-momenta with shifts of ln pT, η and φ; MET stays transverse, and masses as they are.

    Parameters
    ----------
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (n, T, 4).
    shift
        Shifts of ln pT, η and φ, shape (n, T, 3).
    """
    _, px, py, pz = p4.unbind(-1)
    log_pt, d_eta, d_phi = shift.unbind(-1)
    factor, cos, sin = log_pt.exp(), d_phi.cos(), d_phi.sin()
    pt = (px.square() + py.square()).sqrt()
    # pT sinh(η + Δη) = pz cosh Δη + |p| sinh Δη
    along = pz * d_eta.cosh() + (pt.square() + pz.square()).sqrt() * d_eta.sinh()
    moved = torch.stack(
        [cos * px - sin * py, sin * px + cos * py, torch.where(pz == 0, 0.0, along)], -1
    ) * factor.unsqueeze(-1)
    mass = fourvector.mass_squared(p4).clamp(min=0).sqrt()
    return fourvector.from_three_momentum(moved, mass)


def task_schema(config: MaskedConfig) -> dict[str, Any]:  # noqa: ARG001 - the same for all
    """Outputs of a model of this configuration, as plain JSON data that is stored with trained weights."""
    return {"version": SCHEMA_VERSION, "output": ["momenta"]}


class MaskedTask(UnlabelledTask[MaskedNetwork]):
    """Pre-training by hidden and noisy objects."""

    name = MaskedNetwork.kind

    def build(self) -> MaskedNetwork:
        """Untrained network."""
        return MaskedNetwork(self.model)

    def prepare(self, network: MaskedNetwork, sample: Columns) -> None:
        """Standardise the features."""
        network.encoder.fit_standardisation(Inputs.from_columns(sample))

    def _random(self, n: int, generator: torch.Generator) -> Columns:
        n_tokens = len(token_types(self.model.tokens))
        return {
            HIDE: torch.rand((n, n_tokens), generator=generator),
            NOISE: torch.randn((n, n_tokens, 3), generator=generator),
        }

    def draw(self, n: int, generator: torch.Generator) -> Columns:
        """Random symmetry transformations, and what is hidden and added to the rest."""
        return super().draw(n, generator) | self._random(n, generator)

    def augment(self, columns: Columns, drawn: Columns) -> Columns:
        """Transform the objects; hiding them is left to the network."""
        own = {name: drawn[name] for name in (HIDE, NOISE)}
        others = {name: column for name, column in drawn.items() if name not in own}
        return super().augment(columns, others) | own

    def loss(self, network: MaskedNetwork, columns: Columns) -> tuple[Tensor, None]:
        """Smooth-L1 distance to the measured momenta, in units of the scale."""
        return network(self.seen(columns), columns[HIDE], columns[NOISE]).losses, None

    def metrics(self, batches: Iterable[Evaluated[MaskedNetwork]]) -> dict[str, float]:
        """Mean loss and RMS distances from the measured momenta, always with the same hidden objects.

        ``hidden_lepton``, ``hidden_jet`` and ``hidden_met`` in GeV; ``denoised`` is the RMS distance of the
        other objects over that before the network, below 1 if it has learnt to clean them.
        """
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        total = torch.zeros(2, dtype=torch.float64)
        sums = torch.zeros((5, 2), dtype=torch.float64)
        for network, columns, _, weight in batches:
            random = {k: v.to(weight.device) for k, v in self._random(len(weight), generator).items()}
            found = network(self.seen(columns), random[HIDE], random[NOISE])
            total += torch.stack([weight * found.losses, weight], 1).double().sum(0).cpu()
            places = found.hidden.new_zeros((3, found.hidden.shape[1]))
            jets = network.encoder.jets
            places[0, :FIRST_JET], places[1, jets], places[2, jets.stop] = True, True, True
            before = (found.seen - found.measured).square().sum(-1)
            chosen = [*((found.hidden & kind, found.squared_error) for kind in places)]
            chosen += [(found.noisy, found.squared_error), (found.noisy, before)]
            for i, (mask, squared) in enumerate(chosen):
                each = weight[:, None] * mask
                sums[i] += torch.stack([(each * squared).double().sum(), each.double().sum()]).cpu()
        if not total[1] > 0:
            return {}
        rms = (sums[:, 0] / sums[:, 1]).sqrt().tolist()
        names = ("hidden_lepton", "hidden_jet", "hidden_met")
        metrics = {"loss": float(total[0] / total[1])} | dict(zip(names, rms[:3], strict=True))
        return metrics | {"denoised": rms[3] / rms[4] if rms[4] > 0 else float("nan")}

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Loss, RMS of the hidden objects in GeV, and what the cleaning leaves of the noise."""
        return (
            f"loss {metrics['loss']:.4f}, RMS of hidden leptons {metrics['hidden_lepton']:.1f} GeV, jets "
            f"{metrics['hidden_jet']:.1f} GeV, MET {metrics['hidden_met']:.1f} GeV, noise left "
            f"{metrics['denoised']:.3f}"
        )
