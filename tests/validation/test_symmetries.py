"""Methods that break a symmetry are found out, those that respect it are not accused."""

import numpy as np
import pytest

from topreco.core.events import TopPair, toy_events
from topreco.validation.gather import open_pool
from topreco.validation.symmetries import TRANSFORMATIONS, check_symmetries


class _Broken:
    """Adds something that a symmetry forbids."""

    def __init__(self, method, name):
        self.method, self.name = method, name

    def __call__(self, events):
        pair = self.method(events)
        change = {
            "rotation": np.array([0, 0.5, 0, 0]),
            "reflection": np.array([0, 0, 0, 0.5]),
            "charge": np.array([0.5, 0, 0, 0]) * np.array([[1.0], [0.0]]),
            "jet_order": (events.jets[:, 0, :1, None] > events.jets[:, 1, :1, None])
            * np.array([0.5, 0, 0, 0]),
        }[self.name]
        return TopPair(p4=pair.p4 + change * pair.p4[..., :1], valid=pair.valid)


@pytest.fixture(scope="module")
def verdicts(leptons):
    methods = [leptons, *(_Broken(leptons, name) for name in TRANSFORMATIONS)]
    with open_pool(1, progress=False) as apply:
        found = check_symmetries(apply, methods, toy_events(300, seed=4))
    return {method: {name: s.verdict for name, s in of.items()} for method, of in found.items()}


def test_an_equivariant_method_is_exact(verdicts):
    assert verdicts["leptons"] == dict.fromkeys(TRANSFORMATIONS, "exact")


@pytest.mark.parametrize("broken", TRANSFORMATIONS)
def test_a_broken_symmetry_is_found(verdicts, broken):
    assert verdicts[broken][broken] == "none" or broken == "jet_order"
    assert verdicts[broken][broken] != "exact"
    assert all(v == "exact" for name, v in verdicts[broken].items() if name != broken)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations_keep_what_candidates_point_to(name):
    events = toy_events(200, seed=6)
    events.b_candidates[::3, 0] = -1
    transform, expected = TRANSFORMATIONS[name]
    changed = transform(events)
    np.testing.assert_allclose(changed.b_candidate_p4, expected(events.b_candidate_p4), rtol=1e-12)
    np.testing.assert_allclose(changed.lepton_p4, expected(events.lepton_p4), rtol=1e-12, atol=1e-12)
    assert (changed.n_jets == events.n_jets).all()
    assert (changed.event == events.event).all()
    total = changed.jets.sum(axis=1)
    turned = expected(np.stack([events.jets.sum(axis=1)] * 2, axis=1))[:, 0]
    np.testing.assert_allclose(total, turned, rtol=1e-9, atol=1e-9)


class _Nothing:
    name = "nothing"

    def __call__(self, events):
        return TopPair(p4=np.full((len(events), 2, 4), np.nan), valid=np.zeros(len(events), bool))


def test_nothing_solved():
    with open_pool(1, progress=False) as apply:
        found = check_symmetries(apply, [_Nothing()], toy_events(10))["nothing"]["rotation"]
    assert (found.n, found.verdict, found.changed) == (0, "–", 0.0)
