"""The training state on disk: what it belongs to, and what is refused."""

import io
import os
import zipfile

import pytest
import torch

from topreco.network.fit.state import Best, Paths, check_same, read_state, write_metrics, write_state
from topreco.network.task import TrainingError

CONFIG = {"epochs": 3, "optimiser": {"learning_rate": 0.001}}


@pytest.fixture
def path(tmp_path):
    """A state that can be read."""
    path = Paths(tmp_path).state
    state = read_state(path, CONFIG)
    write_state(path, state | {"finished": [{"weights": {"x": torch.arange(5000.0)}}]})
    return path


def test_round_trip(path):
    state = read_state(path, CONFIG)
    assert torch.equal(state["finished"][0]["weights"]["x"], torch.arange(5000.0))
    assert (state["history"], state["current"], state["complete"]) == ([], None, False)


def test_another_configuration_is_refused(path):
    other = {"epochs": 4, "optimiser": {"learning_rate": 0.5}, "more": 1}
    with pytest.raises(
        TrainingError,
        match=r"holds a training that differs in the configuration \(epochs: 3 there, 4 here; "
        r"optimiser.learning_rate: 0.001 there, 0.5 here; more: \(absent\) there, 1 here\).*--restart to",
    ):
        read_state(path, other)


def test_same_content_in_another_order_is_the_same(tmp_path):
    check_same("anything", {"a": 1, "b": {"c": 2}}, {"b": {"c": 2}, "a": 1}, tmp_path)


def test_damage_is_noticed(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(TrainingError, match=r"state.ckpt: not a readable training state; --restart starts"):
        read_state(path, CONFIG)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    damaged = bytearray(whole)
    # The record follows a header of less than 500 bytes.
    damaged[record.header_offset + 500] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(TrainingError, match=r"state.ckpt: damaged, content and checksum differ; --restart"):
        read_state(path, CONFIG)


@pytest.mark.parametrize("content", [[1], {"version": 2, "config": CONFIG}], ids=str)
def test_other_versions_are_refused(path, content):
    torch.save(content, path)
    with pytest.raises(TrainingError, match=r"state.ckpt: written by another version of topreco"):
        read_state(path, CONFIG)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_state_that_runs_code_is_refused_unread(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"version": 3, "config": Malicious()}, path)
    with pytest.raises(TrainingError, match=r"state.ckpt: not a readable training state"):
        read_state(path, CONFIG)
    assert not (tmp_path / "executed").exists()


def test_metrics_are_null_where_undefined(tmp_path):
    lines, table = Paths(tmp_path, "quantiles_").metrics
    assert table.name == "quantiles_metrics.csv"
    write_metrics((lines, table), [{"epoch": 0, "loss": 0.5}, {"epoch": 1, "loss": float("nan")}])
    assert lines.read_text().splitlines() == ['{"epoch": 0, "loss": 0.5}', '{"epoch": 1, "loss": null}']
    assert table.read_text().splitlines() == ["epoch,loss", "0,0.5", "1,"]


def test_all_files_of_a_training_can_be_removed(tmp_path):
    other = tmp_path / "model.safetensors"
    for path in (Paths(tmp_path).state, *Paths(tmp_path).metrics, other, Paths(tmp_path, "quantiles_").state):
        path.touch()
    Paths(tmp_path).remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "quantiles_state.ckpt"]


def test_the_best_epoch_by_hand():
    network = torch.nn.Linear(1, 1)
    best = Best()
    for epoch, (loss, expected) in enumerate(((3.0, 0), (1.0, 1), (2.0, 1), (1.0, 1), (0.5, 4))):
        torch.nn.init.constant_(network.weight, epoch)
        best = best.updated({"epoch": epoch, "validation_loss": loss}, network)
        assert best.row["epoch"] == best.weights["weight"].item() == expected
        assert best.epochs_since == epoch - expected
    # Without a validation the latest is the best.
    assert best.updated({"epoch": 5}, network).row["epoch"] == 5
