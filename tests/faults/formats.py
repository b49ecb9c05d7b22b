"""File formats that topreco reads: good files, one way to damage them, and what reads them."""

import contextlib
import faulthandler
import hashlib
import io
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import traceback
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import good_files
import numpy as np
from isolated import taken

from topreco import config as topreco_config
from topreco.core.errors import TopRecoError
from topreco.core.events import toy_events

SECONDS = 60
"""Processor time that one file may take; a process that waits may take twenty times as long."""
MEMORY = 2 << 30

_NUMBERS = (0, 1, -1, 2, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63))
_VALUES = (
    *("null", "true", "false", "0", "1", "-1", "0.5", "1e308", "-1e-300", "NaN", "Infinity", "-Infinity"),
    *("1000000", str(2**63), str(-(2**63)), "1" + "0" * 400, '""', '"x"', r'"\u0000"', '"/etc/hosts"'),
    *('"1e5"', '"../a"', f'"{"ÿ" * 100}"', "[]", "{}", "[1, 2, 3]", "[null]", '{"a": 1}', '{"": {}}'),
    *("[[[1]]]", "[" * 3000 + "1" + "]" * 3000),
)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[\d.e+-]*|\w[\w./-]*')
"""Strings, numbers and names in JSON or YAML."""


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Some changes of bits, bytes, numbers, blocks or the end; in text, mostly of its words and numbers."""
    data = bytearray(content)
    if b"\0" not in content and rng.random() < 0.8:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            _change_word(data, rng)
        return bytes(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not data:
            break
        at = rng.randrange(len(data))
        length = min(rng.choice((1, 2, 4, 8, 16, 64, 256)), len(data) - at)
        size = rng.choice((1, 2, 4, 8))
        number = (rng.choice(_NUMBERS) % (1 << 8 * size)).to_bytes(size, rng.choice(("big", "little")))
        other = rng.randrange(len(data) - length + 1)
        match rng.randrange(9):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.randrange(256)
            case 2:
                data[at : at + size] = number
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                data[at : at + length] = bytes(length)
            case 6:
                data[at : at + length] = rng.randbytes(length)
            case 7:
                data[at : at + length] = data[other : other + length]
            case 8:
                del data[at:]
    return bytes(data)


def _change_word(data: bytearray, rng: random.Random) -> None:
    text = data.decode(errors="replace")
    words = list(_WORD.finditer(text))
    numbers = [word for word in words if word[0].lstrip("-")[0].isdigit()]
    if not words:
        return
    word = rng.choice(numbers if numbers and rng.random() < 0.5 else words)
    if text[word.end() :].startswith(":"):
        keys = [each[0] for each in words if text[each.end() :].startswith(":")]
        new = [rng.choice(keys), word[0].upper(), '""', '"x"']
    else:
        new = [*_VALUES, rng.choice(words)[0], "", f"{word[0]}, {word[0]}", f"{word[0]}x"]
    with contextlib.suppress(ValueError):
        scaled = float(word[0]) * rng.choice((-1, 2, 1.01, 1e6, 1e200))
        new += len(new) * [f"{scaled:.0f}" if word[0].lstrip("-").isdigit() else str(scaled)]
    data[:] = (text[: word.start()] + rng.choice(new) + text[word.end() :]).encode()


def digest(*parts) -> str:
    """Hash of arrays and plain data."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()


# ---- readers: hash of all that topreco takes from a file -------------------------------------------------


def read_skimmed(path, output):
    from topreco.core.skim import Skim
    from topreco.input.skimming import make_skim

    summary = make_skim([path], output / "skim.parquet", topreco_config.SelectionConfig(), progress=False)
    structs = [struct for struct in Skim(summary.output).read() if struct is not None]
    arrays = [np.asarray(getattr(struct, field.name)) for struct in structs for field in fields(struct)]
    return digest(*arrays, summary.cutflow_file.read_text())


def read_run(path, output):
    from topreco.runs.run import run

    settings = topreco_config.RunConfig(
        fileset={"tt": (str(path),)},
        methods=("ellipse_closest",),
        histograms={"observables": ("m_tt",)},
        output=output / "results",
        output_columns=output / "friends",
        columns_format="parquet",
    )
    result = run(settings, progress=False)
    histograms = [result.histograms[name].view(flow=True).tobytes() for name in sorted(result.histograms)]
    return digest(result.cutflow, *histograms)


def read_pepper_write(path, output):
    from topreco.input.pepper.read import iterate_pepper
    from topreco.input.pepper.write import write_tops
    from topreco.reconstruction.load import load

    settings = topreco_config.PepperWriteConfig(column="recot")
    write_tops(path, output / "copy.h5", load("ellipse_closest"), settings)
    return digest([chunk.recot.to_list() for chunk in iterate_pepper(output / "copy.h5")])


def read_training_data(path, output):
    from topreco.network.fit.data import read_training_data
    from topreco.network.tasks.columns import top_columns

    data = read_training_data(topreco_config.DataConfig(files=(path,)), top_columns)
    arrays = (*data.columns.values(), data.weight, data.split)
    return digest(data.summary | {"files": len(data)}, *(tensor.numpy() for tensor in arrays))


def read_model(path, output):
    from topreco.reconstruction.load import load

    pair = load(path, threads=1)(_toys())
    return digest(pair.p4, pair.valid)


def read_configuration(path, output):
    answers, errors = [], []
    for kind in ("PepperWriteConfig", "RunConfig", "SimulationConfig", "SkimConfig", "TrainConfig"):
        try:
            found = topreco_config.load_config(getattr(topreco_config, kind), path)
            answers.append(topreco_config.dump_config(found))
        except TopRecoError as error:
            errors.append(error)
    if not answers:
        raise errors[0]
    return digest(answers)


def read_response(path, output):
    from topreco.reconstruction.load import load

    solvers = topreco_config.SolverConfig(response=path, n_draws=5)
    pair = load("sonnenschein", solvers=solvers)(_toys())
    assert np.isfinite(pair.p4[pair.valid]).all(), "valid predictions are not finite"
    return digest(pair.p4, pair.valid)


def read_corrections(path, output):
    from topreco.input.systematics import check_corrections, variations

    inputs = {"eta": "eta", "pt": "pt"}
    scale = {"kind": "factor", "inputs": inputs | {"kind": {"up": "up", "down": "down"}}}
    sources = {
        name: {"object": "jet", "file": path, "correction": name} | source
        for name, source in {"scale": scale, "uncertainty": {"inputs": inputs}}.items()
    }
    settings = topreco_config.SystematicsConfig.model_validate({"objects": sources})
    check_corrections(settings)
    varied = variations(_nano_events(), topreco_config.SelectionConfig(), settings)
    return digest([(name, objects.jets.pt.tobytes()) for name, objects in varied])


def read_golden_json(path, output):
    from topreco.input.skimming import make_skim

    selection = topreco_config.SelectionConfig(cuts={"golden_json": path})
    summary = make_skim([_recorded()], output / "skim.parquet", selection, progress=False)
    return digest(summary.cutflow_file.read_text())


def _train_config(skim, output):
    backbone = {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 2, "scalar_channels": 4, "heads": 1}
    return topreco_config.TrainConfig.model_validate(
        {
            "model": {"backbone": backbone, "tokens": {"max_jets": 4}},
            "data": {"files": [skim]},
            "epochs": 2,
            "batch_size": 32,
            "accelerator": "cpu",
            "threads": 1,
            "output": output,
        }
    )


def good_state(folder):
    """State of a training that was interrupted after its first epoch."""
    from topreco.network.train import train

    replace = os.replace

    def interrupt(source, target):
        replace(source, target)
        if Path(target).name == "state.ckpt":
            raise KeyboardInterrupt

    os.replace = interrupt
    skim = good_files.skim_file(folder.parent / "train.parquet", 64)
    with contextlib.suppress(KeyboardInterrupt):
        train(_train_config(skim, folder / "training"), progress=False)
    os.replace = replace
    return [folder / "training" / "state.ckpt"]


def read_state(path, output):
    from topreco.network.train import train

    # Where `good_state` trained: the name of the folder is part of the state.
    folder = Path("good", "training").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path.rename(folder / "state.ckpt")
    config = _train_config(Path("train.parquet").absolute(), folder)
    try:
        return digest(train(config, progress=False).read_bytes())
    except TopRecoError as error:
        assert [each.name for each in folder.iterdir()] == ["state.ckpt"], f"more was left after: {error}"
        raise


@cache
def _toys():
    return toy_events(6, max_jets=4)


@cache
def _nano_events():
    from topreco.input.nano import open_events

    return open_events(good_files.nano_file(Path("nano.root"), 4))


@cache
def _recorded():
    return good_files.nano_file(Path("recorded.root").absolute(), 4, simulated=False)


# ---- damage that a checksum or a container would hide ----------------------------------------------------


def damage_pepper(content, rng):
    """HDF5 with a damaged form or length, or with a buffer that has other numbers or another type."""
    import h5py

    file = io.BytesIO(content)
    with h5py.File(file, "r+") as tree:
        group = tree[rng.choice(("events", "cutflags", "weight"))]
        key = rng.choice(list(group))
        values = group[key][()]
        match rng.randrange(4):
            case 0:
                group.attrs["form"] = mutate(group.attrs["form"].encode(), rng)[:60_000].replace(b"\0", b"")
            case 1:
                group.attrs["length"] = mutate(group.attrs["length"].encode(), rng)[:60_000].replace(
                    b"\0", b""
                )
            case 2 if len(values):
                number = np.array(rng.choice((*_NUMBERS[:6], 5, -7, 2**31 - 1)))
                values[rng.randrange(len(values))] = number.astype(values.dtype)
            case _:
                values = rng.choice((values[:-1], values.astype("f4"), values.astype("S"), values[None]))
        del group[key]
        group[key] = values
    return file.getvalue()


def damage_skim(content, rng):
    """Parquet with damaged metadata, or with a column that is missing or has other types, nulls or shapes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    metadata = pq.read_metadata(io.BytesIO(content)).metadata
    n, name = len(table), rng.choice(table.column_names)
    match rng.randrange(4):
        case 0:
            metadata = {b"topreco": mutate(metadata[b"topreco"], rng)}
        case 1:
            table = table.drop_columns([name])
        case _:
            others = [
                *(pa.nulls(n), pa.array(["x"] * n), pa.array([[1.0]] * n), pa.array([0] * n, pa.int64())),
                *(pa.array([[]] * n, pa.list_(pa.float32())), pa.array([None, *([1.0] * (n - 1))])),
                table.column(rng.choice(table.column_names)),
            ]
            table = table.set_column(table.column_names.index(name), name, rng.choice(others))
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), stream)
    return stream.getvalue()


def damage_model(content, rng):
    """Model file with damaged metadata or another tensor, and with the digest that fits."""
    import safetensors.torch

    from topreco.network.model_file import _digest

    tensors = safetensors.torch.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    text = header["__metadata__"]["topreco"]
    name = rng.choice(list(tensors))
    if rng.random() < 0.2:
        tensors[name] = rng.choice((tensors[name].double(), tensors[name].reshape(-1), tensors[name] * 1e30))
    else:
        text = mutate(text.encode(), rng).decode(errors="replace")
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        metadata = json.loads(text)
        text = json.dumps(metadata | {"sha256": _digest(metadata, tensors)})
    return safetensors.torch.save(tensors, {"topreco": text})


def damage_onnx(content, rng):
    """Exported model with the digest that fits, which no accident makes."""
    from topreco.network.export.reader import DIGEST_MARK

    body = mutate(content[: -64 - len(DIGEST_MARK)], rng) + DIGEST_MARK
    return body + hashlib.sha256(body).hexdigest().encode()


# ---- formats ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """Good files of a format, which are made in a folder, and what reads them."""

    share: int
    """Damaged files in the whole campaign."""
    suffix: str
    good: Callable
    read: Callable
    checked: bool = False
    """True if a checksum guards the content: no damaged file then gives another answer."""
    damage: Callable | None = None
    """Damage of half of the files that the checksum does not show."""


class _Canary:
    """A pickle that runs code."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def _good_pickles(folder):
    import torch

    torch.save({"version": 2, "config": _Canary()}, folder / "torch")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (folder / str(protocol)).write_bytes(pickle.dumps({"topreco": _Canary()}, protocol))
    found = sorted(folder.iterdir())
    good_state(folder)  # what a training that resumes reads besides
    return found


def _read_pickle(path, output):
    """Read a pickle under the name of one of the formats."""
    names = ("safetensors", "onnx", "skim", "state", "root", "pepper", "yaml", "corrections", "golden-json")
    form = FORMATS[names[zlib.crc32(path.read_bytes()) % len(names)]]
    return form.read(path.rename(path.with_suffix(form.suffix)), output)


def _good_nano(folder):
    import uproot

    kinds = {"none": None, "zlib": uproot.ZLIB(4), "lz4": uproot.LZ4(4), "zstd": uproot.ZSTD(4)}
    return [good_files.nano_file(folder / f"{name}.root", 4, kind) for name, kind in kinds.items()]


def _good_skims(folder):
    return [
        good_files.skim_file(folder / "one.parquet", 40),
        good_files.skim_file(folder / "two.parquet", 20, 10),
    ]


def _good_models(folder):
    return [good_files.model_file(folder / f"{n}.safetensors", n) for n in (1, 2)]


def _good_configurations(folder):
    names = ("dilepton", "run", "simulate", "skim-tight", "systematics/flat", "cluster/dask-slurm")
    return [topreco_config.shipped_folder() / f"{name}.yaml" for name in names]


def _good_json(content):
    def write(folder):
        path = folder / "good.json"
        path.write_text(json.dumps(content))
        return [path]

    return write


def _good_pepper(folder):
    return [good_files.pepper_hdf5(folder / "pepper.h5", 4)]


def _good_onnx(folder):
    return [good_files.onnx_file(folder / "model.onnx")]


_LUMIS = {"1": [[1, 2], [4, 40]], "2": [[5, 6]]}
FORMATS = {
    "root": Format(700, ".root", _good_nano, read_skimmed),
    "run": Format(150, ".root", _good_nano, read_run),
    "pepper": Format(700, ".h5", _good_pepper, read_skimmed, damage=damage_pepper),
    "pepper-root": Format(
        200, ".root", lambda folder: [good_files.pepper_root(folder / "pepper.root", 4)], read_skimmed
    ),
    "pepper-write": Format(300, ".h5", _good_pepper, read_pepper_write, damage=damage_pepper),
    "skim": Format(2000, ".parquet", _good_skims, read_training_data, checked=True, damage=damage_skim),
    "safetensors": Format(2000, ".safetensors", _good_models, read_model, checked=True, damage=damage_model),
    "onnx": Format(1000, ".onnx", _good_onnx, read_model, checked=True),
    "onnx-resealed": Format(400, ".onnx", _good_onnx, read_model, damage=damage_onnx),
    "yaml": Format(1500, ".yaml", _good_configurations, read_configuration),
    "response": Format(700, ".json", _good_json(good_files.response_payload()), read_response),
    "corrections": Format(700, ".json", _good_json(good_files.correction_payload()), read_corrections),
    "golden-json": Format(400, ".json", _good_json(_LUMIS), read_golden_json),
    "state": Format(300, ".ckpt", good_state, read_state, checked=True),
    "pickles": Format(300, "", _good_pickles, _read_pickle),
}


# ---- the process that reads them -------------------------------------------------------------------------


def damaged(name: str, good: list[bytes], seed: int, number: int) -> tuple[bytes, bool]:
    """The damaged file of a number, and whether it may be read as something else."""
    form, rng = FORMATS[name], random.Random(f"{name} {seed} {number}")
    content = rng.choice(good)
    if name == "pickles" and rng.random() < 0.5:
        # Whole, but for bytes after its end, by which another reader gets it.
        return content + rng.randbytes(4), False
    if form.damage is not None and (rng.random() < 0.5 or not form.checked):
        return form.damage(content, rng), True
    return mutate(content, rng), not form.checked


def read_damaged(name: str, seed: int, numbers: range, folder: Path, results: Path) -> None:
    """Read damaged files and write a line of JSON for each: before it is read, and with what came of it."""
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    os.chdir(folder)
    shutil.rmtree("good", ignore_errors=True)
    Path("good").mkdir()
    form = FORMATS[name]
    good = [path.read_bytes() for path in form.good(Path("good").absolute())]
    expected = set()
    if name != "pickles":
        expected = {_read(form, content, f"good{i}")[1] for i, content in enumerate(good)}
    resource.setrlimit(resource.RLIMIT_AS, (taken() + MEMORY, resource.RLIM_INFINITY))
    faulthandler.register(signal.SIGXCPU, chain=True)
    with results.open("a") as file:
        for number in numbers:
            print(json.dumps([number, None, ""]), file=file, flush=True)
            used = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(used.ru_utime + used.ru_stime) + SECONDS
            resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
            faulthandler.dump_traceback_later(20 * SECONDS, exit=True)
            content, may_change = damaged(name, good, seed, number)
            outcome, detail = _read(form, content, f"damaged{number}")
            if outcome == "read":
                outcome = "same" if detail in expected else "changed" if may_change else "defect"
            print(json.dumps([number, outcome, detail]), file=file, flush=True)
    faulthandler.cancel_dump_traceback_later()


def _read(form: Format, content: bytes, name: str) -> tuple[str, str]:
    """Read one file: "read" and the answer, "refused" and the error, or "defect" and what is wrong."""
    # The name is another each time, since some readers keep what they have read under it.
    path, output = Path(f"{name}{form.suffix}").absolute(), Path("output").absolute()
    path.write_bytes(content)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    try:
        outcome = "read", form.read(path, output)
    except TopRecoError as error:
        outcome = "refused", str(error)
        if "\n" in str(error) or not str(error).strip():
            outcome = "defect", f"error of several lines or none: {error}"
        # The markers of claimed folders stay: they name a configuration and hold no results.
        left = [each for each in output.rglob("*") if each.is_file() and each.name != "topreco.json"]
        if left:
            outcome = "defect", f"{left[0].name} left after: {error}"
    except Exception:
        outcome = "defect", traceback.format_exc()
    if Path("executed").exists():
        Path("executed").unlink()
        outcome = "defect", "code in the file was executed"
    for each in path.parent.glob(f"{name}.*"):
        each.unlink()
    path.unlink(missing_ok=True)
    return outcome
