"""Resonances, tW and Drell-Yan: kinematics, spins at generated level against theory, and their files."""

import warnings

import numpy as np
import pytest
import uproot
from coffea.nanoevents import NanoAODSchema, NanoEventsFactory

from topreco.config import ConfigError, SimulationConfig, load_config
from topreco.core import fourvector
from topreco.core.events import PRODUCTIONS
from topreco.core.observables import c_flipped, c_hel, m_tt
from topreco.core.spin import event_spin_weight
from topreco.input.truth import read_truth

pytest.importorskip("pythia8mc")
pytest.importorskip("fastjet")

from topreco.simulation import decays as d
from topreco.simulation import simulate, single_top
from topreco.simulation.pythia import generate, hard_process, settings, start_pythia

pytestmark = pytest.mark.sim

A600 = {"process": "pseudoscalar", "resonance": {"mass": 600, "width": 15}}
THRESHOLD = {
    "process": "pseudoscalar",
    "resonance": {"mass": 343, "width": 2.8, "mass_range": (337, 349)},
}


def copies_of(n=500, **changes):
    """Tops and leptons of the accepted decays of generated events, and which event each comes from."""
    config = SimulationConfig(mpi=False, decays_per_event=10, **changes)
    events = generate(start_pythia([*settings(config, 4), "HadronLevel:all = off"]), n, refill=True)
    found = d.find_decays(events)
    copies, accepted = d.draw_copies(events, found, config, np.random.default_rng(8))
    copies = copies[accepted]
    leptons = np.einsum("nlij,nlj->nli", copies.transformation, found.lepton[copies.hard_event])
    return events, found, found.top[copies.hard_event], leptons, copies.hard_event


def mean_of_events(values, event):
    """Mean and its error, of which each hard event is one contribution."""
    total, count = np.bincount(event, values), np.bincount(event)
    mean = values.mean()
    return mean, np.sqrt(((total - count * mean) ** 2).sum()) / len(values)


@pytest.mark.parametrize(
    ("changes", "observable", "slope"),
    [
        (A600, c_hel, 1),
        (THRESHOLD, c_hel, 1),
        (A600 | {"process": "scalar"}, lambda tops, leptons: c_flipped(tops, leptons, "k"), -1),
        (A600 | {"spin_correlation": 0}, c_hel, 0),
    ],
    ids=["A600", "threshold", "H600", "A600 without"],
)
def test_decays_have_the_spin_of_the_resonance(changes, observable, slope):
    """The density of c_hel of a pseudoscalar is (1 + c)/2, D = −1; of c_han of a scalar (1 − c)/2."""
    _, _, tops, leptons, event = copies_of(**changes)
    values = observable(tops, leptons)
    mean, error = mean_of_events(values, event)
    assert error < 0.02
    assert mean == pytest.approx(slope / 3, abs=4 * error)
    # The second moment tells a straight line from another law of the same mean.
    square, error = mean_of_events(values**2, event)
    assert square == pytest.approx(1 / 3, abs=4 * error)


def test_masses_of_resonances():
    events, found, *_ = copies_of(**THRESHOLD)
    resonance = events.mass[(events.pdg_id == 36) & (np.abs(events.status) == 22)]
    assert ((resonance > 337) & (resonance < 349)).all()
    assert np.median(resonance) == pytest.approx(343, abs=0.6)
    # Off shell: two tops of 172.5 GeV are heavier.
    assert fourvector.mass(found.top).mean(axis=1).max() < 349 / 2
    assert np.median(fourvector.mass(found.top)) == pytest.approx(171.1, abs=0.8)
    events, found, *_ = copies_of(200, **A600)
    assert np.median(events.mass[(events.pdg_id == 36) & (np.abs(events.status) == 22)]) == pytest.approx(
        600, abs=6
    )
    # After the radiation of the tops, before their decay.
    assert 560 < np.median(m_tt(found.top)) < 600


# ---- tW --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proposals():
    """Hard processes of gb → tH⁻ as Pythia proposes them, all turned into those with a t."""
    pythia = start_pythia(settings(SimulationConfig(process="tw", mpi=False), 5))
    processes = [process for _ in range(6000) if (process := hard_process(pythia)) is not None]
    hard, conjugate = single_top._momenta(processes)
    assert 0.45 < conjugate.mean() < 0.55
    return single_top.HardProcess(
        *(
            np.where(conjugate[:, None], reflected, p4)
            for reflected, p4 in zip(hard.parity(), hard, strict=True)
        )
    )


def test_the_amplitude_is_gauge_invariant(proposals):
    amplitude = np.abs(single_top.amplitude_tw(proposals, np.array([0.0, 1, 0, 0])))
    along_momentum = np.abs(single_top.amplitude_tw(proposals, proposals.gluon))
    assert (along_momentum / (amplitude * proposals.gluon[:, 0])).max() < 1e-8
    # A polarisation may change by a multiple of the gluon's momentum.
    shifted = np.array([0.0, 1, 0, 0]) + 0.3 * proposals.gluon / proposals.gluon[:, :1]
    np.testing.assert_allclose(np.abs(single_top.amplitude_tw(proposals, shifted)), amplitude, rtol=1e-6)


def test_pythia_proposes_the_matrix_element_that_is_divided_out(proposals):
    """Phase space is flat in the cosine of the top: so are Pythia's events over |M(gb → tH⁻)|²."""
    total = proposals.gluon + proposals.bottom
    s = fourvector.mass(total)
    top, gluon = (fourvector.to_rest_frame(p4, total)[:, 1:] for p4 in (proposals.top, proposals.gluon))
    cosine = (top * gluon).sum(1) / np.linalg.norm(top, axis=1) / np.linalg.norm(gluon, axis=1)
    weight = 1 / single_top.squared_th(proposals)
    for low, high in ((270, 330), (330, 400)):
        chosen = (s > low) & (s < high)
        contents = np.histogram(cosine[chosen], 4, (-1, 1), weights=weight[chosen])[0]
        errors = np.sqrt(np.histogram(cosine[chosen], 4, (-1, 1), weights=weight[chosen] ** 2)[0])
        mean = np.average(contents, weights=errors**-2)
        chi2 = (((contents - mean) / errors) ** 2).sum()
        assert chi2 < 16.3  # probability 0.1 % with three degrees of freedom


def test_the_lepton_of_the_top_shows_its_polarisation(proposals):
    """Its decay turned in its rest frame, ℓ⁺ has a density linear in the cosine to one axis, with slope 1.

    With the other helicities fixed a top is fully polarised, and ℓ⁺ analyses it fully; b has a mass.
    """
    hard = single_top.HardProcess(*(p4[:200] for p4 in proposals))
    to_rest = d.boost_matrix(hard.top * np.array([1, -1, -1, -1]))
    back = d.boost_matrix(hard.top)
    rng = np.random.default_rng(2)
    values, directions = [], []
    for _ in range(40):
        rotation = np.zeros((4, 4))
        rotation[0, 0] = 1
        rotation[1:, 1:] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        rotation[1:, 1:] *= np.linalg.det(rotation[1:, 1:])
        matrix = back @ rotation @ to_rest
        turned = {
            name: np.einsum("nij,nj->ni", matrix, getattr(hard, name))
            for name in ("b", "lepton_top", "neutrino_top")
        }
        new = hard._replace(**turned)
        decay = fourvector.dot(new.top, new.lepton_top) * fourvector.dot(new.b, new.neutrino_top)
        values.append(np.abs(single_top.amplitude_tw(new, np.array([0.0, 1, 0, 0]))) ** 2 / decay)
        lepton = np.einsum("nij,nj->ni", to_rest, new.lepton_top)[:, 1:]
        directions.append(lepton / np.linalg.norm(lepton, axis=1, keepdims=True))
    for event in range(0, 200, 10):
        matrix = np.column_stack([np.ones(40), np.array(directions)[:, event]])
        density = np.array(values)[:, event]
        (constant, *slopes), *_ = np.linalg.lstsq(matrix, density)
        np.testing.assert_allclose(matrix @ [constant, *slopes], density, atol=5e-2 * constant)
        assert np.linalg.norm(slopes) / constant == pytest.approx(1, abs=0.04)


def test_les_houches_events_of_tw(tmp_path):
    config = SimulationConfig(process="tw")
    path = tmp_path / "tw.lhe"
    single_top.write_tw(settings(config, 5), config, 30, 5, path)
    text = path.read_text().split("<event>")[1:]
    assert len(text) == 30
    for event in text:
        rows = [line.split() for line in event.split("</event>")[0].split("\n")[2:] if line]
        code, state = (np.array([int(row[i]) for row in rows]) for i in (0, 1))
        p = np.array([[float(x) for x in row[6:10]] for row in rows])
        assert p[state == 1].sum(0) == pytest.approx(p[state == -1].sum(0), abs=1e-3)
        assert sorted(np.abs(code[state == 2])) == [6, 24, 24]
        assert set(np.abs(code[state == -1])) == {5, 21}
        w = [code[i] for i in np.flatnonzero(np.abs(code) == 24)]
        assert sorted(w) == [-24, 24]
        # The W from the top has its sign.
        from_top = next(
            int(row[2]) for row, c in zip(rows, code, strict=True) if abs(c) == 24 and row[2] != "1"
        )
        assert abs(code[from_top - 1]) == 6


# ---- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "n_tops", "production"),
    [(THRESHOLD, 2, "other"), ({"process": "tw"}, 1, "other"), ({"process": "drell_yan"}, 0, None)],
    ids=["threshold", "tW", "Drell-Yan"],
)
def test_files(tmp_path, changes, n_tops, production):
    config = SimulationConfig(n_events=20, seed=5, mpi=False, block_size=12, **changes)
    output = tmp_path / "sample.root"
    summary = simulate(config, output, workers=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        events = NanoEventsFactory.from_root({str(output): "Events"}, schemaclass=NanoAODSchema).events()
    assert summary.n_generated == len(events)
    # Half of the decays of a resonance are refused.
    assert (4 <= summary.n_generated <= 16) if n_tops == 2 else (summary.n_generated == 20)
    truth = read_truth(events)
    known = np.isfinite(truth.tops).all(-1).sum(1)
    assert (known == n_tops).all()
    # The spin correlation of QCD is not for these tops.
    assert np.isnan(event_spin_weight(truth)).all()
    if production:
        assert {PRODUCTIONS[i] for i in truth.production} == {production}
    if n_tops == 2:
        assert truth.valid.all()
    if config.process == "tw":
        # Its Les Houches files are gone, and the same events come again.
        assert [path.name for path in tmp_path.iterdir()] == ["sample.root"]
        again = tmp_path / "again.root"
        simulate(config, again, workers=1, progress=False)
        trees = [uproot.open(path)["Events"].arrays(["GenPart_pt", "Jet_pt"]) for path in (output, again)]
        assert trees[0].tolist() == trees[1].tolist()


def test_the_parton_of_drell_yan_is_hard():
    config = SimulationConfig(process="drell_yan", pt_parton=80, mpi=False)
    pythia = start_pythia([*settings(config, 3), "PartonLevel:all = off"])
    for _ in range(20):
        process = hard_process(pythia)
        assert process is not None
        (parton,) = (p for p in process if p.mother == 0 and p.pdg_id != 23)
        assert np.hypot(*parton.p4[1:3]) > 80


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["process=scalar"], "which need them; scalar found with none"),
        (["resonance.mass=500", "resonance.width=5"], "ttbar found with some"),
        (["process=tw", "decays_per_event=2"], "leave them at their defaults with tw"),
        (["process=drell_yan", "lhe=a.lhe"], "drell_yan found with lhe"),
        (["process=tw", "pt_parton=50"], "pt_parton: 50 found, is of drell_yan; tw found"),
        (
            ["process=scalar", "resonance.mass=500", "resonance.width=5", "resonance.mass_range=[510,600]"],
            "a range about mass expected",
        ),
        (["process=higgs"], "process"),
    ],
)
def test_bad_input(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(SimulationConfig, None, overrides)
