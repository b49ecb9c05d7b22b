"""Response curves: what they undo, that they rise, files, and methods that use them."""

import dataclasses

import numpy as np
import pytest

import topreco
from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import toy_events
from topreco.reconstruction.recalibration import ResponseCurve, fit_response_curve
from topreco.reconstruction.wrappers import Recalibrated


def shrunk(n, seed):
    """True masses, and predictions that shrink to the mean with a slope of 0.7."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(6.2, 0.25, n)
    predicted = 6.2 + 0.7 * (truth - 6.2) + rng.normal(0, 0.1, n)
    return np.exp(predicted), np.exp(truth)


def slope(predicted, truth):
    p, t = np.log(predicted), np.log(truth)
    return np.cov(p, t)[0, 1] / np.var(t, ddof=1)


def test_bins_of_truth_give_a_slope_of_one():
    predicted, truth = shrunk(50_000, 1)
    curve = fit_response_curve(predicted, truth, np.ones(50_000), bins_of="truth")
    predicted, truth = shrunk(50_000, 2)
    assert slope(predicted, truth) == pytest.approx(0.7, abs=0.01)
    assert slope(predicted * curve.factor(predicted), truth) == pytest.approx(1.0, abs=0.03)
    before, after = (
        np.corrcoef(np.log(p), np.log(truth))[0, 1] for p in (predicted, predicted * curve.factor(predicted))
    )
    assert after == pytest.approx(before, abs=0.01)


def test_bins_of_prediction_give_the_mean_truth():
    predicted, truth = shrunk(50_000, 1)
    curve = fit_response_curve(1.1 * predicted, truth, np.ones(50_000), bins_of="prediction")
    predicted, truth = shrunk(50_000, 2)
    corrected = 1.1 * predicted * curve.factor(1.1 * predicted)
    for low, high in ((380, 450), (450, 520), (520, 650)):
        chosen = (corrected > low) & (corrected < high)
        assert np.log(truth[chosen]).mean() == pytest.approx(np.log(corrected[chosen]).mean(), abs=0.01)


def test_weights_and_events_without_a_prediction():
    predicted, truth = shrunk(4000, 3)
    weight = np.r_[np.ones(2000), np.zeros(2000)]
    expected = fit_response_curve(predicted[:2000], truth[:2000], weight[:2000], bins_of="truth")
    broken = np.r_[predicted[:2000], np.full(2000, np.nan)]
    for found in (
        fit_response_curve(predicted, truth, weight, bins_of="truth"),
        fit_response_curve(broken, truth, np.ones(4000), bins_of="truth"),
        fit_response_curve(predicted[:2000], truth[:2000], -weight[:2000], bins_of="truth"),
    ):
        np.testing.assert_allclose(found.corrected, expected.corrected)


def test_curves_rise_even_without_any_relation():
    rng = np.random.default_rng(4)
    curve = fit_response_curve(
        rng.uniform(400, 600, 1000), rng.uniform(400, 600, 1000), np.ones(1000), bins_of="prediction"
    )
    m_tt = np.linspace(300, 800, 200)
    assert (np.diff(m_tt * curve.factor(m_tt)) >= 0).all()


def test_too_few_events():
    with pytest.raises(TopRecoError, match="20 events with truth found, 250 expected"):
        fit_response_curve(np.full(20, 400.0), np.full(20, 400.0), np.ones(20), bins_of="truth")


def test_files(tmp_path):
    curve = ResponseCurve(np.array([400.0, 500.0]), np.array([380.0, 520.0]))
    curve.write(tmp_path / "curve.json")
    again = ResponseCurve.read(tmp_path / "curve.json")
    np.testing.assert_array_equal(again.corrected, curve.corrected)
    np.testing.assert_allclose(again.factor(np.array([100.0, 400, 500, 900])), [0.95, 0.95, 1.04, 1.04])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("[", "no response curve"),
        ("3", "no response curve"),
        ('{"format": "x"}', "format 'x' found"),
        ('{"format": "topreco response curve 1", "predicted": [1, 2]}', "at least 2 points"),
        ('{"format": "topreco response curve 1", "predicted": [2, 1], "corrected": [1, 2]}', "does not rise"),
        ('{"format": "topreco response curve 1", "predicted": [1], "corrected": [1]}', "at least 2 points"),
        (
            '{"format": "topreco response curve 1", "predicted": [1, 2], "corrected": [1, NaN]}',
            "does not rise",
        ),
    ],
)
def test_unusable_files(tmp_path, content, message):
    path = tmp_path / "curve.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TopRecoError, match=message) as error:
        ResponseCurve.read(path)
    assert str(path) in str(error.value)


def test_recalibrated_methods(toy_model):
    method, events = topreco.load(toy_model), toy_events(30)
    curve = ResponseCurve(np.array([400.0, 1000.0]), np.array([380.0, 1200.0]))
    pair, other = method(events), Recalibrated(method, curve, name="own")(events)
    factor = curve.factor(fourvector.mass(pair.system))
    np.testing.assert_allclose(fourvector.mass(other.system), factor * fourvector.mass(pair.system))
    np.testing.assert_allclose(fourvector.rapidity(other.p4), fourvector.rapidity(pair.p4))
    assert Recalibrated(method, curve, name="own").name == "own"
    assert not Recalibrated(method, curve).uses_event_key


def test_events_without_a_prediction_keep_none():
    events = toy_events(30)
    broken = dataclasses.replace(events, b_candidates=np.full((30, 2), -1))
    curve = ResponseCurve(np.array([400.0, 1000.0]), np.array([380.0, 1200.0]))
    pair = Recalibrated(topreco.load("ellipse_closest", threads=1), curve)(broken)
    assert not pair.valid.any()
    assert np.isnan(pair.p4).all()
