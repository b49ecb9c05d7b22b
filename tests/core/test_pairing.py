import numpy as np
import pytest

from topreco.core.fourvector import from_pt_eta_phi_mass
from topreco.core.pairing import b_candidates, mlb_density, parton_mlb_density


def massless(pt, eta, phi):
    pt, eta, phi = (np.asarray(v, dtype=float) for v in (pt, eta, phi))
    return from_pt_eta_phi_mass(pt, eta, phi, np.zeros_like(pt))


LEPTONS = massless([40.0], [0.0], [0.0]), massless([40.0], [0.0], [np.pi])


def jets_with_masses(*masses):
    """Jets whose masses with (ℓ⁺, ℓ⁻) are given: m² = 2 · 40 · (E ∓ px), so any pair is possible."""
    jets = []
    for m_plus, m_minus in masses:
        plus, minus = m_plus**2 / 80, m_minus**2 / 80
        energy, px = (plus + minus) / 2, (minus - plus) / 2
        jets.append([energy, px, np.sqrt(energy**2 - px**2), 0.0])
    return np.array([jets])


def pair(jets, tagged, mask=None, **options):
    mask = np.ones(len(tagged), dtype=bool) if mask is None else np.array(mask)
    return b_candidates(*LEPTONS, jets, mask[None], np.array([tagged]), **options)[0].tolist()


def test_density_is_normalised_and_ends_at_the_kinematic_edge():
    mass = np.linspace(0.0, 300.0, 300_001)
    assert np.trapezoid(parton_mlb_density(mass), mass) == pytest.approx(1.0, abs=1e-6)
    assert np.trapezoid(mlb_density(mass), mass) == pytest.approx(1.0, abs=2e-3)
    edge = np.sqrt(172.5**2 - 80.4**2)
    assert parton_mlb_density(np.array([edge + 1e-6]))[0] == 0


def test_parton_density_is_that_of_generated_angles():
    rng = np.random.default_rng(1)
    cos = rng.uniform(-1, 1, 2_000_000)
    density = 0.75 * 0.687 * (1 - cos**2) + 0.375 * (0.311 * (1 - cos) ** 2 + 0.002 * (1 + cos) ** 2)
    mass = np.sqrt((172.5**2 - 80.4**2) * (1 + cos) / 2)
    found, edges = np.histogram(mass, bins=15, range=(0, 150), weights=density * 2 / len(cos))
    centres = (edges[1:] + edges[:-1]) / 2
    np.testing.assert_allclose(found / 10, parton_mlb_density(centres), rtol=0.02, atol=3e-5)


def test_every_allowed_mass_has_a_probability():
    assert (mlb_density(np.linspace(1.0, 180.0, 500)) > 0).all()


def test_order_follows_the_masses():
    # 100 GeV is far more probable than 175 GeV.
    good_then_bad = jets_with_masses((100.0, 175.0), (175.0, 100.0))
    assert pair(good_then_bad, [True, True]) == [0, 1]
    assert pair(good_then_bad[:, ::-1], [True, True]) == [1, 0]


def test_category_beats_probability():
    jets = jets_with_masses((175.0, 175.0), (170.0, 170.0), (110.0, 110.0), (111.0, 111.0))
    assert set(pair(jets, [True, True, False, False])) == {0, 1}
    assert 0 in pair(jets, [True, False, False, False])
    assert set(pair(jets, [False, False, False, False])) == {2, 3}


def test_within_a_category_the_best_product_wins():
    jets = jets_with_masses((20.0, 20.0), (120.0, 30.0), (30.0, 121.0))
    assert pair(jets, [True, True, True]) == [1, 2]


def test_next_category_where_no_pair_is_allowed():
    # Both tagged jets fit ℓ⁻ only.
    jets = jets_with_masses((200.0, 100.0), (210.0, 90.0), (100.0, 300.0))
    assert pair(jets, [True, True, False]) == [2, 0]
    # No tagged jet fits anything.
    jets = jets_with_masses((200.0, 300.0), (100.0, 250.0), (250.0, 100.0))
    assert pair(jets, [True, False, False]) == [1, 2]


def test_none_where_no_pair_is_allowed():
    assert pair(jets_with_masses((200.0, 100.0), (190.0, 90.0)), [True, True]) == [-1, -1]
    assert pair(jets_with_masses((100.0, 100.0)), [True]) == [-1, -1]
    assert pair(jets_with_masses((100.0, 100.0), (90.0, 90.0)), [True, True], [True, False]) == [-1, -1]


def test_mass_limit_is_exclusive():
    jets = jets_with_masses((100.0, 150.0), (150.0, 100.0))
    assert pair(jets, [True, True], m_lb_max=100.0 * (1 - 1e-9)) == [-1, -1]
    assert pair(jets, [True, True], m_lb_max=100.0 * (1 + 1e-9)) == [0, 1]


def test_another_density_decides():
    jets = jets_with_masses((120.0, 20.0), (20.0, 120.0))
    assert pair(jets, [True, True]) == [0, 1]
    assert pair(jets, [True, True], density=lambda mass: np.exp(-mass)) == [1, 0]
    # Nothing is probable: the pair is allowed nevertheless, the leading jets win.
    assert pair(jets, [True, True], density=np.zeros_like) == [0, 1]


def test_padding_changes_nothing():
    rng = np.random.default_rng(3)
    shape = (300, 6)
    jets = massless(rng.uniform(30, 150, shape), rng.uniform(-2, 2, shape), rng.uniform(-3, 3, shape))
    plus = massless(rng.uniform(20, 90, 300), rng.uniform(-2, 2, 300), rng.uniform(-3, 3, 300))
    minus = massless(rng.uniform(20, 90, 300), rng.uniform(-2, 2, 300), rng.uniform(-3, 3, 300))
    mask, tagged = np.ones(shape, dtype=bool), rng.random(shape) < 0.3
    expected = b_candidates(plus, minus, jets, mask, tagged)
    garbage = np.full((300, 4, 4), 50.0)
    more = b_candidates(
        plus,
        minus,
        np.concatenate([jets, garbage], axis=1),
        np.concatenate([mask, np.zeros((300, 4), dtype=bool)], axis=1),
        np.concatenate([tagged, np.ones((300, 4), dtype=bool)], axis=1),
    )
    np.testing.assert_array_equal(more, expected)
    swapped = b_candidates(minus, plus, jets, mask, tagged)
    np.testing.assert_array_equal(swapped[:, ::-1], expected)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_without_events_or_jets(shape):
    n, n_jets = shape
    found = b_candidates(
        np.zeros((n, 4)),
        np.zeros((n, 4)),
        np.zeros((n, n_jets, 4)),
        np.zeros(shape, bool),
        np.zeros(shape, bool),
    )
    np.testing.assert_array_equal(found, np.full((n, 2), -1))
