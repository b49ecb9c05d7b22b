"""Features and working points from a NanoAOD file through skim, training, run, own processor and ONNX."""

import awkward as ak
import numpy as np
import pytest
import uproot

import topreco
from topreco.config import RunConfig, SelectionConfig, SystematicsConfig, TrainConfig
from topreco.core.skim import Skim
from topreco.input.branches import Branches
from topreco.input.nano import InputError, open_events
from topreco.input.selection import select
from topreco.input.skimming import make_skim
from topreco.input.truth import read_truth
from topreco.network.export.onnx import export_onnx
from topreco.network.model_file import load_model
from topreco.network.train import train
from topreco.runs.run import run

FEATURES = {"jet": ["Jet_half"], "lepton": ["Electron_mass/Muon_mass"], "event": ["PuppiMET_secret"]}
SELECTION = SelectionConfig.model_validate({"jet": {"min_btags": 0}, "met_min": 0})


@pytest.fixture(scope="module")
def nano(simulated, tmp_path_factory):
    """The simulated events with the pT of the true neutrinos under the name of something measured."""
    truth = read_truth(Branches(open_events(simulated)))
    path = tmp_path_factory.mktemp("features") / "nano.root"
    with uproot.open(simulated) as source, uproot.recreate(path) as target:
        tree = source["Events"]
        jagged = {b.partition("_")[0] for b in tree.keys() if "[]" in tree[b].typename}  # noqa: SIM118
        arrays = tree.arrays()
        content = {b: arrays[b] for b in arrays.fields if not {b.partition("_")[0], b[1:]} & jagged}
        for name in jagged:
            fields = [b for b in arrays.fields if b.startswith(f"{name}_")]
            content[name] = ak.zip({field.removeprefix(f"{name}_"): arrays[field] for field in fields})
        content["Jet"] = ak.with_field(content["Jet"], arrays["Jet_pt"] / 2, "half")
        total = truth.neutrino.sum(axis=1)
        content["PuppiMET_secret"] = np.nan_to_num(np.hypot(total[:, 1], total[:, 2])).astype(np.float32)
        types = {name: x.type.content if isinstance(x, ak.Array) else x.dtype for name, x in content.items()}
        target.mktree("Events", types).extend(content)
    return path


@pytest.fixture(scope="module")
def skim(nano, tmp_path_factory):
    path = tmp_path_factory.mktemp("skim") / "a.parquet"
    features = {"features": FEATURES}
    config = SelectionConfig.model_validate(SELECTION.model_dump(exclude_unset=True) | features)
    make_skim([nano], path, config, progress=False)
    return path


@pytest.fixture(scope="module")
def trained(skim, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    content = {
        "model": {
            "backbone": {"blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1},
            "tokens": {"btag": "working_points", "features": FEATURES},
        },
        "data": {"files": [str(skim)]},
        "epochs": 2, "batch_size": 16, "accelerator": "cpu", "output": str(folder / "out"),
    }  # fmt: skip
    path = train(TrainConfig.model_validate(content), progress=False)
    onnx = folder / "exported.onnx"
    export_onnx(load_model(path), onnx)
    return path, onnx


def test_the_skim_has_what_the_file_has(skim):
    events, truth = Skim(skim).read()
    total = truth.neutrino.sum(axis=1)
    known = np.isfinite(total).all(axis=1)
    assert known.sum() > 80
    secret = events.features["event:PuppiMET_secret"]
    np.testing.assert_allclose(secret[known], np.hypot(total[:, 1], total[:, 2])[known], rtol=1e-5)
    pt = np.hypot(events.jets[..., 1], events.jets[..., 2])
    np.testing.assert_allclose(events.features["jet:Jet_half"], pt / 2, rtol=1e-5)
    assert set(np.unique(events.jet_working_points)) == {0, 1, 2, 3}


def test_all_ways_to_a_prediction_are_one(nano, skim, trained):
    """From the skim, from the file, from own objects and by onnxruntime; the feature makes a difference."""
    events, _ = Skim(skim).read()
    path, onnx = trained
    method = topreco.load(path)
    expected = method(events)
    assert expected.valid.all()
    energy = expected.p4[..., :1]

    def differs(p4):
        return (np.abs(p4 - expected.p4) / energy).max()

    without = events.features | {"event:PuppiMET_secret": events.features["event:PuppiMET_secret"][::-1]}
    assert differs(method(events.__class__(**vars(events) | {"features": without})).p4) > 1e-4
    assert differs(topreco.load(onnx)(events).p4) < 1e-5

    opened = open_events(nano)
    found = topreco.reconstruct(opened, path, selection=SELECTION)
    chosen = found.top[found.valid]
    assert len(chosen) == len(events)
    np.testing.assert_allclose(chosen.pt, np.hypot(*expected.p4[:, 0, 1:3].T), rtol=1e-4)

    index = select(opened, SELECTION, dataset="default").index
    arrays = uproot.open(nano)["Events"].arrays(entry_start=0)[index]

    def leptons(name, flavour):
        columns = {field: arrays[f"{name}_{field}"] for field in ("pt", "eta", "phi", "charge", "mass")}
        found = ak.zip(columns | {"pdgId": ak.full_like(columns["charge"], flavour)})
        good = (
            arrays["Electron_cutBased"] == 4 if name == "Electron" else arrays["Muon_pfRelIso04_all"] < 0.15
        )
        return found[good & (found.pt > 20) & (abs(found.eta) < 2.4)]

    jets = ak.zip({f: arrays[f"Jet_{f}"] for f in ("pt", "eta", "phi", "mass", "btagDeepFlavB", "half")})
    both = ak.concatenate([leptons("Electron", 11), leptons("Muon", 13)], axis=1)
    pairs = ak.cartesian({"jet": jets, "lepton": both}, nested=True)
    turned = (pairs.jet.phi - pairs.lepton.phi + np.pi) % (2 * np.pi) - np.pi
    near = ak.any(np.hypot(pairs.jet.eta - pairs.lepton.eta, turned) <= 0.4, axis=2)
    jets = jets[(jets.pt > 30) & (abs(jets.eta) < 2.4) & ~near]
    objects = {
        "leptons": both,
        "jets": jets,
        "met": ak.zip({f: arrays[f"PuppiMET_{f}"] for f in ("pt", "phi")}),
        "PuppiMET_secret": arrays["PuppiMET_secret"],
    }
    own = topreco.reconstruct(objects, path)
    assert ak.all(own.valid)
    # The mass of electrons in the supercluster's gap is as good as that of others; few events differ.
    same = np.isclose(ak.to_numpy(own.top.pt), np.hypot(*expected.p4[:, 0, 1:3].T), rtol=1e-4)
    assert same.mean() > 0.95


def test_run_reads_the_features_of_its_models(nano, skim, trained, tmp_path):
    """Nobody names them in the configuration of the run; variations of jets keep them."""
    path, onnx = trained
    source = {"kind": "shift", "object": "jet", "flat": 0.1}
    systematics = SystematicsConfig.model_validate({"objects": {"scale": source}})
    result = run(
        RunConfig(
            fileset={"tt": (str(nano),)},
            methods=(str(path), str(onnx), "loose"),
            selection=SELECTION,
            systematics=systematics,
            output=tmp_path / "out",
        ),
        progress=False,
    )
    of_method = result.summary["all"]["tt"]
    events, _ = Skim(skim).read()
    for name in ("model", "exported"):
        assert of_method[name]["all"]["m_tt"].n_selected == len(events)
        assert of_method[name]["all"]["m_tt"].metrics.efficiency == 1
    for name in ("rb", "res"):
        found = [getattr(of_method[method]["all"]["m_tt"].metrics, name) for method in ("model", "exported")]
        assert found[0] == pytest.approx(found[1], rel=1e-4)
    variation = {h.name for h in result.histograms["events"].axes}
    assert "variation" in variation
    assert list(result.histograms["events"].axes["variation"]) == ["nominal", "scale_up", "scale_down"]


def test_run_on_a_file_without_a_feature(simulated, trained, tmp_path):
    path, _ = trained
    with pytest.raises(InputError, match=r"'Jet_half' \(selection key 'features.jet'\) is missing"):
        run(
            RunConfig(fileset={"tt": (str(simulated),)}, methods=(str(path),), output=tmp_path / "out"),
            progress=False,
        )


def test_constant_feature_stops_the_training(skim, nano, tmp_path):
    """`PV_npvsGood` is the same in all events of this sample."""
    make_skim(
        [nano], tmp_path / "a.parquet",
        SelectionConfig.model_validate({"features": {"event": ["PV_npvsGood"]}}), progress=False,
    )  # fmt: skip
    config = TrainConfig.model_validate(
        {
            "model": {"tokens": {"features": {"event": ["PV_npvsGood"]}}},
            "data": {"files": [str(tmp_path / "a.parquet")]},
            "output": str(tmp_path / "out"),
        }
    )
    with pytest.raises(topreco.TopRecoError, match="'PV_npvsGood' is 1 in all training events"):
        train(config, progress=False)
