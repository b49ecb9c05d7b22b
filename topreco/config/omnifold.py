"""Configuration of unfolding without bins."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from topreco.config.base import Config, Positive, PositiveInt
from topreco.config.model import RatioConfig
from topreco.config.running import Edges
from topreco.config.training import SecondTrainingConfig
from topreco.core.errors import nearest
from topreco.core.observables import OBSERVABLES


class ObjectRatioConfig(SecondTrainingConfig):
    """Networks of the task `ratio` that learn the ratios of step 1 from reconstructed objects."""

    epochs: PositiveInt = 5
    learning_rate: Positive = 2e-3
    model: RatioConfig = RatioConfig()
    """Tokens, backbone and size. They see `inputs: objects`, and of `members` one; no calibration."""
    threads: PositiveInt | None = 1
    """Torch threads; null leaves torch's choice."""

    @model_validator(mode="after")
    def _objects(self) -> Self:
        if self.model.inputs != "objects" or self.model.members != 1:
            raise ValueError(
                f"model: inputs {self.model.inputs!r} and members {self.model.members} found; step 1 compares"
                " with data, so inputs 'objects' expected, and one member"
            )
        return self


class OmniFoldConfig(Config):
    """`topreco omnifold`: data, simulation, and the spectra to unfold."""

    data: tuple[Path, ...] = ()
    """Skims of data or pseudo-data."""
    simulation: tuple[Path, ...] = ()
    """Skims of simulated signal, with truth. Its weights need no normalisation, several samples one relative
    to each other."""
    generated: tuple[Path, ...] = ()
    """All generated events of each of them in the same order, from `topreco skim --generated`; empty: unfold
    the spectra of selected events, and divide by the efficiency that the skims have stored."""
    background: tuple[Path, ...] = ()
    """Skims of simulated background, with weights that scale it to the luminosity of the data."""
    method: str = "dilepton"
    """Model file or name of the method that gives the measured observables."""
    observables: Annotated[tuple[str, ...], Field(min_length=1)] = ("m_tt", "pt_top", "y_top", "c_hel")
    """Observables that the networks see, measured ones and generated ones."""
    spectra: dict[str, Edges] = {
        "m_tt": (300, 380, 450, 550, 700, 1000, 2000),
        "pt_top": (0, 60, 120, 180, 250, 400, 800),
        "c_hel": (-1, -0.6, -0.2, 0.2, 0.6, 1),
    }
    """Edges of the spectra to write, of any observables; others follow from the weights at any time."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of them for spectra in two dimensions."""
    iterations: PositiveInt | None = None
    """Number of iterations; null: until `tolerance` or `max_iterations`."""
    max_iterations: PositiveInt = 8
    tolerance: Positive = 0.1
    """Change of every spectrum in an iteration, as χ² per bin, below which there is no further one."""
    replicas: Annotated[int, Field(ge=0)] = 20
    """Bootstrap replicas of data and simulation, of as many iterations, for errors and covariances."""
    folds: Annotated[int, Field(ge=3)] = 5
    """Parts of the simulation; each is weighted by a network that was trained with the others. With k of them
    a difference between parts is k/(k − 1)² of that of the last iteration, so that two would not converge."""
    objects: ObjectRatioConfig | None = None
    """Networks that see reconstructed objects in step 1; null: those of step 2, which see `observables`.
    Many times slower, and worse with few events, see docs/UNFOLDING.md."""
    hidden: PositiveInt = 32
    """Width of the two hidden layers of the networks."""
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 500
    learning_rate: Positive = 5e-3
    seed: Annotated[int, Field(ge=0)] = 1
    output: Path = Path("results/omnifold")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for key, names in (("observables", self.observables), ("spectra", tuple(self.spectra))):
            for name in names:
                if name not in OBSERVABLES:
                    raise ValueError(f"{key}: unknown observable {name!r}{nearest(name, OBSERVABLES)}")
        for name in {name for pair in self.pairs for name in pair}:
            if name not in self.spectra:
                raise ValueError(f"pairs: {name!r} has no edges in spectra")
        if self.generated and len(self.generated) != len(self.simulation):
            raise ValueError(
                f"generated: {len(self.generated)} files found, as many as of simulation "
                f"({len(self.simulation)}) expected"
            )
        return self
