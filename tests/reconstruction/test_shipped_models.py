"""The models in the wheel: found by name, described, harmless, and as good as their cards say.

The numbers of `approved/models.json` are the models' predictions when they were shipped. A new model comes
with new ones and a line in the changelog:

    python tests/reconstruction/test_shipped_models.py
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import topreco
from topreco.config import SelectionConfig
from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, Truth, toy_events
from topreco.input.nano import iterate_events
from topreco.input.required import OPTIONAL_BRANCHES, needed_branches
from topreco.input.selection import select
from topreco.input.truth import TRUTH_BRANCHES, read_truth
from topreco.network.tasks.tops import pair_metrics
from topreco.reconstruction.model_files import shipped_models

REPOSITORY = Path(__file__).parents[2]
APPROVED = Path(__file__).parents[1] / "approved" / "models.json"
NAMES = sorted(shipped_models())


def predictions(name):
    """Four-momenta that a model predicts for a few events, in GeV."""
    return topreco.load(name, threads=1)(toy_events(8, seed=5)).p4


def test_the_promised_models_are_there():
    assert {"dilepton", "dilepton-full", "dilepton-unbiased"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_is_small_and_says_how_it_was_made(name):
    assert shipped_models()[name].stat().st_size <= 5_000_000
    metadata = topreco.load(name).metadata
    assert metadata["training"]["data"]["files"]
    assert metadata["data"]["events"] > 50_000
    assert all("selection" in file for file in metadata["data"]["files"])
    assert metadata["metrics"]["best"][0]["validation_m_tt_correlation"] > 0.8
    # Where it was trained is nobody's business.
    assert "/" not in json.dumps(metadata["training"])


@pytest.mark.parametrize("name", NAMES)
def test_has_a_card(name):
    card = (REPOSITORY / "docs" / "models" / f"{name}.md").read_text(encoding="utf-8")
    assert topreco.load(name).metadata["sha256"][:12] in card
    for topic in (
        "## Data",
        "## Selection",
        "## Tokens",
        "## Training",
        "## Results",
        "## Limits",
        "## Licence",
    ):
        assert topic in card


@pytest.mark.parametrize("name", NAMES)
def test_predictions_as_approved(name):
    approved = np.array(json.loads(APPROVED.read_text())[name])
    np.testing.assert_allclose(predictions(name), approved, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_all_predictions_are_physical(name):
    events = toy_events(500, seed=6)
    pair = topreco.load(name, threads=1)(events)
    assert pair.valid.all()
    assert (fourvector.mass(pair.p4) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_pickles_as_its_name(name, tmp_path):
    """A worker may have the package elsewhere."""
    content = pickle.dumps(topreco.load(name))
    assert len(content) < 500
    assert str(shipped_models()[name].parent).encode() not in content
    np.testing.assert_array_equal(pickle.loads(content)(toy_events(8, seed=5)).p4, predictions(name))


@pytest.mark.parametrize("name", NAMES)
def test_loads_from_any_folder(name, tmp_path):
    code = f"import topreco; print(topreco.load({name!r}).name)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == name


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(TopRecoError, match=r"dilepton, dilepton-full, .*sonnenschein"):
        topreco.load("dileptons")


def selected_with_truth(file):
    selection = SelectionConfig()
    branches = (*needed_branches(selection), *OPTIONAL_BRANCHES, *TRUTH_BRANCHES)
    events, truth = [], []
    for chunk in iterate_events(file, "Events", step_size=10_000, branches=branches):
        selected = select(chunk, selection, dataset="tt")
        events.append(selected.events)
        truth.append(read_truth(chunk[selected.index]))
    return DileptonEvents.concatenate(events), Truth.concatenate(truth)


@pytest.mark.sim
@pytest.mark.parametrize("name", NAMES)
def test_reconstructs_simulated_events(name, simulated):
    """About a hundred events that no training has seen."""
    events, truth = selected_with_truth(simulated)
    metrics = pair_metrics(topreco.load(name, threads=1)(events).p4, truth.tops, events.weight)
    assert metrics["efficiency"] == 1
    assert metrics["m_tt_correlation"] > 0.75
    assert abs(metrics["m_tt_bias"]) < 0.08


@pytest.mark.parametrize("name", NAMES)
def test_reconstructs_real_cms_simulation(name, data):
    """49 events with pile-up and another detector than that of the training."""
    events, truth = selected_with_truth(data / "nanoaodv9_TTTo2L2Nu_first500.root")
    assert len(events) == 49
    metrics = pair_metrics(topreco.load(name, threads=1)(events).p4, truth.tops, events.weight)
    assert metrics["efficiency"] == 1
    assert metrics["m_tt_correlation"] > 0.6
    assert abs(metrics["m_tt_bias"]) < 0.1


if __name__ == "__main__":
    APPROVED.write_text(
        json.dumps({name: np.round(predictions(name), 4).tolist() for name in NAMES}, indent=1) + "\n"
    )
