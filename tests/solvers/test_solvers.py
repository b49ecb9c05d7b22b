"""Laws that both solvers obey."""

import numba
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from topreco.core.errors import TopRecoError
from topreco.core.fourvector import boost, from_three_momentum, mass
from topreco.solvers import ellipse, sonnenschein

SOLVERS = {"sonnenschein": sonnenschein.solve, "ellipse": ellipse.solve}
MOMENTA = ("lepton_plus", "lepton_minus", "b", "bbar")
MASSES = ("m_top", "m_antitop", "m_w_plus", "m_w_minus")

CLOSURE = 1e-4
CONSTRAINTS = 1e-6
AGREEMENT = 1e-6


@pytest.fixture(params=SOLVERS)
def solve(request):
    return SOLVERS[request.param]


def distance_to_truth(neutrinos, truth):
    """Smallest deviation of a solution from the truth, relative to the larger neutrino energy."""
    scale = truth[..., 0].max(1)
    deviation = np.abs(neutrinos - truth[:, None]).max((2, 3)) / scale[:, None]
    return np.where(np.isnan(deviation), np.inf, deviation).min(1)


def assert_same(a, b, tolerance=1e-7):
    """Solutions agree one by one, relative to the largest energy of the event."""
    assert np.array_equal(a.count, b.count)
    scale = np.nan_to_num(a.neutrinos[..., 0]).max((1, 2)) + 1
    assert np.nan_to_num(np.abs(a.neutrinos - b.neutrinos)).max((1, 2, 3)) / scale == pytest.approx(
        0, abs=tolerance
    )


def check_closure(solution, events, residuals, failures):
    assert (distance_to_truth(solution.neutrinos, events.neutrinos) > CLOSURE).sum() <= failures
    found = np.isfinite(solution.neutrinos[..., 0, 0])
    assert np.array_equal(found.sum(1), solution.count)
    # Padding comes last.
    assert np.array_equal(found, np.arange(4) < solution.count[:, None])
    assert np.nanmax(residuals(events.arguments, solution.neutrinos)) < CONSTRAINTS


def test_closure_on_partons(solve, parton_events, constraint_residuals):
    check_closure(solve(**parton_events.arguments), parton_events, constraint_residuals, failures=0)


def test_closure_on_random_events(solve, exact_events, constraint_residuals):
    events = exact_events(50_000, seed=1)
    check_closure(solve(**events.arguments), events, constraint_residuals, failures=0)


angles = st.tuples(st.floats(-1, 1), st.floats(-np.pi, np.pi))


def one_per_leg(low, high):
    return st.tuples(st.floats(low, high), st.floats(low, high))


def condition(arguments, neutrinos):
    """Condition number of the four mass constraints in (px, py, pz, p̄z), rows of unit length."""
    rows = []
    for leg, (lepton, b) in enumerate((("lepton_plus", "b"), ("lepton_minus", "bbar"))):
        p = neutrinos[0, leg]
        for other in (arguments[lepton][0], arguments[b][0]):
            gradient = p[1:] / p[0] - other[1:] / other[0]
            row = np.zeros(4)
            row[:2] = gradient[:2] * (1 if leg == 0 else -1)
            row[2 + leg] = gradient[2]
            rows.append(row / max(np.linalg.norm(row), 1e-300))
    return np.linalg.cond(rows)


@pytest.mark.parametrize("name", SOLVERS)
@settings(deadline=None)
@given(
    m_tt_excess=st.floats(1, 3000),
    pt=st.floats(0, 500),
    phi=st.floats(-np.pi, np.pi),
    rapidity=st.floats(-2.5, 2.5),
    m_top=one_per_leg(150, 200),
    m_w=one_per_leg(60, 100),
    m_b=one_per_leg(0, 20),
    m_lepton=st.tuples(*[st.sampled_from([0.0, 0.000511, 0.105658, 1.777])] * 2),
    directions=st.tuples(*[angles] * 5),
)
def test_closure_on_drawn_events(name, events_of, constraint_residuals, **kinematics):
    events = events_of(**{field: np.array([value], dtype=float) for field, value in kinematics.items()})
    scale = np.max([events.arguments[p][0, 0] for p in MOMENTA])
    # A neutrino or b at rest, or MET, that vanishes has no relative precision.
    assume(events.neutrinos[0, :, 0].min() > 1e-2)
    assume(np.hypot(*events.arguments["met"][0]) > 1e-3)
    # Near tangency, solutions merge and their number depends on the last digit.
    assume(condition(events.arguments, events.neutrinos) < 1e4)
    solution = SOLVERS[name](**events.arguments)
    assert distance_to_truth(solution.neutrinos, events.neutrinos)[0] < CLOSURE
    rounding = 1e-13 * (scale / 60) ** 2
    assert np.nanmax(constraint_residuals(events.arguments, solution.neutrinos)) < CONSTRAINTS + rounding


@pytest.mark.parametrize("both", [False, True], ids=["one leg", "both legs"])
@pytest.mark.parametrize("tilt", [0.0, 1e-9, 1e-6, 1e-4])
def test_equal_longitudinal_velocities(
    solve, exact_events, events_from_legs, constraint_residuals, both, tilt
):
    """Where lepton and b have the same p_z/E, a₄ vanishes and the conic of the leg is a double line."""
    n = 2000
    drawn = exact_events(n, seed=2)
    rng = np.random.default_rng(3)
    legs = []
    for leg, (lepton, b) in enumerate((("lepton_plus", "b"), ("lepton_minus", "bbar"))):
        p4 = [drawn.arguments[lepton], drawn.arguments[b], drawn.neutrinos[:, leg]]
        if leg == 0 or both:
            normal = p4[1][:, 1:] / p4[1][:, :1] - p4[0][:, 1:] / p4[0][:, :1]
            phi = rng.uniform(-np.pi, np.pi, n)
            wanted = np.stack([np.cos(phi), np.sin(phi), tilt * rng.normal(size=n)], -1)
            axis = normal / np.linalg.norm(normal, axis=1)[:, None]
            axis += wanted / np.linalg.norm(wanted, axis=1)[:, None]
            axis /= np.linalg.norm(axis, axis=1)[:, None]
            # Half a turn about the bisector takes the normal to the wanted direction.
            p4 = [
                np.column_stack([p[:, 0], 2 * axis * (axis * p[:, 1:]).sum(1)[:, None] - p[:, 1:]])
                for p in p4
            ]
        legs.append(tuple(p4))
    events = events_from_legs(legs)
    # With both legs flat, two lines meet: near their ends some solutions stay unresolved.
    check_closure(solve(**events.arguments), events, constraint_residuals, failures=12 if both else 0)


def test_solutions_come_in_rising_m_tt(solve, exact_events):
    arguments = exact_events(5000, seed=4).arguments
    solution = solve(**arguments)
    system = solution.neutrinos.sum(2) + sum(arguments[name] for name in MOMENTA)[:, None]
    rise = np.diff(mass(system), axis=1)
    assert (rise[np.isfinite(rise)] >= -1e-9).all()


def test_solvers_agree(exact_events):
    events = exact_events(100_000, seed=5)
    a, b = (solve(**events.arguments) for solve in SOLVERS.values())
    same = a.count == b.count
    # Near tangency counts may flip.
    assert (~same).sum() <= 2
    scale = np.nanmax(a.neutrinos[..., 0], axis=(1, 2))
    deviation = np.nan_to_num(np.abs(a.neutrinos - b.neutrinos)).max((1, 2, 3)) / scale
    assert deviation[same].max() < AGREEMENT


def test_solvers_agree_where_events_are_smeared(exact_events):
    """Also in how many events have no solution, with inputs that no exact event has."""
    arguments = exact_events(50_000, seed=6).arguments
    rng = np.random.default_rng(7)
    for name in MOMENTA:
        arguments[name] = arguments[name] * rng.normal(1, 0.15, (50_000, 1))
    arguments["met"] = arguments["met"] + rng.normal(0, 25, (50_000, 2))
    a, b = (solve(**arguments) for solve in SOLVERS.values())
    same = a.count == b.count
    assert (~same).sum() <= 2
    assert 0.3 < (a.count == 0).mean() < 0.6
    scale = np.nan_to_num(a.neutrinos[..., 0]).max((1, 2)) + 1
    deviation = np.nan_to_num(np.abs(a.neutrinos - b.neutrinos)).max((1, 2, 3)) / scale
    assert deviation[same].max() < AGREEMENT


def test_charge_conjugation_swaps_the_legs(solve, exact_events):
    a = exact_events(5000, seed=8).arguments
    conjugate = {
        "lepton_plus": a["lepton_minus"],
        "lepton_minus": a["lepton_plus"],
        "b": a["bbar"],
        "bbar": a["b"],
        "met": a["met"],
        "m_top": a["m_antitop"],
        "m_antitop": a["m_top"],
        "m_w_plus": a["m_w_minus"],
        "m_w_minus": a["m_w_plus"],
    }
    expected = solve(**a)
    found = solve(**conjugate)
    assert_same(expected, found._replace(neutrinos=found.neutrinos[:, :, ::-1]))


@pytest.mark.parametrize("angle", [0.3, np.pi / 2, -2.0])
def test_rotation_about_the_beam(solve, exact_events, angle):
    def rotate(p, first):
        turned = p.copy()
        x, y = p[..., first], p[..., first + 1]
        turned[..., first] = np.cos(angle) * x - np.sin(angle) * y
        turned[..., first + 1] = np.sin(angle) * x + np.cos(angle) * y
        return turned

    arguments = exact_events(5000, seed=9).arguments
    turned = arguments | {name: rotate(arguments[name], 1) for name in MOMENTA}
    turned["met"] = rotate(arguments["met"], 0)
    expected = solve(**arguments)
    assert_same(expected._replace(neutrinos=rotate(expected.neutrinos, 1)), solve(**turned))


@pytest.mark.parametrize("velocity", [0.5, -0.9])
def test_boost_along_the_beam(solve, exact_events, velocity):
    along = np.array([0.0, 0.0, velocity])
    arguments = exact_events(5000, seed=10).arguments
    boosted = arguments | {name: boost(arguments[name], along) for name in MOMENTA}
    expected = solve(**arguments)
    # E² − p_z² of the system orders the solutions, also after the boost.
    assert_same(expected._replace(neutrinos=boost(expected.neutrinos, along)), solve(**boosted))


def test_events_do_not_know_each_other(solve, exact_events):
    arguments = exact_events(1000, seed=11).arguments
    expected = solve(**arguments)
    order = np.random.default_rng(12).permutation(1000)
    found = solve(**{name: value[order] for name, value in arguments.items()})
    assert np.array_equal(found.count, expected.count[order])
    assert np.array_equal(found.neutrinos, expected.neutrinos[order], equal_nan=True)


def test_threads_change_nothing(solve, exact_events):
    arguments = exact_events(1000, seed=13).arguments
    before = numba.get_num_threads()
    expected, found = solve(**arguments), solve(**arguments, threads=2)
    assert numba.get_num_threads() == before
    assert np.array_equal(expected.neutrinos, found.neutrinos, equal_nan=True)
    assert np.array_equal(expected.count, found.count)


def test_masses_default_to_the_constants(solve, exact_events):
    arguments = {
        name: value for name, value in exact_events(200, seed=14).arguments.items() if name not in MASSES
    }
    given_masses = {"m_top": 172.5, "m_antitop": np.full(200, 172.5), "m_w_plus": 80.4, "m_w_minus": 80.4}
    assert_same(solve(**arguments), solve(**arguments, **given_masses), tolerance=0)


def test_single_precision_input(solve, exact_events):
    """Rounding makes massless particles slightly spacelike; they have solutions nevertheless."""
    events = exact_events(2000, seed=15)
    rounded = {name: value.astype(np.float32) for name, value in events.arguments.items()}
    solution = solve(**rounded)
    assert solution.neutrinos.dtype == np.float64
    assert (distance_to_truth(solution.neutrinos, events.neutrinos) < 1e-2).mean() > 0.98


def test_no_events(solve):
    solution = solve(*[np.empty((0, 4))] * 4, np.empty((0, 2)))
    assert solution.neutrinos.shape == (0, 4, 2, 4)
    assert solution.count.shape == (0,)


BAD = {
    "NaN momentum": {"b": [np.nan, 1.0, 2.0, 3.0]},
    "NaN in one component": {"lepton_minus": [50.0, 1.0, np.nan, 3.0]},
    "infinite energy": {"bbar": [np.inf, 1.0, 2.0, 3.0]},
    "infinite momentum": {"lepton_plus": [50.0, np.inf, 2.0, 3.0]},
    "zero jet": {"b": [0.0, 0.0, 0.0, 0.0]},
    "zero energy": {"b": [0.0, 30.0, 20.0, 10.0]},
    "negative energy": {"bbar": [-90.0, 30.0, 20.0, 10.0]},
    "spacelike jet": {"bbar": [30.0, 30.0, 40.0, 10.0]},
    "spacelike lepton": {"lepton_plus": [30.0, 30.0, 40.0, 10.0]},
    "NaN MET": {"met": [np.nan, 10.0]},
    "infinite MET": {"met": [np.inf, 10.0]},
    "MET far away": {"met": [1e30, 10.0]},
    "lepton and b the same": {"lepton_plus": [50.0, 30.0, 40.0, 0.0], "b": [100.0, 60.0, 80.0, 0.0]},
    "everything along the beam": {"lepton_plus": [50.0, 0.0, 0.0, 50.0], "b": [90.0, 0.0, 0.0, 90.0]},
    "zero W mass": {"m_w_plus": 0.0},
    "negative W mass": {"m_w_minus": -80.4},
    "W heavier than top": {"m_w_minus": 200.0},
    "zero top mass": {"m_antitop": 0.0},
    "NaN top mass": {"m_top": np.nan},
    "infinite top mass": {"m_top": np.inf},
    "huge numbers": {"lepton_plus": [1e200, 1e199, 0.0, 0.0]},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_input_without_a_solution(solve, exact_events, change):
    """It has none, and leaves the events beside it alone."""
    arguments = exact_events(3, seed=16).arguments
    expected = solve(**arguments)
    for name, value in change.items():
        arguments[name][1] = value
    found = solve(**arguments)
    assert found.count[1] == 0
    assert np.isnan(found.neutrinos[1]).all()
    assert np.array_equal(found.neutrinos[::2], expected.neutrinos[::2], equal_nan=True)


def test_degenerate_input_with_solutions(solve, events_from_legs, constraint_residuals):
    """Massless and collinear lepton and b, leptons at rest, MET that vanishes."""

    def p4(px, py, pz, m=0.0):
        return from_three_momentum(np.array([[px, py, pz]], dtype=float), m)

    other = (p4(-40, 15, 20, 0.1), p4(-25, -60, 10, 5.0), p4(-30, 30, -45))
    for lepton, b in (
        (p4(30, 40, 10), p4(-60, 20, 5)),
        (p4(30, 40, 0, 0.1), p4(60, 80, 0, 20.0)),
        (p4(0, 0, 0, 1.8), p4(60, 20, 10, 5.0)),
        (p4(20, 0, 30), p4(0, 0, 70, 5.0)),
    ):
        for neutrino in (p4(25, -35, 60), p4(30, -30, 20)):
            events = events_from_legs([(lepton, b, neutrino), other])
            solution = solve(**events.arguments)
            assert distance_to_truth(solution.neutrinos, events.neutrinos)[0] < CLOSURE
            met = bool(np.any(events.arguments["met"]))
            residual = constraint_residuals(events.arguments, solution.neutrinos, met=met)
            assert np.nanmax(residual) < CONSTRAINTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": np.ones((3, 3))}, r"b has shape \(3, 3\), expected \(3, 4\) like lepton_plus"),
        ({"lepton_plus": np.ones(4)}, r"lepton_plus has shape \(4,\), expected \(n, 4\)"),
        ({"lepton_minus": np.ones((2, 4))}, r"lepton_minus has shape \(2, 4\), expected \(3, 4\)"),
        ({"met": np.ones((3, 4))}, r"met has shape \(3, 4\), expected \(3, 2\)"),
        ({"m_top": np.ones(2)}, r"m_top has shape \(2,\), expected \(\) or \(3,\)"),
        ({"m_w_minus": np.ones((3, 1))}, r"m_w_minus has shape \(3, 1\)"),
        ({"bbar": [["a"] * 4] * 3}, "bbar is not an array of numbers"),
        ({"threads": 0}, "threads is 0, expected 1 or more"),
    ],
)
def test_wrong_arguments(solve, exact_events, change, message):
    arguments = exact_events(3, seed=17).arguments
    with pytest.raises(TopRecoError, match=message):
        solve(**(arguments | change))
