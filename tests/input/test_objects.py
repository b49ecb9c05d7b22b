"""What a file must hold: clear errors, renamed branches, presets of real files."""

import awkward as ak
import numpy as np
import pytest
import uproot

from topreco.config import ConfigError, SelectionConfig, SystematicsConfig
from topreco.config.presets import resolve_selection
from topreco.core.events import DileptonEvents
from topreco.core.skim import Skim
from topreco.input.branches import Branches
from topreco.input.nano import BadFileError, InputError, inspect_file, iterate_events, open_events
from topreco.input.required import fit_files, fit_selection, needed_branches
from topreco.input.selection import select, select_objects
from topreco.input.skimming import make_skim
from topreco.input.systematics import event_weights, variations
from topreco.input.truth import read_truth

V9 = {"Jet_puIdDisc": np.float32(1)}
OTHER_METS = {"MET_pt": np.float32(60), "MET_phi": np.float32(1), "PFMET_pt": np.float32(60)}


def config(**content):
    return SelectionConfig.model_validate(content)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            {},
            {"extra": V9 | OTHER_METS, "drop": ("PuppiMET_pt",)},
            r"branch 'PuppiMET_pt' \(selection key 'met', preset nano_v9\) .* in the file: MET_pt, PFMET_pt",
        ),
        (
            {"jet": {"btag": "btagPNetB", "btag_threshold": 0.2}},
            {"extra": V9 | {"Jet_btagDeepB": np.float32(0)}},
            r"'Jet_btagPNetB' .*, preset nano_v9\) .* in the file: Jet_btagDeepB, Jet_btagDeepFlavB",
        ),
        (
            {"electron": {"id": "mvaIso_WP90", "id_min": 1}, "preset": "nano_v9"},
            {"extra": {"Electron_mvaFall17V2Iso_WP90": True}},
            r"'Electron_mvaIso_WP90' .*in the file: Electron_cutBased, Electron_mvaFall17V2Iso_WP90",
        ),
        (
            {"preset": "nano_v15", "era": "2024"},
            {},
            r"'Jet_btagUParTAK4B' .*, preset nano_v15\) is missing; in the file: Jet_btagDeepFlavB",
        ),
        (
            {"branches": {"Jet_btagDeepFlavB": "Jet_btagB"}},
            {},
            r"'Jet_btagB' \(selection key 'branches.Jet_btagDeepFlavB'\) is missing",
        ),
    ],
)
def test_missing_branch_names_preset_and_alternatives(nano_file, emu, content, options, message):
    path = nano_file([emu()], **options)
    with pytest.raises(InputError, match=message):
        select(open_events(path), config(**content), dataset="tt")
    with pytest.raises(InputError, match=message):
        fit_files(config(**content), {path: inspect_file(path)})


def renamed_copy(path, target, names):
    """Copy of a file with other names of branches."""
    with uproot.open(path) as source, uproot.recreate(target) as file:
        tree = source["Events"]
        arrays = tree.arrays()
        jagged = {b.partition("_")[0] for b in arrays.fields if arrays[b].ndim > 1}
        content = {
            names.get(b, b): arrays[b]
            for b in arrays.fields
            if b.partition("_")[0] not in jagged and b[1:] not in jagged
        }
        for name in jagged:
            fields = [b for b in arrays.fields if b.startswith(f"{name}_")]
            content[name] = ak.zip({names.get(b, b).partition("_")[2]: arrays[b] for b in fields})
        file.mktree("Events", {name: values.type.content for name, values in content.items()}).extend(content)
    return target


NAMES = {
    "Jet_btagDeepFlavB": "Jet_btagB",
    "PuppiMET_pt": "MET_pt",
    "PuppiMET_phi": "MET_phi",
    "Electron_cutBased": "Electron_idLevel",
    "genWeight": "weight",
    "GenPart_pdgId": "GenPart_id",
}


@pytest.mark.parametrize("step_size", [50_000, 37])
def test_renamed_branches_are_read(nano_file, random_events, tmp_path, step_size):
    path = nano_file(random_events)
    other = renamed_copy(path, tmp_path / "renamed.root", NAMES)
    with pytest.raises(InputError, match="is missing"):
        select(open_events(other), config(), dataset="tt")
    selection = config(branches=NAMES)
    expected = select(open_events(path), config(), dataset="tt")
    parts = [select(events, selection, dataset="tt") for events in iterate_events(other, step_size=step_size)]
    found = DileptonEvents.concatenate([part.events for part in parts])
    for name in DileptonEvents.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected.events, name), err_msg=name)
    truth = read_truth(Branches(open_events(other), selection)[expected.index])
    reference = read_truth(open_events(path)[expected.index])
    np.testing.assert_array_equal(truth.tops, reference.tops)
    skims = [
        make_skim([file], tmp_path / f"{file.stem}.parquet", chosen, step_size=step_size, progress=False)
        for file, chosen in ((path, config()), (other, selection))
    ]
    assert skims[0].cutflow == skims[1].cutflow
    assert skims[1].has_truth
    assert Skim(skims[1].output).metadata["selection"]["branches"] == NAMES


def test_branches_are_made_once_for_a_selection(nano_file, emu):
    swapped = config(branches={"PuppiMET_pt": "PuppiMET_phi", "PuppiMET_phi": "PuppiMET_pt"})
    branches = Branches(open_events(nano_file([emu()])), swapped)
    assert Branches.of(branches) is Branches.of(branches, swapped) is branches
    assert Branches.of(branches, branches.selection) is branches
    assert branches.read("PuppiMET_pt").tolist() == branches[:1].read("PuppiMET_pt").tolist() == [1.0]
    assert Branches.of(branches, config()).read("PuppiMET_pt").tolist() == [60.0]
    assert len(branches[:1]) == 1


def test_a_dataset_is_of_one_version(nano_file, emu, tmp_path):
    files = [nano_file([emu()], "a.root", extra=V9), nano_file([emu()], "b.root")]
    with pytest.raises(InputError, match=r"b\.root: its preset is none, that of .*a\.root nano_v9"):
        make_skim(files, tmp_path / "out.parquet", config(), progress=False)
    summary = make_skim(files, tmp_path / "out.parquet", config(preset="nano_v9"), progress=False)
    assert summary.n_selected == 2
    assert summary.preset.startswith("preset nano_v9 (given), era UL2018 (assumed")
    metadata = Skim(summary.output).metadata
    assert metadata["preset"] == summary.preset
    assert (metadata["selection"]["preset"], metadata["selection"]["era"]) == ("nano_v9", "UL2018")


def test_unknown_preset_is_refused(nano_file, emu):
    with pytest.raises(ConfigError, match="no preset 'nano'"):
        select(open_events(nano_file([emu()])), config(preset="nano"), dataset="tt")


def test_presets_and_renames_are_resolved_once_per_chunk(nano_file, emu, monkeypatch):
    calls = []

    def count(*arguments):
        calls.append(arguments)
        return resolve_selection(*arguments)

    monkeypatch.setattr("topreco.input.required.resolve_selection", count)
    monkeypatch.setattr("topreco.input.branches.resolve_selection", count)
    selection = config()
    branches = Branches(open_events(nano_file([emu()])), selection)
    systematics = SystematicsConfig.model_validate(
        {"objects": {"jes": {"object": "jet", "flat": 0.01}}, "weights": {"lumi": {"flat": 0.1}}}
    )
    for _, objects in variations(branches, selection, systematics):
        chosen = select_objects(objects, selection, dataset="tt")
        event_weights(branches, objects, chosen, systematics)
    read_truth(branches[chosen.index])
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"met_min": 30.0}, "selection.met_min"),
        (
            {"jet": {"pt_min": 25.0, "max_jets": 9}, "cuts": {"hem_veto": True}},
            "selection.jet.pt_min, selection.cuts.hem_veto",
        ),
        ({"branches": {"MET_pt": "met"}}, "selection.branches.MET_pt"),
    ],
)
def test_keys_without_effect_are_refused(content, keys):
    with pytest.raises(
        ConfigError, match=rf"^{keys}: would be ignored for a table; .* only jet.max_jets, met "
    ):
        config(**content).require_effect(("jet.max_jets", "met"), "a table")


def test_keys_with_an_effect_and_defaults_are_not_refused(nano_file, emu):
    known = ("jet", "met")
    config(jet={"pt_min": 25.0}, met="MET", met_min=40.0).require_effect(known, "a table")
    # As `topreco config` writes them: every default set.
    SelectionConfig.model_validate(SelectionConfig().model_dump()).require_effect((), "a table")
    with pytest.raises(
        ConfigError, match=r"selection\.pepper\.cut: would be ignored for .*nano\.root, which is"
    ):
        select(open_events(nano_file([emu()])), config(pepper={"cut": "Reco"}), dataset="tt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"met": "Jet"}, r"'Jet_pt' \(selection key 'met'\) has several values per event, one expected"),
        ({"branches": {"genWeight": "Jet_pt"}}, r"'Jet_pt' has several values per event"),
        ({"cuts": {"met_filters": ["Jet_jetId"]}}, r"'Jet_jetId' \(selection key 'cuts.met_filters'\) has"),
        ({"cuts": {"triggers": {"Muon": ["Jet_jetId"]}}}, r"'Jet_jetId' \(selection key 'cuts.triggers'\)"),
        (
            {"branches": {"Muon_tightId": "Jet_jetId"}},
            r"'Jet_jetId', taken for Muon_tightId, has other numbers of values per event than 'Muon_pt'",
        ),
        ({"branches": {"Jet_btagDeepFlavB": "PuppiMET_pt"}}, r"'PuppiMET_pt', taken for Jet_btagDeepFlavB"),
        ({"branches": {"Jet_pt": "PuppiMET_pt"}}, r"than 'PuppiMET_pt', taken for Jet_pt"),
    ],
)
def test_branches_of_other_objects_are_a_mistake_of_the_configuration(nano_file, emu, content, message):
    with pytest.raises(InputError, match=message) as error:
        select(open_events(nano_file([emu()])), config(**content), dataset="tt")
    assert not isinstance(error.value, BadFileError)


def test_fields_of_an_object_may_have_counters_of_their_own(nano_file, emu):
    scores = {"Tag_score": ak.Array([np.array([0.9, 0.1], np.float32)])}
    file = nano_file([emu()], extra=scores, drop=["Jet_btagDeepFlavB"])
    found = select(
        open_events(file), config(branches={"Jet_btagDeepFlavB": "Tag_score"}), dataset="tt"
    ).events
    np.testing.assert_allclose(found.jet_btag[0, :2], [0.9, 0.1], rtol=1e-6)


# ---- real files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "preset", "era", "met", "threshold"),
    [
        ("nanoaodv9_TTTo2L2Nu_first500.root", "nano_v9", "UL2018", "PuppiMET", 0.2783),
        ("nanoaod2015_wjets_200.root", "nano_v9", "UL2018", "PuppiMET", 0.2783),
        ("nano_dy.root", "nano_v7", "Legacy2018", "MET", 0.2770),
        ("nano_tree.root", "nano_v7", "Legacy2018", "MET", 0.2770),
        ("nano_dimuon.root", "nano_v7", "Legacy2018", "MET", 0.2770),
        ("delphes/tt2l_mg5_delphes_1.root", "none", None, "PuppiMET", 0.2783),
    ],
)
def test_presets_of_real_files(data, name, preset, era, met, threshold):
    branches = inspect_file(data / name).branches
    found = fit_selection(config(), branches, name)
    assert (found.preset, found.era, found.met, found.jet.btag_threshold) == (preset, era, met, threshold)
    assert branches.issuperset(needed_branches(found))


@pytest.mark.parametrize(
    ("name", "preset"),
    [("nanoaodv9_TTTo2L2Nu_first500.root", "nano_v9"), ("nano_dimuon.root", "nano_v7")],
)
def test_filters_of_presets_are_in_real_files(data, name, preset):
    chosen = config(preset=preset, cuts={"met_filters": "preset"})
    found = select(open_events(data / name), chosen, dataset="tt")
    assert 0 < found.cutflow["MET filters"].n <= found.cutflow["all"].n


def test_optional_cuts_on_the_real_file(data):
    """Triggers, pile-up identification and HEM veto keep most of the tt̄ events."""
    path = data / "nanoaodv9_TTTo2L2Nu_first500.root"
    cuts = {
        "met_filters": "preset",
        "hem_veto": True,
        "triggers": {"MuonEG": ["HLT_Mu23_TrkIsoVVL_Ele12_CaloIdL_TrackIdL_IsoVL"], "Muon": ["HLT_IsoMu24"]},
    }
    plain = select(open_events(path), config(), dataset="tt")
    found = select(open_events(path), config(cuts=cuts, jet={"pu_id": "loose"}), dataset="tt")
    steps = list(found.cutflow.steps)
    assert steps[:5] == ["all", "MET filters", "trigger", "HEM15/16", "two leptons"]
    assert set(found.index) < set(plain.index)
    assert len(found.index) > 0.4 * len(plain.index)
