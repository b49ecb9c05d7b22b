"""Converter of a user's own awkward arrays of leptons, jets and MET to `DileptonEvents`."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from topreco.config import SelectionConfig
from topreco.config.presets import resolve_selection
from topreco.core import fourvector
from topreco.core.constants import M_ELECTRON, M_MUON, PDG_ELECTRON, PDG_MUON
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, FloatArray, IntArray, dataset_id
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
    "jet.max_jets",
    "m_lb_max",
)
_KEY = ("run", "luminosityBlock", "event")
_MIN_JETS = 2


def dilepton_events(
    objects: Any,
    selection: SelectionConfig | None = None,
    *,
    dataset: str = "default",
    needs_key: bool = True,
) -> tuple[DileptonEvents, IntArray]:
    """Convert your own selected objects to the events that methods take.

    Events with one ℓ⁺, one ℓ⁻ and at least two jets are taken, the others left out. Leptons, jets and MET
    count as selected and corrected, so cuts of `selection` do not apply to them.

    Parameters
    ----------
    objects
        Dictionary, or record array, of awkward arrays with one entry per event; momenta in GeV and radians:

        - ``leptons``: any number per event, with pt, eta, phi, charge and pdgId; or in their place
          ``lepton_plus`` and ``lepton_minus``: one or None per event, with pt, eta, phi and pdgId;
        - ``jets``: any number per event, in any order, with pt, eta, phi, mass and the b-tag score, as
          ``btag`` or under its name in NanoAOD (`selection.jet.btag`);
        - ``met``: pt and phi;
        - ``run``, ``luminosityBlock`` and ``event``, as in NanoAOD.
    selection
        Name and working point of the b tagger, directly or by `preset` and `era`; number of jets to keep;
        largest lepton–b mass of a b candidate.
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
        If objects or fields are missing, lengths differ, or a lepton is neither e nor μ.
    topreco.config.ConfigError
        If a key of `selection` would be ignored, or its preset cannot be resolved.
    """
    import awkward as ak

    given = SelectionConfig() if selection is None else selection
    given.require_effect(_APPLICABLE, "your own objects")
    config = resolve_selection(given, ())
    columns = _columns(objects)
    absent = [key for key in _KEY if key not in columns]
    if absent and needs_key:
        raise TopRecoError(
            f"reconstruct: {absent[0]!r} is missing; predictions of the method depend on run, "
            "luminosityBlock and event, so add all three to the objects"
        )
    plus, minus, paired = _leptons(columns)
    jets = columns["jets"]
    index = np.flatnonzero(paired & (ak.to_numpy(ak.fill_none(ak.num(jets), 0)) >= _MIN_JETS))
    (p4_plus, flavour_plus), (p4_minus, flavour_minus) = (
        _lepton(lepton[index], role) for lepton, role in ((plus, "ℓ⁺"), (minus, "ℓ⁻"))
    )
    btag = "btag" if "btag" in ak.fields(jets) else config.jet.btag
    fields = [_field(jets, "jets", field)[index] for field in ("pt", "eta", "phi", "mass", btag)]
    order = ak.argsort(fields[0], ascending=False, stable=True)
    pt, eta, phi, mass, score = (_padded(column[order], config.jet.max_jets) for column in fields)
    mask = np.arange(config.jet.max_jets) < ak.to_numpy(ak.num(fields[0]))[:, None]
    p4 = np.where(mask[..., None], fourvector.from_pt_eta_phi_mass(pt, eta, phi, mass), 0.0)
    tagged = mask & (score > config.jet.btag_threshold)
    met_pt, met_phi = (_numbers(_field(columns["met"], "met", f)[index], "met", f) for f in ("pt", "phi"))
    run, block, event = (
        ak.to_numpy(columns[key])[index].astype(kind) if not absent else index.astype(kind)
        for key, kind in zip(_KEY, (np.uint32, np.uint32, np.uint64), strict=True)
    )
    return DileptonEvents(
        lepton_plus=p4_plus,
        lepton_minus=p4_minus,
        lepton_flavour=np.stack([flavour_plus, flavour_minus], axis=1),
        jets=p4,
        jet_mask=mask,
        jet_btag=np.where(mask, score, 0.0),
        jet_tagged=tagged,
        b_candidates=b_candidates(p4_plus, p4_minus, p4, mask, tagged, m_lb_max=config.m_lb_max),
        met=np.stack([met_pt * np.cos(met_phi), met_pt * np.sin(met_phi)], axis=-1),
        dataset=np.full(len(index), dataset_id(dataset), dtype=np.uint64),
        run=run,
        luminosity_block=block,
        event=event,
        weight=np.ones(len(index)),
    ), index


def _listed(names: Collection[str], most: int = 12) -> str:
    """Names for an error, of a length that can be read."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(sorted(names)[:most]) or 'nothing'}{more}"


def _columns(objects: Any) -> dict[str, Any]:
    """The arrays that are used, by name, of one and the same length."""
    import awkward as ak

    names = set(objects if isinstance(objects, Mapping) else objects.layout.fields)
    pair = {"lepton_plus", "lepton_minus"}
    lists = ["jets"] if pair <= names else ["jets", "leptons"]
    if missing := sorted({*lists, "met"} - names):
        raise TopRecoError(
            f"reconstruct: {missing[0]!r} is missing; {ACCEPTED} expected, found {_listed(names)}"
        )
    used = [*lists, "met", *(pair if "leptons" not in lists else ()), *(set(_KEY) & names)]
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
        # A mask flattens lists of one and the same length.
        columns[name] = ak.from_regular(columns[name], axis=1)
    return columns


def _leptons(columns: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """ℓ⁺ and ℓ⁻ of each event, None where there is none, and where there is exactly one of each."""
    import awkward as ak

    if "leptons" not in columns:
        plus, minus = columns["lepton_plus"], columns["lepton_minus"]
        for name in ("lepton_plus", "lepton_minus"):
            if _field(columns[name], name, "pt").ndim != 1:
                raise TopRecoError(
                    f"reconstruct: {name!r}: one lepton or None per event expected, lists found; "
                    "use ak.firsts, or give all as 'leptons'"
                )
        paired = ~(ak.is_none(plus) | ak.is_none(minus))
        return plus, minus, ak.to_numpy(paired)
    leptons = columns["leptons"]
    charge = _field(leptons, "leptons", "charge")
    positive, negative = leptons[charge > 0], leptons[charge < 0]
    paired = (ak.num(positive) == 1) & (ak.num(negative) == 1)
    return ak.firsts(positive), ak.firsts(negative), ak.to_numpy(ak.fill_none(paired, value=False))


def _lepton(lepton: Any, role: str) -> tuple[FloatArray, IntArray]:
    """Four-momenta (E, px, py, pz) in GeV, shape (n, 4), and |pdgId|, shape (n,), of one lepton per event."""
    flavour = np.abs(_numbers(_field(lepton, role, "pdgId"), role, "pdgId").astype(np.int64))
    if not np.isin(flavour, (PDG_ELECTRON, PDG_MUON)).all():
        strange = flavour[~np.isin(flavour, (PDG_ELECTRON, PDG_MUON))][0]
        raise TopRecoError(f"reconstruct: {role} with |pdgId| {strange}, 11 or 13 expected")
    pt, eta, phi = (_numbers(_field(lepton, role, name), role, name) for name in ("pt", "eta", "phi"))
    # As in the selection, since NanoAOD's masses of leptons are rounding noise.
    mass = np.where(flavour == PDG_MUON, M_MUON, M_ELECTRON)
    return fourvector.from_pt_eta_phi_mass(pt, eta, phi, mass), flavour


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
    return ak.to_numpy(ak.fill_none(column, np.nan)).astype(np.float64)


def _padded(column: Any, length: int) -> FloatArray:
    """Numbers of the leading objects in double precision, zero where there is none, shape (n, length)."""
    import awkward as ak

    padded = ak.fill_none(ak.pad_none(column, length, clip=True), 0.0)
    return ak.to_numpy(ak.to_regular(padded)).astype(np.float64).reshape(-1, length)
