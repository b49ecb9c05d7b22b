"""Configuration of studies: trainings that differ in a few keys."""

import copy
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from topreco.config.base import (
    Config,
    PositiveInt,
    assign,
    build_config,
    find_config,
    load_config,
    merged,
    read_yaml,
    with_sections,
)
from topreco.config.training import TrainConfig
from topreco.core.errors import nearest
from topreco.core.observables import observable_names


class StudyConfig(Config):
    """`topreco study`: trainings that differ in a few keys, with several seeds each, and their comparison."""

    base: str = "tops.yaml"
    """Configuration of `topreco train` that all start from: a file, or the name of a shipped one."""
    train: dict[str, Any] = {}
    """Changes of all trainings to `base`, nested as there: `train.data.files=[...]`, `train.epochs=5`."""
    points: dict[str, tuple[str, ...]] = {}
    """Changes of each point of the study by its name: overrides as for `topreco train`."""
    grid: dict[str, tuple[str | int | float | bool | None, ...]] = {}
    """Points that are all combinations of values of keys, named KEY=VALUE; multiplied by `points`, if any."""
    perfect: dict[str, tuple[Literal["none", "pairing", "b_energies", "jets", "leptons", "met"], ...]] = {}
    """Parts of the measurement that a point replaces by the truth in training and test events, by name; see
    `topreco.studies.perfect`."""
    only: tuple[str, ...] = ()
    """Names of the points to train; empty for all."""
    reference: str
    """Name of the point that the others are compared with."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (1, 2, 3)
    test_skims: tuple[Path, ...] = ()
    """Skims with truth on which all networks are compared, none of them trained on."""
    observables: tuple[str, ...] = ("m_tt", "pt_top", "c_hel")
    """Names of observables, or of groups of them."""
    scaling: Literal["events", "parameters"] | None = None
    """Also show the metrics against the number of training events or of parameters, with power laws."""
    workers: PositiveInt | None = None
    """Trainings at a time; null: one per GPU, or per core without any."""
    size: Literal["small", "full"] = "small"
    """`full` applies the overrides of the key `full`, before those of the command line."""
    full: tuple[str, ...] = ()
    """Overrides of this configuration for the size `full`."""
    output: Path = Path("results/study")

    @field_validator("points")
    @classmethod
    def _folder_names(cls, points: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name in points:
            if not re.fullmatch(r"[A-Za-z0-9][\w.+=,-]*", name):
                raise ValueError(
                    f"a name is a folder's too: letters, digits and _ . + = , - expected, found {name!r}"
                )
        return points

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError("one or more seeds expected, each once")
        return seeds

    @field_validator("observables")
    @classmethod
    def _observables_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("one or more observables expected")
        return observable_names(names)

    @model_validator(mode="after")
    def _points_exist(self) -> Self:
        for override in (*self.grid, *itertools.chain(*self.points.values())):
            key = override.partition("=")[0]
            if key in ("seed", "output"):
                raise ValueError(f"points, grid: {key!r} is not a point's to change; see the key 'seeds'")
        names = self.all_points
        if not names:
            raise ValueError("points, grid: at least one point expected")
        chosen_by_key = {"reference": (self.reference,), "only": self.only, "perfect": tuple(self.perfect)}
        for key, chosen in chosen_by_key.items():
            for name in chosen:
                if name not in names:
                    raise ValueError(
                        f"{key}: no point {name!r}; there are {', '.join(names)}{nearest(name, names)}"
                    )
        if self.only and self.reference not in self.only:
            raise ValueError(f"only: the reference {self.reference!r} is not among {', '.join(self.only)}")
        return self

    @property
    def all_points(self) -> dict[str, tuple[str, ...]]:
        """Overrides of every point by its name, those of `grid` after those of `points`."""
        tails = [key.rpartition(".")[2] for key in self.grid]
        short = {
            key: key if tails.count(tail) > 1 else tail for key, tail in zip(self.grid, tails, strict=True)
        }
        found: dict[str, tuple[str, ...]] = {}
        for name, overrides in (self.points or {"": ()}).items():
            for values in itertools.product(*self.grid.values()):
                pairs = [
                    (
                        key,
                        "null"
                        if value is None
                        else str(value).lower()
                        if isinstance(value, bool)
                        else str(value),
                    )
                    for key, value in zip(self.grid, values, strict=True)
                ]
                whole = ",".join(filter(None, [name, *(f"{short[key]}={value}" for key, value in pairs)]))
                if whole:
                    found[whole] = (*overrides, *(f"{key}={value}" for key, value in pairs))
        return found

    @property
    def chosen_points(self) -> dict[str, tuple[str, ...]]:
        """Overrides of the points to train by name."""
        return {name: point for name, point in self.all_points.items() if not self.only or name in self.only}

    def training(self, point: str, seed: int) -> TrainConfig:
        """The training of a point with a seed, in its folder ``<output>/<point>/seed<seed>``.

        Raises
        ------
        ConfigError
            If there is none: an override does not fit, or the configuration it makes is impossible.
        """
        # A copy, since overrides are assigned in place.
        short_forms = TrainConfig.short_forms
        parts = read_yaml(find_config(self.base)), self.train
        content = copy.deepcopy(merged(*(with_sections(part, short_forms) for part in parts)))
        assign(content, self.all_points[point], short_forms)
        found = build_config(TrainConfig, content, f"point {point!r} of {self.base}")
        return found.model_copy(update={"seed": seed, "output": self.output / point / f"seed{seed}"})


def load_study(source: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read the configuration of a study; of size ``full`` if it says so.

    Parameters
    ----------
    source
        YAML file or bare name of a shipped configuration.
    overrides
        Dotted assignments, as for `load_config`.

    Raises
    ------
    ConfigError
        As `load_config`.
    """
    config = load_config(StudyConfig, source, overrides)
    return load_config(StudyConfig, source, [*config.full, *overrides]) if config.size == "full" else config
