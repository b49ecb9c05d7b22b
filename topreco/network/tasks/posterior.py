"""Task `posterior`: the distribution of the tops that an event may have come from.

An encoder looks at the event once, in the axes that the event defines (`topreco.network.tasks.frame`). From
what its two readout tokens give follow

- samples of on-shell tops, by conditional flow matching (`topreco.network.tasks.velocity`) on six
  coordinates,
- the means of the three-momenta of t and t̄ and of every observable over that distribution, and their
  quantiles (`topreco.network.tasks.summaries`): what histograms need, without samples. They are learnt from
  samples when the flow is trained.

The coordinates are asinh(p / 50 GeV), standardised, of the three-momenta of t and t̄ in the event's axes; the
energies follow from the mass of the top.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from topreco.config import LossConfig, PosteriorConfig
from topreco.core import fourvector
from topreco.core.events import DileptonEvents, FloatArray, Posterior, Truth
from topreco.core.posterior import observable_mean, sample_values
from topreco.network.encoder import Encoded, Encoder, Queries
from topreco.network.readout import QUERY_TYPES
from topreco.network.task import Columns, Evaluated
from topreco.network.tasks.augmentation import Augmentation, AugmentedTask
from topreco.network.tasks.calibration import HIGH, LOW
from topreco.network.tasks.columns import top_columns
from topreco.network.tasks.frame import in_own_axes, own_axes, turned
from topreco.network.tasks.scales import from_momentum_scale, to_momentum_scale
from topreco.network.tasks.summaries import (
    DIMENSIONS,
    SUMMARISED,
    Features,
    Summary,
    SummaryHeads,
    describe_correlations,
    mean_metrics,
    positive,
    true_values,
)
from topreco.network.tasks.velocity import TimeFeatures, Velocity, VelocityHead, integrate
from topreco.network.tokens import Inputs, Tokens

SCHEMA_VERSION = 2

# They follow the direction of the beam axis.
_ALONG_BEAM = frozenset({"y_tt", "y_top", "y_antitop", "cos_theta_star"})
# The axis n is a vector product: one cosine to it changes sign in a mirror, a product of two does not.
_AXIAL = frozenset(
    name for name in SUMMARISED if name.startswith("cos_") and name.replace("cos_", "").count("n") == 1
)

_LEADING_JETS = 3
_VALIDATION_SEED = 20_111
_SAMPLED_EVENTS, _SAMPLES = 2000, 16
_LARGEST = 12.0
"""Largest standardised coordinate: 50 sinh(12 σ) GeV is beyond any collider for all widths σ of theirs."""


class Summaries(NamedTuple):
    """Means and quantiles over the posterior.

    Attributes
    ----------
    p4
        On-shell four-momenta (E, px, py, pz) in GeV with the mean three-momenta of t and t̄, shape (n, 2, 4).
    means
        Means of the observables `SUMMARISED`, shape (n, observables); see
        `topreco.core.posterior.observable_mean`.
    quantiles
        Their quantiles at `QUANTILE_LEVELS`, rising, shape (n, observables, levels).
    p4_std
        Half the width of the 68 % interval of each component of t and t̄ in GeV, shape (n, 2, 4).
    """

    p4: Float[Tensor, "n 2 4"]
    means: Float[Tensor, "n observables"]
    quantiles: Float[Tensor, "n observables levels"]
    p4_std: Float[Tensor, "n 2 4"]


class Event(NamedTuple):
    """An event in its own axes.

    Attributes
    ----------
    inputs
        Objects in the event's axes.
    axes
        Those axes, shape (n, 3, 3).
    features
        What the heads see.
    """

    inputs: Inputs
    axes: Tensor
    features: Features

    def take(self, index: Tensor | slice) -> "Event":
        """Some of the events."""
        return Event(
            self.inputs.take(index), self.axes[index], Features(*(each[index] for each in self.features))
        )


class PosteriorNetwork(nn.Module):
    """A network from reconstructed objects to the distribution of the four-momenta of top and antitop.

    Parameters
    ----------
    config
        Configuration of the model.

    Attributes
    ----------
    encoder
        The part that does not depend on the task.
    n_features
        Number of features of an event.
    velocity
        Velocity field of the flow.
    summary
        Heads of means and quantiles.
    coordinate_mean, coordinate_std
        Standardisation of the coordinates, shape (6,).
    feature_mean, feature_std
        Standardisation of the objects in the context, shape (f,).
    """

    kind = "posterior"

    coordinate_mean: Tensor
    coordinate_std: Tensor
    feature_mean: Tensor
    feature_std: Tensor
    _along: Tensor
    _axial: Tensor

    def __init__(self, config: PosteriorConfig) -> None:
        super().__init__()
        self.config = config
        tokens = config.velocity.kind == "tokens"
        self.encoder = Encoder(
            config.encoder, vectors=config.vectors, scalars=config.scalars, queries=QUERY_TYPES
        )
        n_objects = 3 * (2 + 2 + 2) + 2 + 4 * _LEADING_JETS
        read = len(QUERY_TYPES) * (4 * config.vectors + config.scalars)
        context = read + n_objects
        self.velocity: VelocityHead | VelocityTokens = (
            VelocityTokens(config, context) if tokens else VelocityHead(config.velocity, context, DIMENSIONS)
        )
        self.n_features = context
        self.summary = SummaryHeads(config, context)
        for name, size in {"coordinate": DIMENSIONS, "feature": n_objects}.items():
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        # These follow from the observables and need not be saved.
        for name, of_observable in {
            "_along": [each in _ALONG_BEAM for each in SUMMARISED],
            "_axial": [each in _AXIAL for each in SUMMARISED],
        }.items():
            self.register_buffer(name, torch.tensor(of_observable), persistent=False)

    # ---- outputs ----

    def predictions(self, inputs: Inputs) -> Summaries:
        """Means and calibrated quantiles."""
        return self.summaries(self.event(inputs))

    def summaries(self, event: Event) -> Summaries:
        """Means and calibrated quantiles of an event that was encoded."""
        summary: Summary = self.summary(event.features)
        means, limits = self.summary.finished(summary)
        back = event.axes.mT
        p4 = turned(summary.p4, back)
        signs = self._signs(event)
        n_observables = len(SUMMARISED)
        half = 0.5 * (limits[:, n_observables:, HIGH] - limits[:, n_observables:, LOW]).reshape(-1, 2, 4)
        # The errors along the axes of the event, as if not correlated.
        turned_back = ((back[:, None] ** 2) * (half[..., None, 1:] ** 2)).sum(-1).sqrt()
        quantiles = limits[:, :n_observables]
        # Where an observable changes its sign with the axes, its quantiles change places.
        quantiles = torch.where(signs[..., None] < 0, -quantiles.flip(-1), quantiles)
        return Summaries(p4, means * signs, quantiles, torch.cat([half[..., :1], turned_back], -1))

    def sample(self, inputs: Inputs, noise: Float[Tensor, "n k 6"]) -> Float[Tensor, "n k 2 4"]:
        """Samples of the four-momenta (E, px, py, pz) in GeV of top and antitop, shape (n, k, 2, 4).

        Parameters
        ----------
        inputs
            Reconstructed objects.
        noise
            From a normal distribution.
        """
        return self.samples(self.event(inputs), noise)

    def samples(self, event: Event, noise: Float[Tensor, "n k 6"]) -> Float[Tensor, "n k 2 4"]:
        """Samples of an event that was encoded, see `sample`."""
        return turned(self.own_samples(event, noise), event.axes.mT)

    def forward(
        self,
        inputs: Inputs,
        tops: Float[Tensor, "n 2 4"],
        noise: Float[Tensor, "n k 6"],
        time: Float[Tensor, "n k 1"],
    ) -> Float[Tensor, "n"]:
        """Mean squared error of the velocity.

        Parameters
        ----------
        inputs
            Reconstructed objects.
        tops
            True four-momenta of t and t̄ in GeV.
        noise, time
            Starting points of k paths, and the times at which they are looked at.
        """
        event = self.event(inputs)
        end = self.coordinates(self.on_shell(turned(tops, event.axes))[:, None])
        velocity = self._velocity(event)((1 - time) * noise + time * end, time)
        return (velocity - (end - noise)).square().mean((1, 2))

    # ---- parts ----

    def own_samples(self, event: Event, noise: Float[Tensor, "n k 6"]) -> Float[Tensor, "n k 2 4"]:
        """Samples in the axes of the event."""
        return self.tops(integrate(self._velocity(event), noise, self.config.steps))

    def on_shell(self, tops: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
        """Tops of the same three-momenta with the mass of the configuration."""
        return fourvector.from_three_momentum(tops[..., 1:], self.config.m_top)

    def event(self, inputs: Inputs) -> Event:
        """An event in its own axes, with the features that the heads take in."""
        axes = own_axes(inputs)
        inputs = in_own_axes(inputs, axes)
        tokens = self.encoder.tokens(inputs)
        encoded = self.encoder(tokens, self.encoder.scale(tokens))
        objects = (self._objects(inputs) - self.feature_mean) / self.feature_std
        context = torch.cat([_read(encoded).to(objects), objects], 1)
        leptons = torch.stack([inputs.lepton_plus, inputs.lepton_minus], 1)
        return Event(inputs, axes, Features(context, leptons, _origin(inputs)))

    def coordinates(self, tops: Float[Tensor, "n k 2 4"]) -> Float[Tensor, "n k 6"]:
        """Standardised coordinates of tops in the event's axes."""
        return (to_momentum_scale(tops[..., 1:].flatten(-2)) - self.coordinate_mean) / self.coordinate_std

    def tops(self, x: Float[Tensor, "n k 6"]) -> Float[Tensor, "n k 2 4"]:
        """On-shell tops in GeV in the event's axes, from standardised coordinates."""
        p = from_momentum_scale(x.clamp(-_LARGEST, _LARGEST) * self.coordinate_std + self.coordinate_mean)
        return fourvector.from_three_momentum(p.reshape(*p.shape[:-1], 2, 3), self.config.m_top)

    def _velocity(self, event: Event) -> Velocity:
        if isinstance(self.velocity, VelocityTokens):
            return self.velocity.of(event, self.tops)
        return self.velocity.of(event.features.context)

    def _signs(self, event: Event) -> Tensor:
        """Sign with which an observable in the event's axes is that in the laboratory, (n, observables)."""
        forward = event.axes[:, 2, 2, None]
        side = torch.sign(
            event.axes[:, 0, 0] * event.axes[:, 1, 1] - event.axes[:, 0, 1] * event.axes[:, 1, 0]
        )[:, None]
        ones = torch.ones_like(forward)
        return torch.where(self._along, forward, ones) * torch.where(self._axial, side * forward, ones)

    def _objects(self, inputs: Inputs) -> Tensor:
        """The leading objects in the event's axes, shape (n, f)."""
        b = _b_candidates(inputs)
        px, py = inputs.met.unbind(-1)
        jets = inputs.jets[:, :_LEADING_JETS]
        mask = inputs.jet_mask[:, :_LEADING_JETS]
        missing = _LEADING_JETS - jets.shape[1]
        if missing > 0:
            jets, mask = functional.pad(jets, (0, 0, 0, missing)), functional.pad(mask, (0, missing))
        tag = functional.pad(inputs.jet_tagged, (0, max(missing, 0)))[:, :_LEADING_JETS] & mask
        jets = torch.where(mask[..., None], jets, 0.0)
        momenta = [
            inputs.lepton_plus[:, 1:],
            inputs.lepton_minus[:, 1:],
            b[..., 1:].flatten(1),
            _origin(inputs).flatten(1),
            torch.stack([px, py], -1),
            jets[..., 1:].flatten(1),
        ]
        return torch.cat([to_momentum_scale(torch.cat(momenta, 1)), tag.to(jets)], 1)

    # ---- preparation ----

    @torch.no_grad()
    def fit_scales(self, inputs: Inputs, tops: Float[Tensor, "n 2 4"]) -> None:
        """Set the standardisation of features and coordinates from training events.

        Parameters
        ----------
        inputs, tops
            Training events and their true tops in GeV.
        """
        axes = own_axes(inputs)
        own = in_own_axes(inputs, axes)
        self.encoder.fit_standardisation(own)
        objects = self._objects(own)
        self._standardise("feature", objects)
        self._standardise("coordinate", to_momentum_scale(turned(tops, axes)[..., 1:].flatten(1)))

    def _standardise(self, name: str, values: Tensor) -> None:
        getattr(self, f"{name}_mean").copy_(values.double().mean(0))
        getattr(self, f"{name}_std").copy_(positive(values.double().std(0, correction=0)))


class VelocityTokens(nn.Module):
    """Velocity from the equivariant network itself, with the current tops as its readout tokens [1]_.

    Parameters
    ----------
    config
        Configuration of the model.
    context
        Number of features of an event.

    References
    ----------
    .. [1] J. Brehmer et al., A Lorentz-equivariant transformer for all of the LHC, arXiv:2411.00446.
    """

    def __init__(self, config: PosteriorConfig, context: int) -> None:
        super().__init__()
        own = config.velocity
        self.time = TimeFeatures(own.frequencies)
        n_time = 1 + 2 * own.frequencies
        self.encoder = Encoder(
            config.encoder,
            vectors=config.vectors,
            scalars=config.scalars,
            queries=QUERY_TYPES,
            query_scalars=n_time,
        )
        read = len(QUERY_TYPES) * (4 * config.vectors + config.scalars)
        self.layers = nn.Sequential(
            nn.Linear(read + context + DIMENSIONS + n_time, own.hidden),
            nn.SiLU(),
            nn.Linear(own.hidden, own.hidden),
            nn.SiLU(),
            nn.Linear(own.hidden, DIMENSIONS),
        )

    def of(self, event: Event, tops: Callable[[Tensor], Tensor]) -> Velocity:
        """Velocity field of events.

        Parameters
        ----------
        event
            The events.
        tops
            From points to tops in GeV in the axes of the events.
        """
        once = self.encoder.tokens(event.inputs)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            k = x.shape[1]
            time = self.time(t).expand(*x.shape[:2], -1).flatten(0, 1)
            tokens = Tokens(*(field.repeat_interleave(k, 0) for field in once))
            queries = Queries(tops(x).flatten(0, 1), time[:, None].expand(-1, len(QUERY_TYPES), -1))
            encoded = self.encoder(tokens, self.encoder.scale(tokens), queries=queries)
            features = [
                _read(encoded).to(x),
                event.features.context.repeat_interleave(k, 0),
                x.flatten(0, 1),
                time,
            ]
            found: Tensor = self.layers(torch.cat(features, 1)).unflatten(0, x.shape[:2])
            return found

        return velocity


def _read(encoded: Encoded) -> Float[Tensor, "n c"]:
    """Scalars of the readout tokens and components of their vectors, which may be large, as asinh."""
    first = encoded.mask.shape[1]
    legs = slice(first, first + len(QUERY_TYPES))
    return torch.cat(
        [encoded.scalars[:, legs].flatten(1), torch.asinh(2 * encoded.vectors[:, legs].flatten(1))], 1
    )


def _b_candidates(inputs: Inputs) -> Float[Tensor, "n 2 4"]:
    """Four-momenta of the b candidates for ℓ⁺ and ℓ⁻, zero where there is none."""
    positions = torch.arange(inputs.jets.shape[1], device=inputs.jets.device)
    picked = (inputs.b_candidates[..., None] == positions) & inputs.jet_mask[:, None]
    jets = torch.where(inputs.jet_mask[..., None], inputs.jets, 0.0)
    return (picked[..., None] * jets[:, None]).sum(2)


def _origin(inputs: Inputs) -> Float[Tensor, "n 2 3"]:
    """Sum and difference of the tops' momenta but for the neutrinos: MET is that of both."""
    plus, minus = inputs.lepton_plus[:, 1:], inputs.lepton_minus[:, 1:]
    b, bbar = _b_candidates(inputs)[..., 1:].unbind(1)
    first, second = plus + b, minus + bbar
    return torch.stack([first + second + functional.pad(inputs.met, (0, 1)), first - second], 1)


def task_schema(config: PosteriorConfig) -> dict[str, Any]:
    """Outputs of a model of this configuration, as plain JSON data that is stored with trained weights."""
    return {
        "version": SCHEMA_VERSION,
        "output": ["top", "antitop"],
        "m_top": config.m_top,
        "observables": list(SUMMARISED),
        "samples": {"dimensions": DIMENSIONS},
    }


class PosteriorTask(AugmentedTask[PosteriorNetwork]):
    """Samples, means and quantiles of the tops that an event may have come from.

    Parameters
    ----------
    model
        Configuration of the network.
    loss
        Weights of the losses.
    augmentation
        Random symmetry transformations of the training events; rotation and reflection change nothing.
    """

    name = PosteriorNetwork.kind

    def __init__(self, model: PosteriorConfig, loss: LossConfig, augmentation: Augmentation) -> None:
        self.model = model
        self.options = loss
        self.augmentation = augmentation

    def columns(self, events: DileptonEvents, truth: Truth | None) -> Columns:
        """Reconstructed objects and true tops, see `top_columns`."""
        return top_columns(events, truth, self.model.tokens)

    def build(self) -> PosteriorNetwork:
        """Untrained network."""
        return PosteriorNetwork(self.model)

    def prepare(self, network: PosteriorNetwork, sample: Columns) -> None:
        """Set all standardisations."""
        network.fit_scales(Inputs.from_columns(sample), sample["tops"])

    def loss(self, network: PosteriorNetwork, columns: Columns) -> tuple[Tensor, Tensor | None]:
        """Squared error of the velocity."""
        tops = columns["tops"]
        return network(Inputs.from_columns(columns), tops, *self._paths(tops, None)), None

    def _paths(self, tops: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Starting points of the paths of each event, and the times at which they are looked at."""
        n, draws = len(tops), self.options.draws
        noise = torch.randn((n, draws, DIMENSIONS), generator=generator).to(tops)
        # One time in each of as many intervals: less scatter than independent times.
        time = (torch.arange(draws)[:, None] + torch.rand((n, draws, 1), generator=generator)) / draws
        return noise, time.to(tops)

    def metrics(self, batches: Iterable[Evaluated[PosteriorNetwork]]) -> dict[str, float]:
        """Mean loss; ρ and bias of the means of a few samples of the first events, see `mean_metrics`."""
        sums: list[Tensor] = []
        columns: list[tuple[FloatArray, ...]] = []
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        left = _SAMPLED_EVENTS
        for network, batch, weight, loss_weight in batches:
            inputs, tops = Inputs.from_columns(batch), batch["tops"]
            loss = network(inputs, tops, *self._paths(tops, generator))
            sums.append(torch.stack([loss_weight * loss, loss_weight], 1).double().sum(0))
            part = slice(0, left)
            left -= len(tops[part])
            if not len(tops[part]):
                continue
            event = network.event(inputs.take(part))
            noise = torch.randn((len(event.axes), _SAMPLES, DIMENSIONS), generator=generator).to(tops)
            leptons = event.features.leptons
            posterior = Posterior.equal(network.own_samples(event, noise).double().cpu().numpy())
            values = sample_values(posterior, leptons.double().cpu().numpy(), SUMMARISED)
            means = [observable_mean(name, values[name], posterior.weight) for name in SUMMARISED]
            truth = true_values(leptons, network.on_shell(turned(tops[part], event.axes)))
            columns.append(
                (np.stack(means, 1), truth.double().cpu().numpy(), weight[part].double().cpu().numpy())
            )
        if not sums:
            return {}
        total, weights = torch.stack(sums).sum(0).tolist()
        found = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        return {"loss": total / weights} | mean_metrics(*found)

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Loss and the correlations of a few observables."""
        return f"loss {metrics['loss']:.4f}, {describe_correlations(metrics)}"


def calibrate(network: PosteriorNetwork, batches: Iterable[Evaluated[Any]], what: str) -> int:
    """Correct a network's quantiles on events that it was not trained on; returns the number of events.

    Parameters
    ----------
    network
        Trained network.
    batches
        The events, evaluated.
    what
        Beginning of an error's message.

    Raises
    ------
    TrainingError
        If they are too few, see `check_events`.
    """

    def found() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for _, columns, _, weight in batches:
            event = network.event(Inputs.from_columns(columns))
            tops = network.on_shell(turned(columns["tops"], event.axes))
            yield network.summary.against_truth(event.features, tops, weight)

    return network.summary.calibrate(found(), what)
