"""New W decays of generated events: momenta, directions, spin, and what the preselection may lose."""

import itertools

import awkward as ak
import numpy as np
import pytest

from topreco.config import PreselectionConfig, SimulationConfig
from topreco.core import fourvector
from topreco.core.constants import M_TOP, M_W
from topreco.core.observables import AXES, cos_theta_star, lepton_directions, spin_cosines
from topreco.core.spin import spin_correlation_matrix

pytest.importorskip("pythia8mc")

from topreco.simulation import decays as d
from topreco.simulation.pythia import generate, settings, start_pythia

pytestmark = pytest.mark.sim

TRIES = 10
QUICK = SimulationConfig(mpi=False)


def pythia_events(n, *lines, seed=3):
    return generate(start_pythia([*settings(QUICK, seed), *lines]), n, refill=True)


@pytest.fixture(scope="module")
def full():
    """200 events to the last hadron."""
    events = pythia_events(200)
    return events, d.find_decays(events)


@pytest.fixture(scope="module")
def partons():
    """6000 events before hadronisation, and ten pairs of decays for each."""
    events = pythia_events(6000, "HadronLevel:all = off")
    found = d.find_decays(events)
    return events, found, d.new_directions(found, TRIES, np.random.default_rng(14))


def all_copies(events, found, seed=5):
    config = SimulationConfig(decays_per_event=TRIES)
    copies, accepted = d.draw_copies(events, found, config, np.random.default_rng(seed))
    assert accepted.all()
    return copies


def event_of(events):
    return np.repeat(np.arange(len(events)), np.diff(events.offsets))


def leptons_of(found, transformation):
    return np.einsum("ntlij,nlj->ntli", transformation, found.lepton)


def of_hard_events(values, mask):
    """Mean over copies and its error, of which each hard event is one contribution: copies are alike."""
    total = np.where(mask[..., None], values, 0).sum(1)
    count = mask.sum(1)
    mean = total.sum(0) / count.sum()
    return mean, np.sqrt(((total - count[:, None] * mean) ** 2).sum(0)) / count.sum()


# ---- momenta ---------------------------------------------------------------------------------------------


def test_the_decays_found_are_two_body_decays(full):
    _, found = full
    assert found.separable.all()
    assert set(np.abs(found.lepton_id).ravel()) == {11, 13, 15}
    # The charged lepton goes with the W of its charge.
    assert (np.sign(found.lepton_id) == [-1, 1]).all()
    neutrino = found.w - found.lepton
    assert np.abs(fourvector.mass_squared(neutrino)).max() < 1e-2
    mass = fourvector.mass(found.w)
    assert np.median(mass) == pytest.approx(M_W, abs=1)
    energy = fourvector.to_rest_frame(found.lepton, found.w)[..., 0]
    lepton_mass2 = np.maximum(fourvector.mass_squared(found.lepton), 0)
    assert energy == pytest.approx((mass**2 + lepton_mass2) / (2 * mass), rel=1e-4)


def test_momentum_is_conserved_and_the_rest_untouched(full):
    events, found = full
    copies = all_copies(events, found)
    copied = d.copied_events(events, found, copies)
    assert len(copied) == len(events) * TRIES
    stable, source = copied.status > 0, events.status > 0
    total = np.zeros((len(copied), 4))
    np.add.at(total, event_of(copied)[stable], copied.p4[stable])
    wanted = np.zeros((len(events), 4))
    np.add.at(wanted, event_of(events)[source], events.p4[source])
    assert np.abs(total - wanted[copies.hard_event]).max() < 1e-8

    moved = found.leg >= 0
    for number in (0, 3):
        of_number = np.flatnonzero(copies.number == number)
        rows = np.concatenate([np.arange(*copied.offsets[i : i + 2]) for i in of_number])
        p4 = copied.p4[rows]
        assert (copied.pdg_id[rows] == events.pdg_id).all()
        assert (p4[~moved] == events.p4[~moved]).all()
        if number == 0:
            assert (p4 == events.p4).all()
            continue
        assert np.abs(p4[moved] - events.p4[moved]).max(axis=1).min() > 0
        difference = fourvector.mass_squared(p4[moved]) - fourvector.mass_squared(events.p4[moved])
        assert (np.abs(difference) < 1e-11 * events.p4[moved, 0] ** 2 + 1e-9).all()
        # The energy in the rest frame of the W is kept: of radiation, and of what a τ decays to.
        w = found.w[event_of(events)[moved], found.leg[moved]]
        before, after = (fourvector.dot(q, w) for q in (events.p4[moved], p4[moved]))
        assert after == pytest.approx(before, rel=1e-9, abs=1e-7)


def test_transformations_rotate_in_the_rest_frame_of_the_w(full):
    _, found = full
    transformation = d.new_directions(found, 4, np.random.default_rng(1))
    metric = np.diag([1.0, -1.0, -1.0, -1.0])
    gamma = found.w[..., 0] / fourvector.mass(found.w)
    tolerance = 1e-13 * gamma[:, None, :, None, None] ** 4 + 1e-11
    assert (np.abs(np.swapaxes(transformation, -1, -2) @ metric @ transformation - metric) < tolerance).all()
    assert np.linalg.det(transformation) == pytest.approx(1, abs=1e-6)
    kept = np.einsum("ntlij,nlj->ntli", transformation, found.w)
    assert kept == pytest.approx(np.broadcast_to(found.w[:, None], kept.shape), abs=1e-7)
    assert (transformation[:, 0] == np.eye(4)).all()


def test_decays_that_are_not_separable_stay(full):
    _, found = full
    separable = found.separable.copy()
    separable[::2, 1] = False
    fields = {**vars(found), "separable": separable}
    transformation = d.new_directions(d.WDecays(**fields), 3, np.random.default_rng(1))
    assert (transformation[::2, :, 1] == np.eye(4)).all()
    assert (transformation[:, 1:, 0] != np.eye(4)).any(axis=(-2, -1)).all()
    assert (transformation[1::2, 1:, 1] != np.eye(4)).any(axis=(-2, -1)).all()


def test_a_hadron_of_foreign_colours_makes_a_w_not_separable(full):
    events, found = full
    i = int(np.flatnonzero((found.leg == 1) & (events.status > 0))[0])
    fields = {**vars(events), "p4": events.p4.copy()}
    fields["p4"][i, 1] += 0.5
    changed = d.find_decays(type(events)(**fields))
    assert changed.separable.sum() == 2 * len(events) - 1
    assert not changed.separable[event_of(events)[i], 1]


def test_tau_leptons_stay_left_handed():
    """⟨E_π/E_τ⟩ of τ → πν is 1/3 for τ leptons from a W and 1/2 without polarisation."""
    events = pythia_events(
        400,
        "24:onMode = off",
        "24:onIfAny = 15",
        "15:onMode = off",
        "15:onIfMatch = 16 211",
        "HadronLevel:Hadronize = off",
    )
    found = d.find_decays(events)
    copies = all_copies(events, found)
    copied = d.copied_events(events, found, copies)
    again = d.find_decays(copied)
    pion = (np.abs(copied.pdg_id) == 211) & (again.leg >= 0)
    event = event_of(copied)[pion]
    assert (np.bincount(event) == 2).all()
    leg = again.leg[pion]
    at_rest = [
        fourvector.to_rest_frame(p4, again.w[event, leg])[:, 0]
        for p4 in (copied.p4[pion], again.lepton[event, leg])
    ]
    x = np.stack([at_rest[0] / at_rest[1], event], -1)
    assert copies.number[event].max() == TRIES - 1
    mean = x[:, 0].mean()
    assert mean == pytest.approx(1 / 3, abs=4 * x[:, 0].std() / np.sqrt(2 * len(events)))
    # Each copy has the fraction of the decay that it was made of.
    per_copy = x[:, 0].reshape(len(events), TRIES, 2)
    assert per_copy == pytest.approx(np.broadcast_to(per_copy[:, :1], per_copy.shape), rel=1e-6)


# ---- directions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m_b", [0.0, 4.8, 40.0])
def test_cosines_follow_the_matrix_element(m_b):
    energy_b = (M_TOP**2 - M_W**2 - m_b**2) / (2 * M_W)
    momentum = np.sqrt(energy_b**2 - m_b**2)
    energy_top = energy_b + M_W
    u = (np.arange(20_000) + 0.5) / 20_000
    c = d.draw_cosine(energy_top, energy_b, momentum, 1.0, u)
    assert (np.diff(c) > 0).all()
    edges = np.linspace(-1, 1, 201)
    centre = (edges[1:] + edges[:-1]) / 2
    density = (energy_top - momentum * centre) * (energy_b + momentum * centre)
    found = np.histogram(c, edges)[0] / len(u)
    assert found == pytest.approx(density / density.sum(), abs=1.5 / len(u))
    if m_b == 0:
        # θ* is measured from the direction opposite to the top.
        f_0 = M_TOP**2 / (M_TOP**2 + 2 * M_W**2)
        assert 2 - 5 * (c**2).mean() == pytest.approx(f_0, abs=1e-4)
        assert -c.mean() == pytest.approx(-(1 - f_0) / 2, abs=1e-4)
    assert d.draw_cosine(energy_top, energy_b, momentum, 1.0, np.array([0.0])) == pytest.approx(-1)


def helicity_cosine(top, w, lepton):
    """Cosine of the charged lepton to the direction opposite to the top, in the W rest frame."""
    a, b = (fourvector.to_rest_frame(p4, w)[..., 1:] for p4 in (top, lepton))
    return -(a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_helicity_fractions_are_those_of_pythia(partons):
    """First and second moment of cosθ*, which fix the three fractions: new decays against Pythia's own.

    Both are known to 0.005 and 0.002 on 6000 events of two tops each.
    """
    _, found, transformation = partons
    lepton = leptons_of(found, transformation)
    top, w = (np.broadcast_to(p4[:, None], lepton.shape) for p4 in (found.top, found.w))
    cosine = helicity_cosine(top, w, lepton)
    moments = np.stack([cosine, cosine**2], -1).mean(2)
    mean = moments[:, 1:].mean(1)
    difference = mean - moments[:, 0]
    error = difference.std(0) / np.sqrt(len(difference))
    assert (error < [0.008, 0.004]).all()
    assert (np.abs(difference.mean(0)) < 3 * error).all()
    f_0 = 2 - 5 * mean[:, 1].mean()
    assert f_0 == pytest.approx(0.69, abs=0.015)
    assert mean[:, 0].mean() == pytest.approx(-(1 - f_0) / 2, abs=0.015)


def test_azimuths_are_flat(partons):
    """Neither the azimuth of the lepton about the top nor the turn about the lepton prefers a direction."""
    _, found, transformation = partons
    lepton = fourvector.to_rest_frame(
        leptons_of(found, transformation[:, 1:]),
        np.broadcast_to(found.w[:, None], (len(found.w), TRIES - 1, 2, 4)),
    )[..., 1:]
    before = fourvector.to_rest_frame(found.lepton, found.w)[..., 1:]
    axis = fourvector.to_rest_frame(found.top, found.w)[..., 1:]
    axis = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
    x = before - (before * axis).sum(-1, keepdims=True) * axis
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    y = np.cross(axis, x)
    phi = np.arctan2(*((lepton * a[:, None]).sum(-1) for a in (y, x))).ravel()
    for k in (1, 2):
        for f in (np.cos, np.sin):
            assert abs(f(k * phi).mean()) < 4 / np.sqrt(2 * len(phi))


# ---- spin ------------------------------------------------------------------------------------------------


def spin_values(found, transformation):
    """C_ij of each copy, its c_hel and the cosine between the W bosons; shape (n, tries, 11)."""
    lepton = leptons_of(found, transformation)
    flat = [np.broadcast_to(p4[:, None], lepton.shape).reshape(-1, 2, 4) for p4 in (found.top, found.w)]
    cosines = spin_cosines(flat[0], lepton.reshape(-1, 2, 4))
    products = cosines[:, 0, :, None] * cosines[:, 1, None, :]
    w = lepton_directions(*flat)
    columns = [
        -9 * products.reshape(-1, 9),
        -np.trace(products, axis1=1, axis2=2)[:, None],
        (w[:, 0] * w[:, 1]).sum(-1)[:, None],
    ]
    return np.concatenate(columns, -1).reshape(*lepton.shape[:2], 11)


def expected_coefficients(events, found):
    """Mean C_ij and ⟨c_hel⟩ that leading order predicts for these tops."""
    system = found.top.sum(1)
    at_rest = fourvector.to_rest_frame(found.top[:, 0], system)
    beta = 2 * np.linalg.norm(at_rest[:, 1:], axis=1) / fourvector.mass(system)
    gluons = (events.parton_id == 21).all(1)[:, None, None]
    cosine = np.abs(cos_theta_star(found.top))
    matrix = np.where(
        gluons, *(spin_correlation_matrix(np.minimum(beta, 1), cosine, name) for name in ("gg", "qq"))
    ).mean(0)
    return np.append(-matrix.ravel(), -np.trace(matrix) / 9)


@pytest.mark.parametrize("scale", [1.0, -0.5, 0.0])
def test_accepted_decays_have_the_correlation_of_qcd(partons, scale):
    events, found, transformation = partons
    accepted = d.accept(events, found, transformation, scale, np.random.default_rng(6))
    rate = accepted.mean(1)
    assert rate.mean() == pytest.approx(1 / (1 + abs(scale)), abs=4 * rate.std() / np.sqrt(len(rate)) + 1e-12)
    mean, error = of_hard_events(spin_values(found, transformation), accepted)
    assert error[9] < 0.005
    pull = (mean[:10] - scale * expected_coefficients(events, found)) / error[:10]
    assert (pull**2).sum() < 30, pull  # ten degrees of freedom: probability 0.1 %
    assert (np.abs(pull) < 4).all()


def test_the_number_of_copies_has_the_correlation_of_the_w_bosons(partons):
    """⟨Ŵ⁺·Ŵ⁻⟩ = α²/3 with α = (m_t² − 2m_W²)/(m_t² + 2m_W²), ⟨c_hel⟩ = 1/3, for a pseudoscalar.

    Decays drawn conditionally for each hard event would leave ⟨Ŵ⁺·Ŵ⁻⟩ at 0.
    """
    events, found, transformation = partons
    accepted = d.accept(events, found, transformation, 1.0, np.random.default_rng(6), "pseudoscalar")
    mean, error = of_hard_events(spin_values(found, transformation), accepted)
    alpha = (M_TOP**2 - 2 * M_W**2) / (M_TOP**2 + 2 * M_W**2)
    assert mean[9] == pytest.approx(1 / 3, abs=3 * error[9])
    assert mean[10] == pytest.approx(alpha**2 / 3, abs=3 * error[10])
    assert mean[10] > 4 * error[10]
    scalar = d.accept(events, found, transformation, 1.0, np.random.default_rng(6), "scalar")
    mean, error = of_hard_events(spin_values(found, transformation), scalar)
    # C = −C′, on the diagonal k, r, n.
    assert mean[[0, 4, 8]] == pytest.approx(np.array([1, -1, -1]), abs=4 * error[[0, 4, 8]].max())


def test_spins_of_a_madgraph_sample(partons, data, monkeypatch):
    """All C_ij, ⟨c_hel⟩ and ⟨Ŵ⁺·Ŵ⁻⟩ in bins of m(tt̄), against MadGraph with spin correlation.

    The MadGraph files hold reconstructed dileptons only. Generated leptons and b quarks well inside their
    cuts make the efficiency flat; the same cuts are applied here. Errors are statistical: 0.04 for C_ij.
    """
    from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

    from topreco.input.truth import read_truth

    monkeypatch.setattr(NanoAODSchema, "warn_missing_crossrefs", False)

    def inside(top, w, lepton):
        b = top - w
        kinematics = [(fourvector.pt(p4), fourvector.eta(p4)) for p4 in (lepton, b)]
        (pt, eta), (pt_b, eta_b) = kinematics
        passed = (pt > 25) & (np.abs(eta) < 2.4) & (pt_b > 40) & (np.abs(eta_b) < 2.2)
        return passed.all(-1)

    events, found, transformation = partons
    lepton = leptons_of(found, transformation)
    top, w = (np.broadcast_to(p4[:, None], lepton.shape) for p4 in (found.top, found.w))
    accepted = d.accept(events, found, transformation, 1.0, np.random.default_rng(6))
    accepted &= inside(top, w, lepton) & (np.abs(found.lepton_id) != 15).all(1)[:, None]
    own = spin_values(found, transformation)
    m_tt = fourvector.mass(found.top.sum(1))

    truths = []
    for number in (1, 2, 3):
        file = data / "delphes" / f"tt2l_mg5_delphes_{number}.root"
        nano = NanoEventsFactory.from_root({str(file): "Events"}, schemaclass=NanoAODSchema, mode="virtual")
        truths.append(read_truth(nano.events()))
    truth = type(truths[0]).concatenate(truths)
    truth = truth[truth.dileptonic & ~truth.via_tau.any(1)]
    lepton = truth.w - truth.neutrino
    truth, lepton = (x[inside(truth.tops, truth.w, lepton)] for x in (truth, lepton))
    one = np.broadcast_to(np.eye(4), (len(truth), 1, 2, 4, 4))
    fields = {**vars(found), "top": truth.tops, "w": truth.w, "lepton": lepton}
    other = spin_values(d.WDecays(**fields), one)
    m_other = fourvector.mass(truth.tops.sum(1))

    names = [f"C_{a}{b}" for a in AXES for b in AXES] + ["c_hel", "W.W"]
    edges = [0, 400, 500, 700, np.inf]
    pulls = []
    for low, high in [(0, np.inf), *itertools.pairwise(edges)]:
        chosen = (m_tt >= low) & (m_tt < high)
        reference = (m_other >= low) & (m_other < high)
        mean, error = of_hard_events(own[chosen], accepted[chosen])
        wanted, its_error = of_hard_events(other[reference], np.ones((reference.sum(), 1), bool))
        pull = (mean - wanted) / np.hypot(error, its_error)
        # Eleven quantities, ten of which are independent.
        assert (pull**2).sum() < 32, (low, dict(zip(names, pull, strict=True)))
        pulls.append(pull)
    assert (np.array(pulls[1:]) ** 2).sum() < 74  # 44: probability 0.3 %
    # Without correlation C_kk and C_nn would be five errors and more away.
    without, error = of_hard_events(own, np.broadcast_to(accepted.any(1)[:, None], accepted.shape))
    wanted, its_error = of_hard_events(other, np.ones((len(other), 1), bool))
    assert ((wanted - without)[[0, 8]] > 5 * np.hypot(error, its_error)[[0, 8]]).all()


# ---- preselection and copies -----------------------------------------------------------------------------


def test_preselection_is_what_it_says(full):
    """Against a loop over the particles of the copied records."""
    events, found = full
    copies = all_copies(events, found)
    cuts = PreselectionConfig(pt_leading=30, pt_trailing=15, abs_eta=2.0)
    passed = d.preselect(events, found, copies, cuts)
    copied = d.copied_events(events, found, copies)
    again = d.find_decays(copied)
    for i in range(0, len(copies), 7):
        charges, leading = set(), False
        for j in range(*copied.offsets[i : i + 2]):
            if copied.status[j] <= 0 or abs(copied.pdg_id[j]) not in (11, 13):
                continue
            p4, leg = copied.p4[j], again.leg[j]
            if leg >= 0 and again.lepton_id[i, leg] == copied.pdg_id[j]:
                p4 = again.lepton[i, leg]
            if fourvector.pt(p4) > cuts.pt_trailing and abs(fourvector.eta(p4)) < cuts.abs_eta:
                charges.add(np.sign(copied.pdg_id[j]))
                leading |= bool(fourvector.pt(p4) > cuts.pt_leading)
        assert passed[i] == (len(charges) == 2 and leading)
    assert 0.05 < passed.mean() < 0.6


def test_preselection_keeps_what_a_selection_takes(full):
    """Two reconstructed leptons with the cuts of `skim-loose.yaml`, of opposite charge and isolated."""
    pytest.importorskip("fastjet")
    from topreco.simulation.nanoaod import nanoaod

    events, found = full
    copies = all_copies(events, found)
    passed = d.preselect(events, found, copies, PreselectionConfig())
    parts = [
        nanoaod(d.copied_events(events, found, piece), np.random.default_rng(8))
        for piece in d.pieces(copies, 250)
    ]

    def leptons(name, isolation):
        table = ak.concatenate([part[name] for part in parts])
        good = table[(table.pt > 20) & (abs(table.eta) < 2.4)]
        return good[good[isolation] < (0.10 if name == "Electron" else 0.15)][["pt", "charge"]]

    both = ak.concatenate([leptons("Electron", "pfRelIso03_all"), leptons("Muon", "pfRelIso04_all")], axis=1)
    leading = ak.fill_none(ak.max(both.pt, axis=1), 0.0)
    selected = ak.to_numpy((ak.num(both) == 2) & (leading > 25) & (ak.sum(both.charge, axis=1) == 0))
    assert selected.sum() > 200
    assert passed[selected].mean() > 0.995


def test_pieces_are_equal_and_complete(full):
    events, found = full
    copies = all_copies(events, found)[:530]
    found_pieces = list(d.pieces(copies, 250))
    assert [len(piece) for piece in found_pieces] == [176, 177, 177]
    assert np.concatenate([piece.number for piece in found_pieces]).tolist() == copies.number.tolist()
    assert not list(d.pieces(copies[:0], 250))
