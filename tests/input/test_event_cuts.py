"""Each optional cut on hand-made events, and that none depends on chunks."""

import json

import correctionlib.schemav2 as schema
import numpy as np
import pytest

from topreco.config import ConfigError, SelectionConfig
from topreco.core.events import DileptonEvents, dataset_id, hashed_uniform
from topreco.input.cutflow import Cutflow
from topreco.input.nano import InputError, iterate_events, open_events
from topreco.input.payloads import CorrectionError
from topreco.input.selection import select

DATA = {"drop": ("genWeight", "GenPart", "GenJet")}


@pytest.fixture
def run(nano_file):
    """Function that writes events and selects from them with the given cuts."""

    def run(*events, cuts=None, dataset="tt", jet=None, **options):
        config = SelectionConfig.model_validate({"cuts": cuts or {}, "jet": jet or {}})
        return select(open_events(nano_file(events, **options)), config, dataset=dataset)

    return run


def test_all_are_off(run, emu):
    assert list(run(emu()).cutflow.steps)[:2] == ["all", "two leptons"]


# ---- certification, filters, triggers --------------------------------------------------------------------


@pytest.fixture
def golden(tmp_path):
    path = tmp_path / "golden.json"
    path.write_text(json.dumps({"5": [[1, 3], [7, 7]], "9": [[2, 2]], "319100": [[1, 2]]}))
    return path


def test_golden_json_is_for_data(run, emu, golden):
    keys = [(5, 1), (5, 3), (5, 4), (5, 7), (6, 1), (9, 2), (9, 3)]
    events = [emu(run=run, luminosityBlock=lumi) for run, lumi in keys]
    found = run(*events, cuts={"golden_json": golden}, **DATA)
    assert found.index.tolist() == [0, 1, 3, 5]
    assert found.cutflow["golden JSON"].n == 4
    simulated = run(*events, cuts={"golden_json": golden})
    assert len(simulated.index) == len(keys)
    assert "golden JSON" not in simulated.cutflow.steps


def test_golden_json_that_is_none(run, emu, tmp_path):
    text = tmp_path / "text.json"
    text.write_text("hello")
    for path in (tmp_path / "absent.json", text):
        with pytest.raises(ConfigError, match=r"no JSON of certified luminosity.*golden_json"):
            run(emu(), cuts={"golden_json": path}, **DATA)


@pytest.mark.parametrize(
    "content",
    [[1], {"a": [[1, 2]]}, {"5": None}, {"5": [1, 2]}, {"5": [[1]]}, {"5": [[1, 2, 3, 4]]}, {"5": [[3, 1]]},
     {"5": [[0, 1]]}, {"5": [[1, 2**32]]}, {"5": [[1.5, 2]]}, {str(2**32): [[1, 2]]}],
    ids=str,
)  # fmt: skip
def test_golden_json_of_other_things(run, emu, tmp_path, content):
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"golden_json\): lists of \[first, last\] by run expected"):
        run(emu(), cuts={"golden_json": path}, **DATA)


FLAGS = {"Flag_goodVertices": True, "Flag_BadPFMuonFilter": True}


def test_met_filters(run, emu):
    events = [emu(), emu(Flag_goodVertices=False), emu(Flag_BadPFMuonFilter=False)]
    found = run(*events, cuts={"met_filters": list(FLAGS)}, extra=FLAGS)
    assert found.index.tolist() == [0]
    assert found.cutflow["MET filters"].n == 1
    assert run(*events, cuts={"met_filters": ["Flag_goodVertices"]}, extra=FLAGS).index.tolist() == [0, 2]
    with pytest.raises(
        InputError,
        match=r"branch 'Flag_goodVertex' \(selection key 'cuts.met_filters'\).*close.*goodVertices",
    ):
        run(*events, cuts={"met_filters": ["Flag_goodVertex"]}, extra=FLAGS)


TRIGGERS = {"MuonEG": ["HLT_emu", "HLT_mue"], "DoubleMuon": ["HLT_mumu"], "Muon": ["HLT_mu"]}
PATHS = {"HLT_emu": False, "HLT_mue": False, "HLT_mumu": False, "HLT_mu": False}


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("MuonEG_Run2018A", [1, 2, 5]),
        ("DoubleMuon_Run2018A", [3]),
        ("Muon_Run2022C", [4]),
    ],
)
def test_each_event_of_data_counts_in_one_primary_dataset(run, emu, dataset, expected):
    events = [
        emu(),
        emu(HLT_emu=True),
        emu(HLT_mue=True, HLT_mumu=True),
        emu(HLT_mumu=True, HLT_mu=True),
        emu(HLT_mu=True),
        emu(**dict.fromkeys(PATHS, True)),
    ]
    found = run(*events, cuts={"triggers": TRIGGERS}, dataset=dataset, extra=PATHS, **DATA)
    assert found.index.tolist() == expected
    assert found.cutflow["trigger"].n == len(expected)
    simulated = run(*events, cuts={"triggers": TRIGGERS}, extra=PATHS)
    assert simulated.index.tolist() == [1, 2, 3, 4, 5]


def test_missing_paths(run, emu):
    some = {"HLT_emu": True}
    assert len(run(emu(), cuts={"triggers": TRIGGERS}, extra=some).index) == 1
    with pytest.raises(
        ConfigError, match=r"'HLT_mue' \(selection key 'cuts.triggers'\).* as 3 of 4 paths are"
    ):
        run(emu(), cuts={"triggers": TRIGGERS, "missing_trigger": "error"}, extra=some)
    with pytest.raises(ConfigError, match="as 4 of 4 paths are"):
        run(emu(), cuts={"triggers": TRIGGERS})


def test_data_of_an_unknown_primary_dataset(run, emu):
    with pytest.raises(
        ConfigError, match=r"dataset 'EGamma', whose name contains no primary dataset.*MuonEG"
    ):
        run(emu(), cuts={"triggers": TRIGGERS}, dataset="EGamma", extra=PATHS, **DATA)


# ---- broken regions --------------------------------------------------------------------------------------


def with_jet(emu, *, eta, phi, **changes):
    jets = [{"pt": 80.0, "phi": 1.0, "btagDeepFlavB": 0.9}, {"pt": 60.0, "phi": 2.9}]
    return emu(Jet=[*jets, {"pt": 35.0, "eta": eta, "phi": phi} | changes])


@pytest.mark.parametrize(
    ("cut", "inside", "outside"),
    [
        (
            "hem_veto",
            [(-3.19, -1.56), (-1.31, -0.88), (-2.0, -1.2)],
            [(-3.21, -1.2), (-1.29, -1.2), (2.0, -1.2)],
        ),
        ("hem_veto", [(-2.0, -1.56)], [(-2.0, -1.58), (-2.0, -0.86), (-2.0, 1.2)]),
        (
            "bpix_veto",
            [(-1.49, -1.19), (-0.01, -0.81)],
            [(-1.51, -1.0), (0.01, -1.0), (-1.0, -1.21), (-1, -0.79)],
        ),
    ],
)
def test_regions(run, emu, cut, inside, outside):
    events = [with_jet(emu, eta=eta, phi=phi, run=None) for eta, phi in [*inside, *outside]]
    found = run(*events, cuts={cut: True, "hem_fraction": 1.0})
    assert found.index.tolist() == list(range(len(inside), len(events)))


def test_soft_and_unidentified_jets_do_no_harm(run, emu):
    hole = {"eta": -2.0, "phi": -1.2}
    events = [
        with_jet(emu, **hole, pt=29.0),
        with_jet(emu, **hole, jetId=0),
        with_jet(emu, **hole),
        emu(Electron=[{"pt": 40.0, "charge": 1, **hole}]),
        emu(Electron=[{"pt": 40.0, "charge": 1}, {"pt": 25.0, "charge": 1, "cutBased": 1, **hole}]),
    ]
    found = run(*events, cuts={"hem_veto": True, "hem_fraction": 1.0})
    assert found.index.tolist() == [0, 1, 4]


def test_hem_in_data_and_part_of_the_simulation(run, emu):
    runs = [319076, 319077, 325000]
    events = [with_jet(emu, eta=-2.0, phi=-1.2) | {"run": run} for run in runs]
    assert run(*events, cuts={"hem_veto": True}, **DATA).index.tolist() == [0]
    many = [with_jet(emu, eta=-2.0, phi=-1.2) for _ in range(400)]
    found = run(*many, cuts={"hem_veto": True})
    expected = hashed_uniform(1516, dataset_id("tt"), 1, 1, np.arange(400))
    np.testing.assert_array_equal(found.index, np.flatnonzero(expected >= 0.632))
    assert len(found.index) / 400 == pytest.approx(1 - 0.632, abs=0.1)


def test_electrons_in_the_leaking_endcap(run, emu):
    leak = {"pt": 40.0, "charge": 1, "eta": 1.6, "seediEtaOriX": 44, "seediPhiOriY": 73}
    electrons = [leak, leak | {"eta": 1.5}, leak | {"seediEtaOriX": 45}, leak | {"seediPhiOriY": 72}]
    extra = {"Electron_seediEtaOriX": 0, "Electron_seediPhiOriY": 0}
    events = [emu(Electron=[electron | {"deltaEtaSC": 0.1}]) for electron in electrons]
    assert run(*events, cuts={"ee_leak_veto": True}, extra=extra).index.tolist() == [1, 2, 3]
    with pytest.raises(InputError, match=r"Electron_seediEtaOriX' \(selection key 'cuts.ee_leak_veto'\)"):
        run(*events, cuts={"ee_leak_veto": True})


# ---- jet veto map ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def veto_map(tmp_path_factory):
    """Vetoes 1 < η < 2 with 0 < φ < 1; of kind `other`, nothing."""

    def binned(hot):
        content = [0.0] * 9
        content[4] = hot
        return schema.MultiBinning(
            nodetype="multibinning",
            inputs=["eta", "phi"],
            edges=[[-5.191, 1.0, 2.0, 5.191], [-3.1415926536, 0.0, 1.0, 3.1415926536]],
            content=content,
            flow="error",
        )

    kinds = schema.Category(
        nodetype="category",
        input="type",
        content=[{"key": "jetvetomap", "value": binned(100.0)}, {"key": "other", "value": binned(0.0)}],
    )
    inputs = [
        {"name": "type", "type": "string"},
        {"name": "eta", "type": "real"},
        {"name": "phi", "type": "real"},
    ]
    correction = schema.Correction(
        name="map_V1", version=1, inputs=inputs, output={"name": "vetoed", "type": "real"}, data=kinds
    )
    path = tmp_path_factory.mktemp("veto") / "jetvetomaps.json"
    path.write_text(schema.CorrectionSet(schema_version=2, corrections=[correction]).model_dump_json())
    return path


EM = {"Jet_chEmEF": np.float32(0.1), "Jet_neEmEF": np.float32(0.2)}


def test_jet_veto_map(run, emu, veto_map):
    hot = {"eta": 1.5, "phi": 0.5}
    events = [
        with_jet(emu, **hot),
        with_jet(emu, **hot, pt=16.0),
        with_jet(emu, **hot, pt=14.0),
        with_jet(emu, **hot, jetId=0),
        with_jet(emu, **hot, neEmEF=0.81),
        with_jet(emu, eta=1.5, phi=1.5),
        with_jet(emu, eta=1.5, phi=np.pi),
        with_jet(emu, **hot) | {"Muon": [{"pt": 30.0, "charge": -1, "eta": 1.5, "phi": 0.4}]},
    ]
    options = {"extra": EM, "jet": {"min_btags": 0}}
    found = run(*events, cuts={"jet_veto_map": {"file": veto_map}}, **options)
    assert found.index.tolist() == [2, 3, 4, 5, 6, 7]
    assert found.cutflow["jet veto map"].n == 6
    per_jet = run(*events, cuts={"jet_veto_map": {"file": veto_map, "level": "jet"}}, **options)
    assert "jet veto map" not in per_jet.cutflow.steps
    assert per_jet.events.n_jets.tolist() == [2, 2, 2, 2, 3, 3, 3, 2]
    other = run(*events, cuts={"jet_veto_map": {"file": veto_map, "kind": "other"}}, **options)
    assert len(other.index) == len(events)


def test_jet_veto_map_mistakes(run, emu, veto_map, tmp_path):
    text = tmp_path / "text.json"
    text.write_text("hello")
    crash = tmp_path / "crash.json"
    formula = {"nodetype": "formula", "expression": "x", "parser": "TFormula", "variables": [False]}
    number = {"name": "eta", "type": "real"}
    vetoes = {"name": "map_V1", "version": 1, "inputs": [number], "output": number, "data": formula}
    crash.write_text(json.dumps({"schema_version": 2, "corrections": [vetoes]}))
    for file, message in [
        (tmp_path / "absent.json", r"jet_veto_map.file: .*absent.json: no such file"),
        (text, r"text.json: not a correctionlib payload"),
        # Handed to correctionlib, it ends the process.
        (crash, r"crash.json: not a correctionlib payload"),
    ]:
        with pytest.raises(CorrectionError, match=message):
            run(with_jet(emu, eta=1.5, phi=0.5), cuts={"jet_veto_map": {"file": file}}, extra=EM)
    for content, message in [
        ({"file": veto_map, "name": "map_V2"}, r"no correction 'map_V2' .*it has map_V1"),
        ({"file": veto_map, "kind": "nothing"}, r"kind 'nothing'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            run(with_jet(emu, eta=1.5, phi=0.5), cuts={"jet_veto_map": content}, extra=EM)
    with pytest.raises(InputError, match=r"'Jet_chEmEF' \(selection key 'cuts.jet_veto_map'\) is missing"):
        run(emu(), cuts={"jet_veto_map": {"file": veto_map}})


# ---- jets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "reverse", "passing", "failing"),
    [
        ("loose", False, 4, 3),
        ("tight", False, 1, 6),
        ("medium", False, 2, 5),
        ("loose", True, 1, 6),
        ("tight", True, 4, 3),
    ],
)
def test_pile_up_id_counts_below_50_gev(run, emu, level, reverse, passing, failing):
    def event(pt, pu_id):
        return emu(
            Jet=[{"pt": 80.0, "phi": 1.0, "btagDeepFlavB": 0.9}, {"pt": pt, "phi": -2.0, "puId": pu_id}]
        )

    below = np.nextafter(np.float32(50), np.float32(0))
    events = [event(below, passing), event(below, failing), event(50.0, failing)]
    jet = {"pu_id": level, "pu_id_reversed": reverse, "btag_threshold": 0.2783}
    found = run(*events, jet=jet, extra={"Jet_puId": 7})
    assert found.events.n_jets.tolist() == [2, 2]
    assert found.index.tolist() == [0, 2]


def test_recomputed_identification_is_used(run, emu):
    extra = {"Jet_neHEF": np.float32(0.1), "Jet_neEmEF": np.float32(0.2), "Jet_chHEF": np.float32(0.6)}
    extra |= {"Jet_muEF": np.float32(0), "Jet_chEmEF": np.float32(0)}
    extra |= {"Jet_chMultiplicity": np.uint8(9), "Jet_neMultiplicity": np.uint8(9)}
    events = [with_jet(emu, eta=0.0, phi=-2.0, pt=70.0), with_jet(emu, eta=0.0, phi=-2.0, neHEF=0.995)]
    found = run(*events, jet={"id_recipe": "run3_puppi"}, extra=extra, drop=("Jet_jetId",))
    assert found.events.n_jets.tolist() == [3, 2]
    # Without identification none of these branches is needed.
    assert len(run(*events, jet={"id_recipe": "run3_puppi", "id_bit": None}).index) == 2
    with pytest.raises(InputError, match=r"'Jet_neHEF' \(selection key 'jet.id_recipe'\) is missing"):
        run(*events, jet={"id_recipe": "run3_puppi"})


def test_supercluster_eta_of_new_versions(run, emu):
    inside = {"pt": 40.0, "charge": 1, "eta": 1.4, "superclusterEta": 1.5}
    events = [emu(Electron=[inside]), emu(Electron=[inside | {"superclusterEta": -1.4}])]
    extra = {"Electron_superclusterEta": np.float32(0)}
    assert run(*events, extra=extra, drop=("Electron_deltaEtaSC",)).index.tolist() == [1]


# ---- chunks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [True, False])
def test_chunks_change_nothing(nano_file, random_events, golden, veto_map, data):
    rng = np.random.default_rng(3)
    for event in random_events:
        event |= {"run": int(rng.choice([5, 319100, 319100])), "luminosityBlock": int(rng.integers(1, 4))}
        event |= {name: bool(rng.random() < 0.6) for name in (*PATHS, *FLAGS)}
        for jet in event["Jet"]:
            jet["puId"] = int(rng.choice([0, 4, 7]))
    options = DATA if data else {}
    path = nano_file(random_events, extra=PATHS | FLAGS | EM | {"Jet_puId": 7}, **options)
    config = SelectionConfig.model_validate(
        {
            "preset": "none",
            "jet": {"pu_id": "loose", "min_btags": 0},
            "cuts": {
                "met_filters": list(FLAGS)[:1],
                "triggers": TRIGGERS,
                "hem_veto": True,
                "bpix_veto": True,
                "jet_veto_map": {"file": veto_map},
                "golden_json": golden,
            },
        }
    )
    whole = select(open_events(path), config, dataset="MuonEG_Run2018A")
    assert 0 < len(whole.index) < whole.cutflow["two leptons"].n
    assert len(whole.cutflow.steps) > 8
    counts = {name: whole.cutflow[name].n for name in ("all", "MET filters", "trigger", "HEM15/16", "BPix")}
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert len(set(counts.values())) == len(counts), counts
    parts = [
        select(events, config, dataset="MuonEG_Run2018A") for events in iterate_events(path, step_size=37)
    ]
    assert sum((part.cutflow for part in parts), Cutflow()) == whole.cutflow
    joined = DileptonEvents.concatenate([part.events for part in parts])
    for name in DileptonEvents.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole.events, name), err_msg=name)


def test_files_that_change_are_read_again(run, emu, golden, veto_map, tmp_path):
    """Within one process: a notebook, or a worker that lives for long."""
    event = emu(run=5, luminosityBlock=4)
    cuts = {"golden_json": golden}
    assert len(run(event, cuts=cuts, **DATA).index) == 0
    golden.write_text(json.dumps({"5": [[4, 4], [7, 7]], "9": [[2, 2]], "319100": [[1, 2]]}))
    assert len(run(event, cuts=cuts, **DATA).index) == 1

    vetoed = with_jet(emu, eta=1.5, phi=0.5)
    own = tmp_path / "map.json"
    own.write_text(veto_map.read_text())
    options = {"extra": EM, "cuts": {"jet_veto_map": {"file": own}}}
    assert len(run(vetoed, **options).index) == 0
    own.write_text(veto_map.read_text().replace("100.0", "  0.0"))
    assert len(run(vetoed, **options).index) == 1
