"""The converter of a user's own objects; with methods in tests/reconstruction/test_reconstruct.py."""

import awkward as ak
import numpy as np
import pytest

from topreco.config import ConfigError, SelectionConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, dataset_id
from topreco.input.nano import open_events
from topreco.input.objects import read_objects
from topreco.input.own import dilepton_events
from topreco.input.selection import select

OPEN = {"z_window": 0, "met_min": 0, "leading_pt_min": 0, "m_ll_min": 0}


def own_objects(nano, selected):
    """Objects of the selected events as a user may give them."""
    objects = read_objects(nano, SelectionConfig())

    def arrays(particles, names, **more):
        columns = {name: getattr(particles, name) for name in names}
        return ak.unflatten(ak.zip({**columns, **more}), particles.counts)[selected.index]

    lepton = ("pt", "eta", "phi", "charge")
    electrons = arrays(objects.electrons, lepton, pdgId=-11 * objects.electrons.charge)
    muons = arrays(objects.muons, lepton, pdgId=-13 * objects.muons.charge)
    met = objects.met[selected.index]
    return {
        "leptons": ak.concatenate([electrons, muons], axis=1),
        "jets": arrays(objects.jets, ("pt", "eta", "phi", "mass"), btagDeepFlavB=objects.jets.btag),
        "met": ak.zip({"pt": np.hypot(*met.T), "phi": np.arctan2(met[:, 1], met[:, 0])}),
        "run": objects.run[selected.index],
        "luminosityBlock": objects.luminosity_block[selected.index],
        "event": objects.event[selected.index],
    }


@pytest.fixture
def nano(nano_file, emu):
    """Three events, of which the second has two leptons of one charge."""
    jets = [{"pt": 60.0, "phi": -2.0}, {"pt": 80.0, "phi": 1.0, "btagDeepFlavB": 0.9}]
    return open_events(nano_file([emu(Jet=jets, event=5), emu(Muon=[{"pt": 30.0, "charge": 1}]), emu()]))


def test_own_objects_are_what_the_selection_gives(nano):
    selected = select(nano, SelectionConfig.model_validate(OPEN), dataset="tt")
    events, index = dilepton_events(own_objects(nano, selected), dataset="tt")
    assert selected.index.tolist() == [0, 2]
    assert index.tolist() == [0, 1]
    assert events.dataset[0] == dataset_id("tt")
    assert events.features is selected.events.features is None
    for name in set(DileptonEvents.__dataclass_fields__) - {"features"}:
        np.testing.assert_allclose(
            getattr(events, name), getattr(selected.events, name), rtol=1e-6, atol=1e-6, err_msg=name
        )


def test_positions_are_those_of_the_events_that_are_taken(nano):
    every = select(nano, SelectionConfig.model_validate(OPEN), dataset="tt")
    objects = own_objects(nano, every)
    objects["leptons"] = ak.concatenate([objects["leptons"][:1, :1], objects["leptons"][1:]])
    events, index = dilepton_events(objects)
    assert index.tolist() == [1]
    assert events.event.tolist() == [every.events.event[1]]


def test_the_key_may_be_left_out_on_request(nano):
    objects = own_objects(nano, select(nano, SelectionConfig(), dataset="tt"))
    del objects["run"]
    with pytest.raises(TopRecoError, match="'run' is missing"):
        dilepton_events(objects)
    assert dilepton_events(objects, needs_key=False)[0].event.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"leading_pt_min": 30.0},
            r"^selection\.leading_pt_min: would be ignored for your own objects; .*m_lb",
        ),
        (
            {"jet": {"pt_min": 25, "max_jets": 4}, "met_min": 0},
            r"^selection\.jet\.pt_min, selection\.met_min: ",
        ),
        ({"channels": ["ee"]}, r"^selection\.channels: would be ignored"),
    ],
)
def test_cuts_that_would_be_ignored_are_refused(nano, content, message):
    objects = own_objects(nano, select(nano, SelectionConfig(), dataset="tt"))
    with pytest.raises(ConfigError, match=message):
        dilepton_events(objects, SelectionConfig.model_validate(content))


def test_what_applies_is_used(nano):
    objects = own_objects(nano, select(nano, SelectionConfig(), dataset="tt"))
    content = {"jet": {"btag_threshold": 0.95, "max_jets": 3}, "m_lb_max": 100.0}
    events, _ = dilepton_events(objects, SelectionConfig.model_validate(content))
    assert events.jets.shape == (2, 3, 4)
    assert not events.jet_tagged.any()
    # The working point of an era.
    objects["jets"] = ak.with_field(objects["jets"], 0.29, "btagDeepFlavB")
    for era, tagged in (("UL2017", False), ("UL2018", True)):
        chosen = SelectionConfig.model_validate({"preset": "nano_v9", "era": era})
        assert dilepton_events(objects, chosen)[0].jet_tagged.any() == tagged


# ---- objects that are not there --------------------------------------------------------------------------


def padded_with_zeros(objects, good):
    padded = {field: ak.pad_none(objects[field][good], 5) for field in objects.fields}
    return ak.zip({field: ak.fill_none(column, 0.0) for field, column in padded.items()})


ABSENT = {
    "pad_none": lambda objects, good: ak.pad_none(objects[good], 5),
    "pad_none of one length": lambda objects, good: ak.pad_none(objects[good], 20, clip=True),
    "mask": ak.mask,
    "mask of each field": lambda objects, good: ak.zip(
        {f: ak.mask(objects[f], good) for f in objects.fields}
    ),
    "zeros": padded_with_zeros,
    "no pT": lambda objects, good: ak.with_field(objects, ak.where(good, objects.pt, 0.0), "pt"),
    "NaN": lambda objects, good: ak.zip({f: ak.where(good, objects[f], np.nan) for f in objects.fields}),
    "union": lambda objects, good: ak.mask(
        ak.concatenate([ak.with_name(objects, "A"), ak.with_name(objects, "B")], axis=1),
        ak.concatenate([good, ak.zeros_like(good)], axis=1),
    ),
    "lists that are None": lambda objects, good: ak.mask(ak.mask(objects, good), ak.any(good, axis=1)),
}


def assert_same(found, right):
    (events, index), (expected, expected_index) = found, right
    assert index.tolist() == expected_index.tolist()
    assert len(index)
    for name in DileptonEvents.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(events, name), getattr(expected, name), err_msg=name)


@pytest.fixture
def many(nano_file, emu, random_events):
    """Own objects of many events, of which all pass."""
    nano = open_events(nano_file(random_events))
    config = SelectionConfig.model_validate(OPEN | {"jet": {"min_btags": 0}})
    return own_objects(nano, select(nano, config, dataset="tt"))


@pytest.mark.parametrize("form", ABSENT)
@pytest.mark.parametrize("name", ["jets", "leptons"])
def test_an_object_that_is_none_is_not_there(many, name, form):
    good = many[name].pt > 45.0 if name == "jets" else abs(many[name].eta) < 2.2
    found = dilepton_events(many | {name: ABSENT[form](many[name], good)})
    assert_same(found, dilepton_events(many | {name: many[name][good]}))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip of firsts", "firsts"])
def test_firsts_are_leptons_or_none(many, zipped):
    leptons = many["leptons"]
    leptons = leptons[abs(leptons.eta) < 2.2]
    at_most_one = (ak.sum(leptons.charge > 0, axis=1) < 2) & (ak.sum(leptons.charge < 0, axis=1) < 2)
    many, leptons = {key: value[at_most_one] for key, value in many.items()}, leptons[at_most_one]
    pair = {}
    for name, own in (("lepton_plus", leptons.charge > 0), ("lepton_minus", leptons.charge < 0)):
        first = leptons[own]
        pair[name] = (
            ak.zip({field: ak.firsts(first[field]) for field in first.fields}) if zipped else ak.firsts(first)
        )
    rest = {key: value for key, value in many.items() if key != "leptons"}
    assert_same(dilepton_events(rest | pair), dilepton_events(many | {"leptons": leptons}))


def test_an_event_that_is_none_is_not_there(many):
    good = many["event"] % 2 == 0
    record = ak.zip({name: ak.Array(column) for name, column in many.items()}, depth_limit=1)
    events, index = dilepton_events(ak.mask(record, good))
    right, positions = dilepton_events(record[good])
    assert index.tolist() == np.flatnonzero(good)[positions].tolist()
    np.testing.assert_array_equal(events.jets, right.jets)
    np.testing.assert_array_equal(events.event, right.event)


def test_a_score_that_is_none_is_zero(many):
    jets = many["jets"]
    low = jets.btagDeepFlavB < 0.5
    none = ak.with_field(jets, ak.mask(jets.btagDeepFlavB, ~low), "btagDeepFlavB")
    zero = ak.with_field(jets, ak.where(low, 0.0, jets.btagDeepFlavB), "btagDeepFlavB")
    assert_same(dilepton_events(many | {"jets": none}), dilepton_events(many | {"jets": zero}))


def test_a_score_below_zero_is_zero(many):
    jets = many["jets"]
    low = jets.btagDeepFlavB < 0.5

    def scored(score):
        return many | {"jets": ak.with_field(jets, score, "btagDeepFlavB")}

    zero = dilepton_events(scored(ak.where(low, 0.0, jets.btagDeepFlavB)))
    for none in (-1.0, -3000.0, np.nan):
        assert_same(dilepton_events(scored(ak.where(low, none, jets.btagDeepFlavB))), zero)
        with pytest.raises(TopRecoError, match=r"^reconstruct: jets 'btagDeepFlavB': no b-tag score in any"):
            dilepton_events(scored(ak.full_like(jets.btagDeepFlavB, none)))


@pytest.mark.parametrize("needed", [True, False])
@pytest.mark.parametrize(
    ("name", "field", "message"),
    [
        ("jets", "mass", "jets 'mass' is missing, NaN or infinite in 1 of"),
        ("leptons", "phi", "leptons 'phi' is missing, NaN or infinite in 1 of"),
        ("leptons", "charge", "leptons 'charge' is missing"),
        ("leptons", "pdgId", "ℓ. 'pdgId' is missing"),
        ("met", "pt", "met 'pt' is missing, NaN or infinite in 1 of"),
        ("event", None, "'event' is missing in 1 of"),
    ],
)
def test_what_is_needed_and_missing_is_one_error(many, name, field, message, needed):
    column = many[name] if field is None else many[name][field]
    first = np.arange(len(many["event"])) == 0
    if name in ("jets", "leptons"):
        first = first & (ak.local_index(column, axis=1) == 0)
    missing = ak.mask(ak.Array(column), ~first)
    objects = many | {name: missing if field is None else ak.with_field(many[name], missing, field)}
    if needed:
        with pytest.raises(TopRecoError, match=message):
            dilepton_events(objects)
        return
    # Nothing is needed of an event without leptons.
    objects["leptons"] = ak.concatenate([objects["leptons"][:1, :0], objects["leptons"][1:]])
    assert 0 not in dilepton_events(objects)[1]
