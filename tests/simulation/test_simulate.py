"""Whole simulations with Pythia: small, but from the generator to coffea."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot

from topreco.config import PreselectionConfig, SimulationConfig
from topreco.core.errors import TopRecoError

pythia8mc = pytest.importorskip("pythia8mc")
pytest.importorskip("fastjet")

from topreco.simulation import simulate  # noqa: E402
from topreco.simulation.detector import (  # noqa: E402
    CARD,
    ELECTRON,
    HADRON_TRACK,
    MUON,
    PHOTON,
    Particles,
)
from topreco.simulation.jets import Jets  # noqa: E402
from topreco.simulation.nanoaod import _unclustered_shift  # noqa: E402
from topreco.simulation.pythia import generate, settings, start_pythia  # noqa: E402
from topreco.simulation.simulate import _open_parts, block_seeds  # noqa: E402

pytestmark = pytest.mark.sim

# Without multi-parton interactions four times as fast.
FAST = SimulationConfig(n_events=90, seed=11, mpi=False, block_size=40)
BITS = {"hard": 7, "from_hard": 8, "first": 12, "last": 13, "prompt": 0, "direct_prompt_tau": 5}


def arrays(path):
    return uproot.open(path)["Events"].arrays()


def same(left, right):
    return left.fields == right.fields and all(
        ak.to_list(left[name]) == ak.to_list(right[name]) for name in left.fields
    )


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """600 events with everything on, from this process."""
    output = tmp_path_factory.mktemp("sample") / "tt.root"
    summary = simulate(
        SimulationConfig(n_events=600, seed=3, block_size=400), output, workers=1, progress=False
    )
    return output, summary


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    output = tmp_path_factory.mktemp("reference") / "tt.root"
    simulate(FAST, output, workers=1, progress=False)
    return output


# ---- the file --------------------------------------------------------------------------------------------


def test_summary_and_sums(sample):
    output, summary = sample
    assert not output.with_name("tt.root.parts").exists()
    assert (summary.n_events, summary.n_blocks, summary.n_resumed) == (600, 2, 0)
    assert summary.sum_weights == 600
    sums = uproot.open(output)["Runs"].arrays()
    assert sums.genEventCount.tolist() == [600]
    assert sums.genEventSumw.tolist() == sums.genEventSumw2.tolist() == [600.0]
    events = arrays(output)
    assert events.event.tolist() == list(range(1, 601))
    assert events.luminosityBlock.tolist() == [1] * 400 + [2] * 200
    assert events.event.type.content.primitive == "uint64"
    assert {"nElectron", "nMuon", "nJet", "nGenJet", "nGenPart"} <= set(events.fields)
    assert all(np.isfinite(ak.to_numpy(ak.flatten(events[name], axis=None))).all() for name in events.fields)


def test_coffea_reads_it_as_nanoaod(sample, monkeypatch):
    from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

    monkeypatch.setattr(NanoAODSchema, "warn_missing_crossrefs", False)
    output, _ = sample
    events = NanoEventsFactory.from_root(
        {str(output): "Events"}, schemaclass=NanoAODSchema, mode="virtual"
    ).events()
    assert len(events) == 600
    tops = events.GenPart[(abs(events.GenPart.pdgId) == 6) & events.GenPart.hasFlags(["isLastCopy"])]
    assert ak.all(ak.num(tops) == 2)
    assert ak.all(abs(tops.children.pdgId[:, :, 0]) == 24)
    pair = ak.combinations(events.Muon, 2)
    assert ak.all((pair["0"] + pair["1"]).mass > 0)
    matched = events.Jet.matched_gen
    assert ak.mean(abs(events.Jet.pt / matched.pt - 1) < 0.4) > 0.8
    assert ak.all(abs(events.Electron.matched_gen.pdgId[events.Electron.genPartFlav == 1]) == 11)
    assert ak.all(events.PuppiMET.pt == events.MET.pt)


def test_gen_part_is_a_dileptonic_tree(sample):
    parts = uproot.open(sample[0])["Events"].arrays(filter_name="GenPart_*")
    identity = abs(parts.GenPart_pdgId)
    mother = parts.GenPart_genPartIdxMother
    flag = {name: (parts.GenPart_statusFlags >> bit) & 1 == 1 for name, bit in BITS.items()}
    position = ak.local_index(mother)
    assert ak.all(mother < position)
    has_mother = mother >= 0
    mother_identity = identity[mother[has_mother]]

    assert ak.all(ak.sum((identity == 6) & flag["last"], axis=1) == 2)
    assert ak.all(ak.sum(parts.GenPart_pdgId[(identity == 6) & flag["last"]], axis=1) == 0)
    assert ak.all(ak.sum((identity == 6) & flag["first"], axis=1) == 2)
    assert ak.all(flag["hard"][(identity == 6) & flag["first"]])
    assert ak.all(ak.sum((identity == 24) & flag["last"], axis=1) == 2)
    # Not the initial b quarks of bb̄ → tt̄, which have no mother.
    assert ak.all(ak.sum((identity == 5) & flag["last"] & flag["from_hard"] & has_mother, axis=1) == 2)
    leptons = ((identity == 11) | (identity == 13) | (identity == 15)) & flag["hard"]
    assert ak.all(ak.sum(leptons, axis=1) == 2)
    assert ak.all(mother_identity[leptons[has_mother]] == 24)
    from_tau = flag["direct_prompt_tau"]
    assert ak.all(mother_identity[from_tau[has_mother]] == 15)
    assert not ak.any(flag["prompt"] & from_tau)
    assert ak.all(flag["prompt"][flag["hard"]])


def test_last_tops_are_their_decay_products(sample):
    events = uproot.open(sample[0])["Events"].arrays(filter_name="GenPart_*")
    p4 = ak.zip(
        {name: events[f"GenPart_{name}"] for name in ("pt", "eta", "phi", "mass")}, with_name="Momentum4D"
    )
    px, py = p4.pt * np.cos(p4.phi), p4.pt * np.sin(p4.phi)
    top = (abs(events.GenPart_pdgId) == 6) & ((events.GenPart_statusFlags >> 13) & 1 == 1)
    for which in (0, 1):
        index = ak.local_index(top)[top][:, which]
        daughter = (events.GenPart_genPartIdxMother == index) & (
            (events.GenPart_statusFlags >> BITS["hard"]) & 1 == 1
        )
        assert ak.all(ak.sum(daughter, axis=1) == 2)
        for component in (px, py):
            difference = ak.sum(component[daughter], axis=1) - component[np.arange(len(index)), index]
            assert ak.max(abs(difference)) < 0.01


def test_the_detector_is_realistic(sample):
    events = arrays(sample[0])
    residual = [
        events.MET_pt * f(events.MET_phi) - events.GenMET_pt * f(events.GenMET_phi) for f in (np.cos, np.sin)
    ]
    assert 12 < np.std(residual) < 20
    clean = (events.Jet_genJetIdx >= 0) & (abs(events.Jet_eta) < 2.4) & (events.Jet_pt > 30)
    response = events.Jet_pt[clean] / events.GenJet_pt[events.Jet_genJetIdx[clean]]
    assert np.median(ak.flatten(response)) == pytest.approx(1.0, abs=0.02)
    b_jets = clean & (events.Jet_hadronFlavour == 5)
    assert 1.2 < ak.mean(ak.sum(b_jets, axis=1)) < 2.2
    assert 0.6 < ak.mean(events.Jet_btagDeepFlavB[b_jets] > 0.2783) < 0.78
    assert ak.all(events.GenJet_pt > 10)
    assert ak.all(events.Jet_pt > 15)
    for name in ("Electron", "Muon", "Jet"):
        pt = events[f"{name}_pt"]
        assert ak.all(pt[:, 1:] <= pt[:, :-1])


def test_unclustered_energy_is_what_is_outside_of_jets_and_leptons():
    """Of six objects two: a photon outside of the jet, and a track removed as pile-up."""
    energy = np.array([50.0, 20.0, 30.0, 40.0, 10.0, 25.0])
    phi = np.array([0.0, 0.1, 1.0, 2.0, 3.0, -1.0])
    objects = Particles(
        event=np.zeros(6, np.int64),
        p4=energy[:, None] * np.stack([np.ones(6), np.cos(phi), np.sin(phi), np.zeros(6)], axis=-1),
        kind=np.array([HADRON_TRACK, PHOTON, MUON, ELECTRON, PHOTON, HADRON_TRACK], np.int32),
        charge=np.array([1, 0, 1, -1, 0, 1], np.int32),
        source=np.array([0, -1, 1, 2, -1, 3]),
    )
    clustered = objects[:5]
    jet = Jets(
        event=np.zeros(1, np.int64),
        p4=clustered.p4[:2].sum(axis=0, keepdims=True),
        n_constituents=np.array([2], np.int32),
        flavour=np.zeros(1, np.int32),
        owner=np.array([0, 0, -1, -1, -1]),
        correction=np.ones(1),
        subtraction=np.ones(1),
    )
    found = _unclustered_shift(objects, clustered, jet, 1, CARD)
    photon = np.sqrt(0.08**2 + 0.11**2 * 10 + 0.4**2)
    track = 25 * np.hypot(0.06, 1.3e-3 * 25)
    expected = [-photon * f(3.0) - track * f(-1.0) for f in (np.cos, np.sin)]
    np.testing.assert_allclose(found, [expected], rtol=1e-12)


def test_variations_of_unclustered_energy(sample):
    events = arrays(sample[0])
    delta = [ak.to_numpy(events[f"MET_MetUnclustEnUpDelta{axis}"]) for axis in "XY"]
    assert 3 < np.hypot(*delta).mean() < 12
    for way, sign in (("Up", 1), ("Down", -1)):
        pt, phi = (events[f"PuppiMET_{name}Unclustered{way}"] for name in ("pt", "phi"))
        for f, change in zip((np.cos, np.sin), delta, strict=True):
            expected = events.MET_pt * f(events.MET_phi) + sign * change
            np.testing.assert_allclose(pt * f(phi), expected, atol=1e-3)


# ---- reproducibility and resuming ------------------------------------------------------------------------


def test_workers_do_not_change_the_events(reference, tmp_path):
    summary = simulate(FAST, tmp_path / "two.root", workers=2, progress=False)
    assert summary.n_blocks == 3
    assert same(arrays(reference), arrays(tmp_path / "two.root"))


def test_the_seed_changes_the_events(reference, tmp_path):
    config = FAST.model_copy(update={"seed": 12, "n_events": 10})
    simulate(config, tmp_path / "other.root", workers=1, progress=False)
    other = arrays(tmp_path / "other.root")
    assert not np.isin(ak.to_numpy(other.Generator_x1), ak.to_numpy(arrays(reference).Generator_x1)).any()


def test_seeds_of_blocks_differ():
    seeds = [block_seeds(1, block)[0] for block in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(1 <= seed <= 900_000_000 for seed in seeds)
    numbers = [block_seeds(seed, block)[1].random() for seed in (1, 2) for block in range(100)]
    assert len(set(numbers)) == 200


SCRIPT = """
import sys
from pathlib import Path
from topreco.config import SimulationConfig
from topreco.simulation import simulate

if __name__ == "__main__":
    simulate(SimulationConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), workers=2, progress=False)
"""


def test_a_killed_run_resumes(reference, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    output = tmp_path / "tt.root"
    parts = tmp_path / "tt.root.parts"
    process = subprocess.Popen([sys.executable, script, FAST.model_dump_json(), output])
    try:
        deadline = time.monotonic() + 600
        while not list(parts.glob("block-*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.wait()
    assert not output.exists()
    done = len(list(parts.glob("block-*.parquet")))
    assert done >= 1
    # What the run had begun to write when it was killed.
    (parts / ".block-000002.0123456789ab.tmp.parquet").write_bytes(b"half")
    time.sleep(0.5)  # workers follow their parent
    done = len(list(parts.glob("block-*.parquet")))
    summary = simulate(FAST, output, workers=1, progress=False)
    assert summary.n_resumed == done
    assert same(arrays(reference), arrays(output))
    assert not parts.exists()


def test_parts_of_another_simulation_are_refused(tmp_path, monkeypatch):
    output = tmp_path / "tt.root"
    _open_parts(tmp_path / "tt.root.parts", FAST)
    with pytest.raises(TopRecoError, match=r"another simulation: m_top, seed differ"):
        simulate(FAST.model_copy(update={"seed": 12, "m_top": 170.0}), output, workers=1, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[simulate.__module__], "version", lambda _: "later")
        with pytest.raises(TopRecoError, match=r"another simulation: fastjet, pythia8mc, topreco differ"):
            simulate(FAST, output, workers=1, progress=False)
    foreign = tmp_path / "other.root.parts"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    with pytest.raises(TopRecoError, match="was not made by topreco simulate"):
        simulate(FAST, tmp_path / "other.root", workers=1, progress=False)
    assert (foreign / "thesis.tex").exists()


def test_output_is_not_overwritten_unasked(reference, tmp_path):
    with pytest.raises(TopRecoError, match="exists already"):
        simulate(FAST, reference, workers=1, progress=False)
    output = tmp_path / "tt.root"
    output.write_text("old")
    small = FAST.model_copy(update={"n_events": 5})
    assert simulate(small, output, workers=1, progress=False, overwrite=True).n_events == 5
    assert len(arrays(output)) == 5


def test_at_least_one_worker(tmp_path):
    with pytest.raises(TopRecoError, match="workers is 0"):
        simulate(FAST, tmp_path / "tt.root", workers=0, progress=False)


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pythia8mc", None)
    with pytest.raises(TopRecoError, match=r"pip install 'topreco\[sim\]'"):
        simulate(FAST, tmp_path / "tt.root", workers=1, progress=False)


# ---- new decays ------------------------------------------------------------------------------------------

COPIES = FAST.model_copy(
    update={"decays_per_event": 6, "spin_correlation": 1.0, "preselection": PreselectionConfig()}
)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    output = tmp_path_factory.mktemp("copies") / "tt.root"
    return output, simulate(COPIES, output, workers=1, progress=False)


def test_old_seeds_give_the_old_events(reference):
    """Sums over all branches, made before there were options to change the decays."""
    approved = json.loads((Path(__file__).parents[1] / "approved" / "simulation.json").read_text())
    if (found := {name: version(name) for name in approved["versions"]}) != approved["versions"]:
        pytest.skip(f"approved with other versions: {approved['versions']}, here {found}")
    events = arrays(reference)
    sums = {
        name: float(np.abs(ak.to_numpy(ak.flatten(events[name], axis=None)).astype(np.float64)).sum())
        for name in approved["sums"]
    }
    assert sums == pytest.approx(approved["sums"], rel=1e-6)


def test_without_correlation_and_with_one_decay_nothing_changes(reference, tmp_path):
    """κ = 0 accepts every decay of Pythia."""
    config = FAST.model_copy(update={"spin_correlation": 0.0})
    simulate(config, tmp_path / "tt.root", workers=1, progress=False)
    events = arrays(tmp_path / "tt.root")
    assert ak.all(events.decayCopy == 0)
    assert same(arrays(reference), events[[name for name in events.fields if name != "decayCopy"]])


def test_copies_share_the_key_and_the_hard_event(copies):
    output, summary = copies
    events = arrays(output)
    assert summary.n_events == len(events)
    keys = np.stack([ak.to_numpy(events[name]) for name in ("event", "decayCopy")], -1)
    assert len(np.unique(keys, axis=0)) == len(events)
    assert (np.lexsort(keys.T[::-1]) == np.arange(len(events))).all()
    assert keys.max(axis=0).tolist() <= [90, 5]
    number, count = np.unique(keys[:, 0], return_counts=True)
    assert count.max() > 1
    top = events.GenPart_pt[(events.GenPart_pdgId == 6) & ((events.GenPart_statusFlags >> 13) & 1 == 1)][:, 0]
    lepton = ak.max(events.GenPart_pt[abs(events.GenPart_pdgId) == 14], axis=1)
    for i in number[count > 1]:
        chosen = keys[:, 0] == i
        for shared in (top, events.Generator_x1, events.luminosityBlock):
            assert len(np.unique(ak.to_numpy(shared[chosen]))) == 1
        assert len(np.unique(ak.to_numpy(events.MET_pt[chosen]))) == chosen.sum()
        different = ak.drop_none(lepton[chosen])
        assert len(np.unique(ak.to_numpy(different))) == len(different)


def test_copies_have_the_hard_events_of_the_plain_sample(copies, reference):
    """So that seeds of the two kinds of samples are to be kept apart as those of one kind are."""
    plain, events = arrays(reference), arrays(copies[0])
    x1 = ak.to_numpy(plain.Generator_x1)[ak.to_numpy(events.event).astype(int) - 1]
    assert (x1 == ak.to_numpy(events.Generator_x1)).all()


def test_sums_count_what_the_preselection_leaves_out(copies, tmp_path):
    output, summary = copies
    # Everything else equal, so that the same decays are accepted.
    everything = COPIES.model_copy(update={"preselection": None})
    whole = simulate(everything, tmp_path / "all.root", workers=1, progress=False)
    assert summary.n_events < whole.n_events == whole.n_generated == summary.n_generated
    assert summary.n_generated == pytest.approx(90 * 6 / 2, abs=5 * np.sqrt(90 * 6))
    for name, n_written in ((output, summary.n_events), (tmp_path / "all.root", whole.n_events)):
        with uproot.open(name) as file:
            assert file["Events"].num_entries == n_written
            sums = file["Runs"].arrays()
        assert sums.genEventCount.tolist() == [whole.n_events]
        assert sums.genEventSumw.tolist() == sums.genEventSumw2.tolist() == [float(whole.n_events)]
    assert f"of {whole.n_generated} generated" in str(summary)
    kept, both = (
        {tuple(row) for row in np.stack([ak.to_numpy(e.event), ak.to_numpy(e.decayCopy)], -1).tolist()}
        for e in (arrays(output), arrays(tmp_path / "all.root"))
    )
    assert kept < both


def test_workers_do_not_change_copies(copies, tmp_path):
    simulate(COPIES, tmp_path / "two.root", workers=2, progress=False)
    assert same(arrays(copies[0]), arrays(tmp_path / "two.root"))


def test_splits_and_skims_keep_copies_together(copies, tmp_path):
    from topreco.config import DataConfig, SelectionConfig
    from topreco.core.skim import Skim
    from topreco.input.skimming import make_skim
    from topreco.network.splits import fold_of, split_of

    selection = SelectionConfig(z_window=0, met_min=0, jet={"pt_min": 25, "min_btags": 0})
    result = make_skim([copies[0]], tmp_path / "tt.parquet", selection, dataset="tt", progress=False)
    assert result.sum_gen_weights == copies[1].n_generated
    events, truth = Skim(tmp_path / "tt.parquet").read()
    assert truth.dileptonic.all()
    numbers, first, count = np.unique(events.event, return_index=True, return_counts=True)
    assert count.max() > 1
    of_first = first[np.searchsorted(numbers, events.event)]
    for part in (split_of(events, DataConfig(test_fraction=0.3)), fold_of(events, 4)):
        assert len(np.unique(part)) > 1
        assert (part == part[of_first]).all()


def test_a_file_in_which_nothing_passes_is_empty_and_whole(copies, tmp_path):
    config = COPIES.model_copy(
        update={"n_events": 50, "preselection": PreselectionConfig(pt_leading=5000, pt_trailing=5000)}
    )
    summary = simulate(config, tmp_path / "none.root", workers=1, progress=False)
    assert summary.n_events == 0
    assert summary.n_generated > 0
    with uproot.open(tmp_path / "none.root") as file:
        assert file["Events"].num_entries == 0
        assert file["Events"].keys() == uproot.open(copies[0])["Events"].keys()
        assert file["Runs"]["genEventSumw"].array()[0] == summary.n_generated


def test_copies_in_the_branches_of_a_nanoaod_version(copies, tmp_path):
    config = COPIES.model_copy(update={"nanoaod_version": "v12"})
    simulate(config, tmp_path / "v12.root", workers=1, progress=False)
    events, plain = arrays(tmp_path / "v12.root"), arrays(copies[0])
    assert events.decayCopy.tolist() == plain.decayCopy.tolist()
    assert ak.all(events.Jet_pt == plain.Jet_pt)


@pytest.mark.parametrize(
    "option", [{"decays_per_event": 2}, {"spin_correlation": 1}, {"preselection": {"pt_leading": 20}}]
)
def test_external_events_keep_their_decays(option):
    with pytest.raises(ValueError, match="are for Pythia's own process"):
        SimulationConfig(lhe="tt.lhe", **option)


@pytest.mark.parametrize("option", [{"decays_per_event": 0}, {"spin_correlation": 1.5}])
def test_options_of_decays_have_limits(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        SimulationConfig(**option)


# ---- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", ["CP5", "Monash"])
def test_mass_and_energy_reach_pythia(tune):
    config = FAST.model_copy(update={"tune": tune, "m_top": 165.0, "sqrt_s": 13_600.0})
    pythia = start_pythia(settings(config, 5))
    assert pythia.parm("TimeShower:alphaSvalue") == pytest.approx(0.118 if tune == "CP5" else 0.1365)
    events = generate(pythia, 30, refill=True)
    assert np.allclose(events.p4[events.offsets[:-1], 0], 13_600.0)
    assert np.median(events.mass[(np.abs(events.pdg_id) == 6) & (events.status == -22)]) == pytest.approx(
        165.0, abs=1
    )


def test_unknown_settings_are_refused():
    with pytest.raises(TopRecoError, match="does not accept the setting 'Nonsense:on = 1'"):
        start_pythia(["Print:quiet = on", "Nonsense:on = 1"])


# One event, made with Pythia 8: tt̄ → (b τ⁺ ν)(b̄ e⁻ ν̄).
PARTICLES = """\
21 -1 0 0 101 102 0.0 0.0 751.70380642 751.70380642 0.0 0. 9.
21 -1 0 0 102 103 0.0 0.0 -331.37169269 331.37169269 0.0 0. 9.
6 2 1 2 101 0 -46.959024204 -251.68106356 635.42779362 706.6700716 173.39435249 0. 9.
-6 2 1 2 0 103 46.959024204 251.68106356 -215.09567989 376.40542752 172.8189418 0. 9.
24 2 3 0 0 0 1.8698222408 -232.41771196 437.66444806 502.00274688 80.219073227 0. 9.
5 1 3 0 101 0 -48.828846445 -19.263351602 197.76334556 204.66732472 4.8 0. 9.
-24 2 4 0 0 0 97.302548407 168.76558524 -127.65097796 245.71853884 78.314873872 0. 9.
-5 1 4 0 0 103 -50.343524203 82.915478322 -87.444701933 130.68688867 4.8 0. 9.
-15 1 5 0 0 0 -30.672926953 -188.06989275 349.82526293 398.36162551 1.77682 0. 9.
16 1 5 0 0 0 32.542749193 -44.347819209 87.839185128 103.64112136 0.0 0. 9.
11 1 7 0 0 0 70.696966025 160.11640233 -129.42892327 217.68594231 0.000511 0. 9.
-12 1 7 0 0 0 26.605582381 8.6491829139 1.7779453139 28.032596535 0.0 0. 9.
"""
# The same with quarks in place of the leptons.
HADRONIC = (
    PARTICLES.replace("-15 1 5 0 0 0", "-1 1 5 0 0 501")
    .replace("16 1 5 0 0 0", "2 1 5 0 501 0")
    .replace("11 1 7 0 0 0", "1 1 7 0 502 0")
    .replace("-12 1 7 0 0 0", "-2 1 7 0 0 502")
)
TOP_MASSES = [173.39435249, 172.8189418]


@pytest.fixture(scope="module")
def lhe_file(tmp_path_factory):
    """Seven events, the last two not dileptonic, with distinct weights of both signs."""
    lines = ['<LesHouchesEvents version="1.0">', "<init>"]
    lines += ["2212 2212 6500.0 6500.0 0 0 0 0 3 1", "1.0 0.0 1.0 1", "</init>"]
    for number in range(7):
        particles = PARTICLES if number < 5 else HADRONIC
        weight = (-1) ** number * (50 + number)
        lines += ["<event>", f"12 1 {weight} 173.0 0.0078 0.118", particles.rstrip(), "</event>"]
    path = tmp_path_factory.mktemp("lhe") / "tt bar.lhe"
    path.write_text("\n".join([*lines, "</LesHouchesEvents>"]) + "\n")
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_external_events_are_showered(lhe_file, tmp_path, compressed):
    source = lhe_file
    if compressed:
        source = tmp_path / "tt.lhe.gz"
        source.write_bytes(gzip.compress(lhe_file.read_bytes()))
    config = SimulationConfig(n_events=1000, lhe=source, mpi=False, block_size=3)
    output = tmp_path / "tt.root"
    summary = simulate(config, output, workers=1, progress=False)
    assert (summary.n_events, summary.n_blocks) == (7, 3)
    events = arrays(output)
    weights = [(-1) ** number * (50.0 + number) for number in range(7)]
    assert events.genWeight.tolist() == pytest.approx(weights)
    sums = uproot.open(output)["Runs"].arrays()
    assert sums.genEventSumw[0] == pytest.approx(sum(weights))
    assert sums.genEventSumw2[0] == pytest.approx(sum(weight**2 for weight in weights))

    # The top's first copies are those of the file: its hard process, including spin correlations, is kept.
    first = (abs(events.GenPart_pdgId) == 6) & (events.GenPart_status == 22)
    assert ak.flatten(events.GenPart_mass[first]).tolist() == pytest.approx(TOP_MASSES * 7, rel=1e-5)
    hard = (events.GenPart_statusFlags >> BITS["hard"]) & 1 == 1
    identity = abs(events.GenPart_pdgId)
    leptons = ak.sum(hard & ((identity == 11) | (identity == 13) | (identity == 15)), axis=1)
    assert leptons.tolist() == [2, 2, 2, 2, 2, 0, 0]


def test_part_of_a_les_houches_file(lhe_file, tmp_path):
    config = SimulationConfig(n_events=4, lhe=lhe_file, mpi=False, block_size=3)
    simulate(config, tmp_path / "tt.root", workers=1, progress=False)
    assert arrays(tmp_path / "tt.root").genWeight.tolist() == [50.0, -51.0, 52.0, -53.0]


def test_missing_les_houches_file(tmp_path):
    config = FAST.model_copy(update={"lhe": tmp_path / "none.lhe"})
    with pytest.raises(TopRecoError, match=r"none\.lhe"):
        simulate(config, tmp_path / "tt.root", workers=1, progress=False)
