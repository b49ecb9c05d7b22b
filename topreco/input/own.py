"""A user's own objects: awkward arrays of leptons, jets and MET to `DileptonEvents`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from topreco.config import SelectionConfig
from topreco.core import fourvector
from topreco.core.constants import M_ELECTRON, M_MUON, PDG_ELECTRON, PDG_MUON
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, FloatArray, IntArray, dataset_id
from topreco.core.pairing import b_candidates

ACCEPTED = (
    "NanoEvents, events of pepper, topreco.DileptonEvents, or a dictionary with 'leptons' (or 'lepton_plus' "
    "and 'lepton_minus'), 'jets' and 'met'"
)
_KEY = ("run", "luminosityBlock", "event")
_MIN_JETS = 2


class OwnObjects:
    """A user's own objects, by name."""

    def __init__(self, source: Any) -> None:
        import awkward as ak

        names = list(source) if isinstance(source, Mapping) else source.layout.fields
        pair = {"lepton_plus", "lepton_minus"}
        missing = sorted(({"jets", "met"} | (set() if pair <= set(names) else {"leptons"})) - set(names))
        if missing:
            raise TopRecoError(
                f"reconstruct: {missing[0]!r} is missing; {ACCEPTED} expected, "
                f"found {', '.join(names) or 'nothing'}"
            )
        lists = ["jets"] if pair <= set(names) else ["jets", "leptons"]
        used = [*lists, "met", *(pair if "leptons" not in lists else ()), *(set(_KEY) & set(names))]
        self.columns = {name: ak.Array(source[name]) for name in used}
        self.n = len(self.columns["jets"])
        for name, column in self.columns.items():
            if len(column) != self.n:
                raise TopRecoError(
                    f"reconstruct: {len(column)} entries in {name!r} and {self.n} in 'jets', "
                    "one per event expected in each"
                )
        for name in lists:
            if self.columns[name].ndim != 2:
                raise TopRecoError(f"reconstruct: {name!r}: a list of objects per event expected")
            # A mask flattens lists of one and the same length.
            self.columns[name] = ak.from_regular(self.columns[name], axis=1)

    def dilepton_events(
        self, config: SelectionConfig, dataset: str, *, needs_key: bool, name: str
    ) -> tuple[DileptonEvents, IntArray]:
        """The events that can be reconstructed, n of them, and their positions, shape (n,)."""
        import awkward as ak

        absent = [key for key in _KEY if key not in self.columns]
        if absent and needs_key:
            raise TopRecoError(
                f"reconstruct: {absent[0]!r} is missing; the answers of {name!r} depend on run, "
                "luminosityBlock and event, so add all three to the objects"
            )
        plus, minus, paired = self._leptons()
        jets = self.columns["jets"]
        index = np.flatnonzero(paired & (ak.to_numpy(ak.fill_none(ak.num(jets), 0)) >= _MIN_JETS))
        (p4_plus, flavour_plus), (p4_minus, flavour_minus) = (
            _lepton(lepton[index], role) for lepton, role in ((plus, "ℓ⁺"), (minus, "ℓ⁻"))
        )
        btag = "btag" if "btag" in ak.fields(jets) else config.jet.btag
        columns = [_field(jets, "jets", field)[index] for field in ("pt", "eta", "phi", "mass", btag)]
        order = ak.argsort(columns[0], ascending=False, stable=True)
        pt, eta, phi, mass, score = (_padded(column[order], config.jet.max_jets) for column in columns)
        mask = np.arange(config.jet.max_jets) < ak.to_numpy(ak.num(columns[0]))[:, None]
        p4 = np.where(mask[..., None], fourvector.from_pt_eta_phi_mass(pt, eta, phi, mass), 0.0)
        tagged = mask & (score > config.jet.btag_threshold)
        met_pt, met_phi = (
            _numbers(_field(self.columns["met"], "met", f)[index], "met", f) for f in ("pt", "phi")
        )
        run, block, event = (
            ak.to_numpy(self.columns[key])[index].astype(kind) if not absent else index.astype(kind)
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

    def _leptons(self) -> tuple[Any, Any, Any]:
        """ℓ⁺ and ℓ⁻ of each event, None where there is none, and where there is exactly one of each."""
        import awkward as ak

        if "leptons" not in self.columns:
            plus, minus = self.columns["lepton_plus"], self.columns["lepton_minus"]
            for name in ("lepton_plus", "lepton_minus"):
                if _field(self.columns[name], name, "pt").ndim != 1:
                    raise TopRecoError(
                        f"reconstruct: {name!r}: one lepton or None per event expected, lists found; "
                        "use ak.firsts, or give all as 'leptons'"
                    )
            paired = ~(ak.is_none(plus) | ak.is_none(minus))
            return plus, minus, ak.to_numpy(paired)
        leptons = self.columns["leptons"]
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
