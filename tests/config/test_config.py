"""Configurations: every shipped file loads, every mistake is one line that names the key."""

import operator
from pathlib import Path

import pytest

from topreco.config import (
    ConfigError,
    DiagnoseConfig,
    LGATrConfig,
    LGATrSlimConfig,
    OmniFoldConfig,
    PepperWriteConfig,
    RatioTrainConfig,
    RunConfig,
    SimulationConfig,
    SkimConfig,
    StudyConfig,
    TemplatesConfig,
    TrainConfig,
    ValidationConfig,
    dump_config,
    find_config,
    load_config,
    shipped_configs,
)
from topreco.config.base import merged
from topreco.core.observables import OBSERVABLE_GROUPS

KINDS = {
    "run": RunConfig,
    "cluster": RunConfig,
    "systematics": RunConfig,
    "skim": SkimConfig,
    "study": StudyConfig,
    "ratio": RatioTrainConfig,
    "omnifold": OmniFoldConfig,
    "sim": SimulationConfig,
    "measurement/run": RunConfig,
    "measurement/templates": TemplatesConfig,
    "threshold": RunConfig,
    "diagnose": DiagnoseConfig,
}


def kind_of(name):
    """Class of a shipped configuration: by its name's beginning, else a training."""
    return next((kind for prefix, kind in KINDS.items() if name.startswith(prefix)), TrainConfig)


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_loads_by_its_bare_name(name):
    load_config(kind_of(name), name)


def test_there_are_shipped_configs():
    assert {"dilepton.yaml", "run.yaml", "skim-loose.yaml"} <= set(shipped_configs())


@pytest.mark.parametrize("kind", [TrainConfig, RunConfig, SkimConfig, SimulationConfig])
def test_dump_is_complete_and_loads_again(kind, tmp_path):
    path = tmp_path / "full.yaml"
    path.write_text(dump_config(kind()))
    assert load_config(kind, path) == kind()


def test_backbone_without_kind_is_the_default():
    assert load_config(TrainConfig, None, ["model.backbone.blocks=2"]).model.backbone == LGATrSlimConfig(
        blocks=2
    )


def test_groups_of_observables():
    """A group stands for its members, each once, in the order given."""
    config = load_config(RunConfig, None, ["histograms.observables=[pt_top, default, spin, delta_phi_ll]"])
    found = config.histograms.observables
    assert found[0] == "pt_top"
    assert found[-1] == "delta_phi_ll"
    assert set(found) == {*OBSERVABLE_GROUPS["default"], *OBSERVABLE_GROUPS["spin"], "delta_phi_ll"}
    assert len(found) == len(set(found))
    assert RunConfig().histograms.observables == OBSERVABLE_GROUPS["default"]


def test_overrides():
    config = load_config(
        TrainConfig,
        "tops",
        [
            "optimiser.learning_rate=3e-4",
            "model.backbone.kind=lgatr",
            "data.files=[a.parquet]",
            "patience=null",
        ],
    )
    assert config.optimiser.learning_rate == 3e-4
    assert isinstance(config.model.backbone, LGATrConfig)
    assert [str(f) for f in config.data.files] == ["a.parquet"]
    assert config.patience is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1", "unknown key 'optimizer'; did you mean 'optimiser'"),
        ("model.backbone.blokcs=2", "unknown key 'model.backbone.blokcs'; did you mean 'blocks'"),
        ("epochs=-1", "epochs: Input should be greater than 0, found -1"),
        ("epochs=many", "epochs: .*valid integer.*found 'many'"),
        ("model.spurions.beam=xyplane", "model: spurions.beam: 'xyplane' is a bivector"),
        ("model.backbone.kind=gnn", "model.backbone: .*'gnn'.*'lgatr_slim', 'lgatr', 'transformer'"),
        ("epochs", "override 'epochs': expected key=value"),
        ("epochs.x=[", "value is not YAML"),
        ("seed.x=1", "seed: .*valid integer"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_config(TrainConfig, None, [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "observables={m_ttt: {}}",
            r"unfolding\.observables: unknown observable 'm_ttt'; did you mean 'm_tt'",
        ),
        ("observables=[m_tt, mtt]", r"unfolding\.observables: unknown observable 'mtt'; did you mean 'm_tt'"),
        (
            "observables.m_tt.truth=[1, 3, 2]",
            r"observables\.m_tt\.truth: rising edges expected, found \[1, 3, 2",
        ),
        ("observables.m_tt.truth=[1, .inf]", r"observables\.m_tt\.truth: finite edges expected"),
        ("observables.m_tt.truth=[1]", r"observables\.m_tt\.truth: .*at least 2 items.*found \[1\]"),
        ("observables.m_tt.reco=[1, 2]", r"observables\.m_tt: 'reco' is given without 'truth'"),
        ("observables.m_tt.bins=[1, 2]", r"unknown key 'unfolding\.observables\.m_tt\.bins'.*reco, truth"),
        ("phase_space.decay=lepton", r"unfolding\.phase_space\.decay: .*'dileptonic'.*found 'lepton'"),
    ],
)
def test_mistakes_in_bins_of_responses_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(RunConfig, None, [f"unfolding.{override}"])


def test_names_of_observables_alone_take_fine_bins():
    config = load_config(RunConfig, None, ["unfolding.observables=[m_tt, angles]"])
    assert list(config.unfolding.observables) == ["m_tt", *OBSERVABLE_GROUPS["angles"]]
    assert all(bins.truth is None for bins in config.unfolding.observables.values())
    assert not RunConfig().unfolding.observables


def test_file_errors_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"dilepto.yaml: no such file.*did you mean 'dilepton.yaml'"):
        find_config("dilepto.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad.yaml: not readable as YAML"):
        load_config(TrainConfig, bad)
    bad.write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"bad.yaml: a mapping of keys to values expected, list found"):
        load_config(TrainConfig, bad)
    bad.write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match=r"bad.yaml: not readable as YAML"):
        load_config(TrainConfig, bad)
    bad.write_text("epochs: 0\n")
    with pytest.raises(ConfigError, match=r"bad.yaml: epochs: Input should be greater than 0, found 0"):
        load_config(TrainConfig, bad)


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("tree=try #1", "try #1"),
        ("tree='try #1'", "try #1"),
        ("tree=#1", "#1"),
        ("tree=[try #1, b]", None),
        ("tree=null", None),
    ],
)
def test_values_of_overrides_have_no_comments(override, found):
    if found is None:
        with pytest.raises(ConfigError, match=r"tree: .*string.*, found (\['try #1', 'b'\]|None)"):
            load_config(SkimConfig, None, [override])
    else:
        assert load_config(SkimConfig, None, [override]).tree == found


def test_options_are_values_and_win(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("tree: a\nfileset: {old: [x.root]}\nselection: {leading_pt_min: 5}\n")
    options = {
        "fileset": {"2018": ["a #1.root", "1e3"]},
        "tree": None,
        "selection.era": "2022",
        "output": Path("null"),
    }
    config = load_config(RunConfig, path, ["tree=b", "output=c", "selection.preset=nano_v12"], options)
    assert config.fileset == {"2018": ("a #1.root", "1e3")}
    assert (config.tree, config.output) == ("b", Path("null"))
    assert (config.selection.preset, config.selection.era) == ("nano_v12", "2022")
    with pytest.raises(ConfigError, match=r"run\.yaml: output: .*path"):
        load_config(RunConfig, path, (), {"output": 3})


@pytest.mark.parametrize(
    ("kind", "override", "key", "hint"),
    [
        (RunConfig, "histograms.observables=[m_tt, mtt]", r"histograms\.observables", "m_tt"),
        (RunConfig, "histograms.observables=[spinn]", r"histograms\.observables", "spin"),
        (RunConfig, "histograms.bins.mtt=[300, 400]", r"histograms\.bins", "m_tt"),
        (RunConfig, "unfolding.observables=[mtt]", r"unfolding\.observables", "m_tt"),
        (ValidationConfig, "histograms.bins.mtt=[300, 400]", r"histograms\.bins", "m_tt"),
        (StudyConfig, "observables=[mtt]", "observables", "m_tt"),
    ],
)
def test_observables_are_checked_where_they_are_read(kind, override, key, hint):
    study = ["points={a: []}", "reference=a"] if kind is StudyConfig else []
    with pytest.raises(ConfigError, match=rf"{key}: unknown observable '\w+'; did you mean '{hint}'\?"):
        load_config(kind, None, [*study, override])


@pytest.mark.parametrize(
    ("edges", "message"), [("[2, 1]", "rising"), ("[1, .nan]", "finite"), ("[1]", "2 items")]
)
def test_edges_of_histograms_are_checked_where_they_are_read(edges, message):
    with pytest.raises(ConfigError, match=rf"histograms\.bins\.m_tt: .*{message}"):
        load_config(RunConfig, None, [f"histograms.bins.m_tt={edges}"])


def test_merging_plain_data():
    first = {"a": {"x": 1, "y": 2}, "b": {"x": 1}, "c": [1]}
    changes = {"a": {"y": 3}, "b": {"z": 1}, "c": [2]}
    assert merged(first, changes) == {"a": {"x": 1, "y": 3}, "b": {"x": 1, "z": 1}, "c": [2]}
    assert merged(first, changes, whole=("b",))["b"] == {"z": 1}
    assert first["a"] == {"x": 1, "y": 2}


def test_override_into_a_value(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="'seed' is a value, not a section"):
        load_config(TrainConfig, path, ["seed.x=1"])


@pytest.mark.parametrize("text", ["when: 2026-13-45", "[" * 5000, "n: !!int ''", "n: " + "9" * 5000])
def test_text_on_which_the_loader_stumbles(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml: not readable as YAML"):
        load_config(TrainConfig, path)
    with pytest.raises(ConfigError, match="value is not YAML"):
        load_config(TrainConfig, None, [f"epochs={text}"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("epochs: 1\nseed: 2\nepochs: 3\n", "key 'epochs' is given twice, in lines 1 and 3"),
        ("data:\n  folds: 1\nepochs: 1\ndata:\n  folds: 2\n", "key 'data' is given twice, in lines 1 and 4"),
        ("data: {folds: 1, 'folds': 2}\n", "key 'folds' is given twice, in lines 1 and 1"),
        ("epochs: 010\n", "line 1: 010 is a number in base 8"),
        ("\nepochs: 1:30\n", "line 2: 1:30 is a number in base 60"),
        ("model: {m_top: 1:30.5}\n", "line 1: 1:30.5 is a number in base 60"),
    ],
)
def test_ambiguous_yaml_is_refused(tmp_path, text, problem):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(TrainConfig, path)
    assert str(error.value).startswith(f"{path}: {problem}")


def test_ambiguous_overrides_are_refused():
    with pytest.raises(ConfigError, match=r"override 'epochs=010': line 1: 010 is a number in base 8"):
        load_config(TrainConfig, overrides=["epochs=010"])
    with pytest.raises(ConfigError, match=r"key 'folds' is given twice"):
        load_config(TrainConfig, overrides=["data={folds: 1, folds: 2}"])


def test_numbers_and_merged_keys_that_mean_what_they_look_like(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "solvers: &own {n_draws: 10, m_w: 0.5e+2}\nmin_quality: {a: -0.1, 'b': 0, c: 1_000}\n"
        "cluster: {kind: slurm, options: {walltime: '04:00:00', <<: *own, n_draws: 0}}\nexecutor: dask\n"
    )
    config = load_config(RunConfig, path)
    assert (config.solvers.n_draws, config.solvers.m_w) == (10, 50)
    assert config.min_quality == {"a": -0.1, "b": 0, "c": 1000}
    assert config.cluster.options == {"walltime": "04:00:00", "n_draws": 0, "m_w": 50}


@pytest.mark.parametrize(
    ("kind", "override"),
    [
        (TrainConfig, "loss.m_tt=.inf"),
        (TrainConfig, "optimiser.learning_rate=.inf"),
        (TrainConfig, "optimiser.weight_decay=.nan"),
        (SimulationConfig, "sqrt_s=.inf"),
        (RunConfig, "min_quality.a=-.inf"),
        (RunConfig, "selection.jet.pt_min=.nan"),
    ],
)
def test_numbers_are_finite(kind, override):
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{key}: Input should be .* number, found"):
        load_config(kind, overrides=[override])


@pytest.mark.parametrize(
    ("kind", "override", "value"),
    [
        (TrainConfig, "output=try #1", Path("try #1")),
        (
            TrainConfig,
            "data.files=[a #1.parquet, 'b #2.parquet']",
            (Path("a #1.parquet"), Path("b #2.parquet")),
        ),
        (SkimConfig, "dataset=TT #1", "TT #1"),
        (SkimConfig, "dataset=#1", "#1"),
        (PepperWriteConfig, "method=folder #1/my #2.safetensors", "folder #1/my #2.safetensors"),
        (RunConfig, "methods=[runs #1/m.safetensors]", ("runs #1/m.safetensors",)),
        (RunConfig, "fileset={TT #1: [a #1.root]}", {"TT #1": ("a #1.root",)}),
        (RunConfig, "min_quality={m #1: -0.1}", {"m #1": -0.1}),
        (StudyConfig, "points={a: ['accelerator=#1']}", {"a": ("accelerator=#1",)}),
    ],
)
def test_text_of_the_command_line_is_whole(tmp_path, kind, override, value):
    """Also after it was written to a file and read again."""
    config = load_config(kind, overrides=[override, *(["reference=a"] if kind is StudyConfig else [])])
    written = tmp_path / "config #1.yaml"
    written.write_text(dump_config(config))
    for each in (config, load_config(kind, written)):
        assert operator.attrgetter(override.partition("=")[0])(each) == value


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.backbone={kind: transformer, channels: 30}"],
            r"model\.backbone: channels: 30 found, a multiple of heads \(4\)",
        ),
        (
            ["model.quantiles.backbone={kind: lloca, channels: 24, heads: 2}"],
            r"model\.quantiles\.backbone: channels: 24 found, a multiple of 8 · heads \(16\)",
        ),
        (
            ["data.validation_fraction=0.6", "data.test_fraction=0.5"],
            r"data: validation_fraction 0\.6 and test_fraction 0\.5 are more than 1 together",
        ),
    ],
)
def test_settings_that_do_not_fit_together(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(TrainConfig, overrides=overrides)


def test_fractions_may_be_everything_and_folds_have_no_test_fraction():
    load_config(TrainConfig, overrides=["data.validation_fraction=0.3", "data.test_fraction=0.7"])
    load_config(
        TrainConfig, overrides=["data.validation_fraction=0.9", "data.test_fraction=0.7", "data.folds=2"]
    )


def test_a_run_fills_something():
    with pytest.raises(
        ConfigError, match=r"histograms\.observables: empty, and so is unfolding\.observables"
    ):
        load_config(RunConfig, overrides=["histograms.observables=[]"])
    load_config(RunConfig, overrides=["histograms.observables=[]", "unfolding.observables=[m_tt]"])
