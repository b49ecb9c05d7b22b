"""Working points passed and features of selected events, from files and from own objects."""

import awkward as ak
import numpy as np
import pytest

from topreco.config import FeaturesConfig, SelectionConfig, SystematicsConfig
from topreco.config.presets import resolve_selection, working_points
from topreco.core.errors import TopRecoError
from topreco.core.skim import Skim
from topreco.input.features import count_working_points
from topreco.input.nano import InputError, open_events
from topreco.input.own import dilepton_events
from topreco.input.selection import select, select_objects
from topreco.input.skimming import make_skim
from topreco.input.systematics import variations

FEATURES = {
    "jet": ["Jet_area", "Jet_nTracks"],
    "lepton": ["miniIso", "Electron_mvaE/Muon_mvaM"],
    "event": ["PV_npvsGood", "MET_significance"],
}
LEPTONS = {"Electron_miniIso": 0.1, "Muon_miniIso": 0.2, "Electron_mvaE": 0.3, "Muon_mvaM": 0.4}
EXTRA = {"Jet_area": 0.5, "Jet_nTracks": 7, **LEPTONS, "PV_npvsGood": 31, "MET_significance": 2.5}
SELECTION = SelectionConfig.model_validate({"features": FEATURES})


def jet(pt, phi, area, **more):
    return {"pt": pt, "phi": phi, "area": area, "nTracks": round(100 * area), **more}


@pytest.fixture
def event(emu):
    """Four jets, not in falling pT; the third lies on the electron, and the last one is too soft."""
    jets = [
        jet(60.0, -2.0, 0.1, btagDeepFlavB=0.9),
        jet(80.0, 1.0, 0.2, btagDeepFlavB=0.3),
        jet(90.0, 0.0, 0.3, eta=0.5),
        jet(70.0, -1.0, 0.4),
        jet(20.0, 3.0, 0.5),
    ]
    return emu(
        Jet=jets,
        Electron=[{"pt": 10.0, "charge": 1, "miniIso": 9.0}, {"pt": 40.0, "charge": -1, "miniIso": 0.11}],
        Muon=[{"pt": 30.0, "charge": 1, "miniIso": 0.22, "mvaM": 0.44}],
    )


def test_features_follow_their_objects(nano_file, event):
    found = select(open_events(nano_file([event], extra=EXTRA)), SELECTION, dataset="tt").events
    assert tuple(found.features) == SELECTION.features.names
    np.testing.assert_allclose(found.features["jet:Jet_area"][0, :4], [0.2, 0.4, 0.1, 0.0])
    np.testing.assert_allclose(found.features["jet:Jet_nTracks"][0, :4], [20, 40, 10, 0])
    # ℓ⁺ is the muon.
    np.testing.assert_allclose(found.features["lepton:miniIso"], [[0.22, 0.11]])
    np.testing.assert_allclose(found.features["lepton:Electron_mvaE/Muon_mvaM"], [[0.44, 0.3]])
    np.testing.assert_allclose(found.features["event:PV_npvsGood"], [31])
    np.testing.assert_allclose(found.features["event:MET_significance"], [2.5])
    assert found.jet_working_points[0, :4].tolist() == [2, 0, 3, 0]


def test_features_follow_jets_that_a_variation_puts_in_another_order(nano_file, event):
    """The jet of area 0.4 becomes the softest; values stay those of the file."""
    path = nano_file([event], extra=EXTRA)
    source = {"kind": "shift", "object": "jet", "flat": 0.3, "where": {"pt": {"min": 65.0, "max": 75.0}}}
    config = SystematicsConfig.model_validate({"objects": {"scale": source}})
    areas = {
        name: select_objects(objects, SELECTION, dataset="tt").events.features["jet:Jet_area"][0, :3]
        for name, objects in variations(open_events(path), SELECTION, config)
    }
    np.testing.assert_allclose(areas["nominal"], [0.2, 0.4, 0.1])
    np.testing.assert_allclose(areas["scale_up"], [0.4, 0.2, 0.1])
    np.testing.assert_allclose(areas["scale_down"], [0.2, 0.1, 0.4])


def test_features_in_random_events(nano_file, random_events):
    """Each value is a function of the momentum in the same file, so the order is right in all events."""
    rng = np.random.default_rng(3)
    for one in random_events:
        for object_ in one["Jet"]:
            object_["area"] = object_["pt"] / 100
        for collection in ("Electron", "Muon"):
            for object_ in one[collection]:
                object_["miniIso"] = object_["pt"] / 50
        one["MET_significance"] = rng.normal()
    features = {"jet": ["Jet_area"], "lepton": ["miniIso"], "event": ["MET_significance"]}
    path = nano_file(random_events, extra={"Jet_area": 0.0, **LEPTONS, "MET_significance": 0.0})
    config = SelectionConfig.model_validate({"features": features})
    found = select(open_events(path), config, dataset="tt")
    pt = np.hypot(found.events.jets[..., 1], found.events.jets[..., 2])
    np.testing.assert_allclose(found.events.features["jet:Jet_area"], pt / 100, rtol=1e-6)
    pt = np.hypot(found.events.lepton_p4[..., 1], found.events.lepton_p4[..., 2])
    np.testing.assert_allclose(found.events.features["lepton:miniIso"], pt / 50, rtol=1e-6)
    expected = [random_events[i]["MET_significance"] for i in found.index]
    np.testing.assert_allclose(found.events.features["event:MET_significance"], expected, rtol=1e-6)


def test_skim_keeps_features(nano_file, event, tmp_path):
    path = nano_file([event], extra=EXTRA)
    make_skim([path], tmp_path / "a.parquet", SELECTION, progress=False)
    skim = Skim(tmp_path / "a.parquet")
    read, _ = skim.read()
    direct = select(open_events(path), SELECTION, dataset="default").events
    assert tuple(read.features) == SELECTION.features.names
    for name, values in direct.features.items():
        np.testing.assert_allclose(read.features[name], values, rtol=1e-7)
    np.testing.assert_array_equal(read.jet_working_points, direct.jet_working_points)
    assert skim.metadata["selection"]["features"] == FeaturesConfig.model_validate(FEATURES).model_dump(
        mode="json"
    )
    assert skim.metadata["selection"]["jet"]["btag_working_points"] == {"L": 0.0490, "M": 0.2783, "T": 0.7100}


@pytest.mark.parametrize(
    ("features", "drop", "message"),
    [
        ({"jet": ["Jet_area"]}, ["Jet_area"], r"'Jet_area' \(selection key 'features.jet'\) is missing"),
        ({"lepton": ["miniIso"]}, ["Muon_miniIso"], r"'Muon_miniIso' \(selection key 'features.lepton'\)"),
        ({"event": ["PuppiMET_sumEt"]}, [], r"'PuppiMET_sumEt' \(selection key 'features.event'\)"),
        ({"event": ["GoodJet_area"]}, [], "'GoodJet_area'.* is missing"),
    ],
)
def test_missing_branch(nano_file, event, tmp_path, features, drop, message):
    extra = {name: value for name, value in EXTRA.items() if name not in drop}
    path = nano_file([event], extra=extra)
    with pytest.raises(InputError, match=message):
        make_skim(
            [path], tmp_path / "a.parquet", SelectionConfig.model_validate({"features": features}),
            progress=False,
        )  # fmt: skip


def test_several_values_are_none_of_the_event(nano_file, event):
    extra = EXTRA | {"Other_x": ak.Array([[1.0, 2.0]])}
    config = SelectionConfig.model_validate({"features": {"event": ["Other_x"]}})
    with pytest.raises(InputError, match=r"'Other_x' \(selection key 'features.event'\) has several values"):
        select(open_events(nano_file([event], extra=extra)), config, dataset="tt")


def test_leak(nano_file, random_events):
    """Features and working points are the same bits without any generator branch."""
    config = SelectionConfig.model_validate({"features": {"jet": ["Jet_area"], "event": ["PV_npvsGood"]}})
    rng = np.random.default_rng(5)
    for one in random_events:
        for object_ in one["Jet"]:
            object_ |= {"area": rng.normal(), "btagDeepFlavB": rng.random()}
    extra = {"Jet_area": 0.0, "PV_npvsGood": 3}
    generator = ("GenPart", "GenJet", "Generator_id1", "Generator_id2", "LHE_HT", "genWeight")
    fields = ("Jet_hadronFlavour", "Jet_genJetIdx", "Electron_genPartIdx", "Muon_genPartIdx")
    complete, reduced = (
        select(
            open_events(nano_file(random_events, name, drop=drop, extra=extra)), config, dataset="tt"
        ).events
        for name, drop in (("a.root", ()), ("b.root", (*generator, *fields)))
    )
    assert len(complete) > 20
    np.testing.assert_array_equal(complete.jet_working_points, reduced.jet_working_points)
    assert complete.features.keys() == reduced.features.keys()
    for name, values in complete.features.items():
        np.testing.assert_array_equal(values, reduced.features[name])


# ---- working points --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("era", "tagger", "scores", "counts"),
    [
        ("UL2016preVFP", "btagDeepFlavB", (0.05, 0.2599, 0.66, 1.0), (0, 2, 3, 3)),
        ("UL2018", "btagDeepFlavB", (0.0490, 0.0491, 0.2784, 0.7101), (0, 1, 2, 3)),
        ("UL2018", "btagUParTAK4B", (0.2, 0.6, 0.7, 0.97), (2, 3, 4, 5)),
        ("2022", "btagPNetB", (0.05, 0.3, 0.7, 0.99), (1, 2, 3, 5)),
        ("2022EE", "btagRobustParTAK4B", (0.05, 0.3, 0.9, 0.99), (0, 1, 3, 5)),
        ("2024", "btagUParTAK4B", (0.02, 0.03, 0.5, 0.98), (0, 1, 3, 5)),
    ],
)
def test_counts_of_several_taggers(nano_file, emu, era, tagger, scores, counts):
    config = SelectionConfig.model_validate(
        {"preset": "none", "era": era, "jet": {"btag": tagger, "min_btags": 0}}
    )
    jets = [
        {"pt": 90.0 - 10 * i, "phi": -2.0 - i / 2, "eta": 1.5, tagger: score}
        for i, score in enumerate(scores)
    ]
    path = nano_file([emu(Jet=jets)], extra={f"Jet_{tagger}": 0.0} if tagger != "btagDeepFlavB" else None)
    found = select(open_events(path), config, dataset="tt").events
    assert found.jet_working_points[0, :4].tolist() == list(counts)
    assert not found.jet_working_points[0, 4:].any()


def test_every_tagger_has_working_points_that_count():
    for era, of_era in working_points().items():
        for tagger, points in of_era.taggers.items():
            config = SelectionConfig.model_validate({"preset": "none", "era": era, "jet": {"btag": tagger}})
            jet_config = resolve_selection(config, ()).jet
            assert jet_config.btag_working_points == points
            assert jet_config.btag_threshold == points["M"]
            between = np.array([0.0, *points.values()]) + 1e-6
            assert count_working_points(between, points).tolist() == list(range(len(points) + 1))


def test_working_points_that_nobody_knows():
    config = SelectionConfig.model_validate({"jet": {"btag": "btagMine", "btag_threshold": 0.5}})
    assert resolve_selection(config, ()).jet.btag_working_points is None
    assert count_working_points(np.array([0.3]), None) is None
    own = {"L": 0.1, "M": 0.5}
    config = SelectionConfig.model_validate(
        {"jet": {"btag": "btagMine", "btag_threshold": 0.5, "btag_working_points": own}}
    )
    resolved = resolve_selection(config, ())
    assert resolved.jet.btag_working_points == own
    assert resolve_selection(resolved, ()) == resolved


# ---- own objects -----------------------------------------------------------------------------------------


@pytest.fixture
def objects():
    return {
        "leptons": ak.Array(
            [[
                {"pt": 40.0, "eta": 0.1, "phi": 0.0, "charge": -1, "pdgId": 11, "miniIso": 0.1, "mvaE": 1.0,
                 "mvaM": None},
                {"pt": 30.0, "eta": 0.2, "phi": 2.0, "charge": 1, "pdgId": -13, "miniIso": 0.2, "mvaE": None,
                 "mvaM": 2.0},
            ]]
        ),
        "jets": ak.Array(
            [[
                {"pt": 60.0, "eta": 0.0, "phi": 1.0, "mass": 9.0, "btagDeepFlavB": 0.8, "area": 0.1,
                 "nTracks": 3},
                {"pt": 90.0, "eta": 0.0, "phi": -1.0, "mass": 9.0, "btagDeepFlavB": 0.06, "area": 0.2,
                 "nTracks": 4},
            ]]
        ),
        "met": ak.Array([{"pt": 50.0, "phi": 1.0}]),
        "PV_npvsGood": np.array([12]),
        "MET_significance": np.array([1.5]),
    }  # fmt: skip


def test_features_of_own_objects(objects):
    found, _ = dilepton_events(objects, SELECTION, needs_key=False)
    assert tuple(found.features) == SELECTION.features.names
    np.testing.assert_allclose(found.features["jet:Jet_area"][0, :3], [0.2, 0.1, 0.0])
    np.testing.assert_allclose(found.features["lepton:miniIso"], [[0.2, 0.1]])
    np.testing.assert_allclose(found.features["lepton:Electron_mvaE/Muon_mvaM"], [[2.0, 1.0]])
    np.testing.assert_allclose(found.features["event:PV_npvsGood"], [12])
    assert found.jet_working_points[0, :3].tolist() == [1, 3, 0]
    assert dilepton_events(objects, needs_key=False)[0].features is None


def test_own_scores_of_another_tagger(objects):
    jets = ak.without_field(objects["jets"], "btagDeepFlavB")
    objects["jets"] = ak.with_field(jets, [[0.0247, 0.98]], "btagUParTAK4B")
    config = SelectionConfig(preset="nano_v15", era="2024")
    found, _ = dilepton_events(objects, config, needs_key=False)
    assert found.jet_working_points[0, :2].tolist() == [5, 1]
    assert found.jet_tagged[0, :2].tolist() == [True, False]


def test_own_numbers_of_working_points(objects):
    jets = ak.without_field(objects["jets"], "btagDeepFlavB")
    objects["jets"] = ak.with_field(jets, [[1, 4]], "working_points")
    found, _ = dilepton_events(objects, needs_key=False)
    assert found.jet_working_points[0, :3].tolist() == [4, 1, 0]
    assert found.jet_tagged[0, :3].tolist() == [True, False, False]
    found, _ = dilepton_events(
        objects, SelectionConfig(era="UL2018", jet={"working_point": "L"}), needs_key=False
    )
    assert found.jet_tagged[0, :3].tolist() == [True, True, False]
    with pytest.raises(
        TopRecoError, match="takes the b-tag score, and the events have only the number of work"
    ):
        found.further_inputs(working_points=False, features={})
    objects["jets"] = ak.with_field(jets, [[1, 6]], "working_points")
    with pytest.raises(
        TopRecoError, match="'working_points': 6 found, numbers of passed working points from 0 to 5"
    ):
        dilepton_events(objects, needs_key=False)


@pytest.mark.parametrize(
    ("where", "name", "message"),
    [
        ("jets", "area", "jets without field 'area'"),
        ("leptons", "miniIso", "leptons without field 'miniIso'"),
        (None, "PV_npvsGood", r"'PV_npvsGood', a feature of events \(features.event\), is missing"),
    ],
)
def test_own_objects_without_a_feature(objects, where, name, message):
    if where is None:
        del objects[name]
    else:
        objects[where] = ak.without_field(objects[where], name)
    with pytest.raises(TopRecoError, match=message):
        dilepton_events(objects, SELECTION, needs_key=False)
