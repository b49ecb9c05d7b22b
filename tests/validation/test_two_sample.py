"""Classifiers cannot tell exact samples from the truth, and can tell wrong ones."""

import sys

import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.core.events import toy_events
from topreco.validation.calibration import own_axes
from topreco.validation.two_sample import CONTEXT, context_of, two_sample

CLASSIFIERS = {"MLP", "boosted trees"}


@pytest.fixture(autouse=True)
def _sklearn():
    pytest.importorskip("sklearn")


def sample(n=6000, *, width=1.0, mixed=False, seed=1):
    """Context, truth and one sample of events with a Gaussian posterior."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(0, 60, (n, 6))
    truth, drawn = (middle + scale * 40 * rng.normal(size=(n, 6)) for scale in (1, width))
    if mixed:
        drawn = rng.permutation(drawn)
    context = np.concatenate([np.arcsinh(middle / 50), rng.normal(size=(n, 4))], axis=1)
    return context, truth, drawn, np.ones(n), rng.random(n)


def test_exact_samples_cannot_be_told_apart():
    found = two_sample(*sample())
    assert set(found) == CLASSIFIERS
    for of in found.values():
        assert (of.n_train, of.n_test) == (3000, 3000)
        assert abs(of.accuracy - 0.5) < 4 * of.accuracy_error
        assert 0.0005 < of.accuracy_error < 0.01
        assert of.p > 0.001


@pytest.mark.parametrize("width", [0.7, 1.4])
def test_wrong_widths_can(width):
    for of in two_sample(*sample(width=width)).values():
        assert of.accuracy > 0.55
        assert of.p < 1e-6


def test_samples_of_other_events_can():
    """Each component alone is distributed as it should be: only the context tells."""
    for of in two_sample(*sample(mixed=True)).values():
        assert of.accuracy > 0.6


def test_weights_count():
    """Wrong samples in events of weight 0 do no harm; with signed weights the accuracy stays ½."""
    context, truth, drawn, weight, order = sample()
    wrong = np.arange(len(weight)) % 3 == 0
    drawn[wrong] += 500
    assert two_sample(context, truth, drawn, weight, order)["boosted trees"].accuracy > 0.6
    found = two_sample(context, truth, drawn, np.where(wrong, 0.0, weight), order)
    assert found["boosted trees"].n_test == 2000
    for of in found.values():
        assert abs(of.accuracy - 0.5) < 4 * of.accuracy_error
    signed = np.random.default_rng(2).choice([1.0, 1.0, 1.0, -1.0], len(weight))
    context, truth, drawn, _, order = sample()
    for of in two_sample(context, truth, drawn, signed, order).values():
        assert abs(of.accuracy - 0.5) < 4 * of.accuracy_error


def test_same_seed_same_result_in_any_order():
    arguments = sample(1000, width=0.7)
    shuffled = np.random.default_rng(3).permutation(1000)
    found = two_sample(*arguments)
    assert two_sample(*arguments) == found
    assert two_sample(*(of[shuffled] for of in arguments)) == found


def test_unknown_and_few_events():
    context, truth, drawn, weight, order = sample(400)
    drawn[:250] = np.nan
    assert two_sample(context, truth, drawn, weight, order)["MLP"].n_test == 75
    drawn[:350] = np.nan
    assert two_sample(context, truth, drawn, weight, order) == {}


def test_context_is_what_was_measured():
    events = toy_events(30, max_jets=3)
    found = dict(zip(CONTEXT, context_of(events, own_axes(events)).T, strict=True))
    np.testing.assert_allclose(
        50 * np.sinh(found["px_plus"]), np.hypot(events.lepton_plus[:, 1], events.lepton_plus[:, 2])
    )
    assert (found["py_minus"] >= 0).all()
    np.testing.assert_allclose(50 * np.sinh(found["pz_jet1"]), events.jets[:, 0, 3])
    assert (found["px_jet4"] == 0).all()
    assert (found["n_jets"] == events.n_jets).all()


def test_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(
        TopRecoError, match=r"two-sample test: needs the extra: pip install 'topreco\[calibration"
    ):
        two_sample(*sample(200))
