"""The dileptonic selection: `NanoEvents` to `DileptonEvents`.

Reads reconstructed objects and `genWeight`, nothing else of the generator. Every threshold is exclusive
(identifications and numbers of objects are inclusive), and each event is judged by itself, so that results do
not depend on how a file is cut into chunks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from topreco.config import ElectronSelection, MuonSelection, SelectionConfig
from topreco.core import fourvector
from topreco.core.constants import PDG_ELECTRON, PDG_MUON
from topreco.core.events import CHANNELS, BoolArray, DileptonEvents, FloatArray, IntArray, dataset_id
from topreco.core.pairing import b_candidates
from topreco.input.cutflow import Cutflow
from topreco.input.event_cuts import event_cuts, vetoed_jets
from topreco.input.features import count_working_points, read_features
from topreco.input.objects import DROPPED, NO_B_TAG, Leptons, Objects, pad_in_falling_pt, read_objects

PU_ID_PT_MAX = 50.0
"""pT in GeV from which on the pile-up identification of jets is defined as passed."""


@dataclass(frozen=True)
class Selection:
    """Events that pass.

    Attributes
    ----------
    events
        The selected events, n of them.
    index
        Their positions in the chunk, rising, shape (n,).
    cutflow
        Counts after each cut. A cut that the configuration disables has no step.
    """

    events: DileptonEvents
    index: IntArray
    cutflow: Cutflow


@dataclass(frozen=True)
class IndexedSelection(Selection):
    """Events that pass, with the positions of their objects in the chunk.

    Attributes
    ----------
    lepton_index
        Positions of ℓ⁺ and ℓ⁻ among all electrons or all muons of the chunk, by flavour, shape (n, 2).
    jet_index
        Positions of the jets among all jets of the chunk, −1 where padded, shape (n, max_jets).
    """

    lepton_index: IntArray
    jet_index: IntArray


def select(events: Any, config: SelectionConfig, *, dataset: str) -> IndexedSelection:
    """Select dileptonic events.

    Parameters
    ----------
    events
        `NanoEvents` or `Branches` of a chunk; only the needed branches are read.
    config
        Cuts; what is not set follows the preset of the file, see `topreco.config.presets`.
    dataset
        Name of the dataset, which enters the key of each event.

    Returns
    -------
    selection
        Events, their positions in the chunk, and the cutflow.

    Raises
    ------
    topreco.input.nano.InputError
        If a branch is missing, cannot be read, or contains a momentum that is not finite.
    topreco.config.ConfigError
        If the preset cannot be resolved.
    """
    return select_objects(read_objects(events, config), config, dataset=dataset)


def select_objects(objects: Objects, config: SelectionConfig, *, dataset: str) -> IndexedSelection:
    """Select dileptonic events from objects, as read or corrected; see `select`.

    Raises
    ------
    topreco.input.nano.InputError
        If a file that a cut needs cannot be used.
    """
    config = objects.branches.resolve(config)
    weight = objects.weight
    cutflow = Cutflow()
    cutflow.add_step("all", weight)
    cutflow.note(
        DROPPED, sum(each.dropped.sum() for each in (objects.electrons, objects.muons, objects.jets))
    )
    kept = np.ones(len(objects), dtype=bool)
    for step, mask in event_cuts(objects, config, dataset):
        kept &= mask
        cutflow.add_step(step, weight[kept])

    leptons = _select_leptons(objects, config)
    n_leptons = np.bincount(leptons.event, minlength=len(objects))
    index = np.flatnonzero(kept & (n_leptons == 2))
    first = (np.cumsum(n_leptons) - n_leptons)[index]
    # Columns: ℓ⁺, ℓ⁻; at equal charges meaningless, but those events are about to fail.
    pair = first[:, None] + np.argsort(-leptons.charge[first[:, None] + [0, 1]], axis=1, kind="stable")
    p4, flavour = leptons.p4[pair], leptons.flavour[pair]
    channel = (flavour == PDG_MUON).sum(axis=1)
    same_flavour = flavour[:, 0] == flavour[:, 1]
    passed = np.ones(len(index), dtype=bool)

    def cut(name: str, mask: BoolArray) -> None:
        passed[:] &= mask
        cutflow.add_step(name, weight[index[passed]], channel[passed])

    cut("two leptons", passed)
    cut("opposite charge", leptons.charge[pair].sum(axis=1) == 0)
    if set(config.channels) != set(CHANNELS):
        cut("channel", np.isin(channel, [CHANNELS.index(name) for name in config.channels]))
    if config.leading_pt_min > 0:
        cut("leading pT", fourvector.pt(p4).max(axis=1, initial=0.0) > config.leading_pt_min)
    m_ll = fourvector.mass(p4.sum(axis=1))
    if config.m_ll_min > 0:
        cut("m_ll", m_ll > config.m_ll_min)
    if config.z_window > 0:
        cut("Z window", ~same_flavour | (np.abs(m_ll - config.z_mass) > config.z_window))
    if config.met_min > 0:
        met_pt = np.hypot(*objects.met[index].T)
        cut("MET", ~same_flavour | (met_pt > config.met_min))

    # Jets only of the events that are left.
    index, pair, p4 = index[passed], pair[passed], p4[passed]
    flavour, channel = flavour[passed], channel[passed]
    passed = np.ones(len(index), dtype=bool)
    jets = _select_jets(objects, config, index, p4)
    if config.jet.min_jets > 0:
        cut(_at_least(config.jet.min_jets, "jet"), jets.n_jets >= config.jet.min_jets)
    if config.jet.min_btags > 0:
        cut(_at_least(config.jet.min_btags, "b tag"), jets.n_tagged >= config.jet.min_btags)

    cutflow.note(NO_B_TAG, jets.n_unscored[passed].sum())
    index, p4, flavour = index[passed], p4[passed], flavour[passed]
    lepton_index, jet_index = leptons.index[pair[passed]], jets.index[passed]
    selected = DileptonEvents(
        lepton_plus=p4[:, 0],
        lepton_minus=p4[:, 1],
        lepton_flavour=flavour,
        jets=jets.p4[passed],
        jet_mask=jets.mask[passed],
        jet_btag=jets.btag[passed],
        jet_tagged=jets.tagged[passed],
        b_candidates=b_candidates(
            p4[:, 0],
            p4[:, 1],
            jets.p4[passed],
            jets.mask[passed],
            jets.tagged[passed],
            m_lb_max=config.m_lb_max,
        ),
        met=objects.met[index],
        dataset=np.full(len(index), dataset_id(dataset), dtype=np.uint64),
        run=objects.run[index],
        luminosity_block=objects.luminosity_block[index],
        event=objects.event[index],
        weight=weight[index],
        jet_working_points=count_working_points(jets.btag[passed], config.jet.btag_working_points),
        features=read_features(objects.branches, config.features, index, lepton_index, flavour, jet_index),
    )
    return IndexedSelection(selected, index, cutflow, lepton_index, jet_index)


@dataclass(frozen=True)
class _Leptons:
    """Selected leptons of all events, sorted by event; shape (leptons, ...)."""

    event: IntArray
    p4: FloatArray
    charge: IntArray
    flavour: IntArray
    index: IntArray


@dataclass(frozen=True)
class _Jets:
    """Selected jets in falling pT, padded, shape (n, max_jets, ...), and their numbers before truncation.

    The number of jets without b-tag score is that after it.
    """

    p4: FloatArray
    mask: BoolArray
    btag: FloatArray
    tagged: BoolArray
    index: IntArray
    n_jets: IntArray
    n_tagged: IntArray
    n_unscored: IntArray


def _select_leptons(objects: Objects, config: SelectionConfig) -> _Leptons:
    parts = [
        _lepton_columns(objects.electrons, config.electron, PDG_ELECTRON),
        _lepton_columns(objects.muons, config.muon, PDG_MUON),
    ]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return _Leptons(*(column[order] for column in columns))


def _lepton_columns(
    leptons: Leptons, cuts: ElectronSelection | MuonSelection, flavour: int
) -> tuple[Any, ...]:
    keep = leptons.identified & (leptons.pt > cuts.pt_min) & (np.abs(leptons.eta) < cuts.eta_max)
    return (
        leptons.event[keep],
        leptons.p4(keep),
        leptons.charge[keep],
        np.full(np.count_nonzero(keep), flavour),
        np.flatnonzero(keep),
    )


def _select_jets(objects: Objects, config: SelectionConfig, index: IntArray, leptons: FloatArray) -> _Jets:
    """Jets of the events at `index` (n,), given their leptons' four-momenta (n, 2, 4)."""
    jets, cuts, veto = objects.jets, config.jet, config.cuts.jet_veto_map
    row_of_event = np.full(len(jets.counts), -1)
    row_of_event[index] = np.arange(len(index))
    row = row_of_event[jets.event]
    good = jets.identified & (jets.pt > cuts.pt_min) & (np.abs(jets.eta) < cuts.eta_max)
    good &= jets.pu_identified | (jets.pt >= PU_ID_PT_MAX)
    if veto is not None and veto.level == "jet":
        good &= ~vetoed_jets(objects, veto)
    kept = np.flatnonzero((row >= 0) & good)
    p4 = jets.p4(kept)
    distance = fourvector.delta_r(p4[:, None], leptons[row[kept]]).min(axis=1, initial=np.inf)
    clean = distance > cuts.lepton_distance
    kept, p4 = kept[clean], p4[clean]

    row, btag, n = row[kept], jets.btag[kept], len(index)
    tagged = btag > cuts.btag_threshold
    # Corrections to the jets may have changed their order.
    padded = pad_in_falling_pt(row, jets.pt[kept], n, cuts.max_jets)
    mask = padded(np.ones(len(row), dtype=bool))
    return _Jets(
        p4=padded(p4),
        mask=mask,
        btag=padded(btag),
        tagged=padded(tagged),
        index=np.where(mask, padded(kept), -1),
        n_jets=np.bincount(row, minlength=n),
        n_tagged=np.bincount(row[tagged], minlength=n),
        n_unscored=(mask & ~padded(jets.has_btag[kept])).sum(axis=1),
    )


def _at_least(n: int, what: str) -> str:
    return f"at least {n} {what}{'s' if n > 1 else ''}"
