"""Task `posterior`: the distribution of the tops that an event may have come from.

An encoder looks at the event once, in the axes that the event defines (`topreco.network.tasks.frame`). From
what its two readout tokens give follow

- samples of on-shell tops, by conditional flow matching (`topreco.network.tasks.velocity`) on six
  coordinates,
- the means of the three-momenta of t and t̄ and of every observable over that distribution, trained by the
  squared error, and their quantiles, trained by the pinball loss: what histograms need, without samples.

The coordinates are asinh(p / 50 GeV), standardised, of the three-momenta of t and t̄ in the event's axes; the
energies follow from the mass of the top. The means of the momenta are learnt as sum and difference of them
less what leptons, b candidates and, for the sum, MET give: about the neutrinos.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from topreco.config import LossConfig, PosteriorConfig
from topreco.core import fourvector
from topreco.core.events import QUANTILE_LEVELS, DileptonEvents, Truth
from topreco.core.observables import OBSERVABLES, observable_values
from topreco.core.statistics import fraction, metric_values
from topreco.network.encoder import Encoded, Encoder, Queries
from topreco.network.readout import QUERY_TYPES
from topreco.network.task import Columns, Evaluated, Task
from topreco.network.tasks.augmentation import Augmentation
from topreco.network.tasks.calibration import (
    HIGH,
    LOW,
    CalibratedQuantiles,
    Calibration,
    rising_quantiles,
)
from topreco.network.tasks.columns import top_columns
from topreco.network.tasks.frame import in_own_axes, own_axes, turned
from topreco.network.tasks.losses import loss_weights
from topreco.network.tasks.quantiles import pinball_loss
from topreco.network.tasks.scales import (
    LOGARITHMIC,
    MOMENTUM,
    SCALES,
    from_momentum_scale,
    logarithm,
    to_momentum_scale,
)
from topreco.network.tasks.velocity import TimeFeatures, Velocity, VelocityHead, integrate
from topreco.network.tokens import Inputs, Tokens

SCHEMA_VERSION = 1

DIMENSIONS = 6
"""Coordinates of a pair of tops."""

# Fixed by the method (on-shell tops), or measured without the tops.
SUMMARISED = tuple(name for name in OBSERVABLES if name not in {"m_top", "m_antitop", "delta_phi_ll"})
"""Observables with means and quantiles."""

# They follow the direction of the beam axis.
_ALONG_BEAM = frozenset({"y_tt", "y_top", "y_antitop", "cos_theta_star"})
# The axis n is a vector product: one cosine to it changes sign in a mirror, a product of two does not.
_AXIAL = frozenset(
    name for name in SUMMARISED if name.startswith("cos_") and name.replace("cos_", "").count("n") == 1
)

_COMPONENTS = (LOGARITHMIC, *[MOMENTUM] * 3)
_LEADING_JETS = 3
_VALIDATION_SEED = 20_111
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
    """An event in its own axes, as the heads see it.

    Attributes
    ----------
    inputs
        Objects in the event's axes.
    axes
        Those axes, shape (n, 3, 3).
    context
        Features, shape (n, c).
    origin
        Momenta that are subtracted from sum and difference of the tops in GeV, shape (n, 2, 3).
    """

    inputs: Inputs
    axes: Tensor
    context: Tensor
    origin: Tensor


class _Raw(NamedTuple):
    """What the heads of means and quantiles give, in the event's axes.

    Attributes
    ----------
    coordinates
        Mean three-momenta as sum and difference less the origin, in units of their spread, shape (n, 6).
    p4
        The tops of those momenta in GeV, detached, shape (n, 2, 4).
    reference
        Observables of those tops, shape (n, observables), and T of them and of the components, shape (n, K).
    means
        Means less the reference in units of their spread, shape (n, observables).
    u
        Quantiles of T(truth) − T(reference), as trained, shape (n, K, levels).
    """

    coordinates: Tensor
    p4: Tensor
    reference: tuple[Tensor, Tensor]
    means: Tensor
    u: Tensor


class Errors(NamedTuple):
    """Errors of a network on events with truth, in the axes of the events.

    Attributes
    ----------
    velocity
        Mean squared error of the velocity, shape (n,).
    momenta
        Squared errors of the mean three-momenta, standardised, shape (n, 6).
    means
        Truth less mean of the observables, standardised, NaN where unknown, shape (n, observables).
    residual
        T(truth) − T(reference), NaN where unknown, shape (n, K).
    u
        Quantiles of it as trained, shape (n, K, levels).
    p4
        The mean tops in GeV, shape (n, 2, 4).
    """

    velocity: Tensor
    momenta: Tensor
    means: Tensor
    residual: Tensor
    u: Tensor
    p4: Tensor


class PosteriorNetwork(CalibratedQuantiles):
    """A network from reconstructed objects to the distribution of the four-momenta of top and antitop.

    Parameters
    ----------
    config
        Configuration of the model.

    Attributes
    ----------
    encoder
        The part that does not depend on the task.
    coordinate_mean, coordinate_std
        Standardisation of the coordinates, shape (6,).
    momentum_std
        Spread of sum and difference of the tops' momenta about their origin in GeV, shape (6,).
    value_mean, value_std
        Standardisation of T of the observables and components of the mean tops, shape (K,), K = observables
        and 2 × 4 components.
    mean_unit, unit
        Typical size of an observable less the one of the mean tops, shape (observables,), and of u, shape
        (K,).
    feature_mean, feature_std
        Standardisation of the objects in the context, shape (f,).
    """

    kind = "posterior"

    coordinate_mean: Tensor
    coordinate_std: Tensor
    momentum_std: Tensor
    value_mean: Tensor
    value_std: Tensor
    mean_unit: Tensor
    unit: Tensor
    feature_mean: Tensor
    feature_std: Tensor
    _relative: Tensor
    _along: Tensor
    _axial: Tensor

    def __init__(self, config: PosteriorConfig) -> None:
        super().__init__(config.calibration_bins)
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
        self._scales = [*(SCALES[name] for name in SUMMARISED), *_COMPONENTS, *_COMPONENTS]
        k, hidden, n_observables = len(self._scales), config.hidden, len(SUMMARISED)
        self.momenta = nn.Sequential(
            nn.Linear(context, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, DIMENSIONS),
        )
        self.layers = nn.Sequential(
            nn.Linear(context + k, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
        )
        self.means = nn.Linear(hidden + k, n_observables)
        self.quantiles = nn.Linear(hidden + k, k * len(QUANTILE_LEVELS))
        for name, size in {
            "coordinate": DIMENSIONS,
            "value": k,
            "feature": n_objects,
        }.items():
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        # These follow from the observables and need not be saved. Means of `relative` ones are of logarithms.
        for name, of_observable in {
            "_relative": [OBSERVABLES[each].relative for each in SUMMARISED],
            "_along": [each in _ALONG_BEAM for each in SUMMARISED],
            "_axial": [each in _AXIAL for each in SUMMARISED],
        }.items():
            self.register_buffer(name, torch.tensor(of_observable), persistent=False)
        self.register_buffer("momentum_std", torch.ones(DIMENSIONS))
        self.register_buffer("mean_unit", torch.ones(n_observables))
        self.register_buffer("unit", torch.ones(k))
        self.set_calibration(Calibration.none(k, config.calibration_bins))

    # ---- outputs ----

    def predictions(self, inputs: Inputs) -> Summaries:
        """Means and calibrated quantiles."""
        return self.summaries(self.event(inputs))

    def summaries(self, event: Event) -> Summaries:
        """Means and calibrated quantiles of an event that was encoded."""
        raw = self._raw(event)
        back = event.axes.mT
        p4 = turned(raw.p4, back)
        values, transformed = raw.reference
        means = values + self.mean_unit * raw.means
        means = torch.where(self._relative, means.exp(), means)
        means = torch.stack(
            [
                x if s.low is None else x.clamp(s.low, s.high)
                for s, x in zip(self._scales, means.unbind(1), strict=False)
            ],
            1,
        )
        u = self.calibrated(raw.u, raw.p4)
        limits = torch.stack(
            [scale.back(transformed[:, i, None] + u[:, i]) for i, scale in enumerate(self._scales)], 1
        )
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
        x = integrate(self._velocity(event), noise, self.config.steps)
        return turned(self.tops(x), event.axes.mT)

    def forward(
        self,
        inputs: Inputs,
        tops: Float[Tensor, "n 2 4"],
        noise: Float[Tensor, "n k 6"],
        time: Float[Tensor, "n k 1"],
    ) -> Errors:
        """What the losses are made of, see `errors`."""
        return self.errors(self.event(inputs), tops, noise, time)

    # ---- parts ----

    def errors(self, event: Event, tops: Tensor, noise: Tensor, time: Tensor) -> Errors:
        """Errors of velocity, means and quantiles of an event that was encoded.

        Parameters
        ----------
        event
            The events.
        tops
            True four-momenta of t and t̄ in GeV, shape (n, 2, 4).
        noise, time
            Starting points of k paths, shape (n, k, 6), and the times at which they are looked at, (n, k, 1).
        """
        truth = fourvector.from_three_momentum(turned(tops, event.axes)[..., 1:], self.config.m_top)
        end = self.coordinates(truth[:, None])
        velocity = self._velocity(event)((1 - time) * noise + time * end, time)
        raw = self._raw(event)
        momenta = _sum_and_difference(truth, event.origin).flatten(1) / self.momentum_std
        values, transformed = self.values(event.inputs, truth)
        return Errors(
            (velocity - (end - noise)).square().mean((1, 2)),
            (momenta - raw.coordinates).square(),
            (values - raw.reference[0]) / self.mean_unit - raw.means,
            transformed - raw.reference[1],
            raw.u,
            raw.p4,
        )

    def event(self, inputs: Inputs) -> Event:
        """An event in its own axes, with the features that the heads take in."""
        axes = own_axes(inputs)
        inputs = in_own_axes(inputs, axes)
        tokens = self.encoder.tokens(inputs)
        encoded = self.encoder(tokens, self.encoder.scale(tokens))
        objects = (self._objects(inputs) - self.feature_mean) / self.feature_std
        context = torch.cat([_read(encoded).to(objects), objects], 1)
        return Event(inputs, axes, context, _origin(inputs))

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
        return self.velocity.of(event.context)

    def _raw(self, event: Event) -> _Raw:
        """Outputs of the heads of means and quantiles."""
        coordinates = self.momenta(event.context)
        momenta = (coordinates * self.momentum_std).unflatten(-1, (2, 3))
        p4 = fourvector.from_three_momentum(_top_momenta(momenta, event.origin), self.config.m_top).detach()
        reference = self.values(event.inputs, p4)
        # Unusual events must not drive the layers into overflow.
        seen = ((reference[1] - self.value_mean) / self.value_std).clamp(-10, 10)
        hidden = torch.cat([self.layers(torch.cat([event.context, seen], 1)), seen], 1)
        out = self.quantiles(hidden).unflatten(1, (len(self._scales), len(QUANTILE_LEVELS)))
        u = self.unit[:, None] * rising_quantiles(out)
        return _Raw(coordinates, p4, reference, self.means(hidden), u)

    def values(self, inputs: Inputs, p4: Float[Tensor, "n 2 4"]) -> tuple[Tensor, Tensor]:
        """Observables of some tops, in the coordinate of their means, and T of them and of components.

        Shapes (n, observables) and (n, K); means are those of logarithms where residuals are relative, see
        `topreco.core.posterior.observable_mean`.
        """
        leptons = torch.stack([inputs.lepton_plus, inputs.lepton_minus], 1)
        found = observable_values(SUMMARISED, p4, p4.sum(1), leptons)
        values = torch.stack([found[name] for name in SUMMARISED], 1)
        columns = [*values.unbind(1), *p4.flatten(1).unbind(1)]
        values = torch.where(self._relative, logarithm(values), values)
        transformed = torch.stack([s.forward(x) for s, x in zip(self._scales, columns, strict=True)], 1)
        return values, transformed

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
        """Set the standardisation of features, coordinates and observables from training events.

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
        truth = fourvector.from_three_momentum(turned(tops, axes)[..., 1:], self.config.m_top)
        self._standardise("coordinate", to_momentum_scale(truth[..., 1:].flatten(1)))
        residual = _sum_and_difference(truth, _origin(own)).flatten(1)
        self.momentum_std.copy_(_positive(residual.double().square().mean(0).sqrt()))
        # A top exactly along the beam has no axes r and n: zero is as good as any for a spread.
        values, transformed = (torch.nan_to_num(x) for x in self.values(own, truth))
        self._standardise("value", transformed)
        # The observables of the mean tops are about as far from the truth as those of an average event.
        self.mean_unit.copy_(_positive(values.double().std(0, correction=0)))
        self.unit.copy_(_positive(0.5 * transformed.double().std(0, correction=0)))

    def _standardise(self, name: str, values: Tensor) -> None:
        getattr(self, f"{name}_mean").copy_(values.double().mean(0))
        getattr(self, f"{name}_std").copy_(_positive(values.double().std(0, correction=0)))


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
            features = [_read(encoded).to(x), event.context.repeat_interleave(k, 0), x.flatten(0, 1), time]
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


def _sum_and_difference(tops: Tensor, origin: Tensor) -> Tensor:
    """Sum and difference of the momenta of t and t̄ less their origin, shape (..., 2, 3)."""
    top, antitop = tops[..., 1:].unbind(-2)
    return torch.stack([top + antitop, top - antitop], -2) - origin


def _top_momenta(q: Tensor, origin: Tensor) -> Tensor:
    """Inverse of `_sum_and_difference`: three-momenta of t and t̄, shape (..., 2, 3)."""
    total, difference = (q + origin).unbind(-2)
    return 0.5 * torch.stack([total + difference, total - difference], -2)


def _positive(x: Tensor) -> Tensor:
    # Toy data may not vary at all; any finite divisor does.
    return torch.where(x > 1e-6, x, torch.ones_like(x))


def task_schema(config: PosteriorConfig) -> dict[str, Any]:
    """Outputs of a model of this configuration, as plain JSON data that is stored with trained weights."""
    return {
        "version": SCHEMA_VERSION,
        "output": ["top", "antitop"],
        "m_top": config.m_top,
        "observables": list(SUMMARISED),
        "samples": {"dimensions": DIMENSIONS},
    }


class PosteriorTask(Task[PosteriorNetwork]):
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

    def loss_weights(self, weight: Tensor, columns: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Weights without their sign, shape (n,): with negative ones a loss has no bound below."""
        return loss_weights(weight, self.options.negative_weights)

    def draw(self, n: int, generator: torch.Generator) -> Columns:
        """Random symmetry transformations."""
        return self.augmentation.draw(n, generator)

    def augment(self, columns: Columns, drawn: Columns) -> Columns:
        """Transform the objects and the tops alike."""
        return self.augmentation.apply(columns, drawn)

    def loss(self, network: PosteriorNetwork, columns: Columns) -> tuple[Tensor, Tensor | None]:
        """Squared error of the velocity, and the losses of means and quantiles."""
        tops = columns["tops"]
        errors: Errors = network(Inputs.from_columns(columns), tops, *self._paths(tops, None))
        return self._losses(errors, network)[0], None

    def _paths(self, tops: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Starting points of the paths of each event, and the times at which they are looked at."""
        n, draws = len(tops), self.options.draws
        noise = torch.randn((n, draws, DIMENSIONS), generator=generator).to(tops)
        # One time in each of as many intervals: less scatter than independent times.
        time = (torch.arange(draws)[:, None] + torch.rand((n, draws, 1), generator=generator)) / draws
        return noise, time.to(tops)

    def _losses(self, errors: Errors, network: PosteriorNetwork) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Total loss of each event, and its parts: velocity, means, quantiles, shape (n,) each."""
        known = errors.means.isfinite()
        squares = torch.where(known, errors.means, 0.0).square().mean(1) + errors.momenta.mean(1)
        pinball = pinball_loss(errors.u, errors.residual, network.unit).mean(1)
        return (
            errors.velocity + self.options.summaries * (squares + pinball),
            errors.velocity,
            squares,
            pinball,
        )

    def metrics(self, batches: Iterable[Evaluated[PosteriorNetwork]]) -> dict[str, float]:
        """Mean losses; ρ and bias of the means and coverage of the quantiles of some observables."""
        losses: list[Tensor] = []
        columns: list[tuple[Tensor, ...]] = []
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        for network, batch, weight, loss_weight in batches:
            inputs, tops = Inputs.from_columns(batch), batch["tops"]
            event = network.event(inputs)
            found = self._losses(network.errors(event, tops, *self._paths(tops, generator)), network)
            losses.append(torch.stack([*(loss_weight * x for x in found), loss_weight], 1).double().sum(0))
            predicted = network.summaries(event)
            leptons = torch.stack([inputs.lepton_plus, inputs.lepton_minus], 1)
            found_truth = observable_values(SUMMARISED, tops, tops.sum(1), leptons)
            truth = torch.stack(list(found_truth.values()), 1)
            columns.append(
                tuple(x.double().cpu() for x in (predicted.means, predicted.quantiles, truth, weight))
            )
        if not losses:
            return {}
        sums = torch.stack(losses).sum(0)
        total, velocity, squares, pinball = (sums[:-1] / sums[-1]).tolist()
        metrics = {"loss": total, "velocity_loss": velocity, "mean_loss": squares, "quantile_loss": pinball}
        means, quantiles, truths, weights = (torch.cat(parts).numpy() for parts in zip(*columns, strict=True))
        for name in ("m_tt", "pt_top", "pt_tt", "c_hel", "c_han", "cos_1k", "cos_1n_2n"):
            i = SUMMARISED.index(name)
            values = metric_values(means[:, i], truths[:, i], weights, relative=OBSERVABLES[name].relative)
            inside = (truths[:, i] > quantiles[:, i, LOW]) & (truths[:, i] < quantiles[:, i, HIGH])
            metrics |= {
                f"{name}_correlation": values.correlation,
                f"{name}_bias": values.rb,
                f"{name}_coverage68": fraction(inside, weights)[0],
            }
        return metrics

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Losses and the correlations of a few observables."""
        found = ", ".join(
            f"{name} {metrics[f'{name}_correlation']:.3f}"
            for name in ("m_tt", "pt_top", "pt_tt", "c_hel", "c_han")
        )
        return f"loss {metrics['loss']:.4f} (velocity {metrics['velocity_loss']:.4f}), correlation {found}"

    def finish(
        self,
        networks: Sequence[PosteriorNetwork],
        validation: Callable[[int], Iterable[Evaluated[PosteriorNetwork]]],
    ) -> dict[str, Any]:
        """Calibrate the quantiles on the validation events.

        Raises
        ------
        TrainingError
            If there are too few.
        """
        for fold, network in enumerate(networks):
            calibrate(network, validation(fold), "data.validation_fraction")
        return {}


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
            tops = columns["tops"]
            none = tops.new_zeros((len(tops), 1, DIMENSIONS))
            errors: Errors = network(Inputs.from_columns(columns), tops, none, none[..., :1])
            yield errors.u, errors.residual, weight, errors.p4

    return network.calibrate(found(), what)
