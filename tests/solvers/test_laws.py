"""Laws of the solvers, each asserted for every solver that it applies to."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from topreco.core.errors import TopRecoError
from topreco.core.fourvector import boost, from_three_momentum, mass
from topreco.solvers import ellipse, loose, neutrino_weighting, sonnenschein

MOMENTA = ("lepton_plus", "lepton_minus", "b", "bbar")
MASSES = ("m_top", "m_antitop", "m_w_plus", "m_w_minus")

CLOSURE = 1e-4
CONSTRAINTS = 1e-6
AGREEMENT = 1e-6


class Found(NamedTuple):
    """Momenta (n, solutions, objects, 4) and the solver's number per event (n,)."""

    momenta: np.ndarray
    number: np.ndarray


class Solver(NamedTuple):
    """A solver, and how well its results survive a transformation of the input."""

    function: Callable[..., Any]
    exact: bool = False  # finds all solutions of exact events
    tolerance: float = 1e-7  # of momenta relative to the largest energy, and of the number
    share: float = 1.0  # of events within the tolerance: rounding may choose between equal maxima

    def __call__(self, arguments: dict[str, Any], **options: Any) -> Found:
        if self.function is loose.solve and "m_w_plus" in arguments:
            arguments = {name: v for name, v in arguments.items() if name not in MASSES} | {
                "m_w": arguments["m_w_plus"]
            }
        momenta, number = self.function(**arguments, **options)
        shape = {4: (), 3: (1,), 2: (1, 1)}[momenta.ndim]
        return Found(momenta.reshape(len(momenta), *shape, *momenta.shape[1:]), number)

    def check_same(self, expected: Found, found: Found, transform=lambda p: p) -> None:
        """Assert that transformed momenta agree one by one."""
        wanted = transform(expected.momenta)
        assert np.array_equal(np.isnan(wanted), np.isnan(found.momenta))
        assert np.array_equal(np.isnan(expected.number), np.isnan(found.number))
        agree = np.isclose(found.number, expected.number, rtol=1e-6, atol=1e-5, equal_nan=True)
        scale = np.nan_to_num(wanted[..., 0]).max((1, 2)) + 1
        deviation = np.nan_to_num(np.abs(found.momenta - wanted)).max((1, 2, 3)) / scale
        assert (agree & (deviation <= self.tolerance)).mean() >= self.share


SOLVERS = {
    "sonnenschein": Solver(sonnenschein.solve, exact=True),
    "ellipse": Solver(ellipse.solve, exact=True),
    "closest": Solver(ellipse.closest_approach, tolerance=1e-5, share=0.995),
    "neutrino weighting": Solver(neutrino_weighting.solve, tolerance=1e-5, share=0.995),
    "loose": Solver(loose.solve, tolerance=1e-9),
}
EXACT = {name: solver for name, solver in SOLVERS.items() if solver.exact}
WITH_TOP = {name: solver for name, solver in SOLVERS.items() if name != "loose"}

every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
every_exact_solver = pytest.mark.parametrize("solver", EXACT.values(), ids=EXACT)
every_solver_with_top = pytest.mark.parametrize("solver", WITH_TOP.values(), ids=WITH_TOP)


@pytest.fixture
def arguments(solver, exact_events, smeared_events):
    """2000 events: exact ones for solvers of all six constraints."""
    return exact_events(2000, 8).arguments if solver.exact else smeared_events(2000, 8)


def distance_to_truth(momenta, truth):
    """Smallest deviation of a solution from the truth, relative to the larger neutrino energy."""
    scale = truth[..., 0].max(1)
    deviation = np.abs(momenta - truth[:, None]).max((2, 3)) / scale[:, None]
    return np.where(np.isnan(deviation), np.inf, deviation).min(1)


# ---- solutions -------------------------------------------------------------------------------------------


def check_closure(found, events, residuals, failures=0):
    assert (distance_to_truth(found.momenta, events.neutrinos) > CLOSURE).sum() <= failures
    there = np.isfinite(found.momenta[..., 0, 0])
    assert np.array_equal(there.sum(1), found.number)
    # Padding comes last.
    assert np.array_equal(there, np.arange(4) < found.number[:, None])
    assert np.nanmax(residuals(events.arguments, found.momenta)) < CONSTRAINTS


@every_exact_solver
def test_closure_on_partons(solver, parton_events, constraint_residuals):
    check_closure(solver(parton_events.arguments), parton_events, constraint_residuals)


@every_exact_solver
def test_closure_on_random_events(solver, exact_events, constraint_residuals):
    events = exact_events(50_000, seed=1)
    check_closure(solver(events.arguments), events, constraint_residuals)


angles = st.tuples(st.floats(-1, 1), st.floats(-np.pi, np.pi))


def one_per_leg(low, high):
    return st.tuples(st.floats(low, high), st.floats(low, high))


def condition(arguments, neutrinos):
    """Condition number of the four mass constraints in (px, py, pz, p̄z).

    Rows are differences of velocities. One vanishes where the neutrino is collinear with a massless lepton or
    b: m(bν) is at its minimum there.
    """
    rows = []
    for leg, (lepton, b) in enumerate((("lepton_plus", "b"), ("lepton_minus", "bbar"))):
        p = neutrinos[0, leg]
        for other in (arguments[lepton][0], arguments[b][0]):
            gradient = p[1:] / p[0] - other[1:] / other[0]
            row = np.zeros(4)
            row[:2] = gradient[:2] * (1 if leg == 0 else -1)
            row[2 + leg] = gradient[2]
            rows.append(row)
    return np.linalg.cond(rows)


@every_exact_solver
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
def test_closure_on_drawn_events(solver, events_of, constraint_residuals, **kinematics):
    events = events_of(**{field: np.array([value], dtype=float) for field, value in kinematics.items()})
    scale = np.max([events.arguments[p][0, 0] for p in MOMENTA])
    # A neutrino or b at rest, or MET, that vanishes has no relative precision.
    assume(events.neutrinos[0, :, 0].min() > 1e-2)
    assume(np.hypot(*events.arguments["met"][0]) > 1e-3)
    # Near tangency, solutions merge and their number depends on the last digit.
    assume(condition(events.arguments, events.neutrinos) < 5e3)
    momenta = solver(events.arguments).momenta
    assert distance_to_truth(momenta, events.neutrinos)[0] < CLOSURE
    rounding = 1e-13 * (scale / 60) ** 2
    assert np.nanmax(constraint_residuals(events.arguments, momenta)) < CONSTRAINTS + rounding


@pytest.mark.parametrize("both", [False, True], ids=["one leg", "both legs"])
@pytest.mark.parametrize("tilt", [0.0, 1e-9, 1e-6, 1e-4])
@every_exact_solver
def test_equal_longitudinal_velocities(
    solver, exact_events, events_from_legs, constraint_residuals, both, tilt
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
    check_closure(solver(events.arguments), events, constraint_residuals, failures=12 if both else 0)


@every_exact_solver
def test_solutions_come_in_rising_m_tt(solver, arguments):
    system = solver(arguments).momenta.sum(2) + sum(arguments[name] for name in MOMENTA)[:, None]
    rise = np.diff(mass(system), axis=1)
    assert (rise[np.isfinite(rise)] >= -1e-9).all()


@pytest.mark.parametrize("smeared", [False, True], ids=["exact", "smeared"])
def test_exact_solvers_agree(exact_events, smeared_events, smeared):
    """Also in how many events have no solution, with inputs that no exact event has."""
    arguments = smeared_events(50_000, seed=6) if smeared else exact_events(100_000, seed=5).arguments
    a, b = (solver(arguments) for solver in EXACT.values())
    same = a.number == b.number
    # Near tangency counts may flip.
    assert (~same).sum() <= 2
    assert 0.3 < (a.number == 0).mean() < 0.6 if smeared else a.number.all()
    scale = np.nan_to_num(a.momenta[..., 0]).max((1, 2)) + 1
    deviation = np.nan_to_num(np.abs(a.momenta - b.momenta)).max((1, 2, 3)) / scale
    assert deviation[same].max() < AGREEMENT


@every_solver_with_top
def test_mass_constraints(solver, smeared_events, constraint_residuals):
    """The neutrinos are massless, and every pair meets the four mass constraints."""
    arguments = smeared_events(10_000, 1)
    found = solver(arguments)
    solved = found.number > 0 if solver.exact else np.isfinite(found.number)
    assert 0.4 < solved.mean() < 0.95
    assert np.array_equal(solved, np.isfinite(found.momenta[:, 0]).all((1, 2)))
    assert np.nanmax(constraint_residuals(arguments, found.momenta, met=solver.exact)) < CONSTRAINTS
    squared = found.momenta[..., 0] ** 2 - (found.momenta[..., 1:] ** 2).sum(-1)
    assert np.nanmax(np.abs(squared) / found.momenta[..., 0] ** 2) < 1e-12


# ---- symmetries ------------------------------------------------------------------------------------------


@every_solver
def test_charge_conjugation_swaps_the_legs(solver, arguments):
    a = arguments
    swapped = dict(
        zip(
            MOMENTA + MASSES,
            ("lepton_minus", "lepton_plus", "bbar", "b", *MASSES[1::-1], *MASSES[:1:-1]),
            strict=True,
        )
    )
    # The loose method has one W mass, and no legs.
    if solver is SOLVERS["loose"]:
        a = a | {"m_w_minus": a["m_w_plus"]}
    conjugate = {"met": a["met"]} | {name: a[other] for name, other in swapped.items()}
    solver.check_same(solver(a), solver(conjugate), lambda p: p[:, :, ::-1])


def moved(arguments, transform, transform_met=lambda met: met):
    """Arguments with all momenta transformed."""
    momenta = {name: transform(arguments[name]) for name in MOMENTA}
    return arguments | momenta | {"met": transform_met(arguments["met"])}


@pytest.mark.parametrize("angle", [0.3, np.pi / 2, -2.0])
@every_solver
def test_rotation_about_the_beam(solver, arguments, angle):
    def rotate(p, first=1):
        turned = p.copy()
        x, y = p[..., first], p[..., first + 1]
        turned[..., first] = np.cos(angle) * x - np.sin(angle) * y
        turned[..., first + 1] = np.sin(angle) * x + np.cos(angle) * y
        return turned

    turned = moved(arguments, rotate, lambda met: rotate(met, 0))
    solver.check_same(solver(arguments), solver(turned), rotate)


@pytest.mark.parametrize("velocity", [0.5, -0.9])
@every_solver
def test_boost_along_the_beam(solver, arguments, velocity):
    """E² − p_z² of the system orders the solutions, also after the boost."""
    along = np.array([0.0, 0.0, velocity])
    # Neutrinos are cut at a pseudorapidity in the laboratory.
    options = {"eta_max": 50.0} if solver is SOLVERS["neutrino weighting"] else {}
    boosted = moved(arguments, lambda p: boost(p, along))
    solver.check_same(solver(arguments, **options), solver(boosted, **options), lambda p: boost(p, along))


@every_solver
def test_reflection(solver, arguments):
    def reflect(p):
        return p * np.array([1, 1, 1, -1])

    solver.check_same(solver(arguments), solver(moved(arguments, reflect)), reflect)


# ---- events do not know each other -----------------------------------------------------------------------


def assert_identical(a, b):
    for x, y in zip(a, b, strict=True):
        assert np.array_equal(x, y, equal_nan=True)


@every_solver
def test_order_and_chunks_do_not_matter(solver, arguments):
    expected = solver(arguments)
    order = np.random.default_rng(12).permutation(len(arguments["met"]))
    found = solver({name: value[order] for name, value in arguments.items()})
    assert_identical(found, (x[order] for x in expected))
    part = slice(700, 711)
    assert_identical(
        solver({name: value[part] for name, value in arguments.items()}), (x[part] for x in expected)
    )


@every_solver_with_top
def test_threads_change_nothing(solver, arguments):
    before = threading.active_count()
    for threads in (2, 7):
        assert_identical(solver(arguments), solver(arguments, threads=threads))
        few = {name: value[:3] for name, value in arguments.items()}
        assert_identical(solver(few), solver(few, threads=threads))
    assert threading.active_count() == before
    with pytest.raises(TopRecoError, match="threads is 0, expected 1 or more"):
        solver(few, threads=0)


@every_solver
def test_masses_default_to_the_constants(solver, arguments):
    n = len(arguments["met"])
    plain = {name: value for name, value in arguments.items() if name not in MASSES}
    masses = {"m_top": 172.5, "m_antitop": np.full(n, 172.5), "m_w_plus": 80.4, "m_w_minus": 80.4}
    assert_identical(solver(plain), solver(plain | masses))


@every_exact_solver
def test_single_precision_input(solver, exact_events):
    """Rounding makes massless particles slightly spacelike; they have solutions nevertheless."""
    events = exact_events(2000, seed=15)
    found = solver({name: value.astype(np.float32) for name, value in events.arguments.items()})
    assert found.momenta.dtype == np.float64
    assert (distance_to_truth(found.momenta, events.neutrinos) < 1e-2).mean() > 0.98


# ---- input that is degenerate or wrong -------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@every_solver
def test_no_events(solver, arguments, threads):
    options = {"threads": threads} if solver is not SOLVERS["loose"] else {}
    found = solver({name: value[:0] for name, value in arguments.items()}, **options)
    assert found.momenta.shape == (0, *solver(arguments).momenta.shape[1:])
    assert found.number.shape == (0,)


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
    "leptons along the beam": {"lepton_plus": [50.0, 0.0, 0.0, 50.0], "lepton_minus": [90.0, 0.0, 0.0, 90.0]},
    "NaN MET": {"met": [np.nan, 10.0]},
    "infinite MET": {"met": [np.inf, 10.0]},
    "huge numbers": {"lepton_plus": [1e200, 1e199, 0.0, 0.0]},
    "zero W mass": {"m_w_plus": 0.0},
    "negative W mass": {"m_w_plus": -80.4},
    "NaN W mass": {"m_w_plus": np.nan},
    "infinite W mass": {"m_w_plus": np.inf},
}
BAD_WITH_TOP = {
    "lepton and b the same": {"lepton_plus": [50.0, 30.0, 40.0, 0.0], "b": [100.0, 60.0, 80.0, 0.0]},
    "everything along the beam": {"lepton_plus": [50.0, 0.0, 0.0, 50.0], "b": [90.0, 0.0, 0.0, 90.0]},
    "W heavier than top": {"m_w_minus": 200.0},
    "zero top mass": {"m_antitop": 0.0},
    "NaN top mass": {"m_top": np.nan},
    "infinite top mass": {"m_top": np.inf},
}
CASES = [
    pytest.param(solver, change, id=f"{name}-{case}")
    for name, solver in SOLVERS.items()
    for case, change in (BAD | (BAD_WITH_TOP if name in WITH_TOP else {})).items()
    # Leptons along the beam are no obstacle where each has its b.
    if not (name in WITH_TOP and case == "leptons along the beam")
]


@pytest.mark.parametrize(("solver", "change"), CASES)
def test_input_without_a_solution(solver, exact_events, change):
    """It has none, and leaves the events beside it alone."""
    arguments = exact_events(3, seed=16).arguments
    expected = solver(arguments)
    for name, value in change.items():
        arguments[name][1] = value
    found = solver(arguments)
    assert found.number[1] == 0 or np.isnan(found.number[1])
    assert np.isnan(found.momenta[1]).all()
    assert np.array_equal(found.momenta[::2], expected.momenta[::2], equal_nan=True)


@every_solver_with_top
def test_unreachable_met(solver, exact_events):
    """No exact solution; solvers that may violate MET find a pair of little weight or great distance."""
    arguments = exact_events(2, seed=19).arguments
    arguments["met"][0] = [1e30, 10.0]
    found = solver(arguments)
    assert np.isnan(found.momenta[0]).all() if solver.exact else np.isfinite(found.momenta[0]).all()
    assert found.number[0] == 0 or found.number[0] > 1e29


@every_solver_with_top
def test_degenerate_input_with_solutions(solver, events_from_legs, constraint_residuals):
    """Massless and collinear lepton and b, leptons at rest, equal p_z/E, MET that vanishes."""

    def p4(px, py, pz, m=0.0):
        return from_three_momentum(np.array([[px, py, pz]], dtype=float), m)

    other = (p4(-40, 15, 20, 0.1), p4(-25, -60, 10, 5.0), p4(-30, 30, -45))
    for lepton, b in (
        (p4(30, 40, 10), p4(-60, 20, 5)),
        (p4(30, 40, 0, 0.1), p4(60, 80, 0, 20.0)),
        (p4(0, 0, 0, 1.8), p4(60, 20, 10, 5.0)),
        (p4(20, 0, 30), p4(0, 0, 70, 5.0)),
        (p4(30, 40, 0), p4(-60, 20, 0)),
    ):
        for neutrino in (p4(25, -35, 60), p4(30, -30, 20), p4(25, -35, 0)):
            events = events_from_legs([(lepton, b, neutrino), other])
            found = solver(events.arguments)
            if solver.exact:
                assert distance_to_truth(found.momenta, events.neutrinos)[0] < CLOSURE
            else:
                missed = found.momenta[0, 0, :, 1:3].sum(0) - events.arguments["met"][0]
                assert np.hypot(*missed) < 0.05
            met = solver.exact and bool(np.any(events.arguments["met"]))
            assert np.nanmax(constraint_residuals(events.arguments, found.momenta, met=met)) < CONSTRAINTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": np.ones((3, 3))}, r"b has shape \(3, 3\), expected \(3, 4\) like lepton_plus"),
        ({"lepton_plus": np.ones(4)}, r"lepton_plus has shape \(4,\), expected \(n, 4\)"),
        ({"lepton_minus": np.ones((2, 4))}, r"lepton_minus has shape \(2, 4\), expected \(3, 4\)"),
        ({"met": np.ones((3, 4))}, r"met has shape \(3, 4\), expected \(3, 2\)"),
        ({"m_w_plus": np.ones(2)}, r"m_w(_plus)? has shape \(2,\), expected \(\) or \(3,\)"),
        ({"m_w_plus": np.ones((3, 1))}, r"m_w(_plus)? has shape \(3, 1\)"),
        ({"bbar": [["a"] * 4] * 3}, "bbar is not an array of numbers"),
        ({"m_w_plus": "heavy"}, "m_w(_plus)? is not an array of numbers"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@every_solver
def test_wrong_arguments(solver, exact_events, change, message):
    arguments = exact_events(3, seed=17).arguments
    name = f"{solver.function.__module__.rpartition('.')[2]}.{solver.function.__name__}"
    with pytest.raises(TopRecoError, match=f"^{name}: {message}"):
        solver(arguments | change)
