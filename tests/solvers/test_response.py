"""Response histograms: derivation, file, arrays."""

import json
import math
from dataclasses import replace

import correctionlib
import numpy as np
import pytest

from topreco.core.constants import PDG_ELECTRON, PDG_MUON
from topreco.core.errors import TopRecoError
from topreco.core.events import Truth, toy_events
from topreco.core.fourvector import from_pt_eta_phi_mass, mass, pt
from topreco.core.skim import SkimWriter
from topreco.solvers.response import (
    OBJECTS,
    derive_detector_response,
    load_detector_response,
    match_jets,
    write_detector_response,
)

N = 6000


def unit(rng, shape, eta_max=2.3):
    return rng.uniform(-eta_max, eta_max, shape), rng.uniform(-np.pi, np.pi, shape)


def simulated(seed=0, n=N):
    """Events with two jets and known response: jets 1.1 times, leptons 1.02 times the generated energy."""
    rng = np.random.default_rng(seed)
    events = toy_events(n, max_jets=3, seed=seed)
    eta, phi = unit(rng, (n, 2))
    phi[:, 1] = phi[:, 0] + np.pi
    b = from_pt_eta_phi_mass(rng.uniform(40, 200, (n, 2)), eta, phi, np.full((n, 2), 4.8))
    jets = np.zeros((n, 3, 4))
    jets[:, :2] = 1.1 * b
    mask = np.tile([True, True, False], (n, 1))
    eta, phi = unit(rng, (n, 2))
    lepton = from_pt_eta_phi_mass(rng.uniform(30, 150, (n, 2)), eta, phi, np.full((n, 2), 0.1))
    w = from_pt_eta_phi_mass(np.full((n, 2), 50.0), eta, phi, rng.normal(80.4, 2.0, (n, 2)))
    events = replace(
        events,
        jets=jets,
        jet_mask=mask,
        lepton_plus=1.02 * lepton[:, 0],
        lepton_minus=1.02 * lepton[:, 1],
    )
    truth = Truth(
        tops=w + b,
        w=w,
        b=b,
        lepton=lepton,
        neutrino=w - lepton,
        via_tau=np.zeros((n, 2), bool),
        dileptonic=np.ones(n, bool),
        production=np.zeros(n, np.int64),
    )
    return events, truth


def write_skim(path, events, truth, row_group_size=2500):
    with SkimWriter(path, row_group_size=row_group_size) as writer:
        for start in range(0, len(events), row_group_size):
            part = slice(start, start + row_group_size)
            writer.write(events[part], None if truth is None else truth[part])
    return path


@pytest.fixture(scope="module")
def skim(tmp_path_factory):
    return write_skim(tmp_path_factory.mktemp("response") / "skim.parquet", *simulated())


@pytest.fixture(scope="module")
def file(skim, tmp_path_factory):
    path = tmp_path_factory.mktemp("response") / "response.json"
    write_detector_response(derive_detector_response([skim], description="a toy"), path)
    return path


def integral(corrections, name, edges, *where):
    middle = (edges[1:] + edges[:-1]) / 2
    return (corrections[name].evaluate(*where, middle) * np.diff(edges)).sum()


@pytest.mark.parametrize("kind", OBJECTS)
def test_known_response_is_found(file, kind):
    corrections = correctionlib.CorrectionSet.from_file(str(file))
    ratio = 1 / 1.1 if kind == "jet" else 1 / 1.02
    for where in ((45.0, 0.2), (5000.0, 7.0)):
        value = np.linspace(0.5, 1.5, 2001)
        density = corrections[f"{kind}_energy"].evaluate(*where, value)
        assert abs(value[density > 0].mean() - ratio) < 0.02
        angle = corrections[f"{kind}_angle"].evaluate(*where, np.linspace(0.001, 0.1, 100))
        assert angle[20:].max() == 0


def test_masses(file):
    corrections = correctionlib.CorrectionSet.from_file(str(file))
    assert integral(corrections, "m_w", np.linspace(60.3, 100.5, 20_001)) == pytest.approx(1, abs=2e-3)
    assert integral(corrections, "m_lb", np.linspace(0, 200, 20_001)) == pytest.approx(1, abs=2e-3)
    value = np.linspace(61, 99, 2000)
    density = corrections["m_w"].evaluate(value)
    mean = (value * density).sum() / density.sum()
    assert mean == pytest.approx(80.4, abs=0.1)


def test_correctionlib_gives_the_same_density(file):
    response = load_detector_response(file)
    corrections = correctionlib.CorrectionSet.from_file(str(file))
    for what, table in (("energy", response.energy), ("angle", response.angle)):
        for k, kind in enumerate(OBJECTS):
            for i, j in np.ndindex(table.pt_edges.shape[1], table.pt_edges.shape[2] - 1):
                if not math.isfinite(table.pt_edges[k, i, j]):
                    continue
                cell = np.ravel_multi_index(
                    (k, i, j), (*table.pt_edges.shape[:2], table.pt_edges.shape[2] - 1)
                )
                width = np.diff(table.edges[cell])
                bins = width > 0
                middle = (table.edges[cell, 1:] + table.edges[cell, :-1])[bins] / 2
                where = (table.pt_edges[k, i, j] + 1e-6, table.abseta_edges[k, i] + 1e-6)
                expected = corrections[f"{kind}_{what}"].evaluate(*where, middle)
                found = np.diff(table.cumulative[cell])[bins] / width[bins]
                assert found == pytest.approx(expected, rel=1e-4, abs=1e-9)
    middle = (response.m_lb.edges[1:] + response.m_lb.edges[:-1]) / 2
    assert np.array_equal(response.m_lb.values, corrections["m_lb"].evaluate(middle))


def test_tables_are_sound(file):
    for response in (load_detector_response(), load_detector_response(file)):
        for table in (response.energy, response.angle, response.m_w):
            assert (np.diff(table.cumulative, axis=1) >= 0).all()
            assert (table.cumulative[:, -1] == 1).all()
            assert np.isfinite(table.slope).all()
            assert not table.abseta_edges[:, 0].any() or (table.abseta_edges[:, 0] >= 0).all()


def test_cells_have_enough_entries(skim):
    corrections = derive_detector_response([skim])
    jets = next(c for c in corrections.corrections if c.name == "jet_energy")
    cells = sum(len(row.content) for row in jets.data.content)
    assert 3 <= cells <= 2 * N / 800


def test_shipped_response():
    response = load_detector_response()
    assert "generated" in response.description
    assert len(response.m_lb.values) > 20
    # Quarks radiate out of their jets, at low pT most of all.
    _, n_abseta, n_pt = response.energy.pt_edges.shape
    medians = [
        np.interp(0.5, response.energy.cumulative[cell], response.energy.edges[cell])
        for cell in range(n_abseta * (n_pt - 1))
    ]
    by_abseta = np.reshape(medians, (n_abseta, n_pt - 1))
    filled = np.isfinite(response.energy.pt_edges[0, :, :-1])
    for medians_of_bin, used in zip(by_abseta, filled, strict=True):
        assert (np.diff(medians_of_bin[used]) < 0.03).all()
        assert 1.1 < medians_of_bin[used][0] < 1.4
        assert medians_of_bin[used][-1] == pytest.approx(1.0, abs=0.05)


def test_row_groups_and_files_add_up(tmp_path, skim):
    events, truth = simulated()
    parts = [
        write_skim(tmp_path / f"{i}.parquet", events[part], truth[part], 700)
        for i, part in enumerate((slice(0, 2000), slice(2000, None)))
    ]
    assert derive_detector_response(parts).corrections == derive_detector_response([skim]).corrections


def test_negative_weights(tmp_path, file):
    events, truth = simulated()
    # A second copy with weights +1 and a third with −1 cancel.
    signs = np.repeat([1.0, 1.0, -1.0], N)
    signed = replace(events.concatenate([events] * 3), weight=signs)
    skim = write_skim(tmp_path / "signed.parquet", signed, Truth.concatenate([truth] * 3))
    write_detector_response(derive_detector_response([skim], description=""), tmp_path / "signed.json")
    signed, plain = load_detector_response(tmp_path / "signed.json"), load_detector_response(file)
    assert signed.m_lb.values == pytest.approx(plain.m_lb.values, rel=1e-4)
    # All negative: nothing is left.
    skim = write_skim(tmp_path / "negative.parquet", replace(events, weight=-np.ones(N)), truth)
    with pytest.raises(TopRecoError, match="no matched object"):
        derive_detector_response([skim])


def test_matching_is_unique():
    def p4(eta, phi):
        return from_pt_eta_phi_mass(np.array(50.0), np.array(eta), np.array(phi), np.array(5.0))

    nothing = np.full(4, np.nan)
    b = np.array([[p4(0.0, 0.0), p4(1.0, 2.0)]] * 4)
    b[3, 1] = nothing
    jets = np.array(
        [
            [p4(0.1, 0.1), p4(1.0, 2.1), np.zeros(4)],  # one each
            [p4(0.1, 0.1), p4(-0.1, 0.1), np.zeros(4)],  # two jets at one quark, none at the other
            [p4(0.1, 0.6), p4(1.0, 2.1), np.zeros(4)],  # one too far
            [p4(0.1, 0.1), p4(1.0, 2.1), np.zeros(4)],  # one quark missing
        ]
    )
    mask = np.tile([True, True, False], (4, 1))
    assert match_jets(b, jets, mask).tolist() == [[0, 1], [-1, -1], [-1, 1], [0, -1]]
    # Two quarks in one jet.
    b = np.array([[p4(0.0, 0.0), p4(0.2, 0.0)]])
    assert match_jets(b, jets[:1], mask[:1]).tolist() == [[-1, -1]]


def test_unmatched_leptons_do_not_count(tmp_path):
    events, truth = simulated()
    wrong = np.where(np.arange(N)[:, None] < N // 2, events.lepton_plus, -events.lepton_plus)
    wrong[:, 0] = np.abs(wrong[:, 0])
    skim = write_skim(tmp_path / "s.parquet", replace(events, lepton_plus=wrong), truth)
    write_detector_response(derive_detector_response([skim]), tmp_path / "s.json")
    table = load_detector_response(tmp_path / "s.json").angle
    assert table.edges.max() <= 0.4
    assert set(np.unique(events.lepton_flavour)) == {PDG_ELECTRON, PDG_MUON}
    assert pt(events.jets[:, 0]).min() > 0
    assert np.isfinite(mass(truth.w)).all()


def test_description_tells_the_sample(skim):
    text = derive_detector_response([skim]).description
    assert f"{N} selected" in text
    assert "topreco" in text


def test_bad_skims(tmp_path, skim):
    with pytest.raises(TopRecoError, match="no skim given"):
        derive_detector_response([])
    with pytest.raises(TopRecoError, match="no such file"):
        derive_detector_response([tmp_path / "absent.parquet"])
    events, _ = simulated(n=10)
    data = write_skim(tmp_path / "data.parquet", events, None)
    with pytest.raises(TopRecoError, match="has no truth"):
        derive_detector_response([skim, data])


BAD = {
    "negative": ("m_lb", ("data", "content", 3), -1.0, "has a density of -1.0, expected finite and >= 0"),
    "nan": ("m_lb", ("data", "content", 3), math.nan, "has a density of nan"),
    "inf": ("m_lb", ("data", "content", 3), math.inf, "has a density of inf"),
    "zero": ("m_w", ("data", "content"), [0.0] * 80, "has a density that is zero everywhere"),
    "missing": ("muon_angle", ("name",), "other", "is missing"),
    "formula": ("jet_energy", ("data",), 1.0, "is not binned in"),
    "inputs": (
        "m_lb",
        ("inputs",),
        [{"name": name, "type": "real"} for name in ("value", "pt")],
        r"has inputs \('value', 'pt'\), expected \('value',\)",
    ),
}


@pytest.mark.parametrize(("name", "where", "value", "message"), BAD.values(), ids=BAD)
def test_bad_payload(file, tmp_path, name, where, value, message):
    content = json.loads(file.read_text())
    node = next(c for c in content["corrections"] if c["name"] == name)
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = value
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(content))
    with pytest.raises(TopRecoError, match=f"{name}'? {message}") as error:
        load_detector_response(path)
    assert "\n" not in str(error.value)


def test_bad_files(tmp_path):
    with pytest.raises(TopRecoError, match="cannot be read"):
        load_detector_response(tmp_path / "absent.json")
    for content, message in (
        ("{", "not JSON"),
        ("{}", "not a correctionlib payload"),
        ("[]", "not a correction"),
    ):
        path = tmp_path / "bad.json"
        path.write_text(content)
        with pytest.raises(TopRecoError, match=message) as error:
            load_detector_response(path)
        assert "\n" not in str(error.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TopRecoError, match="not a text file"):
        load_detector_response(path)
