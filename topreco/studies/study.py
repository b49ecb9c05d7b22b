"""Studies: trainings that differ in a few keys, on all cores or GPUs, and one table of what came of them.

Every training is one of `topreco.network.train` in a folder of its own, ``<output>/<point>/seed<k>``, and
so continues where it was stopped. Beside its files lie

===================  =====================================================================================
``train.yaml``       its configuration, for ``topreco-train --config``
``evaluation.json``  metrics on the test skims, sizes and times
``log.txt``          what it printed
===================  =====================================================================================

The tables and figures in ``<output>`` are made of the ``evaluation.json`` alone, so a study that was killed
and run again makes the same.
"""

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from topreco.config import ConfigError, StudyConfig, TrainConfig, build_config, dump_config
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, FloatArray, TopPair, Truth
from topreco.core.files import plain, writable_folder, write_text
from topreco.core.observables import OBSERVABLES
from topreco.core.skim import Skim
from topreco.core.statistics import fraction, summarise_arrays
from topreco.core.threads import available_cores
from topreco.evaluation.fill import predicted_values, true_values
from topreco.network.inference import predict
from topreco.network.model_file import ModelFileError, load_model
from topreco.network.parent import find_parent, with_parent
from topreco.network.train import MAY_DIFFER, WHERE_DATA_ARE, train
from topreco.studies.assignment import right_pairing, right_tops
from topreco.studies.perfect import write_perfect
from topreco.studies.report import FRACTIONS, StudyReport, Training, write_figures, write_tables

EVALUATION_FILE = "evaluation.json"
_VERSION = 1


def study(config: StudyConfig, *, progress: bool = True, restart: bool = False) -> Path:
    """Train and evaluate all points with all seeds, or what is missing, and write tables and figures.

    A training that cannot start or fails is listed in the table with its error; the others continue.

    Parameters
    ----------
    config
        Points, seeds and test skims.
    progress
        Print a line per training on standard error.
    restart
        Discard what earlier trainings left in their folders.

    Returns
    -------
    table
        ``<output>/table.md``; beside it lie ``table.json``, ``table.csv`` and ``figures``.

    Raises
    ------
    TopRecoError
        If a test skim cannot be used, the output folder not be written, or no training succeeds.
    """
    output = writable_folder(config.output)
    console = Console(stderr=True, quiet=not progress, highlight=False, soft_wrap=True)
    failures: dict[str, str] = {}
    trainings: dict[str, dict[int, Training]] = {point: {} for point in config.chosen_points}
    report = StudyReport(config, trainings, failures)
    jobs = _jobs(config, failures)
    waiting = []
    for job in jobs:
        found = None if restart else job.evaluation()
        if found is None:
            waiting.append(job)
        else:
            trainings[job.point][job.seed] = found
    done = len(jobs) - len(waiting)
    if done:
        console.print(f"{done} of {len(jobs)} trainings are there already")
    for job, seconds, failure in _execute(waiting, config, restart=restart):
        done += 1
        title = f"{done}/{len(jobs)} {job.point} seed {job.seed} ({seconds:.0f} s)"
        found = job.evaluation() if failure is None else None
        if found is None:
            failures[job.point] = failure or f"no {EVALUATION_FILE} in {job.config.output}"
            console.print(f"{title}: failed: {failures[job.point]}")
        else:
            trainings[job.point][job.seed] = found
            first = config.observables[0]
            rho = found["metrics"][first]["correlation"]
            console.print(f"{title}: ρ({first}) {rho:.4f}" if rho is not None else title)
            write_tables(report)
    if not report.finished:
        point, failure = next(iter(failures.items()))
        raise TopRecoError(f"study {output}: no training succeeded; {point}: {failure}")
    table = write_tables(report)
    write_figures(report)
    return table


# ---- jobs --------------- ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """A training and its evaluation.

    Attributes
    ----------
    point, seed
        Point and seed.
    config
        Configuration of the training.
    perfect
        Parts of the measurement that are replaced by the truth, see `topreco.studies.perfect`.
    key
        Digest of all that the evaluation depends on.
    """

    point: str
    seed: int
    config: TrainConfig
    perfect: tuple[str, ...]
    key: str

    def evaluation(self) -> Training | None:
        """Content of its ``evaluation.json``, None if there is none or it belongs to another training."""
        try:
            content = json.loads((self.config.output / EVALUATION_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) and content.get("key") == self.key else None


def _jobs(config: StudyConfig, failures: dict[str, str]) -> list[_Job]:
    """Every training that is possible; errors of the others are added to `failures`.

    Raises
    ------
    TopRecoError
        If a test skim cannot be used.
    """
    if not config.test_skims:
        raise TopRecoError("test_skims: no skims given; write some with `topreco skim`")
    test = []
    for path in config.test_skims:
        skim = Skim(path)
        if not skim.has_truth or len(skim) == 0:
            raise TopRecoError(f"test_skims: {path}: events with truth expected")
        test.append((path.name, len(skim), path.stat().st_size))
    jobs = []
    # Every seed of all points before the next: what is compared is complete soon.
    for seed in config.seeds:
        for point in config.chosen_points:
            try:
                training = config.training(point, seed)
                _check(training, config)
                perfect = config.perfect.get(point, ())
                key = _key(training, test, config, perfect)
            except (ConfigError, ModelFileError) as error:
                failures[point] = str(error)
            else:
                jobs.append(_Job(point, seed, training, perfect, key))
    return jobs


def _check(training: TrainConfig, config: StudyConfig) -> None:
    if not training.data.files:
        raise ConfigError("train.data.files: no skims given; write some with `topreco skim`")
    for path in training.data.files:
        if not path.is_file():
            raise ConfigError(f"train.data.files: {path}: no such file")
        if any(path.resolve() == other.resolve() for other in config.test_skims):
            raise ConfigError(f"train.data.files: {path} is one of test_skims too")
    for key, value in {"data.folds": training.data.folds, "devices": training.devices}.items():
        if value > 1:
            raise ConfigError(f"train.{key}: {value} found, 1 expected in a study")


def _key(
    training: TrainConfig, test: Sequence[tuple[str, int, int]], config: StudyConfig, perfect: Sequence[str]
) -> str:
    """Digest of what an evaluation depends on, files by name and size: a study may move."""
    what = training.model_dump(
        mode="json", exclude=dict.fromkeys(MAY_DIFFER, True) | {"data": WHERE_DATA_ARE}
    )
    what["data"]["files"] = [(path.name, path.stat().st_size) for path in training.data.files]
    if training.init is None:
        del what["init"]
    else:
        parent = find_parent(training)
        what["init"]["model"] = None if parent is None else (parent.name, parent.sha256)
    content = json.dumps(
        [_VERSION, what, test, config.observables, *([perfect] if perfect else [])], sort_keys=True
    )
    return hashlib.sha256(content.encode()).hexdigest()


# ---- processes -------------------------------------------------------------------------------------------


def _slots(config: StudyConfig, jobs: Sequence[_Job]) -> list[str | None]:
    """Number of the GPU of each process that may run at a time, or None."""
    if any(job.config.accelerator != "cpu" for job in jobs) and torch.cuda.is_available():
        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(i) for i in range(count)]
        return [devices[i % count] for i in range(config.workers or count)]
    return [None] * (config.workers or available_cores())


def _execute(
    jobs: Sequence[_Job], config: StudyConfig, *, restart: bool
) -> Iterator[tuple[_Job, float, str | None]]:
    """Run jobs in processes of their own; each with its seconds and its error, if any, as it ends."""
    waiting = deque(jobs)
    free = _slots(config, jobs)
    running: list[tuple[subprocess.Popen[bytes], _Job, str | None, float]] = []
    try:
        while waiting or running:
            while waiting and free:
                slot, job = free.pop(), waiting.popleft()
                running.append((_start(job, config, slot, restart=restart), job, slot, time.monotonic()))
            time.sleep(0.1)
            for entry in list(running):
                process, job, slot, started = entry
                if process.poll() is not None:
                    process.communicate()
                    running.remove(entry)
                    free.append(slot)
                    failure = _last_words(job, process.returncode) if process.returncode else None
                    yield job, time.monotonic() - started, failure
    finally:
        for process, *_ in running:
            process.kill()
            process.communicate()


def _order(job: _Job, config: StudyConfig, *, restart: bool) -> dict[str, Any]:
    """What a process is told to do, as plain data."""
    return {
        # What is not set may come from the model of `init`.
        "train": job.config.model_dump(mode="json", exclude_unset=True),
        "test_skims": [str(path) for path in config.test_skims],
        "observables": config.observables,
        "perfect": job.perfect,
        "key": job.key,
        "restart": restart,
    }


def _start(job: _Job, config: StudyConfig, slot: str | None, *, restart: bool) -> "subprocess.Popen[bytes]":
    folder = writable_folder(job.config.output)
    order = _order(job, config, restart=restart)
    # Processes share the cores, so each has one thread.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if slot is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - this interpreter, and arguments of our own
            [sys.executable, "-m", "topreco.studies.study", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
        )


def _last_words(job: _Job, code: int) -> str:
    """Last line that a process wrote."""
    log = job.config.output / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return last.removeprefix("error: ") if last.startswith("error: ") else f"exit code {code}; {last} ({log})"


def _work(order: Mapping[str, Any]) -> None:
    """Train and evaluate, in a process of `_execute`."""
    config = build_config(TrainConfig, order["train"], "study")
    test = [Path(path) for path in order["test_skims"]]
    if parts := order["perfect"]:
        files = [
            [write_perfect(path, config.output / f"{kind}{i}.parquet", parts) for i, path in enumerate(paths)]
            for kind, paths in (("train", config.data.files), ("test", test))
        ]
        data = config.data.model_copy(update={"files": tuple(files[0])})
        config, test = config.model_copy(update={"data": data}), files[1]
    write_text(config.output / "train.yaml", dump_config(with_parent(config)))
    (config.output / EVALUATION_FILE).unlink(missing_ok=True)
    model = train(config, restart=order["restart"])
    found = _evaluate(model, config, test, order["observables"])
    text = json.dumps({"key": order["key"], **plain(found)}, indent=1)
    write_text(config.output / EVALUATION_FILE, text + "\n")


def _die_with_parent() -> None:
    """End when standard input does: the study that started this process is gone, and may be run again."""
    # Not through sys.stdin, whose lock would be held when the interpreter ends.
    os.read(0, 1)
    os._exit(1)


# ---- evaluation ------------------------------------------------------------------------------------------


def _evaluate(path: Path, config: TrainConfig, skims: Sequence[Path], observables: Sequence[str]) -> Training:
    """Metrics of a trained network on test skims, its sizes and times."""
    model = load_model(path)
    on_gpu = config.accelerator != "cpu" and torch.cuda.is_available()
    networks = [network.to("cuda" if on_gpu else "cpu") for network in model.networks]
    parts: list[dict[str, FloatArray]] = []
    for skim in skims:
        events, truth = Skim(skim).read()
        if truth is None:
            raise TopRecoError(f"{skim}: no truth in this skim")
        pair = predict(networks, events, batch_size=2048 if on_gpu else 256)
        parts.append(_columns(events, pair, truth, observables, normalise=config.data.normalise_weights))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    weight = columns["weight"]
    metrics = {
        name: summarise_arrays(
            columns[f"pred {name}"], columns[f"true {name}"], weight, relative=OBSERVABLES[name].relative
        )._asdict()
        for name in observables
    }
    fractions = {}
    for name in FRACTIONS:
        value, error = fraction(columns[name], weight)
        fractions[name] = {"value": value, "error": error}
    history = [json.loads(line) for line in path.with_name("metrics.jsonl").read_text().splitlines()]
    seconds = sum(row["seconds"] for row in history)
    seen = sum(row["seconds"] * row["events_per_second"] for row in history)
    return {
        "metrics": metrics,
        "fractions": fractions,
        "test_events": len(weight),
        "train_events": model.metadata["data"]["networks"][0]["train"]["events"],
        "parameters": sum(parameter.numel() for parameter in networks[0].parameters()),
        "backbone": model.config.backbone.kind,
        "epochs": len(history),
        "seconds": seconds,
        "events_per_second": seen / seconds if seconds > 0 else math.nan,
    }


def _columns(
    events: DileptonEvents, pair: TopPair, truth: Truth, observables: Sequence[str], *, normalise: bool
) -> dict[str, FloatArray]:
    """Weights, and all that metrics need, of the events of a skim, each shape (n,)."""
    # As in training: generators differ in what they call a weight.
    unit = float(np.abs(events.weight).mean()) if normalise else 1.0
    columns = {
        "weight": events.weight / (unit if unit > 0 else 1.0),
        "right_tops": right_tops(pair.p4, truth.tops),
        "right_pairing": right_pairing(pair.p4, events.lepton_p4, truth.b),
    }
    predicted, true = predicted_values(observables, events, pair), true_values(observables, truth)
    for name in observables:
        columns[f"pred {name}"] = predicted[name]
        columns[f"true {name}"] = true[name]
    return columns


if __name__ == "__main__":
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        _work(json.loads(sys.argv[1]))
    except (TopRecoError, OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(1)
