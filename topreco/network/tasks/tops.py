"""Task `tops`: from reconstructed objects to the four-momenta of top and antitop.

Objects in GeV go in and top momenta in GeV come out. Token building, normalisation, spurions, backbone,
readout and head are all inside, so that a trained network can be saved, exported and called as a whole.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from topreco.config import LossConfig, ModelConfig
from topreco.core import fourvector
from topreco.core.events import DileptonEvents, FloatArray, Truth
from topreco.core.observables import m_tt
from topreco.core.statistics import fraction, metric_values
from topreco.network.encoder import Encoder
from topreco.network.fit.rows import slices
from topreco.network.readout import queries_of, read_legs
from topreco.network.task import Columns, Evaluated, TrainingError
from topreco.network.tasks.augmentation import Augmentation, AugmentedTask
from topreco.network.tasks.columns import top_columns
from topreco.network.tasks.heads import Head, soft_assignment
from topreco.network.tasks.losses import event_loss, flattening_weights, m_tt_bias_loss
from topreco.network.tasks.quantiles import QuantileNetwork
from topreco.network.tokens import FIRST_JET, Inputs, Tokens

SCHEMA_VERSION = 1


class TopNetwork(nn.Module):
    """A network from reconstructed objects to the four-momenta of top and antitop.

    Parameters
    ----------
    config
        Configuration of the model.

    Attributes
    ----------
    encoder
        The part that does not depend on the task.
    quantiles
        Network of the uncertainties, None without `config.quantiles`.
    """

    kind = "tops"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.head = Head(config.head, config.m_top)
        self.encoder = Encoder(
            config.encoder,
            vectors=2,
            scalars=2 * (self.head.scalars + self.head.jet_scalars),
            queries=queries_of(config.readout),
        )
        # Last, so that the tops start from the same random numbers with and without.
        self.quantiles = None if config.quantiles is None else QuantileNetwork(config)

    def forward(self, inputs: Inputs) -> Float[Tensor, "n 2 4"]:
        """Four-momenta (E, px, py, pz) in GeV of top and antitop, shape (n, 2, 4).

        They are timelike with E > 0 whatever the input.
        """
        tokens = self.encoder.tokens(inputs)
        return self.forward_tokens(tokens, self.encoder.scale(tokens))

    def predictions(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """All predictions: the four-momenta and, with quantiles, the fields of `Spread`."""
        p4 = self(inputs)
        return (p4,) if self.quantiles is None else (p4, *self.quantiles.spread(inputs, p4))

    def forward_tokens(
        self, tokens: Tokens, scale: Float[Tensor, "n"], spurions: Float[Tensor, "k 16"] | None = None
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
        encoded = self.encoder(tokens, scale, spurions=spurions)
        legs = read_legs(encoded, self.config.readout)
        decay = None
        if self.head.jet_scalars:
            jets = encoded.scalars[:, self.encoder.jets].unflatten(-1, (2, -1))
            # The leptons stand in the order of their tops.
            bottoms = soft_assignment(
                jets[..., self.head.scalars].transpose(1, 2).to(tokens.p4),
                tokens.p4[:, self.encoder.jets],
                tokens.mask[:, self.encoder.jets],
            )
            decay = tokens.p4[:, :FIRST_JET] + bottoms
        # Under autocast a backbone may compute in half precision, in which momenta would lose their mass.
        return self.head(
            legs.vectors.to(tokens.p4),
            legs.scalars[..., : self.head.scalars].to(tokens.p4),
            self.encoder.visible(tokens),
            scale,
            decay,
        )


def task_schema(config: ModelConfig) -> dict[str, Any]:
    """Outputs of a model of this configuration, as plain JSON data that is stored with trained weights."""
    quantiles = None if config.quantiles is None else list(config.quantiles.observables)
    return {
        "version": SCHEMA_VERSION,
        "output": ["top", "antitop"],
        "readout": config.readout,
        "head": config.head,
        "quantiles": quantiles,
    }


class TopsTask(AugmentedTask[TopNetwork]):
    """Regression of the four-momenta of t and t̄.

    Parameters
    ----------
    model
        Configuration of the network; `quantiles` is another task's.
    loss
        Losses and weights.
    augmentation
        Random symmetry transformations of the training events.
    """

    name = TopNetwork.kind

    def __init__(self, model: ModelConfig, loss: LossConfig, augmentation: Augmentation) -> None:
        self.model = model.model_copy(update={"quantiles": None})
        self.options = loss
        self.augmentation = augmentation

    def columns(self, events: DileptonEvents, truth: Truth | None) -> Columns:
        """Reconstructed objects and true tops, see `top_columns`."""
        return top_columns(events, truth, self.model.tokens)

    def build(self) -> TopNetwork:
        """Untrained network."""
        return TopNetwork(self.model)

    def prepare(self, network: TopNetwork, sample: Columns) -> None:
        """Standardise the features."""
        if self.options.c_hel > 0 and not sample["c_hel"].isfinite().any():
            raise TrainingError(
                f"loss.c_hel: {self.options.c_hel} found, but no event of data.files has both true leptons; "
                "loss.c_hel=0 trains without them"
            )
        network.encoder.fit_standardisation(Inputs.from_columns(sample))

    def loss_weights(self, weight: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """Weights without their sign, flattened in true m_tt if so configured, shape (n,)."""
        weights = super().loss_weights(weight, columns)
        if self.options.flat_m_tt > 0:
            tops = columns["tops"]
            masses = torch.cat([fourvector.mass(tops[part].sum(1)) for part in slices(len(tops))])
            weights = weights * flattening_weights(masses, self.options.flat_m_tt)
        return weights

    def loss(self, network: TopNetwork, columns: Columns) -> tuple[Tensor, Tensor | None]:
        """Loss of each event, and the loss on RB of m_tt in the batch."""
        inputs, tops = Inputs.from_columns(columns), columns["tops"]
        pred = network(inputs).float()
        per_event = self._event_loss(network, pred, columns)
        if not self.options.m_tt_bias:
            return per_event, None
        return per_event, self.options.m_tt_bias * m_tt_bias_loss(pred, tops)

    def _event_loss(self, network: TopNetwork, pred: Tensor, columns: Columns) -> Tensor:
        inputs = Inputs.from_columns(columns)
        scale = network.encoder.scale(network.encoder.tokens(inputs))
        leptons = torch.stack([inputs.lepton_plus, inputs.lepton_minus], 1)
        return event_loss(pred, columns["tops"], scale, self.options, leptons, columns["c_hel"])

    def metrics(self, batches: Iterable[Evaluated[TopNetwork]]) -> dict[str, float]:
        """Weighted mean loss and `pair_metrics`."""
        preds, tops, losses, loss_weight, weight = [], [], [], [], []
        for batch in batches:
            pred = batch.network(Inputs.from_columns(batch.columns))
            losses.append(self._event_loss(batch.network, pred, batch.columns))
            preds.append(pred)
            tops.append(batch.columns["tops"])
            loss_weight.append(batch.loss_weight)
            weight.append(batch.weight)
        if not preds:
            return {}
        pred, truth = torch.cat(preds), torch.cat(tops)
        own = torch.cat(loss_weight).to(pred.device).double()
        mean_loss = float((own * torch.cat(losses).double()).sum() / own.sum())
        if self.options.m_tt_bias > 0:
            mean_loss += self.options.m_tt_bias * float(m_tt_bias_loss(pred.double(), truth.double()))
        arrays = (x.double().cpu().numpy() for x in (pred, truth, torch.cat(weight)))
        return {"loss": mean_loss} | pair_metrics(*arrays)

    def describe(self, metrics: Mapping[str, float]) -> str:
        """Loss and the metrics of m_tt and pT(t)."""
        return (
            f"loss {metrics['loss']:.4f}, m_tt bias {metrics['m_tt_bias']:+.3f}, "
            f"resolution {metrics['m_tt_resolution']:.3f}, correlation {metrics['m_tt_correlation']:.3f}, "
            f"pT(t) RMS {metrics['pt_top_rms']:.1f} GeV"
        )


def pair_metrics(pred: FloatArray, truth: FloatArray, weight: FloatArray) -> dict[str, float]:
    """Metrics of predicted top-quark pairs, with signed weights.

    Parameters
    ----------
    pred, truth
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    weight
        Signed event weights, shape (n,).

    Returns
    -------
    metrics
        ``m_tt_bias`` and ``m_tt_resolution``: mean of (p − t)/t of the mass of the pair, and its standard
        deviation; ``m_tt_correlation`` and ``m_tt_slope``: correlation of ln p and ln t, and their
        covariance over the variance of ln t, 1 without shrinkage; ``pt_top_rms`` (GeV) and ``y_top_rms``:
        RMS of p − t, of t and t̄ alike; ``efficiency``: fraction of finite predictions, to which the others
        are confined. NaN where undefined.
    """
    finite = np.asarray(np.isfinite(pred).all(axis=(1, 2)))
    pred = np.where(finite[:, None, None], pred, np.nan)
    mass = metric_values(m_tt(pred), m_tt(truth), weight, relative=True)
    metrics = {f"m_tt_{name}": getattr(mass, field) for name, field in _MASS_METRICS.items()}
    for name, of in {"pt_top_rms": fourvector.pt, "y_top_rms": fourvector.rapidity}.items():
        metrics[name] = metric_values(of(pred), of(truth), weight, relative=False).rms
    return metrics | {"efficiency": fraction(finite, weight)[0]}


_MASS_METRICS = {"bias": "rb", "resolution": "res", "correlation": "correlation", "slope": "slope"}
