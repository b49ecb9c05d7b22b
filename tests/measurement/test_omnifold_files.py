"""`topreco omnifold`: skims in, weights and spectra out."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import uproot
from typer.testing import CliRunner

from topreco.cli import app
from topreco.config import OmniFoldConfig, SelectionConfig, load_config
from topreco.core.errors import TopRecoError
from topreco.core.events import TopPair, Truth, dataset_id, toy_events
from topreco.core.generated import GeneratedWriter, read_generated
from topreco.core.method import as_method
from topreco.core.skim import Skim, SkimWriter
from topreco.input.skimming import make_skim
from topreco.measurement.omnifold_files import read_weights, run_omnifold

N = 400


class Visible:
    """Tops of lepton and b candidate, scaled: correlated with the truth of `truth_of`."""

    name = "visible"

    def __call__(self, events):
        p4 = tops_of(events)
        valid = np.arange(len(events)) % 17 > 0
        return TopPair(np.where(valid[:, None, None], 1.02 * p4, np.nan), valid)


def tops_of(events):
    tops = events.lepton_p4 + events.b_candidate_p4
    tops[..., 0] = np.sqrt(172.5**2 + (tops[..., 1:] ** 2).sum(-1))
    return tops


def truth_of(events):
    leptons = events.lepton_p4
    nothing = np.zeros((len(events), 2, 4))
    return Truth(
        tops=tops_of(events),
        w=2 * leptons,
        b=nothing,
        lepton=leptons,
        neutrino=leptons,
        via_tau=np.zeros((len(events), 2), bool),
        dileptonic=np.arange(len(events)) % 10 > 0,
        production=np.zeros(len(events), np.int8),
    )


def write(path, events, truth):
    with SkimWriter(path) as writer:
        writer.write(events, truth)
    return path


def events_of(name, seed, n=N):
    events = toy_events(n, max_jets=3, seed=seed)
    return dataclasses.replace(events, dataset=np.full(n, dataset_id(name), np.uint64))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data, and simulation with all generated events, of which the skim has the even ones."""
    folder = tmp_path_factory.mktemp("omnifold")
    data, everything = events_of("data", 1), events_of("tt", 2, 2 * N)
    write(folder / "data.parquet", data, truth_of(data))
    write(folder / "real.parquet", data, None)
    selected = np.arange(0, 2 * N, 2)
    truth = truth_of(everything)
    write(folder / "tt.parquet", everything[selected], truth[selected])
    with GeneratedWriter(folder / "generated.parquet") as writer:
        for start in (0, N):
            part = everything[start : start + N]
            key = {name: getattr(part, name) for name in ("dataset", "run", "luminosity_block", "event")}
            writer.write(key, part.weight, selected[: N // 2], truth[start : start + N])
    return folder


@pytest.fixture
def config(files, tmp_path):
    def make(**changes):
        content = {
            "data": [files / "data.parquet"],
            "simulation": [files / "tt.parquet"],
            "generated": [files / "generated.parquet"],
            "observables": ["m_tt", "c_hel"],
            "spectra": {"m_tt": [345, 500, 700, 1500], "c_hel": [-1, 0, 1]},
            "pairs": [["m_tt", "c_hel"]],
            "iterations": 1,
            "replicas": 3,
            "hidden": 8,
            "epochs": 1,
            "batch_size": 200,
            "output": tmp_path / "out",
        }
        return OmniFoldConfig.model_validate(content | changes)

    return make


def run(config, **options):
    return run_omnifold(config, as_method(Visible()), progress=False, **options)


def test_weights_and_spectra(config, files):
    result = run(config())
    assert result.level == "all generated events"
    weights = read_weights(result.folder / "weights.parquet")
    assert len(weights["weight"]) == 2 * N * 9 // 10
    assert weights["weight_replica"].shape == (len(weights["weight"]), 3)
    np.testing.assert_allclose(weights["weight"], weights["ratio"])
    # Half of the events are selected in simulation, and all of the same number in data.
    assert weights["weight"].sum() == pytest.approx(2 * N * 0.9, rel=0.15)
    spectrum = result.spectra["m_tt"]
    assert spectrum.value.sum() == pytest.approx(weights["weight"].sum())
    assert (np.diagonal(spectrum.covariance)[1:3] > 0).all()
    assert result.spectra["m_tt,c_hel"].value.shape == (5, 4)
    with uproot.open(result.folder / "weights.root") as file:
        friends = file["Friends"].arrays(library="np")
    np.testing.assert_allclose(friends["weight"], weights["weight"])
    generated = read_generated(files / "generated.parquet")
    np.testing.assert_array_equal(generated.key["event"][weights["row"]], weights["event"])
    assert friends["weight_replica"].shape == weights["weight_replica"].shape
    stored = json.loads((result.folder / "spectra.json").read_text())
    assert stored["spectra"]["m_tt"]["value"] == pytest.approx(spectrum.value.tolist())
    assert stored["closure"]["m_tt"]["after"] < 100
    assert "| iteration |" in (result.folder / "omnifold.md").read_text()


def test_without_generated_events(config, files):
    """The skims have no stored efficiency here, which the result says."""
    result = run(config(generated=[]))
    assert result.level.startswith("selected events, the skims have no efficiency")
    weights = read_weights(result.folder / "weights.parquet")
    # Events that the method does not solve are generated ones that are not selected.
    assert len(weights["weight"]) == (np.arange(0, 2 * N, 2) % 10 > 0).sum()


def test_data_have_no_truth(config, files):
    result = run(config(data=[files / "real.parquet"]))
    assert result.iterations[0].truth_distance is None
    assert json.loads((result.folder / "spectra.json").read_text())["closure"] is None


def test_continues_where_it_was_interrupted(config, tmp_path, monkeypatch):
    from topreco.measurement import omnifold_files as module

    whole = run(config(output=tmp_path / "whole"))
    original, calls = module.unfold, []

    def interrupting(*arguments, **options):
        calls.append(options["seed"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(module, "unfold", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(config())
    continued = run(config())
    assert calls == [(1, 0), (1, 1), (1, 2), (1, 2), (1, 3)]
    for one, other in zip(whole.spectra.values(), continued.spectra.values(), strict=True):
        np.testing.assert_array_equal(one.value, other.value)
        np.testing.assert_array_equal(one.covariance, other.covariance)
    with pytest.raises(TopRecoError, match="holds a result that differs in seed: 1 there, 2 here"):
        run(config(seed=2))
    run(config(seed=2, replicas=0), restart=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": []}, "data: no skims given"),
        ({"simulation": ["nowhere.parquet"], "generated": []}, "nowhere.parquet: no such file"),
        ({"output": "x", "observables": ["m_ttt"]}, "observables: unknown observable 'm_ttt'; did you mean"),
        ({"pairs": [["m_tt", "pt_top"]]}, "pairs: 'pt_top' has no edges in spectra"),
        ({"generated": ["a", "b"]}, "generated: 2 files found, as many as of simulation"),
    ],
)
def test_bad_configuration(config, changes, message):
    with pytest.raises(ValueError, match=message):
        run(config(**changes))


def test_simulation_needs_truth(config, files):
    with pytest.raises(TopRecoError, match=r"real.parquet: no truth in this skim"):
        run(config(simulation=[files / "real.parquet"], generated=[]))


def test_generated_events_belong_to_the_skim(config, files):
    with pytest.raises(
        TopRecoError, match=r"generated.parquet: generated events of another skim than .*data"
    ):
        run(config(simulation=[files / "data.parquet"]))
    with pytest.raises(TopRecoError, match=r"tt.parquet: no file of generated events"):
        run(config(generated=[files / "tt.parquet"]))


def test_skim_writes_generated_events(nanoaod, tmp_path):
    summary = make_skim(
        [nanoaod],
        tmp_path / "skim.parquet",
        SelectionConfig(),
        progress=False,
        step_size=200,
        generated=tmp_path / "generated.parquet",
    )
    generated = read_generated(tmp_path / "generated.parquet")
    events, truth = Skim(summary.output).read()
    assert len(generated.weight) == summary.n_read
    assert generated.n_selected == len(events) > 0
    chosen = generated.selected_row >= 0
    assert generated.selected_row[chosen].tolist() == list(range(len(events)))
    for name in ("dataset", "run", "luminosity_block", "event"):
        np.testing.assert_array_equal(generated.key[name][chosen], getattr(events, name))
    np.testing.assert_array_equal(generated.truth[chosen].tops, truth.tops)


@pytest.fixture
def nanoaod(data):
    return data / "nanoaodv9_TTTo2L2Nu_first500.root"


def test_data_have_no_generated_events(data, tmp_path):
    with pytest.raises(TopRecoError, match=r"--generated .*: .* has no generated particles"):
        make_skim(
            [data / "nano_dimuon.root"],
            tmp_path / "skim.parquet",
            SelectionConfig(),
            progress=False,
            generated=tmp_path / "generated.parquet",
        )


def test_command(files, tmp_path):
    arguments = [
        *("omnifold", "--config", "omnifold.yaml", "--quiet", "method=loose", "replicas=0", "iterations=1"),
        *(f"data=[{files / 'data.parquet'}]", f"simulation=[{files / 'tt.parquet'}]", "epochs=1"),
        *("observables=[m_tt]", f"output={tmp_path}"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "unfolded to: selected events" in result.output
    assert pq.read_table(tmp_path / "weights.parquet").num_rows > 0


def test_objects_in_step_1(files, tmp_path):
    arguments = [
        *("omnifold", "--quiet", "method=loose", "replicas=0", "iterations=1", "epochs=1"),
        *(f"data=[{files / 'data.parquet'}]", f"simulation=[{files / 'tt.parquet'}]"),
        *("observables=[m_tt]", f"output={tmp_path}", "objects.epochs=1", "objects.model.scalars=8"),
        "objects.model.backbone={kind: transformer, blocks: 1, channels: 8, heads: 2}",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    with_objects = read_weights(tmp_path / "weights.parquet")["ratio"]
    assert np.isfinite(with_objects).all()
    result = CliRunner().invoke(app, [*arguments, "objects.epochs=2"])
    assert "differs in objects.epochs: 1 there, 2 here" in str(result.exception)


def test_objects_are_alike(config, files, tmp_path):
    events = toy_events(50, max_jets=4, seed=5)
    other = write(tmp_path / "other.parquet", events, None)
    with pytest.raises(TopRecoError, match=r"objects: .* found 4 jets, .* in .*other.parquet; 3 jets"):
        run(config(data=[other]), objects=lambda events: events)


def test_shipped_configuration():
    assert load_config(OmniFoldConfig, "omnifold.yaml").pairs == (("m_tt", "c_hel"),)
