"""`topreco.core.fourvector` against the package `vector`, for numpy and torch."""

import awkward as ak
import numpy as np
import pytest
import torch
import vector
from coffea.nanoevents.methods import vector as coffea_vector
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from topreco.core import fourvector
from topreco.core.errors import TopRecoError

momenta = st.floats(-2000, 2000, allow_nan=False)
three_momenta = arrays(np.float64, (5, 3), elements=momenta)
masses = st.floats(0.1, 500)


def reference(p4):
    return vector.array({"E": p4[..., 0], "px": p4[..., 1], "py": p4[..., 2], "pz": p4[..., 3]})


@pytest.fixture
def p4():
    rng = np.random.default_rng(1)
    return fourvector.from_three_momentum(rng.normal(0, 100, (50, 3)), rng.uniform(0.1, 200, 50))


@pytest.mark.parametrize("name", ["pt", "phi", "eta", "rapidity", "mass"])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_coordinates_agree_with_vector(p4, name, convert):
    ours = getattr(fourvector, name)(convert(p4))
    np.testing.assert_allclose(np.asarray(ours), getattr(reference(p4), name), rtol=1e-9)


@given(three_momenta, masses)
def test_pt_eta_phi_mass_round_trip(momentum, mass):
    p4 = fourvector.from_three_momentum(momentum, mass)
    p4 = p4[fourvector.pt(p4) > 1e-3]
    again = fourvector.from_pt_eta_phi_mass(
        fourvector.pt(p4), fourvector.eta(p4), fourvector.phi(p4), np.full(len(p4), mass)
    )
    np.testing.assert_allclose(again, p4, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_boost_agrees_with_vector(p4, convert):
    velocity = np.random.default_rng(2).uniform(-0.55, 0.55, (50, 3))
    ours = fourvector.boost(convert(p4), convert(velocity))
    theirs = reference(p4).boost_beta3(
        vector.array({"x": velocity[:, 0], "y": velocity[:, 1], "z": velocity[:, 2]})
    )
    np.testing.assert_allclose(
        np.asarray(ours), np.stack([theirs.E, theirs.px, theirs.py, theirs.pz], -1), rtol=1e-9, atol=1e-9
    )


@given(three_momenta, masses)
def test_rest_frame_is_at_rest(momentum, mass):
    p4 = fourvector.from_three_momentum(momentum, mass)
    at_rest = fourvector.to_rest_frame(p4, p4)
    np.testing.assert_allclose(at_rest[:, 1:], 0, atol=1e-3 * np.abs(p4).max())
    np.testing.assert_allclose(fourvector.mass_squared(at_rest), mass**2, rtol=1e-3, atol=1e-2)


def test_spacelike_and_degenerate_vectors_are_nan_not_errors():
    spacelike = np.array([[1.0, 2.0, 0.0, 0.0]])
    assert np.isnan(fourvector.mass(spacelike)).all()
    assert np.isnan(fourvector.rapidity(np.array([[1.0, 0.0, 0.0, 2.0]]))).all()
    assert fourvector.eta(np.array([[5.0, 0.0, 0.0, -5.0]]))[0] == -np.inf
    assert np.isnan(fourvector.eta(np.zeros((1, 4)))).all()


def test_negative_stored_mass_counts_as_zero():
    p4 = fourvector.from_pt_eta_phi_mass(*(np.array([x]) for x in (30.0, 0.0, 0.0, -1.5)))
    assert fourvector.mass(p4)[0] == pytest.approx(0, abs=1e-6)


def test_delta_phi_wraps():
    a = fourvector.from_pt_eta_phi_mass(*(np.array([x]) for x in (1.0, 0.0, 3.1, 0.0)))
    b = fourvector.from_pt_eta_phi_mass(*(np.array([x]) for x in (1.0, 0.0, -3.1, 0.0)))
    assert fourvector.delta_phi(a, b)[0] == pytest.approx(6.2 - 2 * np.pi)
    assert fourvector.delta_r(a, b)[0] == pytest.approx(2 * np.pi - 6.2)


# ---- awkward arrays --------------------------------------------------------------------------------------


def test_awkward_round_trip(p4):
    records = fourvector.to_awkward(p4)
    assert isinstance(records, vector.Momentum)
    np.testing.assert_array_equal(fourvector.from_awkward(records), p4)
    np.testing.assert_allclose(ak.to_numpy(records.pt), fourvector.pt(p4))


def polar(p4):
    coordinates = {name: getattr(fourvector, name)(p4) for name in ("pt", "eta", "phi", "mass")}
    return ak.zip({**coordinates, "charge": np.ones(len(p4), int)})


@pytest.mark.parametrize(
    "convert",
    [
        lambda p4: ak.zip(dict(zip(("E", "px", "py", "pz"), p4.T, strict=True))),
        polar,
        lambda p4: ak.with_name(polar(p4), "PtEtaPhiMLorentzVector"),
        lambda p4: ak.with_name(polar(p4), "PtEtaPhiMLorentzVector", behavior=coffea_vector.behavior),
        lambda p4: ak.firsts(ak.singletons(fourvector.to_awkward(p4))),
    ],
    ids=["plain", "plain polar", "coffea without behaviour", "coffea", "option"],
)
def test_all_kinds_of_records(p4, convert):
    np.testing.assert_allclose(fourvector.from_awkward(convert(p4)), p4, rtol=1e-9, atol=1e-9)


def test_missing_records_are_nan(p4):
    present = np.arange(len(p4)) % 2 == 0
    found = fourvector.from_awkward(ak.mask(fourvector.to_awkward(p4), present))
    np.testing.assert_array_equal(found, np.where(present[:, None], p4, np.nan))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (ak.Array([1.0, 2.0]), r"\(pt, eta, phi, mass\) expected, 2 \* float64 found"),
        (ak.Array([{"pt": 1.0, "eta": 0.0}]), "expected, 1 .* found"),
        (ak.Array([{"px": 1.0, "py": 0.0, "pz": 0.0}]), "expected, 1 .* found"),
        (
            ak.Array([[{"px": 1.0, "py": 1.0, "pz": 1.0, "E": 3.0}], []]),
            r"one record per event expected, 2 \* var",
        ),
    ],
    ids=["numbers", "two coordinates", "no energy", "several per event"],
)
def test_other_awkward_arrays_are_refused(records, message):
    with pytest.raises(TopRecoError, match=message):
        fourvector.from_awkward(records)
