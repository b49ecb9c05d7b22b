"""Fits of templates with pyhf: what was injected is found, pulls have unit width, the unfolding closes."""

import json

import numpy as np
import pytest

pytest.importorskip("iminuit")
pyhf = pytest.importorskip("pyhf")

from topreco.config import TemplatesConfig, build_config  # noqa: E402
from topreco.core.errors import TopRecoError  # noqa: E402
from topreco.measurement.cards import about, workspace, write_templates  # noqa: E402
from topreco.measurement.fit import (  # noqa: E402
    Model,
    about_workspace,
    fit_markdown,
    unfolded,
    write_fit,
)
from topreco.measurement.templates import Axis, Process, Templates  # noqa: E402
from topreco.measurement.unfolding import Sums  # noqa: E402

EDGES = np.array([300.0, 400, 500, 700])


def contents(*values, relative=0.02):
    values = np.array(values, float)
    return {"emu": Sums(values, (relative * values) ** 2)}


def templates(processes, *, data=None, truth=()):
    expectation = sum(process.nominal["emu"].value for process in processes)
    return Templates(
        histogram="response/m_tt" if truth else "measured/m_tt",
        method="m",
        axes=(Axis("m_tt [GeV]", EDGES),),
        truth=truth,
        channels=("emu",),
        processes=tuple(processes),
        data={"emu": expectation if data is None else np.asarray(data, float)},
        is_data=data is not None,
        unused=(),
        remarks=(),
    )


@pytest.fixture(scope="module")
def simple():
    """A signal on a background, with a nuisance of the shape and one of the rate."""
    jes = contents(330, 520, 260), contents(470, 480, 180)
    signal = Process("ttbar", True, contents(400, 500, 220), {"jes": jes}, {"lumi": (1 / 1.03, 1.03)})
    dy = Process("dy", False, contents(150, 90, 40), {}, {"dy_norm": (0.8, 1.25)})
    return Model(workspace(templates([signal, dy])))


def test_what_was_injected_is_found(simple):
    truth = simple.with_values({"r": 1.2, "jes": 0.7, "dy_norm": -0.5})
    fit = simple.fit(simple.expected(truth))
    np.testing.assert_allclose(fit.values, truth, atol=2e-3)
    # Constraints of unit Gaussians: pull is the value, and no error is larger than before the fit.
    assert fit.pulls[fit.index("jes")] == pytest.approx(0.7, abs=2e-3)
    assert (fit.constraints[[fit.index(name) for name in ("jes", "lumi", "dy_norm")]] < 1.01).all()
    assert np.isnan(fit.pulls[fit.index("r")])


def test_the_covariance_is_that_of_the_curvature(simple):
    """Against the inverse of the numerical second derivatives of −ln L, all parameters at once."""
    fit = simple.fit()
    steps = 0.02 * fit.errors

    def nll(parameters):
        return -float(np.asarray(simple.model.logpdf(parameters, simple.data))[0])

    n = len(fit.values)
    hessian = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            total = 0.0
            for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
                shifted = fit.values.copy()
                shifted[i] += a * steps[i]
                shifted[j] += b * steps[j]
                total += a * b * nll(shifted)
            hessian[i, j] = total / (4 * steps[i] * steps[j])
    np.testing.assert_allclose(fit.covariance, np.linalg.inv(hessian), rtol=0.05, atol=1e-3)


@pytest.mark.parametrize("n", [40, pytest.param(400, marks=pytest.mark.exhaustive)])
def test_pulls_of_toys_have_unit_width(simple, n):
    truth = simple.with_values({"r": 1.2, "jes": 0.7})
    toys = simple.toys(truth, n, seed=2)
    assert len(toys.values) + toys.failed == n
    assert toys.failed <= 0.02 * n
    for name in ("r", "jes", "lumi", "dy_norm"):
        pulls = toys.pulls[:, toys.names.index(name)]
        assert abs(pulls.mean()) < 4 / np.sqrt(n), name
        assert abs(pulls.std(ddof=1) - 1) < 4 / np.sqrt(2 * n), name
    strengths = toys.values[:, toys.names.index("r")]
    assert abs(strengths.mean() - 1.2) < 4 * strengths.std() / np.sqrt(n)


def test_a_toy_depends_on_its_seed_alone(simple):
    truth = simple.with_values({"r": 0.8})
    few, more = simple.toys(truth, 2, seed=5), simple.toys(truth, 3, seed=5)
    np.testing.assert_array_equal(few.values, more.values[:2])
    assert (simple.toys(truth, 1, seed=6).values != few.values[:1]).any()


MATRIX = np.array([[320.0, 60, 10], [70, 300, 60], [5, 50, 150]])
"""Selected events by bin of the truth and reconstructed bin."""
BACKGROUND = np.array([40.0, 30, 20])
CROSS_SECTIONS = np.array([20.0, 15, 6])


def unfolding(truth_factors, *, relative=0.001):
    signals = [
        Process(f"tt_bin{i}", True, contents(*row, relative=relative), expected=x)
        for i, (row, x) in enumerate(zip(MATRIX, CROSS_SECTIONS, strict=True), 1)
    ]
    dy = Process("dy", False, contents(*BACKGROUND, relative=relative))
    data = truth_factors @ MATRIX + BACKGROUND
    return templates([*signals, dy], data=data, truth=(Axis("true m_tt [GeV]", EDGES),))


def test_the_unfolding_closes(tmp_path):
    """Another spectrum than the simulated one, and the covariance of an inversion by hand."""
    factors = np.array([0.7, 1.3, 2.0])
    found = unfolding(factors)
    config = build_config(TemplatesConfig, {"histogram": "response/m_tt", "channels": ["emu"]}, "test")
    write_templates(found, tmp_path / "u.root", config)
    fit = Model(tmp_path / "u.json").fit()
    spectrum = unfolded(fit, about_workspace(tmp_path / "u.json"))
    np.testing.assert_allclose(spectrum.value, factors * CROSS_SECTIONS, rtol=1e-3)
    np.testing.assert_allclose(spectrum.expected, CROSS_SECTIONS)
    assert spectrum.bins == ("300 to 400", "400 to 500", "500 to 700")
    # data = Aᵀ x + b with Poisson variances, and a little from the finite simulation.
    inverse = np.linalg.inv(MATRIX.T / CROSS_SECTIONS)
    by_hand = inverse @ np.diag(found.data["emu"]) @ inverse.T
    np.testing.assert_allclose(spectrum.covariance, by_hand, rtol=0.02, atol=1e-2)
    paths = write_fit(tmp_path / "fit", fit, spectrum=spectrum)
    assert [path.name for path in paths] == ["fit.json", "fit.md", "fit.tex"]
    content = json.loads(paths[0].read_text())
    np.testing.assert_allclose(content["unfolded"]["covariance_pb2"], spectrum.covariance)
    assert "| 300 to 400 | 14.0(" in paths[1].read_text()
    assert r"\toprule" in paths[2].read_text()


def test_tables(simple):
    fit = simple.fit()
    toys = simple.toys(simple.initial, 2)
    text = fit_markdown(fit, toys=toys)
    assert "| jes |" in text
    assert "stat_emu" not in text
    assert "### Pulls of 2 pseudo-experiments" in text
    assert unfolded(fit, {}) is None


def test_truth_bins_are_named(tmp_path):
    found = unfolding(np.ones(3))
    config = build_config(TemplatesConfig, {"channels": ["emu"]}, "test")
    bins = about(found, config)["truth_bins"]
    assert [entry["parameter"] for entry in bins] == ["r_tt_bin1", "r_tt_bin2", "r_tt_bin3"]
    assert about_workspace(tmp_path / "absent.json") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not readable as JSON"),
        ("{", "not readable as JSON"),
        ("{}", "no workspace that pyhf can use"),
        ("[1]", "list found; a workspace of `topreco templates` expected"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "shapes.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TopRecoError, match=message) as caught:
        Model(path)
    assert "\n" not in str(caught.value)


def test_data_of_other_bins_are_refused():
    content = workspace(templates([Process("tt", True, contents(400, 500, 220))], data=[400, 500, 220]))
    content["observations"][0]["data"].pop()
    with pytest.raises(
        TopRecoError, match=r"workspace: no workspace that pyhf can use \(5 numbers of data, 6"
    ):
        Model(content)


def test_a_value_that_the_fit_does_not_reach(simple):
    with pytest.raises(TopRecoError, match="r=50 is outside of its range, -5 to 10"):
        simple.with_values({"r": 50.0})


def test_a_failure_is_our_error_alone(simple, caplog):
    with pytest.raises(TopRecoError, match="does not converge") as caught:
        simple.fit(np.full_like(simple.data, np.nan))
    assert "\n" not in str(caught.value)
    assert not caplog.records


def test_unknown_parameters(simple):
    with pytest.raises(TopRecoError, match="no parameter 'jer' in the workspace; did you mean 'jes'"):
        simple.with_values({"jer": 1.0})
    with pytest.raises(TopRecoError, match="no parameter 'r_bin' in the fit"):
        simple.fit().index("r_bin")


def test_a_fit_that_does_not_converge(simple, monkeypatch):
    def fails(*_, **__):
        raise pyhf.exceptions.FailedMinimization(type("Result", (), {"message": "no minimum"})())

    monkeypatch.setattr(pyhf.infer.mle, "fit", fails)
    with pytest.raises(TopRecoError, match="does not converge"):
        simple.fit()
    assert simple.toys(simple.initial, 2).failed == 2


def test_without_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "iminuit", None)
    with pytest.raises(TopRecoError, match=r"topreco\[fit\]"):
        Model({})
