"""Damage files of every format that topreco reads, thousands of times, and see what it makes of them.

    python scripts/faults/fuzz.py                       # everything, 12 000 damaged files
    python scripts/faults/fuzz.py root skim --n 500     # 500 of each
    python scripts/faults/fuzz.py root --only 137 -v    # one of them again

Of each damaged file exactly one of these becomes true:

    refused   one line of a TopRecoError, and no output
    same      the answer of the undamaged file
    changed   another answer: allowed only where nothing guards the content
    defect    another exception, an error of several lines, something left on disk, a changed answer where a
              checksum should have noticed, or code in the file was executed
    crash     the process died, or used more than 2 GB
    hang      no answer within a minute, or twenty of a process that waits
    library   the same within HDF5, where nothing can be checked before

The files are read in a child process. What damages a file depends on format, seed and number alone.
The exit code is the number of formats with a defect, crash or hang.
"""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import queue
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from topreco.core.errors import TopRecoError

TIMEOUT = 60
MEMORY = 2 << 30
OUTCOMES = ("refused", "same", "changed", "library", "defect", "crash", "hang")
BAD = ("defect", "crash", "hang")
LIBRARY = re.compile(r'most recent call first\):\n  File "[^"]*/h5py/')
"""Where a process hangs in HDF5's own code: in a damaged heap of attributes, which it alone can read."""

Mutation = tuple[bytes, bool]
"""Content, and whether whoever reads it may give another answer."""


# ---- damage ----------------------------------------------------------------------------------------------

_NUMBERS = (0, 1, -1, 2, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63))


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """One to eight changes: of bits, bytes, numbers; of blocks, removed, repeated or blanked; of the end."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not data:
            break
        at = rng.randrange(len(data))
        length = min(rng.choice((1, 2, 4, 8, 16, 64, 256)), len(data) - at)
        kind = rng.randrange(9)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            size, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
            number = rng.choice(_NUMBERS) % (1 << 8 * size)
            data[at : at + size] = number.to_bytes(size, order)
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            data[at : at + length] = bytes(length)
        elif kind == 6:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 7:
            other = rng.randrange(len(data) - length + 1)
            data[at : at + length] = data[other : other + length]
        else:
            del data[at:]
    return bytes(data)


def _value(rng: random.Random) -> Any:
    deep: Any = 1
    for _ in range(rng.choice((3, 3, 3000))):
        deep = [deep]
    choices: tuple[Any, ...] = (
        *(None, True, False, 0, 1, -1, 0.5, 1e308, -1e-300, float("nan"), float("inf"), -float("inf")),
        *(10**6, 2**63, -(2**63), 10**400, "", "x", "\x00", "ÿ" * 100, "1e5", "/etc/hosts", "../a"),
        *([], {}, [1, 2, 3], [None], {"a": 1}, {"": {}}, deep),
    )
    return rng.choice(choices)


def damage_tree(tree: Any, rng: random.Random) -> Any:
    """JSON data with one to three places replaced, removed, repeated, renamed or exchanged."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = [
            (node, key)
            for node in _nodes(tree)
            for key in (range(len(node)) if isinstance(node, list) else list(node))
        ]
        if not places:
            return _value(rng)
        kind = rng.randrange(8)
        if kind >= 5:
            places = [(node, key) for node, key in places if type(node[key]) in (int, float)] or places
        node, key = rng.choice(places)
        if kind == 1:
            del node[key]
        elif kind == 2 and isinstance(node, list):
            node.insert(key, node[key])
        elif kind == 3 and isinstance(node, dict):
            node[rng.choice((f"{key}x", key.upper(), ""))] = node.pop(key)
        elif kind == 4:
            other, other_key = rng.choice(places)
            with contextlib.suppress(KeyError, IndexError):
                node[key] = copy.deepcopy(other[other_key])
        elif kind >= 5 and type(node[key]) in (int, float):
            factor = rng.choice((-1, 2, 1.01, 1e6, 1e200))
            # A number too large, or none, stays.
            with contextlib.suppress(OverflowError, ValueError):
                node[key] = rng.choice((node[key] * factor, node[key] + 1, -node[key], str(node[key])))
        else:
            node[key] = _value(rng)
    return tree


def _nodes(tree: Any) -> Iterator[Any]:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict | list):
            yield node
            stack += node.values() if isinstance(node, dict) else node


# ---- formats ---------------------------------------------------------------------------------------------


def digest(*parts: Any) -> str:
    """Hash of arrays and plain data."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


def digest_struct(struct: Any) -> str:
    """Hash of a struct of arrays."""
    return digest(*(np.asarray(getattr(struct, field.name)) for field in fields(struct)))


class Format:
    """How to make, damage and read files of one format."""

    suffix = ""
    checked = False
    """Whether a checksum guards the content."""
    share = 1000
    """Damaged files in the whole campaign."""

    def seeds(self, folder: Path) -> list[Path]:
        """Good files."""
        raise NotImplementedError

    def damage(self, content: bytes, rng: random.Random) -> Mutation:
        """A damaged file."""
        return damage_bytes(content, rng), not self.checked

    def read(self, path: Path, output: Path) -> str:
        """Hash of all that the package takes from the file; `output` is a folder for what it writes."""
        raise NotImplementedError


class JsonFormat(Format):
    """Text of JSON data: half of the damage is done to the data, half to the bytes."""

    suffix = ".json"

    def damage(self, content: bytes, rng: random.Random) -> Mutation:
        if rng.random() < 0.3:
            return super().damage(content, rng)
        return json.dumps(damage_tree(json.loads(content), rng)).encode(), True


class Root(Format):
    """NanoAOD, through `topreco skim`."""

    suffix = ".root"
    share = 700

    def seeds(self, folder: Path) -> list[Path]:
        import inputs
        import uproot

        kinds = {"none": None, "zlib": uproot.ZLIB(4), "lz4": uproot.LZ4(4), "zstd": uproot.ZSTD(4)}
        return [inputs.nano_file(folder / f"{name}.root", 4, kind) for name, kind in kinds.items()]

    def read(self, path: Path, output: Path) -> str:
        return _skimmed(path, output)


class Run(Root):
    """NanoAOD, through `topreco run` with histograms and friend trees."""

    share = 150

    def read(self, path: Path, output: Path) -> str:
        from topreco.config import HistogramConfig, RunConfig
        from topreco.runs.run import run

        result = run(
            RunConfig(
                fileset={"tt": (str(path),)},
                methods=("ellipse_closest",),
                histograms=HistogramConfig(observables=("m_tt",)),
                output=output / "results",
                output_columns=output / "friends",
                columns_format="parquet",
            ),
            progress=False,
        )
        histograms = [result.histograms[name].view(flow=True).tobytes() for name in sorted(result.histograms)]
        return digest(result.cutflow, *histograms)


class Pepper(Format):
    """pepper's HDF5, through `topreco skim`."""

    suffix = ".h5"
    share = 700

    def seeds(self, folder: Path) -> list[Path]:
        import inputs

        return [inputs.pepper_hdf5(folder / "pepper.h5", 4)]

    def damage(self, content: bytes, rng: random.Random) -> Mutation:
        if rng.random() < 0.5:
            return super().damage(content, rng)
        import h5py

        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "a.h5"
            path.write_bytes(content)
            with h5py.File(path, "r+") as file:
                group = file[rng.choice(("events", "cutflags", "weight"))]
                kind = rng.randrange(4)
                if kind == 0:
                    group.attrs["form"] = json.dumps(damage_tree(json.loads(group.attrs["form"]), rng))[
                        :60_000
                    ]
                elif kind == 1:
                    group.attrs["length"] = json.dumps(_value(rng))
                else:
                    key = rng.choice(list(group))
                    values = group[key][()]
                    if kind == 2 and len(values):
                        with np.errstate(all="ignore"):
                            number = rng.choice((*_NUMBERS[:6], 5, -7, 2**31 - 1))
                            values[rng.randrange(len(values))] = np.array(number).astype(values.dtype)
                    else:
                        values = rng.choice(
                            (values[:-1], values.astype("f4"), values.astype("S"), values[None])
                        )
                    del group[key]
                    group[key] = values
            return path.read_bytes(), True

    def read(self, path: Path, output: Path) -> str:
        return _skimmed(path, output)


class PepperRoot(Pepper):
    """pepper's ROOT form, through `topreco skim`."""

    suffix = ".root"
    share = 200

    def seeds(self, folder: Path) -> list[Path]:
        import inputs

        return [inputs.pepper_root(folder / "pepper.root", 4)]

    def damage(self, content: bytes, rng: random.Random) -> Mutation:
        return Format.damage(self, content, rng)


class PepperWrite(Pepper):
    """pepper's HDF5, through `topreco pepper-write`."""

    share = 300

    def read(self, path: Path, output: Path) -> str:
        from topreco.config import PepperWriteConfig
        from topreco.input.pepper.read import iterate_pepper
        from topreco.input.pepper.write import write_tops
        from topreco.reconstruction.load import load

        copy = output / "copy.h5"
        write_tops(path, copy, load("ellipse_closest"), PepperWriteConfig(column="recot"))
        return digest([chunk.recot.to_list() for chunk in iterate_pepper(copy)])


def _skimmed(path: Path, output: Path) -> str:
    from topreco.config import SelectionConfig
    from topreco.core.skim import Skim
    from topreco.input.skimming import make_skim

    summary = make_skim([path], output / "skim.parquet", SelectionConfig(), progress=False)
    events, truth = Skim(summary.output).read()
    cutflow = summary.cutflow_file.read_text()
    return digest(digest_struct(events), digest_struct(truth) if truth else None, cutflow)


class SkimFormat(Format):
    """Skims, through the reader of training data."""

    suffix = ".parquet"
    checked = True
    share = 2000

    def seeds(self, folder: Path) -> list[Path]:
        import inputs

        return [
            inputs.skim_file(folder / "skim.parquet", 40),
            inputs.skim_file(folder / "two.parquet", 20, 10),
        ]

    def damage(self, content: bytes, rng: random.Random) -> Mutation:
        if rng.random() < 0.7:
            return super().damage(content, rng)
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pq.read_table(io.BytesIO(content))
        kind = rng.randrange(4)
        if kind == 0:
            found = pq.read_metadata(io.BytesIO(content)).metadata[b"topreco"]
            metadata = damage_tree(json.loads(found), rng)
            table = table.replace_schema_metadata({b"topreco": json.dumps(metadata).encode()})
        elif kind == 1:
            table = table.drop_columns([rng.choice(table.column_names)])
        else:
            name = rng.choice(table.column_names)
            others: list[Any] = [
                *(pa.nulls(len(table)), pa.array(["x"] * len(table)), pa.array([[1.0]] * len(table))),
                *(
                    pa.array([[]] * len(table), pa.list_(pa.float32())),
                    pa.array([0] * len(table), pa.int64()),
                ),
                pa.array([None, *([1.0] * (len(table) - 1))]),
                table.column(rng.choice(table.column_names)),
            ]
            table = table.set_column(table.column_names.index(name), name, rng.choice(others))
        stream = io.BytesIO()
        if not (table.schema.metadata or {}).get(b"topreco"):
            found = pq.read_metadata(io.BytesIO(content)).metadata[b"topreco"]
            table = table.replace_schema_metadata({b"topreco": found})
        pq.write_table(table, stream)
        return stream.getvalue(), True

    def read(self, path: Path, output: Path) -> str:
        from topreco.config import DataConfig
        from topreco.network.fit.data import read_training_data

        data = read_training_data(DataConfig(files=(path,)))
        arrays = (*data.objects, data.tops, data.weight, data.split)
        # Numbers that make no sense are refused here or in the first step.
        return digest(data.summary | {"files": len(data)}, *(tensor.numpy() for tensor in arrays))


class Model(Format):
    """Model files; half of them with a digest that fits the damaged content."""

    suffix = ".safetensors"
    checked = True
    share = 2000

    def seeds(self, folder: Path) -> list[Path]:
        import inputs

        return [
            inputs.model_file(folder / "one.safetensors"),
            inputs.model_file(folder / "two.safetensors", 2),
        ]

    def damage(self, content: bytes, rng: random.Random) -> Mutation:
        if rng.random() < 0.5:
            return super().damage(content, rng)
        import safetensors.torch as st

        from topreco.network.model_file import _digest

        tensors = st.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["topreco"])
        if rng.random() < 0.2:
            name = rng.choice(list(tensors))
            tensors[name] = rng.choice(
                (tensors[name].double(), tensors[name].reshape(-1), tensors[name] * 1e30)
            )
        else:
            metadata = damage_tree(metadata, rng)
        if isinstance(metadata, dict):
            with contextlib.suppress(RecursionError, ValueError):
                metadata["sha256"] = _digest(metadata, tensors)
        return st.save(tensors, {"topreco": json.dumps(metadata)}), True

    def read(self, path: Path, output: Path) -> str:
        from topreco.reconstruction.load import load

        pair = load(path)(_toys())
        return digest(pair.p4, pair.valid)


class Onnx(Format):
    """Exported models, as they are."""

    suffix = ".onnx"
    checked = True
    share = 1000

    def seeds(self, folder: Path) -> list[Path]:
        import inputs

        return [inputs.onnx_file(folder / "model.onnx")]

    def read(self, path: Path, output: Path) -> str:
        from topreco.reconstruction.load import load

        pair = load(path, threads=1)(_toys())
        return digest(pair.p4, pair.valid)


class ResealedOnnx(Onnx):
    """Exported models with a digest that fits the damaged content, which no accident makes."""

    share = 400

    def damage(self, content: bytes, rng: random.Random) -> Mutation:
        from topreco.network.export.reader import DIGEST_MARK

        body = damage_bytes(content[: -64 - len(DIGEST_MARK)], rng) + DIGEST_MARK
        return body + hashlib.sha256(body).hexdigest().encode(), True


class Yaml(Format):
    """Configurations of all commands."""

    suffix = ".yaml"
    share = 1500

    def seeds(self, folder: Path) -> list[Path]:
        from topreco.config import shipped_folder

        names = ("dilepton", "run", "simulate", "skim-tight", "systematics/flat", "cluster/dask-slurm")
        return [shipped_folder() / f"{name}.yaml" for name in names]

    def damage(self, content: bytes, rng: random.Random) -> Mutation:
        if rng.random() < 0.5:
            return super().damage(content, rng)
        import yaml

        # JSON is YAML.
        return json.dumps(damage_tree(yaml.safe_load(content), rng)).encode(), True

    def read(self, path: Path, output: Path) -> str:
        from topreco import config

        kinds = {
            *(config.TrainConfig, config.RunConfig, config.SimulationConfig),
            *(config.SkimConfig, config.PepperWriteConfig),
        }
        answers, errors = [], []
        for kind in sorted(kinds, key=lambda kind: kind.__name__):
            try:
                answers.append(config.dump_config(config.load_config(kind, path)))
            except TopRecoError as error:
                errors.append(error)
        if not answers:
            raise errors[0]
        return digest(answers)


class ResponseFormat(JsonFormat):
    """Response of the detector, through the smearing method."""

    share = 700

    def seeds(self, folder: Path) -> list[Path]:
        import inputs

        path = folder / "response.json"
        path.write_text(json.dumps(inputs.response_payload()))
        return [path]

    def read(self, path: Path, output: Path) -> str:
        from topreco.config import SolverConfig
        from topreco.reconstruction.load import load

        pair = load("sonnenschein", solvers=SolverConfig(response=path, n_draws=5))(_toys())
        if not np.isfinite(pair.p4[pair.valid]).all():
            raise AssertionError("valid answers are not finite")
        return digest(pair.p4, pair.valid)


class Payload(JsonFormat):
    """correctionlib payloads of systematic variations."""

    share = 700

    def seeds(self, folder: Path) -> list[Path]:
        import inputs

        path = folder / "payload.json"
        path.write_text(json.dumps(inputs.correction_payload()))
        return [path]

    def read(self, path: Path, output: Path) -> str:
        from topreco.config import ObjectSource, SelectionConfig, SystematicsConfig
        from topreco.input.systematics import check_corrections, variations

        scale = ObjectSource(
            object="jet",
            kind="factor",
            file=path,
            correction="scale",
            inputs={"kind": {"up": "up", "down": "down"}, "eta": "eta", "pt": "pt"},
        )
        uncertainty = ObjectSource(
            object="jet", file=path, correction="uncertainty", inputs={"eta": "eta", "pt": "pt"}
        )
        config = SystematicsConfig(objects={"scale": scale, "uncertainty": uncertainty})
        check_corrections(config)
        found = [
            (name, objects.jets.pt.tobytes())
            for name, objects in variations(_nano_events(), SelectionConfig(), config)
        ]
        return digest(found)


class CertifiedLumis(JsonFormat):
    """Golden JSON of certified luminosity sections, through `topreco skim`."""

    share = 400

    def seeds(self, folder: Path) -> list[Path]:
        path = folder / "golden.json"
        path.write_text(json.dumps({"1": [[1, 20], [30, 40]], "2": [[5, 6]]}))
        return [path]

    def read(self, path: Path, output: Path) -> str:
        from topreco.input.event_cuts import _lumi_mask

        mask = _lumi_mask(path)
        return digest(np.asarray(mask(np.array([1, 1, 2], "u4"), np.array([1, 25, 5], "u4"))))


_CHANNELS = {"vector_channels": 2, "scalar_channels": 4, "heads": 1}


class State(Format):
    """Training state, through the training that it resumes."""

    suffix = ".ckpt"
    share = 300
    checked = True

    def seeds(self, folder: Path) -> list[Path]:
        import inputs

        from topreco.network.fit import loop as training

        self.skim = inputs.skim_file(folder / "train.parquet", 64)
        self.whole = folder / "whole"

        class Stopped(Exception):  # noqa: N818
            pass

        write = training._write_state

        def stop(output: Path, state: Any) -> None:
            write(output, state)
            raise Stopped

        training._write_state = stop
        with contextlib.suppress(Stopped):
            training.train(self._config(folder / "whole"), progress=False)
        training._write_state = write
        path = folder / "state.ckpt"
        (self.whole / "state.ckpt").replace(path)
        return [path]

    def _config(self, output: Path) -> Any:
        from topreco.config import TrainConfig

        return TrainConfig.model_validate(
            {
                "model": {
                    "backbone": {"kind": "lgatr_slim", "blocks": 1} | _CHANNELS,
                    "tokens": {"max_jets": 4},
                },
                "data": {"files": [self.skim]},
                "epochs": 2,
                "batch_size": 32,
                "accelerator": "cpu",
                "threads": 1,
                "output": output,
            }
        )

    def read(self, path: Path, output: Path) -> str:
        from topreco.network.fit.loop import train

        folder = path.with_name("training")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path.rename(folder / "state.ckpt")
        try:
            return digest(train(self._config(folder), progress=False).read_bytes())
        except TopRecoError:
            left = {each.name for each in folder.iterdir()} - {"state.ckpt"}
            if left:
                raise AssertionError(f"left behind: {left}") from None
            raise


class Canary:
    """A pickle that runs code."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


class Pickles(Format):
    """Pickles that run code, damaged or not, under the name of every format."""

    share = 300
    checked = False

    def seeds(self, folder: Path) -> list[Path]:
        import torch

        path = folder / "pickles"
        path.mkdir()
        torch.save({"version": 2, "config": Canary()}, path / "torch")
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            (path / str(protocol)).write_bytes(pickle.dumps({"topreco": Canary()}, protocol))
        others: dict[str, Format] = {
            "safetensors": Model(), "onnx": Onnx(), "parquet": SkimFormat(), "ckpt": State(), "root": Root(),
            "h5": Pepper(), "yaml": Yaml(), "json": Payload(), "golden": CertifiedLumis(),
        }  # fmt: skip
        others["ckpt"].seeds(folder)
        self.readers = others
        return sorted(path.iterdir())

    def damage(self, content: bytes, rng: random.Random) -> Mutation:
        self.turn = rng.choice(list(self.readers))
        # Little may be left of a damaged one, and nothing at all is a good configuration.
        return (content, False) if rng.random() < 0.5 else (damage_bytes(content, rng), True)

    def read(self, path: Path, output: Path) -> str:
        reader = self.readers[self.turn]
        named = path.with_suffix(reader.suffix)
        path.rename(named)
        try:
            return reader.read(named, output)
        finally:
            named.unlink(missing_ok=True)


FORMATS: dict[str, Callable[[], Format]] = {
    "root": Root,
    "run": Run,
    "pepper": Pepper,
    "pepper-root": PepperRoot,
    "pepper-write": PepperWrite,
    "skim": SkimFormat,
    "safetensors": Model,
    "onnx": Onnx,
    "onnx-resealed": ResealedOnnx,
    "yaml": Yaml,
    "response": ResponseFormat,
    "corrections": Payload,
    "golden-json": CertifiedLumis,
    "state": State,
    "pickles": Pickles,
}


@cache
def _toys() -> Any:
    from topreco.core.events import toy_events

    return toy_events(6, max_jets=4)


@cache
def _nano_events() -> Any:
    import inputs

    from topreco.input.nano import open_events

    path = inputs.nano_file(Path("nano.root"), 4)
    return open_events(path)


# ---- child -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What became of one damaged file."""

    outcome: str
    detail: str = ""


def judge(form: Format, content: bytes, may_change: bool, expected: set[str], number: int) -> Verdict:
    """Read one damaged file in the current folder."""
    # Some readers keep what they have read under a name.
    path, output = Path.cwd() / f"damaged{number}{form.suffix}", Path("output")
    path.write_bytes(content)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    verdict = Verdict("same")
    try:
        answer = form.read(path, output)
        if answer not in expected:
            verdict = (
                Verdict("changed") if may_change else Verdict("defect", "another answer despite a checksum")
            )
    except TopRecoError as error:
        verdict = Verdict("refused", str(error))
        if "\n" in str(error) or not str(error).strip():
            verdict = Verdict("defect", f"error of several lines or none: {error}")
        # The markers of claimed folders stay: they name a configuration and hold no results.
        left = [each for each in output.rglob("*") if each.is_file() and each.name != "topreco.json"]
        if left:
            verdict = Verdict("defect", f"{left[0].name} left after: {error}")
    except Exception:
        verdict = Verdict("defect", traceback.format_exc())
    if isinstance(form, Pickles):
        verdict = Verdict(verdict.outcome, f"as {form.turn}: {verdict.detail}")
    if Path("executed").exists():
        verdict = Verdict("defect", "code in the file was executed")
        Path("executed").unlink()
    path.unlink(missing_ok=True)
    return verdict


def mutation(form: Format, name: str, seeds: list[bytes], seed: int, number: int) -> Mutation:
    """The damaged file of a number."""
    rng = random.Random(f"{name} {seed} {number}")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # for what is nested deeply
    try:
        return form.damage(rng.choice(seeds), rng)
    finally:
        sys.setrecursionlimit(limit)


def child(jobs: list[dict[str, Any]]) -> None:
    """Work through jobs; what is said on standard output is for the parent."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    import topreco.runs.run  # noqa: F401 - before memory is counted

    home = Path.cwd()
    forms: dict[str, tuple[Format, list[bytes], set[str]]] = {}
    for job in jobs:
        name = job["format"]
        if name not in forms:
            form = FORMATS[name]()
            folder = home / name
            (folder / "seeds").mkdir(parents=True)
            os.chdir(folder)
            seeds = [path.read_bytes() for path in form.seeds(folder / "seeds")]
            expected = set()
            if not isinstance(form, Pickles):
                for content in seeds:
                    path = Path.cwd() / f"good{len(expected)}{form.suffix}"
                    output = Path("output")
                    shutil.rmtree(output, ignore_errors=True)
                    output.mkdir()
                    path.write_bytes(content)
                    expected.add(form.read(path, output))
            forms[name] = (form, seeds, expected)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        form, seeds, expected = forms[name]
        os.chdir(home / name)
        for number in job["numbers"]:
            out.write(json.dumps({"format": name, "number": number, "outcome": None}) + "\n")
            content, may_change = mutation(form, name, seeds, job["seed"], number)
            verdict = judge(form, content, may_change, expected, number)
            out.write(
                json.dumps(
                    {"format": name, "number": number, "outcome": verdict.outcome, "detail": verdict.detail}
                )
                + "\n"
            )


# ---- parent ----------------------------------------------------------------------------------------------


def campaign(numbers: dict[str, list[int]], seed: int, verbose: bool = False) -> dict[str, Any]:
    """Read the damaged files of these numbers; child processes that die or hang are replaced."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in numbers}
    seconds: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    messages: dict[str, set[str]] = {name: set() for name in numbers}
    todo = {name: list(those) for name, those in numbers.items()}
    while any(todo.values()):
        jobs = [{"format": name, "numbers": those, "seed": seed} for name, those in todo.items() if those]
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", __file__, "--child", json.dumps(jobs)],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path()},
                text=True,
            )
            lines: queue.Queue[str] = queue.Queue()
            thread = threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True)
            thread.start()
            current: dict[str, Any] | None = None
            bad = None
            started, busy = time.monotonic(), 0.0
            while True:
                try:
                    # Between two files there may be the imports, or the making of good files.
                    reading = current is not None and current["outcome"] is None
                    line = lines.get(timeout=TIMEOUT if reading else 10 * TIMEOUT)
                    busy = cpu_seconds(process.pid)
                except queue.Empty:
                    # On a machine that others use, a process may wait for its turn.
                    waited = time.monotonic() - started
                    if cpu_seconds(process.pid) - busy < TIMEOUT / 2 and waited < 20 * TIMEOUT:
                        continue
                    process.send_signal(signal.SIGABRT)  # it says where it hangs
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(10)
                    bad = "hang"
                    break
                if not line:
                    bad = "crash" if process.wait() else None
                    break
                current = json.loads(line)
                if current["outcome"] is None:
                    continue
                name, number, outcome = current["format"], current["number"], current["outcome"]
                todo[name].remove(number)
                counts[name][outcome] += 1
                seconds[name] += time.monotonic() - started
                started = time.monotonic()
                if outcome == "refused":
                    messages[name].add(current["detail"])
                if outcome in BAD:
                    failures.append(current)
                if verbose:
                    print(name, number, outcome, current["detail"][-2000:])
            process.kill()
            process.wait()
            if bad:
                log.seek(0)
                said = log.read()[-4000:]
                if current is None or current["outcome"] is not None:
                    raise SystemExit(f"the child failed between two files:\n{said}")
                name, number = current["format"], current["number"]
                todo[name].remove(number)
                if bad == "hang" and LIBRARY.search(said):
                    bad = "library"
                counts[name][bad] += 1
                if bad in BAD:
                    failures.append({"format": name, "number": number, "outcome": bad, "detail": said})
    return {
        "seed": seed,
        "formats": {
            name: {outcome: counts[name][outcome] for outcome in OUTCOMES}
            | {"n": sum(counts[name].values()), "seconds": round(seconds[name], 1)}
            for name in numbers
        },
        "failures": failures,
        "distinct_messages": {name: len(each) for name, each in messages.items()},
    }


def cpu_seconds(pid: int) -> float:
    """Processor time of a process; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _pump(stream: Any, lines: "queue.Queue[str]") -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _python_path() -> str:
    own = str(Path(__file__).parent)
    return os.pathsep.join([own, *filter(None, [os.environ.get("PYTHONPATH")])])


def main() -> int:
    """Run the campaign, print a table and how to repeat what failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "formats", nargs="*", metavar="FORMAT", help=f"of {', '.join(FORMATS)}; all by default"
    )
    parser.add_argument("--n", type=int, help="damaged files of each format")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the whole campaign")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this one alone")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(json.loads(arguments.child))
        return 0
    if unknown := set(arguments.formats) - set(FORMATS):
        parser.error(f"no format {', '.join(unknown)}; there are {', '.join(FORMATS)}")
    numbers = {
        name: [arguments.only]
        if arguments.only is not None
        else list(range(arguments.n or round(FORMATS[name]().share * arguments.scale)))
        for name in arguments.formats or FORMATS
    }
    result = campaign(numbers, arguments.seed, arguments.verbose)
    print(f"{'format':15}" + "".join(f"{name:>9}" for name in ("n", *OUTCOMES, "seconds")))
    for name, row in result["formats"].items():
        print(f"{name:15}" + "".join(f"{row[column]:9}" for column in ("n", *OUTCOMES, "seconds")))
    print(f"{sum(row['n'] for row in result['formats'].values())} damaged files")
    for failure in result["failures"]:
        again = f"{failure['format']} --seed {arguments.seed} --only {failure['number']} -v"
        print(f"\n{failure['outcome']}: python scripts/faults/fuzz.py {again}\n{failure['detail'][-1500:]}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return len({failure["format"] for failure in result["failures"]})


if __name__ == "__main__":
    sys.exit(main())
