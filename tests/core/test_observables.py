"""Observables of pairs with known kinematics, their symmetries, and the values that a sample stores."""

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
import vector

from topreco.core import fourvector, observables
from topreco.core.errors import TopRecoError
from topreco.core.events import TopPair, toy_events
from topreco.core.observables import (
    AXES,
    OBSERVABLE_GROUPS,
    OBSERVABLES,
    c_flipped,
    c_han,
    c_hel,
    cos_theta_star,
    delta_abs_y,
    delta_phi_ll,
    lepton_directions,
    m_tt,
    neutrinos,
    observable_values,
    spin_basis,
    spin_cosines,
    w_masses,
)


@pytest.fixture
def tops():
    rng = np.random.default_rng(0)
    return fourvector.from_three_momentum(rng.normal(0, 150, (30, 2, 3)), np.array([172.5, 173.5]))


@pytest.fixture
def leptons():
    return fourvector.from_three_momentum(np.random.default_rng(1).normal(0, 50, (30, 2, 3)), 0.0)


@pytest.mark.parametrize("observable", OBSERVABLES.values(), ids=lambda o: o.name)
def test_shape_label_and_residual(tops, leptons, observable):
    values = observable.compute(tops, tops.sum(axis=1), leptons)
    assert values.shape == (30,)
    assert np.isfinite(values).all()
    assert observable.axis_label.endswith("[GeV]") is (observable.unit == "GeV")
    expected = 0.1 if observable.relative else 0.1 * values
    np.testing.assert_allclose(observable.residual(1.1 * values, values), expected, atol=1e-9)


def test_back_to_back_pair():
    tops = fourvector.from_three_momentum(np.array([[[60.0, 80.0, 0.0], [-60.0, -80.0, 0.0]]]), 172.5)
    leptons = np.array([[[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]]])
    values = {name: o.compute(tops, tops.sum(axis=1), leptons)[0] for name, o in OBSERVABLES.items()}
    assert values["m_tt"] == pytest.approx(2 * np.hypot(100, 172.5))
    assert m_tt(tops)[0] == pytest.approx(values["m_tt"])
    assert values["pt_top"] == pytest.approx(100)
    assert values["pt_antitop"] == pytest.approx(100)
    assert values["pt_tt"] == pytest.approx(0, abs=1e-9)
    assert values["m_top"] == pytest.approx(172.5)
    assert values["y_tt"] == pytest.approx(0)


def test_velocities_of_tops():
    """0 below threshold, as for samples of a posterior, and that of the tops above."""
    momentum = np.array([[[0.0, 0, 30]], [[0, 200, 0]], [[0, 0, 0]]])
    tops = fourvector.from_three_momentum(np.concatenate([momentum, -momentum], 1), 172.5)
    tops[2] *= 0.99
    speed = np.linalg.norm(tops[:2, 0, 1:], axis=1) / tops[:2, 0, 0]
    assert observables.beta_t(tops) == pytest.approx([*speed, 0], abs=1e-6)
    assert observables.relative_velocity(tops) == pytest.approx([*(2 * speed / (1 + speed**2)), 0], abs=1e-6)
    # At rest the other top moves with the relative velocity.
    seen = fourvector.to_rest_frame(tops[1, 1], tops[1, 0])
    assert np.linalg.norm(seen[1:]) / seen[0] == pytest.approx(observables.relative_velocity(tops)[1])
    # A method's own mass is better than that of its four-momenta.
    pair = TopPair(tops, np.ones(3, bool), observables={"m_tt": np.array([345.0, 400, 200])})
    found = observables.pair_values(pair, tops, ("beta_t", "relative_velocity"))
    beta = np.sqrt(1 - (345 / 400) ** 2)
    assert found["beta_t"] == pytest.approx([0, beta, 0])
    assert found["relative_velocity"] == pytest.approx([0, 2 * beta / (1 + beta**2), 0])
    spacelike = np.array([[[1.0, 50, 0, 0], [1, 50, 0, 0]]])
    assert np.isnan(observables.beta_t(spacelike)).all()


def test_velocities_of_a_method_are_those_of_its_own_mass():
    momentum = np.array([[[0.0, 0, 30]], [[0, 200, 0]]])
    tops = fourvector.from_three_momentum(np.concatenate([momentum, -momentum], 1), 172.5)
    leptons = fourvector.from_three_momentum(np.ones((2, 2, 3)), 0.0)
    valid = np.array([True, False])
    own = TopPair(p4=tops, valid=valid, observables={"m_tt": np.array([690.0, 690.0])})
    values = observables.pair_values(own, leptons, ["beta_t", "relative_velocity"])
    assert values["beta_t"] == pytest.approx([np.sqrt(0.75), np.nan], nan_ok=True)
    assert values["relative_velocity"] == pytest.approx([2 * np.sqrt(0.75) / 1.75, np.nan], nan_ok=True)


def test_every_observable_is_documented():
    path = Path(__file__).parents[2] / "docs" / "OBSERVABLES.md"
    if not path.exists():
        pytest.skip("no folder docs, as in a source distribution")
    rows = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for name in OBSERVABLES:
        (row,) = (line for line in rows if f"`{name}`" in line.split("|")[1])
        groups = {group.strip() for group in row.replace("\\|", "").split("|")[4].split(",")}
        assert groups == {g for g, members in OBSERVABLE_GROUPS.items() if name in members} - {"all"}, name


# ---- c_hel -----------------------------------------------------------------------------------------------


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def decayed(rng, n, directions):
    """Tops and leptons in the laboratory, from directions of the leptons in the frames of their tops.

    The way back from the definition: top frame → tt̄ frame → laboratory, one boost each.
    """
    momenta = rng.normal(0, 150, (n, 3))
    at_rest = fourvector.from_three_momentum(np.stack([momenta, -momenta], 1), 172.5)
    leptons = fourvector.from_three_momentum(rng.uniform(20, 100, (n, 2, 1)) * directions, 0.0)
    leptons = fourvector.boost(leptons, at_rest[..., 1:] / at_rest[..., :1])
    velocity = rng.uniform(0, 0.95, (n, 1, 1)) * unit(rng.normal(size=(n, 1, 3)))
    return fourvector.boost(at_rest, velocity), fourvector.boost(leptons, velocity)


@pytest.mark.parametrize(
    ("plus", "minus", "expected"),
    [
        # Along the flight a massless lepton keeps its direction in every frame; across it, ℓ⁺ of energy 1 in
        # the frame of a top with γ = 1.25 and γβ = 0.75 has (1.25, 1, 0, 0.75) in the tt̄ frame.
        ((5.0, 0.0, 0.0, 5.0), (7.0, 0.0, 0.0, 7.0), 1.0),
        ((5.0, 0.0, 0.0, 5.0), (7.0, 0.0, 0.0, -7.0), -1.0),
        ((1.25, 1.0, 0.0, 0.75), (7.0, 0.0, 0.0, -7.0), 0.0),
        ((1.25, 1.0, 0.0, 0.75), (2.5, 2.0, 0.0, -1.5), 1.0),
        ((1.25, 1.0, 0.0, 0.75), (2.5, 0.0, 2.0, -1.5), 0.0),
        # (1, 0.8, 0, 0.6) in the frame of the top.
        ((1.25 + 0.45, 0.8, 0.0, 0.75 + 0.75), (2.5, 2.0, 0.0, -1.5), 0.8),
    ],
)
def test_c_hel_by_hand(plus, minus, expected):
    tops = 170 * np.array([[1.25, 0.0, 0.0, 0.75], [1.25, 0.0, 0.0, -0.75]])
    assert c_hel(tops, np.array([plus, minus])) == pytest.approx(expected, abs=1e-12)


def test_c_hel_goes_back_through_both_boosts():
    """Exactly, however the pair moves; a single boost from laboratory to top would turn the leptons."""
    rng = np.random.default_rng(1)
    directions = unit(rng.normal(size=(500, 2, 3)))
    tops, leptons = decayed(rng, 500, directions)
    expected = (directions[:, 0] * directions[:, 1]).sum(-1)
    np.testing.assert_allclose(c_hel(tops, leptons), expected, atol=1e-9)
    direct = unit(fourvector.to_rest_frame(leptons, tops)[..., 1:])
    assert abs((direct[:, 0] * direct[:, 1]).sum(-1) - expected).max() > 0.1


def test_c_hel_is_the_same_in_every_laboratory():
    rng = np.random.default_rng(2)
    tops, leptons = decayed(rng, 200, unit(rng.normal(size=(200, 2, 3))))
    velocity = np.array([0.5, -0.3, 0.6])
    moved = c_hel(fourvector.boost(tops, velocity), fourvector.boost(leptons, velocity))
    np.testing.assert_allclose(moved, c_hel(tops, leptons), atol=1e-9)
    mirrored = np.array([1.0, 1.0, 1.0, -1.0])
    np.testing.assert_allclose(c_hel(tops * mirrored, leptons * mirrored), c_hel(tops, leptons), atol=1e-12)


@pytest.mark.parametrize("d", [0.0, -0.24])
def test_d_of_a_toy(d):
    """⟨c_hel⟩ = −D/3, with isotropic leptons for D = 0 and else dN/dc ∝ 1 − D c."""
    rng, n = np.random.default_rng(3), 100_000
    directions = unit(rng.normal(size=(n, 2, 3)))
    cosine = (directions[:, 0] * directions[:, 1]).sum(-1)
    kept = rng.uniform(0, 1 + abs(d), n) < 1 - d * cosine
    tops, leptons = decayed(rng, kept.sum(), directions[kept])
    values = c_hel(tops, leptons)
    error = 3 * values.std() / np.sqrt(len(values))
    assert error < 0.01
    assert abs(-3 * values.mean() - d) < 4 * error


def test_c_hel_of_tensors_and_of_unphysical_tops():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    tops, leptons = decayed(rng, 20, unit(rng.normal(size=(20, 2, 3))))
    tensors = c_hel(torch.from_numpy(tops), torch.from_numpy(leptons))
    np.testing.assert_allclose(tensors.numpy(), c_hel(tops, leptons), atol=1e-12)
    tops[0, 0, 0], tops[1] = 1.0, np.nan
    values = c_hel(tops, leptons)
    assert np.isnan(values[:2]).all()
    assert np.isfinite(values[2:]).all()


# ---- axes and cosines ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    """Tops and leptons of 500 pairs that move in any direction."""
    rng = np.random.default_rng(5)
    return decayed(rng, 500, unit(rng.normal(size=(500, 2, 3))))


def compute(observable, tops, leptons):
    return observable.compute(tops, tops.sum(axis=-2), leptons)


def along_beam(beta):
    gamma = 1 / np.sqrt(1 - beta**2)
    matrix = np.eye(4)
    matrix[[0, 3, 0, 3], [0, 3, 3, 0]] = [gamma, gamma, gamma * beta, gamma * beta]
    return matrix


def rotation(angle):
    matrix = np.eye(4)
    matrix[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


REFLECTION = np.diag([1.0, 1.0, 1.0, -1.0])
VECTOR, AXIAL = np.diag([1.0, 1.0, -1.0]), np.diag([-1.0, -1.0, 1.0])


def test_axes_by_hand():
    """A top at Θ = 60° or 120° in the plane of x and z."""
    sin, cos = np.sqrt(3) / 2, 0.5
    momenta = 100 * np.array([[sin, 0, cos], [sin, 0, -cos]])
    tops = fourvector.from_three_momentum(np.stack([momenta, -momenta], 1), 172.5)
    forward, backward = [[sin, 0, cos], [-cos, 0, sin], [0, 1, 0]], [[sin, 0, -cos], [cos, 0, sin], [0, 1, 0]]
    np.testing.assert_allclose(spin_basis(tops, signed=False), [forward, backward], atol=1e-12)
    signs = np.array([[1], [-1], [-1]])
    np.testing.assert_allclose(spin_basis(tops), [forward, signs * backward], atol=1e-12)
    np.testing.assert_allclose(cos_theta_star(tops), [cos, -cos])
    leptons = np.array([[[1.0, 0, 1, 0], [1.0, 0, 1, 0]]] * 2)
    leptons = fourvector.boost(leptons, tops[..., 1:] / tops[..., :1])
    np.testing.assert_allclose(
        spin_cosines(tops, leptons), [[[0, 0, 1], [0, 0, -1]], [[0, 0, -1], [0, 0, 1]]], atol=1e-12
    )


def test_axes_are_orthonormal_and_right_handed(pairs):
    for signed in (True, False):
        axes = spin_basis(pairs[0], signed=signed)
        identity = np.broadcast_to(np.eye(3), axes.shape)
        np.testing.assert_allclose(axes @ axes.swapaxes(-1, -2), identity, atol=1e-12)
        np.testing.assert_allclose(np.cross(axes[:, 1], axes[:, 0]), axes[:, 2], atol=1e-12)


def test_products_and_flips_follow_from_the_cosines(pairs):
    """c_hel = −Σ cosθ₁ⁱ cosθ₂ⁱ, and a flip turns the sign of one term."""
    cosines = spin_cosines(*pairs)
    terms = cosines[:, 0] * cosines[:, 1]
    np.testing.assert_allclose(c_hel(*pairs), -terms.sum(-1), atol=1e-12)
    for i, axis in enumerate(AXES):
        np.testing.assert_allclose(c_flipped(*pairs, axis), -terms.sum(-1) + 2 * terms[:, i], atol=1e-12)
        for j, other in enumerate(AXES):
            product = compute(OBSERVABLES[f"cos_1{axis}_2{other}"], *pairs)
            np.testing.assert_array_equal(product, cosines[:, 0, i] * cosines[:, 1, j])
    np.testing.assert_array_equal(c_han(*pairs), c_flipped(*pairs, "k"))
    with pytest.raises(TopRecoError, match="axis 'z'; allowed are k, r, n"):
        c_flipped(*pairs, "z")


@pytest.mark.parametrize("name", OBSERVABLES)
def test_rotation_about_the_beam_changes_nothing(pairs, name):
    turn = rotation(0.7)
    moved = compute(OBSERVABLES[name], *(p4 @ turn.T for p4 in pairs))
    np.testing.assert_allclose(moved, compute(OBSERVABLES[name], *pairs), atol=1e-8)


@pytest.mark.parametrize("beta", [-0.9, 0.4])
def test_boosts_along_the_beam(pairs, beta):
    """c_hel and its flip along k know no beam; Δφ(ℓℓ), masses and pT are transverse or invariant anyway."""
    boost = along_beam(beta)
    moved = [p4 @ boost.T for p4 in pairs]
    for name in ("c_hel", "c_han", "delta_phi_ll", "m_tt", "pt_tt", "pt_top", "m_antitop"):
        expected = compute(OBSERVABLES[name], *pairs)
        np.testing.assert_allclose(compute(OBSERVABLES[name], *moved), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", OBSERVABLES)
def test_a_pair_without_pt_may_move_along_the_beam(name):
    """Then the axes and all spin observables are the same in each laboratory; y and Δ|y| are not."""
    rng = np.random.default_rng(6)
    tops, leptons = decayed(rng, 200, unit(rng.normal(size=(200, 2, 3))))
    system = tops.sum(1)[:, None]
    tops, leptons = fourvector.to_rest_frame(tops, system), fourvector.to_rest_frame(leptons, system)
    boost = along_beam(0.8)
    moved = compute(OBSERVABLES[name], tops @ boost.T, leptons @ boost.T)
    if name.startswith("y_"):
        np.testing.assert_allclose(moved, compute(OBSERVABLES[name], tops, leptons) + np.arctanh(0.8))
    elif name != "delta_abs_y":
        np.testing.assert_allclose(moved, compute(OBSERVABLES[name], tops, leptons), atol=1e-7)


def odd_in_n(name):
    return name.startswith(("cos_1", "cos_2")) and name.count("n") % 2 == 1


@pytest.mark.parametrize("name", OBSERVABLES)
def test_reflection_along_the_beam(pairs, name):
    moved = compute(OBSERVABLES[name], *(p4 @ REFLECTION for p4 in pairs))
    odd = odd_in_n(name) or name in {"y_tt", "y_top", "y_antitop", "cos_theta_star"}
    expected = compute(OBSERVABLES[name], *pairs)
    np.testing.assert_allclose(moved, -expected if odd else expected, atol=1e-8)


def test_axes_under_reflection(pairs):
    """k and the signed r are vectors, n is a pseudovector."""
    axes, mirrored = spin_basis(pairs[0]), spin_basis(pairs[0] @ REFLECTION)
    np.testing.assert_allclose(mirrored[:, :2], axes[:, :2] @ VECTOR, atol=1e-9)
    np.testing.assert_allclose(mirrored[:, 2], axes[:, 2] @ AXIAL, atol=1e-9)


def test_axes_under_charge_exchange(pairs):
    """t ↔ t̄ reverses k. A right-handed set then keeps one of r and n: the signed one n, the other one r."""
    for signed, signs in ((True, (-1, -1, 1)), (False, (-1, 1, -1))):
        axes, exchanged = (spin_basis(tops, signed=signed) for tops in (pairs[0], pairs[0][:, ::-1]))
        np.testing.assert_allclose(exchanged, axes * np.array(signs)[:, None], atol=1e-9)


def exchanged_name(name):
    """The observable of the other leg: y_top ↔ y_antitop, cos_1k ↔ cos_2k, cos_1k_2r ↔ cos_1r_2k."""
    if name in OBSERVABLE_GROUPS["correlation"]:
        return f"cos_1{name[-1]}_2{name[5]}"
    pairs = [(f"{q}_top", f"{q}_antitop") for q in ("pt", "y", "m")]
    pairs += [(f"cos_1{axis}", f"cos_2{axis}") for axis in AXES]
    return dict([*pairs, *(pair[::-1] for pair in pairs)]).get(name, name)


@pytest.mark.parametrize("name", OBSERVABLES)
def test_charge_exchange(pairs, name):
    """t ↔ t̄ and ℓ⁺ ↔ ℓ⁻ exchange the legs: cosθ₁ ↔ cosθ₂ along k and r, cosθ₁ ↔ −cosθ₂ along n."""
    moved = compute(OBSERVABLES[name], *(p4[:, ::-1] for p4 in pairs))
    odd = odd_in_n(name) or name in {"delta_abs_y", "cos_theta_star"}
    expected = compute(OBSERVABLES[exchanged_name(name)], *pairs)
    np.testing.assert_allclose(moved, -expected if odd else expected, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_cosines_are_bounded(dtype):
    """Exactly, for leptons that are parallel or opposite in the frames of their tops too."""
    rng = np.random.default_rng(7)
    plus = unit(rng.normal(size=(3000, 3)))
    minus = np.where((np.arange(3000) % 2 == 0)[:, None], plus, -plus)
    tops, leptons = (p4.astype(dtype) for p4 in decayed(rng, 3000, np.stack([plus, minus], 1)))
    for values in (c_hel(tops, leptons), *(c_flipped(tops, leptons, axis) for axis in AXES)):
        assert abs(values).max() <= 1
    assert abs(abs(c_hel(tops, leptons)) - 1).max() < (1e-9 if dtype is np.float64 else 1)


# ---- without an answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_a_top_along_the_beam_has_k_only(cosine):
    momenta = np.array([[0.0, 0.0, 100 * cosine]])
    tops = fourvector.from_three_momentum(np.stack([momenta, -momenta], 1), 172.5)
    leptons = fourvector.from_three_momentum(np.array([[[30.0, 20, 10], [-10, 20, 30]]]), 0.0)
    axes = spin_basis(tops)[0]
    np.testing.assert_array_equal(axes[0], [0, 0, cosine])
    assert np.isnan(axes[1:]).all()
    defined = {"c_hel", "c_han", "cos_1k", "cos_2k", "cos_1k_2k"}
    for name in OBSERVABLE_GROUPS["spin"]:
        assert np.isfinite(compute(OBSERVABLES[name], tops, leptons)[0]) == (name in defined), name
    # However close to it, there are axes, and they are exact.
    momenta[:, 0] = 1e-7
    near = spin_basis(fourvector.from_three_momentum(np.stack([momenta, -momenta], 1), 172.5))[0]
    np.testing.assert_allclose(near @ near.T, np.eye(3), atol=1e-9)


@pytest.mark.parametrize("name", OBSERVABLES)
def test_unknown_tops_are_nan_without_a_warning(tops, leptons, name):
    tops[0] = np.nan
    tops[1, :, 0] = 1.0
    values = compute(OBSERVABLES[name], tops, leptons)
    if name != "delta_phi_ll":
        assert np.isnan(values[0])
    if name in OBSERVABLE_GROUPS["spin"]:
        assert np.isnan(values[1])
    assert np.isfinite(values[2:]).all()


def test_tops_at_rest_have_no_direction():
    tops = fourvector.from_three_momentum(np.zeros((1, 2, 3)), 172.5)
    assert np.isnan(spin_basis(tops)).all()
    assert np.isnan(cos_theta_star(tops)).all()


# ---- kinematics ------------------------------------------------------------------------------------------


def test_angles_by_hand():
    tops = fourvector.from_pt_eta_phi_mass(
        np.array([[100.0, 50.0]]), np.array([[-1.5, 0.5]]), np.zeros((1, 2)), np.zeros((1, 2))
    )
    assert delta_abs_y(tops)[0] == pytest.approx(1.0)
    leptons = fourvector.from_pt_eta_phi_mass(
        np.full((3, 2), 30.0),
        np.zeros((3, 2)),
        np.array([[0.1, 0.4], [3.0, -3.0], [np.pi, 0]]),
        np.zeros((3, 2)),
    )
    np.testing.assert_allclose(delta_phi_ll(leptons), [0.3, 2 * np.pi - 6, np.pi])


def test_neutrinos_and_w_bosons_close():
    """t = b + ℓ⁺ + ν and W⁺ = ℓ⁺ + ν; without a b candidate both are unknown."""
    events = toy_events(50)
    no_jet = events.b_candidates.copy()
    no_jet[:5, 1] = -1
    object.__setattr__(events, "b_candidates", no_jet)
    true = fourvector.from_three_momentum(np.random.default_rng(8).normal(0, 40, (50, 2, 3)), 0.0)
    w = events.lepton_p4 + true
    tops = w + events.b_candidate_p4
    found = neutrinos(tops, events.lepton_p4, events.b_candidate_p4)
    masses = w_masses(tops, events.b_candidate_p4)
    known = no_jet >= 0
    np.testing.assert_allclose(found[known], true[known], atol=1e-9)
    np.testing.assert_allclose(masses[known], fourvector.mass(w)[known], rtol=1e-9)
    assert np.isnan(found[~known]).all()
    assert np.isnan(masses[~known]).all()


# ---- stored values ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(data):
    with uproot.open(data / "parton_tt2l_10k.root") as file:
        return file["truth"].arrays(library="np")


def momenta_of(stored, *names):
    columns = ([stored[f"{name}_{c}"].astype(float) for c in ("pt", "eta", "phi", "m")] for name in names)
    return np.stack([fourvector.from_pt_eta_phi_mass(*column) for column in columns], 1)


def test_stored_axes_and_angles(stored):
    tops, leptons = momenta_of(stored, "t", "tbar"), momenta_of(stored, "lbar", "l")
    axes = spin_basis(tops)
    for i, axis in enumerate(AXES):
        np.testing.assert_allclose(axes[:, i], stored[f"truth_{axis}vec"], atol=1e-3)
    np.testing.assert_allclose(delta_phi_ll(leptons), stored["truth_dphi_ll"], atol=1e-3)
    # A boost along the beam, as between laboratory and tt̄ frame here, leaves the component along n alone.
    np.testing.assert_allclose(
        compute(OBSERVABLES["cos_1n_2n"], tops, leptons), stored["truth_Cnn"], atol=1e-3
    )


def test_stored_products_were_made_with_direct_boosts(stored):
    tops, leptons = momenta_of(stored, "t", "tbar"), momenta_of(stored, "lbar", "l")
    direct = unit(fourvector.to_rest_frame(leptons, tops)[..., 1:])
    cosines = np.einsum("nai,nli->nla", spin_basis(tops), direct) * np.array([[1], [-1]])
    for i, axis in enumerate(AXES):
        np.testing.assert_allclose(cosines[:, 0, i], stored[f"truth_cosO_{axis}p"], atol=1e-3)
        np.testing.assert_allclose(cosines[:, 1, i], stored[f"truth_cosO_{axis}m"], atol=1e-3)
        product = cosines[:, 0, i] * cosines[:, 1, i]
        np.testing.assert_allclose(product, stored[f"truth_C{axis}{axis}"], atol=1e-3)
    for i, j in ((2, 0), (2, 1), (1, 0)):
        one, other = cosines[:, 0, i] * cosines[:, 1, j], cosines[:, 0, j] * cosines[:, 1, i]
        name = f"truth_C{AXES[i]}{AXES[j]}"
        np.testing.assert_allclose(one + other, stored[f"{name}p"], atol=1e-3)
        np.testing.assert_allclose(one - other, stored[f"{name}m"], atol=1e-3)
    # The published definition goes through the tt̄ frame and differs event by event.
    assert abs(cosines - spin_cosines(tops, leptons)).max() > 0.5


# ---- tensors and awkward arrays --------------------------------------------------------------------------

CALLS = {
    "m_tt": (m_tt, ("tops",), {}),
    "delta_abs_y": (delta_abs_y, ("tops",), {}),
    "cos_theta_star": (cos_theta_star, ("tops",), {}),
    "delta_phi_ll": (delta_phi_ll, ("leptons",), {}),
    "w_masses": (w_masses, ("tops", "b"), {}),
    "spin_basis": (spin_basis, ("tops",), {}),
    "spin_basis_unsigned": (spin_basis, ("tops",), {"signed": False}),
    "lepton_directions": (lepton_directions, ("tops", "leptons"), {}),
    "spin_cosines": (spin_cosines, ("tops", "leptons"), {}),
    "c_hel": (c_hel, ("tops", "leptons"), {}),
    "c_han": (c_han, ("tops", "leptons"), {}),
    "c_flipped": (c_flipped, ("tops", "leptons"), {"axis": "n"}),
}


@pytest.fixture
def momenta(pairs):
    tops, leptons = pairs
    return {"tops": tops, "leptons": leptons, "b": 0.3 * tops}


def call(name, momenta):
    function, arguments, options = CALLS[name]
    return function(*(momenta[argument] for argument in arguments), **options)


@pytest.mark.parametrize("name", CALLS)
def test_tensors(momenta, name):
    torch = pytest.importorskip("torch")
    found = call(name, {argument: torch.from_numpy(p4) for argument, p4 in momenta.items()})
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), call(name, momenta), rtol=1e-9, atol=1e-9)


FIELDS = {"tops": ("top", "antitop"), "leptons": ("lepton_plus", "lepton_minus"), "b": ("b", "bbar")}


@pytest.fixture
def records(momenta):
    """The same momenta as awkward arrays."""
    return {
        name: ak.zip(
            {field: fourvector.to_awkward(momenta[name][:, i]) for i, field in enumerate(fields)},
            depth_limit=1,
        )
        for name, fields in FIELDS.items()
    }


@pytest.mark.parametrize("name", CALLS)
def test_awkward_gives_the_numbers_of_numpy(momenta, records, name):
    found = call(name, records)
    assert isinstance(found, ak.Array)
    np.testing.assert_array_equal(ak.to_numpy(found), call(name, momenta))


@pytest.mark.parametrize("name", CALLS)
def test_one_awkward_array_may_hold_everything(momenta, records, name):
    """As `topreco` reconstructs it, beside a flag and with the leptons and jets added."""
    fields = {field: array[field] for array in records.values() for field in array.fields}
    reco = ak.zip({**fields, "valid": np.ones(len(records["tops"]), bool)}, depth_limit=1)
    function, _, options = CALLS[name]
    np.testing.assert_array_equal(ak.to_numpy(function(reco, **options)), call(name, momenta))


def test_awkward_and_numpy_may_be_mixed(momenta, records):
    found = c_hel(records["tops"], leptons=momenta["leptons"])
    np.testing.assert_array_equal(ak.to_numpy(found), call("c_hel", momenta))


def test_awkward_neutrinos_are_vectors(momenta, records):
    found = neutrinos(**records)
    expected = neutrinos(**momenta)
    assert found.fields == ["neutrino", "antineutrino"]
    assert isinstance(found.neutrino, vector.Momentum)
    for i, field in enumerate(found.fields):
        np.testing.assert_array_equal(fourvector.from_awkward(found[field]), expected[:, i])


def test_awkward_events_without_an_answer_are_nan(momenta, records):
    tops, leptons = records["tops"], records["leptons"]
    missing = np.arange(len(tops)) % 3 == 0
    found = ak.to_numpy(c_hel(ak.mask(tops, ~missing), leptons))
    np.testing.assert_array_equal(np.isnan(found), missing)
    np.testing.assert_array_equal(found[~missing], call("c_hel", momenta)[~missing])
    assert len(c_hel(tops[:0], leptons[:0])) == 0


def test_awkward_errors(records):
    with pytest.raises(
        TopRecoError, match=r"c_hel: leptons .* lepton_plus and lepton_minus, found top, anti"
    ):
        c_hel(records["tops"])
    with pytest.raises(TopRecoError, match=r"c_hel: tops .* top and antitop, found lepton_plus"):
        c_hel(records["leptons"])


def test_values_of_several_are_those_of_each() -> None:
    rng = np.random.default_rng(5)
    tops = fourvector.from_three_momentum(rng.normal(0, 150, (200, 2, 3)), 172.5)
    leptons = fourvector.from_three_momentum(rng.normal(0, 40, (200, 2, 3)), 0.1)
    for names in (OBSERVABLES, ("m_tt",), ("c_han",)):
        values = observable_values(names, tops, tops.sum(1), leptons)
        assert list(values) == list(names)
        for name, found in values.items():
            expected = OBSERVABLES[name].compute(tops, tops.sum(1), leptons)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
