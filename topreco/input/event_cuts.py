"""Optional cuts on whole events: certification, filters, triggers and vetoes of broken detector regions."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from topreco.config import ConfigError, CutsConfig, JetVetoMap, SelectionConfig
from topreco.core import fourvector
from topreco.core.events import BoolArray, FloatArray, dataset_id, hashed_uniform
from topreco.core.files import content_of
from topreco.input.corrections import PHI_MAX
from topreco.input.objects import HEM_ETA_MAX, MAP_ETA_MAX, MAP_PT_MIN, Objects, Particles
from topreco.input.payloads import CorrectionError, check_payload, read_payload

HEM_FIRST_RUN = 319077
"""First run of 2018 without the HCAL modules HEM15 and HEM16."""

# Ranges of η and φ.
# HEM: https://twiki.cern.ch/twiki/bin/view/CMS/SUSRecommendationsRun2Legacy, with 0.2 more in η for jets.
# BPix: `jetvetomap_bpix`, https://twiki.cern.ch/twiki/bin/viewauth/CMS/PdmVRun3Analysis.
_HEM = ((-HEM_ETA_MAX, -1.3), (-1.57, -0.87))
_BPIX = ((-1.5, 0.0), (-1.2, -0.8))
# Independent of the hashes that split training samples.
_HEM_SALT = 15_16

# Jets that a veto map judges, https://cms-jerc.web.cern.ch/Recommendations/#jet-veto-maps.
_MAP_EM_FRACTION_MAX = 0.9
_MAP_MUON_DISTANCE = 0.2


def event_cuts(objects: Objects, config: SelectionConfig, dataset: str) -> Iterator[tuple[str, BoolArray]]:
    """Optional cuts that are on, in order, with the events that pass each.

    Parameters
    ----------
    objects
        Objects of n events.
    config
        Resolved selection.
    dataset
        Name of the dataset.

    Yields
    ------
    name, passed
        Step of the cutflow; shape (n,).

    Raises
    ------
    topreco.config.ConfigError
        If a file of the configuration cannot be used, or data of no primary dataset of `triggers`.
    """
    cuts = config.cuts
    if cuts.golden_json is not None and not objects.branches.is_simulation:
        mask = _lumi_mask(cuts.golden_json)
        yield "golden JSON", np.asarray(mask(objects.run, objects.luminosity_block), dtype=bool)
    if cuts.met_filters:
        yield "MET filters", objects.met_filters
    if cuts.triggers:
        yield "trigger", _triggered(objects, cuts, dataset)
    jets = objects.jets
    good_jets = jets.identified & (jets.pt > config.jet.pt_min)
    if cuts.hem_veto:
        electrons = objects.electrons
        hit = _any_inside(jets, good_jets, _HEM) | _any_inside(
            electrons, electrons.identified & (electrons.pt > config.electron.pt_min), _HEM
        )
        yield "HEM15/16", ~(hit & _late_2018(objects, cuts.hem_fraction, dataset))
    if cuts.bpix_veto:
        yield "BPix", ~_any_inside(jets, good_jets, _BPIX)
    if cuts.jet_veto_map is not None and cuts.jet_veto_map.level == "event":
        vetoed = vetoed_jets(objects, cuts.jet_veto_map)
        yield "jet veto map", np.bincount(jets.event[vetoed], minlength=len(objects)) == 0


def primary_dataset(cuts: CutsConfig, dataset: str, origin: str) -> str:
    """Primary dataset of `cuts.triggers` that the name of a dataset of data contains.

    Raises
    ------
    topreco.config.ConfigError
        If it contains none.
    """
    # A dataset DoubleMuon_Run2018A belongs to DoubleMuon, not to Muon.
    own = max((name for name in cuts.triggers if name in dataset), key=len, default=None)
    if own is None:
        raise ConfigError(
            f"{origin}: data of dataset {dataset!r}, whose name contains no primary dataset "
            f"of selection.cuts.triggers ({', '.join(cuts.triggers)})"
        )
    return own


def vetoed_jets(objects: Objects, veto: JetVetoMap) -> BoolArray:
    """Identified jets above 15 GeV in a vetoed region that are neither muons nor electromagnetic showers.

    Raises
    ------
    topreco.core.errors.TopRecoError
        If the map cannot be used.
    """
    jets, muons = objects.jets, objects.muons
    judged = jets.identified & (jets.pt > MAP_PT_MIN) & (np.abs(jets.eta) < MAP_ETA_MAX)
    judged &= jets.em_fraction < _MAP_EM_FRACTION_MAX
    at = np.flatnonzero(judged)
    phi = np.clip(jets.phi[at], -PHI_MAX, PHI_MAX)  # single precision may exceed the map's edge, π
    at = at[_evaluate_map(veto, jets.eta[at], phi)]
    for i in at:  # few
        same = (muons.event == jets.event[i]) & ~muons.dropped
        distance = fourvector.delta_r(jets.p4([i]), muons.p4(same))
        judged[i] = distance.min(initial=np.inf) > _MAP_MUON_DISTANCE
    vetoed = np.zeros(len(jets.pt), dtype=bool)
    vetoed[at] = judged[at]
    return vetoed


def _any_inside(
    particles: Particles, keep: BoolArray, region: tuple[tuple[float, float], tuple[float, float]]
) -> BoolArray:
    """Events with a kept object inside an η-φ region, shape (n,)."""
    eta, phi = region
    inside = keep & (particles.eta > eta[0]) & (particles.eta < eta[1])
    inside &= (particles.phi > phi[0]) & (particles.phi < phi[1])
    return np.bincount(particles.event[inside], minlength=len(particles.counts)) > 0


def _late_2018(objects: Objects, fraction: float, dataset: str) -> BoolArray:
    """Events of the time without HEM15/16, or the given fraction of simulated ones, shape (n,)."""
    if not objects.branches.is_simulation:
        return objects.run >= HEM_FIRST_RUN
    key = (dataset_id(dataset), objects.run, objects.luminosity_block, objects.event)
    return hashed_uniform(_HEM_SALT, *key) < fraction


def _triggered(objects: Objects, cuts: CutsConfig, dataset: str) -> BoolArray:
    """Any trigger in simulation; in data those of the primary dataset without those of earlier ones."""
    fired = objects.triggers
    if objects.branches.is_simulation:
        return np.logical_or.reduce(list(fired.values()))
    own = primary_dataset(cuts, dataset, objects.branches.origin)
    names = list(cuts.triggers)
    passed = fired[own].copy()
    for earlier in names[: names.index(own)]:
        passed &= ~fired[earlier]
    return passed


def check_event_cuts(config: SelectionConfig) -> None:
    """Check that the files of the optional cuts exist and contain what they must.

    Raises
    ------
    topreco.core.errors.TopRecoError
        If one cannot be used.
    """
    cuts = config.cuts
    if cuts.golden_json is not None:
        _lumi_mask(cuts.golden_json)
    if cuts.jet_veto_map is not None:
        _evaluate_map(cuts.jet_veto_map, np.zeros(1), np.zeros(1))


def _lumi_mask(path: Path) -> Any:
    try:
        digest = content_of(path)
    except OSError as error:
        raise ConfigError(f"{_no_certification(path)}: {error.strerror}") from error
    return _read_lumi_mask(path, digest)


def _no_certification(path: Path) -> str:
    return f"{path}: no JSON of certified luminosity sections (selection.cuts.golden_json)"


@functools.lru_cache(maxsize=8)
def _read_lumi_mask(path: Path, digest: str) -> Any:  # noqa: ARG001 - part of the cache's key
    what = _no_certification(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what}: {error}") from error
    # LumiMask would accept lists that do not consist of pairs.
    if not isinstance(content, dict) or not all(
        run.isdecimal() and int(run) < 2**32 and isinstance(ranges, list) and all(map(_is_range, ranges))
        for run, ranges in content.items()
    ):
        raise ConfigError(f"{what}: lists of [first, last] by run expected")
    # Its import compiles for seconds, which every worker would wait for.
    from coffea.lumi_tools import LumiMask

    return LumiMask(str(path))


def _is_range(value: Any) -> bool:
    """Return True for [first, last] of luminosity sections."""
    numbers = isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)
    return numbers and 1 <= value[0] <= value[1] < 2**32


def _evaluate_map(veto: JetVetoMap, eta: FloatArray, phi: FloatArray) -> BoolArray:
    """True for positions in a vetoed region."""
    correction = _veto_map(veto.file, veto.name)
    try:
        return np.asarray(correction.evaluate(veto.kind, eta, phi)) != 0
    except (IndexError, RuntimeError) as error:
        raise ConfigError(
            f"{veto.file}: map {correction.name} cannot be evaluated for selection.cuts.jet_veto_map.kind "
            f"{veto.kind!r} ({error})"
        ) from error


def _veto_map(path: Path, name: str | None) -> Any:
    try:
        check_payload(path)
        corrections = read_payload(path)
    except CorrectionError as error:
        raise CorrectionError(f"selection.cuts.jet_veto_map.file: {error}") from error
    names = list(corrections)
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        raise ConfigError(
            f"{path}: no correction {name!r} (selection.cuts.jet_veto_map.name); it has {', '.join(names)}"
        )
    return corrections[name]
