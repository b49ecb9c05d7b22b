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
from topreco.core.method import gives_samples
from topreco.core.observables import OBSERVABLES
from topreco.core.shipped import shipped_models
from topreco.core.statistics import metric_values
from topreco.evaluation.fill import predicted_values, true_values
from topreco.input.nano import iterate_events
from topreco.input.required import OPTIONAL_BRANCHES, needed_branches
from topreco.input.selection import select
from topreco.input.truth import TRUTH_BRANCHES, read_truth
from topreco.network.tasks.tops import pair_metrics

REPOSITORY = Path(__file__).parents[2]
APPROVED = Path(__file__).parents[1] / "approved" / "models.json"
NAMES = sorted(shipped_models())


def predictions(name):
    """What a model predicts for a few events: four-momenta in GeV, of a posterior more."""
    events, method = toy_events(8, seed=5), topreco.load(name, threads=1)
    pair = method(events)
    found = {"p4": pair.p4}
    if pair.observables:
        found |= pair.observables | {f"{name} quantiles": pair.quantiles[name] for name in ("m_tt", "c_han")}
        found["samples"] = method.sample(events, 2).samples
    return found


def test_the_promised_models_are_there():
    assert {"dilepton", "dilepton-point", "dilepton-full"} <= set(NAMES)
    assert gives_samples(topreco.load("dilepton"))


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
    approved, found = json.loads(APPROVED.read_text())[name], predictions(name)
    assert approved.keys() == found.keys()
    for key, values in found.items():
        # Angles are of the order of 1, the rest are GeV.
        precision = 1e-2 if key == "p4" or key.startswith(("m_", "pt_", "samples")) else 1e-3
        np.testing.assert_allclose(values, np.array(approved[key]), rtol=2e-4, atol=precision, err_msg=key)


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
    np.testing.assert_array_equal(pickle.loads(content)(toy_events(8, seed=5)).p4, predictions(name)["p4"])


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


def test_no_observable_is_worse_than_sonnenschein(data):
    """Nor more biased, beyond what counts as none: 4285 Delphes events of a test file."""
    events, truth = selected_with_truth(data / "delphes" / "tt2l_mg5_delphes_11.root")
    names = [name for name in OBSERVABLES if name not in {"m_top", "m_antitop", "delta_phi_ll"}]
    true = true_values(names, truth)
    pairs = {name: topreco.load(name, threads=1)(events) for name in ("dilepton", "sonnenschein")}
    common = pairs["sonnenschein"].valid & truth.valid
    found = {name: predicted_values(names, events, pair) for name, pair in pairs.items()}
    for name in names:
        rho, sonnenschein = (
            metric_values(values[name][common], true[name][common], relative=OBSERVABLES[name].relative)
            for values in found.values()
        )
        assert rho.correlation > sonnenschein.correlation, name
        allowed = 2.0 if name == "pt_tt" else 0.015 if name == "m_tt" else 0.03
        assert abs(rho.rb) < max(abs(sonnenschein.rb), allowed), name
    approved = {"m_tt": 0.87, "pt_top": 0.79, "pt_tt": 0.935, "c_hel": 0.83, "c_han": 0.68, "cos_1k": 0.76}
    for name, smallest in approved.items():
        values = metric_values(
            found["dilepton"][name][common], true[name][common], relative=OBSERVABLES[name].relative
        )
        assert values.correlation > smallest, name


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
        json.dumps(
            {
                name: {key: np.round(values, 4).tolist() for key, values in predictions(name).items()}
                for name in NAMES
            },
            indent=1,
        )
        + "\n"
    )
