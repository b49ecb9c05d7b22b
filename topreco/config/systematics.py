"""Configuration of corrections and systematic variations."""

import fnmatch
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from topreco.config.base import Config

NOMINAL = "nominal"
"""Name of the variation in which nothing is varied."""


def _check_input(value: Any) -> Any:
    """One error in place of one for each allowed type."""
    if not isinstance(value, str | int | float):
        raise ValueError("a text or a number expected")  # noqa: TRY004 - pydantic reports these alone
    return value


def _check_choices(value: Any) -> Any:
    """The same where the variations may have values of their own."""
    return value if isinstance(value, dict) else _check_input(value)


InputValue = Annotated[str | int | float, BeforeValidator(_check_input)]
Input = Annotated[str | int | float | dict[str, InputValue], BeforeValidator(_check_choices)]


class Range(Config):
    """Values of at least `min` and below `max`."""

    min: Annotated[float, Field(allow_inf_nan=True)] = -math.inf
    max: Annotated[float, Field(allow_inf_nan=True)] = math.inf


Condition = Annotated[
    Annotated[tuple[InputValue, ...], Tag("values")] | Annotated[Range, Tag("range")],
    Discriminator(lambda value: "range" if isinstance(value, dict | Range) else "values"),
]


class CorrectionConfig(Config):
    """One correction of a correctionlib file, and its inputs."""

    file: Path | None = None
    """JSON or JSON.gz, seen by every worker."""
    correction: str | None = None
    """Name of a correction, or of a compound one."""
    inputs: dict[str, Input] = {}
    """By name of the correction's input: for a number, a quantity of the object (pt, eta, abseta, phi, mass,
    btag, charge, eta_sc, abseta_sc), a branch or a constant; for a text, the text itself. One input may have
    a value for each variation: `{nominal: nom, up: up, down: down}`. An input that is named like a quantity
    needs no entry."""

    @property
    def choices(self) -> dict[str, InputValue]:
        """Values of the input that makes the variations, by variation; empty without."""
        return next((value for value in self.inputs.values() if isinstance(value, dict)), {})

    @model_validator(mode="after")
    def _check_correction(self) -> Self:
        if self.file is not None and self.correction is None:
            raise ValueError("a file needs the name of one of its corrections: key 'correction'")
        if self.inputs and self.correction is None:
            raise ValueError("inputs without a correction to give them to")
        if sum(isinstance(value, dict) for value in self.inputs.values()) > 1:
            raise ValueError("at most one input may have a value for each variation")
        return self


class ScaleFactorConfig(CorrectionConfig):
    """Ratio of the resolution in data to that in simulation; `file` is that of the resolution by default."""

    correction: str


class OffsetConfig(CorrectionConfig):
    """Correction of raw jets for pile-up alone; `file` is that of the source by default."""

    correction: str

    @model_validator(mode="after")
    def _check_offset(self) -> Self:
        if self.choices:
            raise ValueError("the correction for pile-up has no variations")
        return self


class Type1Config(Config):
    """MET from raw MET with the corrections of the same source."""

    raw_met: str
    """Its name in the file: RawMET or RawPFMET for CHS jets, RawPuppiMET for Puppi jets."""
    offset: OffsetConfig | None = None
    """The correction for pile-up (L1FastJet), which MET does not get; null for Puppi jets."""


# Whatever a generator fills: flavours, matches, weights.
_OF_GENERATOR = re.compile(
    r"^(gen|lhe|htxs|psweight|pileup|subgen|fatgen)|gen(part|jet|vis)|flavour", re.IGNORECASE
)


class ObjectSource(CorrectionConfig):
    """A correction or uncertainty of the momentum of jets, electrons, muons or of MET."""

    object: Literal["jet", "electron", "muon", "met"]
    kind: Literal["shift", "factor", "smear", "hybrid", "unclustered"] = "shift"
    """shift: p → p (1 ± value). factor: p → p · value. smear: p → p (1 + value · g) with g a normal random
    number of the object. hybrid: for jets, p → p + (s − 1)(p − p_gen) with a matching generated jet, else
    smear. unclustered: the variation of MET that NanoAOD stores."""
    flat: float | None = None
    """The value, in place of a correction."""
    scale_factor: ScaleFactorConfig | None = None
    """For smear and hybrid: s, with which the value of smear becomes value · √(max(s² − 1, 0))."""
    unsmeared: dict[str, Condition] = {}
    """For hybrid: jets that stay as they are without a matching generated jet; as `where`, such as
    `{abseta: {min: 2.5, max: 3}}`."""
    raw: bool = False
    """For jets: undo the corrections of the file (`Jet_rawFactor`) first; pt and mass are the raw ones."""
    type1: Type1Config | None = None
    """With raw: MET anew from raw MET. null: the MET of the file follows the change of the jets."""
    propagate_to_met: bool = True
    """MET follows the change of the momenta."""
    where: dict[str, Condition] = {}
    """Objects to change: values or a range, by quantity or branch."""
    applies_to: Literal["simulation", "data", "both"] = "simulation"
    """Data have no variations, only corrections."""

    @property
    def ratio(self) -> CorrectionConfig | None:
        """The scale factor of a smearing, with its file."""
        found = self.scale_factor
        if found is None or found.file is not None:
            return found
        return found.model_copy(update={"file": self.file})

    @property
    def offset(self) -> CorrectionConfig | None:
        """The correction of raw jets for pile-up, with its file."""
        found = None if self.type1 is None else self.type1.offset
        if found is None or found.file is not None:
            return found
        return found.model_copy(update={"file": self.file})

    @property
    def choices(self) -> dict[str, InputValue]:
        """Values of the input that makes the variations, by variation; empty without."""
        return super().choices or (self.scale_factor.choices if self.scale_factor is not None else {})

    @property
    def corrects(self) -> bool:
        """True if it changes the nominal objects."""
        return NOMINAL in self.choices if self.choices else self.kind in ("factor", "smear", "hybrid")

    @property
    def variations(self) -> tuple[str, ...]:
        """Names of its variations."""
        if self.choices:
            return tuple(name for name in self.choices if name != NOMINAL)
        return ("up", "down") if self.kind in ("shift", "unclustered") else ()

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.object == "met") != (self.kind == "unclustered"):
            raise ValueError("kind 'unclustered' belongs to object 'met', and no other kind does")
        if (self.flat is not None) + (self.correction is not None) != (self.object != "met"):
            raise ValueError("one of 'correction' and 'flat' expected, and neither for MET")
        if self.correction is not None and self.file is None:
            raise ValueError("a correction needs the file it is in: key 'file'")
        smears = self.kind in ("smear", "hybrid")
        if self.scale_factor is not None and (not smears or super().choices):
            raise ValueError(
                "'scale_factor' belongs to kind 'smear' or 'hybrid', and then it alone may have variations"
            )
        if self.kind == "hybrid" and (self.object != "jet" or self.scale_factor is None):
            raise ValueError("kind 'hybrid' is for object 'jet' and needs a 'scale_factor'")
        if self.kind == "hybrid" and self.applies_to != "simulation":
            raise ValueError(f"kind 'hybrid' needs generated jets, which {self.applies_to!r} does not have")
        if self.unsmeared and self.kind != "hybrid":
            raise ValueError("'unsmeared' belongs to kind 'hybrid'; 'where' restricts any kind")
        if self.scale_factor is not None and self.scale_factor.file is None and self.file is None:
            raise ValueError("'scale_factor' needs the file it is in: key 'file'")
        if self.raw and (self.object != "jet" or self.kind != "factor"):
            raise ValueError("'raw' belongs to object 'jet' and kind 'factor'")
        if self.type1 is not None and not (self.raw and self.propagate_to_met):
            raise ValueError("'type1' belongs to 'raw', and not to 'propagate_to_met: false'")
        if self.offset is not None and self.offset.file is None:
            raise ValueError("'type1.offset' needs the file it is in: key 'file'")
        inner = {
            name: value
            for config in (self.scale_factor, self.offset)
            if config is not None
            for name, value in config.inputs.items()
        }
        for name in (*self.inputs.values(), *inner.values(), *self.where, *self.unsmeared):
            if isinstance(name, str) and _OF_GENERATOR.search(name):
                raise ValueError(f"what a method sees must not depend on the generator, as {name!r} does")
        return self


_ELEMENT = re.compile(r"(\w+)(?:\[(\d+)(?::(\d+))?\])?")


class WeightSource(CorrectionConfig):
    """A factor of the event weight: of the event, or the product over its selected objects."""

    object: Literal["event", "jet", "electron", "muon"] = "event"
    flat: float | None = None
    """Factor 1 ± this, in place of a correction."""
    branches: dict[str, str] = {}
    """Factor by variation from a branch of the event: `L1PreFiringWeight_Up`, an element `LHEScaleWeight[8]`
    or a range of elements `LHEPdfWeight[1:101]`, which makes a variation of each."""
    where: dict[str, Condition] = {}
    """Objects to count: values or a range, by quantity or branch; others have the factor 1."""
    datasets: tuple[str, ...] = ()
    """Datasets that it applies to, names or patterns such as TT*; others have the factor 1. Empty: all."""
    default: Literal[1] | None = None
    """1: the factor, in all variations, of files without one of the `branches` and of events with too few
    elements; null: an error."""

    def includes(self, dataset: str) -> bool:
        """Return True if it applies to a dataset."""
        return not self.datasets or any(fnmatch.fnmatchcase(dataset, name) for name in self.datasets)

    @property
    def elements(self) -> dict[str, tuple[str, int | None]]:
        """Branch and index of each variation in `branches`."""
        found: dict[str, tuple[str, int | None]] = {}
        for name, text in self.branches.items():
            branch, first, last = _ELEMENT.fullmatch(text).groups()  # type: ignore[union-attr]  # validated
            if last is not None:
                found |= {f"{name}{i}": (branch, i) for i in range(int(first), int(last))}
            else:
                found[name] = branch, None if first is None else int(first)
        return found

    @property
    def corrects(self) -> bool:
        """True if it changes the nominal weight."""
        if self.flat is not None:
            return False
        choices = self.branches or self.choices
        return NOMINAL in choices if choices else True

    @property
    def variations(self) -> tuple[str, ...]:
        """Names of its variations."""
        if self.flat is not None:
            return "up", "down"
        return tuple(name for name in (self.elements or self.choices) if name != NOMINAL)

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.flat is not None) + (self.correction is not None) + bool(self.branches) != 1:
            raise ValueError("exactly one of 'correction', 'branches' and 'flat' expected")
        if self.correction is not None and self.file is None:
            raise ValueError("a correction needs the file it is in: key 'file'")
        if self.object == "event" and self.where:
            raise ValueError("'where' chooses objects, and the object is 'event'")
        if self.branches and self.object != "event":
            raise ValueError("'branches' are of the event, so the object must be 'event'")
        if self.default is not None and not self.branches:
            raise ValueError("'default' belongs to 'branches', which a file may lack")
        for text in self.branches.values():
            if not _ELEMENT.fullmatch(text):
                raise ValueError(f"a branch, branch[i] or branch[i:j] expected, found {text!r}")
        return self


def _sources(name: str, source: Any) -> dict[str, Any]:
    """The sources that one entry stands for, by name; see `SystematicsConfig.objects`."""
    if not isinstance(source, Mapping) or "sources" not in source:
        return {name: source}
    given, correction = source["sources"], source.get("correction")
    texts = given if isinstance(given, Mapping) else {text: text for text in given} if _is_list(given) else {}
    if not texts or not all(isinstance(text, str) for text in (*texts, *texts.values())):
        raise ValueError(f"objects.{name}.sources: a list of texts, or a mapping of names to them, expected")
    if not isinstance(correction, str) or "{source}" not in correction:
        raise ValueError(
            f"objects.{name}.correction: with 'sources', a name with {{source}} in it expected, "
            f"found {correction!r}"
        )
    common = {key: value for key, value in source.items() if key != "sources"}
    return {
        f"{name}_{own}": {**common, "correction": correction.replace("{source}", text)}
        for own, text in texts.items()
    }


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(set(map(str, value))) == len(value)


class SystematicsConfig(Config):
    """Corrections and systematic variations; a variation is called SOURCE_VARIATION, such as jes_up."""

    objects: dict[str, ObjectSource] = {}
    """Applied in this order. One entry may stand for several sources that differ in the name of the
    correction: with `correction: …_MC_Regrouped_{source}_AK4PFchs`, `sources: [FlavorQCD, HF, …]` or
    `sources: {NAME: TEXT, …}` makes the sources ENTRY_NAME."""
    weights: dict[str, WeightSource] = {}
    """For simulation only."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 1
    """With run, lumi, event and the number of the object it fixes the random numbers of smearing."""
    metrics: bool = False
    """Fill the histograms of RB, Res and widths for variations too, besides spectra and migrations. They take
    most of the memory and time of filling."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The correction files of all sources, each once."""
        sources: list[CorrectionConfig] = [*self.objects.values(), *self.weights.values()]
        inner = [config for s in self.objects.values() for config in (s.scale_factor, s.offset)]
        sources += [config for config in inner if config is not None]
        return tuple(sorted({source.file for source in sources if source.file is not None}))

    @property
    def variations(self) -> tuple[str, ...]:
        """Names of all variations."""
        sources: dict[str, ObjectSource | WeightSource] = {**self.objects, **self.weights}
        return tuple(f"{name}_{key}" for name, source in sources.items() for key in source.variations)

    @model_validator(mode="before")
    @classmethod
    def _expand_sources(cls, content: Any) -> Any:
        if not isinstance(content, Mapping) or not isinstance(content.get("objects"), Mapping):
            return content
        expanded: dict[str, Any] = {}
        for name, source in content["objects"].items():
            found = _sources(name, source)
            if twice := sorted(expanded.keys() & found.keys()):
                raise ValueError(f"objects.{name}.sources: there is a source {twice[0]!r} already")
            expanded |= found
        return {**content, "objects": expanded}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        both = self.objects.keys() & self.weights.keys()
        names = self.variations
        twice = sorted(both) or [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise ValueError(f"every source and variation needs a name of its own, {twice[0]!r} found twice")
        jets = [source for source in self.objects.values() if source.object == "jet"]
        for other in ("simulation", "data"):
            of_sample = [source.raw for source in jets if source.applies_to in (other, "both")]
            if any(of_sample[1:]):
                raise ValueError("a source with 'raw' undoes all others, so it must be the first one of jets")
            of_all = [s.type1 for s in self.objects.values() if s.applies_to in (other, "both")]
            if any(of_all[1:]):
                raise ValueError("a source with 'type1' begins with raw MET, so it must be the first of all")
        return self
