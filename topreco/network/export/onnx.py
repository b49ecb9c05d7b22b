"""Trained networks as ONNX: one file that any onnxruntime evaluates without torch (extra `onnx`).

Inputs are the objects of events in GeV, the fields of `topreco.network.tokens.Inputs` that the network sees.
Output is `p4` in GeV and, of models with quantiles, `quantiles` and `p4_std`, see
`topreco.network.tasks.quantiles.Spread`. Of a posterior it is also `means` and, from the further input
`noise` of shape (n, k, 6), `samples`.
Tokens, spurions, normalisation and head are inside; numbers of events and jets are free. The file carries the
metadata of the model file as `metadata_props["topreco"]`, and ends with a digest of all before.

A model of several folds becomes one graph with a further input `fold`, shape (n, 1): the network that has
not seen the event. All networks are evaluated and one prediction is taken, at as many times the cost.
"""

import copy
import dataclasses
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from topreco.config import ModelConfig, PosteriorConfig, TokensConfig
from topreco.core.errors import TopRecoError, needs_extra
from topreco.core.events import QUANTILE_LEVELS, WORKING_POINTS, DileptonEvents, TopPair, toy_events
from topreco.core.files import complete_file, writable_folder, write_text
from topreco.network.export import reader
from topreco.network.export.reader import (
    DIGEST_MARK,
    FURTHER_INPUTS,
    INPUTS,
    OUTPUTS,
    Prediction,
    TopModel,
)
from topreco.network.inference import predict, sample
from topreco.network.model_file import TrainedModel
from topreco.network.tasks.posterior import PosteriorNetwork
from topreco.network.tasks.summaries import DIMENSIONS, SUMMARISED
from topreco.network.tasks.tops import TopNetwork, task_schema
from topreco.network.tokens import Inputs, further_inputs, schema_hash

READER_NAME = "model_reader.py"
"""The reader's name beside a model; it is the same file for all."""

# The oldest with everything that the graph needs: onnxruntime 1.14 and later read it.
_OPSET, _IR_VERSION = 18, 8

TOLERANCE = 1e-4
"""Largest difference between torch and ONNX, in units of the energy of the top."""

_PROBE_SAMPLES = 3

_TRITON_TYPES = {np.float32: "TYPE_FP32", np.int64: "TYPE_INT64", np.bool_: "TYPE_BOOL"}
_TRITON_DIMS: dict[str, list[int]] = {
    "lepton_plus": [4],
    "lepton_minus": [4],
    "jets": [-1, 4],
    "jet_mask": [-1],
    "jet_btag": [-1],
    "jet_tagged": [-1],
    "jet_working_points": [-1],
    "fold": [1],
    "noise": [-1, DIMENSIONS],
}
_TRITON_BATCH, _TRITON_MAX_BATCH = 256, 4096


def export_onnx(
    model: TrainedModel, path: str | Path, *, triton: str | Path | None = None, quantiles: bool = True
) -> tuple[Path, ...]:
    """Write a model as ONNX, whole or not at all, with the reader beside it.

    The file gets its name only after onnxruntime has given the predictions of torch.

    Parameters
    ----------
    model
        The trained model.
    path
        File to write (`.onnx`).
    triton
        Folder of a Triton model repository in which to put the model too, under the file's stem.
    quantiles
        With the uncertainty of each event, if the model has it.

    Returns
    -------
    written
        All files written, the model first.

    Raises
    ------
    TopRecoError
        If the extra `onnx` is missing, a file cannot be written, or torch and onnxruntime disagree.
    """
    if not quantiles:
        if model.kind == PosteriorNetwork.kind:
            raise TopRecoError("export: a posterior has quantiles; --no-quantiles is for models of the tops")
        model = _without_quantiles(model)
    path = Path(path)
    if path.suffix != ".onnx":
        raise TopRecoError(f"{path}: a name with the suffix .onnx expected")
    writable_folder(path.parent)  # Complain before the work of half a minute.
    beside = path.with_name(READER_NAME)
    template = Path(reader.__file__).read_text(encoding="utf-8")
    if beside.exists() and not beside.read_text(encoding="utf-8").startswith(template.partition("\n")[0]):
        raise TopRecoError(f"{beside}: is there already and is no reader of topreco; rename it first")
    content = _serialise(model)
    written = [path, beside]
    with complete_file(path) as temporary:
        temporary.write_bytes(content)
        _compare(model.networks, TopModel(temporary))
    write_text(beside, template)
    if triton is not None:
        folder = Path(triton) / path.stem
        with complete_file(folder / "1" / "model.onnx") as temporary:
            temporary.write_bytes(content)
        write_text(
            folder / "config.pbtxt",
            triton_config(path.stem, len(model.networks), model.config),
        )
        written += [folder / "1" / "model.onnx", folder / "config.pbtxt"]
    return tuple(written)


def _without_quantiles(model: TrainedModel) -> TrainedModel:
    """The same model of tops without their uncertainty."""
    networks = copy.deepcopy(model.networks)
    config = model.config.model_copy(update={"quantiles": None})
    for network in networks:
        network.config, network.quantiles = config, None
    task, schema = model.metadata["task"], task_schema(config)
    without = {
        "config": task["config"] | {"quantiles": None},
        "schema": schema,
        "schema_hash": schema_hash(schema),
    }
    metadata = model.metadata | {"task": task | without}
    return TrainedModel(model.kind, networks, metadata, config)


class _Graph(nn.Module):
    """Everything from the arrays of events to four-momenta, with the network chosen by fold."""

    def __init__(self, networks: Sequence[TopNetwork | PosteriorNetwork]) -> None:
        super().__init__()
        self.networks: Any = nn.ModuleList(networks)
        self.max_jets = networks[0].config.tokens.max_jets
        self.names = input_names(networks[0].config.tokens)

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        """Predictions from the fields of `Inputs`, a posterior's noise, and the fold of several networks."""
        # With as many empty slots as the network has places for jets, it always cuts and never fills up: one
        # graph for any number of jets.
        n = len(self.names)
        given = Inputs(**dict(zip(self.names, arrays[:n], strict=True)))
        inputs = _with_empty_slots(given, self.max_jets)
        further = arrays[n:]
        outputs: tuple[Tensor, ...] | None = None
        for number, network in enumerate(self.networks):
            found = _outputs(network, inputs, further)
            if outputs is None:
                outputs = found
                continue
            own = further[-1] == number
            outputs = tuple(
                torch.where(own.reshape(-1, *[1] * (other.ndim - 1)), other, before)
                for other, before in zip(found, outputs, strict=True)
            )
        assert outputs is not None
        return outputs


def _outputs(network: Any, inputs: Inputs, further: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Outputs in the order of `OUTPUTS`."""
    if not isinstance(network, PosteriorNetwork):
        found: tuple[Tensor, ...] = network.predictions(inputs)
        return found
    event = network.event(inputs)
    p4, means, quantiles, std = network.summaries(event)
    return p4, quantiles, std, means, network.samples(event, further[0])


def _with_empty_slots(inputs: Inputs, n: int) -> Inputs:
    jets = {name: field for name, field in inputs.columns().items() if name.startswith("jet")}
    # Of the jet axis, the first after that of the events.
    return inputs._replace(
        **{name: functional.pad(v, (0,) * (2 * (v.ndim - 2)) + (0, n)) for name, v in jets.items()}
    )


def input_names(tokens: TokensConfig) -> tuple[str, ...]:
    """Names of the inputs of a network, fields of `Inputs` in their order."""
    features = tokens.features.model_dump()
    further = {f"{kind}_features": bool(names) for kind, names in features.items()}
    further["jet_working_points"] = tokens.btag == "working_points"
    return tuple(name for name in Inputs._fields if name in INPUTS or further[name])


def _toy_events(n: int, max_jets: int, tokens: TokensConfig) -> DileptonEvents:
    """Toy events with whatever a network sees."""
    events = toy_events(n, max_jets=max_jets)
    rng = np.random.default_rng(1)
    shapes: dict[str, tuple[int, ...]] = {"jet": (n, max_jets), "lepton": (n, 2), "event": (n,)}
    features = {name: rng.normal(size=shapes[name.partition(":")[0]]) for name in tokens.features.names}
    counts = np.floor(events.jet_btag * (len(WORKING_POINTS) + 1)).astype(np.int8)
    return dataclasses.replace(events, jet_working_points=counts, features=features or None)


def _serialise(model: TrainedModel) -> bytes:
    """The file's content."""
    try:
        import onnx
        import onnxruntime  # noqa: F401 - for the comparison that follows
        import onnxscript  # noqa: F401 - torch.onnx needs it
        from onnx_ir.passes import common as passes
    except ImportError as error:
        raise TopRecoError(f"export to ONNX: {needs_extra('onnx', error)}") from error
    graph = _Graph(model.networks).eval()
    tokens = model.config.tokens
    example = list(Inputs.from_events(_toy_events(3, 5, tokens), tokens=tokens).columns().values())
    names = list(input_names(tokens))
    posterior = model.kind == PosteriorNetwork.kind
    if posterior:
        example.append(torch.zeros(3, 2, DIMENSIONS))
        names.append("noise")
    if len(model.networks) > 1:
        example.append(torch.zeros(3, 1, dtype=torch.int64))
        names.append("fold")
    second = {name: "jets" for name in names if name.startswith("jet")} | {"noise": "samples"}
    axes = tuple({0: "n", 1: second[name]} if name in second else {0: "n"} for name in names)
    n_outputs = len(OUTPUTS) if posterior else 1 if model.config.quantiles is None else 3
    # Once for real: lgatr keeps constants when first used, and must not keep those of the tracing.
    with torch.no_grad():
        graph(*example)
    with _quiet():
        program: Any = torch.onnx.export(
            graph,
            tuple(example),
            dynamo=True,
            verbose=False,
            optimize=False,  # its rewriting rules take twice the time of all else and find nothing here
            input_names=names,
            output_names=list(OUTPUTS[:n_outputs]),
            dynamic_shapes=(axes,),
            opset_version=_OPSET,
        )
    for simplification in (
        passes.IdentityEliminationPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
    ):
        simplification(program.model)
    proto = program.model_proto
    proto.ir_version = _IR_VERSION
    onnx.helper.set_model_props(
        proto, {"topreco": json.dumps(model.metadata, sort_keys=True, ensure_ascii=False)}
    )
    onnx.checker.check_model(proto)
    mark = onnx.ModelProto()
    onnx.helper.set_model_props(mark, {"topreco_sha256": "0" * 64})
    # Two messages in a row are one whose repeated fields hold both. What is left off are the zeros.
    body = proto.SerializeToString() + mark.SerializeToString()[:-64]
    if not body.endswith(DIGEST_MARK):
        raise RuntimeError(f"digest cannot be appended to the graph: {body[-80:]!r}")
    return body + hashlib.sha256(body).hexdigest().encode()


def _compare(networks: Sequence[Any], model: TopModel) -> None:
    """Raise unless onnxruntime agrees with torch, on events of every kind."""
    for fold, network in enumerate(networks):
        exact = copy.deepcopy(network).double()
        for events in _probes(network.config.tokens):
            expected = predict([exact], events)
            objects = {name: getattr(events, name) for name in INPUTS}
            objects |= further_inputs(events, network.config.tokens)
            folds = np.full(len(events), fold)
            predicted = model.run(objects, fold=folds)
            found = _difference(predicted, expected)
            # Some networks magnify the rounding of single precision, in torch as well.
            allowed = max(TOLERANCE, 10 * _difference(predict([network], events), expected))
            if isinstance(network, PosteriorNetwork):
                key = (events.dataset, events.run, events.luminosity_block, events.event)
                noise = reader.normal_noise(key, _PROBE_SAMPLES, 1)
                wanted, single = (sample([n], events, n_samples=_PROBE_SAMPLES) for n in (exact, network))
                drawn = model.run_samples(objects, noise, fold=folds)
                energy = wanted.samples[..., :1]
                found = max(found, _largest(drawn, wanted.samples, energy))
                allowed = max(allowed, 10 * _largest(single.samples, wanted.samples, energy))
            # NaN, where only one of them has a prediction, is no agreement.
            if not found <= allowed:
                raise TopRecoError(
                    f"export: torch and onnxruntime differ by {found:.1g} of a top's energy, at most "
                    f"{allowed:.1g} expected; nothing was written"
                )


def _difference(predicted: Prediction | TopPair, expected: TopPair) -> float:
    """Largest difference of two predictions, in units of the energy of the top, of the observable or of 1."""
    energy = expected.p4[..., :1]
    pairs: list[Any] = [(predicted.p4, expected.p4, energy)]
    if expected.quantiles is not None:
        pairs.append((predicted.uncertainty, expected.uncertainty, energy))
        for name, values in expected.quantiles.items():
            pairs.append(((predicted.quantiles or {})[name], values, np.maximum(np.abs(values), 1.0)))
    for name, values in (expected.observables or {}).items():
        pairs.append(((predicted.observables or {})[name], values, np.maximum(np.abs(values), 1.0)))
    return max(_largest(*pair) for pair in pairs)


def _largest(found: Any, wanted: Any, unit: Any) -> float:
    return float((np.abs(found - wanted) / unit).max())


def _probes(tokens: TokensConfig) -> Iterator[DileptonEvents]:
    """Toy events with many, few and no places for jets, and NaN where there is none."""
    events = _toy_events(200, 12, tokens)
    empty = ~events.jet_mask
    jets, btag = np.where(empty[..., None], np.nan, events.jets), np.where(empty, np.nan, events.jet_btag)
    features = events.features or {}
    of_jets = {name: np.where(empty, np.nan, x) for name, x in features.items() if name.startswith("jet:")}
    counts = events.jet_working_points
    for places in (12, 3, 1, 0):
        cut = {name: values[:, :places] for name, values in of_jets.items()}
        yield dataclasses.replace(
            events,
            jets=jets[:, :places],
            jet_mask=events.jet_mask[:, :places],
            jet_btag=btag[:, :places],
            jet_tagged=events.jet_tagged[:, :places],
            b_candidates=np.where(events.b_candidates < places, events.b_candidates, -1),
            jet_working_points=None if counts is None else counts[:, :places],
            features={**features, **cut} or None,
        )


def triton_config(name: str, folds: int, config: ModelConfig | PosteriorConfig) -> str:
    """Configuration of a model for NVIDIA's Triton server, in protobuf's text format.

    The preferred batch size is what `coffea.ml_tools.triton_wrapper` fills its requests up to.

    Parameters
    ----------
    name
        Of the model, that of its folder.
    folds
        Number of networks in it.
    config
        Its configuration.
    """
    known = {**INPUTS, **FURTHER_INPUTS}
    tensors = {name: _TRITON_TYPES[known[name]] for name in input_names(config.tokens)}
    features = {kind: len(names) for kind, names in config.tokens.features.model_dump().items()}
    of_inputs = _TRITON_DIMS | {
        "jet_features": [-1, features["jet"]],
        "lepton_features": [2, features["lepton"]],
        "event_features": [features["event"]],
    }
    names: Sequence[str] = SUMMARISED
    if isinstance(config, PosteriorConfig):
        tensors["noise"] = "TYPE_FP32"
    else:
        names = config.quantiles.observables if config.quantiles else ()
    if folds > 1:
        tensors["fold"] = "TYPE_INT64"
    # The first axis, that of the events, is implied.
    inputs = ",\n".join(
        f'  {{ name: "{tensor}" data_type: {kind} dims: {of_inputs.get(tensor, [2])} }}'
        for tensor, kind in tensors.items()
    )
    shapes: dict[str, tuple[int, ...]] = {"p4": (2, 4)}
    if names:
        shapes |= {"quantiles": (len(names), len(QUANTILE_LEVELS)), "p4_std": (2, 4)}
    if isinstance(config, PosteriorConfig):
        shapes |= {"means": (len(names),), "samples": (-1, 2, 4)}
    outputs = ",\n".join(
        f'  {{ name: "{tensor}" data_type: TYPE_FP32 dims: {list(dims)} }}' for tensor, dims in shapes.items()
    )
    return f"""\
name: "{name}"
backend: "onnxruntime"
max_batch_size: {_TRITON_MAX_BATCH}
input [
{inputs}
]
output [
{outputs}
]
dynamic_batching {{ preferred_batch_size: [{_TRITON_BATCH}] }}
"""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says of its own internals."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
