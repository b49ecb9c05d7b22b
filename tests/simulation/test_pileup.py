"""Pile-up: the pool, the overlay, and what is done against it."""

from dataclasses import replace

import awkward as ak
import numpy as np
import pytest
import uproot

from topreco.config import SimulationConfig
from topreco.core.errors import TopRecoError

pytest.importorskip("pythia8mc")
pytest.importorskip("fastjet")

from topreco.simulation import detector, jets, mitigation, simulate
from topreco.simulation.detector import NEUTRAL, Particles
from topreco.simulation.mitigation import Contamination
from topreco.simulation.pileup import (
    Pool,
    load_pool,
    overlay,
    pool_file,
    prepare_pool,
    true_mean,
    with_pileup,
)

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A pool of 300 minimum-bias events, for which Pythia needs ten seconds to start."""
    return SimulationConfig(
        n_events=40,
        seed=4,
        mpi=False,
        block_size=20,
        pileup=30.0,
        pileup_pool=300,
        pileup_cache=tmp_path_factory.mktemp("cache"),
    )


@pytest.fixture(scope="module")
def pool(config):
    return load_pool(prepare_pool(config))


@pytest.fixture(scope="module")
def sample(config, pool, tmp_path_factory):
    output = tmp_path_factory.mktemp("sample") / "pu.root"
    simulate(config, output, workers=1, progress=False)
    return uproot.open(output)["Events"].arrays()


def flat(pt, eta, phi, event=None, kind=NEUTRAL):
    """Massless objects without tracks."""
    pt, eta, phi = (np.asarray(values, float) for values in (pt, eta, phi))
    n = len(pt)
    return Particles(
        event=np.zeros(n, np.int64) if event is None else event,
        p4=np.stack([pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], axis=-1),
        kind=np.full(n, kind, np.int32),
        charge=np.zeros(n, np.int32),
        source=np.full(n, -1, np.int64),
    )


# ---- pool ------------------------------------------------------------------------------------------------


def test_the_pool_is_minimum_bias(pool):
    assert len(pool) == 300
    eta = np.arcsinh(pool.p4[:, 3] / np.hypot(pool.p4[:, 1], pool.p4[:, 2]))
    central = (pool.charge != 0) & (np.abs(eta) < 0.5)
    # CMS: 5.5 charged hadrons per unit of η at 13 TeV in inelastic collisions (arXiv:1507.05915).
    assert central.sum() / len(pool) == pytest.approx(5.5, rel=0.2)
    assert (np.abs(eta) < 5).all()


def test_the_name_of_the_pool_holds_all_that_determines_it(config):
    changes = ({"sqrt_s": 13_600.0}, {"tune": "Monash"}, {"pileup_pool": 301})
    names = {pool_file(config.model_copy(update=change)) for change in ({}, *changes)}
    assert len(names) == 4
    same = ({"seed": 9}, {"pileup": "run3"}, {"m_top": 170.0}, {"decays_per_event": 3})
    assert {pool_file(config.model_copy(update=change)) for change in same} == {pool_file(config)}


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "missing"])
def test_a_damaged_pool_is_made_anew(config, pool, tmp_path, damage, monkeypatch):
    path = pool_file(config)
    original = path.read_bytes()
    made = []

    def remade(_config, _advance):
        made.append(1)
        return {name: getattr(pool, name) for name in ("offsets", "p4", "pdg_id")}

    monkeypatch.setattr("topreco.simulation.pileup._generate_pool", remade)
    content = {
        "cut": original[: len(original) // 2],
        "flipped": original[:5000] + bytes([original[5000] ^ 1]) + original[5001:],
        "foreign": b"not a pool",
    }
    copy = config.model_copy(update={"pileup_cache": tmp_path})
    if damage != "missing":
        pool_file(copy).write_bytes(content[damage])
    with pytest.raises(TopRecoError, match="no pool of minimum-bias events"):
        load_pool(pool_file(copy))
    prepare_pool(copy)
    assert made == [1]
    again = load_pool(pool_file(copy))
    assert (again.p4 == pool.p4).all()
    prepare_pool(copy)
    assert made == [1]


# ---- overlay ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "mean", "width"), [("run2", 31.05, 9.0), ("run3", 48.4, 16.9)])
def test_profiles_are_those_of_cms(profile, mean, width):
    drawn = true_mean(profile, 200_000, np.random.default_rng(1))
    assert drawn.mean() == pytest.approx(mean, rel=0.01)
    assert drawn.std() == pytest.approx(width, rel=0.06)


def test_the_number_of_collisions_is_poisson_distributed(pool):
    found = overlay(pool, 20.0, 2000, np.random.default_rng(2)).n_vertices
    assert found.mean() == pytest.approx(20, abs=0.4)
    assert found.var() == pytest.approx(20, rel=0.12)


def test_collisions_are_rotated_and_mirrored(pool):
    one = Pool(pool.offsets[:2], *(a[: pool.offsets[1]] for a in (pool.p4, pool.pdg_id, pool.charge)))
    found = overlay(one, 50.0, 20, np.random.default_rng(3))
    n = len(one.p4)
    p4 = found.particles.p4.reshape(-1, n, 4)
    assert len(p4) == found.n_vertices.sum()
    original = one.p4.astype(np.float64)
    assert np.allclose(p4[:, :, 0], original[:, 0])
    assert np.allclose(np.abs(p4[:, :, 3]), np.abs(original[:, 3]))
    assert np.allclose(found.particles.pt.reshape(-1, n), np.hypot(original[:, 1], original[:, 2]))
    sign = np.sign(p4[:, 0, 3] / original[0, 3])
    assert 0.4 < (sign > 0).mean() < 0.6
    angle = np.arctan2(p4[:, 0, 2], p4[:, 0, 1])
    assert abs(np.exp(1j * angle).mean()) < 0.1


def test_momentum_is_balanced(pool):
    """Nothing is lost when collisions are added, and tracks and calorimeters see what is there."""
    rng = np.random.default_rng(4)
    pileup = overlay(pool, 30.0, 20, rng)
    hard = flat([50.0, 40.0], [0.3, -1.0], [0.1, 2.0], event=np.array([3, 7]))
    particles, vertex = with_pileup(hard, pileup)
    assert (np.diff(particles.event) >= 0).all()
    total = hard.p4.sum(axis=0) + pileup.particles.p4.sum(axis=0)
    assert np.allclose(particles.p4.sum(axis=0), total)
    assert (vertex == -1).sum() == 2
    assert (pileup.vertex_event[vertex[vertex >= 0]] == particles.event[vertex >= 0]).all()
    objects, _ = detector.energy_flow(particles, rng, mitigation.SOFT_RESPONSE)
    residual = np.stack([np.bincount(objects.event, objects.p4[:, i], 20) for i in (1, 2)])
    expected = np.stack([np.bincount(particles.event, particles.p4[:, i], 20) for i in (1, 2)])
    assert np.abs((residual - expected).mean()) < 5 * 20 / np.sqrt(40)
    assert 5 < (residual - expected).std() < 35


# ---- against it ------------------------------------------------------------------------------------------


def test_charged_hadron_subtraction_removes_tracks_of_other_vertices_only():
    n = 200_000
    rng = np.random.default_rng(5)
    vertex = rng.integers(-1, 3, n)
    vertex_z = np.array([5.0, 0.01, 0.2])
    tracks = rng.random(n) < 0.5
    pt = rng.choice(np.array([0.5, 5.0]), n)
    chs, puppi = mitigation.charged_of_other_vertices(tracks, pt, vertex, vertex_z, rng)
    assert not chs[(vertex < 0) | ~tracks | (vertex == 1)].any()
    assert not puppi[(vertex < 0) | ~tracks | (vertex == 1)].any()
    for z in (0, 2):
        other = tracks & (vertex == z)
        for value, efficiency in zip((0.5, 5.0), mitigation._CHS_EFFICIENCY, strict=True):
            assert chs[other & (pt == value)].mean() == pytest.approx(efficiency, abs=0.01)
    assert puppi[tracks & (vertex == 0)].all()
    assert (puppi == chs)[vertex == 2].all()


def test_vertices_that_are_close_or_have_few_tracks_are_not_found():
    event = np.array([0, 0, 0, 1])
    z = np.array([3.0, 3.01, -2.0, 0.01])
    tracks = np.array([0] * 5 + [1] * 5 + [2] + [3] * 5 + [-1] * 4)
    assert mitigation.found_vertices(tracks, event, z, 2).tolist() == [2, 1]


def test_areas_are_those_of_fastjet():
    fastjet = pytest.importorskip("fastjet")
    rng = np.random.default_rng(6)
    n = 12
    hard = flat(rng.uniform(20, 200, n), rng.uniform(-1.2, 1.2, n), rng.uniform(-np.pi, np.pi, n))
    step = 0.04
    eta, phi = np.meshgrid(np.arange(-2, 2, step), np.arange(-np.pi, np.pi, 2 * np.pi / 157))
    inputs = [fastjet.PseudoJet(*row[[1, 2, 3, 0]]) for row in hard.p4]
    for i, row in enumerate(flat(np.full(eta.size, 1e-20), eta.ravel(), phi.ravel()).p4):
        ghost = fastjet.PseudoJet(*row[[1, 2, 3, 0]])
        ghost.set_user_index(i)
        inputs.append(ghost)
    sequence = fastjet.ClusterSequence(inputs, fastjet.JetDefinition(fastjet.antikt_algorithm, jets.RADIUS))
    found = [
        (jet.pt(), jet.eta(), jet.phi_std(), len(jet.constituents())) for jet in sequence.inclusive_jets(10)
    ]
    pt, eta, phi, count = np.array(found).T
    area = mitigation.jet_area(np.array([0, len(pt)]), pt, eta, phi, jets.RADIUS)
    assert np.allclose(area, (count - 1) * step * 2 * np.pi / 157, atol=0.03)
    assert (area < 0.45).any()
    assert area.max() == pytest.approx(np.pi * jets.RADIUS**2, rel=0.01)


def test_density_is_a_median():
    eta, phi = (grid.ravel() for grid in np.meshgrid(np.arange(-4.95, 5, 0.1), np.arange(-3.1, 3.1, 0.1)))
    uniform = flat(np.full(eta.size, 0.2), eta, phi)
    density = mitigation.median_density(uniform, 1)
    assert density[0] == pytest.approx(20, rel=0.1)
    jet = flat([300.0], [0.5], [1.0])
    both = replace(
        uniform,
        **{
            name: np.concatenate([getattr(uniform, name), getattr(jet, name)])
            for name in ("event", "p4", "kind", "charge", "source")
        },
    )
    assert mitigation.median_density(both, 1)[0] == pytest.approx(density[0], rel=0.03)


def test_offset_is_area_times_density_of_its_region():
    rng = np.random.default_rng(9)
    n = 40_000
    objects = flat(np.full(n, 0.05), rng.uniform(-5, 5, n), rng.uniform(-np.pi, np.pi, n))
    density = np.array([n * 0.05 / (20 * np.pi)])
    ratio = mitigation.offset_table(objects, np.full(10, 2.0), density)
    expected = (density[0] - 2) / (density[0] - mitigation._DENSITY_OF_HARD_EVENT)
    assert np.allclose(ratio, expected, rtol=0.08)
    pt = mitigation.offset(
        np.array([20.0, 20.0, 0.1]), np.array([0.5, 0.25, 0.5]), np.array([0.2, -0.2, 3.2])
    )
    assert pt[0] == pytest.approx(0.5 * (20 - mitigation._DENSITY_OF_HARD_EVENT) * mitigation._OFFSET[0])
    assert pt.tolist() == [pt[0], pt[0] / 2, 0.0]


def test_puppi_keeps_what_is_near_tracks_of_the_hard_vertex(pool):
    rng = np.random.default_rng(7)
    pileup = overlay(pool, 35.0, 10, rng)
    event = np.repeat(np.arange(10), 6)
    n = len(event)
    # A narrow jet of five tracks and a photon in each event.
    jet = flat(np.tile([20.0, 15.0, 10.0, 8.0, 5.0, 15.0], 10), 0.5 + 0.05 * rng.standard_normal(n),
               1.0 + 0.05 * rng.standard_normal(n), event=event)  # fmt: skip
    code = np.tile([211, -211, 211, -211, 211, 22], 10).astype(np.int32)
    hard = replace(jet, kind=code, charge=detector.electric_charge(code), source=np.arange(n))
    particles, vertex = with_pileup(hard, pileup)
    objects, _ = detector.energy_flow(particles, rng, mitigation.SOFT_RESPONSE)
    found = Contamination.of(objects, vertex, pileup, rng)
    assert ((found.weight >= 0) & (found.weight <= 1)).all()
    assert (found.weight[found.of_hard_vertex] == 1).all()
    assert (found.weight[found.distant] == 0).all()
    neutral = objects.source < 0
    near = np.hypot(objects.eta - 0.5, objects.phi - 1.0) < 0.3
    central = neutral & (np.abs(objects.eta) < 2)
    kept = [
        np.average(found.weight[mask], weights=objects.pt[mask]) for mask in (central & near, central & ~near)
    ]
    assert kept[0] > 0.6
    assert kept[1] < 0.25
    # Far less pile-up is left than charged-hadron subtraction leaves.
    assert (objects.pt * found.weight).sum() < 0.5 * objects.pt[~found.removed].sum()


# ---- whole events ----------------------------------------------------------------------------------------


def test_branches_of_pileup(sample):
    assert {"Pileup_nTrueInt", "Pileup_nPU", "PV_npvsGood", "Rho_fixedGridRhoFastjetAll"} <= set(
        sample.fields
    )
    assert (sample.Pileup_nTrueInt == 30).to_numpy().all()
    assert ak.mean(sample.Pileup_nPU) == pytest.approx(30, abs=5)
    assert 10 < ak.mean(sample.PV_npvsGood) < ak.mean(sample.Pileup_nPU)
    assert 10 < ak.mean(sample.Rho_fixedGridRhoFastjetAll) < 35
    assert not ak.all(sample.PuppiMET_pt == sample.MET_pt)
    assert all(np.isfinite(ak.to_numpy(ak.flatten(sample[name], axis=None))).all() for name in sample.fields)


def test_workers_and_the_cache_do_not_change_the_events(config, sample, tmp_path):
    moved = config.model_copy(update={"pileup_cache": tmp_path / "cache"})
    pool_file(moved).parent.mkdir()
    pool_file(moved).write_bytes(pool_file(config).read_bytes())
    simulate(moved, tmp_path / "two.root", workers=2, progress=False)
    other = uproot.open(tmp_path / "two.root")["Events"].arrays()
    assert all(ak.to_list(other[name]) == ak.to_list(sample[name]) for name in sample.fields)


def test_hard_events_are_those_without_pileup(config, sample, tmp_path):
    simulate(config.model_copy(update={"pileup": 0.0}), tmp_path / "none.root", workers=1, progress=False)
    none = uproot.open(tmp_path / "none.root")["Events"].arrays()
    for name in ("GenPart_pt", "GenJet_pt", "GenMET_pt", "Generator_x1"):
        assert ak.to_list(none[name]) == ak.to_list(sample[name])
    assert "Pileup_nPU" not in none.fields


def test_the_response_of_jets_is_that_without_pileup(config, pool):
    """Single jets of 60 GeV with pile-up: the area subtraction leaves no bias."""
    rng = np.random.default_rng(8)
    n_events, size = 150, 12
    event = np.repeat(np.arange(n_events), size)
    eta0, phi0 = rng.uniform(-2, 2, n_events), rng.uniform(-np.pi, np.pi, n_events)
    fraction = rng.dirichlet(np.ones(size), n_events).ravel()
    spread = 0.08 * rng.standard_normal((2, len(event)))
    code = np.tile([211, -211, 22, 211, -211, 22, 211, -211, 130, 211, -211, 22], n_events).astype(np.int32)
    jet = flat(60 * fraction, eta0[event] + spread[0], phi0[event] + spread[1], event=event)
    hard = replace(jet, kind=code, charge=detector.electric_charge(code), source=np.arange(len(event)))
    none = (np.empty(0, np.int64), np.empty((0, 4)), np.empty(0, np.int8))
    response = []
    for mean in (0.0, 20.0, 40.0):
        pileup = overlay(pool, mean, n_events, rng)
        particles, vertex = with_pileup(hard, pileup)
        objects, _ = detector.energy_flow(particles, rng, mitigation.SOFT_RESPONSE)
        found = Contamination.of(objects, vertex, pileup, rng).chs_jets(objects, none, rng)[1]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(found.event, minlength=n_events))])
        match = jets.nearest(np.arange(n_events), eta0, phi0, offsets, found.eta, found.phi, 0.3)
        good = match >= 0
        assert good.mean() > 0.9
        response.append(np.median(found.pt[offsets[:-1][good] + match[good]]) / 60)
    assert response[1] == pytest.approx(response[0], abs=0.05)
    assert response[2] == pytest.approx(response[0], abs=0.06)


def test_met_is_as_wide_as_in_cms(config, pool, data, tmp_path):
    """CMS has 27 GeV per component, the simulation without pile-up 16 GeV."""
    events = uproot.open(data / "nanoaodv9_TTTo2L2Nu_first500.root")["Events"].arrays(filter_name="*MET_p*")
    own = config.model_copy(update={"n_events": 120, "block_size": 120, "mpi": True, "pileup": "run2"})
    simulate(own, tmp_path / "run2.root", workers=1, progress=False)
    found = uproot.open(tmp_path / "run2.root")["Events"].arrays(filter_name="*MET_p*")
    for name in ("MET", "PuppiMET"):
        widths = []
        for sample in (events, found):
            residual = [
                sample[f"{name}_pt"] * f(sample[f"{name}_phi"]) - sample.GenMET_pt * f(sample.GenMET_phi)
                for f in (np.cos, np.sin)
            ]
            widths.append(np.sqrt(np.mean([np.var(component) for component in residual])))
        # 6.5 % from 240 components, and 3 % from 1000 of CMS; tails add to it.
        assert widths[1] == pytest.approx(widths[0], rel=0.25)


def test_energies_of_both_must_agree(config, pool, tmp_path):
    text = (
        '<LesHouchesEvents version="1.0">\n<init>\n2212 2212 6800.0 6800.0 0 0 0 0 3 1\n1.0 0.0 1.0 1\n'
        "</init>\n<event>\n4 1 1.0 91.2 0.0078 0.118\n2 -1 0 0 101 0 0.0 0.0 45.6 45.6 0.0 0. 9.\n"
        "-2 -1 0 0 0 101 0.0 0.0 -45.6 45.6 0.0 0. 9.\n13 1 1 2 0 0 45.6 0.0 0.0 45.6 0.0 0. 9.\n"
        "-13 1 1 2 0 0 -45.6 0.0 0.0 45.6 0.0 0. 9.\n</event>\n</LesHouchesEvents>\n"
    )
    (tmp_path / "z.lhe").write_text(text)
    other = config.model_copy(update={"lhe": tmp_path / "z.lhe"})
    with pytest.raises(TopRecoError, match=r"sqrt_s is 13000, but the events of .*z\.lhe have 13600 GeV"):
        simulate(other, tmp_path / "z.root", workers=1, progress=False)
