"""Hybrid smearing, type-1 MET and sources of the jet energy scale, against hand calculations."""

import dataclasses

import awkward as ak
import correctionlib.schemav2 as schema
import numpy as np
import pytest
from coffea.nanoevents import NanoEventsFactory

from topreco.config import ConfigError, SelectionConfig, SystematicsConfig, build_config
from topreco.core.events import hashed_uniform
from topreco.input.jer import GENERATOR_BRANCHES
from topreco.input.nano import InputError, QuietNanoAODSchema, inspect_file, iterate_events, open_events
from topreco.input.objects import read_objects
from topreco.input.systematics import check_branches, check_corrections, variations

SELECTION = SelectionConfig()


def configure(**objects):
    return build_config(SystematicsConfig, {"objects": objects}, "test")


def found(events, config):
    return dict(variations(events, SELECTION, config))


def vector(pt, phi):
    return np.array([pt * np.cos(phi), pt * np.sin(phi)])


def formula(expression, *variables):
    return schema.Formula(
        nodetype="formula", expression=expression, parser="TFormula", variables=list(variables)
    )


@pytest.fixture
def jer(payload):
    """Resolution of 10 % at 100 GeV, and worse by 20 % in data, up to 30 %; down it is better in data."""
    items = [schema.CategoryItem(key=k, value=v) for k, v in {"nom": 1.2, "up": 1.3, "down": 0.9}.items()]
    ratio = schema.Category(nodetype="category", input="systematic", content=items)
    file = payload(
        Resolution=({"JetPt": "real"}, formula("1/sqrt(x)", "JetPt")),
        ScaleFactor=({"systematic": "string"}, ratio),
    )
    choices = {"nominal": "nom", "up": "up", "down": "down"}
    return {
        "object": "jet",
        "kind": "hybrid",
        "file": file,
        "correction": "Resolution",
        "inputs": {"JetPt": "pt"},
        "scale_factor": {"correction": "ScaleFactor", "inputs": {"systematic": choices}},
    }


# In each event: jets (pT, η, φ, genJetIdx), generated jets (pT, η, φ).
TEN_JETS = [
    (
        [(100, 0, 0, 0), (49, 1, 2, 1), (64, -1, -2, 2), (36, 2, 1, 3)],
        # In turn: 10 GeV too little, 7 GeV too much, ΔR = 0.25, ΔR = 0.19 by η and φ together.
        [(90, 0, 0), (56, 1, 2), (60, -1.15, -1.8), (40, 2.15, 0.8834)],
    ),
    (
        [(100, 0, 3.14, 0), (100, 1, 0, 1), (100, -1, 1, 2)],
        # In turn: across φ = ±π, 3.1 widths too little, 2.9 widths.
        [(95, 0, -3.1), (69, 1, 0), (71, -1, 1)],
    ),
    # In turn: no generated jet, one that is not stored, and a jet that is too soft for type-1.
    ([(81, 0, 0, -1), (25, 1, 1, 5), (12.25, 2, 2, 0)], [(10.25, 2, 2)]),
]
MATCHED = [True, True, False, True, True, False, True, False, False, True]


@pytest.fixture
def ten(nano_file, emu):
    """Path of three events with ten jets in all."""
    events = [
        emu(
            Jet=[
                {"pt": pt, "eta": eta, "phi": phi, "genJetIdx": index, "mass": 8.0}
                for pt, eta, phi, index in jets
            ],
            GenJet=[{"pt": pt, "eta": eta, "phi": phi} for pt, eta, phi in generated],
        )
        for jets, generated in TEN_JETS
    ]
    return nano_file(events)


def expected_factors(ratio):
    """Of the ten jets, jet by jet."""
    factors = []
    for event, (jets, generated) in enumerate(TEN_JETS):
        for number, (pt, _, _, index) in enumerate(jets):
            if MATCHED[len(factors)]:
                factors.append(1 + (ratio - 1) * (pt - generated[index][0]) / pt)
                continue
            # Seed, run and luminosity block are 1, then event, jet, and a stream for each of two numbers.
            u, v = (hashed_uniform(1, 1, 1, np.array([event]), number, stream)[0] for stream in (0, 1))
            normal = np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v)
            factors.append(1 + normal * np.sqrt(max(ratio**2 - 1, 0) / pt))
    return np.array(factors)


@pytest.mark.parametrize(("name", "ratio"), [("nominal", 1.2), ("jer_up", 1.3), ("jer_down", 0.9)])
def test_ten_jets_by_hand(ten, jer, name, ratio):
    config = configure(jer=jer)
    check_corrections(config)
    events = open_events(ten)
    objects = found(events, config)[name]
    pt = np.array([jet[0] for jets, _ in TEN_JETS for jet in jets], float)
    factors = expected_factors(ratio)
    np.testing.assert_allclose(objects.jets.pt, pt * factors, rtol=2e-6)
    np.testing.assert_allclose(objects.jets.mass, 8 * factors, rtol=2e-6)
    # The four matched jets whose numbers one can check in one's head.
    if name == "nominal":
        by_hand = [102.0, 47.6, 35.2, 101.0, 105.8, 12.65]
        np.testing.assert_allclose(objects.jets.pt[MATCHED], by_hand, rtol=2e-6)
    start = 0
    for (jets, _), met in zip(TEN_JETS, objects.met, strict=True):
        expected = vector(60, 1)
        for (before, _, phi, _), factor in zip(jets, factors[start:], strict=False):
            if before > 15:
                expected = expected - vector(before * (factor - 1), phi)
        np.testing.assert_allclose(met, expected, rtol=1e-5)
        start += len(jets)


def test_met_need_not_follow_the_smearing(ten, jer):
    objects = found(open_events(ten), configure(jer={**jer, "propagate_to_met": False}))["nominal"]
    np.testing.assert_allclose(objects.met, np.tile(vector(60, 1), (3, 1)), rtol=1e-6)
    np.testing.assert_allclose(objects.jets.pt[0], 102, rtol=1e-6)


def test_unmatched_jets_are_smeared_as_without_generated_ones(ten, jer):
    hybrid, smeared = (
        found(open_events(ten), configure(jer={**jer, "kind": kind}))["jer_up"].jets.pt
        for kind in ("hybrid", "smear")
    )
    np.testing.assert_array_equal(hybrid[np.logical_not(MATCHED)], smeared[np.logical_not(MATCHED)])
    assert (hybrid != smeared)[MATCHED].all()


@pytest.mark.parametrize(
    ("unsmeared", "left"),
    [
        # The second and seventh jets are within, too, but matched.
        ({"abseta": {"min": 1, "max": 2}}, [2, 5, 8]),
        ({"abseta": {"min": 1, "max": 2}, "pt": {"min": 50}}, [2, 5]),
    ],
)
@pytest.mark.parametrize(("name", "ratio"), [("nominal", 1.2), ("jer_up", 1.3)])
def test_jets_that_are_scaled_if_matched_and_else_stay(ten, jer, unsmeared, left, name, ratio):
    objects = found(open_events(ten), configure(jer={**jer, "unsmeared": unsmeared}))[name]
    pt = np.array([jet[0] for jets, _ in TEN_JETS for jet in jets], float)
    factors = expected_factors(ratio)
    factors[left] = 1
    np.testing.assert_allclose(objects.jets.pt, pt * factors, rtol=2e-6)
    assert objects.jets.pt[6] == pytest.approx(100 + (ratio - 1) * 29, rel=1e-6)
    # MET follows the fifth and seventh jet, and not the sixth, which stays.
    met = vector(60, 1) - vector((ratio - 1) * 5, 3.14) - vector((ratio - 1) * 29, 1)
    np.testing.assert_allclose(objects.met[1], met, rtol=1e-5)


def test_matching_sees_the_momenta_of_the_sources_before(ten, jer):
    config = configure(jes={"object": "jet", "flat": 0.02}, jer=jer)
    objects = found(open_events(ten), config)["jes_up"]
    # 102 GeV instead of 100: matched to 71 GeV no longer, 31 GeV being more than 3 · 102/√102.
    np.testing.assert_allclose(objects.jets.pt[0], 102 + 0.2 * (102 - 90), rtol=1e-6)
    normal = (expected_factors(1.2)[5] - 1) * 10 / np.sqrt(0.44)
    assert objects.jets.pt[5] == pytest.approx(102 * (1 + normal * np.sqrt(0.44 / 102)), rel=1e-6)


@pytest.fixture
def many(nano_file, random_events):
    """Path of two hundred events, with a generated jet near some of the jets."""
    rng = np.random.default_rng(3)
    for event in random_events:
        event["GenJet"] = []
        for jet in event["Jet"]:
            jet["genJetIdx"] = len(event["GenJet"]) if rng.random() < 0.8 else -1
            event["GenJet"].append(
                {
                    "pt": jet["pt"] * rng.normal(1, 0.15),
                    "eta": jet["eta"] + rng.normal(0, 0.1),
                    "phi": jet["phi"],
                }
            )
    return nano_file(random_events)


@pytest.mark.parametrize("step_size", [1, 7, 64])
def test_same_events_for_any_chunks(many, jer, step_size):
    config = configure(jer=jer)
    whole = found(open_events(many), config)
    parts = [found(chunk, config) for chunk in iterate_events(many, step_size=step_size)]
    for name, objects in whole.items():
        pt = np.concatenate([part[name].jets.pt for part in parts])
        np.testing.assert_array_equal(pt, objects.jets.pt)
        np.testing.assert_array_equal(np.concatenate([part[name].met for part in parts]), objects.met)


def test_a_real_file(data, jer):
    """The residual of matched jets grows by the scale factor, that of the others by random numbers."""
    path = data / "nanoaodv9_TTTo2L2Nu_first500.root"
    events = open_events(path)
    original, smeared = read_objects(events, SELECTION).jets, found(events, configure(jer=jer))["jer_up"].jets
    flat = ak.flatten(events.Jet.matched_gen.pt)
    stochastic = found(open_events(path), configure(jer={**jer, "kind": "smear"}))["jer_up"].jets.pt
    unmatched = smeared.pt == stochastic
    generated = ak.to_numpy(ak.fill_none(flat, np.nan))[~unmatched]
    residual = original.pt[~unmatched] - generated
    np.testing.assert_allclose(smeared.pt[~unmatched] - generated, 1.3 * residual, rtol=1e-5, atol=1e-4)
    # coffea takes a generated jet for every index: the rest fails the requirements on ΔR and pT.
    assert 0.5 < np.mean(~unmatched) < np.mean(~np.isnan(ak.to_numpy(ak.fill_none(flat, np.nan))))


# ---- the generator stays out -----------------------------------------------------------------------------


def objects_fields(objects):
    """All arrays of the objects, by name."""
    arrays = {}
    for name in ("electrons", "muons", "jets"):
        particles = getattr(objects, name)
        arrays |= {f"{name}.{f.name}": getattr(particles, f.name) for f in dataclasses.fields(particles)}
    for name in ("met", "run", "luminosity_block", "event", "weight", "met_filters"):
        arrays[name] = getattr(objects, name)
    return arrays


def changed_fields(a, b):
    first, second = objects_fields(a), objects_fields(b)
    assert first.keys() == second.keys()
    return {name for name in first if not np.array_equal(first[name], second[name])}


def test_only_smeared_momenta_leave(nano_file, random_events, many, jer):
    """Other generated jets change the momenta of jets and MET, to the last bit nothing else."""
    config = configure(jer=jer)
    with_jets = found(open_events(many), config)
    for event in random_events:
        for jet in event["GenJet"]:
            jet["pt"] *= 1.1
    others = found(open_events(nano_file(random_events, "others.root")), config)
    for name in ("nominal", "jer_up", "jer_down"):
        assert changed_fields(with_jets[name], others[name]) == {"jets.pt", "jets.mass", "met"}


def test_nothing_else_of_the_generator_is_read(nano_file, random_events, many, jer):
    log = []
    events = NanoEventsFactory.from_root(
        {str(many): "Events"}, schemaclass=QuietNanoAODSchema, access_log=log
    ).events()
    list(variations(events, SELECTION, SystematicsConfig()))
    without = {entry.branch for entry in log}
    list(variations(events, SELECTION, configure(jer=jer)))
    assert {entry.branch for entry in log} - without == {*GENERATOR_BRANCHES, "nGenJet"}
    drop = ("GenPart", "Generator_id1", "Generator_id2", "LHE_HT", "Jet_hadronFlavour", "Electron_genPartIdx")
    reduced = open_events(nano_file(random_events, "reduced.root", drop=drop))
    first, second = (found(events, configure(jer=jer))["jer_up"] for events in (events, reduced))
    assert changed_fields(first, second) == set()


def test_data_are_not_smeared_and_need_no_generated_jets(nano_file, random_events, jer):
    drop = ("genWeight", "GenJet", "GenPart", "Jet_genJetIdx")
    events = open_events(nano_file(random_events, "data.root", drop=drop))
    results = found(events, configure(jer=jer))
    assert list(results) == ["nominal"]
    assert changed_fields(results["nominal"], read_objects(events, SELECTION)) == set()


@pytest.mark.parametrize("branch", GENERATOR_BRANCHES)
def test_a_missing_branch_is_named_before_the_first_event(nano_file, emu, jer, branch):
    path = nano_file([emu()], drop=[branch])
    config = configure(jer=jer)
    with pytest.raises(
        InputError, match=rf"nano.root: branch '{branch}' is missing.*systematics.objects.jer"
    ):
        check_branches(config, SELECTION, inspect_file(path), str(path), "tt")
    with pytest.raises(InputError, match=rf"nano.root: branch '{branch}' is missing"):
        found(open_events(path), config)


# ---- type-1 MET from raw MET -----------------------------------------------------------------------------

JETS = [
    {"pt": 80.0, "phi": 1.0, "eta": 0.5},  # half of it a muon
    {"pt": 60.0, "phi": -2.0, "eta": -1.0},
    {"pt": 40.0, "phi": 0.5, "eta": 2.0},  # an electron
    {"pt": 16.0, "phi": 2.5, "eta": 0.0},  # too soft after correction
]


@pytest.fixture
def raw(nano_file, emu):
    """Path of an event with raw MET and soft jets; the raw jets have half of their momentum."""
    soft = {
        "rawPt": [9.0, 5.0, 9.0, 20.0],
        "eta": [0.0, 0.0, 0.0, 0.0],
        "phi": [0.1, 0.2, -1.5, 3.0],
        "area": [0.5, 0.5, 0.5, 0.5],
        "muonSubtrFactor": [0.0, 0.0, 0.0, 0.9],
        "EmEF": [0.2, 0.2, 0.95, 0.2],
    }
    branches = {
        "Jet_rawFactor": np.full(4, 0.5, "f4"),
        "Jet_area": np.array([0.5, 0.4, 0.5, 0.5], "f4"),
        "Jet_muonSubtrFactor": np.array([0.5, 0, 0, 0], "f4"),
        "Jet_chEmEF": np.array([0.1, 0.1, 0.5, 0.1], "f4"),
        "Jet_neEmEF": np.array([0.1, 0.1, 0.45, 0.1], "f4"),
        "Rho": np.array([10.0], "f4"),
        "RawMET_pt": np.array([70.0], "f4"),
        "RawMET_phi": np.array([0.3], "f4"),
    }

    def write(drop=()):
        kept = {name: ak.Array([values]) for name, values in soft.items() if name not in drop}
        extra = {"CorrT1METJet": ak.zip(kept)} if kept else {}
        return nano_file([emu(Jet=JETS)], extra=branches | extra, drop=["Rho"] if "Rho" in drop else ())

    return write


@pytest.fixture
def jec(payload):
    """Twice the raw momentum less 2 GeV per unit of area, of which L1 takes away 1 GeV per unit."""
    area = {"JetPt": "real", "JetA": "real", "Rho": "real"}
    file = payload(
        L1=(area, formula("1-0.1*y*z/x", "JetPt", "JetA", "Rho")),
        Full=(area, formula("2-0.2*y*z/x", "JetPt", "JetA", "Rho")),
    )
    inputs = {"JetPt": "pt", "JetA": "Jet_area", "Rho": "Rho"}
    return {
        "object": "jet",
        "kind": "factor",
        "raw": True,
        "file": file,
        "correction": "Full",
        "inputs": inputs,
        "type1": {"raw_met": "RawMET", "offset": {"correction": "L1", "inputs": inputs}},
    }


def test_type_1_from_raw_met(raw, jec):
    config = configure(jec=jec)
    check_corrections(config)
    path = raw()
    check_branches(config, SELECTION, inspect_file(path), str(path), "tt")
    objects = found(open_events(path), config)["nominal"]
    # Raw 40, 30, 20, 8 GeV; corrected 80 − 1, 60 − 0.8, 40 − 1, 16 − 1; after L1 alone 39.5, 29.6, 19.5, 7.5.
    np.testing.assert_allclose(objects.jets.pt, [79, 59.2, 39, 15], rtol=1e-6)
    met = vector(70, 0.3)
    met -= vector((79 - 39.5) / 2, 1.0)  # without its muon
    met -= vector(59.2 - 29.6, -2.0)
    # The electron does not count, nor does the jet of 15 GeV. Of the soft jets, 17, 9, 17 and 39 GeV, one
    # counts: the second is too soft, the third electromagnetic, the fourth has 3.9 GeV without its muon.
    met -= vector(17 - 8.5, 0.1)
    np.testing.assert_allclose(objects.met, [met], rtol=2e-6)


def test_type_1_of_jets_without_offset_and_soft_jets(raw, jec):
    """As for Puppi jets, in a file without the softer ones."""
    config = configure(jec={**jec, "type1": {"raw_met": "RawMET"}})
    path = raw(drop=("rawPt", "eta", "phi", "area", "muonSubtrFactor", "EmEF"))
    objects = found(open_events(path), config)["nominal"]
    met = vector(70, 0.3) - vector((79 - 40) / 2, 1.0) - vector(59.2 - 30, -2.0)
    np.testing.assert_allclose(objects.met, [met], rtol=2e-6)


def test_later_sources_change_the_new_met(raw, jec):
    config = configure(jec=jec, jes={"object": "jet", "flat": 0.1})
    results = found(open_events(raw()), config)
    change = vector(7.9 / 2, 1.0) + vector(5.92, -2.0)
    np.testing.assert_allclose(results["jes_up"].met, results["nominal"].met - change, rtol=2e-6)


def test_raw_met_that_is_missing(raw, jec):
    config = configure(jec={**jec, "type1": {"raw_met": "RawPFMET"}})
    path = raw()
    with pytest.raises(InputError, match=r"branch 'RawPFMET_phi' is missing.*systematics.objects.jec"):
        check_branches(config, SELECTION, inspect_file(path), str(path), "tt")


def test_type_1_of_a_real_file(data, payload):
    """With the file's own corrections and a rough offset, most of the way from raw MET to the file's."""
    area = {"JetPt": "real", "JetA": "real", "Rho": "real", "raw": "real"}
    file = payload(
        L1=(area, formula("max(1-0.5*y*z/x,0.001)", "JetPt", "JetA", "Rho")),
        Full=(area, formula("1/(1-x)", "raw")),
    )
    inputs = {"JetPt": "pt", "JetA": "Jet_area", "Rho": "fixedGridRhoFastjetAll", "raw": "Jet_rawFactor"}
    source = {"object": "jet", "kind": "factor", "raw": True, "file": file, "correction": "Full"}
    path = data / "nanoaodv9_TTTo2L2Nu_first500.root"
    # Without the softer jets, whose corrections are not in the file.
    names = {n for n in inspect_file(path).branches if not n.startswith(("CorrT1", "nCorrT1"))}
    chunks = iterate_events(path, branches=names)
    events = next(chunks)
    selection = SelectionConfig(met="MET")
    type1 = {"raw_met": "RawMET", "offset": {"correction": "L1", "inputs": inputs}}
    config = configure(jec=source | {"inputs": inputs, "type1": type1})
    met = dict(variations(events, selection, config))["nominal"].met
    stored = read_objects(events, selection).met
    unchanged = vector(*(ak.to_numpy(events.RawMET[name]) for name in ("pt", "phi"))).T
    distance, before = (np.hypot(*(each - stored).T).mean() for each in (met, unchanged))
    assert before == pytest.approx(12.35, abs=0.01)
    assert distance < 0.5 * before


# ---- sources of the jet energy scale ---------------------------------------------------------------------


@pytest.fixture
def scales(payload):
    file = payload(
        Sum19_MC_Regrouped_FlavorQCD_AK4PFchs=({}, 0.01),
        Sum19_MC_Regrouped_Absolute_AK4PFchs=({}, 0.02),
        Sum19_MC_Regrouped_Absolute_2018_AK4PFchs=({}, 0.03),
    )
    return {"object": "jet", "file": file, "correction": "Sum19_MC_Regrouped_{source}_AK4PFchs"}


def test_one_entry_for_all_sources(ten, scales):
    config = configure(jes={**scales, "sources": ["FlavorQCD", "Absolute", "Absolute_2018"]})
    check_corrections(config)
    results = found(open_events(ten), config)
    pt = results["nominal"].jets.pt[0]
    assert {name: objects.jets.pt[0] / pt - 1 for name, objects in results.items()} == pytest.approx(
        {
            "nominal": 0,
            "jes_FlavorQCD_up": 0.01,
            "jes_FlavorQCD_down": -0.01,
            "jes_Absolute_up": 0.02,
            "jes_Absolute_down": -0.02,
            "jes_Absolute_2018_up": 0.03,
            "jes_Absolute_2018_down": -0.03,
        },
        abs=1e-9,
    )


def test_names_of_ones_own_for_what_is_not_correlated(scales):
    config = configure(jes={**scales, "sources": {"FlavorQCD": "FlavorQCD", "Stat_2018": "Absolute"}})
    assert config.variations == (
        "jes_FlavorQCD_up",
        "jes_FlavorQCD_down",
        "jes_Stat_2018_up",
        "jes_Stat_2018_down",
    )
    assert config.objects["jes_Stat_2018"].correction == "Sum19_MC_Regrouped_Absolute_AK4PFchs"
    # What `topreco config run` prints can be read again.
    assert build_config(SystematicsConfig, config.model_dump(mode="json"), "test") == config


# ---- errors ----------------------------------------------------------------------------------------------

HYBRID = {
    "object": "jet",
    "kind": "hybrid",
    "file": "a.json",
    "correction": "a",
    "scale_factor": {"correction": "b"},
}
RAW = {"object": "jet", "kind": "factor", "flat": 1.0, "raw": True}
TYPE1 = {**RAW, "type1": {"raw_met": "RawMET"}}
SOURCES = {"object": "jet", "file": "f", "correction": "{source}", "sources": ["A"]}


def with_offset(**offset):
    return {"jec": {**RAW, "type1": {"raw_met": "RawMET", "offset": {"correction": "a", **offset}}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"jer": {**HYBRID, "scale_factor": None}}, "kind 'hybrid' .* needs a 'scale_factor'"),
        (
            {"jer": {**HYBRID, "kind": "smear", "unsmeared": {"eta": [1]}}},
            "'unsmeared' belongs to kind 'hybrid'",
        ),
        ({"jer": {**HYBRID, "unsmeared": {"Jet_genJetIdx": [1]}}}, "must not depend on the generator"),
        ({"jer": {**HYBRID, "object": "muon"}}, "kind 'hybrid' is for object 'jet'"),
        ({"jer": {**HYBRID, "applies_to": "both"}}, "needs generated jets, which 'both' does not have"),
        ({"jec": {**TYPE1, "raw": False}}, "'type1' belongs to 'raw'"),
        ({"jec": {**TYPE1, "propagate_to_met": False}}, "'type1' belongs to 'raw', and not to"),
        (with_offset(), "'type1.offset' needs the file"),
        (with_offset(file="a", inputs={"x": {"up": 1}}), "the correction for pile-up has no variations"),
        (
            with_offset(file="a", inputs={"x": "GenJet_pt"}),
            "must not depend on the generator, as 'GenJet_pt'",
        ),
        ({"ele": {"object": "electron", "flat": 0.1}, "jec": TYPE1}, "so it must be the first of all"),
        ({"jes": {**SOURCES, "correction": "A"}}, r"objects.jes.correction: .*\{source\} in it .*found 'A'"),
        ({"jes": {**SOURCES, "sources": "A"}}, "jes.sources: a list of texts"),
        ({"jes": {**SOURCES, "sources": ["A", "A"]}}, "jes.sources: a list of texts"),
        ({"jes": {**SOURCES, "sources": [1]}}, "jes.sources: a list of texts"),
        (
            {"jes_A": {"object": "jet", "flat": 0.1}, "jes": SOURCES},
            "jes.sources: there is a source 'jes_A' already",
        ),
    ],
)
def test_configurations_that_make_no_sense(content, message):
    with pytest.raises(ConfigError, match=message) as error:
        configure(**content)
    assert "\n" not in str(error.value)


def test_no_input_of_a_smearing_is_of_the_generator():
    with pytest.raises(ConfigError, match="must not depend on the generator, as 'Jet_genJetIdx' does"):
        configure(jer={**HYBRID, "inputs": {"x": "Jet_genJetIdx"}})
