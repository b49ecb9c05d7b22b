"""Pseudo-tops: the published assignment against a loop, cuts one by one, and agreement with the partons."""

import dataclasses
import itertools
from types import SimpleNamespace

import awkward as ak
import numpy as np
import pytest
from coffea.nanoevents import NanoEventsFactory

from topreco.config import ConfigError, PhaseSpaceConfig, RunConfig, SelectionConfig, build_config
from topreco.core import fourvector
from topreco.input.branches import Branches
from topreco.input.nano import InputError, QuietNanoAODSchema
from topreco.input.particle import matched_to_partons, read_particle_level
from topreco.input.truth import read_truth

PARTICLE = PhaseSpaceConfig(level="particle")


def read(path):
    factory = NanoEventsFactory.from_root({str(path): "Events"}, schemaclass=QuietNanoAODSchema, mode="eager")
    return factory.events()


def by_loop(events, *, prompt=False):
    """The assignment of Rivet's CMS_2018_I1703993, event by event in plain Python: {event: (t, t̄)}."""

    def p4(record, mass=None):
        m = record.mass if mass is None else mass
        values = [float(x) for x in (record.pt, record.eta, record.phi, m)]
        return fourvector.from_pt_eta_phi_mass(*map(np.asarray, values))

    def mass(*momenta):
        return float(fourvector.mass(sum(momenta)))

    found = {}
    for number, event in enumerate(events):
        leptons = [
            (int(np.sign(-x.pdgId)), p4(x))
            for x in event.GenDressedLepton
            if x.pt > 20 and abs(x.eta) < 2.4 and not (prompt and x.hasTauAnc)
        ]
        if len(leptons) != 2 or leptons[0][0] == leptons[1][0]:
            continue
        plus, minus = (p for _, p in sorted(leptons, key=lambda x: -x[0]))
        if mass(plus, minus) < 20:
            continue
        neutrinos = [
            (float(x.pt), p4(x, 0.0))
            for x in event.GenPart
            if abs(x.pdgId) in (12, 14, 16) and x.status == 1 and x.statusFlags & ((1 << 0) | (1 << 3))
        ]
        if len(neutrinos) < 2:
            continue
        pair = [p for _, p in sorted(neutrinos, key=lambda x: -x[0])[:2]]
        nu = min(
            (pair, pair[::-1]), key=lambda q: abs(mass(plus, q[0]) - 80.4) + abs(mass(minus, q[1]) - 80.4)
        )
        jets = [
            p4(x)
            for x in event.GenJet
            if x.hadronFlavour == 5 and x.pt > 30 and abs(x.eta) < 2.4
        ]  # fmt: skip
        jets = [
            j for j in jets if min(float(fourvector.delta_r(j, lepton)) for lepton in (plus, minus)) >= 0.4
        ]
        if len(jets) < 2:
            continue
        w = plus + nu[0], minus + nu[1]
        best = min(
            itertools.permutations(jets, 2),
            key=lambda b: abs(mass(w[0], b[0]) - 172.5) + abs(mass(w[1], b[1]) - 172.5),
        )
        found[number] = w[0] + best[0], w[1] + best[1]
    return found


def compare(events, *, prompt=False):
    space = PhaseSpaceConfig(level="particle", decay="prompt" if prompt else "dileptonic")
    particles = read_particle_level(Branches(events, SelectionConfig()), space)
    expected = by_loop(events, prompt=prompt)
    assert np.flatnonzero(particles.valid).tolist() == list(expected)
    np.testing.assert_array_equal(particles.dileptonic, particles.valid)
    np.testing.assert_allclose(
        particles.tops[particles.valid], np.stack([np.stack(pair) for pair in expected.values()]), rtol=1e-6
    )
    np.testing.assert_allclose(particles.tops, particles.w + particles.b)
    np.testing.assert_allclose(particles.w, particles.lepton + particles.neutrino)
    return particles


@pytest.mark.sim
@pytest.mark.parametrize("prompt", [False, True])
def test_the_published_assignment(simulated, prompt):
    events = read(simulated)[:150]
    particles = compare(events, prompt=prompt)
    assert particles.valid.sum() > 10
    assert particles.via_tau.any() == (not prompt)


def test_full_simulation(data):
    """The same on CMS simulation, and the share of pseudo-tops made of the partons' lepton and b."""
    events = read(data / "nanoaodv9_TTTo2L2Nu_first500.root")[:80]
    particles = compare(events)
    partons = read_truth(Branches(events, SelectionConfig()))
    matched = matched_to_partons(particles, partons)
    assert not (matched & ~particles.valid).any()
    dileptonic = particles.valid & partons.dileptonic
    assert matched[dileptonic].mean() > 0.8


@pytest.mark.sim
def test_agreement_with_the_partons(simulated):
    events = Branches(read(simulated), SelectionConfig())
    particles, partons = read_particle_level(events, PARTICLE), read_truth(events)
    matched = matched_to_partons(particles, partons)
    assert matched.sum() > 0.8 * (particles.valid & partons.dileptonic).sum()
    # Where they match, a pseudo-top is the top but for radiation and neutrinos of hadrons.
    ratio = fourvector.mass(particles.tops[matched].sum(1)) / fourvector.mass(partons.tops[matched].sum(1))
    assert abs(np.median(ratio) - 1) < 0.05
    # Another distance: nothing matches at zero.
    assert not matched_to_partons(particles, partons, delta_r=0.0).any()
    unknown = dataclasses.replace(partons, b=np.full_like(partons.b, np.nan))
    assert not matched_to_partons(particles, unknown).any()


@pytest.mark.sim
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lepton_pt_min", 40.0),
        ("lepton_eta_max", 1.0),
        ("m_ll_min", 100.0),
        ("jet_pt_min", 60.0),
        ("jet_eta_max", 1.0),
        ("jet_lepton_delta_r", 1.0),
    ],
)
def test_cuts(simulated, key, value):
    """A tighter cut keeps a part of the events, all of which fulfil it."""
    events = Branches(read(simulated), SelectionConfig())
    loose = read_particle_level(events, PARTICLE)
    tight = read_particle_level(events, PhaseSpaceConfig(level="particle", particle={key: value}))
    assert 0 < tight.valid.sum() < loose.valid.sum()
    inside = tight.valid
    distance = fourvector.delta_r(tight.b[inside][:, :, None], tight.lepton[inside][:, None])
    quantity = {
        "lepton_pt_min": fourvector.pt(tight.lepton[inside]).min(),
        "lepton_eta_max": -np.abs(fourvector.eta(tight.lepton[inside])).max(),
        "m_ll_min": fourvector.mass(tight.lepton[inside].sum(axis=1)).min(),
        "jet_pt_min": fourvector.pt(tight.b[inside]).min(),
        "jet_eta_max": -np.abs(fourvector.eta(tight.b[inside])).max(),
        "jet_lepton_delta_r": distance.min(),
    }[key]
    assert quantity >= (-value if key.endswith("max") else value)


@pytest.mark.sim
def test_events_that_are_not_there(simulated):
    events = read(simulated)
    assert not read_particle_level(Branches(events[:0], SelectionConfig()), PARTICLE).valid.any()
    nothing = ak.with_field(events[:50], events.GenJet[:50][:, :0], "GenJet")
    assert not read_particle_level(Branches(nothing, SelectionConfig()), PARTICLE).valid.any()


@pytest.mark.sim
def test_missing_branches(as_data):
    with pytest.raises(InputError, match=r"no particle level .*branch 'GenDressedLepton_pt' is missing"):
        read_particle_level(Branches(read(as_data), SelectionConfig()), PARTICLE)


@pytest.mark.parametrize(
    "phase_space",
    [
        {"particle": {"jet_pt_min": 20}},
        {"level": "particle", "lepton_pt_min": 20},
        {"level": "particle", "decay": "any"},
    ],
)
def test_keys_of_the_other_level(phase_space):
    with pytest.raises(ConfigError, match=r"'level: particle'|level: particle has its cuts"):
        build_config(RunConfig, {"unfolding": {"phase_space": phase_space}}, "test")


@pytest.mark.sim
def test_responses_at_particle_level(simulated):
    """Generated spectra, fakes and acceptance of the processor are those of the pseudo-tops."""
    from coffea.processor import IterativeExecutor, Runner

    from topreco.config import UnfoldingConfig
    from topreco.core.observables import compute_observables
    from topreco.measurement.unfolding import read_response
    from topreco.runs.processor import DileptonProcessor

    edges = [300, 450, 600, 3000]
    unfolding = UnfoldingConfig(observables={"m_tt": {"truth": edges}}, phase_space=PARTICLE)
    instance = DileptonProcessor(["sonnenschein_unsmeared"], unfolding=unfolding)
    runner = Runner(IterativeExecutor(status=False), schema=QuietNanoAODSchema, chunksize=500)
    files = {"tt": {"files": {str(simulated): "Events"}}}
    histograms = runner(files, processor_instance=instance)["histograms"]
    where = SimpleNamespace(dataset="tt", method="sonnenschein_unsmeared")
    response = read_response(histograms, "m_tt", dataset=where.dataset, method=where.method)
    particles = read_particle_level(Branches(read(simulated), SelectionConfig()), PARTICLE)
    true = compute_observables(
        ["m_tt"], particles.tops, particles.tops.sum(1), particles.lepton, particles.valid
    )["m_tt"]
    np.testing.assert_allclose(response.generated.value[1:-1], np.histogram(true[particles.valid], edges)[0])
    solved = response.response.value.sum() + response.fakes.value.sum()
    assert solved == pytest.approx(response.measured.value.sum())
    assert 0 < response.fakes.value.sum() < 0.5 * solved
    assert (response.acceptance.value > 0.2).all()
