"""Checkpoints: kept whole, found again, never those of another configuration."""

import json
from pathlib import Path

import pytest
from coffea.processor.executor import WorkItem

from topreco.config import RunConfig, load_config
from topreco.core.errors import TopRecoError
from topreco.reconstruction.load import load_methods
from topreco.runs.checkpoints import MARKER, ChunkCheckpointer, claim_folder, describe_configuration

CHUNK = {
    "dataset": "/TT/v1/NANOAODSIM",
    "filename": "a/nano.root",
    "treename": "Events",
    "entrystart": 0,
    "entrystop": 10,
    "fileuuid": "00000000-0000-0000-0000-000000000001",
}
ITEM = WorkItem(**(CHUNK | {"fileuuid": bytes(15) + b"\x01"}))


def test_round_trip(tmp_path):
    checkpointer = ChunkCheckpointer(tmp_path)
    assert checkpointer.load(CHUNK, None) is None
    assert not checkpointer.has(ITEM)
    checkpointer.save({"out": {"n": 3}}, CHUNK, None)
    assert checkpointer.load(CHUNK, None) == {"out": {"n": 3}}
    assert checkpointer.has(ITEM)


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "dy"},
        {"filename": "b/nano.root"},
        {"entrystart": 1},
        {"fileuuid": "00000000-0000-0000-0000-000000000002"},
    ],
)
def test_another_chunk_has_another_file(tmp_path, other):
    checkpointer = ChunkCheckpointer(tmp_path)
    checkpointer.save({"out": {"n": 3}}, CHUNK, None)
    assert checkpointer.load(CHUNK | other, None) is None


def test_what_was_skipped_is_tried_again(tmp_path):
    checkpointer = ChunkCheckpointer(tmp_path)
    checkpointer.save({"out": {"skipped": [{"file": "a"}]}}, CHUNK, None)
    assert not checkpointer.has(ITEM)


def test_a_damaged_checkpoint_is_as_good_as_none(tmp_path):
    checkpointer = ChunkCheckpointer(tmp_path)
    checkpointer.save({"out": {"n": list(range(1000))}}, CHUNK, None)
    (path,) = tmp_path.rglob("*.coffea")
    path.write_bytes(path.read_bytes()[:100])
    assert checkpointer.load(CHUNK, None) is None


def test_nothing_is_left_of_a_failed_write(tmp_path, monkeypatch):
    import coffea.util

    def full(content, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(coffea.util, "save", full)
    with pytest.raises(TopRecoError, match=r"coffea: cannot be written \(No space") as error:
        ChunkCheckpointer(tmp_path).save({"out": {}}, CHUNK, None)
    assert error.value.__cause__ is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def describe(toy_model, *overrides):
    config = load_config(RunConfig, None, [f"methods=[{toy_model}, loose]", *overrides])
    return describe_configuration(config, load_methods(config.methods))


@pytest.mark.parametrize(
    "override",
    [
        "executor=futures",
        "workers=7",
        "fileset={tt: [a.root]}",
        "output=elsewhere",
        "chunk_size=10",
        "skip_bad_files=true",
    ],
)
def test_what_changes_no_chunk(toy_model, override):
    assert describe(toy_model, override) == describe(toy_model)


@pytest.mark.parametrize(
    "override", ["selection.jet.pt_min=31", "solvers.seed=2", "tree=Other", "output_columns=friends"]
)
def test_what_changes_a_chunk(toy_model, override):
    assert describe(toy_model, override) != describe(toy_model)


def test_a_model_is_its_content(toy_model, tmp_path):
    copy = tmp_path / toy_model.name
    copy.write_bytes(toy_model.read_bytes())
    assert describe(copy) == describe(toy_model)
    import torch

    from topreco.network.model_file import load_model, save_model
    from topreco.network.tasks.tops import TopNetwork

    torch.manual_seed(99)
    save_model(copy, [TopNetwork(load_model(toy_model).config)], {})
    assert describe(copy) != describe(toy_model)


def test_a_folder_belongs_to_one_configuration(tmp_path):
    folder = tmp_path / "new" / "checkpoints"
    claim_folder(folder, {"a": 1, "b": {"c": 2, "d": 3}}, "checkpoint")
    claim_folder(folder, {"a": 1, "b": {"c": 9, "d": 3}}, "checkpoint")  # still empty
    (folder / "chunk").write_text("")
    claim_folder(folder, {"a": 1, "b": {"c": 9, "d": 3}}, "checkpoint")
    with pytest.raises(
        TopRecoError, match=r"checkpoint .*checkpoints: made with another .* differs in b\.c, e;"
    ):
        claim_folder(folder, {"a": 1, "b": {"c": 2, "d": 3}, "e": None}, "checkpoint")
    assert json.loads((folder / MARKER).read_text())["b"]["c"] == 9


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(TopRecoError, match=r"output_columns .*: holds other files"):
        claim_folder(tmp_path, {}, "output_columns")
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(TopRecoError, match="not JSON"):
        claim_folder(tmp_path, {}, "output_columns")


@pytest.mark.parametrize(
    "content",
    [
        {"systematics": {"objects": {"jes": {"object": "jet", "file": "FILE", "correction": "jes"}}}},
        {"selection": {"cuts": {"golden_json": "FILE"}}},
        {"selection": {"cuts": {"jet_veto_map": {"file": "FILE"}}}},
    ],
    ids=["correction", "golden JSON", "veto map"],
)
def test_files_are_known_by_their_content(tmp_path, content):
    file = tmp_path / "file.json"
    text = json.dumps(content).replace("FILE", str(file))
    config = RunConfig.model_validate(json.loads(text))
    file.write_text("one")
    before = describe_configuration(config, [])
    assert describe_configuration(config, []) == before
    file.write_text("two")
    assert describe_configuration(config, []) != before
