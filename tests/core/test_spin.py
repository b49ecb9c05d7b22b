"""Spin coefficients and correlation at leading order: known limits, closure, and what is undefined."""

import awkward as ak
import numpy as np
import pytest
import uproot

from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import PRODUCTIONS, Truth
from topreco.core.observables import AXES, OBSERVABLES, c_hel, cos_theta_star, spin_cosines
from topreco.core.spin import (
    event_spin_weight,
    spin_coefficients,
    spin_correlation_matrix,
    spin_correlation_weight,
)

INITIAL = ("gg", "qq")


def isotropic(n, beta, cos_theta, seed=0):
    """Tops of one velocity and angle, their leptons without correlation, moving along the beam."""
    rng = np.random.default_rng(seed)

    def unit(shape):
        vectors = rng.normal(size=(*shape, 3))
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    phi = rng.uniform(-np.pi, np.pi, n)
    sin = np.sqrt(1 - cos_theta**2)
    k = np.stack([sin * np.cos(phi), sin * np.sin(phi), np.full(n, cos_theta)], -1)
    momentum = 172.5 * beta / np.sqrt(1 - beta**2) * k
    tops = fourvector.from_three_momentum(np.stack([momentum, -momentum], 1), 172.5)
    leptons = fourvector.from_three_momentum(50 * unit((n, 2)), 0.0)
    leptons = fourvector.boost(leptons, tops[..., 1:] / tops[..., :1])
    along = np.zeros((n, 1, 3))
    along[..., 2] = rng.uniform(-0.9, 0.9, (n, 1))
    return fourvector.boost(tops, along), fourvector.boost(leptons, along)


def test_at_threshold():
    """Two gluons make a spin singlet, quark and antiquark spins along the beam."""
    cosine = np.array([0.0, 0.6, -0.6, 1.0])
    np.testing.assert_allclose(
        spin_correlation_matrix(np.zeros(4), cosine, "gg"), np.broadcast_to(-np.eye(3), (4, 3, 3)), atol=1e-12
    )
    beam = np.stack([cosine, np.sqrt(1 - cosine**2), np.zeros(4)], -1)
    expected = beam[:, :, None] * beam[:, None, :]
    np.testing.assert_allclose(spin_correlation_matrix(np.zeros(4), cosine, "qq"), expected, atol=1e-12)


@pytest.mark.parametrize("initial", INITIAL)
def test_is_a_correlation_of_two_spins(initial):
    """No singular value beyond one, and symmetric, everywhere; all weights are then at least zero."""
    beta, cosine = np.meshgrid(np.linspace(0, 0.999, 50), np.linspace(-1, 1, 41))
    matrix = spin_correlation_matrix(beta, cosine, initial)
    np.testing.assert_array_equal(matrix, np.swapaxes(matrix, -1, -2))
    assert np.linalg.svd(matrix, compute_uv=False).max() < 1 + 1e-9


@pytest.mark.parametrize("initial", INITIAL)
@pytest.mark.parametrize(("beta", "cosine"), [(0.1, 0.3), (0.6, -0.7), (0.95, 0.1), (0.5, 1.0)])
def test_weighted_isotropic_leptons_have_the_correlation(initial, beta, cosine):
    """⟨w⟩ = 1 and D = −3⟨c_hel⟩ = tr C′/3, from leptons in the laboratory."""
    tops, leptons = isotropic(200_000, beta, cosine)
    weight = spin_correlation_weight(tops, leptons, initial)
    assert weight.min() >= -1e-9
    assert weight.mean() == pytest.approx(1, abs=4 * weight.std() / np.sqrt(len(weight)))
    cosines = c_hel(tops, leptons)
    expected = np.trace(spin_correlation_matrix(np.array(beta), np.array(cosine), initial)) / 3
    error = 3 * (weight * cosines).std() / np.sqrt(len(weight))
    assert error < 0.006
    assert -3 * np.mean(weight * cosines) == pytest.approx(expected, abs=4 * error)
    # The inverse of the weight takes it away again, from what has it.
    assert np.average(cosines, weights=weight * (1 / np.maximum(weight, 1e-12))) == pytest.approx(
        cosines.mean(), abs=1e-3
    )


@pytest.mark.parametrize("initial", INITIAL)
def test_neither_the_azimuth_nor_the_sense_of_the_beam_matters(initial):
    tops, leptons = isotropic(100, 0.7, 0.4)
    weight = spin_correlation_weight(tops, leptons, initial)
    turn = np.array([[1.0, 0, 0, 0], [0, 0.6, -0.8, 0], [0, 0.8, 0.6, 0], [0, 0, 0, 1]])
    flip = np.diag([1.0, 1, -1, -1])
    for matrix in (turn, flip):
        moved = spin_correlation_weight(tops @ matrix.T, leptons @ matrix.T, initial)
        np.testing.assert_allclose(moved, weight, atol=1e-9)


@pytest.mark.parametrize("initial", INITIAL)
def test_a_top_along_the_beam_has_the_weight_of_one_near_it(initial):
    weight, near = (spin_correlation_weight(*isotropic(50, 0.5, c), initial) for c in (1.0, 1 - 1e-14))
    np.testing.assert_allclose(weight, near, atol=1e-6)


@pytest.mark.parametrize("initial", INITIAL)
def test_the_weight_is_linear_in_the_correlation(initial):
    tops, leptons = isotropic(100, 0.6, 0.4)
    full = spin_correlation_weight(tops, leptons, initial)
    for scale in (0.0, 0.3, -1.0, 1.5):
        scaled = spin_correlation_weight(tops, leptons, initial, scale)
        np.testing.assert_allclose(scaled, 1 + scale * (full - 1), atol=1e-12)


def test_events_go_by_their_production():
    truth, tops, leptons = six_events()
    weight = event_spin_weight(truth)
    expected = {name: spin_correlation_weight(tops, leptons, name) for name in INITIAL}
    np.testing.assert_allclose(weight[[0, 2]], expected["gg"][[0, 2]])
    np.testing.assert_allclose(weight[[1, 4]], expected["qq"][[1, 4]])
    assert np.isnan(weight[[3, 5]]).all()


def six_events():
    """Truth of gg, qq̄, gg, other, qq̄ and gg without a neutrino; its tops and leptons."""
    tops, leptons = isotropic(6, 0.6, 0.2)
    neutrino = fourvector.from_three_momentum(np.random.default_rng(1).normal(0, 40, (6, 2, 3)), 0.0)
    neutrino[5, 1] = np.nan
    flags = np.zeros((6, 2), bool)
    production = np.array([PRODUCTIONS.index(name) for name in ("gg", "qq", "gg", "other", "qq", "gg")])
    truth = Truth(tops, leptons + neutrino, tops, tops, neutrino, flags, ~flags[:, 0], production)
    return truth, tops, leptons


def test_weights_lead_from_any_correlation_to_any_other():
    truth, *_ = six_events()
    known = np.array([0, 1, 2, 4])
    add = event_spin_weight(truth)
    np.testing.assert_allclose(event_spin_weight(truth, 0, present=1)[known], 1 / add[known])
    there, back = event_spin_weight(truth, 0.4, present=1), event_spin_weight(truth, 1, present=0.4)
    np.testing.assert_allclose((there * back)[known], 1)
    np.testing.assert_allclose(event_spin_weight(truth, 1, present=1)[known], 1)
    np.testing.assert_allclose((add * there)[known], event_spin_weight(truth, 0.4)[known])


@pytest.mark.parametrize(
    ("resonance", "sign", "name"), [("pseudoscalar", 1, "c_hel"), ("scalar", -1, "c_han")]
)
def test_resonances(resonance, sign, name):
    """A pseudoscalar has the weight 1 + c_hel, a scalar 1 − c_han, at any velocity and angle."""
    tops, leptons = isotropic(200, 0.6, 0.3)
    weight = spin_correlation_weight(tops, leptons, resonance)
    observable = OBSERVABLES[name].compute(tops, tops.sum(1), leptons)
    np.testing.assert_allclose(weight, 1 + sign * observable, atol=1e-9)
    np.testing.assert_allclose(
        spin_correlation_weight(tops, leptons, resonance, 0.3), 1 + 0.3 * sign * observable, atol=1e-9
    )
    matrix = spin_correlation_matrix(np.zeros((2, 1)), np.zeros(3), resonance)
    assert matrix.shape == (2, 3, 3, 3)


def test_unknown_initial_state():
    with pytest.raises(ValueError, match="'qg'; allowed are gg, qq, pseudoscalar, scalar"):
        spin_correlation_matrix(np.zeros(1), np.zeros(1), "qg")


# ---- coefficients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("initial", INITIAL)
@pytest.mark.parametrize("cosine", [0.5, -0.5])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_coefficients_are_those_put_in(initial, cosine, scale):
    """C = −κ C′ on the signed axes, no polarisation, D = κ tr C′/3; all within four statistical errors."""
    tops, leptons = isotropic(200_000, 0.7, cosine, seed=2)
    weight = spin_correlation_weight(tops, leptons, initial, scale)
    found = spin_coefficients(tops, leptons, weight)
    # r and n have the sign of cosΘ, which turns C′_rk.
    matrix = scale * spin_correlation_matrix(np.array(0.7), np.array(abs(cosine)), initial)
    expected = {f"B_{leg}{axis}": 0.0 for leg in (1, 2) for axis in AXES}
    expected |= {f"C_{a}{b}": -matrix[i, j] for i, a in enumerate(AXES) for j, b in enumerate(AXES)}
    for a, b in ("rk", "nr", "nk"):
        one, other = expected[f"C_{a}{b}"], expected[f"C_{b}{a}"]
        expected |= {f"C_{a}{b}+C_{b}{a}": one + other, f"C_{a}{b}-C_{b}{a}": one - other}
    kk, rr, nn = np.diag(matrix)
    expected |= {
        "D": (kk + rr + nn) / 3,
        "D_k": (kk - rr - nn) / 3,
        "D_r": (-kk + rr - nn) / 3,
        "D_n": (-kk - rr + nn) / 3,
    }
    assert found.keys() == expected.keys()
    for name, (value, error) in found.items():
        assert error < 0.012, name
        assert value == pytest.approx(expected[name], abs=4 * error), name


@pytest.mark.parametrize(
    ("matrix", "marker"),
    [(np.diag([-1, -1, -1]), "D"), (np.diag([-1, 1, 1]), "D_k"), (np.diag([1, 1, -1]), "D_n")],
    ids=[
        "singlet, as gg at threshold",
        "triplet along k, as a scalar",
        "triplet along n, as gg at high mass",
    ],
)
def test_markers_of_entangled_states(matrix, marker):
    """A maximally entangled state has −1 in one of the four and +1/3 in the others."""
    expected = dict.fromkeys(("D", "D_k", "D_r", "D_n"), 1 / 3) | {marker: -1}
    tops, leptons = isotropic(200_000, 0.6, 0.4, seed=3)
    cosines = spin_cosines(tops, leptons)
    weight = 1 + np.einsum("na,ab,nb->n", cosines[:, 0], matrix, cosines[:, 1])
    found = spin_coefficients(tops, leptons, weight)
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=4 * found[name].error), name


def test_coefficients_are_means_of_observables():
    """With the factors that docs/OBSERVABLES.md lists, so that means in histograms give them too."""
    tops, leptons = isotropic(500, 0.6, 0.3)
    weight = np.random.default_rng(4).choice([-0.5, 1.0, 2.0], 500)
    found = spin_coefficients(tops, leptons, weight)
    factors = {"c_hel": ("D", -3), "c_han": ("D_k", 3), "c_flip_r": ("D_r", 3), "c_flip_n": ("D_n", 3)}
    factors |= {f"cos_{leg}{a}": (f"B_{leg}{a}", 3) for leg in (1, 2) for a in AXES}
    factors |= {f"cos_1{a}_2{b}": (f"C_{a}{b}", -9) for a in AXES for b in AXES}
    for name, (coefficient, factor) in factors.items():
        values = factor * OBSERVABLES[name].compute(tops, tops.sum(1), leptons)
        mean = np.average(values, weights=weight)
        error = np.sqrt((weight**2 * (values - mean) ** 2).sum()) / weight.sum()
        assert found[coefficient] == pytest.approx((mean, error), rel=1e-9), name


def test_errors_cover():
    """The spread of D and C_rk + C_kr over 200 samples is their error."""
    tops, leptons = isotropic(40_000, 0.6, 0.3)
    weight = spin_correlation_weight(tops, leptons, "gg")
    parts = [spin_coefficients(tops[i::200], leptons[i::200], weight[i::200]) for i in range(200)]
    for name in ("D", "C_rk+C_kr", "B_1n"):
        values, errors = np.array([part[name] for part in parts]).T
        assert values.std() == pytest.approx(errors.mean(), rel=0.2), name


def test_events_without_cosines_do_not_count():
    tops, leptons = isotropic(300, 0.5, 0.2)
    broken = tops.copy()
    broken[::3] = np.nan
    kept = np.arange(300) % 3 != 0
    assert spin_coefficients(broken, leptons) == spin_coefficients(tops[kept], leptons[kept])
    nothing = spin_coefficients(broken[:1], leptons[:1])
    assert np.isnan(list(nothing.values())).all()
    assert np.isnan(list(spin_coefficients(tops, leptons, -np.ones(300)).values())).all()


@pytest.mark.parametrize("others", [0, 3])
def test_one_event_has_no_error(others):
    """Events of weight 0 are none."""
    tops, leptons = isotropic(1 + others, 0.5, 0.2)
    found = spin_coefficients(tops, leptons, np.eye(1 + others)[0])
    assert np.isfinite([value for value, _ in found.values()]).all()
    assert np.isnan([error for _, error in found.values()]).all()


def test_unusable_weights():
    tops, leptons = isotropic(10, 0.5, 0.2)
    with pytest.raises(TopRecoError, match=r"10 events but weights of shape \(9,\)"):
        spin_coefficients(tops, leptons, np.ones(9))
    with pytest.raises(TopRecoError, match="2 of 10 weights are not finite"):
        spin_coefficients(tops, leptons, np.where(np.arange(10) < 2, np.inf, 1.0))


def test_awkward_coefficients():
    tops, leptons = isotropic(50, 0.5, 0.2)
    fields = {
        "top": tops[:, 0],
        "antitop": tops[:, 1],
        "lepton_plus": leptons[:, 0],
        "lepton_minus": leptons[:, 1],
    }
    reco = ak.zip({name: fourvector.to_awkward(p4) for name, p4 in fields.items()}, depth_limit=1)
    weight = np.arange(50.0)
    assert spin_coefficients(reco, weight=ak.Array(weight)) == spin_coefficients(tops, leptons, weight)


def test_coefficients_of_a_leading_order_sample(data):
    """10 000 MadGraph events at 13 TeV against leading order, and the published values of the same order.

    Errors are 0.030 for C_ij and 0.017 for D. Three of them are allowed to the mean of the matrix that
    `spin_correlation_matrix` gives each event. C_kk, C_nn and D are measured as 0.30, 0.33 and −0.24
    (arXiv:1907.03729); C_rr, 0.08 there, vanishes at leading order, so it is not compared.
    """
    with uproot.open(data / "parton_tt2l_10k.root") as file:
        stored = file["truth"].arrays(library="np")

    def p4(*names):
        columns = ([stored[f"{n}_{c}"].astype(float) for c in ("pt", "eta", "phi", "m")] for n in names)
        return np.stack([fourvector.from_pt_eta_phi_mass(*column) for column in columns], 1)

    tops, leptons = p4("t", "tbar"), p4("lbar", "l")
    found = spin_coefficients(tops, leptons)
    system = tops.sum(1)
    at_rest = fourvector.to_rest_frame(tops[:, 0], system)
    beta = 2 * np.linalg.norm(at_rest[:, 1:], axis=1) / fourvector.mass(system)
    cosine = abs(cos_theta_star(tops))
    matrices = {name: spin_correlation_matrix(beta, cosine, name) for name in INITIAL}
    matrix = np.where(stored["init_gg"][:, None, None], matrices["gg"], matrices["qq"]).mean(0)
    for i, a in enumerate(AXES):
        for j, b in enumerate(AXES):
            value, error = found[f"C_{a}{b}"]
            assert error < 0.031
            assert value == pytest.approx(-matrix[i, j], abs=3.5 * error), (a, b)
    assert found["D"].value == pytest.approx(np.trace(matrix) / 3, abs=3 * found["D"].error)
    for name, published in (("C_kk", 0.30), ("C_nn", 0.33), ("D", -0.24)):
        assert found[name].value == pytest.approx(published, abs=3 * found[name].error), name
