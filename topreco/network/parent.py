"""Start a training from a trained model, its parent: configuration, weights and standardisations.

What is loaded is found by name. Where the child has scalar features that the parent has not, the weights of
the new ones begin with zero and the others are those of the parent, so that the first answer is the parent's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from topreco.config import EncoderConfig, InitConfig, RatioTrainConfig, TrainConfig, build_config
from topreco.config.base import merged
from topreco.core.errors import nearest
from topreco.core.folders import ABSENT, differences
from topreco.core.lineage import trained_datasets
from topreco.core.prior import METADATA_KEY
from topreco.core.shipped import shipped_models
from topreco.network.encoder import Encoder
from topreco.network.fit.start import Start
from topreco.network.model_file import ModelFileError, TrainedModel, load_model
from topreco.network.task import TrainingError
from topreco.network.tasks.ratio import RatioNetwork
from topreco.network.tasks.registry import MODELS
from topreco.network.tokens import encoder_features

# What may differ from the parent: dropout and numbers of steps have no weights, quantiles are trained apart,
# and features are compared by name.
_FREE = ("backbone.dropout", "tokens.features", "m_top", "steps", "calibration_bins", "quantiles")
AnyTraining = TypeVar("AnyTraining", TrainConfig, RatioTrainConfig)
"""Class of a training's configuration."""

_FRACTIONS = ("validation_fraction", "test_fraction", "folds")


@dataclass(frozen=True, eq=False)
class Parent:
    """A trained model with which a training starts.

    Attributes
    ----------
    path
        The model file.
    name
        Name of the shipped model or of the file.
    options
        What is loaded, and how it learns.
    model
        Networks and metadata.
    """

    path: Path
    name: str
    options: InitConfig
    model: TrainedModel

    @property
    def sha256(self) -> str:
        """Digest of the model."""
        return str(self.model.metadata["sha256"])

    def whole(self, task: str) -> bool:
        """Whether more than the encoder is loaded into networks of a task."""
        return self.options.scope == "all" and task == self.model.kind

    def adopted(self, config: AnyTraining) -> AnyTraining:
        """The configuration with the model that follows from the parent.

        Parameters
        ----------
        config
            Configuration of the training; of its model, what was set is kept.

        Raises
        ------
        TrainingError
            If what was set contradicts the parent, or the number of networks is another one.
        ConfigError
            If the values that were set are impossible together with those of the parent.
        """
        own = config.model.model_dump(mode="json", exclude_unset=True)
        theirs = self.model.config.model_dump(mode="json")
        parents_class = MODELS[self.model.kind].config
        foreign = own.keys() - parents_class.model_fields.keys()
        given = "task" in own or foreign or isinstance(config, RatioTrainConfig)
        task = config.model.task if given else self.model.kind
        if not self.whole(task):
            theirs = {name: theirs[name] for name in EncoderConfig.model_fields}
        compared = own if self.whole(task) else {k: v for k, v in own.items() if k in theirs}
        if contradictions := _contradictions(compared, theirs):
            hint = "; init.scope=encoder takes the encoder alone" if self.whole(task) else ""
            raise TrainingError(f"init.model {self.name}: {'; '.join(contradictions)}{hint}")
        model = build_config(MODELS[task].config, merged(theirs, own) | {"task": task}, "init: model")
        features = encoder_features(model.encoder)
        if lost := [name for name in encoder_features(self.model.config.encoder) if name not in features]:
            raise TrainingError(
                f"init.model {self.name}: model.tokens of the parent gives the feature {lost[0]!r}, "
                f"model.tokens here gives {', '.join(features)}; features may be added, not removed"
            )
        count = len(self.model.networks)
        if count not in (1, config.data.folds):
            raise TrainingError(
                f"init.model {self.name}: {count} networks in the parent, data.folds is {config.data.folds} "
                f"here; {count} expected, or a parent of one network"
            )
        return config.model_copy(update={"model": model})

    def start(self, task: str, part: str | None = None) -> Start:
        """What the training loop needs to begin with the parent.

        Parameters
        ----------
        task
            Task of the model that is trained.
        part
            Attribute of the parent's networks that is loaded in place of them.
        """

        def load(fold: int, network: nn.Module) -> frozenset[str]:
            networks = self.model.networks
            source: Any = networks[fold if len(networks) > 1 else 0]
            source = source if part is None else getattr(source, part)
            # A network of a ratio is one of several members.
            source = source.members[0] if isinstance(source, RatioNetwork) else source
            encoder: Any = getattr(network, "encoder", None)
            if isinstance(encoder, Encoder):
                # Of a task that was not made from the adopted configuration.
                configs = (each.config.model_dump(mode="json") for each in (encoder, source.encoder))
                if contradictions := _contradictions(*configs):
                    raise TrainingError(f"init.model {self.name}: {'; '.join(contradictions)}")
            elif part is None:
                raise TrainingError(f"init.model {self.name}: task {task!r} has no encoder to load")
            return load_weights(network, source, whole=self.whole(task))

        return Start(
            self.name,
            load,
            self.options.rate,
            self.options.frozen_epochs,
            self.options.weight_decay_toward_parent,
        )

    def starts_quantiles(self, config: Any) -> bool:
        """Whether the quantiles of a model of the tops begin with those of the parent."""
        if not self.whole(config.task) or self.model.config.quantiles is None or config.quantiles is None:
            return False
        here, there = (
            each.quantiles.model_dump(exclude={"calibration_bins": True, "backbone": {"dropout"}})
            for each in (config, self.model.config)
        )
        return bool(here == there)

    def described(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Description of the parent for the model file of its child.

        Parameters
        ----------
        data
            Summary of the child's training data.

        Returns
        -------
        described
            ``name``, ``sha256``, ``task`` and ``scope``; ``same_datasets``, whether both were trained on
            events of one dataset; fractions of its splits, ``data`` and ``parent`` as in its own file,
            without the spectra of its events, which are no prior of the child.
        """
        metadata = self.model.metadata
        summary = {key: value for key, value in metadata.get("data", {}).items() if key != METADATA_KEY}
        trained = metadata.get("training", {}).get("data", {})
        return {
            "name": self.name,
            "sha256": self.sha256,
            "task": self.model.kind,
            "scope": self.options.scope,
            "same_datasets": self._shares(data),
            "training": {"data": {name: trained[name] for name in _FRACTIONS if name in trained}},
            "data": summary,
            "parent": metadata.get("parent"),
        }

    def _shares(self, data: Mapping[str, Any]) -> bool:
        """Whether the parent or one of its own was trained on a dataset of a summary."""
        return not trained_datasets(self.model.metadata).isdisjoint(data.get("dataset_ids", ()))

    def warning(self, config: TrainConfig | RatioTrainConfig, data: Mapping[str, Any]) -> str | None:
        """Warning that the parent may have been trained on what the child is validated and tested with."""
        trained = self.model.metadata.get("training", {}).get("data", {})
        if not self._shares(data):
            return None
        own = dict(config.data)
        common = [name for name in _FRACTIONS if name in own]
        there, here = ({name: each.get(name) for name in common} for each in (trained, own))
        changes = [f"data.{key} is {a} there, {b} here" for key, (a, b) in differences(there, here).items()]
        if not changes:
            return None
        return (
            f"init.model {self.name}: trained on events of the same dataset, split in another way "
            f"({'; '.join(changes)}); if they are the same events, it has seen some that validate or test "
            "here"
        )


def find_parent(config: TrainConfig | RatioTrainConfig) -> Parent | None:
    """The model with which a training starts, None if it starts with random weights.

    Raises
    ------
    ModelFileError
        If there is no such model, or its file cannot be used.
    """
    if config.init is None:
        return None
    name = config.init.model
    shipped = shipped_models()
    path = shipped.get(name) or Path(name)
    if name not in shipped and not path.is_file():
        raise ModelFileError(
            f"init.model {name}: no such file, and no shipped model of that name; "
            f"shipped: {', '.join(shipped)}{nearest(name, shipped)}"
        )
    return Parent(path, Path(name).name, config.init, load_model(path))


def with_parent(config: TrainConfig) -> TrainConfig:
    """The configuration with the model that follows from its parent, if it has one.

    Raises
    ------
    TopRecoError
        As `find_parent` and `Parent.adopted`.
    """
    parent = find_parent(config)
    return config if parent is None else parent.adopted(config)


@torch.no_grad()
def load_weights(network: nn.Module, source: nn.Module, *, whole: bool) -> frozenset[str]:
    """Copy what fits from one network to another, weights and buffers alike.

    Weights of features that the other network does not have become zero; their standardisations stay.

    Parameters
    ----------
    network
        Network that is changed.
    source
        Network of the same task; or of another one, whose encoder is of the same configuration but for
        features.
    whole
        Copy all that fits, not the encoder alone.

    Returns
    -------
    names
        Of the parameters that were copied.
    """
    own, other = network.state_dict(), source.state_dict()
    encoders = {
        f"{name}.": (module, source.get_submodule(name))
        for name, module in network.named_modules()
        if isinstance(module, Encoder) and name in dict(source.named_modules())
    }
    parameters = dict(network.named_parameters())
    copied = set()
    for name in own.keys() & other.keys():
        if not (whole or name.startswith("encoder.")):
            continue
        prefix = next((prefix for prefix in encoders if name.startswith(prefix)), None)
        tensor: Tensor | None = other[name]
        if prefix is not None and own[name].shape != other[name].shape:
            tensor = _extended(own[name], other[name], *encoders[prefix], is_weight=name in parameters)
        if tensor is not None and tensor.shape == own[name].shape:
            own[name].copy_(tensor)
            copied.add(name)
    return frozenset(copied & parameters.keys())


def _extended(own: Tensor, other: Tensor, encoder: Any, source: Any, *, is_weight: bool) -> Tensor | None:
    """A tensor of another encoder with places for the features of this one, None if it is not about them.

    Scalars are the last inputs of a layer: first the features, then those of readout tokens.
    """
    features, known = encoder_features(encoder.config), encoder_features(source.config)
    further = encoder.query_scalars if is_weight else 0
    before = other.shape[-1] - len(known) - further
    n_new = len(features) - len(known)
    if before < 0 or own.shape != (*other.shape[:-1], other.shape[-1] + n_new):
        return None
    after = before + len(features)
    places = [
        *range(before),
        *(before + features.index(name) for name in known),
        *range(after, after + further),
    ]
    extended = torch.zeros_like(own) if is_weight else own.clone()
    extended[..., places] = other
    return extended


def _contradictions(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """What is set here and differs from the parent's model."""
    return [
        f"model.{key} is {theirs} in the parent, {own} here"
        for key, (own, theirs) in differences(here, there).items()
        if own != ABSENT and not _free(key)
    ]


def _free(key: str) -> bool:
    """Whether a key of the model may differ from the parent's."""
    return any(key == free or key.startswith(f"{free}.") for free in _FREE)
