"""The quickstart notebook runs, with fewer events, and its numbers are those of other code."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from topreco.config import SelectionConfig
from topreco.input.nano import open_events
from topreco.input.selection import select
from topreco.input.truth import read_truth

DOCS = Path(__file__).parents[2] / "docs"
N_EVENTS = 600


@pytest.mark.sim
def test_quickstart(tmp_path, monkeypatch):
    pytest.importorskip("pythia8mc")
    cells = json.loads((DOCS / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert sum("n_events = 2000" in cell for cell in code) == 1
    assert not any(cell.get("outputs") for cell in cells)  # they are made when the manual is built
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in code:
        exec(cell.replace("n_events = 2000", f"n_events = {N_EVENTS}"), names)
    plt.close("all")

    events = open_events(tmp_path / "quickstart" / "nano.root")
    selection = select(events, SelectionConfig(), dataset="ttbar")
    assert len(events) == N_EVENTS
    assert np.flatnonzero(names["tops"].selected).tolist() == selection.index.tolist()
    truth = read_truth(events)[selection.index]
    pair = truth.tops.sum(axis=1)
    mass = np.sqrt(pair[:, 0] ** 2 - (pair[:, 1:] ** 2).sum(axis=1))
    np.testing.assert_allclose(names["true"], mass, rtol=1e-5)
    predicted = np.asarray(names["m_tt"])
    assert names["relative"] == pytest.approx(predicted / mass - 1, rel=1e-4)
    spectrum = names["spectrum"]["ttbar", "dilepton", :, sum, "all", "reco", :]
    assert spectrum["nominal", sum].value == pytest.approx(selection.events.weight.sum())
    counts, _ = np.histogram(predicted, spectrum.axes[1].edges, weights=selection.events.weight)
    np.testing.assert_allclose(spectrum["nominal", :].values(), counts, rtol=1e-6)
    yields = {name: spectrum[name, sum].value for name in ("jes_down", "nominal", "jes_up")}
    assert yields["jes_down"] < yields["jes_up"]
