"""Kinds of model that a model file can hold."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from topreco.config import EncoderConfig, ModelConfig
from topreco.network.tasks.tops import TopNetwork, task_schema


class ModelKind(NamedTuple):
    """Configuration, networks and outputs of a task.

    Attributes
    ----------
    config
        Class of the configuration: that of the encoder with the keys of the task.
    network
        Builds an untrained network of a configuration, with the attributes ``kind``, ``config``, ``encoder``.
    schema
        Outputs of a configuration's model as plain JSON data.
    """

    config: type[EncoderConfig]
    network: Callable[[Any], nn.Module]
    schema: Callable[[Any], dict[str, Any]]


MODELS: dict[str, ModelKind] = {TopNetwork.kind: ModelKind(ModelConfig, TopNetwork, task_schema)}
"""By name of the task."""
