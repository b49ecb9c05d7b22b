"""The commands: the whole chain in small, and one line for each kind of bad input."""

import io
import json
import re
import sys

import awkward as ak
import numpy as np
import pytest
import uproot

from topreco.cli import main, train_main
from topreco.config import SelectionConfig


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command line; gives exit code, standard output and standard error."""

    def run(*arguments, entry=main):
        monkeypatch.setattr(sys, "argv", ["topreco", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            entry()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def refused(command, tmp_path):
    """Run a command that must fail with one line and leave no output."""

    def run(*arguments, match, output="out", entry=main):
        before = sorted(tmp_path.rglob("*"))
        code, _, err = command(*arguments, entry=entry)
        assert code == 1
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
        assert match in err
        assert not (tmp_path / output).exists()
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.mark.sim
@pytest.mark.slow
def test_the_whole_chain(command, tmp_path):
    nano, skim, folder = tmp_path / "nano.root", tmp_path / "skim.parquet", tmp_path / "run"
    code, out, _ = command(
        "simulate", "-n", 800, "--seed", 3, "-o", nano, "mpi=false", "--workers", 1, "--quiet"
    )
    assert (code, "800 events" in out) == (0, True)
    code, out, _ = command(
        "skim", nano, "-o", skim, "--config", "skim-loose.yaml", "--dataset", "toy", "--quiet"
    )
    assert (code, "leading pT" in out) == (0, True)
    small = [
        "model.backbone.blocks=1",
        "model.backbone.vector_channels=4",
        "model.backbone.scalar_channels=8",
        # Too few events to calibrate them.
        "model.quantiles=null",
    ]
    code, out, _ = command(
        *("--config", "tops.yaml", f"data.files=[{skim}]", "epochs=1", "batch_size=16"),
        *(*small, f"output={tmp_path / 'train'}", "--quiet"),
        entry=train_main,
    )
    assert code == 0
    model = tmp_path / "train" / "model.safetensors"
    assert model.is_file()
    code, out, err = command(
        *(
            "run",
            nano,
            "-m",
            model,
            "-o",
            folder,
            "--no-plots",
            "--quiet",
            "histograms.observables=[m_tt,pt_top]",
        )
    )
    assert (code, err) == (0, "")
    assert "m_tt" in out
    results = json.loads((folder / "results.json").read_text())
    assert results["all"]["default"]["model"]["all"]["m_tt"]["n_selected"] > 20
    assert {p.name for p in folder.iterdir()} == {
        "histograms.coffea",
        "results.json",
        "results.md",
        "results.tex",
        "cutflow.json",
        "cutflow.tex",
        "run.json",
    }
    code, out, _ = command("plot", folder, "-o", tmp_path / "plots", "--label", "Private work")
    assert code == 0
    names = {p.name for p in (tmp_path / "plots").rglob("*")}
    assert {"rb_m_tt.png", "res_m_tt.png", "rb_pt_top.png", "overview.png"} <= names
    code, out, _ = command(
        "plot", folder, "-o", tmp_path / "all", "--all", "--format", "svg", "--observable", "m_tt"
    )
    assert code == 0
    names = {p.name for p in (tmp_path / "all").rglob("*.*")}
    assert {"spectrum_m_tt.svg", "median_m_tt.svg"} <= names
    assert not {name for name in names if not name.endswith("m_tt.svg") and "migration" not in name}
    chosen = ("--subset", "common", "--channel", "emu", "--only", "res_m_tt", "--format", "png")
    code, out, _ = command("plot", folder, folder / "histograms.coffea", "-o", tmp_path / "two", *chosen)
    assert (code, out) == (0, f"1 files in {tmp_path / 'two'}\n")


@pytest.mark.sim
def test_data_and_empty_selections_say_what_they_are(command, as_data, toy_model, tmp_path):
    code, out, err = command("run", as_data, "-m", toy_model, "-o", tmp_path / "a", "--quiet")
    assert (code, err) == (0, "")
    assert (tmp_path / "a" / "plots" / "default" / "spectrum_m_tt.png").is_file()
    assert "default: no truth: response tables left out; " in out
    assert "RB" not in out
    code, out, _ = command(
        *("run", as_data, "-m", toy_model, "-o", tmp_path / "b", "--quiet", "selection.leading_pt_min=9000")
    )
    assert code == 0
    assert "No events" in out


@pytest.mark.sim
def test_responses_of_a_run(command, refused, simulated, toy_model, tmp_path):
    folder = tmp_path / "run"
    bins = "unfolding.observables={m_tt: {truth: [300, 450, 2000]}, y_top: {}}"
    code, _, _ = command("run", simulated, "-m", toy_model, "-o", folder, "--quiet", "--no-plots", bins)
    assert code == 0
    code, out, err = command("unfolding", folder, "--observable", "m_tt", "--sqrt-s", 13)
    assert (code, err) == (0, "")
    assert "condition number" in out
    assert "300 to 450" in out
    names = {path.relative_to(folder / "unfolding").as_posix() for path in folder.rglob("unfolding/**/*.*")}
    assert names == {
        *("responses.root", "toy.json", "toy.yaml", "toy.tex"),
        *(f"default/{kind}_m_tt_toy.png" for kind in ("response", "shares")),
    }
    content = json.loads((folder / "unfolding" / "toy.json").read_text())
    assert content["phase_space"]["decay"] == "dileptonic"
    assert content["kept"] == {"default": {"entries": 1200, "generated": 1200}}
    assert "acceptances are too large" not in out
    options = ("--min-purity", 0.1, "--min-events", 5, "--observable", "y_top", "-o", tmp_path / "bins")
    assert command("unfolding", folder, *options)[0] == 0
    refused("unfolding", folder, "--min-purity", 1, "-o", tmp_path / "out", match="toy, m_tt: no two bins")
    refused(
        "unfolding", folder, "--min-stability", 0.5, "-o", tmp_path / "out", match="--min-stability: belongs"
    )
    refused("unfolding", tmp_path / "absent", match="absent: no such file")


def nano_file(path, *, drop=(), pt=(40.0, 30.0), n=4):
    """A minimal NanoAOD file with `n` events of two muons and two jets."""

    def jagged(*values, dtype=np.float32):
        return ak.values_astype(ak.Array([list(values)] * max(n, 1)), dtype)

    muon = {
        "pt": jagged(*pt),
        "eta": jagged(0.1, -0.5),
        "phi": jagged(0.0, 2.0),
        "charge": jagged(1, -1, dtype=np.int32),
        "tightId": jagged(True, True, dtype=bool),
        "pfRelIso04_all": jagged(0.01, 0.01),
    }
    electron = {
        "pt": jagged(10.0),
        "eta": jagged(0.0),
        "phi": jagged(0.0),
        "charge": jagged(1, dtype=np.int32),
        "cutBased": jagged(4, dtype=np.int32),
    }
    jet = {
        "pt": jagged(80.0, 60.0),
        "eta": jagged(1.0, -1.0),
        "phi": jagged(1.0, -2.0),
        "mass": jagged(8.0, 8.0),
        "btagDeepFlavB": jagged(0.9, 0.9),
    }
    content = {"run": np.ones(n, np.uint32), "luminosityBlock": np.ones(n, np.uint32)}
    content |= {"event": np.arange(n, dtype=np.uint64)}
    content |= {"PuppiMET_pt": np.full(n, 60.0, np.float32), "PuppiMET_phi": np.zeros(n, np.float32)}
    for name, fields in (("Muon", muon), ("Electron", electron), ("Jet", jet)):
        content[name] = ak.zip({k: v for k, v in fields.items() if f"{name}_{k}" not in drop})
    with uproot.recreate(path) as file:
        kinds = {k: v.type.content if isinstance(v, ak.Array) else v.dtype for k, v in content.items()}
        file.mktree("Events", kinds)
        if n:
            file["Events"].extend(content)
    return path


def test_the_minimal_file_is_good(command, tmp_path, toy_model):
    file = nano_file(tmp_path / "good.root")
    code, out, _ = command("skim", file, "-o", tmp_path / "out.parquet", "--quiet")
    assert (code, "4 of 4 events" in out) == (0, True)


@pytest.mark.parametrize("verb", ["skim", "run"])
class TestBadFiles:
    """The same mistakes with the two commands that read ROOT files."""

    @pytest.fixture
    def bad(self, refused, verb, toy_model, tmp_path):
        def run(file, match):
            output = tmp_path / ("out.parquet" if verb == "skim" else "out")
            options = [] if verb == "skim" else ["-m", toy_model]
            return refused(verb, file, "-o", output, *options, "--quiet", match=match, output=output.name)

        return run

    def test_missing(self, bad, tmp_path):
        bad(tmp_path / "absent.root", "absent.root: no such file")

    def test_not_root(self, bad, tmp_path):
        (tmp_path / "text.root").write_text("hello, this is no ROOT file")
        bad(tmp_path / "text.root", "text.root: not a ROOT file")

    def test_cut_in_half(self, bad, tmp_path):
        whole = nano_file(tmp_path / "whole.root").read_bytes()
        (tmp_path / "half.root").write_bytes(whole[: len(whole) // 2])
        bad(tmp_path / "half.root", "half.root: cut short")

    def test_no_events_tree(self, bad, tmp_path):
        with uproot.recreate(tmp_path / "other.root") as file:
            file.mktree("Other", {"x": np.float32})
        bad(tmp_path / "other.root", "no tree 'Events'; present: Other")

    def test_missing_branch(self, bad, tmp_path):
        file = nano_file(tmp_path / "bare.root", drop=["Jet_btagDeepFlavB"])
        bad(file, "branch 'Jet_btagDeepFlavB'")

    def test_empty_tree(self, bad, tmp_path):
        bad(nano_file(tmp_path / "empty.root", n=0), "no entries")

    @pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
    def test_momentum_that_is_not_finite(self, bad, tmp_path, value):
        bad(
            nano_file(tmp_path / "nan.root", pt=(value, 30.0)),
            "branch 'Muon_pt' has 4 of 8 values NaN or infinite",
        )


@pytest.mark.parametrize("name", ["2018", "1e3", "null", "a: b", "try #1"])
def test_options_are_text_not_yaml(command, tmp_path, name):
    from topreco.core.skim import Skim

    file, skim = nano_file(tmp_path / "good.root"), tmp_path / f"{name}.parquet"
    code, _, err = command("skim", file, "-o", skim, "--dataset", name, "--quiet")
    assert (code, err) == (0, "")
    assert list(Skim(skim).metadata["datasets"]) == [name]


@pytest.mark.parametrize("options", [["-m", "MODEL", "-m", "loose"], ["--methods", "MODEL,loose"]])
def test_several_methods(command, tmp_path, toy_model, options):
    import coffea.util

    file, folder = nano_file(tmp_path / "good.root"), tmp_path / "try #1"
    options = [option.replace("MODEL", str(toy_model)) for option in options]
    code, _, _ = command(
        *("run", file, *options, "--quiet", "--no-plots", f"output={folder}", "--dataset", "2018"),
        "histograms.observables=[m_tt]",
    )
    assert code == 0
    saved = coffea.util.load(folder / "histograms.coffea")
    assert saved["metadata"][0]["config"]["methods"] == [str(toy_model), "loose"]
    assert list(saved["cutflow"]) == ["2018"]


def test_inputs_are_never_replaced(command, tmp_path, toy_model):
    """Whatever a command reads, under whatever name: it stays, and the error is one line."""
    from topreco.input.skimming import make_skim

    nano, model = nano_file(tmp_path / "a.root"), tmp_path / "my.safetensors"
    skim, link, config = tmp_path / "s.parquet", tmp_path / "link", tmp_path / "config.yaml"
    make_skim([nano], skim, SelectionConfig(leading_pt_min=0), progress=False)
    model.write_bytes(toy_model.read_bytes())
    config.write_text("{}\n")
    (tmp_path / "results.json").write_text('{"400000": [[1, 1]]}')
    (tmp_path / "b.root.cutflow.json").symlink_to(tmp_path / "results.json")
    link.symlink_to(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    golden = f"selection.cuts.golden_json={tmp_path / 'results.json'}"
    for line in (
        ("skim", nano, "-o", link / "a.root"),
        ("skim", nano, "-o", tmp_path / "b.root", golden),
        ("skim", nano, "-o", config, "--config", config),
        ("response", skim, "-o", link / "s.parquet"),
        ("quantiles", model, "-o", link / "my.safetensors", f"data.files=[{skim}]"),
        ("quantiles", toy_model, "-o", skim, f"data.files=[{skim}]"),
        ("quantiles", toy_model, "--calibrate-only", "-o", skim, f"data.files=[{skim}]"),
        ("run", nano, "-m", "loose", "-o", link, golden),
    ):
        code, _, err = command(*line)
        assert (code, err.count("\n")) == (1, 1), (line, err)
        assert "would replace the input" in err, (line, err)
        assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_output(command, tmp_path, monkeypatch, encoding):
    """Of a text that is not in it the rest is printed."""
    written = io.BytesIO()
    file = nano_file(tmp_path / "good.root")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, io.TextIOWrapper(written, encoding, write_through=True))
    command("skim", file, "-o", tmp_path / "tt\u0304.parquet", "--quiet", "dataset=tt\u0304")
    command("skim", tmp_path / "t\u0304.root", "-o", tmp_path / "b.parquet", "--quiet")
    # On an ASCII stream click prints UTF-8.
    text = written.getvalue().decode("latin-1" if encoding == "latin-1" else "utf-8")
    assert re.search("tt[\u0304?].parquet: 4 of 4 events", text)
    assert re.search("t[\u0304?].root: no such file", text)


def test_unknown_key(refused):
    refused("config", "train", "epoch=3", match="unknown key 'epoch'; did you mean 'epochs'?")


def test_wrong_kind_of_model(refused, tmp_path, toy_model):
    file = nano_file(tmp_path / "good.root")
    (tmp_path / "fake.safetensors").write_bytes(b"\x80\x04pickle")
    for model, match in [
        (tmp_path / "fake.safetensors", "fake.safetensors"),
        (tmp_path / "absent.safetensors", "absent.safetensors"),
        (tmp_path / "good.root", "a .safetensors file"),
    ]:
        refused("run", file, "-m", model, "-o", tmp_path / "out", "--quiet", match=match)


@pytest.mark.parametrize("model", ["sonnenschein", "nonsense", "absent.onnx"])
def test_what_cannot_be_exported(refused, tmp_path, model):
    refused("export", model, "-o", tmp_path / "model.onnx", match=repr(model) if "." not in model else model)


def test_unwritable_output(refused, tmp_path, toy_model):
    file = nano_file(tmp_path / "good.root")
    below = file / "below"
    refused("run", file, "-m", toy_model, "-o", below, "--quiet", match="cannot write there")
    refused("skim", file, "-o", below / "a.parquet", "--quiet", match="cannot write there")


def test_nothing_to_do(refused, tmp_path, toy_model):
    file = nano_file(tmp_path / "good.root")
    refused("run", "-m", toy_model, "-o", tmp_path / "out", match="no input files")
    refused("run", file, "-o", tmp_path / "out", match="methods: none given")
    refused("plot", tmp_path / "absent", match="no such file")
    refused("plot", file, match="not the histograms of `topreco run`")
    refused("plot", file, file, match="--output: needed for the figures of several runs")


NO_OPTIONAL_CUTS = ("selection.jet.id_bit=null", "selection.electron.gap=null")


def test_preset_and_era_are_said_and_kept(command, tmp_path, toy_model):
    import coffea.util

    from topreco.core.skim import Skim

    file, skim, folder = nano_file(tmp_path / "good.root"), tmp_path / "a.parquet", tmp_path / "run"
    chosen = ("--preset", "nano_v9", "--era", "UL2017")
    said = "preset nano_v9 (given), era UL2017 (given), PuppiMET, btagDeepFlavB > 0.304"
    code, out, _ = command("skim", file, "-o", skim, "--quiet", *chosen, *NO_OPTIONAL_CUTS)
    assert (code, said in out) == (0, True)
    metadata = Skim(skim).metadata
    assert metadata["preset"] == said
    assert metadata["selection"]["jet"]["btag_threshold"] == 0.304
    assert metadata["selection"]["jet"]["id_bit"] is None
    code, out, _ = command(
        *("run", file, "-m", toy_model, "-o", folder, "--no-plots", "--quiet", *chosen, *NO_OPTIONAL_CUTS),
        "histograms.observables=[m_tt]",
    )
    assert (code, f"default: {said}" in out) == (0, True)
    assert coffea.util.load(folder / "histograms.coffea")["metadata"][0]["presets"] == {"default": said}


def test_preset_in_a_configuration(command, tmp_path):
    file, config = nano_file(tmp_path / "good.root"), tmp_path / "skim.yaml"
    jet = "{btag_threshold: 0.5, id_bit: null}"
    config.write_text(f"selection: {{preset: nano_v9, era: UL2017, jet: {jet}, electron: {{gap: null}}}}\n")
    code, out, _ = command("skim", file, "-o", tmp_path / "a.parquet", "--quiet", "--config", config)
    assert (code, "era UL2017 (given), PuppiMET, btagDeepFlavB > 0.5" in out) == (0, True)
    code, out, _ = command(
        "skim", file, "-o", tmp_path / "b.parquet", "--quiet", "--config", config, "--era", "UL2018"
    )
    assert (code, "era UL2018 (given)" in out) == (0, True)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--preset", "nano_v13x"], "no preset 'nano_v13x'"),
        (["--preset", "nano_v9", "--era", "2024"], "preset nano_v9 has no era '2024'"),
        (["--preset", "nano_v15"], "branch 'Jet_btagUParTAK4B' (selection key 'jet.btag', preset nano_v15)"),
    ],
)
def test_preset_that_does_not_fit(refused, tmp_path, options, match):
    file = nano_file(tmp_path / "good.root")
    refused("skim", file, "-o", tmp_path / "out", "--quiet", *options, match=match)


def test_unknown_version_to_simulate(refused, tmp_path):
    match = "nanoaod_version: Input should be 'v7'"
    refused("simulate", "-o", tmp_path / "out", "--nanoaod-version", "v8", "--quiet", match=match)
