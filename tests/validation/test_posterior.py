"""Posteriors in `topreco validate`: an exact and a narrow sampler, beside methods without samples."""

import json
import re
import sys

import numpy as np
import pytest

from topreco.config import ValidationConfig
from topreco.core.errors import TopRecoError
from topreco.core.observables import OBSERVABLES
from topreco.validation.calibration import COMPONENTS, FIXED
from topreco.validation.gather import Sampling, tabulate
from topreco.validation.posterior import choose_sampling
from topreco.validation.validate import validate

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def report(write_skim, sampler, leptons, tmp_path_factory):
    folder = tmp_path_factory.mktemp("posterior")
    validate(
        [write_skim(folder / "toy.parquet", 1500, 11)],
        folder / "out",
        methods=[sampler("exact"), sampler("narrow", 0.7), leptons],
        config=ValidationConfig(samples=16),
        progress=False,
    )
    return folder / "out"


@pytest.fixture(scope="module")
def results(report):
    return json.loads((report / "results.json").read_text())


def test_the_exact_posterior_is_calibrated_and_the_narrow_one_is_not(results):
    found = results["posterior"]
    assert found["n_samples"] == 16
    assert found["notes"] == []
    assert set(found["methods"]) == {"exact", "narrow"}
    for method, of in found["methods"].items():
        assert of["n"] == 1500
        assert of["effective_number"]["mean"] == pytest.approx(16)
        assert set(of["calibration"]) == {*OBSERVABLES, *COMPONENTS} - set(FIXED)
        regions = of["calibration"]["m_tt"]["regions"]
        assert list(regions) == ["predicted m(tt̄) [GeV]", "predicted pT(t) [GeV]", "jets"]
        assert sum(part["n"] for part in regions["jets"].values()) == 1500
        assert (of["smallest_p"] < found["significance"]) == (method == "narrow")
        for test in of["two_sample"].values():
            assert (test["p"] < 1e-4) == (method == "narrow")
    level = found["levels"].index(0.68)
    coverage = {m: of["calibration"]["c_hel"]["overall"]["coverage"] for m, of in found["methods"].items()}
    assert coverage["exact"][level] == pytest.approx(0.68, abs=0.05)
    assert coverage["narrow"][level] < 0.6


def test_scores(results):
    scores = results["posterior"]["scores"]
    assert set(scores) == {*OBSERVABLES, *COMPONENTS, "energy"}
    assert set(scores["m_tt"]["means"]) == {"exact (samples)", "narrow (samples)", "leptons (quantiles)"}
    for name in (*COMPONENTS, "energy"):
        difference = scores[name]["differences"]["exact (samples) − narrow (samples)"]
        assert difference["n"] == 1500
        assert difference["mean"] < 0, name
    assert difference["mean"] < -5 * difference["mean_error"]


def test_page_shows_it(report):
    page = (report / "index.html").read_text()
    # Nothing comes before the verdicts.
    assert re.findall(r'<section id="([^"]+)"', page)[:2] == ["verdicts", "summary"]
    for text in ("Ranks, m(tt̄)", "Expected coverage, c_han", "boosted trees", "energy score [GeV]"):
        assert text in page, text
    assert not re.search(r"\bnan\b", re.sub(r"data:[^\"]*", "", page))
    assert len(page) < 10_000_000
    for name in set(OBSERVABLES) - {"m_tt", "pt_top", "y_top"}:
        assert f">{name}, exact<" in page, name


def test_every_observable_has_a_verdict(report, results):
    """Both samplers have the momenta of the analytic method: equal in all."""
    assert set(results["verdicts"]) == {"exact", "narrow"}
    found = results["verdicts"]["exact"]
    assert set(found) == set(OBSERVABLES)
    for name, of in found.items():
        assert of["bias"]["verdict"] == "equal", name
        assert of["correlation"]["verdict"] == ("undefined" if name in {"m_top", "m_antitop"} else "equal"), (
            name
        )
    text = (report / "comparison.md").read_text()
    assert text.startswith("## exact against the best analytic method")
    assert f"better in 0, equal in {len(OBSERVABLES)}, worse in 0 of {len(OBSERVABLES)} observables" in text
    for name in OBSERVABLES:
        assert f"## {name}, all selected events" in text


def test_samples_are_those_of_some_events_whatever_the_row_groups(make_events, sampler):
    events, truth = make_events(600, 5)
    sampling = Sampling(("exact",), 8, 0.4)
    whole = tabulate(events, truth, [sampler("exact")], OBSERVABLES, sampling)
    chosen = np.isfinite(whole.context[:, 0])
    assert 180 < chosen.sum() < 300
    scores = whole.predictions["exact"].posterior
    assert (np.isfinite(scores.rank["m_tt"]) == chosen).all()
    part = tabulate(events[100:200], truth[100:200], [sampler("exact")], OBSERVABLES, sampling)
    np.testing.assert_array_equal(
        part.predictions["exact"].posterior.rank["c_hel"], scores.rank["c_hel"][100:200]
    )


class _Refusing:
    name, uses_event_key, fingerprint = "point", True, "point"

    def __call__(self, events):
        raise AssertionError

    def sample(self, events, n_samples=None):
        raise TopRecoError("point.safetensors: a point network has no samples")


def test_what_is_sampled(make_events, sampler, leptons):
    events, _ = make_events(20, 5)
    methods = [sampler("exact"), _Refusing(), leptons]
    found, notes = choose_sampling(methods, ValidationConfig(), events, 100_000)
    assert found == Sampling(("exact",), 64, 0.2)
    assert notes == ["point: no samples (point.safetensors: a point network has no samples)"]
    every = ValidationConfig(posterior_events=None, samples=5)
    assert choose_sampling(methods, every, events, 100_000)[0] == Sampling(("exact",), 5, 1.0)
    assert choose_sampling(methods, ValidationConfig(posterior=False), events, 100) == (None, [])
    assert choose_sampling([leptons], ValidationConfig(), events, 100) == (None, [])
    with pytest.raises(TopRecoError, match="posterior: true, but none of the methods gives samples"):
        choose_sampling([leptons], ValidationConfig(posterior=True), events, 100)


def test_without_the_extra(make_events, sampler, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    events, _ = make_events(20, 5)
    _, notes = choose_sampling([sampler("exact")], ValidationConfig(), events, 100)
    assert notes == ["two-sample test: needs the extra: pip install 'topreco[calibration]'"]
    with pytest.raises(TopRecoError, match="needs the extra"):
        choose_sampling([sampler("exact")], ValidationConfig(posterior=True), events, 100)
