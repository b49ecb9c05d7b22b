"""Files of every NanoAOD version, read through its preset, hold the same physics."""

import awkward as ak
import numpy as np
import pytest
import uproot

from topreco.config import SelectionConfig, SimulationConfig, SystematicsConfig
from topreco.simulation.detector import MEDIUM_WORKING_POINT

pytest.importorskip("pythia8mc")
pytest.importorskip("fastjet")

from topreco.input.nano import inspect_file, iterate_events, open_events
from topreco.input.required import fit_selection
from topreco.input.selection import select
from topreco.input.systematics import variations
from topreco.input.truth import read_truth
from topreco.simulation import simulate
from topreco.simulation.versions import as_version, rescaled_score

pytestmark = pytest.mark.sim

VERSIONS = ("v7", "v9", "v11", "v12", "v14", "v15")
# All that the selection needs, loosened so that few events suffice.
LOOSE = {"met_min": 0, "z_window": 0, "jet": {"pt_min": 20.0}}
MOMENTA = ("lepton_plus", "lepton_minus", "jets", "met", "jet_mask", "jet_tagged", "b_candidates", "event")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same 200 events without and with a version: of v12 by the whole simulation, others rewritten."""
    folder = tmp_path_factory.mktemp("versions")
    options = {"n_events": 200, "seed": 5, "mpi": False}
    paths = {None: folder / "generic.root", "v12": folder / "v12.root"}
    for version, path in paths.items():
        simulate(SimulationConfig(nanoaod_version=version, **options), path, workers=1, progress=False)
    with uproot.open(paths[None]) as source:
        arrays = source["Events"].arrays()
    jagged = {b.partition("_")[0] for b in arrays.fields if arrays[b].ndim > 1}
    branches = {
        b: arrays[b] for b in arrays.fields if b.partition("_")[0] not in jagged and b[1:] not in jagged
    }
    for name in jagged:
        fields = {b.partition("_")[2]: arrays[b] for b in arrays.fields if b.startswith(f"{name}_")}
        branches[name] = ak.zip(fields)
    for version in set(VERSIONS) - {"v12"}:
        paths[version] = folder / f"{version}.root"
        content = as_version(branches, version)
        with uproot.recreate(paths[version]) as file:
            kinds = {k: v.type.content if isinstance(v, ak.Array) else v.dtype for k, v in content.items()}
            file.mktree("Events", kinds).extend(content)
    return paths


@pytest.fixture(scope="module")
def generic(files):
    return select(open_events(files[None]), SelectionConfig.model_validate(LOOSE), dataset="tt")


@pytest.mark.parametrize("version", VERSIONS)
def test_same_physics_through_the_preset(files, generic, version):
    config = SelectionConfig.model_validate(LOOSE)
    resolved = fit_selection(config, inspect_file(files[version]).branches, version)
    assert resolved.preset == f"nano_{version}"
    found = select(open_events(files[version]), config, dataset="tt")
    assert len(found.events) > 20
    np.testing.assert_array_equal(found.index, generic.index)
    for name in MOMENTA:
        np.testing.assert_array_equal(
            getattr(found.events, name), getattr(generic.events, name), err_msg=name
        )
    truth = [read_truth(open_events(files[v])[generic.index]) for v in (None, version)]
    np.testing.assert_array_equal(truth[0].tops, truth[1].tops)


@pytest.mark.parametrize("version", VERSIONS)
def test_recommended_cuts_pass_undisturbed_events(files, generic, version):
    jet = LOOSE["jet"] | ({"pu_id": "tight"} if version in ("v7", "v9") else {})
    content = LOOSE | {"jet": jet, "cuts": {"met_filters": "preset"}}
    config = SelectionConfig.model_validate(content)
    found = select(open_events(files[version]), config, dataset="tt")
    np.testing.assert_array_equal(found.index, generic.index)
    chunks = iterate_events(files[version], step_size=70)
    cutflow = sum((select(c, config, dataset="tt").cutflow for c in chunks), start=type(found.cutflow)())
    assert cutflow == found.cutflow


@pytest.mark.parametrize(
    ("version", "present", "absent"),
    [
        (
            "v9",
            {"Jet_btagDeepB", "Jet_puId", "Electron_mvaFall17V2Iso_WP90", "MET_MetUnclustEnUpDeltaX"},
            {"Jet_chMultiplicity"},
        ),
        (
            "v12",
            {"Jet_btagRobustParTAK4B", "Electron_mvaIso_WP90", "Jet_jetId"},
            {"Jet_puId", "Jet_btagDeepB"},
        ),
        (
            "v15",
            {"Jet_btagUParTAK4B", "PFMET_pt", "PFMET_ptUnclusteredDown", "Jet_neMultiplicity"},
            {"Jet_jetId", "MET_pt", "RawMET_pt", "PFMET_MetUnclustEnUpDeltaX"},
        ),
    ],
)
def test_names(files, version, present, absent):
    branches = inspect_file(files[version]).branches
    assert present <= branches
    assert not absent & branches
    generic = inspect_file(files[None]).branches
    assert not any(name.startswith("Flag_") or name == "Jet_puId" for name in generic)


def test_unclustered_energy_is_the_same_in_all_versions(files):
    config = SystematicsConfig(objects={"unclustered": {"object": "met", "kind": "unclustered"}})
    found = {}
    for version, met in (("v9", "MET"), ("v15", "PFMET")):
        selection = fit_selection(SelectionConfig(met=met), inspect_file(files[version]).branches, version)
        found[version] = dict(variations(open_events(files[version]), selection, config))
    for name in ("nominal", "unclustered_up", "unclustered_down"):
        np.testing.assert_allclose(found["v15"][name].met, found["v9"][name].met, atol=1e-3)
    assert (found["v9"]["unclustered_up"].met != found["v9"]["nominal"].met).all()


def test_integers_are_short_since_v12(files):
    with uproot.open(files["v12"]) as file:
        kinds = {name: file["Events"][name].typename for name in ("Jet_jetId", "GenPart_genPartIdxMother")}
    assert kinds == {"Jet_jetId": "uint8_t[]", "GenPart_genPartIdxMother": "int16_t[]"}


@pytest.mark.parametrize("medium", [0.1272, 0.2783, 0.6321])
def test_scores_keep_their_order_and_working_point(medium):
    scores = np.sort(np.concatenate([np.random.default_rng(1).uniform(0, 1, 500), [0.0, 1.0, 1e-6]]))
    scaled = ak.to_numpy(rescaled_score(ak.Array(scores.astype(np.float32)), medium))
    assert scaled.dtype == np.float32
    assert (np.diff(scaled) >= 0).all()
    np.testing.assert_array_equal(scaled > medium, scores > MEDIUM_WORKING_POINT)
    assert (scaled[0], scaled[-1]) == (0, 1)
