"""Corrections from correctionlib files: their inputs from the columns of objects, and their values."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from topreco.config import Condition, CorrectionConfig, Range
from topreco.core.events import FloatArray, IntArray
from topreco.input.branches import Branches
from topreco.input.nano import InputError
from topreco.input.objects import Particles, supercluster_eta
from topreco.input.payloads import CorrectionError, read_payload

COLLECTIONS = {"jet": "Jet", "soft jet": "CorrT1METJet", "electron": "Electron", "muon": "Muon"}
"""NanoAOD's collection of each kind of object."""

PHI_MAX = 3.1415926
"""Largest φ that is given to a payload, below π in single precision."""

_KINEMATIC = ("pt", "eta", "abseta", "phi", "mass")
_QUANTITIES = {
    "jet": (*_KINEMATIC, "btag"),
    "soft jet": _KINEMATIC,
    "electron": (*_KINEMATIC, "charge", "eta_sc", "abseta_sc"),
    "muon": (*_KINEMATIC, "charge"),
    "event": (),
}


class Columns:
    """Values of all objects of one kind, or of all events, by the name of a quantity or branch.

    Parameters
    ----------
    branches
        Branches of the chunk.
    kind
        Jet, soft jet, electron, muon or event. Branches of jets are those of soft ones by the same names.
    particles
        The objects; None for events.
    """

    def __init__(self, branches: Branches, kind: str, particles: Particles | None) -> None:
        self.branches = branches
        self.kind = kind
        self.particles = particles

    def __getitem__(self, name: str) -> Any:
        """A column, one value per object.

        Raises
        ------
        InputError
            If it is no quantity, and the branch is missing or belongs to other objects.
        """
        particles = self.particles
        if particles is None or name not in _QUANTITIES[self.kind]:
            return self._branch(name)
        if name.startswith("abs"):
            return np.abs(self[name.removeprefix("abs")])
        if name == "eta_sc":
            eta = supercluster_eta(self.branches, particles.eta)
            # Where the file has neither branch, reading the older one gives the error.
            return particles.eta + self.branches.finite("Electron_deltaEtaSC") if eta is None else eta
        if name == "phi":
            # NanoAOD's few bits may exceed the last edge of a payload, π.
            return np.clip(particles.phi, -PHI_MAX, PHI_MAX)
        return getattr(particles, name)

    def _branch(self, name: str) -> Any:
        particles = self.particles
        if self.kind == "soft jet":
            name = re.sub("^Jet_", f"{COLLECTIONS[self.kind]}_", name)
        of_object = particles is not None and name.startswith(f"{COLLECTIONS[self.kind]}_")
        allowed = " or ".join(["a branch of the event", *_QUANTITIES[self.kind]])
        if particles is not None:
            allowed = f"a branch {COLLECTIONS[self.kind]}_…, {allowed}"
        hint = f"an input of corrections of {self.kind}s is {allowed}"
        try:
            jagged, values = self.branches.is_jagged(name), self.branches.read(name)
        except InputError as error:
            raise InputError(f"{error}; {hint}") from error
        if jagged != of_object:
            raise InputError(f"{self.branches.origin}: branch {name!r} belongs to something else; {hint}")
        return values if particles is None or of_object else np.repeat(values, particles.counts)

    def passing(self, where: Mapping[str, Condition]) -> Any:
        """True for objects that meet the conditions, shape (objects,)."""
        passed = np.ones(len(self.branches) if self.particles is None else len(self.particles.pt), bool)
        for name, condition in where.items():
            values = self[name]
            if isinstance(condition, Range):
                passed &= (values >= condition.min) & (values < condition.max)
            else:
                passed &= np.isin(values, condition)
        return passed


def _find(config: CorrectionConfig) -> Any:
    """The correction, which may be a compound one."""
    found = read_payload(config.file)  # type: ignore[arg-type]  # validated: a correction has a file
    for corrections in (found, found.compound):
        if config.correction in list(corrections):
            return corrections[config.correction]
    names = ", ".join([*found, *found.compound])
    raise CorrectionError(f"{config.file}: no correction {config.correction!r}; there are: {names}")


def describe_correction(config: CorrectionConfig) -> str:
    """A correction as errors name it."""
    return "a flat value" if config.correction is None else f"{config.file}: correction {config.correction!r}"


def check_inputs(config: CorrectionConfig, kind: str, key: str) -> None:
    """Check that the correction, if there is one, exists and that every input has a source.

    Parameters
    ----------
    config
        The correction.
    kind
        Jet, electron, muon or event, whose quantities need not be given.
    key
        Configuration key of the source, for the error.

    Raises
    ------
    CorrectionError
        If it does not exist, an input is missing or one is unknown.
    """
    if config.correction is None:
        return
    inputs = {variable.name: variable.type for variable in _find(config).inputs}
    expected = ", ".join(f"{name} ({type_})" for name, type_ in inputs.items()) or "nothing"
    given = {**dict.fromkeys(_QUANTITIES.get(kind, ())), **config.inputs}
    unknown = [name for name in config.inputs if name not in inputs]
    missing = [name for name in inputs if name not in given]
    if unknown or missing:
        problem = f"unknown input {unknown[0]!r}" if unknown else f"input {missing[0]!r} is not given"
        raise CorrectionError(f"{key}.inputs: {problem}; {describe_correction(config)} takes {expected}")


def input_branches(config: CorrectionConfig, kind: str) -> set[str]:
    """Branches that the inputs of a correction are read from, if there is one; see `check_inputs`."""
    if config.correction is None:
        return set()
    types = {variable.name: variable.type for variable in _find(config).inputs}
    given = [value for name, value in config.inputs.items() if types.get(name) != "string"]
    values = [value for each in given for value in (each.values() if isinstance(each, dict) else (each,))]
    return {value for value in values if isinstance(value, str)} - set(_QUANTITIES.get(kind, ()))


def is_quantity(name: str, kind: str) -> bool:
    """Return True for a quantity of that kind of object, which is no branch."""
    return name in _QUANTITIES.get(kind, ())


def evaluate(config: CorrectionConfig, variation: str, columns: Columns, chosen: IntArray) -> FloatArray:
    """Values of a correction for some objects.

    Parameters
    ----------
    config
        The correction.
    variation
        Name of the variation, which chooses among the values of an input.
    columns
        Values that it may depend on.
    chosen
        Positions of the objects, shape (chosen,).

    Returns
    -------
    values
        Finite, shape (chosen,).

    Raises
    ------
    CorrectionError
        If the correction refuses its inputs or gives a NaN or an infinity.
    """
    if not len(chosen):
        return np.empty(0)
    what = f"{columns.branches.origin}: {describe_correction(config)}"
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
    # C++ throws various errors for a value outside of the bins or an unknown text.
    except Exception as error:
        reason = " ".join(str(error).split())
        at = _values_at(correction, arguments, _first_refused(correction, arguments, len(chosen)))
        raise CorrectionError(f"{what} refuses {at}: {reason}") from error
    found = np.broadcast_to(found, chosen.shape)
    bad = np.flatnonzero(~np.isfinite(found))
    if bad.size:
        at = _values_at(correction, arguments, int(bad[0]))
        raise CorrectionError(
            f"{what} gives {bad.size} of {found.size} values NaN or infinite, first at {at}"
        )
    return found


def _first_refused(correction: Any, arguments: list[Any], n: int) -> int:
    """Position of the first object for which a correction raises an error."""
    for i in range(n):
        try:
            correction.evaluate(
                *(value if isinstance(value, str) else value[i].item() for value in arguments)
            )
        except Exception:  # noqa: BLE001 - as in `evaluate`
            return i
    return 0


def _values_at(correction: Any, arguments: list[Any], i: int) -> str:
    """Inputs of a correction for the object at a position, by name."""
    return ", ".join(
        f"{variable.name} = {argument if isinstance(argument, str) else argument[i]}"
        for variable, argument in zip(correction.inputs, arguments, strict=True)
    )
