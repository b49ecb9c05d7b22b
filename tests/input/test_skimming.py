import json

import numpy as np
import pytest
import uproot

from topreco.config import SelectionConfig
from topreco.config.presets import working_points
from topreco.core import fourvector
from topreco.core.constants import FLAG_IS_LAST_COPY
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, dataset_id
from topreco.core.prior import M_TT_EDGES, PT_TOP_EDGES, sum_spectra
from topreco.core.skim import Skim
from topreco.input.cutflow import Cutflow
from topreco.input.nano import InputError, open_events
from topreco.input.selection import select
from topreco.input.skimming import make_skim
from topreco.input.truth import read_truth

DEFAULT = SelectionConfig()


def skim(files, tmp_path, **options):
    return make_skim(files, tmp_path / "out" / "skim.parquet", DEFAULT, progress=False, **options)


def test_skim_holds_what_is_selected(nano_file, random_events, tmp_path):
    files = [
        nano_file(random_events[:120], "a.root", runs=(1000, 77.0)),
        nano_file(random_events[120:], "b.root", runs=(2000, 33.0)),
    ]
    summary = skim(files, tmp_path, dataset="tt", step_size=50)
    expected = [select(open_events(file), DEFAULT, dataset="tt") for file in files]
    stored = Skim(summary.output)
    events, truth = stored.read()
    assert len(events) == len(truth) == summary.n_selected == sum(len(e.events) for e in expected)
    np.testing.assert_array_equal(events.event, np.concatenate([e.events.event for e in expected]))
    jets = DileptonEvents.concatenate([e.events for e in expected]).jets
    np.testing.assert_allclose(events.jets, jets, rtol=1e-6)
    assert not truth.valid.any()
    assert summary.n_read == 200
    assert summary.has_truth
    assert summary.sum_gen_weights == 110.0
    cutflow = expected[0].cutflow + expected[1].cutflow
    assert summary.cutflow == cutflow
    assert Cutflow.from_dict(json.loads(summary.cutflow_file.read_text())) == cutflow
    assert summary.cutflow_file.name == "skim.parquet.cutflow.json"
    metadata = stored.metadata
    assert Cutflow.from_dict(metadata["cutflow"]) == cutflow
    # No version has so few branches: the defaults.
    jet = DEFAULT.jet.model_copy(
        update={"btag_working_points": working_points()["UL2018"].taggers["btagDeepFlavB"]}
    )
    assert SelectionConfig.model_validate(metadata["selection"]) == DEFAULT.model_copy(
        update={"preset": "none", "jet": jet}
    )
    assert metadata["preset"].startswith("no preset")
    assert metadata["datasets"] == {"tt": dataset_id("tt")}
    assert metadata["sources"] == ["a.root", "b.root"]
    assert metadata["sum_gen_weights"] == 110.0
    assert (metadata["n_generated"], metadata["n_read"]) == (3000, 200)
    assert metadata["n_selected"] == summary.n_selected
    assert metadata["versions"]["topreco"]
    assert str(summary).endswith(f"skim.parquet: {summary.n_selected} of 200 events, with truth")


def test_chunks_change_nothing(nano_file, random_events, tmp_path):
    file = nano_file(random_events)
    one = make_skim([file], tmp_path / "one.parquet", DEFAULT, progress=False)
    many = make_skim([file], tmp_path / "many.parquet", DEFAULT, progress=False, step_size=33)
    assert one.cutflow == many.cutflow
    first, second = (Skim(summary.output).read()[0] for summary in (one, many))
    for name in DileptonEvents.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_weights_of_the_events_where_there_is_no_runs_tree(nano_file, emu, tmp_path):
    files = [
        nano_file([emu(genWeight=-1.0), emu(genWeight=3.0, Muon=[])], "a.root"),
        nano_file([emu()], "b.root", runs=(50, 25.0)),
    ]
    summary = skim(files, tmp_path)
    assert summary.sum_gen_weights == 27.0
    assert Skim(summary.output).metadata["n_generated"] == 52


def test_data(nano_file, emu, tmp_path):
    summary = skim([nano_file([emu()], drop=("GenPart", "genWeight"))], tmp_path)
    assert not summary.has_truth
    assert summary.sum_gen_weights is None
    stored = Skim(summary.output)
    assert not stored.has_truth
    assert stored.read()[1] is None
    assert stored.metadata["n_generated"] is None
    assert str(summary).endswith("1 of 1 events, without truth")


def test_files_without_entries_are_refused_unless_others_have_some(nano_file, emu, tmp_path):
    empty, full = nano_file([], "empty.root"), nano_file([emu()], "full.root")
    with pytest.raises(InputError, match=r"empty\.root: no entries in tree 'Events'"):
        skim([empty], tmp_path)
    assert skim([empty, full], tmp_path).n_read == 1


def test_empty_result(nano_file, emu, tmp_path):
    n = 3
    summary = skim([nano_file([emu(Muon=[])] * n)], tmp_path)
    assert summary.n_selected == len(Skim(summary.output)) == 0
    assert len(Skim(summary.output).read()[0]) == 0
    assert f"empty, none of {n} events passed" in str(summary)
    assert summary.cutflow["all"].n == n


def test_one_dataset_has_truth_everywhere_or_nowhere(nano_file, emu, tmp_path):
    simulation = nano_file([emu()], "simulation.root")
    bare = nano_file([emu()], "bare.root", drop=("GenPart",))
    data = nano_file([emu()], "data.root", drop=("GenPart", "genWeight"))
    with pytest.raises(
        InputError, match=r"bare\.root: no generated particles \(GenPart\), but other files have"
    ):
        skim([simulation, bare], tmp_path)
    with pytest.raises(
        InputError, match=r"data\.root: no generator weights \(genWeight\), but other files have"
    ):
        skim([bare, data], tmp_path)
    with pytest.raises(
        InputError, match=r"data\.root: no generated particles \(GenPart\), which are required"
    ):
        skim([data], tmp_path, require_truth=True)
    assert skim([simulation], tmp_path, require_truth=True).has_truth


def test_bad_requests(nano_file, emu, tmp_path, monkeypatch):
    file = nano_file([emu()])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="given twice"):
        skim([file, "../" + tmp_path.name + "/nano.root"], tmp_path)
    with pytest.raises(InputError, match=r"root://host//nano\.root: given twice"):
        skim(["root://host//nano.root"] * 2, tmp_path)
    with pytest.raises(InputError, match="no input files"):
        skim([], tmp_path)
    with pytest.raises(InputError, match="step_size: 0"):
        skim([file], tmp_path, step_size=0)
    with pytest.raises(InputError, match=r"other\.root: no such file"):
        skim([file, tmp_path / "other.root"], tmp_path)
    with pytest.raises(InputError, match=r"branch 'PuppiMET_pt' \(selection key 'met'\) is missing"):
        skim([nano_file([emu()], "old.root", drop=("PuppiMET_pt",))], tmp_path)
    with pytest.raises(TopRecoError, match="is a folder"):
        make_skim([file], tmp_path, DEFAULT, progress=False)
    assert not (tmp_path / "out").exists()


def test_failure_leaves_nothing_behind(nano_file, random_events, tmp_path):
    good, bad = nano_file(random_events, "good.root"), nano_file(random_events, "bad.root")
    seek = uproot.open(bad)["Events"]["Muon_pt"].member("fBasketSeek")[0]
    content = bytearray(bad.read_bytes())
    content[seek : seek + 300] = bytes(300)
    bad.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.root: branch 'Muon_pt' cannot be read"):
        skim([good, bad], tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_bar_goes_to_the_error_stream(nano_file, emu, tmp_path, capsys):
    make_skim([nano_file([emu()])], tmp_path / "skim.parquet", DEFAULT)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1/1" in captured.err


def test_real_file(data, tmp_path):
    file = data / "nanoaodv9_TTTo2L2Nu_first500.root"
    summary = skim([file], tmp_path, step_size=200)
    events, truth = Skim(summary.output).read()
    whole = open_events(file)
    expected = select(whole, DEFAULT, dataset="default")
    np.testing.assert_array_equal(events.event, expected.events.event)
    reference = read_truth(whole[expected.index])
    np.testing.assert_allclose(truth.tops, reference.tops, rtol=1e-6)
    assert np.median(fourvector.mass(truth.tops)) == pytest.approx(172.5, abs=0.5)
    assert Skim(summary.output).metadata["n_generated"] == 1_320_000


def test_official_files_of_zero_events_and_copies(nano_file, emu, tmp_path):
    full, empty = nano_file([emu()], "full.root", runs=(10, 10.0)), tmp_path / "empty.root"
    with uproot.recreate(empty) as file:
        file.mktree("Runs", {"genEventCount": "i8", "genEventSumw": "f8"})
        file["Runs"].extend({"genEventCount": np.array([30]), "genEventSumw": np.array([30.0])})
    summary = skim([empty, full], tmp_path)
    assert (summary.n_read, summary.n_selected, summary.sum_gen_weights) == (1, 1, 40.0)
    with pytest.raises(InputError, match="no entries"):
        skim([empty], tmp_path)
    copy = tmp_path / "copy.root"
    copy.write_bytes(full.read_bytes())
    with pytest.raises(InputError, match=r"copy\.root: a copy of .*full\.root"):
        skim([full, copy], tmp_path)


def test_spectra_of_generated_events(nano_file, random_events, tmp_path):
    def particle(pdg_id, mother, pt=0.0, phi=0.0, mass=0.0):
        values = {"pdgId": pdg_id, "genPartIdxMother": mother, "pt": pt, "phi": phi, "mass": mass}
        return values | {"statusFlags": 1 << FLAG_IS_LAST_COPY}

    def record(pt, lepton):
        legs = [particle(6 * sign, -1, pt, np.pi * (sign < 0), 170.0) for sign in (1, -1)]
        for i, sign in enumerate((1, -1)):
            at = len(legs)
            legs += [particle(24 * sign, i), particle(-sign * lepton, at), particle(sign * (lepton + 1), at)]
        return legs

    # The last quarter has other decays.
    records = [
        event | {"GenPart": record(100.0 + i, 13 if i < 150 else 3)} for i, event in enumerate(random_events)
    ]
    one = skim([nano_file(records, "all.root")], tmp_path, step_size=70)
    metadata = Skim(one.output).metadata
    spectra = sum_spectra([metadata])
    events, truth = Skim(one.output).read()
    weight = np.array([event["genWeight"] for event in random_events[:150]])
    assert spectra.complete
    assert spectra.generated.sum() == pytest.approx(weight.sum())
    assert spectra.selected.sum() == pytest.approx(events.weight[truth.dileptonic].sum())
    assert 0 < truth.dileptonic.sum() < len(events)
    # With m_t = 172.5 GeV, though the tops have 170.
    pt = 100.0 + np.arange(150)
    both = [2 * np.hypot(172.5, pt), pt]
    expected = np.histogramdd(both, [M_TT_EDGES, PT_TOP_EDGES], weights=weight)[0]
    np.testing.assert_allclose(spectra.generated, expected)

    # Files add up, and one with a part of its events makes the sum incomplete.
    parts = [
        make_skim([nano_file(part, f"{i}.root", **runs)], tmp_path / f"{i}.parquet", DEFAULT, progress=False)
        for i, (part, runs) in enumerate(
            [(records[:60], {"runs": (60, 60.0)}), (records[60:], {"runs": (999, 1.0)})]
        )
    ]
    total = sum_spectra(Skim(part.output).metadata for part in parts)
    np.testing.assert_allclose(total.generated, spectra.generated, atol=1e-9)
    np.testing.assert_allclose(total.selected, spectra.selected, atol=1e-9)
    assert not total.complete
    with pytest.raises(TopRecoError, match="skim the unselected files"):
        _ = total.efficiency
    scaled = sum_spectra([metadata, metadata], scales=[0.5, 2.0])
    np.testing.assert_allclose(scaled.generated, 2.5 * spectra.generated)
    assert sum_spectra([metadata, {}]) is None


def test_data_have_no_spectra(nano_file, emu, tmp_path):
    data = skim([nano_file([emu()], drop=("GenPart", "genWeight"))], tmp_path)
    assert sum_spectra([Skim(data.output).metadata]) is None
