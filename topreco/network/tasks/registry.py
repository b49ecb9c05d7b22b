"""Kinds of model that a model file can hold."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from topreco.config import (
    EncoderConfig,
    MaskedConfig,
    ModelConfig,
    NextTokenConfig,
    PosteriorConfig,
    RatioConfig,
)
from topreco.network.tasks import masked, next_tokens, posterior, ratio, tops
from topreco.network.tasks.masked import MaskedNetwork
from topreco.network.tasks.next_tokens import NextTokenNetwork
from topreco.network.tasks.posterior import PosteriorNetwork
from topreco.network.tasks.ratio import RatioNetwork
from topreco.network.tasks.tops import TopNetwork


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


MODELS: dict[str, ModelKind] = {
    TopNetwork.kind: ModelKind(ModelConfig, TopNetwork, tops.task_schema),
    PosteriorNetwork.kind: ModelKind(PosteriorConfig, PosteriorNetwork, posterior.task_schema),
    RatioNetwork.kind: ModelKind(RatioConfig, RatioNetwork, ratio.task_schema),
    MaskedNetwork.kind: ModelKind(MaskedConfig, MaskedNetwork, masked.task_schema),
    NextTokenNetwork.kind: ModelKind(NextTokenConfig, NextTokenNetwork, next_tokens.task_schema),
}
"""By name of the task."""
