"""Encodings of objects: round trips, their error, and that they repeat."""

import sys

import numpy as np
import pytest
import torch

from topreco.core import fourvector
from topreco.network.task import TrainingError
from topreco.network.tasks.encoding import (
    JET,
    KINDS,
    MET,
    Bins,
    Codebooks,
    coordinates,
    fit_encoding,
    momenta,
)

KIND = torch.tensor([0, 1, 2, 3, 3])


def make_objects(n=3000, seed=0):
    """Made-up leptons, MET and two jets, all there but for some second jets."""
    rng = np.random.default_rng(seed)
    pt = 20 + rng.exponential(40, (n, 5))
    eta = rng.normal(0, 1.2, (n, 5)) * (np.arange(5) != MET)
    mass = np.where(np.arange(5) < JET, 0.0, rng.uniform(4, 20, (n, 5)))
    phi = rng.uniform(-np.pi, np.pi, (n, 5))
    p4 = fourvector.from_pt_eta_phi_mass(*(torch.from_numpy(x).float() for x in (pt, eta, phi, mass)))
    exists = torch.ones(n, 5, dtype=torch.bool)
    exists[: n // 3, 4] = False
    return p4, exists


def make(name, codes):
    if name == "bins":
        return Bins(codes)
    pytest.importorskip("vector_quantize_pytorch", reason="needs the extra `tokens`")
    return Codebooks(2, codes)


def fitted(name, codes, seed=0):
    encoding = make(name, codes)
    p4, exists = make_objects(seed=seed)
    fit_encoding(encoding, p4, KIND, exists)
    return encoding


def errors(encoding):
    """RMS of ln pT, η, φ and ln m over those of the objects, shape (5, 4)."""
    p4, _ = make_objects(2000, seed=9)
    kind = KIND.expand(p4.shape[:2])
    x = coordinates(p4, kind)
    back = encoding.decode(encoding.encode(x, kind), kind)
    difference = back - x
    difference[..., 2] = torch.remainder(difference[..., 2] + np.pi, 2 * np.pi) - np.pi
    return difference.square().mean(0).sqrt() / x.std(0).clamp(min=1e-6)


def test_momenta_and_back():
    p4, _ = make_objects(50)
    kind = KIND.expand(50, 5)
    back = momenta(coordinates(p4.double(), kind), kind, torch.zeros(50, 5, dtype=torch.float64))
    torch.testing.assert_close(back, p4.double(), rtol=1e-3, atol=1e-2)


def test_coordinates_of_nothing_are_finite():
    nothing = torch.zeros(1, 5, 4)
    assert coordinates(nothing, KIND[None]).isfinite().all()


@pytest.mark.parametrize("name", ["bins", "codebook"])
def test_more_codes_are_better(name):
    few, many = errors(fitted(name, 4)), errors(fitted(name, 32))
    used = few > 0.02
    assert (many[used] < few[used]).all()
    # ln m of jets alone, and no η of MET.
    assert many[MET, 1] == 0
    assert many[JET, 3] < 0.5
    assert (many[:, 2] < 0.3).all()


@pytest.mark.parametrize("name", ["bins", "codebook"])
def test_codes_are_in_range_and_survive_a_round_trip(name):
    encoding = fitted(name, 16)
    p4, _ = make_objects(500, seed=4)
    kind = KIND.expand(p4.shape[:2])
    codes = encoding.encode(coordinates(p4, kind), kind)
    assert codes.shape == (500, 5, encoding.levels)
    assert codes.min() >= 0
    assert codes.max() < encoding.codes
    again = encoding.encode(encoding.decode(codes, kind), kind)
    back, twice = encoding.decode(codes, kind), encoding.decode(again, kind)
    # A greedy search may find another sum of vectors than that which it is given, but hardly ever.
    same = (back - twice).abs().amax(-1) < 1e-4
    assert same.double().mean() > (0.99 if name == "bins" else 0.8)


def test_bins_have_the_same_population():
    encoding = fitted("bins", 8)
    p4, _ = make_objects()
    kind = KIND.expand(p4.shape[:2])
    codes = encoding.encode(coordinates(p4, kind), kind)
    counts = torch.bincount(codes[:, 0, 0], minlength=8)
    assert (counts - 3000 / 8).abs().max() < 5
    # One value is one bin, and it comes back.
    constant = encoding.decode(codes, kind)[:, MET, 1]
    assert not constant.any()


def test_azimuth_has_no_seam():
    """Two objects on both sides of ±π are neighbours in a codebook."""
    encoding = fitted("codebook", 64)
    x = torch.tensor([[4.0, 0.3, np.pi - 1e-3, 0.0], [4.0, 0.3, -np.pi + 1e-3, 0.0]])
    one, two = encoding.encode(x, torch.zeros(2, dtype=torch.int64))
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["bins", "codebook"])
def test_the_seed_determines_the_encoding(name):
    states = []
    for _ in range(2):
        torch.manual_seed(4)
        states.append(fitted(name, 8).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_what_cannot_be_encoded(monkeypatch):
    p4, exists = make_objects(50)
    exists[:, 3:] = False
    with pytest.raises(TrainingError, match=r"data.files: no training event has a jet"):
        fit_encoding(Bins(4), p4, KIND, exists)
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(TrainingError, match=r"needs the extra: pip install 'topreco\[tokens\]'"):
        fit_encoding(Codebooks(1, 4), *make_objects(50)[:1], KIND, make_objects(50)[1])
    assert KINDS[JET] == "jet"
