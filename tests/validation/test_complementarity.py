"""Who is right where another fails."""

import numpy as np
import pytest

from topreco.validation.complementarity import complementarity, complementarity_markdown
from topreco.validation.gather import EventTable, Predictions


def table(predictions, truth, weight=None):
    weight = np.ones(len(truth)) if weight is None else weight
    found = {
        name: Predictions(np.isfinite(values), {"m_tt": np.asarray(values, float)}, None, {})
        for name, values in predictions.items()
    }
    return EventTable({"weight": weight}, {"m_tt": np.asarray(truth, float)}, found, {})


def test_by_hand():
    """Ten events of 400 GeV; residuals in percent, NaN without solution, one event without truth."""
    nan = np.nan
    a = [1, 1, 1, 1, 1, 1, 1, 30, nan, nan]
    b = [2, 2, 2, 2, 2, 40, 40, 2, 2, 40]
    truth = np.array([400.0] * 10 + [nan])
    values = {name: [*(400 * (1 + np.array(of) / 100)), 400] for name, of in (("a", a), ("b", b))}
    found = complementarity(table(values, truth), "m_tt")
    # 68 % of the solved events of a have 1 %, which is more than b ever has.
    assert found.tolerance == pytest.approx(0.01)
    values["b"] = [*(400 * (1 + np.array([1, 1, 1, 1, 1, 40, 40, 1, 1, 40]) / 100)), 400]
    found = complementarity(table(values, truth), "m_tt")
    np.testing.assert_allclose(found.right.value, [0.7, 0.7])
    # a fails in three events, in two of which b is right, and the other way round.
    np.testing.assert_allclose(found.rescued.value[0, 1], 2 / 3)
    np.testing.assert_allclose(found.rescued.value[1, 0], 2 / 3)
    np.testing.assert_array_equal(np.diagonal(found.rescued.value), 0)
    np.testing.assert_allclose(found.any_right.value, 0.9)
    np.testing.assert_allclose(found.right.error, np.sqrt(0.7 * 0.3 / 10))


def test_weights_count():
    values = {"a": [404.0, 404.0, np.nan], "b": [np.nan, 404.0, 404.0]}
    found = complementarity(table(values, [400.0] * 3, np.array([1.0, 1.0, 4.0])), "m_tt")
    np.testing.assert_allclose(found.right.value, [2 / 6, 5 / 6])
    np.testing.assert_allclose(found.rescued.value[0, 1], 1.0)
    np.testing.assert_allclose(found.any_right.value, 1.0)


def test_tables():
    values = {"a": [404.0, 500.0], "b": [404.0, 404.0]}
    found = complementarity(table(values, [400.0] * 2), "m_tt")
    text = "\n".join(complementarity_markdown({"m_tt": found}))
    assert "## m_tt, who is right where another fails" in text
    assert "| fails | right in all | a | b |" in text
    alone = complementarity(table({"a": values["a"]}, [400.0] * 2), "m_tt")
    assert not list(complementarity_markdown({"m_tt": alone}))


def test_a_method_without_solutions():
    found = complementarity(table({"a": [np.nan] * 2, "b": [404.0, 404]}, [400.0] * 2), "m_tt")
    np.testing.assert_allclose(found.right.value, [0, 1])
    nothing = complementarity(table({"a": [np.nan] * 2, "b": [np.nan] * 2}, [400.0] * 2), "m_tt")
    np.testing.assert_allclose(nothing.right.value, [0, 0])
