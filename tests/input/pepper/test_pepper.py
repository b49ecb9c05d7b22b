"""pepper's event files: hand-made ones in both forms, written without the package, and the samples."""

import json
import re
import sys
import tracemalloc
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from coffea import processor

from topreco.cli import main
from topreco.config import PepperWriteConfig, RunConfig, SelectionConfig, TrainConfig, build_config
from topreco.core.constants import M_ELECTRON, M_MUON
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, TopPair, Truth
from topreco.core.fourvector import delta_r, eta, from_pt_eta_phi_mass, mass, phi, pt
from topreco.core.skim import Skim
from topreco.input.branches import Branches
from topreco.input.cutflow import Cutflow
from topreco.input.nano import InputError, open_events
from topreco.input.pepper.read import (
    PepperSchema,
    collections,
    inspect_pepper,
    is_pepper,
    iterate_pepper,
    pepper_format,
)
from topreco.input.pepper.select import select_pepper
from topreco.input.pepper.write import copy_paths, write_all, write_tops
from topreco.input.selection import select
from topreco.input.skimming import make_skim
from topreco.input.truth import has_truth, read_truth
from topreco.runs.processor import DileptonProcessor
from topreco.runs.run import run

h5py = pytest.importorskip("h5py")
hdf5plugin = pytest.importorskip("hdf5plugin")

FORMS = ("h5", "root")
COORDINATES = ("pt", "eta", "phi", "mass")

# ---- hand-made files -------------------------------------------------------------------------------------

# As awkward 1 writes it: a class per offset type, contents by name, identities. {} takes the form key.
LEAF = {
    "u4": '{"class":"NumpyArray","inner_shape":[],"itemsize":4,"format":"I","primitive":"uint32",'
    '"has_identities":false,"parameters":{},"form_key":"node%d"}',
    "u8": '{"class":"NumpyArray","inner_shape":[],"itemsize":8,"format":"L","primitive":"uint64",'
    '"has_identities":false,"parameters":{},"form_key":"node%d"}',
    "i4": '{"class":"NumpyArray","inner_shape":[],"itemsize":4,"format":"i","primitive":"int32",'
    '"has_identities":false,"parameters":{},"form_key":"node%d"}',
    "f4": '{"class":"NumpyArray","inner_shape":[],"itemsize":4,"format":"f","primitive":"float32",'
    '"has_identities":false,"parameters":{},"form_key":"node%d"}',
    "f8": '{"class":"NumpyArray","inner_shape":[],"itemsize":8,"format":"d","primitive":"float64",'
    '"has_identities":false,"parameters":{},"form_key":"node%d"}',
    "?": '{"class":"NumpyArray","inner_shape":[],"itemsize":1,"format":"?","primitive":"bool",'
    '"has_identities":false,"parameters":{},"form_key":"node%d"}',
}
END = '"has_identities":false,"parameters":{},"form_key":"node%d"}'
RECORD = '{"class":"RecordArray","contents":{%s},' + END
LIST = '{"class":"ListOffsetArray64","offsets":"i64","content":%s,' + END
SPARSE_LIST = '{"class":"ListArray64","starts":"i64","stops":"i64","content":%s,' + END
OPTION = '{"class":"IndexedOptionArray64","index":"i64","content":%s,' + END
MIXED = (
    '{"class":"UnionArray8_64","tags":"i8","index":"i64","contents":['
    + LEAF["f8"] % 901
    + ","
    + LEAF["i4"] % 902
    + "],"
    + END % 900
)

LEPTON = {"pt": "f4", "eta": "f4", "phi": "f4", "mass": "f4", "pdgId": "i4"}
JET = {"pt": "f4", "eta": "f4", "phi": "f4", "mass": "f4", "btagDeepFlavB": "f4", "btagged": "?"}
TOP = dict.fromkeys(COORDINATES, "f8")
GENERATED = dict.fromkeys(COORDINATES, "f4")
FLAGS = ("OppositeSign", "HasJets", "Reco")


def particle(transverse, eta=0.1, phi=0.2, mass=0.0, **more):
    return {"pt": transverse, "eta": eta, "phi": phi, "mass": mass, **more}


def make_event(number, **changes):
    """An event that passes all cuts, with ℓ⁺ behind ℓ⁻ and jets out of order."""
    event = {
        "run": 1,
        "luminosityBlock": 7,
        "event": 2**40 + number,
        "Lepton": [
            particle(60.0, 0.5, 1.0, 0.105, pdgId=13),
            particle(30.0 + number, -0.5, 2.0, -0.01, pdgId=-11),
        ],
        "Jet": [
            particle(40.0, 1.0, -1.0, 5.0, btagDeepFlavB=0.9, btagged=False),
            particle(90.0 + number, -1.0, 3.0, 9.0, btagDeepFlavB=0.2, btagged=True),
        ],
        "MET": {"pt": 50.0, "phi": 0.3},
        "recot": [particle(100.0 + number, 0.1, 0.1, 172.5), particle(90.0, -0.1, -3.0, 172.5)],
        "gent_lc": [particle(110.0 + number, 0.2, 0.1, 172.0), particle(95.0, -0.2, -3.0, 173.0)],
        "cutflags": dict.fromkeys(FLAGS, 1.0),
        "weight": -1.5 if number % 3 == 0 else 2.0,
    }
    return event | changes


def few_events():
    """Passing events, events that fail each cut, and oddities; 0, 5 and 7 pass all cuts."""
    return [
        make_event(0),
        make_event(1, cutflags={"OppositeSign": 1.0, "HasJets": 0.0, "Reco": 0.0}, recot=None, Jet=[]),
        make_event(2, cutflags={"OppositeSign": 1.0, "HasJets": 1.0, "Reco": 0.0}, recot=[]),
        make_event(3, cutflags={"OppositeSign": 0.0, "HasJets": 0.0, "Reco": 0.0}, recot=None),
        make_event(4, Lepton=[particle(50.0, pdgId=11), particle(40.0, pdgId=13)]),
        make_event(5, gent_lc=[particle(100.0, mass=172.0)]),
        make_event(6, Lepton=[particle(30.0, pdgId=code) for code in (11, -11, 13)]),
        make_event(7, gent_lc=[], Jet=[particle(200.0 - i, 1.0, 0.3 * i, 5.0, btagDeepFlavB=0.5, btagged=True)
                                       for i in range(14)]),
    ]  # fmt: skip


PASSING = [0, 5, 7]


class Hdf5Group:
    """Writes the buffers of one group one after the other, as awkward 1 names them."""

    def __init__(self, file, name, length):
        self.group = file.create_group(name)
        self.group.attrs["length"] = json.dumps(length)
        self.group.attrs["parameters"] = "{}"
        self.group.attrs["convertto"] = "None"
        self.length = length
        self.number = 0

    def key(self):
        self.number += 1
        return self.number - 1

    def put(self, key, attribute, values):
        compression = hdf5plugin.Blosc() if len(values) else None
        self.group.create_dataset(f"part0-node{key}-{attribute}", data=values, compression=compression)

    def leaf(self, values, kind):
        key = self.key()
        self.put(key, "data", np.asarray(values, dtype=kind))
        return LEAF[kind] % key

    def record(self, objects, fields, key):
        parts = [f'"{name}":{self.leaf([o[name] for o in objects], kind)}' for name, kind in fields.items()]
        return RECORD % (",".join(parts), key)

    def lists(self, lists, fields):
        key, inner = self.key(), self.key()
        self.put(key, "offsets", np.cumsum([0, *map(len, lists)]))
        return LIST % (self.record([o for each in lists for o in each], fields, inner), key)

    def sparse_lists(self, lists, fields):
        """Lists in reverse order behind an object that belongs to none; empty ones point beyond the end."""
        key, inner = self.key(), self.key()
        objects = [particle(1.0)]
        starts, stops = [], []
        for each in reversed(lists):
            starts.append(len(objects) if each else 999)
            stops.append(starts[-1] + len(each))
            objects += each
        self.put(key, "starts", np.array(starts[::-1], dtype="i8"))
        self.put(key, "stops", np.array(stops[::-1], dtype="i8"))
        return SPARSE_LIST % (self.record(objects, fields, inner), key)

    def optional_lists(self, lists, fields):
        key = self.key()
        present = [each is not None for each in lists]
        self.put(key, "index", np.where(present, np.cumsum(present) - 1, -1))
        return OPTION % (self.lists([each for each in lists if each is not None], fields), key)

    def finish(self, form):
        self.group.attrs["form"] = form


def write_hdf5(path, events, *, drop=(), weights="weight", optional=()):
    """HDF5 as pepper writes it; `optional` names collections that are None where an event has None."""
    n = len(events)
    with h5py.File(path, "w") as file:
        file.attrs["version"] = 1
        group = Hdf5Group(file, "events", n)
        root = group.key()
        columns = {}
        for name, kind in (("run", "u4"), ("luminosityBlock", "u4"), ("event", "u8")):
            if name not in drop:
                columns[name] = group.leaf([e[name] for e in events], kind)
        for name, fields in (("Lepton", LEPTON), ("Jet", JET)):
            kept = {f: kind for f, kind in fields.items() if f"{name}_{f}" not in drop}
            write = group.optional_lists if name in optional else group.lists
            columns[name] = write([e[name] for e in events], kept)
        if "MET" in optional:
            key, inner = group.key(), group.key()
            present = [e["MET"] is not None for e in events]
            group.put(key, "index", np.where(present, np.cumsum(present) - 1, -1))
            met = [e["MET"] for e in events if e["MET"] is not None]
            columns["MET"] = OPTION % (group.record(met, {"pt": "f4", "phi": "f4"}, inner), key)
        else:
            columns["MET"] = group.record([e["MET"] for e in events], {"pt": "f4", "phi": "f4"}, group.key())
        columns["recot"] = group.optional_lists([e["recot"] for e in events], TOP)
        if "gent_lc" not in drop:
            columns["gent_lc"] = group.sparse_lists([e["gent_lc"] for e in events], GENERATED)
        columns["mixed"] = MIXED  # a union, none of whose buffers are there
        group.finish(RECORD % (",".join(f'"{name}":{form}' for name, form in columns.items()), root))
        group = Hdf5Group(file, "cutflags", n)
        root = group.key()
        group.finish(group.record([e["cutflags"] for e in events], dict.fromkeys(FLAGS, "f8"), root))
        values = [e["weight"] for e in events]
        if weights == "weight":
            group = Hdf5Group(file, "weight", n)
            group.finish(group.leaf(values, "f8"))
        elif weights == "systematics":
            group = Hdf5Group(file, "systematics", n)
            root = group.key()
            rows = [{"weight": value, "lumi_up": 1.1} for value in values]
            group.finish(group.record(rows, {"weight": "f8", "lumi_up": "f8"}, root))
    return path


def write_root(path, events, *, drop=(), weights="weight", optional=()):
    """The same columns in a tree, with a mask for what may be None."""

    def jagged(name, fields):
        lists = [e[name] or [] for e in events]
        counts = np.array([len(each) for each in lists], dtype=np.int64)
        objects = [o for each in lists for o in each]
        return ak.zip(
            {
                f: ak.unflatten(np.array([o[f] for o in objects], dtype=kind), counts)
                for f, kind in fields.items()
                if f"{name}_{f}" not in drop
            }
        )

    columns = {}
    for name, kind in (("run", "u4"), ("luminosityBlock", "u4"), ("event", "u8")):
        columns[name] = np.array([e[name] for e in events], dtype=kind)
    columns |= {"Lepton": jagged("Lepton", LEPTON), "Jet": jagged("Jet", JET)}
    for field in ("pt", "phi"):
        columns[f"MET_{field}"] = np.array([e["MET"][field] for e in events], dtype="f4")
    columns["maskrecot"] = np.array([e["recot"] is not None for e in events], dtype=bool)
    columns |= {"recot": jagged("recot", TOP), "recot_betchart": jagged("recot", TOP)}
    columns["gent_lc"] = jagged("gent_lc", GENERATED)
    columns["chel"] = np.zeros(len(events))
    for flag in FLAGS:
        columns[f"cutflags_{flag}"] = np.array([e["cutflags"][flag] for e in events])
    if weights is not None:
        name = {"weight": "weight", "systematics": "systematics_weight"}[weights]
        columns[name] = np.array([e["weight"] for e in events])
    columns = {name: values for name, values in columns.items() if name not in drop}
    with uproot.recreate(path) as file:
        file["dsname"] = "TTTo2L2Nu"
        file["pileup"] = np.histogram([1.0, 2.0, 2.5])
        types = {name: v.type.content if isinstance(v, ak.Array) else v.dtype for name, v in columns.items()}
        file.mktree("Events", types).extend(columns)
        file.mktree("Categories/channel", {"is_ee": "?"}).extend({"is_ee": np.zeros(len(events), bool)})
    return path


@pytest.fixture
def write(tmp_path):
    """Function that writes events in a form and gives the path."""

    def make(form, events, name="events", **options):
        path = tmp_path / f"{name}.{form}"
        return (write_hdf5 if form == "h5" else write_root)(path, events, **options)

    return make


def selection(**changes):
    return build_config(SelectionConfig, changes, "test")


ALL_CUTS = selection()


def read(path, config=ALL_CUTS, *, step_size=1000, dataset="tt"):
    """Selected events, their truth and the cutflow of a whole file."""
    events, truth, cutflow, index = [], [], Cutflow(), []
    start = 0
    for chunk in iterate_pepper(path, step_size=step_size):
        selected = select_pepper(chunk, config, dataset=dataset)
        events.append(selected.events)
        cutflow += selected.cutflow
        index.append(selected.index + start)
        start += len(chunk)
        if has_truth(chunk):
            truth.append(read_truth(chunk[selected.index]))
    return (
        DileptonEvents.concatenate(events),
        Truth.concatenate(truth) if truth else None,
        cutflow,
        np.concatenate(index),
    )


def whole(path):
    """All events of a file in memory; what the iterator gives is usable only until it moves on."""
    return ak.concatenate([ak.materialize(chunk) for chunk in iterate_pepper(path)])


def assert_same(a, b):
    for name in type(a).__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


# ---- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_fields(write, form):
    path = write(form, few_events())
    assert pepper_format(path) == {"h5": "hdf5", "root": "root"}[form]
    assert inspect_pepper(path, ALL_CUTS).n_entries == 8
    events, _, cutflow, index = read(path)
    assert index.tolist() == PASSING
    assert events.event.tolist() == [2**40 + i for i in PASSING]
    assert set(events.run) == {1}
    assert set(events.luminosity_block) == {7}
    # ℓ⁺ comes second in the file.
    assert events.lepton_flavour.tolist() == [[11, 13]] * 3
    np.testing.assert_allclose(
        events.lepton_plus[0], from_pt_eta_phi_mass(*map(np.float64, (30.0, -0.5, 2.0, M_ELECTRON)))
    )
    np.testing.assert_allclose(
        events.lepton_minus[0], from_pt_eta_phi_mass(*map(np.float64, (60.0, 0.5, 1.0, M_MUON)))
    )
    np.testing.assert_allclose(pt(events.jets)[0, :3], [90.0, 40.0, 0.0])
    np.testing.assert_allclose(mass(events.jets)[0, :2], [9.0, 5.0], rtol=1e-6)
    assert events.jet_mask[0].tolist() == [True] * 2 + [False] * 10
    np.testing.assert_allclose(events.jet_btag[0, :3], [0.2, 0.9, 0.0], rtol=1e-6)
    # pepper's word, not the score.
    assert events.jet_tagged[0, :3].tolist() == [True, False, False]
    assert sorted(events.b_candidates[0]) == [0, 1]
    np.testing.assert_allclose(pt(events.jets)[2], np.arange(200, 188, -1))
    np.testing.assert_allclose(events.met[0], [50 * np.cos(0.3), 50 * np.sin(0.3)], rtol=1e-6)
    assert events.weight.tolist() == [-1.5, 2.0, 2.0]
    counts = {name: cutflow[name].n for name in cutflow.steps}
    steps = ("all", *FLAGS, "two leptons of opposite charge")
    assert counts == dict(zip(steps, (8, 7, 6, 5, 3), strict=True))
    assert cutflow["Reco"].sumw == sum(make_event(i)["weight"] for i in (0, 4, 5, 6, 7))


def test_both_forms_are_the_same_events(write):
    (ours, our_truth, our_cuts, _), (theirs, their_truth, their_cuts, _) = (
        read(write(form, few_events())) for form in FORMS
    )
    assert_same(ours, theirs)
    assert_same(our_truth, their_truth)
    assert our_cuts == their_cuts


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step_size", [1, 3, 7])
def test_chunks_change_nothing(write, form, step_size):
    path = write(form, few_events())
    whole, parts = read(path), read(path, step_size=step_size)
    for i in (0, 1):
        assert_same(whole[i], parts[i])
    assert whole[2] == parts[2]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("cut", "passing"), [("OppositeSign", [0, 1, 2, 5, 7]), ("HasJets", [0, 2, 5, 7]), ("Reco", PASSING)]
)
def test_a_cut_by_name(write, form, cut, passing):
    path = write(form, few_events())
    *_, cutflow, index = read(path, selection(pepper={"cut": cut}))
    assert index.tolist() == passing
    assert list(cutflow.steps)[-2] == cut


@pytest.mark.parametrize("form", FORMS)
def test_unknown_cut(write, form):
    path, config = write(form, few_events()), selection(pepper={"cut": "HasBtags"})
    message = r"events\.\w+: no cut 'HasBtags' \(selection key 'pepper.cut'\) among pepper's flags .*Reco"
    with pytest.raises(InputError, match=message):
        inspect_pepper(path, config)
    with pytest.raises(InputError, match=message):
        read(path, config)


@pytest.mark.parametrize("form", FORMS)
def test_threshold_where_pepper_does_not_say_what_is_tagged(write, form):
    path = write(form, [make_event(0)], drop=["Jet_btagged"])
    assert read(path)[0].jet_tagged[0, :2].tolist() == [False, True]
    low = selection(jet={"btag_threshold": 0.1})
    assert read(path, low)[0].jet_tagged[0, :2].tolist() == [True, True]


@pytest.mark.parametrize("form", FORMS)
def test_options_of_the_selection(write, form):
    path = write(form, few_events())
    *_, cutflow, index = read(path, selection(channels=["ee"]))
    assert index.tolist() == []
    assert cutflow["channel"].n == 0
    assert read(path, selection(jet={"max_jets": 3}))[0].jets.shape == (3, 3, 4)


@pytest.mark.parametrize("form", FORMS)
def test_cuts_that_would_be_ignored_are_refused(write, form, tmp_path):
    path = write(form, few_events())
    cuts = selection(met_min=30, jet={"pt_min": 25, "max_jets": 4}, m_lb_max=150)
    message = r"^selection\.jet\.pt_min, selection\.met_min: would be ignored for .*pepper"
    for use in (
        lambda: inspect_pepper(path, cuts),
        lambda: select_pepper(next(iterate_pepper(path)), cuts, dataset="tt"),
        lambda: make_skim([path], tmp_path / "skim.parquet", cuts, progress=False),
    ):
        with pytest.raises(TopRecoError, match=message):
            use()
    if form == "root":
        config = build_config(
            RunConfig,
            {"fileset": {"tt": [str(path)]}, "methods": ["loose"], "selection": cuts.model_dump()},
            "test",
        )
        with pytest.raises(TopRecoError, match=message):
            run(config, progress=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "expected"), [("systematics", [-1.5, 2.0, 2.0]), (None, [1.0, 1.0, 1.0])])
def test_weights_among_the_variations_or_none(write, form, kind, expected):
    assert read(write(form, few_events(), weights=kind))[0].weight.tolist() == expected


@pytest.mark.parametrize("form", FORMS)
def test_truth(write, form):
    truth = read(write(form, few_events()))[1]
    assert truth.valid.tolist() == [True, False, False]
    np.testing.assert_allclose(pt(truth.tops[0]), [110.0, 95.0], rtol=1e-6)
    np.testing.assert_allclose(mass(truth.tops[0]), [172.0, 173.0], rtol=1e-5)
    assert np.isnan(truth.tops[1:]).all()
    assert np.isnan(truth.lepton).all()
    assert not truth.dileptonic.any()


@pytest.mark.parametrize("form", FORMS)
def test_selection_is_blind_to_truth(write, form):
    with_truth, without = (
        read(write(form, few_events(), name=name, drop=drop))
        for name, drop in (("simulation", ()), ("data", ("gent_lc",)))
    )
    assert without[1] is None
    assert_same(with_truth[0], without[0])
    chunk = whole(write(form, few_events(), drop=("gent_lc",)))
    with pytest.raises(InputError, match="no truth in these events: branch 'gent_lc_pt' is missing"):
        read_truth(chunk)


@pytest.mark.parametrize("form", FORMS)
def test_no_events(write, form):
    path = write(form, [make_event(3, cutflags=dict.fromkeys(FLAGS, 0.0), recot=None)])
    assert len(read(path)[0]) == 0


@pytest.mark.parametrize("step_size", [1, 3, 100])
def test_columns_that_are_not_used_are_there_too(write, step_size):
    """What was written, lists in any order and None included; a union is left out."""
    events = few_events()
    chunks = [ak.materialize(chunk) for chunk in iterate_pepper(write("h5", events), step_size=step_size)]
    assert "mixed" not in chunks[0].fields
    tops = [each for chunk in chunks for each in chunk.recot.to_list()]
    assert tops == [e["recot"] for e in events]
    generated = [each for chunk in chunks for each in chunk.gent_lc.pt.to_list()]
    np.testing.assert_allclose(
        np.concatenate(generated), [o["pt"] for e in events for o in e["gent_lc"]], rtol=1e-6
    )


def test_awkward_2_buffers(tmp_path):
    """Files of a pepper with awkward 2: another form and other names of buffers."""
    source = write_hdf5(tmp_path / "old.h5", few_events())
    target = tmp_path / "new.h5"
    chunk = whole(source)
    columns = {name: ak.Array(chunk.layout[name]) for name in chunk.fields}
    groups = {name: columns.pop(name) for name in ("cutflags", "weight")} | {
        "events": ak.zip(columns, depth_limit=1)
    }
    with h5py.File(target, "w") as file:
        file.attrs["version"] = 1
        for name, array in groups.items():
            form, length, buffers = ak.to_buffers(ak.materialize(array))
            group = file.create_group(name)
            group.attrs["form"], group.attrs["length"] = form.to_json(), json.dumps(length)
            for key, values in buffers.items():
                group[key] = values
    assert_same(read(source)[0], read(target)[0])
    write_tops(target, tmp_path / "copy.h5", shifted, PepperWriteConfig(column="recot"))
    assert_same(read(source)[0], read(tmp_path / "copy.h5")[0])
    copy = whole(tmp_path / "copy.h5")
    assert [len(each) if each is not None else None for each in copy.recot.to_list()] == EXPECTED_COUNTS


@pytest.mark.parametrize("form", FORMS)
def test_memory_is_that_of_a_chunk(write, form):
    path = write(form, few_events() * 1000)

    def peak(step_size):
        tracemalloc.start()
        for chunk in iterate_pepper(path, step_size=step_size):
            select_pepper(chunk, ALL_CUTS, dataset="tt")
        _, high = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return high

    peak(8000)  # what is loaded or compiled once
    assert peak(500) < 0.3 * peak(8000)


# ---- what can be wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["Jet_btagDeepFlavB", "Lepton_pdgId"])
def test_missing_column(write, form, name):
    path = write(form, few_events(), drop=[name])
    with pytest.raises(InputError, match=rf"column '{name}' is missing, .* columns_to_save"):
        inspect_pepper(path, ALL_CUTS)
    with pytest.raises(InputError, match=f"branch '{name}'.* is missing"):
        read(path)


def test_missing_event_number(write):
    with pytest.raises(InputError, match="column 'event' is missing"):
        inspect_pepper(write("h5", few_events(), drop=["event"]), ALL_CUTS)


def test_none_where_a_value_is_needed(write):
    events = few_events()
    path = write("h5", [*events[:5], make_event(5, MET=None)], optional=["MET"])
    with pytest.raises(InputError, match=r"events\.h5: branch 'MET_pt' is None in 1 of 2 places"):
        read(path)
    # An event without its list of jets has none.
    path = write("h5", [make_event(0), make_event(1, Jet=None)], optional=["Jet"])
    assert read(path)[0].n_jets.tolist() == [2, 0]


@pytest.mark.parametrize("form", FORMS)
def test_values_that_are_not_finite(write, form):
    jets = [particle(40.0, phi=np.nan, btagDeepFlavB=0.9, btagged=True)]
    with pytest.raises(InputError, match=r"branch 'Jet_phi' has 1 of 1 values NaN"):
        read(write(form, [make_event(0, Jet=jets)]))
    jets = [particle(40.0, btagDeepFlavB=np.inf, btagged=True)]
    with pytest.raises(InputError, match=r"branch 'Jet_btagDeepFlavB': infinite in 1 of 1 jets"):
        read(write(form, [make_event(0, Jet=jets)]))


def test_foreign_hdf5(tmp_path, write):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["data"] = [1, 2]
    with pytest.raises(InputError, match=r"foreign\.h5: no group 'events', .*pepper expected; present: data"):
        inspect_pepper(path, ALL_CUTS)
    path = write("h5", few_events())
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 2
    with pytest.raises(InputError, match="version 2 of pepper's HDF5 layout, 1 expected"):
        inspect_pepper(path, ALL_CUTS)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("form", "{", "damaged, the form of group 'events' cannot be read"),
        ("form", None, "damaged, the form of group 'events' cannot be read"),
        ("length", "[4, 4]", "group 'events' has length \\[4, 4\\], one number expected"),
        ("length", "7", "damaged, 8 entries in 'cutflags' for 7 events"),
    ],
)
def test_damaged_attributes(write, attribute, value, message):
    path = write("h5", few_events())
    with h5py.File(path, "r+") as file:
        del file["events"].attrs[attribute]
        if value is not None:
            file["events"].attrs[attribute] = value
    with pytest.raises(InputError, match=rf"events\.h5: {message}"):
        inspect_pepper(path, ALL_CUTS)


@pytest.mark.parametrize("damage", ["missing", "short", "compressed", "offsets"])
def test_damaged_buffer(write, damage):
    path = write("h5", few_events() * 20)  # enough for the compression to be worth it
    with h5py.File(path, "r+") as file:
        form = json.loads(file["events"].attrs["form"])
        key = form["contents"]["Lepton"]["content"]["contents"]["eta"]["form_key"]
        name = f"events/part0-{key}-data"
        place = file[name].id.get_chunk_info(0)
        if damage in {"missing", "short"}:
            del file[name]
        if damage == "short":
            file[name] = np.zeros(3, dtype="f4")
        if damage == "offsets":
            key = form["contents"]["Lepton"]["form_key"]
            file[f"events/part0-{key}-offsets"][-1] = -5
    if damage == "compressed":
        content = bytearray(path.read_bytes())
        content[place.byte_offset : place.byte_offset + place.size] = b"\xff" * place.size
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"events\.h5: .*'Lepton_(eta|pdgId)' cannot be read, .* damaged"):
        read(path)


def test_negative_numbers_of_objects(write):
    path = write("h5", [make_event(number) for number in range(3)])
    with h5py.File(path, "r+") as file:
        key = json.loads(file["events"].attrs["form"])["contents"]["Jet"]["form_key"]
        file[f"events/part0-{key}-offsets"][1] = 5
    with pytest.raises(InputError, match=r"events\.h5: counter of 'Jet_pt' cannot be read, .* damaged"):
        read(path)


def test_damaged_structure(write):
    """Where h5py raises a RuntimeError."""
    path = write("h5", few_events())
    content = path.read_bytes()
    assert b"SNOD" in content
    path.write_bytes(content.replace(b"SNOD", b"SNOT"))
    with pytest.raises(InputError, match=r"events\.h5: damaged, cannot be read") as error:
        inspect_pepper(path, ALL_CUTS)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"events\.h5: damaged, cannot be read"):
        list(iterate_pepper(path))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_cut_short(write, form, kept):
    path = write(form, few_events())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=r"(cannot be opened as an HDF5 file .*truncated|cut short)"):
        inspect_pepper(path, ALL_CUTS)


def test_nanoaod_is_not_pepper(nano_file, emu):
    path = nano_file([emu()])
    assert pepper_format(path) is None
    assert not is_pepper(open_events(path))
    with pytest.raises(InputError, match=r"nano\.root: not an event file of pepper"):
        inspect_pepper(path, ALL_CUTS)
    with pytest.raises(InputError, match="no such file"):
        inspect_pepper(path.with_name("nowhere.h5"), ALL_CUTS)


def test_without_the_extra(write, monkeypatch):
    path = write("h5", few_events())
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(InputError, match=r"needs the extra: pip install 'topreco\[pepper\]'"):
        inspect_pepper(path, ALL_CUTS)


# ---- the schema ------------------------------------------------------------------------------------------


def test_collections():
    """A list has a counter; the longest name counts; a value beside others of its prefix stands alone."""
    jagged = ["recot_pt", "recot_betchart_pt", "ids"]
    scalars = ["nrecot", "nrecot_betchart", "nids", "MET_pt", "weight", "weight_up", "maskrecot", "recot_x"]
    found = collections(dict.fromkeys(jagged, True) | dict.fromkeys(scalars, False))
    assert found == {
        "recot_pt": ("recot", "pt"),
        "recot_betchart_pt": ("recot_betchart", "pt"),
        "ids": ("ids", ""),
        "MET_pt": ("MET", "pt"),
        "weight": ("weight", ""),
        "weight_up": ("weight_up", ""),
        "maskrecot": ("maskrecot", ""),
        "recot_x": ("recot_x", ""),
    }


def test_schema(write):
    events = whole(write("root", few_events()))
    assert is_pepper(events)
    tops = events.recot[events.maskrecot]
    assert ak.num(tops).to_list() == [2, 0, 2, 2, 2, 2]
    expected = tops[0][0] + tops[0][1]
    by_hand = sum(from_pt_eta_phi_mass(*(np.float64(top[c]) for c in COORDINATES)) for top in tops[0])
    np.testing.assert_allclose(expected.mass, mass(by_hand), rtol=1e-6)
    np.testing.assert_allclose(events.MET.px[0], 50 * np.cos(0.3), rtol=1e-6)
    assert Branches(events).read("recot_betchart_pt").tolist() == Branches(events).read("recot_pt").tolist()


# ---- writing ---------------------------------------------------------------------------------------------


def shifted(events):
    """A method: top along ℓ⁺, antitop along ℓ⁻, no answer for the events with an odd number."""
    tops = np.stack([3 * events.lepton_plus, 2 * events.lepton_minus], axis=1)
    tops[..., 0] = np.sqrt(172.5**2 + (tops[..., 1:] ** 2).sum(-1))
    valid = events.event % 2 == 0
    return TopPair(np.where(valid[:, None, None], tops, np.nan), valid)


shifted.name = "my-method"
# With all cuts events 0, 5 and 7 pass, and those with odd numbers have no solution.
EXPECTED_COUNTS = [2, None, None, None, None, 0, None, 0]


def plain_hdf5(path, name="events"):
    """A group as pepper's own code reads it: the stored form, all buffers, nothing of the package."""
    with h5py.File(path) as file:
        group = file[name]
        form, length = ak.forms.from_json(group.attrs["form"]), json.loads(group.attrs["length"])
        buffers = {key: np.asarray(values) for key, values in group.items()}
    form = form.select_columns([column for column in form.fields if column != "mixed"])
    return ak.from_buffers(form, length, buffers, buffer_key="part0-{form_key}-{attribute}")


def plain_root(path):
    """The tree as lists of dictionaries, None by the mask."""
    with uproot.open(path) as file:
        return file["Events"].arrays()


@pytest.mark.parametrize("step_size", [3, 1000])
@pytest.mark.parametrize("column", [None, "recot"])
@pytest.mark.parametrize("form", FORMS)
def test_tops_are_written_as_pepper_does(write, tmp_path, form, column, step_size):
    source, copy = write(form, few_events()), tmp_path / "copies" / f"copy.{form}"
    before = source.read_bytes()
    name = column or "recot_my_method"
    summary = write_tops(source, copy, shifted, PepperWriteConfig(column=column, step_size=step_size))
    assert str(summary) == f"{copy}: {name} of 1 events, 3 of 8 pass the cuts"
    assert source.read_bytes() == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    assert_same(read(source)[0], read(copy)[0])
    if form == "h5":
        tops = plain_hdf5(copy)[name]
        assert [len(each) if each is not None else None for each in tops.to_list()] == EXPECTED_COUNTS
        first = {c: tops[c][0] for c in COORDINATES}
    else:
        arrays = plain_root(copy)
        assert arrays[f"mask{name}"].to_list() == [count is not None for count in EXPECTED_COUNTS]
        assert arrays[f"n{name}"].to_list() == [count or 0 for count in EXPECTED_COUNTS]
        first = {c: arrays[f"{name}_{c}"][0] for c in COORDINATES}
    events = read(source)[0]
    np.testing.assert_allclose(first["pt"], [3 * 30.0, 2 * 60.0], rtol=1e-6)
    np.testing.assert_allclose(first["mass"], [172.5, 172.5], rtol=1e-6)
    for i, lepton in enumerate((events.lepton_plus, events.lepton_minus)):
        np.testing.assert_allclose(first["eta"][i], eta(lepton)[0], rtol=1e-6)
        np.testing.assert_allclose(first["phi"][i], phi(lepton)[0], rtol=1e-6)
    # The package's own reader sees the same.
    own = whole(copy)
    for c in COORDINATES:
        np.testing.assert_array_equal(Branches(own).read(f"{name}_{c}"), np.asarray(first[c]))


@pytest.mark.parametrize("column", [None, "recot"])
def test_everything_else_is_copied(write, tmp_path, column):
    config = PepperWriteConfig(column=column)
    paths = {form: (write(form, few_events()), tmp_path / f"copy.{form}") for form in FORMS}
    for source, copy in paths.values():
        write_tops(source, copy, shifted, config)
    source, copy = map(plain_hdf5, paths["h5"])
    kept = [name for name in source.fields if name != column]
    assert set(copy.fields) == {*kept, column or "recot_my_method"}
    assert copy[kept].to_list() == source[kept].to_list()
    for name in ("cutflags", "weight"):
        a, b = (plain_weights(path, name) for path in paths["h5"])
        assert a == b
    source, copy = map(plain_root, paths["root"])
    kept = [
        name for name in source.fields if not re.fullmatch(rf"(n|mask)?{column}(_(pt|eta|phi|mass))?", name)
    ]
    assert "recot_betchart_pt" in kept
    assert [name for name in copy.fields if name in kept] == kept
    assert copy[kept].to_list() == source[kept].to_list()
    with uproot.open(paths["root"][0]) as old, uproot.open(paths["root"][1]) as new:
        assert new.classnames() == old.classnames()
        assert str(new["dsname"]) == "TTTo2L2Nu"
        assert new["pileup"].values().tolist() == old["pileup"].values().tolist()
        assert new["Categories/channel"].arrays().to_list() == old["Categories/channel"].arrays().to_list()
        for name in kept:
            assert new["Events"][name].interpretation == old["Events"][name].interpretation, name
    with h5py.File(paths["h5"][1]) as file:
        # No buffer is without its node.
        text = file["events"].attrs["form"]
        keys = set(re.findall(r'"form_key": ?"(\w+)"', text))
        assert {name.split("-")[1] for name in file["events"]} <= keys


def plain_weights(path, name):
    with h5py.File(path) as file:
        return {key: values[()].tolist() for key, values in file[name].items()}


@pytest.mark.parametrize("form", FORMS)
def test_no_event_passes(write, tmp_path, form):
    source = write(form, [make_event(3, cutflags=dict.fromkeys(FLAGS, 0.0), recot=None)] * 2)
    summary = write_tops(source, tmp_path / f"copy.{form}", shifted, PepperWriteConfig())
    assert (summary.n_events, summary.n_passed, summary.n_solved) == (2, 0, 0)
    if form == "h5":
        assert plain_hdf5(summary.output).recot_my_method.to_list() == [None, None]
    else:
        assert plain_root(summary.output).nrecot_my_method.to_list() == [0, 0]


@pytest.mark.parametrize("form", FORMS)
def test_copies_of_copies(write, tmp_path, form):
    """A second method beside the first, and the first once more."""
    source = write(form, few_events())
    a, b, c = (tmp_path / f"{name}.{form}" for name in "abc")
    write_tops(source, a, shifted, PepperWriteConfig(column="recot_one"))
    write_tops(
        a, b, shifted, PepperWriteConfig(column="recot_two", selection=selection(pepper={"cut": "HasJets"}))
    )
    write_tops(b, c, shifted, PepperWriteConfig(column="recot_one"))
    events = whole(c)
    n = ak.num(events.recot_two).to_list()
    assert [x or 0 for x in n] == [2, 0, 2, 0, 0, 0, 0, 0]
    assert [x or 0 for x in ak.num(events.recot_one).to_list()] == [x or 0 for x in EXPECTED_COUNTS]
    assert {"recot", "recot_one", "recot_two"} <= set(events.fields)


@pytest.mark.parametrize("form", FORMS)
def test_refusals_write_nothing(write, tmp_path, form, nano_file, emu):
    source, copy = write(form, few_events()), tmp_path / "out" / f"copy.{form}"

    def loose(events):
        n = len(events)
        return TopPair(np.full((n, 2, 4), np.nan), np.ones(n, bool), ttbar=np.ones((n, 4)))

    with pytest.raises(TopRecoError, match=r"column: .*after 'recot' expected, found 'Jet'"):
        write_tops(source, copy, shifted, PepperWriteConfig(column="Jet"))
    with pytest.raises(TopRecoError, match="gives the tt̄ system alone"):
        write_tops(source, copy, loose, PepperWriteConfig())
    with pytest.raises(TopRecoError, match="would replace the input"):
        write_tops(source, source, shifted, PepperWriteConfig())
    with pytest.raises(InputError, match=r"nano\.root: not an event file of pepper"):
        list(write_all([source, nano_file([emu()])], tmp_path / "out", shifted, PepperWriteConfig()))
    assert not copy.parent.exists()


def test_what_cannot_be_copied(tmp_path):
    path = write_root(tmp_path / "events.root", few_events())
    with uproot.update(path) as file:
        file.mktree("Names", {"name": "string"}).extend({"name": ["a", "b"]})
    with pytest.raises(InputError, match=r"branch 'name' of tree 'Names' holds .*, which cannot be copied"):
        write_tops(path, tmp_path / "copy.root", shifted, PepperWriteConfig())
    assert [file.name for file in tmp_path.iterdir()] == ["events.root"]


def test_damage_in_a_column_that_is_only_copied(write, tmp_path):
    path = write("root", few_events() * 20)
    with uproot.open(path) as file:
        (seek,) = file["Events"]["recot_eta"].member("fBasketSeek")[:1]
    content = bytearray(path.read_bytes())
    content[seek : seek + 300] = bytes(300)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"events\.root: tree 'Events' cannot be read, .* damaged"):
        write_tops(path, tmp_path / "copy.root", shifted, PepperWriteConfig())
    assert [file.name for file in tmp_path.iterdir()] == ["events.root"]


@pytest.mark.parametrize("form", FORMS)
def test_command(write, tmp_path, toy_model, monkeypatch, capsys, form):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["topreco", "pepper-write", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    files = [write(form, few_events(), name=name) for name in "ab"]
    code, out, _ = command(*files, "-m", toy_model, "-o", tmp_path / "out", "selection.pepper.cut=HasJets")
    assert (code, out.count("recot_toy of 4 events, 4 of 8 pass the cuts")) == (0, 2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"a.{form}", f"b.{form}"]
    code, _, err = command(*files, "-m", toy_model, "-o", tmp_path, "--column", "recot")
    assert code == 1
    assert re.fullmatch(r"error: .*would replace the input .*; give another name\n", err)


def test_places_of_the_copies(tmp_path):
    files = [tmp_path / "in" / dataset / "0000.h5" for dataset in ("tt", "dy")]
    assert list(copy_paths(files, "out").values()) == [Path("out/tt/0000.h5"), Path("out/dy/0000.h5")]
    assert copy_paths(files[:1], "out") == {files[0]: Path("out/0000.h5")}
    with pytest.raises(InputError, match="no input files"):
        copy_paths([], "out")
    with pytest.raises(InputError, match="given twice"):
        copy_paths([files[0], files[0]], "out")
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    with pytest.raises(TopRecoError, match=r"would replace the input .*0000\.h5"):
        copy_paths(files, tmp_path / "in")


# ---- the rest of the chain -------------------------------------------------------------------------------


def many_events(n=60):
    """Events with some spread, of which three in four pass."""
    rng = np.random.default_rng(3)
    events = []
    for i in range(n):
        codes = rng.choice([11, 13], 2) * rng.permutation([1, -1])
        events.append(
            make_event(
                i,
                Lepton=[
                    particle(rng.uniform(25, 90), rng.normal(), rng.uniform(-3, 3), pdgId=code)
                    for code in codes
                ],
                Jet=[
                    particle(
                        rng.uniform(30, 150),
                        rng.normal(),
                        rng.uniform(-3, 3),
                        8.0,
                        btagDeepFlavB=rng.uniform(),
                        btagged=rng.uniform() > 0.5,
                    )
                    for _ in range(rng.integers(2, 6))
                ],
                gent_lc=[
                    particle(rng.uniform(20, 200), rng.normal(), rng.uniform(-3, 3), 172.5) for _ in range(2)
                ],
                cutflags=dict.fromkeys(FLAGS, float(i % 4 > 0)),
            )
        )
    return events


@pytest.mark.parametrize("chunksize", [11, 1000])
def test_processor(write, toy_model, chunksize):
    path = write("root", many_events())
    runner = processor.Runner(
        processor.IterativeExecutor(status=False), schema=PepperSchema, chunksize=chunksize
    )
    output = runner(
        {"tt": {"treename": "Events", "files": [str(path)]}},
        processor_instance=DileptonProcessor([toy_model]),
    )
    assert Cutflow.from_dict(output["cutflow"]["tt"]) == read(path)[2]
    spectrum = output["histograms"]["spectrum/m_tt"]
    for source in ("reco", "truth"):
        filled = spectrum[{"subset": "all", "source": source, "method": 0, "dataset": 0, "channel": sum}]
        assert filled.values(flow=True).sum() == read(path)[0].weight.sum()


def test_run_finds_out_by_itself(write, toy_model, tmp_path, nano_file, emu):
    path = write("root", many_events())
    config = RunConfig(
        fileset={"tt": (str(path),)}, methods=(str(toy_model),), output=tmp_path / "run", executor="iterative"
    )
    result = run(config, progress=False)
    assert Cutflow.from_dict(result.cutflow["tt"]) == read(path)[2]
    hdf5 = str(write("h5", many_events()))
    for files, message in (
        ((hdf5,), r"events\.h5: is HDF5, and a coffea Runner reads ROOT"),
        ((str(path), hdf5), r"events\.h5: is HDF5"),
        ((str(path), str(nano_file([emu()]))), r"nano\.root: not an event file of pepper"),
    ):
        with pytest.raises(TopRecoError, match=message):
            run(
                config.model_copy(update={"fileset": {"tt": files}, "output": tmp_path / "no"}),
                progress=False,
            )
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("form", FORMS)
def test_skim_and_training(write, tmp_path, form):
    from topreco.network.task import TrainingError
    from topreco.network.train import train

    path = write(form, many_events())
    summary = make_skim(
        [path], tmp_path / "skim.parquet", ALL_CUTS, dataset="tt", progress=False, step_size=13
    )
    assert (summary.n_read, summary.n_selected, summary.has_truth) == (60, 45, True)
    assert summary.sum_gen_weights is None
    events, truth = Skim(summary.output).read()
    direct = read(path)
    np.testing.assert_array_equal(events.event, direct[0].event)
    np.testing.assert_allclose(events.jets, direct[0].jets, rtol=1e-6)
    np.testing.assert_allclose(truth.tops, direct[1].tops, rtol=1e-6)
    content = {
        "model": {"backbone": {"blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}},
        "data": {"files": [str(summary.output)]},
        # pepper keeps no true leptons.
        "loss": {"c_hel": 0.0},
        "epochs": 1,
        "batch_size": 16,
        "output": str(tmp_path / "training"),
    }
    with pytest.raises(TrainingError, match=r"both decayed to leptons; data\.require_dileptonic=false asks"):
        train(build_config(TrainConfig, content, "test"), progress=False)
    content["data"]["require_dileptonic"] = False
    assert train(build_config(TrainConfig, content, "test"), progress=False).is_file()


def test_skim_of_data_and_of_mixtures(write, tmp_path, nano_file, emu):
    simulation = write("h5", few_events(), name="simulation")
    data = write("root", few_events(), name="data", drop=["gent_lc"], weights=None)
    with pytest.raises(InputError, match=r"data\.root: no generated tops \(gent_lc\), but other files have"):
        make_skim([simulation, data], tmp_path / "no.parquet", ALL_CUTS, progress=False)
    with pytest.raises(InputError, match=r"nano\.root: not an event file of pepper"):
        make_skim([simulation, nano_file([emu()])], tmp_path / "no.parquet", ALL_CUTS, progress=False)
    assert not make_skim([data], tmp_path / "data.parquet", ALL_CUTS, progress=False).has_truth


# ---- the samples -----------------------------------------------------------------------------------------

EVERY_EVENT = selection(pepper={"cut": "OppositeSign"})


@pytest.fixture(params=FORMS)
def sample(data, request):
    path = data / "pepper" / f"pepper_TTTo2L2Nu_0000.{request.param}"
    if not path.is_file():
        pytest.skip("no sample of pepper")
    return path


@pytest.mark.parametrize(
    ("cut", "n"), [(None, 24), ("Reco", 24), ("ReqMET", 48), ("HasBtags", 54), ("OppositeSign", 100)]
)
def test_sample_cuts(sample, cut, n):
    config = selection(pepper={"cut": cut})
    events, truth, cutflow, _ = read(sample, config, step_size=30)
    assert len(events) == n
    assert truth.valid.all()
    assert cutflow["all"].n == inspect_pepper(sample, config).n_entries == 100


def test_sample_forms_agree(data):
    one, other = (
        read(data / "pepper" / f"pepper_TTTo2L2Nu_0000.{form}", EVERY_EVENT, step_size=step)
        for form, step in (("h5", 17), ("root", 40))
    )
    assert_same(one[0], other[0])
    assert_same(one[1], other[1])


def test_sample_against_nanoaod(sample, data):
    """The same events in NanoAOD: this sample was made without corrections, so everything is the same."""
    events, truth, *_ = read(sample, EVERY_EVENT)
    nano = open_events(data / "nanoaodv9_TTTo2L2Nu_first500.root")
    position = {
        key: i
        for i, key in enumerate(
            zip(
                *(Branches(nano).read(name).tolist() for name in ("run", "luminosityBlock", "event")),
                strict=True,
            )
        )
    }
    keys = zip(*(a.tolist() for a in (events.run, events.luminosity_block, events.event)), strict=True)
    nano = nano[[position[key] for key in keys]]

    generated = read_truth(nano)
    np.testing.assert_array_equal(truth.tops, generated.tops)
    np.testing.assert_array_equal(events.weight, np.asarray(nano.genWeight))
    met = np.stack([nano.MET.px, nano.MET.py], axis=1)
    np.testing.assert_allclose(events.met, met, rtol=1e-5, atol=1e-4)

    # Per event, columns as lists: pT, η, φ, and what else is asked for.
    def columns(name, *fields):
        return [ak.to_list(nano[name][c]) for c in ("pt", "eta", "phi", *fields)]

    def nearest(p4, transverse, eta, phi, masses):
        theirs = from_pt_eta_phi_mass(*map(np.array, (transverse, eta, phi, masses)))
        i = delta_r(theirs, p4).argmin()
        np.testing.assert_allclose(theirs[i], p4, rtol=1e-6, atol=1e-6)
        return i

    for name, code, m in (("Electron", 11, M_ELECTRON), ("Muon", 13, M_MUON)):
        candidates = columns(name, "charge")
        for leg, (lepton, charge) in enumerate(((events.lepton_plus, 1), (events.lepton_minus, -1))):
            for i in np.flatnonzero(events.lepton_flavour[:, leg] == code):
                *momentum, charges = (column[i] for column in candidates)
                assert charges[nearest(lepton[i], *momentum, np.full(len(charges), m))] == charge

    jets = columns("Jet", "mass", "btagDeepFlavB")
    for i in range(len(events)):
        *momentum, scores = (column[i] for column in jets)
        for p4, score in zip(events.jets[i][events.jet_mask[i]], events.jet_btag[i], strict=False):
            assert scores[nearest(p4, *momentum)] == score


def test_sample_against_the_own_selection(sample, data):
    """Events that both selections take have the same leptons, and the same jets above 30 GeV."""
    ours, *_ = read(sample, selection(pepper={"cut": "ReqMET"}))
    nano = open_events(data / "nanoaodv9_TTTo2L2Nu_first500.root")
    theirs = select(nano, selection(met="MET"), dataset="tt").events
    common, a, b = np.intersect1d(ours.event, theirs.event, return_indices=True)
    assert len(common) > 30
    for name in ("lepton_plus", "lepton_minus", "met"):
        np.testing.assert_allclose(getattr(ours, name)[a], getattr(theirs, name)[b], rtol=1e-6, atol=1e-5)
    leading = pt(ours.jets[a]) > 30
    same = (leading.sum(axis=1) == theirs.n_jets[b]).mean()
    assert same > 0.8  # jets are identified differently


@pytest.mark.parametrize("column", [None, "recot"])
def test_sample_written_back(sample, tmp_path, toy_model, column):
    from topreco.reconstruction.load import load

    model = load(toy_model)
    config = PepperWriteConfig(column=column, selection=selection(pepper={"cut": "ReqMET"}), dataset="tt")
    summary = write_tops(sample, tmp_path / sample.name, model, config)
    assert (summary.n_events, summary.n_passed, summary.n_solved) == (100, 48, 48)
    expected = model(read(sample, config.selection)[0]).p4
    events = whole(summary.output)
    found = from_pt_eta_phi_mass(*(Branches(events).read(f"{summary.column}_{c}") for c in COORDINATES))
    np.testing.assert_allclose(found.reshape(-1, 2, 4), expected, rtol=1e-5, atol=1e-3)
    if sample.suffix == ".h5":
        # pepper has its own column None in the same events.
        original = whole(sample)
        tops = plain_hdf5(summary.output)[summary.column]
        np.testing.assert_array_equal(ak.is_none(tops), ak.is_none(original.recot))
    else:
        arrays = plain_root(summary.output)
        np.testing.assert_array_equal(arrays[f"mask{summary.column}"], plain_root(sample).maskrecot)
