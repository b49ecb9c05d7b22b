"""Corrections and variations: jets, leptons, MET and weights against numbers worked out by hand."""

import dataclasses
import gzip
import json

import awkward as ak
import correctionlib.schemav2 as schema
import numpy as np
import pytest
import uproot

from topreco.config import (
    NOMINAL,
    ConfigError,
    RunConfig,
    SelectionConfig,
    SystematicsConfig,
    build_config,
)
from topreco.core.events import DileptonEvents
from topreco.input.branches import Branches
from topreco.input.nano import InputError, iterate_events, open_events
from topreco.input.objects import read_objects
from topreco.input.required import OPTIONAL_BRANCHES, needed_branches
from topreco.input.selection import select, select_objects
from topreco.input.systematics import (
    CorrectionError,
    check_corrections,
    event_weights,
    generated_weights,
    variations,
)

SELECTION = SelectionConfig()
JETS = [
    {"pt": 80.0, "phi": 1.0, "btagDeepFlavB": 0.9, "mass": 12.0},
    {"pt": 60.0, "phi": -2.0, "eta": -1.0},
    {"pt": 12.0, "phi": 0.3, "eta": 1.5},
]


def configure(**content):
    return build_config(SystematicsConfig, content, "test")


def formula(expression, variables):
    return schema.Formula(nodetype="formula", expression=expression, parser="TFormula", variables=variables)


def category(name, **values):
    items = [schema.CategoryItem(key=key, value=value) for key, value in values.items()]
    return schema.Category(nodetype="category", input=name, content=items)


@pytest.fixture
def events(nano_file, emu):
    """One event with three jets."""
    return open_events(nano_file([emu(Jet=JETS)]))


def found(events, config):
    return dict(variations(events, SELECTION, config))


def vector(pt, phi):
    return np.array([pt * np.cos(phi), pt * np.sin(phi)])


def assert_same(a, b):
    """Equal to the last bit."""
    for name in ("electrons", "muons", "jets"):
        for field in dataclasses.fields(getattr(a, name)):
            values = (getattr(getattr(x, name), field.name) for x in (a, b))
            np.testing.assert_array_equal(*values, err_msg=f"{name}.{field.name}")
    np.testing.assert_array_equal(a.met, b.met)
    np.testing.assert_array_equal(a.weight, b.weight)


# ---- objects ---------------------------------------------------------------------------------------------


def test_without_sources_the_objects_are_what_was_read(events):
    assert_same(found(events, SystematicsConfig())[NOMINAL], read_objects(events, SELECTION))


@pytest.mark.parametrize(("variation", "sign"), [("up", 1), ("down", -1)])
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "correctionlib"])
def test_one_percent_on_all_jets(events, payload, variation, sign, flat):
    file = payload(Total=({"JetEta": "real", "JetPt": "real"}, 0.01))
    inputs = {"JetEta": "eta", "JetPt": "pt"}
    value = {"flat": 0.01} if flat else {"file": file, "correction": "Total", "inputs": inputs}
    config = configure(objects={"jes": {"object": "jet", **value}})
    check_corrections(config)
    results = found(events, config)
    assert list(results) == ["nominal", "jes_up", "jes_down"]
    nominal, varied = results["nominal"], results[f"jes_{variation}"]
    factor = 1 + 0.01 * sign
    np.testing.assert_allclose(varied.jets.pt, [80 * factor, 60 * factor, 12 * factor], rtol=1e-6)
    np.testing.assert_allclose(varied.jets.mass, [12 * factor, 10 * factor, 10 * factor], rtol=1e-6)
    # The jet of 12 GeV is none of type-1's.
    met = vector(60, 1) - sign * (vector(0.8, 1) + vector(0.6, -2))
    np.testing.assert_allclose(varied.met, [met], rtol=1e-6)
    for field in ("eta", "phi", "btag", "identified", "counts"):
        np.testing.assert_array_equal(getattr(varied.jets, field), getattr(nominal.jets, field))
    assert_same(dataclasses.replace(varied, jets=nominal.jets, met=nominal.met), nominal)


def test_a_payload_that_changes_is_read_again(events, payload):
    """Within one process; of equal length and written at once, so only the content tells."""
    for value in (0.01, 0.02):
        source = {"object": "jet", "file": payload(jes=({}, value)), "correction": "jes"}
        config = configure(objects={"jes": source})
        check_corrections(config)
        np.testing.assert_allclose(found(events, config)["jes_up"].jets.pt[0], 80 * (1 + value), rtol=1e-6)


def test_phi_beyond_pi_belongs_to_the_last_bin(nano_file, emu, payload):
    """NanoAOD keeps few bits of φ; both ends of the payload are ±π."""
    edges = [-np.pi, 0.0, np.pi]
    data = schema.Binning(nodetype="binning", input="phi", edges=edges, content=[0.01, 0.02], flow="error")
    file = payload(jes=({"phi": "real"}, data))
    events = open_events(nano_file([emu(Jet=[{"pt": 80.0, "phi": phi} for phi in (-3.1416016, 3.1416016)])]))
    config = configure(objects={"jes": {"object": "jet", "file": file, "correction": "jes"}})
    np.testing.assert_allclose(found(events, config)["jes_up"].jets.pt, [80.8, 81.6], rtol=1e-6)


def test_a_value_outside_of_a_payload_is_named(nano_file, emu, payload):
    data = schema.Binning(nodetype="binning", input="eta", edges=[-2.5, 2.5], content=[0.01], flow="error")
    file = payload(jes=({"eta": "real"}, data))
    events = open_events(nano_file([emu(Jet=[JETS[0], JETS[1] | {"eta": 2.75}])]))
    config = configure(objects={"jes": {"object": "jet", "file": file, "correction": "jes"}})
    with pytest.raises(CorrectionError, match=r"payload\.json: correction 'jes' refuses eta = 2\.75: "):
        found(events, config)


def test_a_source_may_depend_on_the_jet(events, payload):
    data = formula("0.001*x*(y<0)", ["JetPt", "JetEta"])
    file = payload(Flavour=({"JetEta": "real", "JetPt": "real"}, data))
    source = {"file": file, "correction": "Flavour", "inputs": {"JetEta": "eta", "JetPt": "pt"}}
    varied = found(events, configure(objects={"jes": {"object": "jet", **source}}))["jes_down"]
    np.testing.assert_allclose(varied.jets.pt, [80, 60 * (1 - 0.06), 12], rtol=1e-6)
    np.testing.assert_allclose(varied.met, [vector(60, 1) + vector(3.6, -2)], rtol=1e-6)


def test_met_follows_what_type_1_counts_of_a_jet(nano_file, emu):
    branches = {
        "Jet_muonSubtrFactor": np.array([0.25, 0, 0, 0.8], "f4"),
        "Jet_chEmEF": np.array([0.1, 0.5, 0.1, 0.1], "f4"),
        "Jet_neEmEF": np.array([0.1, 0.45, 0.1, 0.1], "f4"),
    }
    # In turn: a muon inside, an electron, an ordinary jet, little besides a muon.
    jets = [{"pt": pt, "phi": phi} for pt, phi in ((80, 0.1), (50, 1.1), (40, 2.1), (60, -1))]
    events = open_events(nano_file([emu(Jet=jets)], extra=branches))
    varied = found(events, configure(objects={"jes": {"object": "jet", "flat": 0.1}}))["jes_up"]
    np.testing.assert_allclose(varied.met, [vector(60, 1) - vector(6, 0.1) - vector(4, 2.1)], rtol=1e-5)
    np.testing.assert_allclose(varied.jets.pt, [88, 55, 44, 66], rtol=1e-6)


def test_a_compound_correction_of_the_raw_jet(nano_file, emu, payload):
    """As jet energy corrections are applied anew: the file's are undone, each level sees the one before."""
    area = {"JetA": "real", "JetPt": "real", "Rho": "real"}
    file = payload(
        L1=(area, formula("1-y*z/x", ["JetPt", "JetA", "Rho"])),
        L2=({"JetPt": "real"}, formula("1+10/x", ["JetPt"])),
        compound=[
            schema.CompoundCorrection(
                name="L1L2",
                inputs=[schema.Variable(name=n, type=t) for n, t in area.items()],
                output=schema.Variable(name="value", type="real"),
                inputs_update=["JetPt"],
                input_op="*",
                output_op="*",
                stack=["L1", "L2"],
            )
        ],
    )
    branches = {
        "Jet_rawFactor": np.array([0.1, 0.2], "f4"),
        "Jet_area": np.array([0.5, 0.5], "f4"),
        "Rho_fixedGridRhoFastjetAll": np.array([20.0], "f4"),
    }
    jets = [{"pt": 80.0, "phi": 1.0}, {"pt": 60.0, "phi": -2.0}]
    events = open_events(nano_file([emu(Jet=jets)], extra=branches))
    inputs = {"JetA": "Jet_area", "JetPt": "pt", "Rho": "Rho_fixedGridRhoFastjetAll"}
    source = {"object": "jet", "kind": "factor", "raw": True, "correction": "L1L2", "inputs": inputs}
    config = configure(objects={"jec": {**source, "file": file}})
    check_corrections(config)
    results = found(events, config)
    assert list(results) == ["nominal"]
    # Of 72 and 48 GeV, 10 GeV go with pile-up and come back with the second level.
    np.testing.assert_allclose(results["nominal"].jets.pt, [72, 48], rtol=1e-6)
    np.testing.assert_allclose(results["nominal"].jets.mass, [9, 8], rtol=1e-6)
    np.testing.assert_allclose(
        results["nominal"].met, [vector(60, 1) + vector(8, 1) + vector(12, -2)], rtol=1e-6
    )


@pytest.mark.parametrize("kind", ["electron", "muon"])
def test_a_lepton_scale_moves_met(nano_file, emu, kind):
    collection = kind.capitalize()
    extra = {"pt": 20.0, "charge": 1, "phi": 1.5, "cutBased": 0, "tightId": False}
    event = emu()
    event[collection] = [*event[collection], extra]
    events = open_events(nano_file([event]))
    results = found(events, configure(objects={"scale": {"object": kind, "flat": 0.05}}))
    nominal, varied = (getattr(results[name], f"{kind}s") for name in ("nominal", "scale_down"))
    np.testing.assert_allclose(varied.pt, 0.95 * nominal.pt, rtol=1e-12)
    np.testing.assert_array_equal(varied.mass, nominal.mass)
    # A lepton that is not identified may be anything.
    shift = vector(0.05 * nominal.pt[0], nominal.phi[0])
    np.testing.assert_allclose(results["scale_down"].met, results["nominal"].met + shift, rtol=1e-6)


def test_where_restricts_a_source(events):
    source = {"object": "jet", "flat": 0.1, "where": {"abseta": {"min": 0.5, "max": 1.2}}}
    varied = found(events, configure(objects={"jes": source}))["jes_up"]
    np.testing.assert_allclose(varied.jets.pt, [80, 66, 12], rtol=1e-6)


def test_supercluster_eta_and_several_variations(events, payload):
    """Keys of an input with choices are the variations, with texts and numbers given as they are."""
    data = category("syst", nom=1.0, scale=1.02, **{"2018": 1.5})
    file = payload(Scale=({"syst": "string", "ScEta": "real", "gain": "int"}, data))
    choices = {"nominal": "nom", "one": "scale", "two": 2018}
    source = {
        "object": "electron",
        "kind": "factor",
        "file": file,
        "correction": "Scale",
        "inputs": {"syst": choices, "ScEta": "eta_sc", "gain": 12},
    }
    results = found(events, configure(objects={"ele": source}))
    assert {name: objects.electrons.pt[0] for name, objects in results.items()} == pytest.approx(
        {"nominal": 40, "ele_one": 40.8, "ele_two": 60}
    )


@pytest.mark.parametrize("quantity", ["eta_sc", "abseta_sc"])
@pytest.mark.parametrize("stored", ["superclusterEta", "deltaEtaSC", "both"])
def test_supercluster_eta_of_corrections(nano_file, emu, payload, quantity, stored):
    electron = {"pt": 40.0, "charge": 1, "eta": -0.5, "superclusterEta": -0.75, "deltaEtaSC": -0.25}
    if stored == "both":
        electron["deltaEtaSC"] = 0.0  # the stored η is preferred, as in the selection
    drop = [f"Electron_{name}" for name in ("superclusterEta", "deltaEtaSC") if stored not in (name, "both")]
    extra = {} if stored == "deltaEtaSC" else {"Electron_superclusterEta": np.float32(0)}
    chunk = open_events(nano_file([emu(Electron=[electron])], extra=extra, drop=drop))
    file = payload(Scale=({"x": "real"}, formula("1+0.1*x", ["x"])))
    source = {"object": "electron", "kind": "factor", "file": file, "correction": "Scale"}
    config = configure(objects={"scale": source | {"inputs": {"x": quantity}}})
    expected = 40 * (1.075 if quantity == "abseta_sc" else 0.925)
    assert found(chunk, config)["nominal"].electrons.pt[0] == pytest.approx(expected)


def test_supercluster_eta_that_is_missing(nano_file, emu, payload):
    chunk = open_events(nano_file([emu()], drop=["Electron_deltaEtaSC"]))
    file = payload(Scale=({"x": "real"}, formula("1+0.1*x", ["x"])))
    source = {"object": "electron", "kind": "factor", "file": file, "correction": "Scale"}
    with pytest.raises(InputError, match=r"'Electron_deltaEtaSC' is missing"):
        found(chunk, configure(objects={"scale": source | {"inputs": {"x": "eta_sc"}}}))


def test_a_variation_leaves_the_other_sources_nominal(events):
    config = configure(
        objects={
            "jec": {"object": "jet", "kind": "factor", "flat": 1.1},
            "jes": {"object": "jet", "flat": 0.02},
            "muon": {"object": "muon", "flat": 0.01},
        }
    )
    results = found(events, config)
    assert list(results) == ["nominal", "jes_up", "jes_down", "muon_up", "muon_down"]
    np.testing.assert_allclose(results["nominal"].jets.pt[0], 88, rtol=1e-6)
    np.testing.assert_allclose(results["jes_up"].jets.pt[0], 88 * 1.02, rtol=1e-6)
    np.testing.assert_allclose(results["muon_up"].jets.pt[0], 88, rtol=1e-6)


def test_a_correction_after_a_variation_sees_it(events, payload):
    file = payload(Step=({"JetPt": "real"}, formula("1+(x>85)", ["JetPt"])))
    step = {"object": "jet", "kind": "factor", "file": file, "correction": "Step", "inputs": {"JetPt": "pt"}}
    config = configure(objects={"jes": {"object": "jet", "flat": 0.1}, "step": step})
    results = found(events, config)
    np.testing.assert_allclose(results["nominal"].jets.pt[0], 80, rtol=1e-6)
    np.testing.assert_allclose(results["jes_up"].jets.pt[0], 176, rtol=1e-6)


# ---- smearing --------------------------------------------------------------------------------------------


def smearing(file):
    return {
        "object": "jet",
        "kind": "smear",
        "file": file,
        "correction": "Resolution",
        "inputs": {"JetPt": "pt"},
        "scale_factor": {
            "correction": "ScaleFactor",
            "inputs": {"systematic": {"nominal": "nom", "up": "up", "down": "down"}},
        },
    }


@pytest.fixture
def jer(payload):
    """Resolution of 10 %, to be made worse by 10 % or 20 %, or left as it is."""
    return smearing(
        payload(
            Resolution=({"JetPt": "real"}, 0.1),
            ScaleFactor=({"systematic": "string"}, category("systematic", nom=1.1, up=1.2, down=0.9)),
        )
    )


@pytest.fixture
def many(nano_file, random_events):
    return nano_file(random_events)


def test_smearing_is_normal_of_the_width_that_is_missing(many, jer):
    events = open_events(many)
    results = found(events, configure(objects={"jer": jer}))
    original = read_objects(events, SELECTION).jets.pt
    nominal, up, down = (results[name].jets.pt / original - 1 for name in ("nominal", "jer_up", "jer_down"))
    n = len(original)
    assert n > 1500
    width = 0.1 * np.sqrt(1.1**2 - 1)
    assert abs(nominal.mean()) < 4 * width / np.sqrt(n)
    assert nominal.std() == pytest.approx(width, rel=4 / np.sqrt(2 * n))
    assert np.mean(np.abs(nominal) < width) == pytest.approx(0.6827, abs=4 * np.sqrt(0.22 / n))
    assert np.mean(np.abs(nominal) < 2 * width) == pytest.approx(0.9545, abs=4 * np.sqrt(0.043 / n))
    # The same random numbers, and none where the data are no worse.
    np.testing.assert_allclose(up, nominal * np.sqrt((1.2**2 - 1) / (1.1**2 - 1)), rtol=1e-9)
    np.testing.assert_array_equal(down, 0)


def test_smearing_of_neighbours_is_independent(many, jer):
    objects = found(open_events(many), configure(objects={"jer": jer}))["nominal"]
    original = read_objects(open_events(many), SELECTION)
    relative = objects.jets.pt / original.jets.pt - 1
    same_event = np.diff(original.jets.event) == 0
    pairs = np.stack([relative[:-1][same_event], relative[1:][same_event]])
    assert abs(np.corrcoef(pairs)[0, 1]) < 4 / np.sqrt(pairs.shape[1])


@pytest.mark.parametrize("step_size", [1, 7, 64])
def test_smearing_does_not_depend_on_chunks(many, jer, step_size):
    config = configure(objects={"jer": jer, "ele": {"object": "electron", "kind": "smear", "flat": 0.02}})
    whole = found(open_events(many), config)
    parts = [found(chunk, config) for chunk in iterate_events(many, step_size=step_size)]
    for name, objects in whole.items():
        for field in ("jets", "electrons"):
            pt = np.concatenate([getattr(part[name], field).pt for part in parts])
            np.testing.assert_array_equal(pt, getattr(objects, field).pt)
        np.testing.assert_array_equal(np.concatenate([part[name].met for part in parts]), objects.met)


def test_seeds_and_kinds_have_their_own_numbers(many, jer):
    events = open_events(many)
    first, other = (
        found(events, configure(objects={"jer": jer}, seed=seed))["nominal"].jets.pt for seed in (1, 2)
    )
    assert (first != other).mean() > 0.99
    # In events with one of each, which have the same number within their kind.
    objects = read_objects(events, SELECTION)
    counts = [
        np.bincount(leptons.event, minlength=len(events)) for leptons in (objects.electrons, objects.muons)
    ]
    one_each = np.logical_and(*(count == 1 for count in counts))
    smear = {kind: {"object": kind, "kind": "smear", "flat": 0.02} for kind in ("electron", "muon")}
    smeared = found(events, configure(objects=smear))["nominal"]
    drawn = [
        (getattr(smeared, name).pt / getattr(objects, name).pt - 1)[one_each[getattr(objects, name).event]]
        for name in ("electrons", "muons")
    ]
    assert len(drawn[0]) > 20
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.6


def test_a_wild_smearing_turns_no_momentum_round(many):
    config = configure(objects={"jer": {"object": "jet", "kind": "smear", "flat": 3.0}})
    pt = found(open_events(many), config)["nominal"].jets.pt
    assert (pt > 0).all()


# ---- MET -------------------------------------------------------------------------------------------------


def test_unclustered_energy_as_a_shift(nano_file, emu):
    branches = {
        "MET_pt": np.array([50.0], "f4"),
        "MET_phi": np.array([0.5], "f4"),
        "MET_MetUnclustEnUpDeltaX": np.array([3.0], "f4"),
        "MET_MetUnclustEnUpDeltaY": np.array([-2.0], "f4"),
    }
    events = open_events(nano_file([emu()], extra=branches))
    config = configure(objects={"unclustered": {"object": "met", "kind": "unclustered"}})
    results = dict(variations(events, SelectionConfig(met="MET"), config))
    nominal, delta = vector(50, 0.5), np.array([3, -2])
    np.testing.assert_allclose(results["unclustered_up"].met, [nominal + delta], rtol=1e-6)
    np.testing.assert_allclose(results["unclustered_down"].met, [nominal - delta], rtol=1e-6)


def test_unclustered_energy_as_momenta(nano_file, emu):
    """The difference to the file's MET is what counts, also after a correction."""
    branches = {
        "PuppiMET_ptUnclusteredUp": np.array([65.0], "f4"),
        "PuppiMET_phiUnclusteredUp": np.array([1.1], "f4"),
        "PuppiMET_ptUnclusteredDown": np.array([58.0], "f4"),
        "PuppiMET_phiUnclusteredDown": np.array([0.9], "f4"),
    }
    events = open_events(nano_file([emu(Jet=JETS)], extra=branches))
    config = configure(
        objects={
            "jec": {"object": "jet", "kind": "factor", "flat": 1.1},
            "unclustered": {"object": "met", "kind": "unclustered"},
        }
    )
    results = found(events, config)
    correction = -vector(8, 1) - vector(6, -2)
    for name, expected in (
        ("nominal", (60, 1)),
        ("unclustered_up", (65, 1.1)),
        ("unclustered_down", (58, 0.9)),
    ):
        np.testing.assert_allclose(results[name].met, [vector(*expected) + correction], rtol=1e-6)


# ---- selection -------------------------------------------------------------------------------------------


def test_events_migrate_in_and_out(nano_file, emu):
    """A jet at 30 GeV, one just below, and a b tag that the others do not have."""
    out = emu(Jet=[JETS[0], {"pt": 30.2, "phi": -2.0}])
    into = emu(Jet=[JETS[0], {"pt": 29.8, "phi": -2.0}])
    events = open_events(nano_file([out, into, emu()]))
    config = configure(objects={"jes": {"object": "jet", "flat": 0.01}})
    selected = {
        name: select_objects(objects, SELECTION, dataset="x").index.tolist()
        for name, objects in variations(events, SELECTION, config)
    }
    assert selected == {"nominal": [0, 2], "jes_up": [0, 1, 2], "jes_down": [2]}


def test_positions_of_selected_objects(many):
    events = open_events(many)
    objects, selected = read_objects(events, SELECTION), select(events, SELECTION, dataset="x")
    chosen = selected.events
    assert len(chosen) > 30
    mask = chosen.jet_mask
    np.testing.assert_array_equal(objects.jets.p4(selected.jet_index[mask]), chosen.jets[mask])
    np.testing.assert_array_equal(selected.jet_index[~mask], -1)
    for leg, p4 in enumerate((chosen.lepton_plus, chosen.lepton_minus)):
        for flavour, leptons in ((11, objects.electrons), (13, objects.muons)):
            of_flavour = chosen.lepton_flavour[:, leg] == flavour
            index = selected.lepton_index[of_flavour, leg]
            np.testing.assert_array_equal(leptons.p4(index), p4[of_flavour])


# ---- weights ---------------------------------------------------------------------------------------------


def weights(events, **sources):
    config = configure(weights=sources)
    check_corrections(config)
    objects = read_objects(events, SELECTION)
    return event_weights(events, objects, select_objects(objects, SELECTION, dataset="x"), config)


@pytest.fixture
def two(nano_file, emu):
    """An event that fails and two that pass, with what generators and pile-up leave in NanoAOD."""
    branches = {
        "Pileup_nTrueInt": np.array([50.0, 20.0, 30.0], "f4"),
        "PSWeight": ak.Array([[9.0] * 4, [1.1, 1.2, 0.9, 0.8], [1.3, 1.4, 0.7, 0.6]]),
        "L1PreFiringWeight_Nom": np.array([9.0, 0.9, 0.8], "f4"),
        "L1PreFiringWeight_Up": np.array([9.0, 1.0, 0.85], "f4"),
    }
    jets = [{**JETS[0], "hadronFlavour": 5}, {**JETS[1], "hadronFlavour": 4}, {**JETS[2], "hadronFlavour": 0}]
    failing = emu(Electron=[], Jet=jets[:1])
    muons = emu(
        Electron=[],
        Muon=[{"pt": 50.0, "charge": 1}, {"pt": 30.0, "charge": -1, "phi": 0.5}],
        Jet=jets[::-1],
    )
    return open_events(nano_file([failing, emu(Jet=jets), muons], extra=branches))


def test_pile_up(two, payload):
    data = schema.Binning(
        nodetype="binning",
        input="NumTrueInteractions",
        edges=[0.0, 25.0, 99.0],
        content=[category("weights", nominal=1.2, up=1.5), category("weights", nominal=0.8, up=0.5)],
        flow="clamp",
    )
    file = payload(PU=({"NumTrueInteractions": "real", "weights": "string"}, data))
    inputs = {"NumTrueInteractions": "Pileup_nTrueInt", "weights": {"nominal": "nominal", "up": "up"}}
    factors = weights(two, pileup={"file": file, "correction": "PU", "inputs": inputs})
    assert list(factors) == ["nominal", "pileup_up"]
    np.testing.assert_allclose(factors["nominal"], [1.2, 0.8])
    np.testing.assert_allclose(factors["pileup_up"], [1.5, 0.5])


def test_b_tag_scale_factors_multiply_over_selected_jets(two, payload):
    """As the payloads of b-tag shapes are: c jets have uncertainties of their own."""
    flavours = {0: 0.5, 4: 0.9, 5: 1.1}

    def content(scale):
        items = [schema.CategoryItem(key=key, value=value * scale) for key, value in flavours.items()]
        return schema.Category(nodetype="category", input="flavor", content=items)

    data = category("systematic", central=content(1.0), up_hf=content(2.0), up_cferr1=content(3.0))
    inputs = {"systematic": "string", "flavor": "int", "abseta": "real", "pt": "real", "discriminant": "real"}
    common = {"object": "jet", "file": payload(Shape=(inputs, data)), "correction": "Shape"}
    given = {"flavor": "Jet_hadronFlavour", "discriminant": "btag"}

    def source(where, **choices):
        systematic = {"systematic": {"nominal": "central", **choices}}
        return {**common, "inputs": {**given, **systematic}, "where": {"Jet_hadronFlavour": where}}

    factors = weights(two, btag=source([0, 5], hf_up="up_hf"), btag_c=source([4], cferr1_up="up_cferr1"))
    # The light jet of 12 GeV is not selected.
    np.testing.assert_allclose(factors["nominal"], [0.99, 0.99])
    np.testing.assert_allclose(factors["btag_hf_up"], [2 * 0.99] * 2)
    np.testing.assert_allclose(factors["btag_c_cferr1_up"], [3 * 0.99] * 2)


def test_lepton_scale_factors_are_of_their_flavour(two, payload):
    values = formula("0.9+0.001*x", ["pt"])
    data = category("scale_factors", nominal=values, systup=formula("1+0*x", ["pt"]))
    file = payload(ID=({"abseta": "real", "pt": "real", "scale_factors": "string"}, data))
    choices = {"scale_factors": {"nominal": "nominal", "up": "systup"}}
    source = {"object": "muon", "file": file, "correction": "ID", "inputs": choices}
    factors = weights(two, muon=source)
    np.testing.assert_allclose(factors["nominal"], [0.93, 0.95 * 0.93])
    np.testing.assert_allclose(factors["muon_up"], [1, 1])


def test_weights_of_branches_and_flat_ones(two):
    factors = weights(
        two,
        ps={"branches": {"isr_up": "PSWeight[0]", "member": "PSWeight[2:4]"}},
        prefiring={"branches": {"nominal": "L1PreFiringWeight_Nom", "up": "L1PreFiringWeight_Up"}},
        lumi={"flat": 0.1},
        electron={"object": "electron", "flat": 0.2},
    )
    expected = {
        "nominal": [0.9, 0.8],
        "ps_isr_up": [1.1 * 0.9, 1.3 * 0.8],
        "ps_member2": [0.9 * 0.9, 0.7 * 0.8],
        "ps_member3": [0.8 * 0.9, 0.6 * 0.8],
        "prefiring_up": [1.0, 0.85],
        "lumi_up": [1.1 * 0.9, 1.1 * 0.8],
        "lumi_down": [0.9 * 0.9, 0.9 * 0.8],
        "electron_up": [1.2 * 0.9, 0.8],
        "electron_down": [0.8 * 0.9, 0.8],
    }
    assert factors.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(factors[name], values, rtol=1e-6, err_msg=name)


def test_generated_events_have_the_weights_of_the_generator_alone(nano_file, emu):
    branches = {
        "PSWeight": ak.Array([[1.1, 1.2], [1.3, 1.4]]),
        "LHEReweightingWeight": ak.Array([[0.5], [0.25]]),
        "L1PreFiringWeight_Nom": np.array([0.9, 0.8], "f4"),
    }
    # The first is not selected.
    both = [emu(Electron=[], Jet=JETS, genWeight=2.0), emu(Jet=JETS, genWeight=-2.0)]
    events = open_events(nano_file(both, extra=branches))
    config = configure(
        weights={
            "nnlo": {"branches": {"nominal": "LHEReweightingWeight[0]"}},
            "ps": {"branches": {"isr_up": "PSWeight[0]", "fsr_up": "PSWeight[1]"}},
            "prefiring": {"branches": {"nominal": "L1PreFiringWeight_Nom"}},
            "lumi": {"flat": 0.1},
        }
    )
    found = dict(generated_weights(events, SELECTION, config))
    assert list(found) == ["nominal", "ps_isr_up", "ps_fsr_up"]
    np.testing.assert_allclose(found["nominal"], [1.0, -0.5])
    np.testing.assert_allclose(found["ps_isr_up"], [1.1, -0.65], rtol=1e-6)
    np.testing.assert_allclose(found["ps_fsr_up"], [1.2, -0.7], rtol=1e-6)


def test_weights_follow_a_variation_of_the_objects(two, payload):
    file = payload(ID=({"pt": "real"}, formula("x", ["pt"])))
    config = configure(
        objects={"scale": {"object": "electron", "flat": 0.1}},
        weights={"electron": {"object": "electron", "file": file, "correction": "ID"}},
    )
    nominal = {}
    for name, objects in variations(two, SELECTION, config):
        selected = select_objects(objects, SELECTION, dataset="x")
        factors = event_weights(two, objects, selected, config, varied=False)
        assert list(factors) == ["nominal"]
        nominal[name] = factors["nominal"][0]
    assert nominal == pytest.approx({"nominal": 40, "scale_up": 44, "scale_down": 36})


def test_renamed_branches_reach_every_reader(nano_file, emu, payload):
    """Objects, their variations and both kinds of weights, from `NanoEvents` and from `Branches`."""
    scale = payload(SF=({"pt": "real"}, 0.5))
    config = configure(
        objects={"jes": {"object": "jet", "flat": 0.01}},
        weights={
            "lumi": {"flat": 0.025},
            "muon": {"object": "muon", "file": scale, "correction": "SF"},
            "ps": {"branches": {"nominal": "PSWeight[0]"}},
        },
    )
    both = [emu(Jet=JETS, genWeight=3.0), emu(Electron=[])]
    branch = ak.Array([[0.25], [0.5]])
    plain = nano_file(both, "plain.root", extra={"PSWeight": branch})
    renamed = nano_file(
        both,
        "renamed.root",
        drop=("genWeight",),
        extra={"PSWeightOwn": branch, "mcWeight": np.array([3.0, 1.0], "f4")},
    )
    own = SelectionConfig(branches={"genWeight": "mcWeight", "PSWeight": "PSWeightOwn"})
    for path, selection in ((plain, SELECTION), (renamed, own)):
        for events in (open_events(path), Branches(open_events(path), selection)):
            for name, objects in variations(events, selection, config):
                chosen = select_objects(objects, selection, dataset="x")
                factors = event_weights(events, objects, chosen, config, varied=name == NOMINAL)
                assert list(factors) == [NOMINAL, *(["lumi_up", "lumi_down"] if name == NOMINAL else [])]
                assert (chosen.events.weight * factors[NOMINAL]).tolist() == [3.0 * 0.5 * 0.25]
            assert dict(generated_weights(events, selection, config))[NOMINAL].tolist() == [0.75, 0.5]


def test_renamed_generator_weights_of_a_real_file(data, tmp_path, payload):
    """Case `renamed_genweight`."""
    with uproot.open(data / "nanoaodv9_TTTo2L2Nu_first500.root") as file:
        tree = file["Events"]
        names = [*needed_branches(SELECTION), *OPTIONAL_BRANCHES, "Jet_puIdDisc"]
        arrays = tree.arrays([name for name in names if name in tree], entry_stop=250)
    jagged = {name.partition("_")[0] for name in arrays.fields if arrays[name].ndim > 1}
    content = {name: arrays[name] for name in arrays.fields if arrays[name].ndim == 1}
    for collection in jagged:
        fields = [name for name in arrays.fields if name.startswith(f"{collection}_")]
        content[collection] = ak.zip({name.partition("_")[2]: arrays[name] for name in fields})
    config = configure(
        weights={
            "lumi": {"flat": 0.025},
            "mu": {"object": "muon", "file": payload(sf=({"pt": "real"}, 0.5)), "correction": "sf"},
        }
    )
    for weight, selection in (
        ("genWeight", SELECTION),
        ("mcWeight", SelectionConfig(branches={"genWeight": "mcWeight"})),
    ):
        path = tmp_path / f"{weight}.root"
        with uproot.recreate(path) as file:
            stored = {weight if name == "genWeight" else name: values for name, values in content.items()}
            file.mktree("Events", {name: ak.type(values).content for name, values in stored.items()})
            file["Events"].extend(stored)
        events = open_events(path)
        ((_, objects),) = variations(events, selection, config)
        chosen = select_objects(objects, selection, dataset="tt")
        factors = event_weights(events, objects, chosen, config)
        assert list(factors) == ["nominal", "lumi_up", "lumi_down"]
        assert (chosen.events.weight * factors["nominal"]).sum() == pytest.approx(908.7, abs=0.05)


# ---- data ------------------------------------------------------------------------------------------------


def test_data_have_their_corrections_and_no_variations(nano_file, emu):
    sources = {
        "mc": {"object": "jet", "kind": "factor", "flat": 1.1},
        "residual": {"object": "jet", "kind": "factor", "flat": 1.2, "applies_to": "data"},
        "both": {"object": "jet", "flat": 0.1, "applies_to": "both"},
    }
    config = configure(objects=sources, weights={"lumi": {"flat": 0.1}})
    for drop, factor, names in (
        ((), 1.1, ["nominal", "both_up", "both_down"]),
        (("genWeight",), 1.2, ["nominal"]),
    ):
        events = open_events(nano_file([emu()], drop=drop))
        results = found(events, config)
        assert list(results) == names
        np.testing.assert_allclose(results["nominal"].jets.pt, [80 * factor, 60 * factor], rtol=1e-6)
        selected = select_objects(results["nominal"], SELECTION, dataset="x")
        expected = ["nominal", "lumi_up", "lumi_down"] if len(names) > 1 else ["nominal"]
        assert list(event_weights(events, results["nominal"], selected, config)) == expected


# ---- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "nowhere.json"}, r"nowhere.json: no such file; a correctionlib payload"),
        ({"correction": "Totl"}, r"no correction 'Totl'; there are: Total"),
        ({"inputs": {"JetPt": "pt"}}, r"objects.jes.inputs: input 'JetEta' is not given; .*JetEta \(real\)"),
        (
            {"inputs": {"JetPt": "pt", "JetEta": "eta", "Rho": 1.0}},
            r"objects.jes.inputs: unknown input 'Rho'; .*takes JetEta \(real\), JetPt \(real\)",
        ),
    ],
    ids=["file", "correction", "missing input", "unknown input"],
)
def test_a_correction_that_does_not_exist(payload, changes, message):
    file = payload(Total=({"JetEta": "real", "JetPt": "real"}, 0.01))
    source = {
        "object": "jet",
        "file": file,
        "correction": "Total",
        "inputs": {"JetEta": "eta", "JetPt": "pt"},
    }
    with pytest.raises(CorrectionError, match=message):
        check_corrections(configure(objects={"jes": {**source, **changes}}))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_payload_on_which_the_parser_crashes(tmp_path, compressed):
    """Handed to correctionlib, it ends the process."""
    formula = {"nodetype": "formula", "expression": "x", "parser": "TFormula", "variables": [False]}
    real = {"name": "pt", "type": "real"}
    content = {
        "schema_version": 2,
        "corrections": [{"name": "Total", "version": 1, "inputs": [real], "output": real, "data": formula}],
    }
    text = json.dumps(content).encode()
    path = tmp_path / "crash.json.gz"
    path.write_bytes(gzip.compress(text) if compressed else text)
    source = {"object": "jet", "file": str(path), "correction": "Total"}
    with pytest.raises(CorrectionError, match="not a correctionlib payload") as error:
        check_corrections(configure(objects={"jes": source}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["text.json", "text.txt"])
def test_a_file_that_is_no_payload(tmp_path, name):
    (tmp_path / name).write_text("{}")
    source = {"object": "jet", "file": str(tmp_path / name), "correction": "Total"}
    with pytest.raises(CorrectionError, match=rf"{name}: not a correctionlib payload"):
        check_corrections(configure(objects={"jes": source}))


def evaluate(events, payload, data, **inputs):
    file = payload(Total=(dict.fromkeys(inputs, "real"), data))
    return found(
        events,
        configure(objects={"jes": {"object": "jet", "file": file, "correction": "Total", "inputs": inputs}}),
    )


def test_a_correction_that_gives_no_number(events, payload):
    with pytest.raises(
        CorrectionError,
        match=r"nano.root: .*'Total' gives 2 of 3 values NaN or infinite, first at JetPt = 60",
    ):
        evaluate(events, payload, formula("sqrt(x-70)", ["JetPt"]), JetPt="pt")


def test_a_correction_that_refuses_a_value(events, payload):
    data = schema.Binning(nodetype="binning", input="JetPt", edges=[15.0, 70.0], content=[1.0], flow="error")
    with pytest.raises(CorrectionError, match=r"nano.root: .*'Total' refuses JetPt = 80\.0: "):
        evaluate(events, payload, data, JetPt="pt")


def test_a_factor_that_is_not_positive(events, payload):
    with pytest.raises(CorrectionError, match=r"'Total' gives the factor -1 of a momentum"):
        evaluate(events, payload, 2.0, JetPt="pt")


def test_a_branch_that_does_not_exist(events, payload):
    with pytest.raises(InputError, match=r"branch 'abs_eta' is missing;.*a branch Jet_…, .* or pt or eta"):
        evaluate(events, payload, 0.1, JetEta="abs_eta")


def test_a_branch_of_other_objects(events, payload):
    with pytest.raises(
        InputError, match=r"branch 'Electron_pt' belongs to something else; an input of corrections of jets"
    ):
        evaluate(events, payload, 0.1, JetEta="Electron_pt")


def test_too_few_elements(two):
    with pytest.raises(InputError, match=r"'PSWeight' has 4 elements in an event, element 44 is requested"):
        weights(two, ps={"branches": {"up": "PSWeight[44]"}})
    with pytest.raises(InputError, match=r"'PSWeight' has several values per event; write PSWeight\[0\]"):
        weights(two, ps={"branches": {"up": "PSWeight"}})
    with pytest.raises(InputError, match=r"'genWeight' has one value per event; write genWeight"):
        weights(two, ps={"branches": {"up": "genWeight[0]"}})


JES = {"object": "jet", "flat": 0.01}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"objects": {"jes": {"object": "jet"}}}, "objects.jes: one of 'correction' and 'flat'"),
        (
            {"objects": {"jes": {**JES, "file": "a.json", "correction": "a"}}},
            "one of 'correction' and 'flat'",
        ),
        (
            {"objects": {"jes": {"object": "jet", "file": "a"}}},
            "a file needs the name of one of its corrections",
        ),
        ({"objects": {"jes": {"object": "jet", "correction": "a"}}}, "a correction needs the file"),
        ({"objects": {"met": {"object": "met", "flat": 1}}}, "kind 'unclustered' belongs to object 'met'"),
        ({"objects": {"jes": {**JES, "raw": True}}}, "'raw' belongs to object 'jet' and kind 'factor'"),
        (
            {"objects": {"jes": {**JES, "scale_factor": {"correction": "a"}}}},
            "'scale_factor' belongs to kind",
        ),
        (
            {"objects": {"jes": {**JES, "where": {"Jet_hadronFlavour": [5]}}}},
            "must not depend on the generator",
        ),
        (
            {"objects": {"a": JES, "b": {**JES, "kind": "factor", "raw": True}}},
            "it must be the first one of jets",
        ),
        ({"objects": {"jes": {**JES, "flot": 1}}}, r"unknown key 'objects.jes.flot'; did you mean 'flat'"),
        ({"objects": {"a": JES}, "weights": {"a": {"flat": 0.1}}}, "'a' found twice"),
        (
            {"weights": {"a": {"branches": {"b_up": "B"}}, "a_b": {"branches": {"up": "B"}}}},
            "'a_b_up' found twice",
        ),
        (
            {"objects": {"jes": {**JES, "where": {"pt": [[1]]}}}},
            r"where.*: a text or a number .*found \[1\]$",
        ),
        (
            {"objects": {"jes": {"object": "jet", "file": "a", "correction": "a", "inputs": {"x": [1]}}}},
            r"objects.jes.inputs.x: a text or a number expected, found \[1\]$",
        ),
        ({"weights": {"a": {}}}, "weights.a: exactly one of 'correction', 'branches' and 'flat'"),
        ({"weights": {"a": {"branches": {"up": "LHE[x]"}}}}, r"branch\[i\] or branch\[i:j\] expected"),
        ({"weights": {"a": {"flat": 0.1, "where": {"pt": [1]}}}}, "'where' chooses objects"),
        ({"weights": {"a": {"object": "jet", "branches": {"up": "B"}}}}, "the object must be 'event'"),
    ],
)
def test_configurations_that_make_no_sense(content, message):
    with pytest.raises(ConfigError, match=message):
        configure(**content)


def test_the_generator_does_not_reach_a_scale_factor_of_objects():
    inputs = {"JetPt": "GenJet_pt"}
    source = {"object": "jet", "kind": "smear", "file": "a.json", "correction": "a"}
    scale_factor = {"correction": "b", "inputs": inputs}
    for changes in ({"inputs": inputs}, {"scale_factor": scale_factor}):
        with pytest.raises(ConfigError, match="must not depend on the generator, as 'GenJet_pt' does"):
            configure(objects={"jer": {**source, **changes}})


def test_it_is_a_section_of_a_run():
    config = build_config(RunConfig, {"systematics": {"objects": {"jes": JES}}}, "run.yaml")
    assert config.systematics.variations == ("jes_up", "jes_down")
    assert RunConfig().systematics.variations == ()


def test_concatenated_variations_come_apart_again(many):
    """What the processor relies on: events are told apart by their position alone."""
    config = configure(objects={"jes": JES})
    parts = [
        select_objects(o, SELECTION, dataset="x").events
        for _, o in variations(open_events(many), SELECTION, config)
    ]
    joined = DileptonEvents.concatenate(parts)
    start = len(parts[0])
    np.testing.assert_array_equal(joined[start : start + len(parts[1])].jets, parts[1].jets)
