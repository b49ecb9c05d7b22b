"""Better, equal or worse than the best analytic method, on toys whose correlation and bias are known."""

import numpy as np
import pytest

from topreco.core.statistics import summarise_arrays
from topreco.validation.gather import EventTable, Predictions
from topreco.validation.verdicts import BEYOND, compare_with_analytic, counts, negligible_bias

N = 5000


def make_table(*, seed=1, weight=None, **methods):
    """c_hel with noise (width, shift) for each method, common to all methods but for a small part."""
    rng = np.random.default_rng(seed)
    truth, common = rng.normal(size=N), rng.normal(size=N)
    predictions = {}
    for name, (width, shift) in methods.items():
        values = truth + width * (common + 0.3 * rng.normal(size=N)) + shift
        predictions[name] = Predictions(np.ones(N, bool), {"c_hel": values}, None, {})
    weight = np.ones(N) if weight is None else weight
    return EventTable({"weight": weight}, {"c_hel": truth}, predictions, {})


def compared(table, *, analytic=("first", "second"), **options):
    return compare_with_analytic(table, ["c_hel"], ["net"], analytic, **options)["net"]["c_hel"]


@pytest.mark.parametrize(("width", "verdict"), [(0.9, "better"), (1.0, "equal"), (1.1, "worse")])
def test_correlation(width, verdict):
    found = compared(make_table(net=(width, 0), first=(2, 0), second=(1, 0))).correlation
    assert found.verdict == verdict
    assert found.analytic == "second"
    assert found.value == pytest.approx(1 / np.hypot(1, width * np.sqrt(1.09)), abs=0.02)
    assert found.difference == found.value - found.best


@pytest.mark.parametrize(
    ("net", "first", "verdict"),
    [(0.2, 0.1, "worse"), (-0.2, 0.1, "worse"), (0.1, 0.2, "better"), (0.1, -0.1, "equal")],
)
def test_bias(net, first, verdict):
    found = compared(make_table(net=(0.1, net), first=(0.1, first), second=(0.1, 0.5))).bias
    assert found.verdict == verdict
    assert found.analytic == "first"
    assert found.value == pytest.approx(net, abs=0.01)
    assert found.best == pytest.approx(abs(first), abs=0.01)


def test_small_biases_are_none():
    """0.02 is none for an angle, whatever the error; 0.04 is one."""
    small = compared(make_table(net=(0.01, 0.02), first=(0.01, 0.0), second=(0.01, 0.0))).bias
    assert small.difference > BEYOND * small.difference_error
    assert small.verdict == "equal"
    assert compared(make_table(net=(0.01, 0.04), first=(0.01, 0), second=(0.01, 0))).bias.verdict == "worse"
    assert compared(make_table(net=(0.01, 0), first=(0.01, 0.02), second=(0.01, 0.9))).bias.verdict == "equal"
    found = {name: negligible_bias(name) for name in ("m_tt", "pt_tt", "y_top", "c_han", "delta_abs_y")}
    assert found == {"m_tt": 0.01, "pt_tt": 2.0, "y_top": 0.03, "c_han": 0.03, "delta_abs_y": 0.03}


def test_errors_are_those_of_paired_differences():
    """Against the scatter over independent samples; and far below errors added in quadrature."""
    made = [
        compared(make_table(seed=seed, net=(1.05, 0.1), first=(1, 0.2), second=(9, 9))) for seed in range(60)
    ]
    for field in ("correlation", "bias"):
        differences = np.array([getattr(of, field).difference for of in made])
        error = np.mean([getattr(of, field).difference_error for of in made])
        assert error == pytest.approx(differences.std(ddof=1), rel=0.3), field
    table = make_table(net=(1.05, 0.1), first=(1, 0.2), second=(9, 9))
    single = summarise_arrays(table.predictions["net"].values["c_hel"], table.truth["c_hel"], relative=False)
    assert made[0].bias.difference_error < 0.7 * single.rb_error
    assert made[0].correlation.value != single.correlation  # another seed


def test_values_are_those_of_the_metrics():
    rng = np.random.default_rng(2)
    weight = rng.choice([2.0, 1.0, -1.0], N, p=[0.4, 0.5, 0.1])
    table = make_table(weight=weight, net=(1.0, 0.1), first=(1.5, 0.2), second=(2, 0.3))
    found = compared(table)
    for method, field in (("net", "value"), ("first", "best")):
        expected = summarise_arrays(
            table.predictions[method].values["c_hel"], table.truth["c_hel"], weight, relative=False
        )
        assert getattr(found.correlation, field) == pytest.approx(expected.correlation, rel=1e-9)
        assert getattr(found.bias, field) == pytest.approx(expected.rb, rel=1e-9)


def test_false_alarms_are_rare():
    """Equal methods are called different in about 5 % of the cases."""
    made = [
        compared(make_table(seed=seed, net=(1, 0.2), first=(1, 0.2)), analytic=("first",), n_resamples=200)
        for seed in range(150)
    ]
    for field in ("correlation", "bias"):
        alarms = np.mean([getattr(of, field).verdict != "equal" for of in made])
        assert alarms < 0.12, field


def test_events_that_one_does_not_solve_do_not_count():
    table = make_table(net=(1, 0), first=(1, 0), second=(1, 0))
    table.predictions["first"].valid[:1000] = False
    table.predictions["net"].values["c_hel"][-500:] = np.nan
    assert compared(table).n == N - 1500


def test_what_does_not_vary_has_no_verdict():
    table = make_table(net=(1, 0), first=(1, 0), second=(1, 0))
    values = np.full(N, 0.5) + 1e-9 * np.random.default_rng(1).normal(size=N)
    table.predictions["net"].values["c_hel"][:] = values
    found = compared(table)
    assert found.correlation.verdict == "undefined"
    assert found.bias.verdict == "worse"
    assert counts({"c_hel": found}, "bias") == {
        "better": [],
        "equal": [],
        "worse": ["c_hel"],
        "undefined": [],
    }


def test_same_seed_same_errors_and_nothing_to_compare_with():
    table = make_table(net=(1, 0), first=(1, 0), second=(1, 0))
    assert compared(table) == compared(table)
    assert compared(table) != compared(table, seed=1)
    assert compare_with_analytic(table, ["c_hel"], ["net"], []) == {}
    nothing = make_table(net=(1, 0), first=(1, 0))
    nothing.predictions["first"].valid[:] = False
    found = compared(nothing, analytic=("first",))
    assert (found.n, found.correlation.verdict, found.bias.verdict) == (0, "undefined", "undefined")
