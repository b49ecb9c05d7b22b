"""The model file: weights of all folds and their description in one `.safetensors` file.

The header's entry ``topreco`` is JSON:

===============  =========================================================================================
``format``       version of the format
``encoder``      configuration of the encoder, schema of its inputs, and the schema's digest
``task``         kind and configuration of the task, schema of its outputs, and the schema's digest
``parent``       name, digest, training data and parent of the model from which the training started, null
                 without one
``folds``        number of networks, whose tensors begin with ``fold0.``, ``fold1.``, …
``training``     configuration of the training
``data``         summary of the training data
``metrics``      of the best epochs and of the test events
``versions``     of the packages that made the file
``sha256``       digest over all this and the weights, so that damage anywhere is noticed
===============  =========================================================================================

Reading a model executes nothing.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from topreco.config import ConfigError, EncoderConfig, build_config
from topreco.core.errors import TopRecoError, first_line
from topreco.core.files import complete_file
from topreco.core.versions import versions
from topreco.network.tasks.registry import MODELS
from topreco.network.tokens import encoder_schema, schema_hash

FORMAT_VERSION = 2


class ModelFileError(TopRecoError):
    """A file that is not a usable model."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained model.

    Attributes
    ----------
    kind
        Task of the networks, a key of `topreco.network.tasks.registry.MODELS`.
    networks
        One network per fold, in evaluation mode, on the CPU.
    metadata
        Description in the file, plain JSON data.
    config
        Configuration of the networks.
    """

    kind: str
    networks: tuple[Any, ...]
    metadata: dict[str, Any]
    config: Any


def save_model(path: str | Path, networks: Sequence[Any], metadata: Mapping[str, Any]) -> None:
    """Write a model file, whole or not at all.

    Equal networks and metadata give equal bytes: there is no date in the file.

    Parameters
    ----------
    path
        File to write.
    networks
        One network per fold, all of one kind of `MODELS` and one configuration.
    metadata
        Plain JSON data to store beside the description of the networks. Absolute paths are cut down to
        the name of the file, NaN becomes null.

    Raises
    ------
    ValueError
        If there is no network, or their configurations differ.
    TopRecoError
        If the folder cannot be written to.
    """
    if not networks or any(network.config != networks[0].config for network in networks):
        raise ValueError(f"{path}: one or more networks of one configuration expected, got {len(networks)}")
    software = versions()
    described = (
        {"parent": None}
        | _plain(metadata)
        | describe_model(networks[0].kind, networks[0].config)
        | {
            "format": FORMAT_VERSION,
            "created_by": f"topreco {software['topreco']}",
            "versions": software,
            "folds": len(networks),
        }
    )
    tensors = {
        f"{_prefix(fold)}{name}": tensor.detach().cpu().contiguous().clone()
        for fold, network in enumerate(networks)
        for name, tensor in network.state_dict().items()
    }
    described["sha256"] = _digest(described, tensors)
    with complete_file(path) as temporary:
        # One entry, since safetensors would write several in random order; and not save_file, which lets
        # nobody but the owner read the file.
        temporary.write_bytes(save(tensors, {"topreco": _canonical(described)}))


def describe_model(kind: str, config: EncoderConfig) -> dict[str, Any]:
    """Encoder and task of a configuration with their schemas, as in the file."""
    outputs = MODELS[kind].schema(config)
    inputs = encoder_schema(config)
    whole = config.model_dump(mode="json")
    return {
        "encoder": {
            "config": {name: whole[name] for name in EncoderConfig.model_fields},
            "schema": inputs,
            "schema_hash": schema_hash(inputs),
        },
        "task": {
            "kind": kind,
            "config": {name: whole[name] for name in whole if name not in EncoderConfig.model_fields},
            "schema": outputs,
            "schema_hash": schema_hash(outputs),
        },
    }


def load_model(path: str | Path) -> TrainedModel:
    """Read a model file.

    Parameters
    ----------
    path
        File written by `save_model`.

    Returns
    -------
    model
        Networks and metadata.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, no model of this format, or made for other inputs or outputs.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; a model written by `topreco train` expected")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
        raise ModelFileError(f"{path}: not a readable .safetensors file ({first_line(error)})") from error

    metadata = _metadata(path, header, tensors)
    encoder, task = metadata["encoder"], metadata["task"]
    kind = task.get("kind")
    if kind not in MODELS:
        raise ModelFileError(f"{path}: task {kind!r} found, one of {', '.join(MODELS)} expected")
    try:
        config = build_config(MODELS[kind].config, {**encoder["config"], **task["config"]}, f"{path}: model")
    except ConfigError as error:
        raise ModelFileError(str(error)) from error
    expected = describe_model(kind, config)
    for part, what in {"encoder": "inputs", "task": "outputs"}.items():
        found, wanted = metadata[part].get("schema_hash"), expected[part]["schema_hash"]
        if found != wanted:
            raise ModelFileError(
                f"{path}: made for other {what} (schema {found} found, {wanted} expected); train it again or "
                f"use the topreco that made it ({metadata.get('created_by')})"
            )

    _check_size(path, config, metadata["folds"], tensors)
    # Building draws initial weights; reading a file must not change what is drawn after it.
    with torch.random.fork_rng(devices=[]):
        try:
            networks = tuple(MODELS[kind].network(config).eval() for _ in range(metadata["folds"]))
        except (ValueError, RuntimeError) as error:
            raise ModelFileError(f"{path}: model cannot be built: {first_line(error)}") from error
    _check_tensors(path, networks, tensors)
    for fold, network in enumerate(networks):
        prefix = _prefix(fold)
        network.load_state_dict(
            {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        )
    return TrainedModel(kind, networks, metadata, config)


def _prefix(fold: int) -> str:
    return f"fold{fold}."


def _metadata(path: Path, header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Checked content of the header's entry ``topreco``."""
    text = header.get("topreco")
    if text is None:
        raise ModelFileError(
            f"{path}: no topreco metadata in this file; a model written by `topreco train` expected"
        )
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: damaged, its topreco metadata is not JSON") from error
    if not isinstance(metadata, dict):
        raise ModelFileError(f"{path}: damaged, its topreco metadata is no mapping")
    # Before the digest, which another format may define in another way.
    if metadata.get("format") != FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: model format {metadata.get('format')!r} found, {FORMAT_VERSION} expected; use the "
            f"topreco that made it ({metadata.get('created_by')})"
        )
    if metadata.get("sha256") != _digest(metadata, tensors):
        raise ModelFileError(f"{path}: damaged, content and checksum differ")
    for key in ("encoder", "task"):
        part = metadata.get(key)
        if not isinstance(part, dict) or not isinstance(part.get("config"), dict):
            raise ModelFileError(f"{path}: metadata entry {key!r} is {part!r}")
    if not isinstance(metadata.get("folds"), int):
        raise ModelFileError(f"{path}: metadata entry 'folds' is {metadata.get('folds')!r}")
    if metadata["folds"] < 1:
        raise ModelFileError(f"{path}: metadata entry 'folds' is {metadata['folds']}, at least 1 expected")
    return metadata


def _check_size(path: Path, config: EncoderConfig, folds: int, tensors: Mapping[str, Tensor]) -> None:
    """Raise before building networks that are larger than anything the file can hold."""
    # Each network and block has tensors of its own, and each number of channels is the length of one of them.
    limit = max(len(tensors), *(max(tensor.shape, default=1) for tensor in tensors.values()), 1)
    sizes = [("folds", folds), *config.backbone]
    if (quantiles := getattr(config, "quantiles", None)) is not None:
        sizes += [("hidden", quantiles.hidden), *quantiles.backbone]
    if (velocity := getattr(config, "velocity", None)) is not None:
        own = ("hidden", "vectors", "scalars")
        sizes += [*((name, getattr(config, name)) for name in own), *velocity]
    if (members := getattr(config, "members", None)) is not None:
        own = ("scalars", "hidden", "calibration_bins")
        sizes += [("members", members), *((name, getattr(config, name)) for name in own)]
    if (codes := getattr(config, "codes", None)) is not None:
        sizes += [("codes", codes), *((name, getattr(config, name)) for name in ("scalars", "hidden"))]
        if getattr(config, "encoding", None) == "codebook":
            sizes.append(("levels", getattr(config, "levels", None)))
    for name, size in sizes:
        if isinstance(size, int) and size > limit:
            raise ModelFileError(f"{path}: {name} is {size}, but no tensor in the file is of that size")


def _check_tensors(path: Path, networks: Sequence[Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise unless names, shapes and types of the tensors are those of the networks."""
    expected = {
        f"{_prefix(fold)}{name}": tensor
        for fold, network in enumerate(networks)
        for name, tensor in network.state_dict().items()
    }
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ModelFileError(f"{path}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if unexpected := sorted(tensors.keys() - expected.keys()):
        raise ModelFileError(f"{path}: unexpected tensor {unexpected[0]!r} ({len(unexpected)} in all)")
    for name, tensor in expected.items():
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise ModelFileError(
                f"{path}: tensor {name!r} is {found.dtype} of shape {tuple(found.shape)}, "
                f"{tensor.dtype} of shape {tuple(tensor.shape)} expected"
            )


def _canonical(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True, ensure_ascii=False)


def _digest(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the metadata, but for the digest itself, and of all tensors."""
    text = _canonical({key: value for key, value in metadata.items() if key != "sha256"})
    # A damaged file may hold characters that have no encoding.
    digest = hashlib.sha256(text.encode(errors="surrogatepass"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes, since numpy does not know every type of torch.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """JSON data without NaN and without the folders of absolute paths, which say where, not what."""
    if isinstance(value, Mapping):
        return {str(key): _plain(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(content) for content in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | PurePath):
        path = PurePath(value)
        return path.name if path.is_absolute() else str(value)
    return value
