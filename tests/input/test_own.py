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
    for name in DileptonEvents.__dataclass_fields__:
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
