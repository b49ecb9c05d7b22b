"""Corrections and systematic variations of simulated events, from correctionlib files or flat numbers.

A variation of an object is a changed copy of `Objects`, from which the events are selected and reconstructed
anew; `variations` gives them one after the other. A variation of a weight is another weight of the nominal
events, from `event_weights`.

A source that changes a momentum also changes MET, see `topreco.input.met`.

Smearing draws random numbers keyed by the event and the number of the object in it: they depend neither on
chunks nor on which other sources there are, and all variations share them. Only the hybrid method for jets
uses generated ones, see `topreco.input.jer`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from topreco.config import NOMINAL, ObjectSource, SelectionConfig, SystematicsConfig, WeightSource
from topreco.core.constants import PDG_ELECTRON, PDG_MUON
from topreco.core.events import FloatArray, IntArray, hashed_uniform
from topreco.input.branches import Branches
from topreco.input.corrections import (
    Columns,
    check_inputs,
    describe_correction,
    evaluate,
    input_branches,
    is_quantity,
)
from topreco.input.jer import GENERATOR_BRANCHES, scale_matched
from topreco.input.met import (
    share_in_met,
    type1_branches,
    type1_met,
    unclustered_deltas,
    unclustered_momenta,
    unclustered_shift,
    vector_sums,
)
from topreco.input.nano import FileSummary, InputError, missing_branch
from topreco.input.objects import Jets, Objects, Particles, number_in_event, read_objects
from topreco.input.payloads import CorrectionError, check_payload
from topreco.input.selection import IndexedSelection

_FIELDS = {"jet": "jets", "electron": "electrons", "muon": "muons"}

# A smearing from the far tail must not reverse a momentum.
_SMEAR_MIN = 1e-3


# ---- public ---------------------------------------------------------------------------------------------


def check_corrections(config: SystematicsConfig) -> None:
    """Check that every configured correction exists and gets its inputs; nothing is evaluated.

    Raises
    ------
    CorrectionError
        If a file is missing or is not one of correctionlib, or a correction or an input has another name.
    """
    for file in config.files:
        check_payload(file)
    for name, source in config.objects.items():
        key = f"systematics.objects.{name}"
        check_inputs(source, source.object, key)
        if source.ratio is not None:
            check_inputs(source.ratio, source.object, f"{key}.scale_factor")
        if source.offset is not None:
            check_inputs(source.offset, source.object, f"{key}.type1.offset")
    for name, weight in config.weights.items():
        check_inputs(weight, weight.object, f"systematics.weights.{name}")


def element_branches(config: SystematicsConfig) -> set[str]:
    """Branches of which a source of weights takes one element."""
    elements = [element for source in config.weights.values() for element in source.elements.values()]
    return {branch for branch, number in elements if number is not None}


def check_branches(
    config: SystematicsConfig, selection: SelectionConfig, summary: FileSummary, origin: str, dataset: str
) -> None:
    """Check that a file has the branches of all sources that apply to it, with as many elements as they take.

    Parameters
    ----------
    config
        Sources, which `check_corrections` found right.
    selection
        Names of branches.
    summary
        Content of the file, with the sizes of `element_branches`.
    origin
        The file, for errors.
    dataset
        Its dataset, which not all sources of weights may apply to.

    Raises
    ------
    InputError
        If a branch is missing, or its first event has too few elements.
    """
    simulated = summary.has(selection.in_file(["genWeight"]))
    sample = "simulation" if simulated else "data"
    for name, source in config.objects.items() if simulated else ():
        if source.kind == "unclustered" and not summary.has(
            selection.in_file(unclustered_deltas(selection.met))
        ):
            for stored in selection.in_file(unclustered_momenta(selection.met)):
                if stored not in summary.branches:
                    missing = missing_branch(stored, summary.branches)
                    raise InputError(f"{origin}: {missing} (systematics.objects.{name})")
    for key, branch, element in _sources_branches(config, sample, dataset):
        stored = selection.branches.get(branch, branch)
        if stored not in summary.branches:
            raise InputError(f"{origin}: {missing_branch(stored, summary.branches)} (systematics.{key})")
        if element is not None and summary.sizes.get(stored, element + 1) <= element:
            raise InputError(
                f"{origin}: branch {stored!r} has {summary.sizes[stored]} elements, "
                f"element {element} is requested (systematics.{key})"
            )


def branches_with_default(
    config: SystematicsConfig, selection: SelectionConfig, dataset: str
) -> dict[str, set[str]]:
    """Branches, as in the file, of each source of weights that has a default where they are missing."""
    return {
        name: {selection.branches.get(branch, branch) for branch, _ in source.elements.values()}
        for name, source in config.weights.items()
        if source.default is not None and source.includes(dataset)
    }


def _sources_branches(
    config: SystematicsConfig, sample: str, dataset: str
) -> Iterator[tuple[str, str, int | None]]:
    """Key, branch and element that each source for simulation or data reads."""
    for name, source in config.objects.items():
        if source.applies_to in (sample, "both"):
            names = _where_and_inputs(source)
            names |= {branch for branch in source.unsmeared if not is_quantity(branch, source.object)}
            if source.ratio is not None:
                names |= input_branches(source.ratio, source.object)
            if source.raw:
                names.add("Jet_rawFactor")
            if source.kind == "hybrid":
                names |= set(GENERATOR_BRANCHES)
            if source.type1 is not None:
                names |= type1_branches(source.type1.raw_met)
            if source.offset is not None:
                names |= input_branches(source.offset, source.object)
            yield from ((f"objects.{name}", branch, None) for branch in sorted(names))
    for name, weight in config.weights.items() if sample == "simulation" else ():
        if weight.default is not None or not weight.includes(dataset):
            continue
        yield from ((f"weights.{name}", branch, None) for branch in sorted(_where_and_inputs(weight)))
        # A range has many elements, and the last one is missing first.
        last = dict(sorted(weight.elements.values(), key=_element_number))
        yield from ((f"weights.{name}.branches", branch, element) for branch, element in last.items())


def _where_and_inputs(source: ObjectSource | WeightSource) -> set[str]:
    conditions = {name for name in source.where if not is_quantity(name, source.object)}
    return conditions | input_branches(source, source.object)


def _element_number(element: tuple[str, int | None]) -> int:
    return -1 if element[1] is None else element[1]


def variations(
    events: Any, selection: SelectionConfig, config: SystematicsConfig
) -> Iterator[tuple[str, Objects]]:
    """Objects of a chunk, corrected, and their variations.

    Parameters
    ----------
    events
        `NanoEvents` or `Branches` of a chunk; without `genWeight` they are data, which have no variations.
    selection
        Names of branches and identification, as for `read_objects`.
    config
        Sources, applied in their order. A variation replaces what one of them does, the others stay nominal.

    Yields
    ------
    name, objects
        "nominal" first, then SOURCE_VARIATION, such as "jes_up".

    Raises
    ------
    CorrectionError
        If a correction is missing, refuses its inputs or gives a NaN or a factor that is not positive.
    topreco.input.nano.InputError
        If a branch is missing or cannot be read.
    """
    branches = Branches.of(events, selection)
    sample = "simulation" if branches.is_simulation else "data"
    sources = {name: s for name, s in config.objects.items() if s.applies_to in (sample, "both")}

    def apply(objects: Objects, name: str, variation: str) -> Objects:
        return _apply(objects, sources[name], variation, config.seed)

    def correct(objects: Objects, names: list[str]) -> Iterator[Objects]:
        """The objects before each of the sources, and after all."""
        yield objects
        for name in names:
            objects = apply(objects, name, NOMINAL) if sources[name].corrects else objects
            yield objects

    names = list(sources)
    *before, nominal = correct(read_objects(branches), names)
    yield NOMINAL, nominal
    if not branches.is_simulation:
        return
    for i, name in enumerate(names):
        for variation in sources[name].variations:
            *_, varied = correct(apply(before[i], name, variation), names[i + 1 :])
            yield f"{name}_{variation}", varied


def event_weights(
    events: Any,
    objects: Objects,
    selected: IndexedSelection,
    config: SystematicsConfig,
    *,
    dataset: str | None = None,
    varied: bool = True,
) -> dict[str, FloatArray]:
    """Factors of the weights of selected events.

    Parameters
    ----------
    events
        `NanoEvents` or `Branches` of the chunk; the names of its branches are those that `objects` were read
        with.
    objects
        Objects that the events were selected from, one of `variations`.
    selected
        Selected events, n of them.
    config
        Sources.
    dataset
        Name of the dataset, by default that in the metadata of the events.
    varied
        Also give the variations, which are of use for nominal events only.

    Returns
    -------
    factors
        Shape (n,) each: the product of all corrections under "nominal", then the same with one of them
        varied under SOURCE_VARIATION. For data "nominal" alone, with ones.

    Raises
    ------
    CorrectionError
        If a correction is missing, refuses its inputs or gives a NaN.
    topreco.input.nano.InputError
        If a branch is missing, cannot be read or has too few elements, or a source is limited to datasets and
        that of the events is not known.
    """
    branches = Branches.of(events, objects.branches.selection)
    sources = config.weights if branches.is_simulation else {}

    def factor(source: WeightSource, variation: str) -> FloatArray:
        if not _included(source, branches, dataset):
            return np.ones(len(selected.events))
        return _weight(branches, objects, selected, source, variation)

    return dict(_products(np.ones(len(selected.events)), sources, factor, varied=varied))


def generated_weights(
    events: Any, selection: SelectionConfig, config: SystematicsConfig, *, dataset: str | None = None
) -> Iterator[tuple[str, FloatArray]]:
    """Weights of all events of a chunk before the detector, for spectra of generated quantities.

    Only sources of weights that read the generator's own branches, such as `LHEScaleWeight` and `PSWeight`,
    count here. All others, such as efficiencies of the detector, affect the selected events only.

    Parameters
    ----------
    events
        `NanoEvents` or `Branches` of the chunk, n of them.
    selection
        Names of branches, as for `variations`.
    config
        Sources.
    dataset
        Name of the dataset, by default that in the metadata of the events.

    Yields
    ------
    name, weight
        "nominal" first, then SOURCE_VARIATION, shape (n,).

    Raises
    ------
    topreco.input.nano.InputError
        If a branch is missing, cannot be read or has too few elements.
    """
    branches = Branches.of(events, selection)
    if not branches.is_simulation:
        yield NOMINAL, np.ones(len(branches))
        return
    index = np.arange(len(branches))
    sources = {
        name: source
        for name, source in config.weights.items()
        if source.branches and all(map(_of_theory, source.branches.values()))
    }

    def factor(source: WeightSource, variation: str) -> FloatArray:
        if not _included(source, branches, dataset):
            return np.ones(len(index))
        return _of_event(branches, index, source, variation)

    yield from _products(branches.finite("genWeight"), sources, factor)


def _included(source: WeightSource, branches: Branches, dataset: str | None) -> bool:
    """Return True if a source applies to the dataset, which only those limited to some need to know."""
    name = branches.metadata.get("dataset") if dataset is None else dataset
    if name is None and source.datasets:
        raise InputError(
            f"{branches.origin}: a source of weights is limited to the datasets "
            f"{', '.join(source.datasets)}, and that of the events is not known; "
            "give dataset=... or set events.metadata['dataset']"
        )
    return source.includes(name or "")


def _of_theory(branch: str) -> bool:
    return branch.startswith(("LHE", "PSWeight"))


def _products(
    weight: FloatArray,
    sources: Mapping[str, WeightSource],
    factor: Callable[[WeightSource, str], FloatArray],
    *,
    varied: bool = True,
) -> Iterator[tuple[str, FloatArray]]:
    """A weight times the factors of all sources, then with one of them varied; see `event_weights`."""
    nominal = {name: factor(source, NOMINAL) for name, source in sources.items() if source.corrects}
    yield NOMINAL, np.prod([weight, *nominal.values()], axis=0)
    for name, source in sources.items() if varied else ():
        others = [values for other, values in nominal.items() if other != name]
        for variation in source.variations:
            yield f"{name}_{variation}", np.prod([weight, *others, factor(source, variation)], axis=0)


# ---- objects ---------------------------------------------------------------------------------------------


def _apply(objects: Objects, source: ObjectSource, variation: str, seed: int) -> Objects:
    """The objects after one source, MET included."""
    if source.object == "met":
        return dataclasses.replace(objects, met=objects.met + unclustered_shift(objects.branches, variation))
    branches, field = objects.branches, _FIELDS[source.object]
    particles: Particles = getattr(objects, field)
    uncorrected = np.ones(len(particles.pt))
    if source.raw:
        uncorrected -= branches.finite("Jet_rawFactor")
    raw = _scaled(particles, uncorrected)
    columns = Columns(branches, source.object, raw)
    chosen = np.flatnonzero(columns.passing(source.where) & ~particles.dropped)
    factor = np.ones(len(particles.pt))
    factor[chosen] = _factor(objects, columns, chosen, source, variation, seed) * uncorrected[chosen]
    changed = _scaled(particles, factor)
    met = objects.met
    if source.type1 is not None:

        def correct_soft(columns: Columns) -> FloatArray:
            passing = columns.passing(source.where)
            soft, factor = np.flatnonzero(passing), np.ones(len(passing))
            factor[soft] = _factor(objects, columns, soft, source, variation, seed)
            return factor

        met = type1_met(objects, changed, raw, source.type1.raw_met, source.offset, correct_soft)
    elif source.propagate_to_met:
        shift = (changed.pt - particles.pt) * share_in_met(branches, source.object, particles)
        met = met - vector_sums(particles, shift, len(objects))
    changes: dict[str, Any] = {field: changed, "met": met}
    return dataclasses.replace(objects, **changes)


def _factor(
    objects: Objects, columns: Columns, chosen: IntArray, source: ObjectSource, variation: str, seed: int
) -> FloatArray:
    """Factor by which one source changes the momenta of some objects, shape (chosen,)."""
    value = (
        evaluate(source, variation, columns, chosen)
        if source.flat is None
        else np.full(len(chosen), source.flat)
    )
    if source.kind in ("smear", "hybrid"):
        factor = _smearing(objects, columns, chosen, source, variation, seed, value)
    elif source.kind == "factor":
        factor = value
    else:
        down = variation == "down" and not source.choices
        factor = 1 - value if down else 1 + value
    if (bad := factor[factor <= 0]).size:
        raise CorrectionError(
            f"{objects.branches.origin}: {describe_correction(source)} gives the factor {bad[0]:g} of a "
            "momentum, a positive one expected"
        )
    return factor


def _smearing(
    objects: Objects,
    columns: Columns,
    chosen: IntArray,
    source: ObjectSource,
    variation: str,
    seed: int,
    resolution: FloatArray,
) -> FloatArray:
    """Factor by which smearing changes the momenta of some objects of a relative resolution, (chosen,)."""
    particles: Any = columns.particles
    normal = _normal(objects, particles, seed, source.object)[chosen]
    if source.ratio is None:
        return np.maximum(1 + resolution * normal, _SMEAR_MIN)
    ratio = evaluate(source.ratio, variation, columns, chosen)
    factor = 1 + resolution * np.sqrt(np.maximum(ratio**2 - 1, 0)) * normal
    if source.kind == "hybrid":
        if source.unsmeared:
            factor[columns.passing(source.unsmeared)[chosen]] = 1
        matched, scaled = scale_matched(objects.branches, particles, chosen, resolution, ratio)
        factor = np.where(matched, scaled, factor)
    return np.maximum(factor, _SMEAR_MIN)


def _scaled(particles: Particles, factor: FloatArray) -> Particles:
    """Particles with scaled pT; a lepton keeps its mass, that of a jet scales with its momentum."""
    changes: dict[str, Any] = {"pt": particles.pt * factor}
    if isinstance(particles, Jets):
        changes["mass"] = particles.mass * factor
    return dataclasses.replace(particles, **changes)


def _normal(objects: Objects, particles: Particles, seed: int, kind: str) -> FloatArray:
    """Normal random number of each object, a hash of its event and its number in it, shape (objects,)."""
    counts, event = particles.counts, particles.event
    number = number_in_event(counts)
    stream = 2 * list(_FIELDS).index(kind)
    keys = [column[event] for column in (objects.run, objects.luminosity_block, objects.event)]
    radius, angle = (hashed_uniform(seed, *keys, number, stream + i) for i in (0, 1))
    # The transformation of Box and Muller; 1 − u is never zero.
    return np.sqrt(-2 * np.log(1 - radius)) * np.cos(2 * np.pi * angle)


# ---- weights ---------------------------------------------------------------------------------------------


def _weight(
    branches: Branches, objects: Objects, selected: IndexedSelection, source: WeightSource, variation: str
) -> FloatArray:
    """Factor of the weight of each selected event, shape (n,)."""
    if source.branches:
        return _of_event(branches, selected.index, source, variation)
    chosen = selected.events
    particles = None
    if source.object == "event":
        index, present = selected.index[:, None], np.ones((len(chosen), 1), dtype=bool)
    else:
        particles = getattr(objects, _FIELDS[source.object])
        if source.object == "jet":
            index, present = selected.jet_index, chosen.jet_mask
        else:
            flavour = PDG_ELECTRON if source.object == "electron" else PDG_MUON
            index, present = selected.lepton_index, chosen.lepton_flavour == flavour
    columns = Columns(branches, source.object, particles)
    counted = np.zeros(present.shape, dtype=bool)
    counted[present] = columns.passing(source.where)[index[present]]
    factors = np.ones(present.shape)
    if source.flat is None:
        factors[counted] = evaluate(source, variation, columns, index[counted])
    else:
        factors[counted] = 1 + source.flat if variation == "up" else 1 - source.flat
    return factors.prod(axis=1)


def _of_event(branches: Branches, index: IntArray, source: WeightSource, variation: str) -> FloatArray:
    """Factor from a branch of the events at an index, shape (n,).

    With a default an event has it in all variations or in none: of eight scale weights in place of nine, the
    first would otherwise vary down what has no counterpart.
    """
    factors = np.ones(len(index))
    complete = np.ones(len(index), dtype=bool)
    if source.default is not None:
        for branch, element in source.elements.values():
            if not branches.has(branch):
                return factors
            if element is not None and branches.is_jagged(branch):
                complete &= branches.counts(branch)[index] > element
    factors[complete] = _element(branches, index[complete], *source.elements[variation])
    return factors


def _element(branches: Branches, index: IntArray, branch: str, element: int | None) -> FloatArray:
    """A branch of the events at an index, or one of its elements, shape (n,)."""
    if branches.is_jagged(branch) != (element is not None):
        found, example = ("one value", branch) if element is not None else ("several values", f"{branch}[0]")
        raise InputError(f"{branches.origin}: branch {branch!r} has {found} per event; write {example}")
    if element is None:
        return branches.finite(branch)[index]
    counts = branches.counts(branch)
    short = counts[index] <= element
    if short.any():
        raise InputError(
            f"{branches.origin}: branch {branch!r} has {counts[index][short][0]} elements in an event, "
            f"element {element} is requested"
        )
    return branches.finite(branch)[(np.cumsum(counts) - counts)[index] + element]
