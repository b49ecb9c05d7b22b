"""Corrections and systematic variations of simulated events, from correctionlib files or flat numbers.

A variation of an object is a changed copy of `Objects`, from which the events are selected and reconstructed
anew; `variations` gives them one after the other. A variation of a weight is another weight of the nominal
events, from `event_weights`.

Whatever changes a momentum changes MET with it, as type-1 corrections do: MET' = MET − Σ(p'_T − p_T). The sum
runs over jets of pT > 15 GeV, momenta of muons in them subtracted and jets of more than 90 % electromagnetic
energy left out where NanoAOD has the branches for that, and over leptons that are identified.

Smearing is stochastic, with random numbers that belong to the event and the number of the object in it: they
depend neither on chunks nor on which other sources there are, and all variations share them. It uses no
generated jets, so that nothing of the generator reaches what a method sees.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from topreco.config import (
    NOMINAL,
    Condition,
    CorrectionConfig,
    ObjectSource,
    Range,
    SelectionConfig,
    SystematicsConfig,
    WeightSource,
)
from topreco.core.constants import PDG_ELECTRON, PDG_MUON
from topreco.core.events import FloatArray, IntArray, hashed_uniform
from topreco.input.nano import (
    InputError,
    branch_names,
    has_branch,
    is_jagged,
    origin_of,
    read_branch,
    read_counts,
    read_finite,
    rename_branches,
)
from topreco.input.objects import Jets, Objects, Particles, fit_selection, number_in_event, read_objects
from topreco.input.payloads import CorrectionError, check_payload, read_payload
from topreco.input.selection import IndexedSelection

_COLLECTIONS = {"jet": "Jet", "electron": "Electron", "muon": "Muon"}
_FIELDS = {"jet": "jets", "electron": "electrons", "muon": "muons"}
_KINEMATIC = ("pt", "eta", "abseta", "phi", "mass")
_QUANTITIES = {
    "jet": (*_KINEMATIC, "btag"),
    "electron": (*_KINEMATIC, "charge", "eta_sc", "abseta_sc"),
    "muon": (*_KINEMATIC, "charge"),
    "event": (),
}

_TYPE1_PT_MIN = 15.0
_TYPE1_EM_MAX = 0.9
# A smearing from the far tail must not turn a momentum round.
_SMEAR_MIN = 1e-3


# ---- what users call -------------------------------------------------------------------------------------


def check_corrections(config: SystematicsConfig) -> None:
    """Prove that every configured correction exists and gets its inputs; nothing is evaluated.

    Raises
    ------
    CorrectionError
        If a file is missing or is not one of correctionlib, or a correction or an input has another name.
    """
    for file in config.files:
        check_payload(file)
    for name, source in config.objects.items():
        key = f"systematics.objects.{name}"
        _check(source, source.object, key)
        if source.ratio is not None:
            _check(source.ratio, source.object, f"{key}.scale_factor")
    for name, weight in config.weights.items():
        _check(weight, weight.object, f"systematics.weights.{name}")


def is_simulation(events: Any) -> bool:
    """Whether `NanoEvents` are simulated: they have a generator weight."""
    return has_branch(events, "genWeight")


def variations(
    events: Any, selection: SelectionConfig, config: SystematicsConfig
) -> Iterator[tuple[str, Objects]]:
    """Objects of a chunk, corrected, and their variations.

    Parameters
    ----------
    events
        `NanoEvents` of a chunk; without `genWeight` they are data, which have no variations.
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
    met = fit_selection(selection, branch_names(events), origin_of(events)).met
    events = rename_branches(events, selection.branches)
    simulated = is_simulation(events)
    sample = "simulation" if simulated else "data"
    sources = {name: s for name, s in config.objects.items() if s.applies_to in (sample, "both")}

    def apply(objects: Objects, name: str, variation: str) -> Objects:
        return _apply(events, met, objects, sources[name], variation, config.seed)

    def correct(objects: Objects, names: list[str]) -> Iterator[Objects]:
        """The objects before each of the sources, and after all."""
        yield objects
        for name in names:
            objects = apply(objects, name, NOMINAL) if sources[name].corrects else objects
            yield objects

    names = list(sources)
    *before, nominal = correct(read_objects(events, selection), names)
    yield NOMINAL, nominal
    if not simulated:
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
    varied: bool = True,
) -> dict[str, FloatArray]:
    """Factors of the weights of selected events.

    Parameters
    ----------
    events
        `NanoEvents` of the chunk.
    objects
        What was selected from, one of `variations`.
    selected
        Its selected events, n of them.
    config
        Sources.
    varied
        Give the variations too; those of events that are a variation themselves are of no use.

    Returns
    -------
    factors
        Shape (n,) each: the product of all corrections under "nominal", then the same with one of them
        varied under SOURCE_VARIATION. Of data, "nominal" alone, with ones.

    Raises
    ------
    CorrectionError
        If a correction is missing, refuses its inputs or gives a NaN.
    topreco.input.nano.InputError
        If a branch is missing, cannot be read or has too few elements.
    """
    ones = np.ones(len(selected.events))
    sources = config.weights if is_simulation(events) else {}
    nominal = {
        name: _weight(events, objects, selected, source, NOMINAL) if source.corrects else ones
        for name, source in sources.items()
    }
    factors = {NOMINAL: np.prod([ones, *nominal.values()], axis=0)}
    for name, source in sources.items() if varied else ():
        others = [factor for other, factor in nominal.items() if other != name]
        for variation in source.variations:
            factor = _weight(events, objects, selected, source, variation)
            factors[f"{name}_{variation}"] = np.prod([ones, *others, factor], axis=0)
    return factors


def generated_weights(events: Any, config: SystematicsConfig) -> Iterator[tuple[str, FloatArray]]:
    """Weights of all events of a chunk before the detector, for spectra of generated quantities.

    Of the sources of weights those count that read the generator's own branches, such as `LHEScaleWeight` and
    `PSWeight`. All others, such as efficiencies of the detector, change what is selected only.

    Parameters
    ----------
    events
        `NanoEvents` of the chunk, n of them.
    config
        Sources.

    Yields
    ------
    name, weight
        "nominal" first, then SOURCE_VARIATION, shape (n,).

    Raises
    ------
    topreco.input.nano.InputError
        If a branch is missing, cannot be read or has too few elements.
    """
    if not is_simulation(events):
        yield NOMINAL, np.ones(len(events))
        return
    index = np.arange(len(events))
    sources = {
        name: source
        for name, source in config.weights.items()
        if source.branches and all(map(_of_theory, source.branches.values()))
    }
    weight = read_finite(events, "genWeight")
    nominal = {
        name: _element(events, index, *source.elements[NOMINAL])
        for name, source in sources.items()
        if source.corrects
    }
    yield NOMINAL, np.prod([weight, *nominal.values()], axis=0)
    for name, source in sources.items():
        others = [factor for other, factor in nominal.items() if other != name]
        for variation in source.variations:
            factor = _element(events, index, *source.elements[variation])
            yield f"{name}_{variation}", np.prod([weight, *others, factor], axis=0)


def _of_theory(branch: str) -> bool:
    return branch.startswith(("LHE", "PSWeight"))


# ---- objects ---------------------------------------------------------------------------------------------


def _apply(
    events: Any, met: str, objects: Objects, source: ObjectSource, variation: str, seed: int
) -> Objects:
    """The objects after one source, MET included."""
    if source.object == "met":
        return dataclasses.replace(objects, met=objects.met + _unclustered_shift(events, met, variation))
    field = _FIELDS[source.object]
    particles: Particles = getattr(objects, field)
    factor = _factor(events, objects, particles, source, variation, seed)
    changed = _scaled(particles, factor)
    shift = (changed.pt - particles.pt) * _share_in_met(events, source.object, particles)
    direction = np.cos(particles.phi), np.sin(particles.phi)
    change = [np.bincount(particles.event, shift * part, minlength=len(objects)) for part in direction]
    changes: dict[str, Any] = {field: changed, "met": objects.met - np.stack(change, axis=-1)}
    return dataclasses.replace(objects, **changes)


def _factor(
    events: Any, objects: Objects, particles: Particles, source: ObjectSource, variation: str, seed: int
) -> FloatArray:
    """What one source multiplies each momentum with, shape (objects,)."""
    uncorrected = np.ones(len(particles.pt))
    if source.raw:
        uncorrected -= read_finite(events, "Jet_rawFactor")
    columns = _Columns(events, source.object, _scaled(particles, uncorrected))
    chosen = np.flatnonzero(columns.passing(source.where))
    value = (
        _evaluate(source, variation, columns, chosen)
        if source.flat is None
        else np.full(len(chosen), source.flat)
    )
    factor = np.ones(len(particles.pt))
    if source.kind == "smear":
        if source.ratio is not None:
            ratio = _evaluate(source.ratio, variation, columns, chosen)
            value = value * np.sqrt(np.maximum(ratio**2 - 1, 0))
        smearing = 1 + value * _normal(objects, particles, seed, source.object)[chosen]
        factor[chosen] = np.maximum(smearing, _SMEAR_MIN)
    elif source.kind == "factor":
        factor[chosen] = value * uncorrected[chosen]
    else:
        down = variation == "down" and not source.choices
        factor[chosen] = 1 - value if down else 1 + value
    if (bad := factor[factor <= 0]).size:
        raise CorrectionError(
            f"{columns.origin}: {_describe(source)} gives the factor {bad[0]:g} of a momentum, "
            "a positive one expected"
        )
    return factor


def _scaled(particles: Particles, factor: FloatArray) -> Particles:
    """Particles of other pT; a lepton keeps its mass, that of a jet scales with its momentum."""
    changes: dict[str, Any] = {"pt": particles.pt * factor}
    if isinstance(particles, Jets):
        changes["mass"] = particles.mass * factor
    return dataclasses.replace(particles, **changes)


def _share_in_met(events: Any, kind: str, particles: Particles) -> FloatArray:
    """Fraction of the change of each object that MET follows, shape (objects,)."""
    if kind != "jet":
        return particles.identified.astype(np.float64)
    share = np.ones(len(particles.pt))
    if has_branch(events, "Jet_muonSubtrFactor"):
        share -= read_finite(events, "Jet_muonSubtrFactor")
    counted = particles.pt * share > _TYPE1_PT_MIN
    if has_branch(events, "Jet_chEmEF") and has_branch(events, "Jet_neEmEF"):
        counted &= read_finite(events, "Jet_chEmEF") + read_finite(events, "Jet_neEmEF") < _TYPE1_EM_MAX
    return np.where(counted, share, 0.0)


def _unclustered_shift(events: Any, met: str, variation: str) -> FloatArray:
    """Change of MET (px, py) in GeV with the unclustered energy, as NanoAOD stores it, shape (n, 2)."""
    delta = [f"{met}_MetUnclustEnUpDelta{axis}" for axis in "XY"]
    if has_branch(events, delta[0]):
        sign = 1 if variation == "up" else -1
        return sign * np.stack([read_finite(events, name) for name in delta], axis=-1)
    suffix = f"Unclustered{variation.capitalize()}"
    pt, phi, varied_pt, varied_phi = (
        read_finite(events, f"{met}_{name}") for name in ("pt", "phi", f"pt{suffix}", f"phi{suffix}")
    )
    return np.stack(
        [varied_pt * function(varied_phi) - pt * function(phi) for function in (np.cos, np.sin)],
        axis=-1,
    )


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
    events: Any, objects: Objects, selected: IndexedSelection, source: WeightSource, variation: str
) -> FloatArray:
    """Factor of the weight of each selected event, shape (n,)."""
    if source.branches:
        return _element(events, selected.index, *source.elements[variation])
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
    columns = _Columns(events, source.object, particles)
    counted = np.zeros(present.shape, dtype=bool)
    counted[present] = columns.passing(source.where)[index[present]]
    factors = np.ones(present.shape)
    if source.flat is None:
        factors[counted] = _evaluate(source, variation, columns, index[counted])
    else:
        factors[counted] = 1 + source.flat if variation == "up" else 1 - source.flat
    return factors.prod(axis=1)


def _element(events: Any, index: IntArray, branch: str, element: int | None) -> FloatArray:
    """A branch of the events at an index, or one of its elements, shape (n,)."""
    if is_jagged(events, branch) != (element is not None):
        found, example = ("one value", branch) if element is not None else ("several values", f"{branch}[0]")
        raise InputError(f"{origin_of(events)}: branch {branch!r} has {found} per event; write {example}")
    if element is None:
        return read_finite(events, branch)[index]
    counts = read_counts(events, branch)
    short = counts[index] <= element
    if short.any():
        raise InputError(
            f"{origin_of(events)}: branch {branch!r} has {counts[index][short][0]} elements in an event, "
            f"element {element} was asked for"
        )
    return read_finite(events, branch)[(np.cumsum(counts) - counts)[index] + element]


# ---- correctionlib ---------------------------------------------------------------------------------------


class _Columns:
    """Numbers of all objects of one kind (or all events) by name: quantities and branches."""

    def __init__(self, events: Any, kind: str, particles: Particles | None) -> None:
        self.origin = origin_of(events)
        self.kind = kind
        self._events = events
        self._particles = particles

    def __getitem__(self, name: str) -> Any:
        """A column, one value per object.

        Raises
        ------
        InputError
            If it is no quantity, and the branch is missing or belongs to other objects.
        """
        particles = self._particles
        if particles is None or name not in _QUANTITIES[self.kind]:
            return self._branch(name)
        if name.startswith("abs"):
            return np.abs(self[name.removeprefix("abs")])
        if name == "eta_sc":
            return particles.eta + read_finite(self._events, "Electron_deltaEtaSC")
        return getattr(particles, name)

    def _branch(self, name: str) -> Any:
        particles = self._particles
        of_object = particles is not None and name.startswith(f"{_COLLECTIONS[self.kind]}_")
        allowed = " or ".join(["a branch of the event", *_QUANTITIES[self.kind]])
        if particles is not None:
            allowed = f"a branch {_COLLECTIONS[self.kind]}_…, {allowed}"
        hint = f"an input of corrections of {self.kind}s is {allowed}"
        try:
            jagged, values = is_jagged(self._events, name), read_branch(self._events, name)
        except InputError as error:
            raise InputError(f"{error}; {hint}") from error
        if jagged != of_object:
            raise InputError(f"{self.origin}: branch {name!r} belongs to something else; {hint}")
        return values if particles is None or of_object else np.repeat(values, particles.counts)

    def passing(self, where: Mapping[str, Condition]) -> Any:
        """Whether each object meets the conditions, shape (objects,)."""
        passed = np.ones(len(self._events) if self._particles is None else len(self._particles.pt), bool)
        for name, condition in where.items():
            values = self[name]
            if isinstance(condition, Range):
                passed &= (values >= condition.min) & (values < condition.max)
            else:
                passed &= np.isin(values, condition)
        return passed


def _find(config: CorrectionConfig) -> Any:
    """The correction, which may be a compound one."""
    found = read_payload(config.file)
    for corrections in (found, found.compound):
        if config.correction in list(corrections):
            return corrections[config.correction]
    names = ", ".join([*found, *found.compound])
    raise CorrectionError(f"{config.file}: no correction {config.correction!r}; there are: {names}")


def _describe(config: CorrectionConfig) -> str:
    return "a flat value" if config.correction is None else f"{config.file}: correction {config.correction!r}"


def _check(config: CorrectionConfig, kind: str, key: str) -> None:
    """Raise unless the correction, if there is one, exists and every input has a source."""
    if config.correction is None:
        return
    inputs = {variable.name: variable.type for variable in _find(config).inputs}
    expected = ", ".join(f"{name} ({type_})" for name, type_ in inputs.items()) or "nothing"
    given = {**dict.fromkeys(_QUANTITIES.get(kind, ())), **config.inputs}
    unknown = [name for name in config.inputs if name not in inputs]
    missing = [name for name in inputs if name not in given]
    if unknown or missing:
        problem = f"unknown input {unknown[0]!r}" if unknown else f"input {missing[0]!r} is not given"
        raise CorrectionError(f"{key}.inputs: {problem}; {_describe(config)} takes {expected}")


def _evaluate(config: CorrectionConfig, variation: str, columns: _Columns, chosen: IntArray) -> FloatArray:
    """Values of a correction for the objects at an index, finite, shape (chosen,)."""
    if not len(chosen):
        return np.empty(0)
    correction = _find(config)
    arguments: list[Any] = []
    for variable in correction.inputs:
        value = config.inputs.get(variable.name, variable.name)
        if isinstance(value, dict):
            value = value[variation]
        if variable.type == "string":
            arguments.append(str(value))
        else:
            number = columns[value][chosen] if isinstance(value, str) else np.full(len(chosen), value)
            arguments.append(number.astype(np.int64 if variable.type == "int" else np.float64))
    try:
        found = np.asarray(correction.evaluate(*arguments), dtype=np.float64)
    # Whatever C++ throws on a value outside of the bins or an unknown text.
    except Exception as error:
        reason = " ".join(str(error).split())
        takes = ", ".join(variable.name for variable in correction.inputs)
        raise CorrectionError(
            f"{columns.origin}: {_describe(config)} refuses its inputs ({takes}): {reason}"
        ) from error
    found = np.broadcast_to(found, chosen.shape)
    bad = np.flatnonzero(~np.isfinite(found))
    if bad.size:
        at = ", ".join(
            f"{variable.name} = {argument if isinstance(argument, str) else argument[bad[0]]}"
            for variable, argument in zip(correction.inputs, arguments, strict=True)
        )
        raise CorrectionError(
            f"{columns.origin}: {_describe(config)} gives {bad.size} of {found.size} values NaN or infinite, "
            f"first at {at}"
        )
    return found
