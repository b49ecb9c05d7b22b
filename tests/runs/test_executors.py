"""Executors of a configuration: what can go wrong is said at once, and options reach the batch system."""

import gc
import os
import stat
import sys

import pytest

from topreco.config import RunConfig, load_config, shipped_configs
from topreco.core.errors import TopRecoError
from topreco.runs import executors
from topreco.runs.executors import open_executor

CLUSTERS = sorted(name for name in shipped_configs() if name.startswith("cluster/"))


def refused(match, *overrides, name=None):
    config = load_config(RunConfig, name, list(overrides))
    with pytest.raises(TopRecoError, match=match) as error, open_executor(config, progress=False):
        pass
    assert "\n" not in str(error.value)
    del error
    gc.collect()  # what dask_jobqueue left half-made says so here


half_made = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("executor", ["dask", "parsl"])
def test_missing_extra(monkeypatch, executor):
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda name: None)
    refused(
        rf"executor '{executor}' needs the extra: pip install 'topreco\[{executor}\]'", f"executor={executor}"
    )


@pytest.mark.parametrize("executor", ["dask", "parsl"])
@pytest.mark.parametrize(("kind", "command"), [("slurm", "sbatch"), ("htcondor", "condor_submit")])
def test_no_batch_system(monkeypatch, executor, kind, command):
    pytest.importorskip("dask_jobqueue" if executor == "dask" else "parsl")
    monkeypatch.setattr(executors.shutil, "which", lambda name: None)
    refused(f"the command '{command}' is not on this machine", f"executor={executor}", f"cluster.kind={kind}")


@half_made
@pytest.mark.parametrize("executor", ["dask", "parsl"])
def test_options_that_a_batch_system_does_not_know(monkeypatch, executor):
    pytest.importorskip("dask_jobqueue" if executor == "dask" else "parsl")
    monkeypatch.setattr(executors.shutil, "which", lambda name: f"/bin/{name}")
    options = "cluster.options={cores: 1, memory: 1GB, foo: 1}"
    refused(
        r"cluster\.options: \w+ refuses them \(.*'foo'|'cores'",
        f"executor={executor}",
        "cluster.kind=slurm",
        options,
    )


@half_made
def test_options_that_a_batch_system_needs(monkeypatch):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr(executors.shutil, "which", lambda name: f"/bin/{name}")
    refused(r"cluster\.options: SLURMCluster refuses them", "executor=dask", "cluster.kind=slurm")


@pytest.mark.slow
def test_no_scheduler():
    pytest.importorskip("distributed")
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        refused(
            "cluster.address tcp://127.0.0.1:1: no Dask scheduler answers",
            "cluster.address=tcp://127.0.0.1:1",
            name="cluster/dask-address.yaml",
        )


def test_an_error_of_the_run_is_not_one_of_the_scheduler(monkeypatch):
    distributed = pytest.importorskip("distributed")

    class Client:
        def __init__(self, address):
            self.address = address

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(distributed, "Client", Client)
    config = load_config(RunConfig, "cluster/dask-address.yaml")

    def use():
        with open_executor(config, progress=False) as executor:
            assert executor.client.address == config.cluster.address
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        use()


@pytest.mark.parametrize("name", [name for name in CLUSTERS if "dask-" in name])
def test_shipped_options_are_those_of_dask_jobqueue(name):
    jobqueue = pytest.importorskip("dask_jobqueue")
    cluster = load_config(RunConfig, name).cluster
    classes = {"slurm": jobqueue.SLURMCluster, "htcondor": jobqueue.HTCondorCluster}
    if cluster.kind in classes:
        job = classes[cluster.kind].job_cls(scheduler="tcp://a:1", name="x", processes=1, **cluster.options)
        assert "distributed.cli.dask_worker" in job.job_script()


@pytest.mark.parametrize("name", [name for name in CLUSTERS if "parsl-" in name])
def test_shipped_options_are_those_of_parsl(name):
    providers = pytest.importorskip("parsl.providers")
    cluster = load_config(RunConfig, name).cluster
    classes = {
        "local": providers.LocalProvider,
        "slurm": providers.SlurmProvider,
        "htcondor": providers.CondorProvider,
    }
    provider = classes[cluster.kind](**cluster.options)
    # Parsl's own ten minutes would end a job in the midst of its work.
    assert getattr(provider, "walltime", None) != "00:10:00"


@pytest.mark.slow
@pytest.mark.sim
def test_jobs_of_a_batch_system(monkeypatch, tmp_path, simulated, toy_model):
    """A stand-in for sbatch that starts the job script here."""
    pytest.importorskip("dask_jobqueue")
    from topreco.runs.run import run

    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        f'#!/bin/sh\nbash "$1" >> {tmp_path}/jobs.log 2>&1 &\necho $! >> {tmp_path}/pids\n'
        f'cp "$1" {tmp_path}/script\necho "Submitted batch job $!"\n'
    )
    scancel = tmp_path / "bin" / "scancel"
    scancel.write_text("#!/bin/sh\nkill $1\n")
    for command in (sbatch, scancel):
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}")
    config = load_config(
        RunConfig,
        None,
        [
            *("executor=dask", "workers=2", "cluster.kind=slurm", f"output={tmp_path / 'out'}"),
            # On a machine that is busy, workers need more than the minute of dask-jobqueue to connect.
            "cluster.options={cores: 1, memory: 2GB, walltime: '00:10:00', account: top, interface: lo}",
            "cluster.options.death_timeout=280",
            *(f"fileset={{tt: [{simulated}]}}", f"methods=[{toy_model}]", "chunk_size=300"),
        ],
    )
    try:
        result = run(config, progress=False)
    finally:
        # What the jobs say is what is wanted if they do not come up.
        sys.stderr.write((tmp_path / "jobs.log").read_text())
    assert result.statistics.events == 1200
    assert len((tmp_path / "pids").read_text().split()) == 2
    assert "#SBATCH -A top" in (tmp_path / "script").read_text()
