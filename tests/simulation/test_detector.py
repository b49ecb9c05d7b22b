"""The detector response: laws that hold without a generator."""

from dataclasses import replace

import numpy as np
import pytest

from topreco.simulation import detector
from topreco.simulation.detector import ELECTRON, HADRON_TRACK, MUON, NEUTRAL, PHOTON, Particles


def particles(pdg_id, charge, pt, eta, phi, mass=0.0):
    """A table of particles, one per event."""
    n = len(pt)
    momentum = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=-1)
    energy = np.sqrt((momentum**2).sum(axis=-1) + mass**2)
    return Particles(
        event=np.arange(n),
        p4=np.concatenate([energy[:, None], momentum], axis=-1),
        kind=np.full(n, pdg_id, np.int32),
        charge=np.full(n, charge, np.int32),
        source=np.arange(n),
    )


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def single(pdg_id, charge, energy_flow_pt, rng, eta_max=1.4, n=20_000):
    pt = np.full(n, energy_flow_pt)
    table = particles(pdg_id, charge, pt, rng.uniform(-eta_max, eta_max, n), rng.uniform(-np.pi, np.pi, n))
    return table, *detector.energy_flow(table, rng)


@pytest.mark.parametrize(
    ("kind", "pt", "eta", "expected"),
    [
        (ELECTRON, 50.0, 0.3, np.hypot(0.03, 1.3e-3 * 50)),
        (ELECTRON, 50.0, -2.0, np.hypot(0.15, 3.1e-3 * 50)),
        (MUON, 100.0, 1.0, np.hypot(0.015, 1.5e-4 * 100)),
        (HADRON_TRACK, 10.0, 0.0, np.hypot(0.06, 1.3e-3 * 10)),
    ],
)
def test_track_resolution_is_that_of_the_card(kind, pt, eta, expected):
    value = detector.track_resolution(np.array([kind]), np.array([pt]), np.array([eta]))
    assert value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("energy", "eta", "expected"),
    [
        (100.0, 0.0, np.sqrt(0.8**2 + 0.11**2 * 100 + 0.4**2)),
        (100.0, 1.0, 1.64 * np.sqrt(0.8**2 + 0.11**2 * 100 + 0.4**2)),
        (100.0, 2.0, 2.16 * np.sqrt(0.8**2 + 0.11**2 * 100 + 0.4**2)),
        (100.0, 4.0, np.sqrt(10.7**2 + 2.08**2 * 100)),
    ],
)
def test_ecal_resolution_is_that_of_the_card(energy, eta, expected):
    assert detector.ecal_resolution(np.array([energy]), np.array([eta])) == pytest.approx(expected)


def test_log_normal_has_the_mean_and_width_asked_for(rng):
    value = detector.log_normal(np.full(200_000, 10.0), np.full(200_000, 4.0), rng)
    assert (value > 0).all()
    assert value.mean() == pytest.approx(10.0, rel=0.005)
    assert value.std() == pytest.approx(4.0, rel=0.01)
    assert (detector.log_normal(np.zeros(5), np.ones(5), rng) == 0).all()


def test_resolution_is_of_the_tracker_or_of_one_calorimeter():
    objects = [
        particles(HADRON_TRACK, 1, np.array([10.0]), np.array([0.0]), np.array([0.0])),
        particles(PHOTON, 0, np.array([100.0]), np.array([0.0]), np.array([0.0])),
        particles(NEUTRAL, 0, np.array([25.0]), np.array([0.0]), np.array([0.0])),
        particles(NEUTRAL, 0, np.array([1.0]), np.array([0.0]), np.array([0.0])),
    ]
    found = []
    for table in objects:
        source = table.source if table.charge[0] else np.full(1, -1)
        found.append(detector.resolution(replace(table, source=source))[0])
    hcal = np.sqrt((0.05 * 25) ** 2 + 1.5**2 * 25) / 25
    ecal = np.sqrt(0.8**2 + 0.11**2 * 100 + 0.4**2) / 100
    # The last one is as soft as its resolution, which counts no more than fully.
    assert found == pytest.approx([np.hypot(0.06, 1.3e-3 * 10), ecal, hcal, 1.0])


@pytest.mark.parametrize(
    ("pdg_id", "charge", "kind", "efficiency"),
    [(11, -1, ELECTRON, 0.95), (-13, 1, MUON, 0.99), (211, 1, HADRON_TRACK, 0.95)],
    ids=["electron", "muon", "pion"],
)
def test_charged_particles_become_tracks(pdg_id, charge, kind, efficiency, rng):
    table, objects, tracks = single(pdg_id, charge, 20.0, rng)
    assert len(tracks) / len(table) == pytest.approx(efficiency, abs=0.006)
    assert (tracks.kind == kind).all()
    assert np.array_equal(tracks.charge, table.charge[tracks.source])
    # Direction is kept, momentum is unbiased.
    assert np.allclose(tracks.eta, table.eta[tracks.source])
    assert np.mean(tracks.pt) == pytest.approx(20.0, rel=0.005)
    assert (np.diff(objects.event) >= 0).all()


def test_muons_leave_nothing_in_the_calorimeters(rng):
    _, objects, tracks = single(13, -1, 20.0, rng)
    assert len(objects) == len(tracks)


@pytest.mark.parametrize(("pdg_id", "kind"), [(22, PHOTON), (130, NEUTRAL)], ids=["photon", "K0L"])
def test_neutral_particles_become_calorimeter_objects(pdg_id, kind, rng):
    _, objects, tracks = single(pdg_id, 0, 100.0, rng)
    assert len(tracks) == 0
    assert (objects.kind == kind).all()
    assert np.mean(objects.pt) == pytest.approx(100.0, rel=0.01)


def test_calorimeter_measures_electrons_of_high_momentum(rng):
    _, objects, tracks = single(11, -1, 100.0, rng)
    electrons = objects[detector.select_leptons(objects, rng)]
    assert (electrons.source >= 0).all()
    assert np.std(tracks.pt) / 100 > 0.1
    low, high = np.quantile(electrons.pt / 100, [0.16, 0.84])
    assert 0.01 < (high - low) / 2 < 0.03


def test_lost_tracks_fall_back_to_the_calorimeter(rng):
    table, objects, tracks = single(211, 1, 50.0, rng)
    lost = np.setdiff1d(table.event, tracks.event)
    assert np.isin(lost, objects.event[objects.kind == NEUTRAL]).mean() > 0.99


def test_the_calorimeter_sums_what_falls_into_one_cell(rng):
    n = 4000
    phi = np.full(n, 0.001)
    single_photon = particles(22, 0, np.full(n, 20.0), np.full(n, 0.011), phi)
    halves = [particles(22, 0, np.full(n, 10.0), np.full(n, 0.011), phi) for _ in range(2)]
    pair = Particles(
        *(
            np.concatenate([getattr(half, name) for half in halves])
            for name in ("event", "p4", "kind", "charge")
        ),
        source=np.arange(2 * n),
    )
    one, _ = detector.energy_flow(single_photon, np.random.default_rng(1))
    two, _ = detector.energy_flow(pair, np.random.default_rng(1))
    assert len(one) == len(two) == n
    assert np.median(two.pt) == pytest.approx(np.median(one.pt), rel=0.01)


def test_combining_track_and_calorimeter_is_better_than_either(rng):
    table, objects, _ = single(211, 1, 300.0, rng, eta_max=0.5)
    track = objects.kind == HADRON_TRACK
    energy = table.p4[objects.event, 0]
    core = np.quantile((objects.p4[:, 0] / energy)[track], [0.15865, 0.84135])
    resolution = detector.track_resolution(np.array([HADRON_TRACK]), np.array([300.0]), np.array([0.0]))[0]
    assert (core[1] - core[0]) / 2 < 0.6 * resolution


def test_isolation_counts_the_cone_without_the_lepton(rng):
    muon = particles(13, -1, np.array([40.0]), np.array([0.0]), np.array([3.1]))
    lepton = Particles(muon.event, muon.p4, np.array([MUON], np.int32), muon.charge, np.array([0]))
    # The second lies in the cone across φ = ±π, the third outside, the fourth below threshold.
    others = particles(
        22, 0, np.array([8.0, 5.0, 0.3]), np.array([0.1, 0.5, 0.0]), np.array([-3.1, 3.1, 3.1])
    )
    objects = Particles(
        event=np.zeros(4, np.int64),
        p4=np.concatenate([lepton.p4, others.p4]),
        kind=np.array([MUON, PHOTON, PHOTON, PHOTON], np.int32),
        charge=np.zeros(4, np.int32),
        source=np.array([0, -1, -1, -1]),
    )
    assert detector.isolation(lepton, objects, np.array([0, 4])) == pytest.approx(8.0 / 40.0)


@pytest.mark.parametrize("flavour", [5, 4, 0])
@pytest.mark.parametrize("pt", [40.0, 120.0])
def test_btag_efficiency_at_the_medium_working_point(flavour, pt, rng):
    n = 200_000
    score = detector.btag_score(np.full(n, flavour), np.full(n, pt), np.zeros(n), rng.standard_normal(n))
    expected = detector.btag_efficiency(np.array([flavour]), np.array([pt]))[0]
    assert (score > detector.MEDIUM_WORKING_POINT).mean() == pytest.approx(expected, abs=0.004)
    assert ((score > 0) & (score < 1)).all()


def test_btag_score_orders_bands_by_purity(rng):
    n = 400_000
    edges = np.array([0.0490, 0.12, 0.2783, 0.5, 0.7100, 0.9, 1.0])
    histogram = {
        flavour: np.histogram(
            detector.btag_score(np.full(n, flavour), np.full(n, 60.0), np.zeros(n), rng.standard_normal(n)),
            edges,
        )[0]
        for flavour in (5, 0)
    }
    assert (np.diff(histogram[5] / histogram[0]) > 0).all()


@pytest.mark.parametrize("flavour", [5, 4, 0])
def test_second_tagger_has_its_efficiencies_at_all_working_points(flavour, rng):
    n = 400_000
    flavours, eta, normal = np.full(n, flavour), np.zeros(n), rng.standard_normal(n)
    score = detector.deepcsv_score(flavours, eta, normal, rng)
    for threshold, expected in zip(
        detector.DEEPCSV_WORKING_POINTS, detector.DEEPCSV_EFFICIENCIES[flavour], strict=True
    ):
        error = np.sqrt(expected * (1 - expected) / n)
        assert (score > threshold).mean() == pytest.approx(expected, abs=5 * error)
    first = detector.btag_score(flavours, np.full(n, 60.0), eta, normal)
    alike = np.corrcoef(*(np.log(s / (1 - s)) for s in (first, score)))[0, 1]
    assert 0.6 < alike < 0.75


def test_no_btag_outside_the_tracker(rng):
    flavour, eta, normal = np.full(3, 5), np.array([2.6, -3.0, 4.0]), rng.standard_normal(3)
    assert (detector.btag_score(flavour, np.full(3, 50.0), eta, normal) == 0).all()
    assert (detector.deepcsv_score(flavour, eta, normal, rng) == 0).all()
