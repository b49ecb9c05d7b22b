"""Configuration of templates: what becomes a process, its normalisation, and the nuisance parameters."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from topreco.config.base import Config, NonNegative, Positive
from topreco.config.running import Edges

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("data_obs", "asimov_data_obs")
_KEYWORDS = ("$CHANNEL", "$PROCESS", "$SYSTEMATIC")


def combine_name(name: str) -> str:
    """A name, if Combine takes it for a process, a nuisance or a channel.

    Raises
    ------
    ValueError
        If not.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise ValueError(
            f"{name!r} is no name that Combine takes: letters, digits and underscores, no digit first, and "
            f"not {' or '.join(_RESERVED)}"
        )
    return name


CombineName = Annotated[str, AfterValidator(combine_name)]
"""Name of a process, nuisance parameter or channel in a datacard."""


def _range(bounds: tuple[float, float]) -> tuple[float, float]:
    if not bounds[0] < 1 < bounds[1]:
        raise ValueError("lower end below 1 and upper end above it expected")
    return bounds


def _lists(edges: Any) -> Any:
    """Edges of one axis as those of the only one."""
    flat = isinstance(edges, list | tuple) and not any(isinstance(each, list | tuple) for each in edges)
    return [edges] if flat else edges


class ProcessConfig(Config):
    """A process: one dataset or several."""

    datasets: Annotated[dict[str, Positive], Field(min_length=1)]
    """Cross section in pb, branching fractions and filters included, by dataset of the run."""
    signal: bool = False
    rate_parameter: Annotated[tuple[float, float], AfterValidator(_range)] | None = None
    """Range of a free factor on a background; null: no factor."""

    @model_validator(mode="after")
    def _one_factor(self) -> Self:
        if self.signal and self.rate_parameter is not None:
            raise ValueError("rate_parameter is for backgrounds; the signal has its strength r already")
        return self


class NuisanceConfig(Config):
    """A nuisance parameter: a change of the rate, or of the templates by variations of the run."""

    rate: Annotated[float, Field(gt=0)] | tuple[Positive, Positive] | None = None
    """Log-normal factor κ, or the factors of down and up; null: variations of the run."""
    up: str | None = None
    """Variation; null: NAME_up."""
    down: str | None = None
    """Variation; null: NAME_down, or with `up` alone its mirror image about nominal."""
    members: str | None = None
    """Pattern of variations that make one nuisance together (`pdf_member*`), in place of up, down."""
    combination: Literal["hessian", "replicas", "envelope"] = "hessian"
    """Of members, in each bin: root of the sum of squared differences; standard deviation; extremes."""
    processes: tuple[str, ...] | None = None
    """Processes that it affects; null: all."""
    correlated: bool = True
    """One parameter for all years; false adds the year to its name."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = {"rate": self.rate, "up or down": self.up or self.down, "members": self.members}
        kinds = [name for name, value in given.items() if value is not None]
        if len(kinds) > 1:
            raise ValueError(f"one of rate, up with down, and members expected, found {' and '.join(kinds)}")
        if self.down is not None and self.up is None:
            raise ValueError("'down' is given without 'up'; a single variation is 'up'")
        return self


class TemplatesConfig(Config):
    """`topreco templates`: a histogram of a run as templates, with a datacard and a pyhf workspace."""

    histogram: str = "spectrum/m_tt"
    """Key of the run's histograms, such as `spectrum/m_tt`, `measured/m_tt`, `joint/NAME` or, of simulation
    alone, `migration/m_tt`. With `response/m_tt` the signal has one process for each bin of the truth, which
    a fit unfolds."""
    method: str | None = None
    """Method; null takes the only one."""
    edges: Annotated[tuple[Edges, ...], BeforeValidator(_lists)] | None = None
    """Coarser bins, whose edges are among those of the histogram: a list, or one for each of its axes; null
    keeps the bins. For `response/…` they are those of the reconstructed observable."""
    channels: Annotated[tuple[Literal["ee", "emu", "mumu", "all"], ...], Field(min_length=1)] = (
        "ee",
        "emu",
        "mumu",
    )
    year: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")] | None = None
    """Of the names of channels, and of nuisances that are not correlated between years."""
    luminosity: Positive | None = None
    """Integrated luminosity in fb⁻¹."""
    processes: dict[CombineName, ProcessConfig] = {}
    data: tuple[str, ...] = ()
    """Datasets of the data; without any, the expectation stands for them."""
    sum_of_weights: dict[str, Positive] = {}
    """Sum of the generated weights by dataset, where the run did not read all generated events."""
    nuisances: dict[CombineName, NuisanceConfig | None] = {}
    """By name. Every pair of variations SOURCE_up and SOURCE_down is one without being named here; null
    leaves it out."""
    stat_threshold: NonNegative = 10.0
    """Effective number of events in a bin below which Combine gives each process a parameter of its own
    (autoMCStats)."""
    nominal_name: str = "$CHANNEL/$PROCESS"
    """Name of the nominal templates in the ROOT file."""
    variation_name: str = "$CHANNEL/$PROCESS_$SYSTEMATIC"
    """Name of the varied ones; Combine puts the nuisance with Up or Down in place of $SYSTEMATIC."""

    @model_validator(mode="after")
    def _names_tell_apart(self) -> Self:
        for key, text, needed in (
            ("nominal_name", self.nominal_name, _KEYWORDS[:2]),
            ("variation_name", self.variation_name, _KEYWORDS),
        ):
            for word in needed:
                if word not in text and not (word == "$CHANNEL" and len(self.channels) == 1):
                    raise ValueError(
                        f"{key}: {text!r} lacks {word}, without which two templates share a name"
                    )
        return self

    @model_validator(mode="after")
    def _known_processes(self) -> Self:
        for name, nuisance in self.nuisances.items():
            for process in (nuisance and nuisance.processes) or ():
                if process not in self.processes:
                    known = ", ".join(self.processes) or "none"
                    raise ValueError(f"nuisances.{name}.processes: {process!r} is none of {known}")
        if not any(p.signal for p in self.processes.values()) and self.processes:
            raise ValueError("processes: one with 'signal: true' or more expected")
        return self

    @model_validator(mode="after")
    def _names_of_years(self) -> Self:
        if self.year is None and (
            odd := [name for name, n in self.nuisances.items() if n is not None and not n.correlated]
        ):
            raise ValueError(f"nuisances.{odd[0]}: 'correlated: false' needs the key 'year'")
        return self
