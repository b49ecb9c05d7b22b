"""A short campaign of `scripts/faults/fuzz.py`, and configurations that hypothesis makes up."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import SCRIPTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from topreco.config import (
    ConfigError,
    PepperWriteConfig,
    RunConfig,
    SimulationConfig,
    SkimConfig,
    TrainConfig,
    load_config,
    read_yaml,
)

KINDS = (PepperWriteConfig, RunConfig, SimulationConfig, SkimConfig, TrainConfig)
