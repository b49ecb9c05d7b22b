"""The simulated events with the branches of a NanoAOD version.

Only names, types and the scale of b-tag scores change: the events that a selection with the version's preset
keeps, and their momenta, are the same for all versions. A b-tag score has its medium working point where the
default era of the preset has it; a tagger without one there keeps its scale of UL2018. DeepCSV (`btagDeepB`)
is a tagger of its own; all others are the simulated DeepJet. What the
detector does not simulate is as in an undisturbed detector: every jet passes its identification, with the
same energy fractions for all, and every filter flag is set.
"""

from collections.abc import Mapping
from typing import Any

import awkward as ak
import numpy as np

from topreco.config.presets import find_preset, working_points
from topreco.simulation.detector import DEEPCSV_WORKING_POINTS, MEDIUM_WORKING_POINT
from topreco.simulation.nanoaod import unclustered_branches

_TAGGERS = {
    "v7": ("btagDeepB", "btagDeepFlavB"),
    "v9": ("btagDeepB", "btagDeepFlavB"),
    "v11": ("btagDeepFlavB",),
    "v12": ("btagDeepFlavB", "btagPNetB", "btagRobustParTAK4B"),
    "v14": ("btagDeepFlavB", "btagPNetB", "btagUParTAK4B"),
    "v15": ("btagDeepFlavB", "btagPNetB", "btagUParTAK4B"),
}
_FALL17 = ("mvaFall17V2Iso_WP90", "mvaFall17V2Iso_WP80")
_WINTER22 = ("mvaIso_WP90", "mvaIso_WP80")
_ELECTRON_IDS = {version: _FALL17 if version in ("v7", "v9") else _WINTER22 for version in _TAGGERS}
_FRACTIONS = {"chHEF": 0.60, "neHEF": 0.10, "chEmEF": 0.0, "neEmEF": 0.28, "muEF": 0.0}
_MULTIPLICITIES = {"chMultiplicity": 10, "neMultiplicity": 10}
_PU_ID_PASSED = 7
_DENSITY = "Rho_fixedGridRhoFastjetAll"

# From v12 on, integers are as short as they can be.
_SHORT: dict[str, dict[str, Any]] = {
    "Electron": {"cutBased": np.uint8, "jetIdx": np.int16, "genPartIdx": np.int16},
    "Muon": {"jetIdx": np.int16, "genPartIdx": np.int16},
    "Jet": {"jetId": np.uint8, "hadronFlavour": np.uint8, "genJetIdx": np.int16},
    "GenPart": {"statusFlags": np.uint16, "genPartIdxMother": np.int16},
}


def as_version(branches: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Lay out simulated branches as a NanoAOD version does.

    Parameters
    ----------
    branches
        Branches from `topreco.simulation.nanoaod.nanoaod`.
    version
        NanoAOD version such as ``v12``, for which there is a preset.

    Returns
    -------
    branches
        Branches of that version.
    """
    preset = find_preset(f"nano_{version}")[1]
    result = dict(branches)
    n_events = len(result["genWeight"])
    result["Electron"] = _electrons(result["Electron"], version)
    result["Jet"] = _jets(result["Jet"], version, preset.era)
    filters = [flag for era in preset.eras.values() for flag in era.met_filters]
    result |= {flag: np.ones(n_events, np.bool_) for flag in dict.fromkeys((*preset.met_filters, *filters))}
    if version in ("v7", "v9") and _DENSITY in result:
        result[_DENSITY.removeprefix("Rho_")] = result.pop(_DENSITY)
    if version == "v15":
        pt, phi = (np.asarray(result[f"MET_{name}"], np.float64) for name in ("pt", "phi"))
        shift = [np.asarray(result.pop(f"MET_MetUnclustEnUpDelta{axis}")) for axis in "XY"]
        momentum = np.stack([pt * np.cos(phi), pt * np.sin(phi)], axis=-1)
        result |= unclustered_branches("MET", momentum, np.stack(shift, axis=-1))
        result = {_v15_name(name): values for name, values in result.items()}
    if version in ("v12", "v14", "v15"):
        for collection, types in _SHORT.items():
            for field in set(types) & set(result[collection].fields):
                short = ak.values_astype(result[collection][field], types[field])
                result[collection] = ak.with_field(result[collection], short, field)
    return result


def _v15_name(name: str) -> str:
    for collection in ("MET", "RawMET"):
        if name.startswith(f"{collection}_"):
            return name.replace("MET", "PFMET")
    return name


def _electrons(electrons: ak.Array, version: str) -> ak.Array:
    tight = electrons.cutBased == ak.max(electrons.cutBased)
    for name in _ELECTRON_IDS[version]:
        electrons = ak.with_field(electrons, tight, name)
    return electrons


def _jets(jets: ak.Array, version: str, era: str) -> ak.Array:
    simulated = {"btagDeepB": (jets.btagDeepB, DEEPCSV_WORKING_POINTS[1])}
    deepjet = (jets.btagDeepFlavB, MEDIUM_WORKING_POINT)
    jets = jets[[field for field in jets.fields if field not in ("btagDeepB", "btagDeepFlavB")]]
    for tagger in _TAGGERS[version]:
        score, own_medium = simulated.get(tagger, deepjet)
        points = working_points()[era].taggers.get(tagger)
        rescaled = rescaled_score(score, points["M"], own_medium) if points else score
        jets = ak.with_field(jets, rescaled, tagger)
    columns: dict[str, Any] = {name: np.float32(value) for name, value in _FRACTIONS.items()}
    if version in ("v7", "v9"):
        columns["puId"] = np.int32(_PU_ID_PASSED)
    if version == "v9":
        columns["puIdDisc"] = np.float32(1)
    if version in ("v14", "v15"):
        columns |= {name: np.uint8(value) for name, value in _MULTIPLICITIES.items()}
    for name, value in columns.items():
        jets = ak.with_field(jets, ak.full_like(jets.pt, value, dtype=value.dtype), name)
    if version == "v15":
        jets = jets[[field for field in jets.fields if field != "jetId"]]
    return jets


def rescaled_score(score: ak.Array, medium: float, own_medium: float = MEDIUM_WORKING_POINT) -> ak.Array:
    """Simulated b-tag scores on the scale of another tagger or era: logit(score) is shifted.

    The jets above the medium working point are the same; the order of scores, and the efficiencies by flavour
    with it, stay those of the simulated tagger.

    Parameters
    ----------
    score
        Scores.
    medium
        Medium working point of the other scale.
    own_medium
        That of their own.
    """
    odds = medium / (1 - medium) * (1 - own_medium) / own_medium
    wide = ak.values_astype(score, np.float64)
    return ak.values_astype(odds * wide / (1 - wide + odds * wide), np.float32)
