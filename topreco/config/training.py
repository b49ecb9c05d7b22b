"""Configuration of trainings: data, losses, optimiser, devices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from topreco.config.base import (
    Config,
    Fraction,
    NonNegative,
    Positive,
    PositiveInt,
    assign,
    find_config,
    load_config,
    read_yaml,
    with_sections,
)
from topreco.config.model import AnyModelConfig, ModelConfig, RatioConfig


class LossConfig(Config):
    """Smooth-L1 loss of the scaled four-momenta plus auxiliary terms; what the loss of a posterior needs."""

    m_tt: NonNegative = 10.0
    """Coefficient of the auxiliary loss on m_tt."""
    m_tt_kind: Literal["log", "relative", "ratio"] = "ratio"
    """Smooth-L1 of ln(m/m_true) or of m/m_true − 1, or m/m_true − 1 − ln(m/m_true), whose minimum has no
    relative bias."""
    pt_top: NonNegative = 2.0
    """Coefficient of the auxiliary loss on the transverse momenta of t and t̄."""
    c_hel: NonNegative = 1.0
    """Coefficient of the auxiliary loss on the cosine between the leptons in their tops' rest frames."""
    spin_cosines: NonNegative = 0.0
    """Coefficient of the auxiliary loss on the cosines of the leptons to the axes k, r, n."""
    c_han: NonNegative = 0.0
    """Coefficient of the auxiliary loss on c_han."""
    pt_tt: NonNegative = 0.0
    """Coefficient of the auxiliary loss on the transverse momentum of t + t̄ as a vector."""
    m_tt_bias: NonNegative = 0.0
    """Coefficient of the loss on RB of m_tt at given true m_tt, which trades resolution for a
    response without shrinkage. It needs batches of some hundred events."""
    flat_m_tt: Fraction = 0.0
    """Weight training events by the density of true ln m_tt to this power, inverted: 0 leaves the spectrum
    as it is, towards 1 it becomes flat. Less shrinkage to the mean, at the price of resolution."""
    draws: PositiveInt = 8
    """Times and points on the way from noise to the true tops for each event and step, `posterior` only."""
    negative_weights: Literal["absolute", "clip"] = "absolute"
    """Weight of an event with negative weight in the loss: |w|, or 0. Metrics use signed weights."""


class OptimiserConfig(Config):
    """Optimiser, schedule and what stabilises them."""

    kind: Literal["adamw", "muon"] = "muon"
    """`muon` is Muon for the matrices between hidden layers, with steps as large as AdamW's, and AdamW for
    the rest."""
    learning_rate: Positive = 3e-3
    weight_decay: NonNegative = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Fraction = 0.05
    """Fraction of all steps in which the rate rises linearly."""
    clip_norm: Positive | None = 1.0
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.999


class FitConfig(Config):
    """Length, batches and optimiser of a training."""

    epochs: PositiveInt = 13
    batch_size: PositiveInt = 128
    """Events per step, over all devices."""
    accumulate: PositiveInt = 1
    """Parts in which a device takes its share of a batch, one after the other: as many times less memory and
    the same gradient, but for `loss.m_tt_bias`, which then sees the events of a part."""
    patience: PositiveInt | None = None
    """Stop after so many epochs without a better validation loss."""
    optimiser: OptimiserConfig = OptimiserConfig()


class SecondTrainingConfig(Config):
    """Training of what is learnt after the rest of a model, which stays as it is."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 256
    accumulate: PositiveInt = 1
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 0.01

    @property
    def fit(self) -> FitConfig:
        """All settings of the training."""
        optimiser = OptimiserConfig(
            kind="adamw",
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup=0.1,
            ema_decay=None,
        )
        return FitConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            patience=None,
            optimiser=optimiser,
        )


class QuantileTrainingConfig(SecondTrainingConfig):
    """Training of the quantiles, after that of the tops."""


class SummaryTrainingConfig(SecondTrainingConfig):
    """Training of a posterior's means and quantiles on its samples, after that of the samples."""

    samples: Annotated[int, Field(ge=2, multiple_of=2)] = 32
    """Samples of each training event, 24 bytes each; they are drawn once."""


class DataConfig(Config):
    """Training data and its split, which is a hash of each event's key and so never changes."""

    files: tuple[Path, ...] = ()
    """Skims written by `topreco skim`."""
    spectra: tuple[Path, ...] = ()
    """Skims of samples with all generated events, whose spectra of these priors of a posterior need; for a
    training whose own files have a preselection or are parts of samples of the same process."""
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.2
    """With several folds each network is tested on its fold instead."""
    folds: PositiveInt = 1
    """With k > 1, k networks, each trained without the events of its fold, which it alone reconstructs."""
    max_events: PositiveInt | None = None
    """Read at most so many events, the same share of each file, for quick trials."""
    normalise_weights: bool = True
    """Scale the weights of each dataset to a mean of 1 in absolute value: generators differ in what they call
    a weight, and the one with the largest numbers would be all that is learnt."""
    require_dileptonic: bool = True
    """Train only on events whose W bosons both gave an electron or a muon."""
    stream: Literal["auto"] | bool = "auto"
    """Keep the events in a temporary file, 0.4 kB each, and in memory what of it fits; auto does so for more
    than a million. The result is the same."""
    cache: Path | None = None
    """Folder of that file, on a fast disk; null is that of the output."""

    @model_validator(mode="after")
    def _fractions_of_a_whole(self) -> Self:
        # With several folds the test events are the fold.
        if self.folds == 1 and self.validation_fraction + self.test_fraction > 1 + 1e-9:
            raise ValueError(
                f"validation_fraction {self.validation_fraction:g} and test_fraction {self.test_fraction:g} "
                "are more than 1 together"
            )
        return self


class InitConfig(Config):
    """A trained model, the parent, with which a training starts; its name alone is the short form.

    Tokens, spurions and sizes are those of the parent, and need not be given.
    """

    model: str
    """Name of a shipped model, or a model file."""
    scope: Literal["encoder", "all"] = "all"
    """What is loaded: the encoder, or all that fits. With another task that is the encoder."""
    rate: Positive = 0.1
    """Factor on the learning rate of what is loaded."""
    frozen_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs at the beginning in which the loaded encoder stays as it is and the rest learns."""
    weight_decay_toward_parent: NonNegative | None = None
    """Weight decay of what is loaded toward the weights of the parent instead of zero; null: toward zero,
    with `optimiser.weight_decay`, like the rest."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, content: Any) -> Any:
        return {"model": content} if isinstance(content, str) else content


class TrainConfig(FitConfig):
    """`topreco train`: everything that determines a training.

    The defaults are the recipe `tops.yaml`, but for its quantiles; those of the shipped models are in
    `dilepton.yaml` and `dilepton-point.yaml`.
    """

    short_forms: ClassVar[Mapping[str, str]] = {"init": "model"}

    init: InitConfig | None = None
    """Model with which the training starts; null: random weights."""
    model: AnyModelConfig = ModelConfig()
    """What is learnt: `model.task` is `tops` or `posterior`, or `masked` or `tokens` to train an encoder
    without truth. With `init`, keys that are left out are those of the parent."""
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    quantiles: QuantileTrainingConfig = QuantileTrainingConfig()
    """Training of `model.quantiles`, if there are any."""
    summaries: SummaryTrainingConfig = SummaryTrainingConfig()
    """Training of the means and quantiles of a `posterior`."""
    augment_rotation: bool = False
    """Random rotation about the beam of each training event, for networks that do not have it built in."""
    augment_reflection: bool = False
    """Random reflection z → −z of each training event."""
    augment_charge_exchange: bool = True
    """Random exchange ℓ⁺ ↔ ℓ⁻, t ↔ t̄ of each training event, a symmetry but for the charge asymmetry."""
    seed: Annotated[int, Field(ge=0)] = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: PositiveInt = 1
    """Processes that share each batch; `torchrun`, which starts its own, overrides it."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    threads: PositiveInt | None = 1
    """Torch threads per process; null leaves torch's choice."""
    compile: bool = False
    """Compile the network with torch.compile, after a minute of compiling and with other rounding: for a GPU.
    On a CPU it needs a C++ compiler, and the kernels of `lgatr_slim` and `lgatr`, which it does not
    use, are faster."""
    output: Path = Path("results/train")
    mlflow: bool = False
    """Also log to MLflow, extra `mlflow`."""


class RatioDataConfig(Config):
    """Splits and folds of the events of A and B, by the hash of each event's key."""

    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Events that calibrate the ratio and choose the best epoch."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Networks, each trained without the events of its fold, which it alone weights."""
    max_events: PositiveInt | None = None
    """Read at most so many events of A, and as many of B, for quick trials."""
    require_dileptonic: bool = True
    """Of generated events, use only those whose W bosons both gave an electron or a muon."""


class RatioTrainConfig(FitConfig):
    """`topreco train` of the task `ratio`: log p_A(x)/p_B(x) of two samples with signed weights.

    The densities are those of the weighted samples, each scaled to a sum of weights of 1. Samples of several
    datasets need weights with the right relative normalisation.
    """

    short_forms: ClassVar[Mapping[str, str]] = {"init": "model"}

    init: InitConfig | None = None
    """Model whose encoder all networks of reconstructed objects start with; null: random weights."""
    a: tuple[Path, ...] = ()
    """Skims of sample A."""
    b: tuple[Path, ...] = ()
    """Skims of sample B, whose events the ratio weights to those of A."""
    model: RatioConfig = RatioConfig()
    data: RatioDataConfig = RatioDataConfig()
    batch_size: PositiveInt = 256
    optimiser: OptimiserConfig = OptimiserConfig(kind="adamw", learning_rate=2e-3)
    seed: Annotated[int, Field(ge=0)] = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: PositiveInt = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    threads: PositiveInt | None = 1
    compile: bool = False
    output: Path = Path("results/ratio")


def load_training(
    source: str | Path | None = None, overrides: Sequence[str] = ()
) -> TrainConfig | RatioTrainConfig:
    """Read the configuration of a training, whose `model.task` says of what.

    Parameters
    ----------
    source, overrides
        As of `load_config`.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key or value is not allowed.
    """
    content = {} if source is None else read_yaml(find_config(source))
    content = with_sections(content, TrainConfig.short_forms)
    assign(content, overrides, TrainConfig.short_forms)
    model = content.get("model")
    if isinstance(model, dict) and model.get("task") == "ratio":
        return load_config(RatioTrainConfig, source, overrides)
    return load_config(TrainConfig, source, overrides)
