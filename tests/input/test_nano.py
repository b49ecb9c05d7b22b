import numpy as np
import pytest
import uproot
from uproot.writing._cascadetree import Tree

from topreco.config import SelectionConfig
from topreco.input.branches import Branches
from topreco.input.nano import InputError, inspect_file, iterate_events, missing_branch, open_events
from topreco.input.required import fit_files, needed_branches
from topreco.input.selection import select
from topreco.input.skimming import make_skim


def test_good_file(nano_file, emu):
    path = nano_file([emu()] * 3, runs=(10, 8.5))
    assert inspect_file(path).n_entries == 3
    assert inspect_file(str(path), "Events", needed_branches(SelectionConfig())).n_entries == 3
    assert inspect_file(path).generated == (10, 8.5)
    branches = Branches(open_events(path, entry_start=1))
    assert branches.read("event").tolist() == [1, 2]
    assert branches.read("Jet_pt").tolist() == [80.0, 60.0] * 2
    assert branches.has("genWeight", "Jet_pt")
    assert not branches.has("Jet")
    assert not branches.has("Jet_pt", "Jet_unknown")


def test_data_have_no_generator_sums(nano_file, emu):
    path = nano_file([emu()], drop=("genWeight",))
    assert inspect_file(path).generated is None


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.root: no such file"):
        inspect_file(tmp_path / "nowhere.root")
    with pytest.raises(InputError, match="is a folder"):
        open_events(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a ROOT file, it is empty"), (b"<html> 404", "not a ROOT file, it starts with b'<htm'")],
)
def test_not_root(tmp_path, content, message):
    path = tmp_path / "file.root"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        inspect_file(path)


@pytest.mark.parametrize("kept", [4, 12, 100, 0.5, -1])
def test_truncated(nano_file, random_events, kept):
    path = nano_file(random_events)
    content = path.read_bytes()
    kept = int(kept * len(content)) if isinstance(kept, float) else kept
    path.write_bytes(content[:kept])
    for use in (inspect_file, open_events):
        with pytest.raises(InputError, match=r"nano\.root: cut short"):
            use(path)


def test_root_without_directory(nano_file, emu):
    path = nano_file([emu()])
    content = bytearray(path.read_bytes())
    content[60:] = bytes(len(content) - 60)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"nano\.root: (cannot be opened|damaged|no tree)"):
        inspect_file(path)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_basket(nano_file, random_events, seed):
    path = nano_file(random_events)
    seek = uproot.open(path)["Events"]["Jet_pt"].member("fBasketSeek")[0]
    content = bytearray(path.read_bytes())
    content[seek : seek + 300] = np.random.default_rng(seed).integers(0, 256, 300, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"nano\.root: branch 'Jet_pt' cannot be read"):
        select(open_events(path), SelectionConfig(), dataset="tt")


def test_missing_tree(nano_file, emu, tmp_path):
    path = nano_file([emu()], tree="events", runs=(1, 1.0))
    with pytest.raises(InputError, match="no tree 'Events'; present: events, Runs"):
        inspect_file(path)
    assert inspect_file(path, "events").n_entries == 1
    with uproot.recreate(tmp_path / "bare.root"):
        pass
    with pytest.raises(InputError, match="no tree 'Events'; present: none"):
        inspect_file(tmp_path / "bare.root")
    with uproot.recreate(tmp_path / "histogram.root") as file:
        file["Events"] = np.histogram([1.0, 2.0])
    with pytest.raises(InputError, match="no tree 'Events'; present: none"):
        open_events(tmp_path / "histogram.root")


def test_missing_branch(nano_file, emu):
    path = nano_file([emu()], drop=("luminosityBlock",))
    for use in (inspect_file, open_events, lambda path: next(iterate_events(path))):
        with pytest.raises(InputError, match="branch 'luminosityBlock' is missing"):
            use(path)
    path = nano_file([emu()])
    with pytest.raises(
        InputError, match="'Jet_btagDeepFlav' is missing; close in the file: Jet_btagDeepFlavB"
    ):
        inspect_file(path, branches=["Jet_btagDeepFlav"])
    with pytest.raises(InputError, match="'Zebra' is missing; none in the file has a similar name"):
        inspect_file(path, branches=["Zebra"])


@pytest.mark.parametrize("path", ["root://host.example//store/file.root", "https://host.example/file.root"])
def test_urls_are_left_to_uproot(monkeypatch, path):
    asked = []

    def refuse(name, **options):
        asked.append((name, options))
        raise OSError("no route\nto host")

    monkeypatch.setattr(uproot, "open", refuse)
    with pytest.raises(InputError, match=r"file\.root: cannot be opened as a ROOT file \(no route\)"):
        inspect_file(path)
    # Alone XRootD's client waits for many minutes.
    assert asked == [(path, {"timeout": 60} if path.startswith("root://") else {})]


def test_iterate(nano_file, random_events):
    path = nano_file(random_events)
    chunks = [Branches(events).read("event") for events in iterate_events(path, step_size=60)]
    assert [len(chunk) for chunk in chunks] == [60, 60, 60, 20]
    assert np.concatenate(chunks).tolist() == [2**40 + i for i in range(200)]
    (few,) = map(Branches, iterate_events(path, branches=["Jet_pt"]))
    assert few.has("Jet_pt")
    assert not few.has("Jet_eta")
    assert not few.has("genWeight")


def test_iterate_nothing(nano_file):
    (events,) = iterate_events(nano_file([]))
    assert len(events) == 0


def test_stored_photon_masses_are_no_warning(tmp_path):
    path = tmp_path / "photon.root"
    with uproot.recreate(path) as file:
        file.mktree(
            "Events",
            {
                "run": "u4",
                "luminosityBlock": "u4",
                "event": "u8",
                "Photon": "var * {pt: float32, mass: float32}",
            },
        )
    # Every warning is an error in this test suite.
    assert len(open_events(path)) == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing_luminosityBlock.root", "branch 'luminosityBlock' is missing"),
        ("scouting_nano.root", "branch 'Electron_pt' is missing; close in the file: ScoutingElectron_pt"),
        ("parton_tt2l_10k.root", "no tree 'Events'; present: truth"),
        ("pepper/pepper_TTTo2L2Nu_0000.h5", "not a ROOT file"),
    ],
)
def test_foreign_files(data, name, message):
    with pytest.raises(InputError, match=message):
        inspect_file(data / name, branches=needed_branches(SelectionConfig()))


def test_foreign_file_in_selection(data):
    events = open_events(data / "scouting_nano.root")
    with pytest.raises(InputError, match="branch 'Electron_pt' is missing"):
        select(events, SelectionConfig(), dataset="x")


def test_names_of_a_damaged_file_keep_an_error_to_one_line():
    text = missing_branch("Jet_pt", ["Jet_pt\n", "run"])
    assert text == r"branch 'Jet_pt' is missing; close in the file: 'Jet_pt\n'"


def test_titles_and_runs_of_a_file_are_evidence_of_its_era(nano_file, emu, monkeypatch):
    """From the file before a run, and from the events in a processor."""
    title = "Pileup ID discriminant with 94X (2017) training"
    write = Tree.write_anew

    def with_title(self, sink):
        for branch in self._branch_data:
            if branch.get("fName") == "Jet_puIdDisc":
                branch["fTitle"] = title
        return write(self, sink)

    monkeypatch.setattr(Tree, "write_anew", with_title)
    extra = {"Jet_puIdDisc": 0.5, "Jet_puId": 7, "Jet_btagCMVA": 0.1}
    simulated = nano_file([emu(run=300000)] * 2, name="simulated.root", extra=extra)
    extra |= {"MET_pt": np.float32(50) * np.ones(2, "f4"), "MET_phi": np.ones(2, "f4")}
    data = nano_file([emu(run=297101), emu(run=300000)], extra=extra, drop=("genWeight",))
    for path, runs in ((simulated, None), (data, (297101, 300000))):
        found = inspect_file(path).evidence
        assert title in found.titles
        assert found.runs == runs
    branches = Branches(open_events(data))
    assert title in branches.evidence.titles
    assert branches.evidence.runs == (297101, 300000)
    assert (branches.selection.preset, branches.selection.era) == ("nano_v7", "Legacy2017")
    summary = make_skim([data], data.with_suffix(".parquet"), SelectionConfig(), progress=False)
    assert "preset nano_v7 (detected), era Legacy2017 (from run 297101), MET" in summary.preset


def test_files_of_several_eras_are_no_dataset(nano_file, emu):
    """A file without events has no run, and no say."""
    extra = {"Electron_mvaIso_WP90": True, "Jet_btagPNetB": 0.1}
    empty, first, second = (
        nano_file([emu(run=run)] * n, name=f"{run}.root", extra=extra, drop=("genWeight",))
        for run, n in ((1, 0), (367475, 1), (370000, 1))
    )
    files = {path: inspect_file(path) for path in (empty, first)}
    assert fit_files(SelectionConfig(jet={"id_bit": None}), files).era == "2023"
    files[second] = inspect_file(second)
    with pytest.raises(InputError, match=r"370000.root: its era is 2023BPix, that of .*367475.root 2023;"):
        fit_files(SelectionConfig(jet={"id_bit": None}), files)


def test_run_luminosity_block_and_event_may_have_other_names(nano_file, emu):
    drop = ("run", "luminosityBlock", "event", "genWeight")
    numbers = {"RunNum": 367475, "LumiBlock": 7, "EvtNum": 42}
    extra = {name: np.full(1, value, "u4") for name, value in numbers.items()}
    path = nano_file([emu()], extra=extra | {"Electron_mvaIso_WP90": 1, "Jet_btagPNetB": 0.1}, drop=drop)
    with pytest.raises(InputError, match=r"'run' is missing; selection.branches={run: RunNum} would"):
        inspect_file(path)
    names = dict(zip(("run", "luminosityBlock", "event"), numbers, strict=True))
    given = SelectionConfig(branches=names, jet={"id_bit": None})
    assert inspect_file(path, renamed=names).evidence.runs == (367475, 367475)
    selected = select(open_events(path, renamed=names), given, dataset="x").events
    assert (selected.run, selected.luminosity_block, selected.event) == (367475, 7, 42)
    summary = make_skim([path], path.with_suffix(".parquet"), given, progress=False)
    assert summary.n_selected == 1
    assert "era 2023 (from run 367475)" in summary.preset
    with pytest.raises(InputError, match=r"'Run' \(selection key 'branches.run'\) is missing"):
        inspect_file(path, renamed={"run": "Run"})


@pytest.mark.parametrize(
    ("name", "present", "hint"),
    [
        ("run", "runNumber", "would take runNumber"),
        ("event", "eventNumber", "would take eventNumber"),
        ("luminosityBlock", "lumi", "would take lumi"),
        ("Jet_jetId", "Jet_genJetIdx", "none in the file"),
        ("Jet_pt", "GenJet_pt", "none in the file"),
        ("Muon_jetId", "Muon_jetIdx", "none in the file"),
        ("GenPart_genPartIdxMother", "GenPart_genPartIdx", "close in the file: GenPart_genPartIdx"),
        ("genWeight", "GenWeight", "close in the file: GenWeight"),
    ],
)
def test_hints_offer_what_can_replace_a_branch(name, present, hint):
    assert hint in missing_branch(name, [present, "Zebra"])
