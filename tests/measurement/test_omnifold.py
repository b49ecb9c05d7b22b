"""OmniFold on Gaussian toys with smearing, efficiency, fakes, background and signed weights."""

import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.measurement.classifier import ClassifierSettings, fit_log_ratio, fit_mean
from topreco.measurement.omnifold import Measured, Simulated, spectrum, unfold

SETTINGS = ClassifierSettings(hidden=16, epochs=6, batch_size=250, learning_rate=0.02)
EDGES = np.array([-1.5, -0.5, 0.5, 1.5])


def efficiency(z):
    return 0.3 + 0.5 / (1 + np.exp(-z))


def simulate(rng, n, mean, fakes=0, weight=None):
    """Gaussian at `mean` of width 1, smeared by 0.4, with an efficiency that depends on z; fakes at x = 2."""
    z = np.r_[rng.normal(mean, 1, n), np.zeros(fakes)]
    x = np.r_[rng.normal(z[:n], 0.4), rng.normal(2, 0.3, fakes)]
    generated = np.arange(n + fakes) < n
    selected = ~generated | (rng.random(n + fakes) < efficiency(z))
    weight = np.ones(n + fakes) if weight is None else weight(rng, z)
    return Simulated(
        x[:, None], z[:, None], selected, generated, weight, weight, rng.integers(0, 5, n + fakes)
    )


def as_data(simulated):
    chosen = simulated.selected
    return Measured(simulated.x[chosen], simulated.weight[chosen])


def relative(values, wanted):
    return values / wanted - 1


@pytest.fixture(scope="module")
def closure():
    """Data at mean 0.3 with 600 fakes, unfolded with a simulation at 0 with 300."""
    rng = np.random.default_rng(1)
    truth = simulate(rng, 6000, 0.3, fakes=600)
    simulation = simulate(rng, 6000, 0.0, fakes=300)
    data = as_data(truth)
    inside = truth.selected & truth.generated
    result = unfold(
        data, simulation, iterations=3, settings=SETTINGS, truth=(truth.z[inside], truth.weight[inside])
    )
    return truth, simulation, data, result


def test_classifier_finds_a_ratio():
    rng = np.random.default_rng(2)
    x = np.r_[rng.normal(0.5, 1, 4000), rng.normal(-0.5, 1, 4000)][:, None]
    in_a = np.arange(8000) < 4000
    # Half the weight for A: the log-ratio is x − log 2.
    found = fit_log_ratio(x, 0.5 * in_a, 1.0 * ~in_a, SETTINGS, (1,))
    grid = np.linspace(-1.5, 1.5, 9)[:, None]
    assert np.abs(found(grid) - grid[:, 0] + np.log(2)).max() < 0.25
    again = fit_log_ratio(x, 0.5 * in_a, 1.0 * ~in_a, SETTINGS, (1,))
    np.testing.assert_array_equal(found(grid), again(grid))


def test_classifier_finds_a_mean():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6000, 1))
    y = np.where(rng.random(6000) < 0.5 + 0.4 * np.tanh(x[:, 0]), 1.0, -1.0)
    grid = np.linspace(-1.5, 1.5, 9)
    found = fit_mean(x, y, SETTINGS, (1,))(grid[:, None])
    assert np.abs(found - 0.8 * np.tanh(grid)).max() < 0.15


def test_closure_with_efficiency_and_fakes(closure):
    """Generated spectra of data, which nobody measured where they are not selected, to their errors."""
    truth, simulation, _, result = closure
    wanted = spectrum([truth.z[truth.generated][:, 0]], [EDGES], np.ones(6000)).value
    inside = simulation.generated
    before = spectrum([simulation.z[inside][:, 0]], [EDGES], np.ones(6000)).value
    after = spectrum([simulation.z[inside][:, 0]], [EDGES], result.ratio[inside]).value
    # About 3 % of error from the events of data, efficiency included, and as much from simulation.
    error = 2.5 * np.sqrt(wanted)
    assert (np.abs(after - wanted) / error).max() < 3
    assert np.abs(relative(before, wanted)).max() > 3 * np.abs(relative(after, wanted)).max()
    assert after.sum() == pytest.approx(6000, rel=0.05)


def test_ratios_of_step_1_may_come_from_elsewhere():
    """Rows are numbers of data, background and selected simulation, in this order."""
    rng = np.random.default_rng(4)
    simulation = simulate(rng, 3000, 0.0)
    data, background = as_data(simulate(rng, 3000, 0.3)), Measured(rng.normal(0, 1, (50, 1)), np.ones(50))
    table = np.concatenate([data.x, background.x, simulation.x[simulation.selected]])
    n_fixed, asked = len(data.x) + 50, []

    def fit_ratio(rows, a, b, seed):
        np.testing.assert_array_equal(rows[:n_fixed], np.arange(n_fixed))
        assert a[: len(data.x)].all()
        assert not a[len(data.x) :].any()
        assert b[len(data.x) :].all()
        network = fit_log_ratio(table[rows], a, b, SETTINGS, seed)

        def log_ratio(wanted):
            asked.extend(wanted)
            return network(table[wanted])

        return log_ratio

    options = {"iterations": 1, "settings": SETTINGS}
    own = unfold(data, simulation, background, **options)
    given = unfold(data, simulation, background, fit_ratio=fit_ratio, **options)
    np.testing.assert_array_equal(own.ratio, given.ratio)
    assert sorted(asked) == list(range(n_fixed, len(table)))


def test_iterations_converge():
    """Folds must not drift apart: with two of them their difference doubles in every iteration."""
    rng = np.random.default_rng(6)
    simulation, data = simulate(rng, 1500, 0.0), as_data(simulate(rng, 1500, 0.2))
    few, many = (unfold(data, simulation, iterations=n, settings=SETTINGS).ratio for n in (2, 12))
    sums = [
        np.array([ratio[simulation.fold == k].mean() for k in range(5)]) / ratio.mean()
        for ratio in (few, many)
    ]
    assert np.abs(sums[1] - 1).max() < 0.15
    assert many.mean() == pytest.approx(few.mean(), rel=0.1)


def test_fakes_get_their_own_weight(closure):
    """Data have twice as many."""
    _, simulation, _, result = closure
    fakes = simulation.selected & ~simulation.generated
    assert result.ratio[fakes].sum() == pytest.approx(600, rel=0.2)


def test_iterations_are_described(closure):
    *_, result = closure
    assert result.stopped == "iterations"
    assert len(result.iterations) == 3
    first, last = result.iterations[0], result.iterations[-1]
    assert last.change < first.change
    assert last.truth_distance < 3
    assert last.detector_chi2 < 3


def test_stops_when_nothing_changes():
    rng = np.random.default_rng(4)
    data, simulation = as_data(simulate(rng, 3000, 0.0)), simulate(rng, 3000, 0.0)
    result = unfold(data, simulation, settings=SETTINGS, tolerance=3.0)
    assert result.stopped == "tolerance"
    assert len(result.iterations) < 8


def test_background_is_a_part_of_the_expectation():
    """1500 events at x = −2 in data that the simulation of background has with half the weight and twice."""
    rng = np.random.default_rng(5)
    truth, simulation = simulate(rng, 5000, 0.2), simulate(rng, 5000, 0.0)
    data = as_data(truth)
    bump = rng.normal(-2, 0.2, (1500, 1))
    data = Measured(np.concatenate([data.x, bump]), np.ones(len(data.x) + 1500))
    background = Measured(rng.normal(-2, 0.2, (3000, 1)), np.full(3000, 0.5))
    wanted = spectrum([truth.z[:, 0]], [EDGES], np.ones(5000)).value
    found = {}
    for name, own in (("with", background), ("without", None)):
        ratio = unfold(data, simulation, own, iterations=2, settings=SETTINGS).ratio
        found[name] = spectrum([simulation.z[:, 0]], [EDGES], ratio).value
    # In the first bin are 80 selected events of signal under 1500 of background.
    assert np.abs(relative(found["with"], wanted))[0] < 1.5
    assert np.abs(relative(found["with"], wanted))[1:].max() < 0.25
    assert relative(found["without"], wanted)[0] > 2.5


def test_signed_weights_of_simulation():
    """Weights +1 and −1 with the same mean everywhere give what weights of 1 give, with larger errors."""
    rng = np.random.default_rng(6)
    truth = simulate(rng, 4000, 0.3)
    signed = simulate(rng, 8000, 0.0, weight=lambda rng, z: np.where(rng.random(len(z)) < 0.75, 1.0, -1.0))
    result = unfold(as_data(truth), signed, iterations=2, settings=SETTINGS)
    after = spectrum([signed.z[:, 0]], [EDGES], signed.generator_weight * result.ratio).value
    wanted = spectrum([truth.z[:, 0]], [EDGES], np.ones(4000)).value
    assert (np.abs(after - wanted) / (5 * np.sqrt(wanted))).max() < 3
    assert (result.ratio > 0).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Measured(np.zeros((3, 1)), np.ones(3)), "3 selected events of data"),
        (Measured(np.zeros((50, 1)), np.zeros(50)), "sum of the weights of data 0 found"),
        (Measured(np.zeros((50, 1)), np.full(50, np.nan)), "weights of data that are not finite"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(TopRecoError, match=message):
        unfold(data, simulate(np.random.default_rng(7), 200, 0.0))


def test_spectrum_in_two_dimensions_with_covariance():
    values = [np.array([0.5, 0.5, 1.5, np.nan]), np.array([0.1, 0.1, 5.0, 0.1])]
    weight = np.array([1.0, 2.0, 3.0, 4.0])
    replicas = np.stack([weight, 2 * weight, 3 * weight], axis=1)
    found = spectrum(values, [np.array([0.0, 1, 2]), np.array([0.0, 1])], weight, replicas)
    assert found.value.shape == (4, 3)
    assert found.value[1, 1] == 3
    assert found.value[2, 2] == 3
    assert found.value.sum() == 6
    cell = np.ravel_multi_index((1, 1), (4, 3))
    assert found.covariance[cell, cell] == pytest.approx(9)
