"""Response matrices in files: what is read back is what was filled."""

import dataclasses
import json

import numpy as np
import pytest
import uproot
import yaml

from topreco.config import UnfoldingConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import CHANNELS
from topreco.evaluation.histograms import book
from topreco.evaluation.responses import book_responses, fill_generated, fill_responses
from topreco.measurement.export import (
    SHARES,
    Key,
    collect_responses,
    read_json,
    save_figures,
    tables,
    write_responses,
)
from topreco.measurement.unfolding import BinRequirements, Sums

CONFIG = UnfoldingConfig(
    observables={
        "m_tt": {"truth": [345, 450, 600, 1000], "reco": [300, 345, 400, 450, 500, 600, 800, 1000]},
        "y_top": {},
    }
)
SUMS = ("response", "measured", "fakes", "not_reconstructed", "generated")


@pytest.fixture(scope="module")
def histograms(toy):
    """Signal with a variation and signed weights, and data."""
    found = book_responses(CONFIG)
    events, pair, truth = toy(4000, signed=True)
    truth = dataclasses.replace(truth, dileptonic=np.random.default_rng(1).random(4000) < 0.9)
    weights = {"nominal": events.weight, "pdf_up": 1.1 * events.weight}
    # What is generated in three times as many events, the others of which are not selected.
    many = type(truth).concatenate([truth] * 3)
    tiled = [(name, np.tile(weight, 3)) for name, weight in weights.items()]
    fill_generated(found, CONFIG.phase_space, dataset="/TT/2018", truth=many, weights=tiled)
    for method in ("a", "b"):
        add(found, "/TT/2018", method, events, pair, truth, weights)
        add(found, "data", method, *toy(300, seed=5)[:2])
    return found


def add(histograms, dataset, method, events, pair, truth=None, weights=None):
    options = {"events": events, "pair": pair, "truth": truth, "weights": weights}
    fill_responses(histograms, CONFIG.phase_space, dataset=dataset, method=method, **options)


@pytest.fixture(scope="module")
def responses(histograms):
    return collect_responses(histograms)


def test_everything_filled_is_collected(responses):
    expected = [
        Key(method, dataset, name, channel, variation)
        for method in ("a", "b")
        for dataset, variations in (("/TT/2018", ("nominal", "pdf_up")), ("data", ("nominal",)))
        for name in CONFIG.observables
        for variation in variations
        for channel in ("all", *CHANNELS)
    ]
    assert list(responses) == expected


@pytest.mark.parametrize("dataset", ["/TT/2018", "data"])
def test_channels_add_up(responses, dataset):
    total = responses["a", dataset, "m_tt", "all", "nominal"]
    for kind in SUMS[:-1]:
        parts = [getattr(responses["a", dataset, "m_tt", c, "nominal"], kind).value for c in CHANNELS]
        np.testing.assert_allclose(sum(parts), getattr(total, kind).value, atol=1e-12, err_msg=kind)


def test_json_brings_everything_back(responses, tmp_path):
    write_responses(responses, tmp_path, about={"phase_space": {"decay": "dileptonic"}})
    back = read_json(tmp_path / "a.json") | read_json(tmp_path / "b.json")
    assert list(back) == list(responses)
    for key, response in responses.items():
        np.testing.assert_array_equal(back[key].truth_edges, response.truth_edges)
        np.testing.assert_array_equal(back[key].reco_edges, response.reco_edges)
        for kind in SUMS:
            for ours, theirs in zip(getattr(response, kind), getattr(back[key], kind), strict=True):
                np.testing.assert_array_equal(ours, theirs, err_msg=kind)
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["phase_space"] == {"decay": "dileptonic"}
    first, response = content["responses"][0], next(iter(responses.values()))
    assert first["condition_number"] == response.condition_number
    for name in (*SHARES, "fake_fraction"):
        share = getattr(response, name)
        assert first[name] == share.value.tolist()
        assert first[f"{name}_error"] == share.error.tolist()
    data = next(entry for entry in content["responses"] if entry["dataset"] == "data")
    assert "measured" in data
    assert "response" not in data


def test_root_brings_everything_back(responses, tmp_path):
    write_responses(responses, tmp_path)
    response = responses["a", "/TT/2018", "m_tt", "emu", "pdf_up"]
    with uproot.open(tmp_path / "responses.root") as file:
        (folder,) = (key for key in file["a"].keys(recursive=False) if "TT" in key)
        where = file[f"a/{folder}/m_tt/emu/pdf_up"]
        matrix = where["response"]
        assert matrix.classname == "TH2D"
        assert [matrix.axis(i).member("fTitle").split()[0] for i in range(2)] == ["Reconstructed", "True"]
        np.testing.assert_array_equal(matrix.axis(0).edges(), response.reco_edges)
        np.testing.assert_array_equal(matrix.axis(1).edges(), response.truth_edges)
        values, variances = matrix.values(flow=True), matrix.variances(flow=True)
        np.testing.assert_array_equal(values[1:], response.response.value.T[1:])
        np.testing.assert_array_equal(variances[1:], response.response.variance.T[1:])
        # Whatever is generated is somewhere in the row of its truth bin, as TUnfold expects.
        np.testing.assert_allclose(values.sum(axis=0), response.generated.value)
        np.testing.assert_allclose(variances.sum(axis=0), response.generated.variance)
        for name in SUMS[1:]:
            np.testing.assert_array_equal(where[name].values(flow=True), getattr(response, name).value)
            np.testing.assert_array_equal(where[name].variances(flow=True), getattr(response, name).variance)
        nominal = file[f"a/{folder}/m_tt/emu/nominal"]
        purity = responses["a", "/TT/2018", "m_tt", "emu", "nominal"].purity
        np.testing.assert_array_equal(nominal["purity"].values(), purity.value)
        np.testing.assert_allclose(nominal["purity"].errors(), purity.error)
        assert list(file["a/data/m_tt/all/nominal"].keys(cycle=False)) == ["measured"]


def test_bins_are_optimised_for_the_signal_and_used_for_all(histograms, tmp_path):
    wanted = BinRequirements(0.5, 0.5, 100)
    found = collect_responses(histograms, observables=["y_top"], methods=["a"], bins=wanted)
    signal = found["a", "/TT/2018", "y_top", "all", "nominal"]
    assert 2 < len(signal.truth_edges) < 30
    assert (signal.purity.value >= 0.5).all()
    assert (signal.stability.value >= 0.5).all()
    assert len(signal.reco_edges) == 2 * len(signal.truth_edges) - 1
    for response in found.values():
        np.testing.assert_array_equal(response.reco_edges, signal.reco_edges)
    # As a configuration, these bins give the same matrix.
    write_responses(found, tmp_path)
    section = yaml.safe_load((tmp_path / "a.yaml").read_text())["unfolding"]
    booked = book_responses(UnfoldingConfig(**section))
    np.testing.assert_array_equal(booked["response/y_top"].axes["truth"].edges, signal.truth_edges)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observables": ["m_t"]}, "no observable 'm_t' in these histograms; there are: m_tt, y_top"),
        ({"methods": ["c"]}, "no method 'c' in these histograms; there are: a, b"),
        (
            {"bins": BinRequirements(0.5, 0.5), "signal": "data"},
            "no dataset with truth 'data' in these histograms; there are: /TT/2018",
        ),
        (
            {"bins": BinRequirements(0.99, 0.99)},
            r"a, m_tt: no two bins between .*; a, y_top: no two bins .*; b, m_tt: .*; b, y_top: ",
        ),
    ],
)
def test_what_cannot_be_collected(histograms, options, message):
    with pytest.raises(TopRecoError, match=message):
        collect_responses(histograms, **options)


def test_histograms_without_responses():
    with pytest.raises(TopRecoError, match=r"had no 'unfolding\.observables'"):
        collect_responses(book())


def test_two_signals_need_a_choice(toy):
    histograms = book_responses(CONFIG)
    for dataset in ("one", "two"):
        add(histograms, dataset, "a", *toy(2000))
    wanted = BinRequirements(0.4, 0.4)
    with pytest.raises(TopRecoError, match="for one dataset with truth, found 2: name one of one, two"):
        collect_responses(histograms, bins=wanted)
    assert len(collect_responses(histograms, bins=wanted, signal="one")) == 16


def test_a_method_that_solves_nothing_has_no_bins(toy):
    histograms = book_responses(CONFIG)
    events, pair, truth = toy(2000)
    none = dataclasses.replace(pair, valid=np.zeros(2000, bool))
    add(histograms, "tt", "a", events, none, truth)
    add(histograms, "data", "a", events, pair)
    add(histograms, "tt", "b", events, pair, truth)
    with pytest.raises(TopRecoError, match="a reconstructs no event of 'tt', so there are no bins"):
        collect_responses(histograms, bins=BinRequirements(0.4, 0.4))


def test_figures_and_tables(responses, tmp_path):
    of_one_method = {key: response for key, response in responses.items() if key.method == "a"}
    paths = save_figures(of_one_method, tmp_path)
    assert len(paths) == 2 * 2  # kinds, observables
    assert all(path.stat().st_size > 5000 for path in paths)
    shown = list(tables(responses))
    assert len(shown) == 4
    assert "condition number" in shown[0].title
    assert shown[0].row_count == 3


def test_figures_without_events_can_be_drawn(responses, tmp_path):
    key, response = next(iter(responses.items()))
    nothing = Sums(*np.zeros((2, *response.response.value.shape)))
    empty = {key: dataclasses.replace(response, response=nothing)}
    assert len(save_figures(empty, tmp_path)) == 2
    assert np.isnan(empty[key].purity.value).all()


@pytest.mark.parametrize("text", ["{", "{}", '{"responses": [{"method": "a"}]}', "[]"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(TopRecoError, match=r"x\.json: not the response matrices of `topreco unfolding`"):
        read_json(tmp_path / "x.json")
