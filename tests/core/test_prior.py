"""Priors: weights of samples that are exact, and what counts nothing."""

import dataclasses
import json

import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.core.events import Truth
from topreco.core.fourvector import mass, pack, pt
from topreco.core.prior import M_TT_EDGES, PT_TOP_EDGES, Prior, Spectra

SHAPE = (len(M_TT_EDGES) - 1, len(PT_TOP_EDGES) - 1)
CENTRES = (M_TT_EDGES[1:] + M_TT_EDGES[:-1]) / 2
WIDTHS = np.diff(M_TT_EDGES)


def pair_of(m_tt, pt_top=0.0):
    """On-shell pairs at rest of given mass, with transverse momentum of t."""
    m_tt, pt_top = np.broadcast_arrays(np.asarray(m_tt, float), pt_top)
    momentum = np.sqrt(np.maximum(m_tt**2 / 4 - 172.5**2, 0))
    pz = np.sqrt(np.maximum(momentum**2 - pt_top**2, 0))
    energy, zero = m_tt / 2, np.zeros_like(m_tt)
    return np.stack([pack(energy, pt_top, zero, pz), pack(energy, -pt_top, zero, -pz)], axis=-2)


def truth_of(tops, dileptonic=True):
    n = len(tops)
    unknown = np.full((n, 2, 4), np.nan)
    return Truth(
        tops=tops,
        w=unknown,
        b=unknown,
        lepton=unknown,
        neutrino=unknown,
        via_tau=np.zeros((n, 2), bool),
        dileptonic=np.full(n, dileptonic),
        production=np.zeros(n, int),
    )


@pytest.fixture(scope="module")
def spectra():
    """A falling spectrum, of which a tenth to a half is selected."""
    rng = np.random.default_rng(0)
    generated = np.exp(-CENTRES / 100)[:, None] * rng.uniform(0.5, 2.0, SHAPE)
    return Spectra(generated, generated * rng.uniform(0.1, 0.5, SHAPE))


def test_the_edges_begin_at_twice_the_mass():
    assert (M_TT_EDGES[0], M_TT_EDGES[-1]) == (345.0, pytest.approx(2000))
    assert (np.diff(M_TT_EDGES) > 0).all()
    assert (PT_TOP_EDGES[0], PT_TOP_EDGES[-1]) == (0.0, 800.0)
    assert (np.diff(PT_TOP_EDGES) > 0).all()


def test_spectra_hold_everything_and_their_ratio_is_the_efficiency():
    generated = truth_of(pair_of([345.0, 361.0, 361.0, 5000.0], [0.0, 50.0, 50.0, 900.0]))
    selected = generated[np.array([1, 3])]
    found = Spectra.of(generated, np.array([1.0, 2.0, 3.0, 4.0]), selected, np.array([2.0, 4.0]))
    assert found.generated.sum() == 10
    assert found.generated[0, 0] == 1
    assert found.generated[-1, -1] == 4
    assert found.efficiency[3, 2] == pytest.approx(2 / 5)
    assert found.efficiency_m_tt[-1] == 1
    assert np.isnan(found.efficiency).sum() == found.generated.size - 3
    again = Spectra.from_dict(json.loads(json.dumps(found.to_dict())))
    np.testing.assert_array_equal(again.generated, found.generated)
    np.testing.assert_array_equal((again + found).selected, 2 * found.selected)
    none = Spectra.of(truth_of(generated.tops, dileptonic=False), np.ones(4), selected, np.ones(2))
    assert none.generated.sum() == 0


def test_the_own_prior_changes_nothing(spectra):
    tops = pair_of(np.linspace(345, 3000, 500), 60.0)
    for variables in ("m_tt", "m_tt, pt_top"):
        ratio = Prior.from_spectra(spectra, variables).relative_to(spectra).log_ratio(tops)
        np.testing.assert_allclose(ratio, 0.0, atol=1e-12)


def test_flat_prior_divides_by_the_density(spectra):
    density = spectra.generated.sum(axis=1) / WIDTHS
    # In the middle of bins that lie within the range.
    prior = dataclasses.replace(Prior.flat(400, 1000), max_ratio=1e9).relative_to(spectra)
    inside = (M_TT_EDGES[:-1] >= 400) & (M_TT_EDGES[1:] <= 1000)
    ratio = np.exp(prior.log_ratio(pair_of(CENTRES)))
    expected = density.sum() and spectra.generated.sum() / density / 600
    np.testing.assert_allclose(ratio[inside], expected[inside], rtol=1e-9)
    assert (ratio[~inside & ((CENTRES < 400) | (CENTRES > 1000))] == 0).all()


def test_weighting_turns_the_training_into_the_new_spectrum(spectra):
    # Draws of the generated events of the training, weighted, follow the histogram.
    rng = np.random.default_rng(1)
    marginal = spectra.generated.sum(axis=1)
    cell = rng.choice(len(marginal), 200_000, p=marginal / marginal.sum())
    m_tt = rng.uniform(M_TT_EDGES[cell], M_TT_EDGES[cell + 1])
    edges = [345, 400, 500, 700]
    prior = Prior.from_histogram([1, 2, 3], edges).relative_to(spectra)
    weight = np.exp(prior.log_ratio(pair_of(m_tt)))
    counts = np.histogram(m_tt, edges, weights=weight)[0]
    np.testing.assert_allclose(counts / counts.sum(), np.array([1, 2, 3]) / 6, rtol=0.02)
    assert weight.mean() == pytest.approx(1, rel=0.02)


def test_two_variables(spectra):
    prior = Prior.from_histogram([[1, 3]], [345, 2000], [0, 100, 800]).relative_to(spectra)
    low, high = prior.log_ratio(pair_of([600.0, 600.0], [30.0, 130.0]))
    area = WIDTHS[:, None] * np.diff(PT_TOP_EDGES)
    density = spectra.generated / area
    at = [np.searchsorted(M_TT_EDGES, 600.0, side="right") - 1]
    first, second = (np.searchsorted(PT_TOP_EDGES, v, side="right") - 1 for v in (30.0, 130.0))
    old = density[at, first] / density[at, second]
    assert np.exp(high - low) == pytest.approx(float(3 / 700 / (1 / 100) * old[0]))


def test_empty_bins_count_nothing_and_ratios_are_limited(spectra):
    generated = spectra.generated.copy()
    generated[5] = 0.0
    generated[7] *= 1e-9
    training = Spectra(generated, spectra.selected)
    ratio = np.exp(Prior.flat().relative_to(training).log_ratio(pair_of(CENTRES)))
    assert ratio[5] == 0
    assert ratio[7] == pytest.approx(1000)
    missing = pair_of(np.array([np.nan, 500.0]))
    assert np.isneginf(Prior.flat().relative_to(training).log_ratio(missing)).tolist() == [True, False]


def test_on_shell_masses_decide(spectra):
    # A generated pair below threshold, of light tops, has on-shell partners above it.
    tops = pair_of(np.array([350.0]))
    tops[..., 0] *= 0.9
    assert mass(tops.sum(axis=1)) < 345
    assert np.isfinite(Prior.flat().relative_to(spectra).log_ratio(tops)).all()
    assert pt(tops[:, 0]) == 0


def test_files(tmp_path):
    (tmp_path / "a.json").write_text('{"m_tt_edges": [345, 400, 500], "counts": [11, 5]}')
    (tmp_path / "b.csv").write_text("m_tt_low,m_tt_high,counts\n345,400,11\n400,500,5\n")
    for name in ("a.json", "b.csv"):
        prior = Prior.read(tmp_path / name)
        np.testing.assert_allclose(prior.density, [0.2, 0.05])
        assert prior.name == name[0]
    (tmp_path / "c.csv").write_text("m_tt_low,m_tt_high,counts\n345,400,11\n410,500,5\n")
    with pytest.raises(TopRecoError, match=r"c\.csv: each m_tt_low"):
        Prior.read(tmp_path / "c.csv")
    (tmp_path / "d.json").write_text('{"edges": []}')
    with pytest.raises(TopRecoError, match=r"d\.json: no prior \(KeyError"):
        Prior.read(tmp_path / "d.json")


def test_errors(spectra):
    with pytest.raises(TopRecoError, match="the spectra of the training are unknown"):
        Prior.flat().log_ratio(pair_of([500.0]))
    with pytest.raises(TopRecoError, match="m_tt_edges are"):
        Prior.flat(500, 400)
    with pytest.raises(TopRecoError, match=r"contents of shape \(2,\), \(1,\) expected"):
        Prior.from_histogram([1, 2], [345, 400])
    with pytest.raises(TopRecoError, match="not negative"):
        Prior.from_histogram([1, -2], [345, 400, 500])
    with pytest.raises(TopRecoError, match="max_ratio 0"):
        dataclasses.replace(Prior.flat(), max_ratio=0.0)
    incomplete = dataclasses.replace(spectra, complete=False)
    with pytest.raises(TopRecoError, match="skim the unselected"):
        Prior.flat().relative_to(incomplete)
    with pytest.raises(TopRecoError, match="empty"):
        Prior.from_spectra(Spectra())
    with pytest.raises(TopRecoError, match="skim again"):
        Spectra.from_dict(spectra.to_dict() | {"m_tt_edges": [1, 2]})


def test_fingerprint_knows_every_setting(spectra):
    one = Prior.flat().relative_to(spectra)
    others = [
        Prior.flat(),
        Prior.flat(350).relative_to(spectra),
        dataclasses.replace(one, max_ratio=10.0),
        one.relative_to(spectra + spectra),
        dataclasses.replace(one, open_ended=True),
    ]
    assert len({prior.fingerprint for prior in [one, *others]}) == 6
    assert dataclasses.replace(one, name="x").fingerprint == one.fingerprint
