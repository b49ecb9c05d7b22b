import json
from io import StringIO

import numpy as np
import pytest
from coffea.processor import accumulate
from rich.console import Console

from topreco.core.errors import TopRecoError
from topreco.input.cutflow import Count, Cutflow


@pytest.fixture
def flow():
    cutflow = Cutflow()
    cutflow.add_step("all", np.array([1.0, -1.0, 2.0, 1.0]))
    cutflow.add_step("two leptons", np.array([1.0, -1.0, 2.0]), np.array([0, 1, 1]))
    return cutflow


def test_counts(flow):
    assert flow["all"] == Count(4, 3.0, 7.0)
    assert flow.steps["two leptons"] == {
        "total": Count(3, 2.0, 6.0),
        "ee": Count(1, 1.0, 1.0),
        "emu": Count(2, 1.0, 5.0),
        "mumu": Count(0, 0.0, 0.0),
    }


def test_addition(flow):
    assert (flow + flow)["two leptons"] == Count(6, 4.0, 12.0)
    assert (flow + flow).steps["two leptons"]["emu"] == Count(4, 2.0, 10.0)
    assert flow + Cutflow() == Cutflow() + flow == flow
    assert flow["all"].n == 4
    other = Cutflow()
    other.add_step("all", np.ones(1))
    with pytest.raises(
        TopRecoError, match="different selections cannot be added: steps all, two leptons and all"
    ):
        flow + other


def test_is_a_coffea_accumulator(flow):
    assert accumulate([flow, flow, flow]) == flow + flow + flow
    merged = accumulate([{"cutflow": {"tt": flow.to_dict()}}, {"cutflow": {"tt": flow.to_dict()}}])
    assert Cutflow.from_dict(merged["cutflow"]["tt"]) == flow + flow


def test_round_trip(flow):
    assert Cutflow.from_dict(json.loads(flow.to_json())) == flow
    assert list(flow.to_dict()) == ["all", "two leptons"]


@pytest.mark.parametrize("content", [{"all": {"total": {"events": 3}}}, {"all": 3}, []])
def test_not_a_cutflow(content):
    with pytest.raises(TopRecoError, match="not a cutflow"):
        Cutflow.from_dict(content)


def test_table(flow):
    flow.add_step("nothing", np.zeros(0), np.zeros(0, dtype=int))
    flow.add_step("less", np.zeros(0), np.zeros(0, dtype=int))
    out = StringIO()
    Console(file=out, width=120).print(flow.table("sample"))
    text = out.getvalue()
    assert "sample" in text
    assert "two leptons" in text
    assert "75.00%" in text
    assert "3 ± 2.6" in text
    # Of none nothing can pass.
    assert "–" in text
