"""Configuration of the comparison of data with simulation by a classifier."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from topreco.config.base import Config, Positive, PositiveInt


class DiagnoseConfig(Config):
    """`topreco diagnose`: data and simulation of a control region."""

    data: tuple[Path, ...] = ()
    """Skims of data or pseudo-data."""
    simulation: tuple[Path, ...] = ()
    """Skims of all that is simulated, with weights that are right relative to each other."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Parts of the events; each is judged by a network that was trained with the others."""
    replicas: Annotated[int, Field(ge=10)] = 200
    """Bootstrap replicas for the errors of the AUC."""
    hidden: PositiveInt = 32
    """Width of the two hidden layers of the network."""
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 500
    learning_rate: Positive = 5e-3
    seed: Annotated[int, Field(ge=0)] = 1
    output: Path = Path("results/diagnose")
