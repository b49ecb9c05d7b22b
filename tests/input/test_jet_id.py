"""Jet identification against the tables of the JetMET group, value by value."""

import numpy as np
import pytest

from topreco.input.jet_id import COLUMNS, identify_jets

GOOD = {
    "neHEF": 0.1,
    "neEmEF": 0.2,
    "chHEF": 0.6,
    "muEF": 0.05,
    "chEmEF": 0.05,
    "chMultiplicity": 12,
    "neMultiplicity": 8,
    "jetId": 6,
}


def passes(recipe, eta, bit=1, **changes):
    jet = GOOD | changes
    columns = {}
    for name in COLUMNS[recipe]:
        kind = np.uint8 if isinstance(jet[name], int) else np.float32
        columns[name] = np.array([jet[name]], dtype=kind)
    return bool(identify_jets(recipe, bit, np.array([eta]), columns)[0])


def mirrored(*rows):
    return [(recipe, sign * eta, *rest) for recipe, eta, *rest in rows for sign in (1, -1)]


@pytest.mark.parametrize("recipe", [name for name in COLUMNS if name != "branch"])
@pytest.mark.parametrize("eta", [0.0, 2.3, 2.5, 2.65, 2.9, 4.0, -1.0, -4.0])
@pytest.mark.parametrize("bit", [1, 2])
def test_good_jets_pass_everywhere(recipe, eta, bit):
    assert passes(recipe, eta, bit)


@pytest.mark.parametrize(
    ("recipe", "eta", "passing", "failing"),
    mirrored(
        ("run3_puppi", 1.0, {"neHEF": 0.98}, {"neHEF": 0.991}),
        ("run3_puppi", 1.0, {"neEmEF": 0.89}, {"neEmEF": 0.901}),
        ("run3_puppi", 2.6, {"chHEF": 0.02}, {"chHEF": 0.009}),
        ("run3_puppi", 1.0, {"chMultiplicity": 1}, {"chMultiplicity": 0}),
        (
            "run3_puppi",
            1.0,
            {"chMultiplicity": 1, "neMultiplicity": 1},
            {"chMultiplicity": 1, "neMultiplicity": 0},
        ),
        ("run3_puppi", 2.7, {"neHEF": 0.89}, {"neHEF": 0.91}),
        ("run3_puppi", 2.65, {"neEmEF": 0.98, "chHEF": 0.0}, {"neEmEF": 0.991}),
        ("run3_puppi", 3.0, {"neHEF": 0.98}, {"neHEF": 0.991}),
        ("run3_puppi", 3.01, {"neEmEF": 0.39}, {"neEmEF": 0.41}),
        ("run3_puppi", 4.0, {"neMultiplicity": 2}, {"neMultiplicity": 1}),
        ("ul2017_puppi", 2.6, {"neHEF": 0.89}, {"neHEF": 0.91}),
        ("ul2017_puppi", 1.0, {"chHEF": 0.001}, {"chHEF": 0.0}),
        ("ul2017_puppi", 2.7, {"neEmEF": 0.98}, {"neEmEF": 0.991}),
        ("ul2017_puppi", 2.9, {"neHEF": 0.9998}, {"neHEF": 0.99995}),
        ("ul2017_puppi", 4.0, {"neMultiplicity": 3}, {"neMultiplicity": 2}),
        ("ul2017_puppi", 4.0, {"neEmEF": 0.89}, {"neEmEF": 0.91}),
        ("ul2016_puppi", 2.4, {"neHEF": 0.89}, {"neHEF": 0.91}),
        ("ul2016_puppi", 2.5, {"neHEF": 0.97, "chMultiplicity": 0}, {"neHEF": 0.981}),
        ("ul2016_puppi", 2.9, {"neMultiplicity": 1, "neHEF": 1.0}, {"neMultiplicity": 0}),
        ("ul2016_puppi", 4.0, {"neMultiplicity": 3}, {"neMultiplicity": 2}),
        # The stored bit is right but for these.
        ("nano_v12", 1.0, {"jetId": 2}, {"jetId": 4}),
        ("nano_v12", 2.9, {"neHEF": 0.98}, {"neHEF": 0.991}),
        ("nano_v12", 3.1, {"neEmEF": 0.39}, {"neEmEF": 0.41}),
    ),
)
def test_boundaries_of_tight(recipe, eta, passing, failing):
    assert passes(recipe, eta, **passing)
    assert not passes(recipe, eta, **failing)


@pytest.mark.parametrize(
    ("recipe", "outermost"),
    [("run3_puppi", 2.7), ("ul2017_puppi", 2.7), ("ul2016_puppi", 2.4), ("nano_v12", 2.7)],
)
@pytest.mark.parametrize("field", ["muEF", "chEmEF"])
def test_lepton_veto(recipe, outermost, field):
    assert passes(recipe, outermost, 2, **{field: 0.79})
    assert not passes(recipe, outermost, 2, **{field: 0.81})
    assert passes(recipe, outermost, 1, **{field: 0.81})
    assert passes(recipe, outermost + 0.01, 2, **{field: 0.81})


def test_short_integers_do_not_overflow():
    assert passes("run3_puppi", 0.0, chMultiplicity=200, neMultiplicity=56)
