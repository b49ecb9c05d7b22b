import numpy as np
import pytest

from topreco.config import SelectionConfig
from topreco.core import fourvector
from topreco.core.constants import FLAG_IS_FIRST_COPY, FLAG_IS_LAST_COPY, M_B, M_ELECTRON, M_MUON
from topreco.core.events import PRODUCTIONS
from topreco.input.nano import InputError, open_events
from topreco.input.selection import select
from topreco.input.truth import has_truth, read_truth

FIRST, LAST = 1 << FLAG_IS_FIRST_COPY, 1 << FLAG_IS_LAST_COPY


def particle(pdg_id, mother, flags=LAST, **more):
    return {"pdgId": pdg_id, "genPartIdxMother": mother, "statusFlags": flags} | more


def incoming(first, second):
    return [particle(first, -1, 0, status=21), particle(second, -1, 0, status=21)]


def leg(start, sign, lepton, *, pt):
    """Top, W, b and ℓ, each with a copy, and ν; `start` is the index of the first."""
    return [
        particle(6 * sign, 0, FIRST, pt=999.0, mass=172.5),
        particle(6 * sign, start, LAST, pt=pt, mass=172.5),
        particle(24 * sign, start + 1, FIRST, pt=998.0, mass=80.0),
        particle(5 * sign, start + 1, FIRST, pt=pt + 1),
        particle(24 * sign, start + 2, LAST, pt=pt + 2, mass=80.0),
        particle(-sign * lepton, start + 4, FIRST, pt=pt + 3),
        particle(sign * (lepton + 1), start + 4, LAST, pt=pt + 4),
        particle(5 * sign, start + 3, LAST, pt=997.0),
        particle(-sign * lepton, start + 5, LAST, pt=996.0),
    ]


@pytest.fixture
def truth_of(nano_file, emu):
    """Function from lists of generated particles to truth."""

    def read(*records, **options):
        return read_truth(open_events(nano_file([emu(GenPart=r) for r in records], **options)))

    return read


def test_direct_decays(truth_of):
    truth = truth_of(incoming(21, 21) + leg(2, -1, 13, pt=40.0) + leg(11, 1, 11, pt=60.0))
    pt = np.array([60.0, 40.0])
    for offset, role in enumerate(("tops", "b", "w", "lepton", "neutrino")):
        np.testing.assert_allclose(fourvector.pt(getattr(truth, role)), [pt + offset], err_msg=role)
    np.testing.assert_allclose(fourvector.mass(truth.tops), 172.5)
    np.testing.assert_allclose(fourvector.mass(truth.b), M_B)
    np.testing.assert_allclose(fourvector.mass(truth.lepton), [[M_ELECTRON, M_MUON]], rtol=1e-3)
    np.testing.assert_allclose(fourvector.mass_squared(truth.neutrino), 0.0, atol=1e-9)
    assert not truth.via_tau.any()
    assert truth.dileptonic.all()
    assert truth.valid.all()


def test_tau_decays(truth_of):
    tau_leg = leg(2, 1, 15, pt=40.0)
    # The last copy of the τ is particle 10.
    products = [
        particle(-16, 10, pt=5.0),
        particle(12, 10, pt=6.0),
        particle(11, 10, pt=6.5),  # of a conversion: the wrong charge
        particle(-11, 10, pt=7.0),
    ]
    hadronic = [particle(-16, 10, pt=5.0), particle(211, 10, pt=8.0)]
    other = leg(2 + 9, -1, 11, pt=50.0)
    truth = truth_of(
        incoming(21, 21) + tau_leg + other + products, incoming(21, 21) + tau_leg + other + hadronic
    )
    assert truth.via_tau.tolist() == [[True, False]] * 2
    assert truth.dileptonic.tolist() == [True, False]
    np.testing.assert_allclose(fourvector.pt(truth.lepton[0]), [7.0, 53.0])
    np.testing.assert_allclose(fourvector.pt(truth.neutrino), [[44.0, 54.0]] * 2)
    assert np.isnan(truth.lepton[1, 0]).all()
    assert np.isfinite(truth.lepton[1, 1]).all()


def test_hadronic_w(truth_of):
    hadronic = leg(11, -1, 11, pt=50.0)
    hadronic[5]["pdgId"], hadronic[6]["pdgId"] = -2, 1
    truth = truth_of(incoming(21, 21) + leg(2, 1, 13, pt=40.0) + hadronic)
    assert truth.valid.all()
    assert not truth.dileptonic.any()
    assert np.isfinite(truth.w).all()
    assert np.isnan(truth.lepton[:, 1]).all()
    assert np.isnan(truth.neutrino[:, 1]).all()


def test_record_without_w(truth_of):
    top = [
        particle(6, 0, pt=40.0, mass=172.5),
        particle(5, 2, pt=41.0),
        particle(-13, 2, pt=42.0),
        particle(14, 2, pt=43.0),
    ]
    truth = truth_of(incoming(21, 21) + top)
    np.testing.assert_allclose(fourvector.pt(truth.lepton[0, 0]), 42.0)
    np.testing.assert_allclose(fourvector.pt(truth.neutrino[0, 0]), 43.0)
    assert np.isnan(truth.w).all()
    assert np.isnan(truth.tops[0, 1]).all()
    assert not truth.valid.any()


def test_events_without_tops(truth_of):
    truth = truth_of(incoming(2, -1), [], [*incoming(1, -1), particle(6, 0, FIRST, mass=172.5)])
    for role in ("tops", "w", "b", "lepton", "neutrino"):
        assert np.isnan(getattr(truth, role)).all()
    assert not (truth.valid | truth.dileptonic).any()
    assert not truth.via_tau.any()


def test_loop_in_a_damaged_record_ends(truth_of):
    loop = [particle(6, 0, pt=40.0, mass=172.5), particle(24, 4, FIRST), particle(24, 3), particle(24, 2)]
    assert np.isfinite(truth_of(incoming(21, 21) + loop).w[0, 0]).all()


@pytest.mark.parametrize(
    ("partons", "expected"),
    [
        ((21, 21), "gg"),
        ((2, -2), "qq"),
        ((-5, 5), "qq"),
        ((2, 21), "other"),
        ((2, -1), "other"),
        ((2, 2), "other"),
        ((0, 0), "other"),
        ((22, 22), "other"),
    ],
)
def test_production(nano_file, emu, partons, expected):
    from_generator = emu(Generator_id1=partons[0], Generator_id2=partons[1])
    truth = read_truth(open_events(nano_file([from_generator])))
    assert PRODUCTIONS[truth.production[0]] == expected
    from_record = emu(GenPart=incoming(*partons))
    path = nano_file([emu(GenPart=[]), from_record], drop=("Generator_id1",))
    production = read_truth(open_events(path)).production
    assert [PRODUCTIONS[i] for i in production] == ["other", expected]
    path = nano_file([from_record], drop=("Generator_id1", "GenPart_status"))
    assert PRODUCTIONS[read_truth(open_events(path)).production[0]] == "other"


def test_data_have_no_truth(nano_file, emu):
    for drop in (("GenPart",), ("GenPart_statusFlags",)):
        events = open_events(nano_file([emu()], drop=drop))
        assert not has_truth(events)
        with pytest.raises(InputError, match="no truth in these events: branch 'GenPart_"):
            read_truth(events)


def test_rows_stay_aligned(nano_file, emu):
    records = [incoming(21, 21) + leg(2, 1, 11, pt=40.0 + i) for i in range(10)]
    events = open_events(nano_file([emu(GenPart=r) for r in records]))
    assert has_truth(events)
    rows = np.array([7, 2, 9])
    np.testing.assert_allclose(fourvector.pt(read_truth(events[rows]).tops[:, 0]), 40.0 + rows)
    assert len(read_truth(events[rows[:0]])) == 0


def summed(momenta):
    """|px|, |py| of four-momenta, in one array."""
    return np.abs(momenta[..., 1:3]).ravel()


def test_real_file(data):
    events = open_events(data / "nanoaodv9_TTTo2L2Nu_first500.root")
    truth = read_truth(events)
    assert truth.valid.all()
    assert np.isfinite(truth.w).all()
    assert np.isfinite(truth.b).all()
    assert np.isfinite(truth.neutrino).all()
    assert truth.via_tau.sum() == 332
    np.testing.assert_array_equal(np.isnan(truth.lepton[..., 0]) & ~truth.via_tau, False)
    assert truth.dileptonic.sum() == 314
    assert np.bincount(truth.production).tolist() == [350, 31, 119]
    assert np.median(fourvector.mass(truth.tops)) == pytest.approx(172.5, abs=0.5)
    assert np.median(fourvector.mass(truth.w)) == pytest.approx(80.4, abs=0.5)
    direct = ~truth.via_tau
    decay = (truth.lepton + truth.neutrino)[direct]
    # Momenta are packed, a few per mille each.
    closure = summed(decay - truth.w[direct])
    assert np.median(closure) < 0.12
    assert np.quantile(closure, 0.95) < 0.6
    assert np.median(fourvector.mass(decay)) == pytest.approx(80.4, abs=0.5)
    # The recoil against radiation of the b adds a tail.
    closure = summed(truth.tops[direct] - truth.b[direct] - decay)
    assert np.median(closure) < 0.35
    assert 1.0 < np.quantile(closure, 0.95) < 6.0


def test_simulated_file(data):
    events = open_events(data / "delphes" / "tt2l_mg5_delphes_1.root")
    found = select(events, SelectionConfig(), dataset="tt")
    truth = read_truth(events[found.index])
    assert truth.valid.all()
    # Events with a misidentified lepton aside, both tops decayed to e or μ.
    assert truth.dileptonic.mean() > 0.99
    direct = ~truth.via_tau & truth.dileptonic[:, None]
    closure = summed((truth.lepton + truth.neutrino - truth.w)[direct])
    assert np.quantile(closure, 0.99) < 0.01
    # The generated leptons are near the reconstructed ones.
    for i, lepton in enumerate((found.events.lepton_plus, found.events.lepton_minus)):
        near = fourvector.delta_r(lepton, truth.lepton[:, i]) < 0.1
        assert near.mean() > 0.97


def test_b_candidates_are_mostly_right(data):
    events = open_events(data / "delphes" / "tt2l_mg5_delphes_1.root")
    found = select(events, SelectionConfig(), dataset="tt")
    truth, chosen = read_truth(events[found.index]), found.events
    assert (chosen.b_candidates >= 0).all(axis=1).mean() == pytest.approx(0.955, abs=0.01)
    jets = np.where(chosen.jet_mask[..., None], chosen.jets, np.array([1.0, 0.0, 1e-9, 1.0]))
    distance = np.stack([fourvector.delta_r(jets, truth.b[:, i, None]) for i in (0, 1)], axis=1)
    matched = distance.argmin(axis=2)
    both = (distance.min(axis=2) < 0.4).all(axis=1) & (matched[:, 0] != matched[:, 1])
    right = (chosen.b_candidates == matched).all(axis=1)[both].mean()
    assert both.mean() == pytest.approx(0.77, abs=0.02)
    assert right == pytest.approx(0.75, abs=0.02)
