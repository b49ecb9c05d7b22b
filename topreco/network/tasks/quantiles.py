"""Task `quantiles`, the uncertainty of each event: quantiles of true observables around the predicted ones.

A small network sees the event once more, with the predicted four-momenta of t and t̄ in its readout tokens,
and gives for every observable x the quantiles of

    u = T(x_true) − T(x_pred)

with a monotone T that makes u of one size everywhere: a logarithm for masses and energies, asinh(x / 50 GeV)
for momenta, nothing for rapidities and cosines. Since T is monotone, T⁻¹(T(x_pred) + u_q) is the quantile of
x_true itself. It is trained by the pinball loss [1]_, whose minimum is the conditional quantile, and
recalibrated on events that it has not seen, in the spirit of conformalised quantile regression [2]_.

References
----------
.. [1] R. Koenker, G. Bassett, Regression quantiles, Econometrica 46 (1978) 33.
.. [2] Y. Romano, E. Patterson, E. Candès, Conformalized quantile regression, NeurIPS 2019, arXiv:1905.03222.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from topreco.config import ModelConfig, QuantilesConfig
from topreco.core import fourvector
from topreco.core.events import QUANTILE_LEVELS, DileptonEvents, Truth
from topreco.core.observables import OBSERVABLES
from topreco.network.encoder import Encoder, Queries
from topreco.network.readout import queries_of, read_legs
from topreco.network.task import Columns, Evaluated, Task
from topreco.network.tasks.augmentation import augment
from topreco.network.tasks.calibration import (
    HIGH,
    LOW,
    CalibratedQuantiles,
    Calibration,
    rising_quantiles,
)
from topreco.network.tasks.columns import top_columns
from topreco.network.tasks.losses import loss_weights
from topreco.network.tasks.scales import LOGARITHMIC, MOMENTUM, SCALES
from topreco.network.tokens import Inputs

_SMALLEST = 1e-3


# Of each top: energy, momentum along and across its predicted transverse direction, and along the beam. In
# these axes an uncertainty does not depend on the direction.
_COMPONENTS = (LOGARITHMIC, *[MOMENTUM] * 3)


class Spread(NamedTuple):
    """Uncertainty of each event.

    Attributes
    ----------
    quantiles
        Quantiles of the observables at `QUANTILE_LEVELS`, rising, in GeV where the observable has a unit,
        shape (n, observables, levels).
    p4_std
        Half the width of the 68 % interval of each component (E, px, py, pz) of t and t̄ in GeV,
        shape (n, 2, 4).
    """

    quantiles: Float[Tensor, "n observables levels"]
    p4_std: Float[Tensor, "n 2 4"]


class QuantileNetwork(CalibratedQuantiles):
    """Quantiles of the truth around predicted tops.

    Parameters
    ----------
    config
        Configuration of the model, with `quantiles`.

    Attributes
    ----------
    encoder
        The part that does not depend on the task; its readout tokens have the predicted momenta.
    observables
        Names of the observables, in the order of the output.
    value_mean, value_std
        Standardisation of the transformed predictions, shape (K,), K = observables and 2 × 4 components.
    unit
        Typical size of u, shape (K,).
    """

    value_mean: Tensor
    value_std: Tensor
    unit: Tensor

    def __init__(self, config: ModelConfig) -> None:
        own = config.quantiles or QuantilesConfig()
        super().__init__(own.calibration_bins)
        seen = {"backbone": own.backbone, "spurions": own.spurions or config.spurions}
        self.encoder = Encoder(
            config.encoder.model_copy(update=seen),
            vectors=2,
            scalars=2 * (own.hidden // 2),
            queries=queries_of("query_tokens"),
        )
        self.observables: tuple[str, ...] = own.observables
        self._scales = [*(SCALES[name] for name in own.observables), *_COMPONENTS, *_COMPONENTS]
        k = len(self._scales)
        self.layers = nn.Sequential(
            nn.Linear(2 * (own.hidden // 2) + k, own.hidden),
            nn.SiLU(),
            nn.Linear(own.hidden, own.hidden),
            nn.SiLU(),
            nn.Linear(own.hidden, k * len(QUANTILE_LEVELS)),
        )
        self.register_buffer("value_mean", torch.zeros(k))
        self.register_buffer("value_std", torch.ones(k))
        self.register_buffer("unit", torch.ones(k))
        self.set_calibration(Calibration.none(k, own.calibration_bins))

    def spread(self, inputs: Inputs, p4: Float[Tensor, "n 2 4"]) -> Spread:
        """Calibrated quantiles and the uncertainty of the four-momenta.

        Parameters
        ----------
        inputs
            Reconstructed objects.
        p4
            Predicted four-momenta (E, px, py, pz) of t and t̄ in GeV, shape (n, 2, 4).
        """
        predicted = self.values(inputs, p4, p4)
        u = self.calibrated(self(inputs, p4), p4)
        limits = torch.stack(
            [scale.back(predicted[:, i, None] + u[:, i]) for i, scale in enumerate(self._scales)], 1
        )
        n_observables = len(self.observables)
        half = 0.5 * (limits[:, n_observables:, HIGH] - limits[:, n_observables:, LOW]).reshape(-1, 2, 4)
        cos, sin = _transverse(p4)
        along, across = half[..., 1], half[..., 2]
        p4_std = torch.stack(
            [
                half[..., 0],
                torch.sqrt((cos * along) ** 2 + (sin * across) ** 2),
                torch.sqrt((sin * along) ** 2 + (cos * across) ** 2),
                half[..., 3],
            ],
            -1,
        )
        return Spread(limits[:, :n_observables], p4_std)

    def values(
        self, inputs: Inputs, p4: Float[Tensor, "n 2 4"], axes: Float[Tensor, "n 2 4"]
    ) -> Float[Tensor, "n K"]:
        """T of the observables and of the components of some tops, shape (n, K).

        Parameters
        ----------
        inputs
            Reconstructed objects, whose leptons enter spin observables.
        p4
            Four-momenta of t and t̄ in GeV, shape (n, 2, 4).
        axes
            Predicted tops, whose transverse directions are the axes of the components, shape (n, 2, 4).
        """
        leptons = torch.stack([inputs.lepton_plus, inputs.lepton_minus], 1)
        system = p4.sum(1)
        # An observable computes in the kind of array that it gets.
        compute: list[Any] = [OBSERVABLES[name].compute for name in self.observables]
        columns: list[Tensor] = [each(p4, system, leptons) for each in compute]
        cos, sin = _transverse(axes)
        energy, px, py, pz = p4.unbind(-1)
        components = torch.stack([energy, cos * px + sin * py, cos * py - sin * px, pz], -1).flatten(1)
        columns += components.unbind(-1)
        return torch.stack([s.forward(x) for s, x in zip(self._scales, columns, strict=True)], 1)

    def forward(self, inputs: Inputs, p4: Float[Tensor, "n 2 4"]) -> Float[Tensor, "n K levels"]:
        """Quantiles of u as trained, before the calibration, shape (n, K, levels)."""
        tokens = self.encoder.tokens(inputs)
        encoded = self.encoder(tokens, self.encoder.scale(tokens), queries=Queries(p4))
        # Under autocast a backbone may compute in half precision.
        scalars = read_legs(encoded, "query_tokens").scalars.to(tokens.p4)
        values = (self.values(inputs, p4, p4) - self.value_mean) / self.value_std
        # Unusual events must not drive the layers into overflow.
        features = torch.cat([scalars.flatten(1), values.clamp(-10, 10)], 1)
        out = self.layers(features).unflatten(1, (len(self._scales), len(QUANTILE_LEVELS)))
        u: Tensor = self.unit[:, None] * rising_quantiles(out)
        return u

    @torch.no_grad()
    def fit_scales(self, inputs: Inputs, p4: Tensor, truth: Float[Tensor, "n K"]) -> None:
        """Set the standardisation of features, predictions and residuals from training events.

        Parameters
        ----------
        inputs, p4
            Training events and predicted tops.
        truth
            T of the true values, NaN where unknown, shape (n, K).
        """
        self.encoder.fit_standardisation(inputs)
        predicted = self.values(inputs, p4, p4).double()
        residual = truth.double() - predicted
        self.value_mean.copy_(predicted.mean(0))
        self.value_std.copy_(_positive(predicted.std(0, correction=0)))
        spread = [residual[:, k][residual[:, k].isfinite()].abs().sum() for k in range(residual.shape[1])]
        known = residual.isfinite().sum(0).clamp(min=1)
        self.unit.copy_(_positive(torch.stack(spread) / known))


def pinball_loss(
    quantiles: Float[Tensor, "n K levels"], truth: Float[Tensor, "n K"], unit: Float[Tensor, "K"]
) -> Float[Tensor, "n K"]:
    """Pinball loss max(τ d, (τ − 1) d) of d = (truth − quantile)/unit, summed over levels τ, shape (n, K).

    Unknown truth (NaN) counts nothing.

    Parameters
    ----------
    quantiles
        Quantiles at `QUANTILE_LEVELS`, shape (n, K, levels).
    truth
        True values, shape (n, K).
    unit
        Unit of each target, shape (K,).
    """
    level = quantiles.new_tensor(QUANTILE_LEVELS)
    known = truth.isfinite()
    distance = (torch.where(known, truth, 0.0)[..., None] - quantiles) / unit[:, None]
    loss = torch.maximum(level * distance, (level - 1) * distance).sum(-1)
    return loss * known


class QuantilesTask(Task[QuantileNetwork]):
    """Quantiles of the truth around the predictions of trained networks, which stay as they are.

    Parameters
    ----------
    model
        Configuration of the model, with `quantiles`.
    tops
        Trained network of the four-momenta of each fold.
    negative_weights
        What a negative event weight counts in the loss, see `loss_weights`.
    charge_exchange
        Exchange the charges of half of the training events.
    """

    name = "quantiles"

    def __init__(
        self,
        model: ModelConfig,
        tops: Sequence[nn.Module],
        *,
        negative_weights: Literal["absolute", "clip"] = "absolute",
        charge_exchange: bool = False,
    ) -> None:
        self.model = model
        self.tops = tops
        self.negative_weights = negative_weights
        self.charge_exchange = charge_exchange

    def columns(self, events: DileptonEvents, truth: Truth | None) -> Columns:
        """Reconstructed objects and true tops, see `top_columns`."""
        return top_columns(events, truth, self.model.tokens)

    def build(self) -> QuantileNetwork:
        """Untrained network."""
        return QuantileNetwork(self.model)

    def derive(self, fold: int, columns: Columns) -> Columns:
        """Predicted four-momenta ``p4`` in GeV, shape (n, 2, 4); also exchanged if configured."""
        inputs = Inputs.from_columns(columns)
        derived = {"p4": self.tops[fold](inputs)}
        if self.charge_exchange:
            derived["p4_exchanged"] = self.tops[fold](inputs.charge_exchanged())
        return derived

    def prepare(self, network: QuantileNetwork, sample: Columns) -> None:
        """Set standardisation and units."""
        inputs, p4 = Inputs.from_columns(sample), sample["p4"]
        network.fit_scales(inputs, p4, _targets(network, inputs, sample))

    def loss_weights(self, weight: Tensor, columns: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Weights without their sign, shape (n,)."""
        return loss_weights(weight, self.negative_weights)

    def draw(self, n: int, generator: torch.Generator) -> Columns:
        """Events whose charges are exchanged."""
        return {"exchange": torch.rand(n, generator=generator) < 0.5} if self.charge_exchange else {}

    def augment(self, columns: Columns, drawn: Columns) -> Columns:
        """Exchange ℓ⁺ and ℓ⁻, b candidates, and t and t̄."""
        if "exchange" not in drawn:
            return columns
        inputs, tops = augment(Inputs.from_columns(columns), columns["tops"], exchange=drawn["exchange"])
        p4 = torch.where(drawn["exchange"][:, None, None], columns["p4_exchanged"], columns["p4"])
        return columns | inputs.columns() | {"tops": tops, "p4": p4}

    def loss(self, network: QuantileNetwork, columns: Columns) -> tuple[Tensor, Tensor | None]:
        """Pinball loss, averaged over the targets."""
        inputs, p4 = Inputs.from_columns(columns), columns["p4"]
        u = network(inputs, p4)
        residual = _targets(network, inputs, columns) - network.values(inputs, p4, p4)
        return pinball_loss(u, residual, network.unit).mean(1), None

    def metrics(self, batches: Iterable[Evaluated[QuantileNetwork]]) -> dict[str, float]:
        """Mean loss, and coverage and pinball loss of each observable, with signed weights.

        For an observable x, ``x_coverage68`` and ``x_coverage95`` are the fractions of the truth within the
        intervals, and ``x_pinball`` the mean pinball loss in the unit of training.
        """
        names: tuple[str, ...] = ()
        sums: list[Tensor] = []
        for network, columns, weight, loss_weight in batches:
            names = network.observables
            inputs, p4 = Inputs.from_columns(columns), columns["p4"]
            u = network(inputs, p4)
            residual = _targets(network, inputs, columns) - network.values(inputs, p4, p4)
            loss = pinball_loss(u, residual, network.unit)
            limits = network.calibrated(u, p4)
            above = residual[..., None] > limits
            inside = torch.stack([above[..., i] & ~above[..., -1 - i] for i in (1, 0)], -1)
            pinball = pinball_loss(limits, residual, network.unit)
            signed, positive = weight.double(), loss_weight.double()
            sums.append(
                torch.cat(
                    [
                        torch.stack([(positive * loss.mean(1)).sum(), positive.sum(), signed.sum()]),
                        (signed[:, None, None] * inside).sum(0).flatten(),
                        (signed[:, None] * pinball).sum(0),
                    ]
                )
            )
        if not sums:
            return {}
        total = torch.stack(sums).sum(0).cpu().numpy()
        k = (len(total) - 3) // 3
        coverage, pinballs = total[3 : 3 + 2 * k].reshape(k, 2) / total[2], total[3 + 2 * k :] / total[2]
        metrics = {"loss": float(total[0] / total[1])}
        for i, name in enumerate(names):
            metrics |= {
                f"{name}_coverage68": float(coverage[i, 0]),
                f"{name}_coverage95": float(coverage[i, 1]),
                f"{name}_pinball": float(pinballs[i]),
            }
        return metrics

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Loss and coverage of the first observable."""
        first = self.model.quantiles.observables[0] if self.model.quantiles else ""
        return (
            f"pinball loss {metrics['loss']:.4f}, {first} in the 68 % interval "
            f"{100 * metrics[f'{first}_coverage68']:.1f} %"
        )

    def finish(
        self,
        networks: Sequence[QuantileNetwork],
        validation: Callable[[int], Iterable[Evaluated[QuantileNetwork]]],
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


def by_observable(metrics: Mapping[str, float], observables: Sequence[str]) -> dict[str, dict[str, float]]:
    """Coverage and pinball loss of each observable, from the metrics of the task; empty without metrics."""
    names = ("coverage68", "coverage95", "pinball")
    return {
        observable: {name: metrics[f"{observable}_{name}"] for name in names}
        for observable in (observables if metrics else ())
    }


def calibrate(network: QuantileNetwork, batches: Iterable[Evaluated[QuantileNetwork]], what: str) -> int:
    """Correct a network's quantiles on events that it was not trained on.

    Parameters
    ----------
    network
        Network with trained quantiles.
    batches
        The events, evaluated.
    what
        Beginning of an error's message.

    Returns
    -------
    n_events
        Number of events.

    Raises
    ------
    TrainingError
        If they are too few, see `check_events`.
    """

    def found() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for _, columns, _, weight in batches:
            inputs, p4 = Inputs.from_columns(columns), columns["p4"]
            residual = _targets(network, inputs, columns) - network.values(inputs, p4, p4)
            yield network(inputs, p4), residual, weight, p4

    return network.calibrate(found(), what)


def _targets(network: QuantileNetwork, inputs: Inputs, columns: Columns) -> Float[Tensor, "n K"]:
    """T of the true observables and components, NaN where unknown, shape (n, K)."""
    values = network.values(inputs, columns["tops"], columns["p4"])
    if "c_hel" in network.observables:
        # With the true leptons.
        values[:, network.observables.index("c_hel")] = columns["c_hel"]
    return values


def _transverse(p4: Float[Tensor, "n 2 4"]) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
    """Cosine and sine of the azimuth, shape (n, 2) each."""
    pt = fourvector.pt(p4).clamp(min=_SMALLEST)
    return p4[..., 1] / pt, p4[..., 2] / pt


def _positive(x: Tensor) -> Tensor:
    # Toy data may not vary at all; any finite divisor does.
    return torch.where(x > _SMALLEST, x, torch.ones_like(x))
