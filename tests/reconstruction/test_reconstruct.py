"""`topreco.reconstruct` inside anybody's code: aligned with the caller's events, whatever they are."""

import importlib

import awkward as ak
import cloudpickle
import numpy as np
import pytest
import vector
from coffea import processor

import topreco
from topreco.config import SelectionConfig, SolverConfig, build_config
from topreco.config.presets import resolve_selection
from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import Posterior, toy_events
from topreco.core.pairing import b_candidates
from topreco.core.spin import spin_coefficients
from topreco.input.nano import QuietNanoAODSchema, open_events
from topreco.input.pepper.read import iterate_pepper
from topreco.input.pepper.select import select_pepper
from topreco.input.selection import select
from topreco.reconstruction.posterior import FromSamples
from topreco.reconstruction.wrappers import Mode


def records(p4, **fields):
    """Four-momenta (..., 4) as NanoAOD has objects."""
    return ak.zip(
        {name: getattr(fourvector, name)(p4) for name in ("pt", "eta", "phi", "mass")} | fields,
        depth_limit=p4.ndim - 1,
    )


def own_objects(events):
    """The objects of toy events, leptons and jets in an order of their own, as awkward arrays."""
    sign = np.array([-1, 1])
    leptons = records(
        np.stack([events.lepton_minus, events.lepton_plus], axis=1),
        charge=np.broadcast_to(sign, (len(events), 2)),
        pdgId=-sign * events.lepton_flavour[:, ::-1],
    )
    jets = records(events.jets, btag=events.jet_btag)
    return {
        "leptons": leptons,
        "jets": ak.drop_none(ak.mask(jets, events.jet_mask))[:, ::-1],
        "met": ak.zip({"pt": np.hypot(*events.met.T), "phi": np.arctan2(events.met[:, 1], events.met[:, 0])}),
    }


@pytest.fixture(scope="module")
def events():
    toy = toy_events(40)
    return topreco.DileptonEvents(
        **vars(toy)
        | {
            "b_candidates": b_candidates(
                toy.lepton_plus, toy.lepton_minus, toy.jets, toy.jet_mask, toy.jet_tagged
            )
        }
    )


def assert_close(tops, p4):
    for i, leg in enumerate(("top", "antitop")):
        for name in ("pt", "eta", "phi", "mass"):
            expected = getattr(fourvector, name)(p4[:, i])
            np.testing.assert_allclose(tops[leg, name], expected, rtol=1e-4, atol=1e-4)


def test_dilepton_events(events, toy_model):
    tops = topreco.reconstruct(events, toy_model)
    pair = topreco.load(toy_model)(events)
    assert len(tops) == len(events)
    assert ak.all(tops.valid)
    assert ak.all(tops.selected)
    assert_close(tops, pair.p4)


def test_four_momenta_behave_as_vectors(events, toy_model):
    tops = topreco.reconstruct(events, toy_model)
    assert isinstance(tops.top, vector.Momentum)
    m_tt = topreco.core.observables.m_tt(topreco.load(toy_model)(events).p4)
    np.testing.assert_allclose((tops.top + tops.antitop).mass, m_tt, rtol=1e-9)
    np.testing.assert_allclose(tops.ttbar.mass, m_tt, rtol=1e-9)
    assert isinstance(tops[tops.top.pt > 50].antitop, vector.Momentum)
    assert ak.all(tops.top.deltaR(tops.antitop) > 0)


@pytest.mark.parametrize("kind", [dict, ak.Array])
def test_own_objects_give_what_the_events_give(events, toy_model, kind):
    objects = own_objects(events)
    if kind is ak.Array:
        objects = ak.zip(objects, depth_limit=1)
    tops = topreco.reconstruct(objects, toy_model)
    assert ak.all(tops.valid)
    assert_close(tops, topreco.load(toy_model)(events).p4)


def test_leptons_of_two_collections(events, toy_model):
    objects = own_objects(events)
    leptons = objects.pop("leptons")
    split = {"lepton_minus": leptons[:, 0], "lepton_plus": leptons[:, 1]}
    tops = topreco.reconstruct(objects | split, toy_model)
    assert_close(tops, topreco.load(toy_model)(events).p4)


def test_events_that_cannot_be_reconstructed_stay_in_their_place(events, toy_model):
    objects = own_objects(events)
    whole = topreco.reconstruct(objects, toy_model)
    n = np.arange(len(events))
    # One lepton only, two of one charge, one jet only.
    leptons = ak.from_regular(objects["leptons"])
    leptons = ak.concatenate([leptons[i : i + 1, : 1 if i % 4 == 1 else None] for i in n])
    charge = ak.where(n % 4 == 2, abs(leptons.charge), leptons.charge)
    leptons = ak.with_field(leptons, charge, "charge")
    jets = ak.concatenate([objects["jets"][i : i + 1, : 1 if i % 4 == 3 else None] for i in n])
    tops = topreco.reconstruct(objects | {"leptons": leptons, "jets": jets}, toy_model)
    np.testing.assert_array_equal(tops.valid, n % 4 == 0)
    np.testing.assert_array_equal(tops.selected, n % 4 == 0)
    np.testing.assert_array_equal(tops.top.pt[n % 4 == 0], whole.top.pt[n % 4 == 0])
    assert ak.all(np.isnan(tops.top.pt[n % 4 != 0]))


def test_missing_leptons_may_be_none(events, toy_model):
    objects = own_objects(events)
    leptons = objects.pop("leptons")
    present = np.arange(len(events)) % 2 == 0
    pair = {"lepton_minus": leptons[:, 0], "lepton_plus": ak.mask(leptons[:, 1], present)}
    np.testing.assert_array_equal(topreco.reconstruct(objects | pair, toy_model).valid, present)


def test_no_events(events, toy_model):
    assert len(topreco.reconstruct(events[:0], toy_model)) == 0
    tops = topreco.reconstruct({name: a[:0] for name, a in own_objects(events).items()}, toy_model)
    assert tops.top.pt.to_list() == []


def test_uncertainties_are_aligned(events):
    quantiles = np.sort(np.random.default_rng(6).uniform(300, 900, (len(events), 5)), axis=1)
    valid = np.arange(len(events)) != 3

    class Method:
        name = "own"

        def __call__(self, events):
            p4 = np.ones((len(events), 2, 4))
            return topreco.TopPair(p4, valid, quality=-quantiles[:, 2], quantiles={"m_tt": quantiles})

    tops = topreco.reconstruct(events, Method())
    np.testing.assert_array_equal(tops.quality, np.where(valid, -quantiles[:, 2], np.nan))
    np.testing.assert_array_equal(tops.quantiles.m_tt, np.where(valid[:, None], quantiles, np.nan))
    assert "quality" not in topreco.reconstruct(events, "ellipse_unsmeared").fields


def test_values_of_observables_are_aligned(events):
    c_hel, chosen = np.linspace(-1, 1, len(events)), np.arange(len(events)) % 3 != 0
    leptons = records(events.lepton_p4)
    leptons = ak.zip({"lepton_plus": leptons[:, 0], "lepton_minus": leptons[:, 1]}, depth_limit=1)

    class Method:
        name = "own"

        def __call__(self, events):
            p4 = fourvector.from_three_momentum(2 * events.lepton_p4[..., 1:], 172.5)
            own = {"c_hel": c_hel[: len(events)], "m_tt": np.full(len(events), 500.0)}
            return topreco.TopPair(p4, chosen[: len(events)], observables=own)

    tops = topreco.reconstruct(events, Method())
    assert set(tops.observables.fields) == {"c_hel", "m_tt"}
    np.testing.assert_array_equal(tops.observables.c_hel, np.where(chosen, c_hel, np.nan))
    assert "observables" not in topreco.reconstruct(events, "ellipse_unsmeared").fields
    # From records as from the pair itself.
    pair = Method()(events)
    found = spin_coefficients(tops, leptons, events.weight)
    for name, expected in spin_coefficients(pair, events.lepton_p4, events.weight).items():
        assert found[name] == pytest.approx(expected, rel=1e-5, abs=1e-6), name
    assert found["D"].value == pytest.approx(-3 * np.average(c_hel[chosen]))


def with_key(objects, events):
    key = {"run": events.run, "luminosityBlock": events.luminosity_block, "event": events.event}
    return objects | key


def test_samples_are_aligned(events):
    model = topreco.load("sonnenschein", threads=1, solvers=SolverConfig(n_draws=8))
    posterior, pair = model.sample(events, 8), model(events)
    assert 0 < pair.valid.sum() < len(events)
    for given in (events, with_key(own_objects(events), events)):
        tops = topreco.reconstruct(given, model, samples=8)
        samples = tops.samples
        assert isinstance(samples.top, vector.Momentum)
        assert set(ak.num(samples.top)) == set(ak.num(samples.weight)) == {8}
        expected = np.where(pair.valid[:, None, None, None], posterior.samples, np.nan)
        for i, leg in enumerate(("top", "antitop")):
            for name in ("pt", "eta", "phi", "mass"):
                wanted = getattr(fourvector, name)(expected[:, :, i])
                np.testing.assert_allclose(samples[leg, name], wanted, rtol=1e-4, atol=1e-4)
        total = ak.to_numpy(ak.sum(samples.weight, axis=1))
        np.testing.assert_allclose(total, np.where(pair.valid, 1, np.nan), rtol=1e-12)
        # The mean is the prediction, and numbers of events go with all of their samples.
        mean = ak.nansum(samples.weight * samples.top.px, axis=1)
        np.testing.assert_allclose(mean[pair.valid], tops.top.px[pair.valid], rtol=1e-4, atol=1e-3)
        assert ak.num(samples.top.deltaR(tops.top)).to_list() == [8] * len(events)
        assert isinstance(tops[pair.valid].samples.antitop, vector.Momentum)
    assert "samples" not in topreco.reconstruct(events, model).fields
    assert len(topreco.reconstruct(events[:0], model, samples=8).samples.top) == 0


def test_samples_of_events_that_are_not_selected(events):
    model = topreco.load("sonnenschein", threads=1, solvers=SolverConfig(n_draws=8))
    objects = with_key(own_objects(events), events)
    keep = np.arange(len(events)) % 4 > 0
    jets = ak.concatenate([objects["jets"][i : i + 1, : None if k else 1] for i, k in enumerate(keep)])
    whole = topreco.reconstruct(objects, model, samples=8)
    tops = topreco.reconstruct(objects | {"jets": jets}, model, samples=8)
    np.testing.assert_array_equal(tops.valid, whole.valid & keep)
    np.testing.assert_array_equal(tops.samples.top.pt[keep], whole.samples.top.pt[keep])
    assert ak.all(np.isnan(tops.samples.top.pt[~keep]))
    assert ak.all(np.isnan(tops.samples.weight[~keep]))


def test_samples_that_cannot_be(events, toy_model):
    with pytest.raises(TopRecoError, match=r"^samples: method 'loose' gives none; .* expected$"):
        topreco.reconstruct(events, "loose", samples=8)
    with pytest.raises(TopRecoError, match=r"^samples: method 'toy' gives none"):
        topreco.reconstruct(events, toy_model, samples=8)
    with pytest.raises(TopRecoError, match="samples: 0 found, a number of 1 or more expected"):
        topreco.reconstruct(events, "sonnenschein", samples=0)


def test_samples_need_the_key_of_an_event(events):
    """Also those of a method whose predictions do not: their noise is a hash of it."""

    class Method:
        name, uses_event_key, fingerprint = "own", False, "own"

        def __call__(self, events):
            return topreco.TopPair(np.ones((len(events), 2, 4)), np.ones(len(events), bool))

        def sample(self, events, n_samples=None):
            return Posterior.equal(np.ones((len(events), n_samples or 4, 2, 4)))

    objects = own_objects(events)
    assert len(topreco.reconstruct(objects, Method())) == len(events)
    assert len(topreco.reconstruct(with_key(objects, events), Method(), samples=4).samples) == len(events)
    with pytest.raises(TopRecoError, match="'run' is missing"):
        topreco.reconstruct(objects, Method(), samples=4)
    assert not Method().uses_event_key
    assert Mode(Method()).uses_event_key
    assert FromSamples(Method()).uses_event_key


def test_a_method_that_loses_events(events):
    class Method:
        name = "own"

        def __call__(self, events):
            return topreco.TopPair(np.ones((3, 2, 4)), np.ones(3, bool))

    with pytest.raises(TopRecoError, match="one top-quark pair for each of 40 events expected, 3 found"):
        topreco.reconstruct(events, Method())


def test_only_the_system(events):
    tops = topreco.reconstruct(events, "loose")
    assert ak.any(tops.valid)
    assert ak.all(np.isnan(tops.top.pt))
    np.testing.assert_array_equal(np.isfinite(tops.ttbar.mass), tops.valid)


def test_keys_that_matter_are_asked_for(events):
    model = topreco.load("sonnenschein", threads=1, solvers=SolverConfig(n_draws=5))
    objects = own_objects(events)
    with pytest.raises(TopRecoError, match="'run' is missing; predictions of the method depend on run"):
        topreco.reconstruct(objects, model)
    key = {"run": events.run, "luminosityBlock": events.luminosity_block, "event": events.event}
    tops = topreco.reconstruct(objects | key, model, dataset="toy")
    pair = model(events)
    np.testing.assert_array_equal(tops.valid, pair.valid)
    assert_close(tops, np.where(pair.valid[:, None, None], pair.p4, np.nan))


def test_presets_tell_the_tagger_of_own_objects(events, toy_model):
    objects = own_objects(events)
    score = objects["jets"].btag
    objects["jets"] = ak.with_field(objects["jets"][["pt", "eta", "phi", "mass"]], score, "btagPNetB")
    era = build_config(
        SelectionConfig, {"preset": "nano_v12", "era": "2022", "jet": {"btag": "btagPNetB"}}, "test"
    )
    tops = topreco.reconstruct(objects, toy_model, selection=era)
    same = {"jet": {"btag": "btagPNetB", "btag_threshold": resolve_selection(era, ()).jet.btag_threshold}}
    expected = topreco.reconstruct(objects, toy_model, selection=build_config(SelectionConfig, same, "test"))
    assert ak.all(tops.valid)
    assert ak.all(tops.top.pt == expected.top.pt)


@pytest.mark.parametrize("form", ["h5", "root"])
def test_events_of_pepper(data, toy_model, form):
    pytest.importorskip("h5py")
    pytest.importorskip("hdf5plugin")
    # The file is open while its chunk is in hand.
    for chunk in iterate_pepper(data / "pepper" / f"pepper_TTTo2L2Nu_0000.{form}"):
        tops = topreco.reconstruct(chunk, toy_model, dataset="tt")
        selected = select_pepper(chunk, SelectionConfig(), dataset="tt")
        assert len(tops) == len(chunk) == 100
        assert np.array_equal(np.flatnonzero(tops.valid), selected.index)
        assert_close(tops[selected.index], topreco.load(toy_model)(selected.events).p4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: 5, "NanoEvents.*expected, int found"),
        (lambda o: {}, "'jets' is missing; .* found nothing"),
        (lambda o: {"jets": o["jets"], "met": o["met"]}, "'leptons' is missing"),
        (lambda o: o | {"met": o["met"][:3]}, "3 entries in 'met' and 40 in 'jets'"),
        (
            lambda o: o | {"jets": o["jets"][["pt", "eta", "phi", "mass"]]},
            "jets without field 'btagDeepFlavB'",
        ),
        (lambda o: o | {"leptons": o["leptons"][["pt", "eta", "phi", "charge"]]}, "without field 'pdgId'"),
        (lambda o: o | {"leptons": o["leptons"][:, 0]}, "'leptons': a list of objects per event expected"),
        (
            lambda o: o | {"leptons": ak.with_field(o["leptons"], 15 * o["leptons"].charge, "pdgId")},
            r"\|pdgId\| 15, 11 or 13 expected",
        ),
        (
            lambda o: o | {"lepton_plus": o["leptons"], "lepton_minus": o["leptons"]},
            "'lepton_plus': one lepton or None per event expected, lists found",
        ),
        (lambda o: o | {"met": o["jets"]}, "met 'pt': one number per event expected"),
        # As coffea's BaseSchema has them.
        (
            lambda o: ak.Array({"nJet": ak.num(o["jets"].pt), "Jet_pt": o["jets"].pt}),
            "^reconstruct: the events have branches and no collections; open with NanoAODSchema$",
        ),
        (lambda o: {f"field{i:03}": 0 for i in range(999)}, "found field000, .*, field011 and 987 more$"),
    ],
)
def test_one_clear_error(events, toy_model, change, message):
    with pytest.raises(TopRecoError, match=message) as error:
        topreco.reconstruct(change(own_objects(events)), toy_model)
    assert "\n" not in str(error.value)


@pytest.mark.sim
@pytest.mark.parametrize("with_truth", [True, False], ids=["simulation", "data"])
def test_nano_events(simulated, as_data, toy_model, with_truth):
    nano = open_events(simulated if with_truth else as_data)
    tops = topreco.reconstruct(nano, toy_model)
    selected = select(nano, SelectionConfig(), dataset="default")
    assert len(tops) == len(nano)
    np.testing.assert_array_equal(np.flatnonzero(tops.selected), selected.index)
    assert_close(tops[tops.valid], topreco.load(toy_model)(selected.events).p4)
    tight = topreco.reconstruct(nano, toy_model, selection=SelectionConfig(leading_pt_min=60.0))
    assert 0 < ak.sum(tight.valid) < ak.sum(tops.valid)
    # Vectors of NanoEvents and these know each other.
    assert ak.all(ak.firsts(nano.Jet).deltaR(tops.top)[tops.valid] >= 0)


@pytest.mark.sim
def test_in_a_processor_of_ones_own(simulated, toy_model):
    class Own(processor.ProcessorABC):
        def __init__(self, model):
            self.model = model

        def process(self, events):
            tops = topreco.reconstruct(events, self.model)
            assert len(tops) == len(events)
            good = tops.valid & (events.PuppiMET.pt > 20)
            return {
                "n": int(ak.sum(good)),
                "m_tt": processor.column_accumulator(tops.ttbar.mass[good].to_numpy()),
            }

        def postprocess(self, accumulator):
            return accumulator

    def run(model, executor, chunksize):
        runner = processor.Runner(executor, chunksize=chunksize, schema=QuietNanoAODSchema)
        own = Own(model)
        assert len(cloudpickle.dumps(own)) < 10_000
        return runner({"tt": {"treename": "Events", "files": [str(simulated)]}}, processor_instance=own)

    one = run(str(toy_model), processor.IterativeExecutor(status=False), 1200)
    two = run(topreco.load(toy_model, threads=1), processor.FuturesExecutor(workers=2, status=False), 400)
    assert one["n"] == two["n"] > 30
    np.testing.assert_array_equal(np.sort(one["m_tt"].value), np.sort(two["m_tt"].value))


def test_the_function_is_no_module():
    for name in ("reconstruction.load", "reconstruction.reconstruct", "runs.run", "cli"):
        importlib.import_module(f"topreco.{name}")
    assert callable(topreco.reconstruct)
