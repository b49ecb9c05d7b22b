import numpy as np
import pytest
from coffea.nanoevents import NanoEventsFactory

from topreco.config import ElectronSelection, JetSelection, MuonSelection, SelectionConfig
from topreco.core import fourvector
from topreco.core.events import CHANNELS, DileptonEvents, dataset_id
from topreco.input.branches import Branches
from topreco.input.cutflow import Cutflow
from topreco.input.nano import InputError, QuietNanoAODSchema, inspect_file, iterate_events, open_events
from topreco.input.objects import DROPPED, NO_B_TAG
from topreco.input.required import OPTIONAL_BRANCHES, fit_files, fit_selection, needed_branches
from topreco.input.selection import select

GENERATOR = (
    "GenPart",
    "GenJet",
    "Generator_id1",
    "Generator_id2",
    "LHE_HT",
    "Electron_genPartIdx",
    "Muon_genPartIdx",
    "Jet_hadronFlavour",
    "Jet_genJetIdx",
)
DEFAULT = SelectionConfig()


@pytest.fixture
def run(nano_file):
    """Function that writes events and selects from them."""

    def run(*events, config=DEFAULT, **options):
        return select(open_events(nano_file(events, **options)), config, dataset="tt")

    return run


def same(a, b, *, but=()):
    """Exactly the same arrays, kinds included."""
    for name in DileptonEvents.__dataclass_fields__:
        if name not in but:
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None), name
            if x is None:
                continue
            assert x.dtype == y.dtype, name
            np.testing.assert_array_equal(x, y, err_msg=name)


def dileptons(first, second, **more):
    """Changes that give an event two leptons of one flavour, back to back in φ unless told otherwise."""
    return (
        {"Electron": [], "Muon": []}
        | {
            more.pop("flavour", "Electron"): [
                {"phi": 0.0, "eta": 0.5, "charge": 1} | first,
                {"phi": 2.0, "eta": -0.5, "charge": -1} | second,
            ]
        }
        | more
    )


def test_selected_event(run, emu):
    found = run(emu(event=2**60 + 7, run=5, luminosityBlock=9, genWeight=-2.0), emu(Electron=[]))
    events = found.events
    assert found.index.tolist() == [0]
    assert len(events) == 1
    momentum = np.array([40.0, 0.5, 0.0, 0.000511])
    np.testing.assert_allclose(events.lepton_plus[0], fourvector.from_pt_eta_phi_mass(*momentum))
    momentum = np.array([30.0, -0.5, 2.0, 0.105658])
    np.testing.assert_allclose(events.lepton_minus[0], fourvector.from_pt_eta_phi_mass(*momentum))
    assert events.lepton_flavour.tolist() == [[11, 13]]
    assert CHANNELS[events.channel[0]] == "emu"
    assert events.jets.shape == (1, 12, 4)
    np.testing.assert_allclose(fourvector.pt(events.jets[0, :2]), [80.0, 60.0])
    np.testing.assert_allclose(fourvector.mass(events.jets[0, :2]), 10.0)
    assert not events.jets[0, 2:].any()
    assert events.jet_mask[0].tolist() == [True] * 2 + [False] * 10
    np.testing.assert_allclose(events.jet_btag[0, :3], [0.9, 0.01, 0.0], rtol=1e-6)
    assert events.jet_tagged[0, :3].tolist() == [True, False, False]
    np.testing.assert_allclose(events.met[0], [60 * np.cos(1.0), 60 * np.sin(1.0)])
    assert (events.run[0], events.luminosity_block[0], events.event[0]) == (5, 9, 2**60 + 7)
    assert events.dataset[0] == dataset_id("tt")
    assert events.weight[0] == -2.0
    assert events.jets.dtype == events.lepton_plus.dtype == events.met.dtype == np.float64
    assert found.cutflow["all"].sumw == -1.0
    assert found.cutflow["at least 1 b tag"].sumw2 == 4.0


def test_charge_decides_which_lepton_is_which(run, emu):
    events = run(emu(Electron=[{"pt": 40.0, "charge": -1}], Muon=[{"pt": 30.0, "charge": 1}])).events
    assert events.lepton_flavour.tolist() == [[13, 11]]
    np.testing.assert_allclose(fourvector.pt(events.lepton_plus), [30.0])


LOOSE = SelectionConfig(
    electron=ElectronSelection(pt_min=16.0, eta_max=2.0),
    muon=MuonSelection(pt_min=16.0, eta_max=2.0, isolation_max=0.25),
    jet=JetSelection(pt_min=32.0, eta_max=2.0, btag_threshold=0.5),
    leading_pt_min=32.0,
    met_min=64.0,
)


def electron(**changes):
    return {"Electron": [{"pt": 40.0, "charge": 1} | changes]}


def muon(**changes):
    return {"Muon": [{"pt": 40.0, "charge": -1} | changes]}


def same_flavour(met):
    return dileptons({"pt": 60.0}, {"pt": 60.0}, PuppiMET_pt=met)


def jet(**changes):
    tagged = {"pt": 80.0, "phi": 1.0, "btagDeepFlavB": 0.9}
    return {"Jet": [tagged, {"pt": 60.0, "phi": -2.0} | changes]}


@pytest.mark.parametrize(
    ("step", "passing", "failing"),
    [
        # Thresholds are exact in single precision, and exclusive.
        ("two leptons", electron(pt=np.nextafter(np.float32(16), 99)), electron(pt=16.0)),
        ("two leptons", electron(eta=-np.nextafter(np.float32(2), 0)), electron(eta=-2.0)),
        ("two leptons", electron(cutBased=4), electron(cutBased=3)),
        ("two leptons", electron(eta=1.4, deltaEtaSC=0.04), electron(eta=1.4, deltaEtaSC=0.05)),
        ("two leptons", electron(eta=-1.5, deltaEtaSC=-0.07), electron(eta=-1.5, deltaEtaSC=-0.06)),
        ("two leptons", muon(pt=np.nextafter(np.float32(16), 99)), muon(pt=16.0)),
        ("two leptons", muon(eta=np.nextafter(np.float32(2), 0)), muon(eta=2.0)),
        ("two leptons", muon(tightId=True), muon(tightId=False)),
        ("two leptons", muon(pfRelIso04_all=0.2499), muon(pfRelIso04_all=0.25)),
        ("two leptons", {}, {"Muon": []}),
        ("two leptons", {}, {"Muon": [{"pt": 40.0, "charge": -1}] * 2}),
        ("opposite charge", muon(charge=-1), muon(charge=1)),
        (
            "leading pT",
            electron(pt=20.0) | muon(pt=np.nextafter(np.float32(32), 99)),
            electron(pt=20.0) | muon(pt=31.99),
        ),
        ("at least 2 jets", jet(pt=np.nextafter(np.float32(32), 99)), jet(pt=32.0)),
        ("at least 2 jets", jet(eta=np.nextafter(np.float32(2), 0)), jet(eta=2.0)),
        ("at least 2 jets", jet(jetId=2), jet(jetId=5)),
        # The electron lies at (η, φ) = (0.5, 0), the muon at (−0.5, 2).
        ("at least 2 jets", jet(eta=0.5, phi=0.41), jet(eta=0.5, phi=-0.39)),
        ("at least 2 jets", jet(eta=-0.09, phi=2.0), jet(eta=-0.11, phi=2.0)),
        (
            "at least 1 b tag",
            {"Jet": [{"pt": 80.0, "phi": 1.0, "btagDeepFlavB": np.nextafter(np.float32(0.5), 1)}] * 2},
            {"Jet": [{"pt": 80.0, "phi": 1.0, "btagDeepFlavB": 0.5}] * 2},
        ),
        ("MET", same_flavour(np.nextafter(np.float32(64), 99)), same_flavour(64.0)),
        ("MET", {"PuppiMET_pt": 0.0}, same_flavour(0.0)),
    ],
)
def test_boundary(run, emu, step, passing, failing):
    base = {"Muon": [{"pt": 40.0, "charge": -1}]}
    found = run(emu(**base | passing), config=LOOSE)
    assert found.cutflow["at least 1 b tag"].n == 1
    flow = run(emu(**base | failing), config=LOOSE).cutflow
    steps = list(flow.steps)
    before = steps[steps.index(step) - 1]
    assert (flow[before].n, flow[step].n) == (1, 0)


def opposite(mass, flavour):
    """Two leptons of 2 · pT = mass, back to back."""
    half = np.float32(mass / 2)
    return dileptons({"pt": half, "eta": 0.0}, {"pt": half, "eta": 0.0, "phi": np.pi}, flavour=flavour)


@pytest.mark.parametrize("flavour", ["Electron", "Muon"])
@pytest.mark.parametrize(("mass", "passes"), [(75.9, True), (76.5, False), (105.9, False), (106.5, True)])
def test_z_window(run, emu, flavour, mass, passes):
    flow = run(emu(**opposite(mass, flavour), PuppiMET_pt=99.0)).cutflow
    assert flow["m_ll"].n == 1
    assert flow["Z window"].n == passes


def test_z_window_spares_emu(run, emu):
    leptons = {
        "Electron": [{"pt": 45.6, "eta": 0.0, "charge": 1}],
        "Muon": [{"pt": 45.6, "eta": 0.0, "phi": np.pi, "charge": -1}],
    }
    assert len(run(emu(**leptons, PuppiMET_pt=0.0)).events) == 1


@pytest.mark.parametrize(("mass", "passes"), [(59.9, False), (60.1, True)])
def test_m_ll(run, emu, mass, passes):
    leptons = opposite(mass, "Muon")
    flow = run(emu(**leptons, PuppiMET_pt=99.0), config=SelectionConfig(m_ll_min=60.0)).cutflow
    assert flow["leading pT"].n == 1
    assert flow["m_ll"].n == passes


def test_channels(run, emu):
    events = [
        emu(**opposite(60.0, "Electron"), PuppiMET_pt=99.0),
        emu(),
        emu(**opposite(60.0, "Muon"), PuppiMET_pt=99.0),
    ]
    found = run(*events)
    assert found.events.channel.tolist() == [0, 1, 2]
    counts = found.cutflow.steps["at least 1 b tag"]
    assert [counts[name].n for name in CHANNELS] == [1, 1, 1]
    found = run(*events, config=SelectionConfig(channels=("mumu", "ee")))
    assert found.index.tolist() == [0, 2]
    assert found.cutflow["channel"].n == 2


def test_disabled_cuts_have_no_step(run, emu):
    config = SelectionConfig(
        jet=JetSelection(min_jets=0, min_btags=0, id_bit=None, lepton_distance=0),
        leading_pt_min=0,
        m_ll_min=0,
        z_window=0,
        met_min=0,
    )
    collinear = {"pt": 22.0, "eta": 0.5, "phi": 2.0}
    event = emu(
        **dileptons(collinear, collinear), Jet=[{"pt": 50.0, "phi": 2.0, "jetId": 0}], PuppiMET_pt=0.0
    )
    found = run(event, emu(Jet=[]), config=config)
    assert list(found.cutflow.steps) == ["all", "two leptons", "opposite charge"]
    assert found.events.n_jets.tolist() == [1, 0]
    assert (found.events.b_candidates == -1).all()


def test_optional_branches(run, emu):
    inside_gap = emu(
        Electron=[{"pt": 40.0, "charge": 1, "eta": 1.5}], Jet=[{"pt": 50.0, "phi": 1.0, "jetId": 0}] * 2
    )
    config = SelectionConfig(jet=JetSelection(min_btags=0))
    assert len(run(inside_gap, config=config).events) == 0
    found = run(inside_gap, config=config, drop=OPTIONAL_BRANCHES)
    assert found.events.weight.tolist() == [1.0]
    no_gap = SelectionConfig(electron=ElectronSelection(gap=None), jet=JetSelection(min_btags=0, id_bit=None))
    assert len(run(inside_gap, config=no_gap).events) == 1


@pytest.mark.parametrize(
    ("collection", "broken"),
    [
        ("Jet", {"pt": 12.0, "phi": np.nan}),
        ("Jet", {"pt": 90.0, "eta": 4.5, "mass": np.inf}),
        ("Jet", {"pt": np.nan, "eta": -3.0}),
        ("Jet", {"pt": np.nan, "jetId": 0}),
        ("Electron", {"pt": 5.0, "charge": 1, "deltaEtaSC": np.nan}),
        ("Electron", {"pt": np.nan, "charge": 1, "cutBased": 0}),
        ("Muon", {"pt": np.inf, "charge": 1, "tightId": False}),
        ("Muon", {"pt": 50.0, "charge": 1, "eta": np.nan, "pfRelIso04_all": 1.0}),
    ],
)
def test_an_object_that_no_cut_could_select_may_be_anything(run, emu, collection, broken):
    usual = {"pt": 5.0, "phi": 0.0, "charge": 1}
    event = emu()
    found = [run(emu(**{collection: [*event[collection], usual | each]})) for each in (broken, {})]
    same(found[0].events, found[1].events)
    assert len(found[0].events) == 1
    assert (found[0].cutflow.notes, found[1].cutflow.notes) == ({DROPPED: 1}, {})


def test_an_object_that_matters_is_named(nano_file, emu):
    jets = [*emu()["Jet"], {"pt": 20.0, "phi": np.nan}]  # above the threshold after a variation
    path = nano_file([emu(), emu(), emu(Jet=jets), emu()])
    message = r"nano\.root: branch 'Jet_phi' has 1 of 5 values NaN or infinite, the first in entry 2;"
    with pytest.raises(InputError, match=message):
        select(open_events(path, entry_start=1, entry_stop=3), DEFAULT, dataset="tt")
    with pytest.raises(InputError, match="the first in entry 2;"):
        Branches(open_events(path, entry_start=1))[np.array([1, 2])].finite("Jet_phi")


BOTH_ETA = ("Electron_deltaEtaSC", "Electron_superclusterEta")


@pytest.mark.parametrize(
    ("content", "drop", "key"),
    [
        ({"jet": {"id_bit": 2}}, ("Jet_jetId",), "jet.id_bit"),
        ({"jet": {"id_recipe": "branch"}}, ("Jet_jetId",), "jet.id_bit"),
        ({"branches": {"Jet_jetId": "Jet_ident"}}, (), "jet.id_bit"),
        ({"electron": {"gap": [1.4, 1.6]}}, BOTH_ETA, "electron.gap"),
        ({"branches": {"Electron_deltaEtaSC": "Electron_shift"}}, (), "electron.gap"),
        ({"preset": "nano_v9"}, ("Jet_jetId",), "jet.id_bit"),
        ({"preset": "nano_v9"}, BOTH_ETA, "electron.gap"),
    ],
)
def test_a_cut_that_was_asked_for_and_cannot_be_made(run, emu, content, drop, key):
    config = SelectionConfig.model_validate(content)
    with pytest.raises(InputError, match=rf"\(selection key '{key}'.* selection\.{key}=null leaves this cut"):
        run(emu(), config=config, drop=drop)
    section, name = key.split(".")
    without = content | {section: content.get(section, {}) | {name: None}}
    assert len(run(emu(), config=SelectionConfig.model_validate(without), drop=drop).events) == 1


def test_files_of_a_dataset_with_and_without_an_optional_cut(nano_file, emu):
    files = {}
    for name, drop in (("a.root", ()), ("b.root", ("Jet_jetId",))):
        path = nano_file([emu()], name, drop=drop)
        files[path] = inspect_file(str(path))
    for order in (files, dict(reversed(files.items()))):
        with pytest.raises(
            InputError, match=r"b\.root: no branch Jet_jetId, which .*a\.root .*jet\.id_bit=null"
        ):
            fit_files(DEFAULT, order)
    fitted = fit_selection(DEFAULT, files[path].branches, "b.root")
    assert fitted.jet.id_bit is None
    assert fit_selection(fitted, files[path].branches, "b.root") == fitted


def test_only_the_leading_jets_are_stored(run, emu):
    pt = [40.0, 90.0, 35.0, 90.0, 70.0]
    tags = [0.9, 0.1, 0.9, 0.2, 0.3]
    jets = [{"pt": p, "phi": -1.5, "btagDeepFlavB": t} for p, t in zip(pt, tags, strict=True)]
    events = run(emu(Jet=jets), config=SelectionConfig(jet=JetSelection(max_jets=3))).events
    # Falling pT whatever the order in the file, which decides at equal pT.
    np.testing.assert_allclose(fourvector.pt(events.jets[0]), [90.0, 90.0, 70.0])
    np.testing.assert_allclose(events.jet_btag[0], [0.1, 0.2, 0.3], rtol=1e-6)


def test_b_candidates_are_those_of_the_configuration(run, emu):
    # The leading jet is tagged but too far in mass from either lepton.
    jets = [
        {"pt": 500.0, "phi": -2.2, "btagDeepFlavB": 0.9},
        {"pt": 70.0, "phi": 1.0},
        {"pt": 50.0, "phi": -1.0},
    ]
    events = run(emu(Jet=jets)).events
    assert sorted(events.b_candidates[0].tolist()) == [1, 2]
    events = run(emu(Jet=jets), config=SelectionConfig(m_lb_max=1000.0)).events
    assert 0 in events.b_candidates[0]
    events = run(emu(Jet=jets), config=SelectionConfig(m_lb_max=1.0)).events
    assert events.b_candidates.tolist() == [[-1, -1]]


@pytest.mark.parametrize("step_size", [7, 50, 77])
def test_chunks_change_nothing(nano_file, random_events, step_size):
    path = nano_file(random_events)
    whole = select(open_events(path), DEFAULT, dataset="tt")
    assert 20 < len(whole.events) < 180
    assert len(set(whole.events.channel)) > 1
    parts = [select(events, DEFAULT, dataset="tt") for events in iterate_events(path, step_size=step_size)]
    same(DileptonEvents.concatenate([part.events for part in parts]), whole.events)
    index = np.concatenate([part.index + i * step_size for i, part in enumerate(parts)])
    np.testing.assert_array_equal(index, whole.index)
    assert sum((part.cutflow for part in parts), Cutflow()) == whole.cutflow


def test_selecting_from_a_sliced_chunk(nano_file, random_events):
    events = open_events(nano_file(random_events))
    whole = select(events, DEFAULT, dataset="tt")
    subset = np.flatnonzero(np.arange(len(events)) % 3 != 0)
    sliced = select(events[subset], DEFAULT, dataset="tt")
    same(sliced.events, whole.events[np.isin(whole.index, subset)])


def test_leak(nano_file, random_events):
    """No generator branch, the weight excepted, reaches the events."""
    complete = select(open_events(nano_file(random_events)), DEFAULT, dataset="tt")
    without = nano_file(random_events, "data.root", drop=(*GENERATOR, "genWeight"))
    reduced = select(open_events(without), DEFAULT, dataset="tt")
    same(complete.events, reduced.events, but=("weight",))
    np.testing.assert_array_equal(complete.index, reduced.index)
    assert set(reduced.events.weight) == {1.0}


def test_reads_only_what_it_needs(nano_file, random_events):
    log = []
    events = NanoEventsFactory.from_root(
        {str(nano_file(random_events)): "Events"}, schemaclass=QuietNanoAODSchema, access_log=log
    ).events()
    select(events, DEFAULT, dataset="tt")
    read = {entry.branch for entry in log}
    optional = set(OPTIONAL_BRANCHES) - {"Electron_superclusterEta"}  # not in this file
    assert read == {*needed_branches(DEFAULT), *optional, "nElectron", "nMuon", "nJet"}


@pytest.mark.parametrize("branch", needed_branches(DEFAULT)[3:])
def test_missing_branch(run, emu, branch):
    with pytest.raises(InputError, match=rf"nano\.root: branch '{branch}'.* is missing"):
        run(emu(), drop=(branch,))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"met": "PupiMET"},
            r"'PupiMET_pt' \(selection key 'met'\) is missing; close in the file: PuppiMET_pt",
        ),
        ({"jet": {"btag": "btagDeepFlavour"}}, r"\(selection key 'jet.btag'\).*Jet_btagDeepFlavB"),
        ({"electron": {"id": "cutBase"}}, r"\(selection key 'electron.id'\).*Electron_cutBased"),
        ({"muon": {"id": "tightID"}}, r"\(selection key 'muon.id'\).*Muon_tightId"),
        ({"muon": {"isolation": "pfRelIso"}}, r"\(selection key 'muon.isolation'\) is missing"),
    ],
)
def test_misspelt_branch(run, emu, config, message):
    with pytest.raises(InputError, match=message):
        run(emu(), config=SelectionConfig.model_validate(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Jet": [{"pt": np.nan}, {"pt": np.inf}, {"pt": 50.0}]}, "'Jet_pt' has 2 of 5"),
        ({"Jet": [{"pt": 50.0, "phi": 1.0, "mass": np.nan}]}, "'Jet_mass' has 1 of 3"),
        ({"Electron": [{"pt": 50.0, "eta": np.nan, "charge": 1}]}, "'Electron_eta' has 1 of 2"),
        ({"Muon": [{"pt": 50.0, "phi": -np.inf, "charge": 1}]}, "'Muon_phi' has 1 of 2"),
        ({"PuppiMET_phi": np.nan}, "'PuppiMET_phi' has 1 of 2"),
        ({"genWeight": np.inf}, "'genWeight' has 1 of 2"),
    ],
)
def test_not_finite(run, emu, changes, message):
    with pytest.raises(InputError, match=rf"nano\.root: branch {message} values NaN or infinite"):
        run(emu(), emu(**changes))


@pytest.mark.parametrize("none", [-1.0, -10.0, -3000.0, -np.inf, np.nan])
def test_b_tag_scores_that_mean_none_are_zero(run, emu, none):
    def found(score):
        jets = [
            {"pt": 50.0, "phi": 1.0, "btagDeepFlavB": score},
            {"pt": 20.0, "phi": 1.0, "btagDeepFlavB": score},
        ]
        return run(emu(Jet=[*emu()["Jet"], *jets]), emu())

    same(found(none).events, found(0.0).events)
    cutflow = found(none).cutflow + found(none).cutflow
    assert cutflow.notes == {NO_B_TAG: 2}
    assert Cutflow.from_dict(cutflow.to_dict()) == cutflow
    assert f"2 {NO_B_TAG}" in str(cutflow.table().caption)
    assert found(0.0).cutflow.notes == {}
    assert (found(0.0).cutflow + cutflow).notes == {NO_B_TAG: 2}


@pytest.mark.parametrize("none", [-3000.0, np.nan])
def test_a_file_without_b_tag_scores_is_refused(run, emu, none):
    jets = [{"pt": 50.0 + i, "phi": float(i), "btagDeepFlavB": none} for i in range(5)]
    message = (
        r"nano\.root: branch 'Jet_btagDeepFlavB': no b-tag score in any of 10 jets.*selection\.jet\.btag"
    )
    with pytest.raises(InputError, match=message):
        run(emu(Jet=jets), emu(Jet=jets))
    assert (
        len(run(emu(Jet=jets), emu(Jet=[*jets, {"pt": 50.0, "phi": 1.0, "btagDeepFlavB": 0.9}])).events) == 1
    )
    with pytest.raises(InputError, match=r"'Jet_btagDeepFlavB': infinite in 2 of 4 jets"):
        run(emu(Jet=[{"pt": 50.0, "phi": 1.0, "btagDeepFlavB": np.inf}] * 2), emu())


def test_without_events(run, nano_file, emu):
    for found in (run(), run(emu(Electron=[], Jet=[]))):
        assert len(found.events) == len(found.index) == 0
        assert found.events.jets.shape == (0, 12, 4)
        assert found.cutflow["at least 1 b tag"].n == 0
    empty = select(open_events(nano_file([emu()] * 3), entry_start=2, entry_stop=2), DEFAULT, dataset="tt")
    one = run(emu())
    assert one.cutflow + empty.cutflow == one.cutflow
    same(DileptonEvents.concatenate([one.events, empty.events]), one.events)


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("nanoaodv9_TTTo2L2Nu_first500.root", 49),
        ("nano_dimuon.root", 0),
        ("nano_dy.root", 0),
        ("delphes/tt2l_mg5_delphes_1.root", 4677),
    ],
)
def test_real_files(data, name, n):
    found = select(open_events(data / name), DEFAULT, dataset="tt")
    assert len(found.events) == n


@pytest.mark.parametrize("name", ["nanoaod2015_wjets_200.root", "nano_tree.root"])
def test_real_files_without_b_tag_scores(data, name):
    with pytest.raises(InputError, match=r"'Jet_btagDeepFlavB': no b-tag score in any of \d+ jets"):
        select(open_events(data / name), DEFAULT, dataset="tt")


def test_real_file_without_z_and_met_cuts(data):
    config = SelectionConfig(z_window=0, met_min=0)
    found = select(open_events(data / "nanoaodv9_TTTo2L2Nu_first500.root"), config, dataset="tt")
    assert len(found.events) == 59


def test_real_file_leak_and_chunks(data):
    path = data / "nanoaodv9_TTTo2L2Nu_first500.root"
    whole = select(open_events(path), DEFAULT, dataset="tt").events
    reconstructed = {*needed_branches(DEFAULT), *OPTIONAL_BRANCHES} - {"genWeight"}
    for step_size in (50, 1000):
        chunks = iterate_events(path, step_size=step_size, branches=reconstructed)
        parts = [select(events, DEFAULT, dataset="tt").events for events in chunks]
        same(DileptonEvents.concatenate(parts), whole, but=("weight",))
