"""Learned observables and joint histograms of runs: of all variations, as columns, and what is refused."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from coffea import processor

from topreco.config import (
    ConfigError,
    HistogramConfig,
    ObjectSource,
    RatioConfig,
    RunConfig,
    SelectionConfig,
    SystematicsConfig,
    load_config,
)
from topreco.core.errors import TopRecoError
from topreco.core.observables import pair_values
from topreco.input.nano import QuietNanoAODSchema, open_events
from topreco.input.selection import select
from topreco.network.model_file import save_model
from topreco.network.tasks.ratio import RatioNetwork
from topreco.reconstruction.load import load
from topreco.runs.columns import ColumnWriter
from topreco.runs.processor import DileptonProcessor

pytestmark = pytest.mark.sim

TINY = {"kind": "transformer", "blocks": 1, "channels": 16, "heads": 2}
EDGES = {
    "m_tt": (300, 400, 500, 2000),
    "c_hel": (-1, -0.333, 0.333, 1),
    "c_han": (-1, -0.333, 0.333, 1),
}
SYSTEMATICS = SystematicsConfig(
    objects={"jes": ObjectSource(object="jet", kind="shift", flat=0.05)},
    weights={"luminosity": {"flat": 0.1}},
)


def ratio_file(path, **model):
    torch.manual_seed(5)
    config = RatioConfig.model_validate({"backbone": TINY, "scalars": 16, "hidden": 16, **model})
    network = RatioNetwork(config).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_model(path, [network.float()], {})
    return path


@pytest.fixture(scope="module")
def result(simulated, toy_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    path = ratio_file(folder / "ratio.safetensors")
    instance = DileptonProcessor(
        [toy_model, "sonnenschein"],
        histograms=HistogramConfig(observables=["m_tt"], joint={"threshold": EDGES}),
        systematics=SYSTEMATICS,
        columns=ColumnWriter(folder / "columns"),
        ratios={"κ": path},
    )
    runner = processor.Runner(
        processor.IterativeExecutor(status=False), chunksize=150, schema=QuietNanoAODSchema
    )
    files = {"ttbar": {"treename": "Events", "files": [str(simulated)]}}
    return runner(files, processor_instance=instance), path, folder / "columns"


def test_learned_observables_are_those_of_the_model(result, simulated):
    output, path, folder = result
    events = select(open_events(simulated), SelectionConfig(), dataset="ttbar").events
    expected = load(path).log_ratio(events)
    assert np.std(expected) > 0.01
    histogram = output["histograms"]["ratio/κ"]
    assert list(histogram.axes["method"]) == ["κ"]
    nominal = histogram[{"dataset": "ttbar", "method": "κ", "variation": "nominal", "channel": sum}]
    contents, edges = nominal.to_numpy()
    np.testing.assert_allclose(
        contents, np.histogram(expected, edges, weights=events.weight)[0], rtol=1e-6, atol=1e-6
    )
    up = histogram[{"dataset": "ttbar", "method": "κ", "variation": "luminosity_up", "channel": sum}]
    np.testing.assert_allclose(up.values(), 1.1 * nominal.values())
    jes = histogram[{"dataset": "ttbar", "method": "κ", "variation": "jes_up", "channel": sum}]
    assert (jes.values() != nominal.values()).any()
    tables = [pq.read_table(folder / entry["path"]) for entry in output["columns"]]
    found = np.concatenate(
        [
            t["ratio_κ"].to_numpy()
            for t, e in zip(tables, output["columns"], strict=True)
            if e["variation"] == "nominal"
        ]
    )
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-4, atol=1e-5)


def test_joint_histograms(result, simulated):
    output, *_ = result
    histogram = output["histograms"]["joint/threshold"]
    assert histogram.axes.name == ("dataset", "method", "variation", "channel", "m_tt", "c_hel", "c_han")
    assert set(histogram.axes["variation"]) == {
        "nominal", "jes_up", "jes_down", "luminosity_up", "luminosity_down"
    }  # fmt: skip
    events = select(open_events(simulated), SelectionConfig(), dataset="ttbar").events
    pair = load("sonnenschein")(events)
    values = pair_values(pair, events.lepton_p4, EDGES)
    known = np.isfinite(list(values.values())).all(0)
    assert 0 < known.sum() < len(known)
    expected = np.histogramdd(
        [values[name][known] for name in EDGES], list(EDGES.values()), weights=events.weight[known]
    )[0]
    of = {"dataset": "ttbar", "method": "sonnenschein", "variation": "nominal", "channel": sum}
    np.testing.assert_allclose(histogram[of].values(), expected, atol=1e-6)
    np.testing.assert_allclose(
        histogram[of].variances(flow=True).sum(), (events.weight[known] ** 2).sum(), rtol=1e-6
    )


def test_bad_input(tmp_path, toy_model):
    generated = ratio_file(tmp_path / "generated.safetensors", inputs="generated")
    with pytest.raises(TopRecoError, match=r"ratios\.x: .* sees generated tops"):
        DileptonProcessor([toy_model], ratios={"x": generated})
    with pytest.raises(TopRecoError, match=r"ratios\.x: dilepton holds no ratio"):
        DileptonProcessor([toy_model], ratios={"x": "dilepton"})
    for overrides, message in (
        (["histograms.joint={a: {m_tt: [1, 2]}}"], "a: 1 observables found, two or three expected"),
        (["histograms.joint={a: {m_tt: [1, 2], x: [1, 2]}}"], "unknown observable 'x'"),
        (["histograms.joint={a: {m_tt: [2, 1], c_hel: [0, 1]}}"], "rising edges expected"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(RunConfig, None, overrides)
