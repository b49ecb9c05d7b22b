"""Studies end to end, with small networks: what is trained, what continues after a kill, what fails."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from topreco.cli import app
from topreco.config import ConfigError, StudyConfig, TrainConfig, load_config, load_study, shipped_configs
from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import Truth, toy_events
from topreco.core.skim import Skim, SkimWriter
from topreco.network.model_file import load_model
from topreco.network.train import task_of, train
from topreco.reconstruction.load import load
from topreco.studies import study as module
from topreco.studies.study import study

STUDY = """
base: tops.yaml
train:
  model:
    backbone: {{kind: lgatr_slim, blocks: 1, vector_channels: 4, scalar_channels: 8, heads: 1}}
    tokens: {{max_jets: 4}}
    quantiles: null
  data: {{files: [{train}], test_fraction: 0.0}}
  loss: {{c_hel: 0.0}}
  epochs: 2
  batch_size: 32
  accelerator: cpu
  threads: 1
points:
  both: []
  none: [model.spurions.beam=null]
  xyplane: [model.spurions.beam=xyplane]
reference: both
seeds: [1, 2]
test_skims: [{test}]
workers: 2
full: [train.epochs=3, "seeds=[1, 2, 3]"]
output: {output}
"""


def toy_skim(path, n, seed):
    """Made-up tops: lepton plus b candidate, with the mass of a top quark."""
    events = toy_events(n, max_jets=4, seed=seed)
    tops = np.stack([events.lepton_plus, events.lepton_minus], 1) + events.b_candidate_p4
    tops[..., 0] = np.sqrt(172.5**2 + (tops[..., 1:] ** 2).sum(-1))
    nothing = np.full((n, 2, 4), np.nan)
    truth = Truth(
        tops=tops,
        w=nothing,
        b=events.b_candidate_p4,
        lepton=events.lepton_p4,
        neutrino=fourvector.from_three_momentum(tops[..., 1:], 0.0),
        via_tau=np.zeros((n, 2), bool),
        dileptonic=np.ones(n, bool),
        production=np.zeros(n, np.int8),
    )
    with SkimWriter(path) as writer:
        writer.write(events, truth)
    return path


@pytest.fixture
def file(tmp_path):
    """A study of two points that can be trained and one that cannot."""
    train, test = (toy_skim(tmp_path / f"{name}.parquet", 200, seed) for name, seed in (("a", 1), ("b", 2)))
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(train=train, test=test, output=tmp_path / "out"))
    return path


def quantities(folder):
    """What must not depend on how often a study was interrupted."""
    content = json.loads((folder / "table.json").read_text())
    return {point: found["quantities"] for point, found in content["points"].items()}, content["failures"]


# ---- configuration ---------------------------------------------------------------------------------------


def test_overrides_and_sizes(file):
    config = load_study(file)
    assert config.training("none", 7).seed == 7
    assert config.training("none", 7).model.spurions.beam is None
    assert config.training("none", 7).output == config.output / "none" / "seed7"
    # From the base, which `train` changes in part only.
    assert config.training("both", 1).model.spurions.embed == "channel"
    assert config.training("both", 1).epochs == 2
    # A point leaves nothing behind for the next one, not even in sections that the base lacks.
    data = load_study(file, ["points={few: [data.max_events=50], all: []}", "reference=few"])
    whole = data.training("all", 2)
    assert data.training("few", 1).data.max_events == 50
    assert data.training("all", 2) == whole
    assert whole.data.max_events is None
    full = load_study(file, ["size=full", "train.epochs=4"])
    assert full.seeds == (1, 2, 3)
    assert full.training("both", 1).epochs == 4


def test_grid_multiplies_points():
    config = StudyConfig(
        points={"a": ("epochs=1",), "b": ()},
        grid={"model.readout": ("mean", "sum"), "model.spurions.beam": (None,), "compile": (False,)},
        reference="a,readout=mean,beam=null,compile=false",
    )
    assert list(config.all_points) == [
        f"{point},readout={readout},beam=null,compile=false" for point in "ab" for readout in ("mean", "sum")
    ]
    training = config.training("a,readout=sum,beam=null,compile=false", 1)
    assert (training.epochs, training.model.readout, training.model.spurions.beam) == (1, "sum", None)
    alone = StudyConfig(grid={"epochs": (1, 2), "optimiser.warmup": (0.1,)}, reference="epochs=2,warmup=0.1")
    assert list(alone.all_points) == ["epochs=1,warmup=0.1", "epochs=2,warmup=0.1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["reference=bth"], r"reference: no point 'bth'; there are both, none, xyplane; did you mean 'both'"),
        (["only=[none]"], r"only: the reference 'both' is not among none"),
        (["only=[both, some]"], r"only: no point 'some'"),
        (["points={a/b: []}", "reference=a/b"], r"letters, digits and _ . \+ = , - expected, found 'a/b'"),
        (["points={a: [seed=3]}", "reference=a"], r"'seed' is not a point's to change; see the key 'seeds'"),
        (["perfect={met: [met]}"], r"perfect: no point 'met'"),
        (["perfect={none: [mt]}"], r"perfect.none.*'met'"),
        (["seeds=[1, 1]"], r"seeds: one or more seeds expected, each once"),
        (["observables=[m_ttt]"], r"observables: unknown observable 'm_ttt'; did you mean 'm_tt'"),
        (["epochs=3"], r"unknown key 'epochs'"),
    ],
)
def test_mistakes_are_one_line(file, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_study(file, changes)


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("study/")])
@pytest.mark.parametrize("size", ["small", "full"])
def test_every_training_of_a_shipped_study_can_be_built(name, size):
    """But for the bivector in a network of vectors, which is there to be refused."""
    config = load_study(name, [f"size={size}"])
    for point in config.chosen_points:
        if "xyplane" in point and "full" not in point:
            with pytest.raises(ConfigError, match="bivector"):
                config.training(point, 1)
            continue
        training = config.training(point, 1)
        if training.model.backbone.kind != "lloca" or importlib.util.find_spec("lloca"):
            n = sum(parameter.numel() for parameter in task_of(training).build().parameters())
            if name == "study/parameters.yaml":
                wanted = {"10k": 1e4, "50k": 5e4, "200k": 2e5, "300k": 3e5, "1M": 1e6, "5M": 5e6}
                assert n == pytest.approx(wanted[point.rpartition("_")[2]], rel=0.25)


def test_config_command_prints_it(file):
    result = CliRunner().invoke(app, ["config", "study", "--config", str(file), "seeds=[5]"])
    assert result.exit_code == 0, result.output
    copy = file.with_name("copy.yaml")
    copy.write_text(result.output)
    assert load_config(StudyConfig, copy) == load_config(StudyConfig, file, ["seeds=[5]"])


# ---- running ---------------------------------------------------------------------------------------------


def start(file, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "topreco", "study", str(file), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_here(monkeypatch):
    """Replace the processes by calls, which cost no imports."""

    def execute(jobs, config, *, restart):
        for job in jobs:
            try:
                module._work(module._order(job, config, restart=restart))
            except TopRecoError as error:
                yield job, 0.0, str(error)
            else:
                yield job, 0.0, None

    monkeypatch.setattr(module, "_execute", execute)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_kill_9_and_run_again_gives_the_same_table(file, tmp_path, monkeypatch):
    killed = start(file, "workers=1")
    first = tmp_path / "out" / "both" / "seed1" / "evaluation.json"
    second = tmp_path / "out" / "none" / "seed1"
    # In the middle of the second training, or before it.
    while not (first.is_file() and (second / "log.txt").is_file()) and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "out" / "none" / "seed2").exists()
    # Its child has ended too, or two would train in one folder.
    before = first.stat().st_mtime_ns
    again = start(file)
    out, err = again.communicate(timeout=250)
    assert again.returncode == 0, err
    assert out == f"table: {tmp_path / 'out' / 'table.md'}\n"
    assert "1 of 4 trainings are there already" in err
    assert "4/4 none seed 2" in err
    assert first.stat().st_mtime_ns == before

    # Without interruption, and here, for starting processes takes long.
    run_here(monkeypatch)
    study(load_study(file, [f"output={tmp_path / 'whole'}"]), progress=False)
    assert quantities(tmp_path / "out") == quantities(tmp_path / "whole")
    points, failures = quantities(tmp_path / "out")
    assert points["both"]["m_tt correlation"]["n"] == 2
    assert points["both"]["m_tt correlation"]["deviation"] > 0
    assert points["none"]["m_tt correlation"]["difference"]["mean"] != 0
    assert list(failures) == ["xyplane"]
    assert "bivector" in failures["xyplane"]
    assert (tmp_path / "out" / "figures" / "m_tt_correlation.png").is_file()

    # Nothing is left to do; what was trained can be loaded and trained again by hand.
    table = (tmp_path / "out" / "table.md").read_bytes()
    result = CliRunner().invoke(app, ["study", str(file)])
    assert "4 of 4 trainings are there already" in result.stderr
    assert (tmp_path / "out" / "table.md").read_bytes() == table
    load(tmp_path / "out" / "none" / "seed1" / "model.safetensors")
    yaml = tmp_path / "out" / "none" / "seed1" / "train.yaml"
    result = CliRunner().invoke(app, ["train", "--config", str(yaml)])
    assert result.exit_code == 0, result.output


def test_a_changed_study_is_not_mixed_with_what_is_there(file, monkeypatch):
    run_here(monkeypatch)
    study(load_study(file, ["only=[both]", "seeds=[1]"]), progress=False)
    changed = load_study(file, ["seeds=[1]", "train.epochs=1"])
    study(changed, progress=False)
    points, failures = quantities(changed.output)
    assert points["both"]["m_tt correlation"]["n"] == 0
    assert points["none"]["m_tt correlation"]["n"] == 1
    assert "holds a training that differs in the configuration (epochs: 2 there, 1 here)" in failures["both"]
    study(changed, progress=False, restart=True)
    assert "both" not in quantities(changed.output)[1]


def test_other_test_events_are_evaluated_with_the_same_training(file, tmp_path, monkeypatch):
    run_here(monkeypatch)
    config = load_study(file, ["only=[both]", "seeds=[1]"])
    study(config, progress=False)
    model = config.output / "both" / "seed1" / "model.safetensors"
    before, first = model.stat().st_mtime_ns, quantities(config.output)
    other = toy_skim(tmp_path / "c.parquet", 120, 5)
    study(config.model_copy(update={"test_skims": (*config.test_skims, other)}), progress=False)
    assert model.stat().st_mtime_ns == before
    assert quantities(config.output) != first
    assert "320 test events" in (config.output / "table.md").read_text()


def test_points_with_perfect_parts(file, monkeypatch):
    """Their networks are trained and tested on other events; train.yaml says on which."""
    run_here(monkeypatch)
    points = ["points={measured: [], met: []}", "reference=measured", "seeds=[1]"]
    config = load_study(file, [*points, "perfect={met: [met]}"])
    study(config, progress=False)
    found, failures = quantities(config.output)
    assert not failures
    assert found["met"]["m_tt correlation"]["difference"]["mean"] != 0
    folder = config.output / "met" / "seed1"
    assert load_config(TrainConfig, folder / "train.yaml").data.files == (folder / "train0.parquet",)
    assert Skim(folder / "test0.parquet").metadata["perfect"] == ["met"]


def test_points_that_start_from_a_model(file, tmp_path, monkeypatch):
    """The model is the parent's, though the recipe says nothing of it, and train.yaml has all of it."""
    run_here(monkeypatch)
    config = load_study(file)
    parent = train(config.training("both", 3), progress=False)
    content = {"init": str(parent)}
    content |= {key: config.train[key] for key in ("data", "loss", "batch_size", "accelerator")}
    points = ["points={start: [], slow: [init.rate=0.01], gone: [init=none]}", "reference=start", "seeds=[1]"]
    own = load_study(file, [*points, "base=finetune.yaml", f"output={tmp_path / 'second'}"])
    own = own.model_copy(update={"train": {**content, "epochs": 1}})
    study(own, progress=False)
    found, failures = quantities(own.output)
    assert found["slow"] != found["start"]
    assert set(failures) == {"gone"}
    assert "init.model none: no such file" in failures["gone"]
    folder = own.output / "slow" / "seed1"
    again = load_config(TrainConfig, folder / "train.yaml")
    assert again.model == load_model(parent).config
    assert (again.init.rate, again.init.model) == (0.01, str(parent))
    assert load_model(folder / "model.safetensors").metadata["parent"]["task"] == "tops"


def test_nothing_to_compare(file, tmp_path):
    with pytest.raises(TopRecoError, match=r"no training succeeded; xyplane: point 'xyplane' of tops\.yaml"):
        study(load_study(file, ["only=[xyplane]", "reference=xyplane"]), progress=False)
    config = load_study(file)
    for changes, message in (
        ({"test_skims": ()}, "test_skims: no skims given"),
        ({"test_skims": (tmp_path / "none.parquet",)}, "none.parquet: no such file"),
        ({"train": {}}, "train.data.files: no skims given"),
        ({"train": {"data": {"files": ["d.parquet"]}}}, "train.data.files: d.parquet: no such file"),
        ({"train": {"data": {"files": config.test_skims}}}, "is one of test_skims too"),
        ({"train": config.train | {"devices": 2}}, "train.devices: 2 found, 1 expected"),
    ):
        with pytest.raises(TopRecoError, match=message):
            study(config.model_copy(update=changes), progress=False)


def test_a_process_that_dies_is_reported_and_the_others_continue(file, monkeypatch):
    """Processes of another program, one of which is killed."""
    codes = {"both": "print('error: too few events'); sys.exit(1)", "none": "os.abort()"}

    def popen(command, **options):
        point = "none" if "/none/" in command[-1] else "both"
        return original([sys.executable, "-c", f"import os, sys; print('begun'); {codes[point]}"], **options)

    original = subprocess.Popen
    monkeypatch.setattr(module.subprocess, "Popen", popen)
    with pytest.raises(TopRecoError, match="no training succeeded"):
        study(load_study(file), progress=False)
    config = load_study(file, ["only=[both, none]"])
    failures = {
        job.point: failure
        for job, _, failure in module._execute(module._jobs(config, {}), config, restart=False)
    }
    assert failures["both"] == "too few events"
    assert failures["none"].startswith("exit code -6")


def test_gpus_are_shared_out(file, monkeypatch):
    config = load_study(file, ["train.accelerator=auto", "workers=null"])
    jobs = module._jobs(config, {})
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert module._slots(config, jobs) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert module._slots(config, jobs) == ["4", "7"]
    assert module._slots(config.model_copy(update={"workers": 3}), jobs) == ["4", "7", "4"]
    on_cpu = load_study(file, ["train.accelerator=cpu", "workers=null"])
    assert set(module._slots(on_cpu, module._jobs(on_cpu, {}))) == {None}
