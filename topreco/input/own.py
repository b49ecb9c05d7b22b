"""Converter of a user's own awkward arrays of leptons, jets and MET to `DileptonEvents`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from topreco.config import FeaturesConfig, SelectionConfig, lepton_branches
from topreco.config.presets import resolve_selection
from topreco.core import fourvector
from topreco.core.constants import M_ELECTRON, M_MUON, PDG_ELECTRON, PDG_MUON
from topreco.core.errors import TopRecoError
from topreco.core.events import (
    WORKING_POINTS,
    BoolArray,
    DileptonEvents,
    FloatArray,
    IntArray,
    dataset_id,
)
from topreco.core.pairing import b_candidates

ACCEPTED = (
    "NanoEvents, events of pepper, topreco.DileptonEvents, or a dictionary with 'leptons' (or 'lepton_plus' "
    "and 'lepton_minus'), 'jets' and 'met'"
)
_APPLICABLE = (
    "preset",
    "era",
    "jet.btag",
    "jet.working_point",
    "jet.btag_threshold",
    "jet.btag_working_points",
    "jet.max_jets",
    "m_lb_max",
    "features",
)
_MOMENTUM = ("pt", "eta", "phi")
_KEY = ("run", "luminosityBlock", "event")
_MIN_JETS = 2
_COUNTED = "working_points"
"""Field of own jets with the number of working points passed."""


def dilepton_events(
    objects: Any,
    selection: SelectionConfig | None = None,
    *,
    dataset: str = "default",
    needs_key: bool = True,
) -> tuple[DileptonEvents, IntArray]:
    """Convert your own selected objects to the events that methods take.

    Events with one ℓ⁺, one ℓ⁻ and at least two jets are taken, the others left out. Leptons, jets and MET
    count as selected and corrected, so cuts of `selection` do not apply to them. Objects that are None, as
    `ak.mask` and `ak.pad_none` make them, or padded with NaN or with pT = 0, are not there.

    Parameters
    ----------
    objects
        Dictionary, or record array, of awkward arrays with one entry per event; momenta in GeV and radians:

        - ``leptons``: any number per event, with pt, eta, phi, charge and pdgId; or in their place
          ``lepton_plus`` and ``lepton_minus``: one or None per event, with pt, eta, phi and pdgId;
        - ``jets``: any number per event, in any order, with pt, eta, phi, mass and the b-tag score, as
          ``btag`` or under its name in NanoAOD (`selection.jet.btag`); with it, or for networks that see no
          score in its place, ``working_points``, the number of working points passed, which is else
          counted from the score. Without score `selection.jet.working_point` says which of them is a tag;
        - ``met``: pt and phi;
        - features of `selection.features`: those of jets and leptons as fields of these under their names in
          NanoAOD without the collection (``PNetRegPtRawRes``), those of events beside ``met``
          (``PV_npvsGood``);
        - ``run``, ``luminosityBlock`` and ``event``, as in NanoAOD.
    selection
        Name and working points of the b tagger, directly or by `preset` and `era`; number of jets to keep;
        largest lepton–b mass of a b candidate; features to take.
    dataset
        Name of the dataset, which enters the key of each event.
    needs_key
        Require run, luminosityBlock and event. If False, events without them get their position instead,
        which is enough for methods whose predictions do not depend on the key.

    Returns
    -------
    events
        The n events that were taken, with weight 1.
    index
        Their positions among the given ones, rising, shape (n,).

    Raises
    ------
    TopRecoError
        If objects, fields or needed values are missing, lengths differ, or a lepton is neither e nor μ.
    topreco.config.ConfigError
        If a key of `selection` would be ignored, or its preset cannot be resolved.
    """
    import awkward as ak

    from topreco.input.features import count_working_points
    from topreco.input.objects import b_tag_scores, pad_in_falling_pt

    given = SelectionConfig() if selection is None else selection
    given.require_effect(_APPLICABLE, "your own objects")
    config = resolve_selection(given, ())
    features = config.features
    columns = _columns(objects, features)
    absent = [key for key in _KEY if key not in columns]
    if absent and needs_key:
        raise TopRecoError(
            f"reconstruct: {absent[0]!r} is missing; predictions of the method depend on run, "
            "luminosityBlock and event, so add all three to the objects"
        )
    leptons, paired = _leptons(columns, features)
    fields = ak.fields(columns["jets"])
    btag = "btag" if "btag" in fields else config.jet.btag
    counted = _COUNTED in fields
    scored = not counted or btag in fields
    of_jets = {f"jet:{name}": name.removeprefix("Jet_") for name in features.jet}
    of_tagger = [name for name, given in ((btag, scored), (_COUNTED, counted)) if given]
    others = tuple(dict.fromkeys((*of_tagger, *of_jets.values())))
    jets = _objects(columns["jets"], "jets", (*_MOMENTUM, "mass"), others)
    n_jets = np.bincount(jets.event, minlength=len(paired))
    index = np.flatnonzero(paired & (n_jets >= _MIN_JETS))
    (p4_plus, flavour_plus), (p4_minus, flavour_minus) = (
        _lepton(lepton, index, role) for lepton, role in zip(leptons, ("ℓ⁺", "ℓ⁻"), strict=True)
    )
    flavour = np.stack([flavour_plus, flavour_minus], axis=1)
    row_of_event = np.full(len(paired), -1)
    row_of_event[index] = np.arange(len(index))
    jets = jets[row_of_event[jets.event] >= 0]
    _require((*_MOMENTUM, "mass"), jets.values, "jets")
    padded = pad_in_falling_pt(row_of_event[jets.event], jets.values["pt"], len(index), config.jet.max_jets)
    mask = padded(np.ones(len(jets.event), dtype=bool))
    p4 = padded(fourvector.from_pt_eta_phi_mass(*(jets.values[name] for name in (*_MOMENTUM, "mass"))))
    if counted:
        _require((_COUNTED,), jets.values, "jets")
        points = padded(_checked_counts(jets.values[_COUNTED]))
    if scored:
        score = padded(b_tag_scores(jets.values[btag], f"reconstruct: jets {btag!r}")[0])
        tagged = mask & (score > config.jet.btag_threshold)
    else:
        score = np.where(mask, np.nan, 0.0)
        tagged = points > WORKING_POINTS.index(config.jet.working_point)
    if not counted:
        points = count_working_points(score, config.jet.btag_working_points)
    values = {name: padded(jets.values[field]) for name, field in of_jets.items()}
    values |= _lepton_features(leptons, features, index, flavour)
    values |= {f"event:{name}": _numbers(columns[name], "event", name)[index] for name in features.event}
    met = {f: _numbers(_field(columns["met"], "met", f), "met", f)[index] for f in ("pt", "phi")}
    _require(("pt", "phi"), met, "met")
    run, block, event = (
        _key(columns[key], key, index).astype(kind) if not absent else index.astype(kind)
        for key, kind in zip(_KEY, (np.uint32, np.uint32, np.uint64), strict=True)
    )
    return DileptonEvents(
        lepton_plus=p4_plus,
        lepton_minus=p4_minus,
        lepton_flavour=flavour,
        jets=p4,
        jet_mask=mask,
        jet_btag=score,
        jet_tagged=tagged,
        b_candidates=b_candidates(p4_plus, p4_minus, p4, mask, tagged, m_lb_max=config.m_lb_max),
        met=np.stack([met["pt"] * np.cos(met["phi"]), met["pt"] * np.sin(met["phi"])], axis=-1),
        dataset=np.full(len(index), dataset_id(dataset), dtype=np.uint64),
        run=run,
        luminosity_block=block,
        event=event,
        weight=np.ones(len(index)),
        jet_working_points=points,
        features=values or None,
    ), index


def _checked_counts(counts: FloatArray) -> IntArray:
    """Numbers of working points passed, as integers."""
    most = len(WORKING_POINTS)
    wrong = counts[~np.isin(counts, np.arange(most + 1))]
    if wrong.size:
        raise TopRecoError(
            f"reconstruct: jets {_COUNTED!r}: {wrong[0]:g} found, numbers of passed working points from 0 to "
            f"{most} expected"
        )
    return counts.astype(np.int8)


def _lepton_fields(features: FeaturesConfig) -> tuple[str, ...]:
    """Fields of own leptons that features are read from."""
    branches = [branch for name in features.lepton for branch in lepton_branches(name)]
    return tuple(dict.fromkeys(branch.partition("_")[2] for branch in branches))


def _lepton_features(
    pair: list["_Objects"], features: FeaturesConfig, index: IntArray, flavour: IntArray
) -> dict[str, FloatArray]:
    """Features of ℓ⁺ and ℓ⁻, shape (n, 2) each."""
    chosen = [leptons[np.isin(leptons.event, index)] for leptons in pair]
    found = {}
    for name in features.lepton:
        electron, muon = (
            np.stack([leptons.values[branch.partition("_")[2]] for leptons in chosen], axis=1)
            for branch in lepton_branches(name)
        )
        found[f"lepton:{name}"] = np.where(flavour == PDG_MUON, muon, electron)
    return found


def _listed(names: Collection[str], most: int = 12) -> str:
    """Names for an error, of a length that can be read."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(sorted(names)[:most]) or 'nothing'}{more}"


def _columns(objects: Any, features: FeaturesConfig) -> dict[str, Any]:
    """The arrays that are used, by name, of one and the same length."""
    import awkward as ak

    names = set(objects if isinstance(objects, Mapping) else objects.layout.fields)
    pair = {"lepton_plus", "lepton_minus"}
    lists = ["jets"] if pair <= names else ["jets", "leptons"]
    if missing := sorted({*lists, "met"} - names):
        raise TopRecoError(
            f"reconstruct: {missing[0]!r} is missing; {ACCEPTED} expected, found {_listed(names)}"
        )
    if absent := [name for name in features.event if name not in names]:
        raise TopRecoError(
            f"reconstruct: {absent[0]!r}, a feature of events (features.event), is missing; "
            f"found {_listed(names)}"
        )
    used = [*lists, "met", *features.event, *(pair if "leptons" not in lists else ()), *(set(_KEY) & names)]
    columns = {name: ak.Array(objects[name]) for name in used}
    n = len(columns["jets"])
    for name, column in columns.items():
        if len(column) != n:
            raise TopRecoError(
                f"reconstruct: {len(column)} entries in {name!r} and {n} in 'jets', "
                "one per event expected in each"
            )
    for name in lists:
        if columns[name].ndim != 2:
            raise TopRecoError(f"reconstruct: {name!r}: a list of objects per event expected")
    return columns


@dataclass(frozen=True)
class _Objects:
    """Objects that are there, in the order of their events.

    Attributes
    ----------
    event
        Position of the event of each object, shape (objects,).
    values
        By field, NaN where one is missing, shape (objects,) each.
    """

    event: IntArray
    values: dict[str, FloatArray]

    def __getitem__(self, keep: Any) -> "_Objects":
        return _Objects(self.event[keep], {name: values[keep] for name, values in self.values.items()})


def _objects(array: Any, role: str, momentum: tuple[str, ...], others: tuple[str, ...]) -> _Objects:
    """Objects of a list per event, or of one per event; those without momentum are not there.

    None, NaN in all of the momentum and pT = 0 are what masks and padding leave in place of an object.
    """
    import awkward as ak

    columns = {name: _field(array, role, name) for name in (*momentum, *others)}
    pt = columns["pt"]
    if pt.ndim == 1:
        event = np.arange(len(pt))
        values = {name: _numbers(column, role, name) for name, column in columns.items()}
    else:
        # Flattening leaves out the lists that are None.
        event = np.repeat(np.arange(len(pt)), ak.to_numpy(ak.fill_none(ak.num(pt, axis=1), 0)))
        values = {
            name: _numbers(ak.flatten(ak.from_regular(column, axis=1), axis=1), role, name)
            for name, column in columns.items()
        }
    there = np.any([np.isfinite(values[name]) for name in momentum], axis=0) & ~(values["pt"] <= 0)
    return _Objects(event, values)[there]


def _leptons(columns: Mapping[str, Any], features: FeaturesConfig) -> tuple[list[_Objects], BoolArray]:
    """ℓ⁺ and ℓ⁻ of all events, and the events with exactly one of each, shape (n,)."""
    n = len(columns["jets"])
    further = _lepton_fields(features)
    if "leptons" not in columns:
        pair = []
        for name in ("lepton_plus", "lepton_minus"):
            if _field(columns[name], name, "pt").ndim != 1:
                raise TopRecoError(
                    f"reconstruct: {name!r}: one lepton or None per event expected, lists found; "
                    "use ak.firsts, or give all as 'leptons'"
                )
            pair.append(_objects(columns[name], name, _MOMENTUM, ("pdgId", *further)))
    else:
        leptons = _objects(columns["leptons"], "leptons", _MOMENTUM, ("charge", "pdgId", *further))
        _require(("charge",), leptons.values, "leptons")
        charge = leptons.values["charge"]
        pair = [leptons[charge > 0], leptons[charge < 0]]
    for leptons in pair:
        _require(_MOMENTUM, leptons.values, "leptons")
    paired = np.all([np.bincount(leptons.event, minlength=n) == 1 for leptons in pair], axis=0)
    return pair, paired


def _lepton(leptons: _Objects, index: IntArray, role: str) -> tuple[FloatArray, IntArray]:
    """Four-momenta (E, px, py, pz) in GeV, shape (n, 4), and |pdgId|, shape (n,), of the events' leptons."""
    leptons = leptons[np.isin(leptons.event, index)]
    _require(("pdgId",), leptons.values, role)
    flavour = np.abs(leptons.values["pdgId"].astype(np.int64))
    if not np.isin(flavour, (PDG_ELECTRON, PDG_MUON)).all():
        strange = flavour[~np.isin(flavour, (PDG_ELECTRON, PDG_MUON))][0]
        raise TopRecoError(f"reconstruct: {role} with |pdgId| {strange}, 11 or 13 expected")
    # As in the selection, since NanoAOD's masses of leptons are rounding noise.
    mass = np.where(flavour == PDG_MUON, M_MUON, M_ELECTRON)
    pt, eta, phi = (leptons.values[name] for name in _MOMENTUM)
    return fourvector.from_pt_eta_phi_mass(pt, eta, phi, mass), flavour


def _require(names: tuple[str, ...], values: Mapping[str, FloatArray], role: str) -> None:
    """Raise an error if a needed number is missing."""
    for name in names:
        if bad := int(np.count_nonzero(~np.isfinite(values[name]))):
            raise TopRecoError(
                f"reconstruct: {role} {name!r} is missing, NaN or infinite in {bad} of {len(values[name])} "
                "places where it is needed; leave these objects or events out"
            )


def _key(column: Any, name: str, index: IntArray) -> Any:
    """A part of the events' key, shape (n,)."""
    import awkward as ak

    values = ak.to_numpy(column)[index]
    if bad := int(np.ma.getmaskarray(values).sum()):
        raise TopRecoError(
            f"reconstruct: {name!r} is missing in {bad} of {len(index)} events that are reconstructed"
        )
    return np.asarray(values)


def _field(array: Any, role: str, name: str) -> Any:
    """A field of an array, or a coordinate that its behaviour computes."""
    import awkward as ak

    # Of the bare layout: with its behaviour, a MET without all its coordinates raises on any access.
    if name in array.layout.fields:
        return ak.Array(array.layout)[name]
    try:
        return getattr(array, name)
    except AttributeError:
        raise TopRecoError(
            f"reconstruct: {role} without field {name!r}; found {', '.join(array.layout.fields) or 'none'}"
        ) from None


def _numbers(column: Any, role: str, name: str) -> FloatArray:
    """One number per event in double precision, shape (n,); NaN where there is none."""
    import awkward as ak

    if column.ndim != 1:
        raise TopRecoError(f"reconstruct: {role} {name!r}: one number per event expected, lists found")
    return np.asarray(ak.to_numpy(ak.fill_none(column, np.nan)), dtype=np.float64)
