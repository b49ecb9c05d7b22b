"""Templates and cards: their contents by hand, the card by Combine's grammar, the workspace by pyhf."""

import dataclasses
import fnmatch
import json
import re

import hist
import numpy as np
import pytest
import uproot

from topreco.config import ConfigError, HistogramConfig, TemplatesConfig, UnfoldingConfig, build_config
from topreco.core.errors import TopRecoError
from topreco.core.observables import pair_values
from topreco.evaluation.fill import fill
from topreco.evaluation.histograms import book
from topreco.evaluation.responses import book_responses, fill_generated, fill_responses
from topreco.measurement.cards import datacard, workspace, write_templates
from topreco.measurement.templates import axis_text, build_templates, rows_of_yields

TRUTH, RECO = [345, 450, 600, 1500], [300, 400, 450, 500, 600, 800, 1500]
UNFOLDING = UnfoldingConfig(observables={"m_tt": {"truth": TRUTH, "reco": RECO}})
GENERATED = 3
"""Times as many events are generated as are selected."""
CONFIG = {
    "histogram": "measured/m_tt",
    "luminosity": 2.0,
    "channels": ["ee", "emu", "mumu"],
    "processes": {
        "ttbar": {"datasets": {"TT": 5.0}, "signal": True},
        "dy": {"datasets": {"DY_low": 1.5, "DY_high": 0.5}},
    },
}


def weights_of(events, m_tt, variations):
    """Weights of the variations: a slope in m_tt, a factor, and members."""
    found = {"nominal": events.weight}
    slope = 0.2 * (np.nan_to_num(m_tt) / 500 - 1)
    shifts = {"jes": slope, "scale": 0.1 + 0 * slope}
    for name in variations:
        source, _, way = name.partition("_")
        if source == "pdf":
            found[name] = events.weight * (1 + 0.01 * (1 + int(way[len("member") :])) * slope)
        else:
            found[name] = events.weight * (1 + {"up": 1, "down": -1}[way] * shifts[source])
    return found


VARIATIONS = ("jes_up", "jes_down", "scale_up", "scale_down", "pdf_member0", "pdf_member1")


@pytest.fixture(scope="module")
def sample(toy):
    """Events, predictions, truth and weights by dataset."""
    found = {}
    for i, (name, n) in enumerate({"TT": 4000, "DY_low": 600, "DY_high": 500, "data": 900}.items()):
        events, pair, truth = toy(n, seed=10 + i)
        if name.startswith("DY"):
            truth = dataclasses.replace(truth, dileptonic=np.zeros(n, bool))
        else:
            # Some fakes; unlike in toys, truth is known up to a bias.
            rng = np.random.default_rng(3)
            truth = dataclasses.replace(truth, dileptonic=rng.random(n) < 0.95)
        m_tt = pair_values(pair, events.lepton_p4, ["m_tt"])["m_tt"]
        found[name] = events, pair, truth, weights_of(events, m_tt, VARIATIONS if name != "data" else ())
    return found


def fill_all(sample, variations=VARIATIONS):
    histograms = book_responses(UNFOLDING) | book(HistogramConfig(observables=["m_tt"]))
    for dataset, (events, pair, truth, weights) in sample.items():
        is_data = dataset == "data"
        chosen = {name: w for name, w in weights.items() if name == "nominal" or name in variations}
        where = {"dataset": dataset, "method": "m", "events": events, "pair": pair}
        where["truth"] = None if is_data else truth
        fill_responses(histograms, UNFOLDING.phase_space, weights=chosen, **where)
        for name, weight in chosen.items():
            replaced = where | {"events": dataclasses.replace(events, weight=weight)}
            fill(histograms, variation=name, metrics=False, **replaced)
        if not is_data:
            many = type(truth).concatenate([truth] * GENERATED)
            every = [("nominal", np.tile(events.weight, GENERATED))]
            if "scale_up" in variations:
                every += [(n, np.tile(chosen[n], GENERATED)) for n in ("scale_up", "scale_down")]
            options = {"dataset": dataset, "truth": many, "weights": every}
            fill_generated(histograms, UNFOLDING.phase_space, **options)
    return histograms


@pytest.fixture(scope="module")
def results(sample):
    cutflow = {
        dataset: {"all": {"total": {"n": 0, "sumw": GENERATED * float(events.weight.sum()), "sumw2": 0}}}
        for dataset, (events, *_) in sample.items()
    }
    return {"histograms": fill_all(sample), "cutflow": cutflow}


def config(**changes):
    return build_config(TemplatesConfig, CONFIG | changes, "test")


def expected_by_hand(sample, channel, edges, variation="nominal"):
    """Expected events of tt̄ from the arrays themselves; the ends of the histogram collect what is outside."""
    events, pair, _, weights = sample["TT"]
    m_tt = pair_values(pair, events.lepton_p4, ["m_tt"])["m_tt"]
    keep = np.isfinite(m_tt) & (events.channel == channel)
    low, high = edges[0], np.nextafter(edges[-1], 0)
    counts = np.histogram(np.clip(m_tt[keep], low, high), edges, weights=weights[variation][keep])[0]
    return counts * 5.0 * 2.0 * 1000 / (GENERATED * events.weight.sum())


@pytest.mark.parametrize(
    ("key", "edges", "given"),
    [
        ("measured/m_tt", RECO, None),
        ("measured/m_tt", [300, 450, 1500], [300, 450, 1500]),
        ("spectrum/m_tt", [300, 400, 600, 1500], [300, 400, 600, 1500]),
    ],
)
def test_contents_by_hand(results, sample, key, edges, given):
    templates = build_templates(results, config(histogram=key, edges=given))
    signal = templates.processes[0]
    for i, channel in enumerate(("ee", "emu", "mumu")):
        np.testing.assert_allclose(signal.nominal[channel].value, expected_by_hand(sample, i, edges))
        up, down = signal.shapes["jes"]
        for way, found in (("up", up), ("down", down)):
            by_hand = expected_by_hand(sample, i, edges, f"jes_{way}")
            np.testing.assert_allclose(found[channel].value, by_hand)
    scale = 5.0 * 2000 / (GENERATED * 4000)
    # All weights are one, so that the variance is the scale times the contents.
    np.testing.assert_allclose(signal.nominal["ee"].variance, scale * signal.nominal["ee"].value)
    assert templates.unused == ("pdf_member0", "pdf_member1")
    assert axis_text(templates.axes) == f"m_tt [GeV]: {', '.join(map(str, edges))}"


def test_datasets_of_a_process_add_up(results):
    both = build_templates(results, config()).processes[1]
    parts = [
        build_templates(results, config(processes=CONFIG["processes"] | {"dy": {"datasets": {name: x}}}))
        for name, x in (("DY_low", 1.5), ("DY_high", 0.5))
    ]
    total = sum(part.processes[1].nominal["emu"].value for part in parts)
    np.testing.assert_allclose(both.nominal["emu"].value, total)


def test_two_axes_are_unrolled(results):
    axes = [hist.axis.Variable(TRUTH, name="truth"), hist.axis.Variable(RECO, name="reco")]
    response = results["histograms"]["response/m_tt"]
    own = hist.Hist(*response.axes[:4], *axes, storage=hist.storage.Weight())
    own.view(flow=True)[...] = response.view(flow=True)
    more = results | {"histograms": results["histograms"] | {"own/pair": own}}
    edges = [[345, 600, 1500], [300, 500, 1500]]
    found = build_templates(more, config(histogram="own/pair", edges=edges, processes=SIGNAL_ALONE))
    values = np.asarray(response["TT", "m", "nominal", sum, :, :].view(flow=True)["value"])
    by_hand = [values[i][:, j].sum() for i in (slice(0, 3), slice(3, 5)) for j in (slice(0, 4), slice(4, 8))]
    total = sum(sums.value for sums in found.processes[0].nominal.values())
    np.testing.assert_allclose(total, np.array(by_hand) * 5.0 * 2000 / (GENERATED * 4000))
    assert axis_text(found.axes) == "truth: 345, 600, 1500; reco: 300, 500, 1500"


def test_migration_matrices_are_unrolled(results, sample):
    """They have no sums of squared weights; the mean weight of a channel stands for them."""
    edges = [[300, 450, 2000], [300, 450, 2000]]
    found = build_templates(results, config(histogram="migration/m_tt", edges=edges, processes=SIGNAL_ALONE))
    events, pair, truth, weights = sample["TT"]
    true = np.sqrt(truth.tops.sum(1) ** 2 @ [1, -1, -1, -1])
    reco = pair_values(pair, events.lepton_p4, ["m_tt"])["m_tt"]
    scale = 5.0 * 2000 / (GENERATED * 4000)
    for i, channel in enumerate(("ee", "emu", "mumu")):
        keep = pair.valid & (events.channel == i)
        for name, ways in {"nominal": None, "jes_up": 0, "jes_down": 1}.items():
            weight = weights[name][keep]
            by_hand = np.histogram2d(
                *(np.clip(m, 300, 1999)[keep] for m in (true, reco)), edges, weights=weight
            )[0].ravel()
            signal = found.processes[0]
            sums = (signal.nominal if ways is None else signal.shapes["jes"][ways])[channel]
            np.testing.assert_allclose(sums.value, by_hand * scale)
            mean_weight = (weight**2).sum() / weight.sum()
            np.testing.assert_allclose(sums.variance, by_hand * mean_weight * scale**2)
    assert axis_text(found.axes) == "truth m_tt [GeV]: 300, 450, 2000; reco m_tt [GeV]: 300, 450, 2000"
    assert found.remarks[0].startswith("migration/m_tt has no sums of squared weights")


SIGNAL_ALONE = {"ttbar": CONFIG["processes"]["ttbar"]}


@pytest.mark.parametrize(
    ("nuisance", "up", "down"),
    [
        (
            {"members": "pdf_*"},
            lambda n, a, b: n + np.hypot(a - n, b - n),
            lambda n, a, b: n - np.hypot(a - n, b - n),
        ),
        (
            {"members": "pdf_*", "combination": "replicas"},
            lambda n, a, b: n + np.abs(a - b) / np.sqrt(2),
            lambda n, a, b: n - np.abs(a - b) / np.sqrt(2),
        ),
        (
            {"members": "pdf_*", "combination": "envelope"},
            lambda n, a, b: np.max([n, a, b], axis=0),
            lambda n, a, b: np.min([n, a, b], axis=0),
        ),
        ({"up": "pdf_member0"}, lambda n, a, b: a, lambda n, a, b: 2 * n - a),
        ({"up": "pdf_member1", "down": "pdf_member0"}, lambda n, a, b: b, lambda n, a, b: a),
    ],
    ids=["hessian", "replicas", "envelope", "mirror", "pair"],
)  # fmt: skip
def test_nuisances_of_several_variations(results, sample, nuisance, up, down):
    found = build_templates(results, config(nuisances={"pdf": nuisance, "scale": None}))
    n, a, b = (expected_by_hand(sample, 1, RECO, v) for v in ("nominal", "pdf_member0", "pdf_member1"))
    ways = found.processes[0].shapes["pdf"]
    np.testing.assert_allclose(ways[0]["emu"].value, up(n, a, b))
    np.testing.assert_allclose(ways[1]["emu"].value, down(n, a, b))
    assert found.shape_nuisances == ["pdf", "jes"]


def test_the_signal_is_divided_by_bins_of_the_truth(results, sample):
    found = build_templates(results, config(histogram="response/m_tt"))
    names = [process.name for process in found.processes]
    assert names == ["ttbar_bin1", "ttbar_bin2", "ttbar_bin3", "ttbar_outside", "ttbar_fakes", "dy"]
    assert [process.signal for process in found.processes] == [True] * 3 + [False] * 3
    # Together they are what is measured.
    whole = build_templates(results, config())
    for channel in found.channels:
        parts = [process.nominal[channel].value for process in found.processes[:-1]]
        np.testing.assert_allclose(np.sum(parts, axis=0), whole.processes[0].nominal[channel].value)
    # The cross section of a bin, from the generated events themselves.
    _, _, truth, _ = sample["TT"]
    m_tt = np.sqrt(truth.tops.sum(1) ** 2 @ [1, -1, -1, -1])[truth.dileptonic]
    counts = np.histogram(m_tt, TRUTH)[0] * GENERATED
    expected = [process.expected for process in found.processes[:3]]
    np.testing.assert_allclose(expected, 5.0 * counts / (GENERATED * 4000))
    # A variation of the generator scales all of a bin here: not a change of efficiency, so no nuisance of it.
    assert "scale" not in found.processes[0].shapes
    assert "scale" in found.processes[3].shapes
    assert "jes" in found.processes[0].shapes


def test_unrolled_pairs(sample, results):
    """Templates of a pair have the bins of its matrix, without what is outside, and both axes as text."""
    pair = {"truth": {"m_tt": [345, 500, 1500], "y_top": [-3, 0, 3]}}
    settings = UnfoldingConfig(pairs=[pair])
    histograms = book_responses(settings)
    events, tops, truth, _ = sample["TT"]
    where = {"dataset": "TT", "method": "m", "events": events, "pair": tops, "truth": truth}
    fill_responses(histograms, settings.phase_space, **where)
    every = [("nominal", events.weight)]
    fill_generated(histograms, settings.phase_space, dataset="TT", truth=truth, weights=every)
    found = results | {"histograms": histograms}
    changes = {"channels": ["all"], "processes": SIGNAL_ALONE}
    whole = build_templates(found, config(histogram="measured/m_tt_x_y_top", **changes))
    values = pair_values(tops, events.lepton_p4, ["m_tt", "y_top"])
    by_hand = np.histogram2d(values["m_tt"], values["y_top"], [*pair["truth"].values()])[0].ravel()
    scale = 5.0 * 2000 / (GENERATED * 4000)
    np.testing.assert_allclose(whole.processes[0].nominal["all"].value, by_hand * scale)
    assert axis_text(whole.axes) == "m_tt [GeV]: 345, 500, 1500; y_top: -3, 0, 3"
    divided = build_templates(found, config(histogram="response/m_tt_x_y_top", **changes))
    assert sum(process.signal for process in divided.processes) == 4
    assert [axis.label for axis in divided.truth] == ["m_tt [GeV]", "y_top"]
    total = sum(process.nominal["all"].value for process in divided.processes)
    np.testing.assert_allclose(total, whole.processes[0].nominal["all"].value)
    with pytest.raises(TopRecoError, match="is unrolled already and keeps its bins"):
        build_templates(found, config(histogram="measured/m_tt_x_y_top", edges=[0, 4], **changes))


# ---- the datacard ----------------------------------------------------------------------------------------


def parse_card(text):
    """Read a datacard by the rules of Combine's manual; every violation is an assertion."""
    lines = [line.split("#")[0].split() for line in text.splitlines()]
    lines = [line for line in lines if line and not line[0].startswith("--")]
    numbers = {line[0]: line[1] for line in lines if line[0] in ("imax", "jmax", "kmax")}
    assert list(numbers) == ["imax", "jmax", "kmax"]
    shapes = [line[1:] for line in lines if line[0] == "shapes"]
    bins, columns = [line[1:] for line in lines if line[0] == "bin"]
    observation = next(line[1:] for line in lines if line[0] == "observation")
    names, ids = [line[1:] for line in lines if line[0] == "process"]
    end = next(i for i, line in enumerate(lines) if line[0] == "rate")
    rates = lines[end][1:]
    assert len(bins) == len(observation) == int(numbers["imax"])
    assert len(columns) == len(names) == len(ids) == len(rates)
    assert not any(re.match("[0-9]", name) for name in (*bins, *names))
    assert set(columns) == set(bins)
    assert len(set(names)) == int(numbers["jmax"]) + 1
    id_of = dict(zip(names, map(int, ids), strict=True))
    assert [id_of[name] for name in names] == list(map(int, ids)), "one number for each process"
    assert len(set(id_of.values())) == len(id_of)
    for name in bins:
        here = [id_of[n] for c, n in zip(columns, names, strict=True) if c == name]
        assert min(here) <= 0 < max(here), "signal and background in every bin"
    card = {
        "bins": dict(zip(bins, map(float, observation), strict=True)),
        "rates": {(c, n): float(r) for c, n, r in zip(columns, names, rates, strict=True)},
        "shapes": shapes,
        "systematics": {},
        "rate_parameters": {},
        "signals": [name for name, number in id_of.items() if number <= 0],
    }
    for name, kind, *values in lines[end + 1 :]:
        if kind == "autoMCStats":
            assert any(fnmatch.fnmatch(b, name) for b in bins)
            card["threshold"] = float(values[0])
        elif kind == "rateParam":
            where, process, initial, interval = values
            assert any(fnmatch.fnmatch(b, where) for b in bins)
            assert process in names
            assert re.fullmatch(r"\[[-\d.e+]+,[-\d.e+]+\]", interval)
            card["rate_parameters"][name] = process, float(initial), interval
        else:
            assert kind in ("lnN", "shape"), kind
            assert len(values) == len(columns)
            assert name not in card["systematics"], "a shape and a rate of one name"
            cells = {}
            for where, value in zip(zip(columns, names, strict=True), values, strict=True):
                if set(value) != {"-"}:
                    factors = [float(part) for part in value.split("/")]
                    assert all(x > 0 for x in factors)
                    assert len(factors) == 1 or kind == "lnN"
                    cells[where] = factors
            assert cells, "a nuisance without effect is refused by kmax"
            card["systematics"][name] = kind, cells
    return card


CARDS = {
    "plain": {},
    "spectrum": {"histogram": "spectrum/m_tt", "edges": [300, 400, 600, 1500]},
    "unfold": {"histogram": "response/m_tt"},
    "year": {
        "year": "2018",
        "nuisances": {
            "jes": {"correlated": False},
            "lumi": {"rate": 1.016, "correlated": False},
            "dy_norm": {"rate": [0.7, 1.4], "processes": ["dy"]},
        },
    },
    "rate parameter and data": {
        "data": ["data"],
        "processes": {**SIGNAL_ALONE, "dy": {"datasets": {"DY_low": 1}, "rate_parameter": [0, 5]}},
    },
    "names": {"nominal_name": "h_$PROCESS_$CHANNEL", "variation_name": "h_$PROCESS_$CHANNEL_$SYSTEMATIC"},
    "one channel": {
        "channels": ["all"],
        "nominal_name": "$PROCESS",
        "variation_name": "$PROCESS_$SYSTEMATIC",
        "stat_threshold": 0,
    },
}


@pytest.mark.parametrize("changes", CARDS.values(), ids=CARDS)
def test_the_card_and_its_shapes(results, changes, tmp_path):
    settings = config(**changes)
    templates = build_templates(results, settings)
    paths = write_templates(templates, tmp_path / "shapes.root", settings)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    card = parse_card((tmp_path / "shapes.txt").read_text())
    ((process, channel, file, nominal, varied),) = card["shapes"]
    assert (process, channel, file) == ("*", "*", "shapes.root")
    assert card["threshold"] == settings.stat_threshold
    with uproot.open(tmp_path / "shapes.root") as root:

        def shape(pattern, channel, process, systematic=""):
            name = pattern.replace("$CHANNEL", channel).replace("$PROCESS", process)
            return root[name.replace("$SYSTEMATIC", systematic)]

        used = {"axes", "truth_axes"} if templates.unfolds else {"axes"}
        for channel, observed in card["bins"].items():
            data = shape(nominal, channel, "data_obs")
            used.add(data.name)
            assert data.values().sum() == pytest.approx(observed, rel=1e-4)
        for (channel, process), rate in card["rates"].items():
            found = shape(nominal, channel, process)
            assert found.values().sum() == pytest.approx(rate, rel=1e-4)
            assert rate > 0
            (sums,) = [p.nominal[channel] for p in templates.processes if p.name == process]
            np.testing.assert_allclose(found.values(), sums.value)
            np.testing.assert_allclose(found.variances(), sums.variance)
        for name, (kind, cells) in card["systematics"].items():
            for channel, process in cells if kind == "shape" else ():
                up, down = (shape(varied, channel, process, f"{name}{way}") for way in ("Up", "Down"))
                assert (up.values() != down.values()).any()
        assert root["axes"] == axis_text(templates.axes)
        n_shapes = 2 * sum(len(cells) for kind, cells in card["systematics"].values() if kind == "shape")
        n_all = len(card["bins"]) + len(card["rates"]) + n_shapes + len(used & {"axes", "truth_axes"})
        histograms = root.keys(cycle=False, filter_classname=lambda c: c != "TDirectory")
        # No template is there that the card does not use, but for channels in which nothing changes.
        assert n_all == len(histograms)
    about = json.loads((tmp_path / "shapes_about.json").read_text())
    assert about["config"]["luminosity"] == 2.0
    if "year" in changes:
        assert set(card["systematics"]) == {"lumi_2018", "dy_norm", "jes_2018", "scale"}
        assert card["systematics"]["dy_norm"][1]["ee_2018", "dy"] == [0.7, 1.4]
        assert ("ee_2018", "ttbar") not in card["systematics"]["dy_norm"][1]
    if "data" in changes:
        assert card["rate_parameters"] == {"rate_dy": ("dy", 1.0, "[0,5]")}
        assert sum(card["bins"].values()) == int(sum(card["bins"].values()))


def test_yields(results):
    headings, rows = rows_of_yields(build_templates(results, config(data=["data"])))
    assert headings == ["process", "ee", "emu", "mumu"]
    assert [row[0] for row in rows] == ["ttbar", "dy", "expected", "data"]
    assert rows[0][1].endswith(")")


# ---- what is wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"histogram": "spectrum/m_t"}, "not in these results; did you mean 'spectrum/m_tt'"),
        ({"histogram": "events"}, "'events': an axis 'observable', which no template has"),
        ({"histogram": "moments/m_tt"}, "'moments/m_tt': an axis 'moment', which no template has"),
        ({"method": "other"}, "method: 'other'; one of m expected"),
        ({"edges": [300, 420, 1500]}, "edges: 420 is none of the edges"),
        ({"edges": [[300, 400], [1, 2]]}, "edges: lists for 2 axes found, 'measured/m_tt' has 1"),
        ({"histogram": "m_tt"}, "histogram 'm_tt': .*there are: response/…, measured/…"),
        ({"luminosity": None}, "luminosity: not given"),
        ({"processes": {}}, "none given; the datasets of this run to make them of are: TT, DY_low"),
        ({"processes": {"a": {"datasets": {"TTT": 1}, "signal": True}}}, "datasets: 'TTT' is not in"),
        ({"data": ["TT"]}, "data: 'TT' is a dataset of processes.ttbar.datasets, too"),
        ({"nuisances": {"jer": {}}}, "nuisances.jer: variation 'jer_up' is not in these results; did"),
        ({"nuisances": {"jer": {"members": "jer*"}}}, "nuisances.jer.members: 'jer\\*' fits 0 variations"),
        ({"edges": [300, 1500], "histogram": "spectrum/m_tt", "channels": ["ee"]}, None),
        ({"histogram": "spectrum/m_tt"}, "channel 'ee': 0 events expected in bin [0-9]+ of 60 .m_tt .GeV. "),
        (
            {"processes": SIGNAL_ALONE | {"ttbar2": {"datasets": {"TT": 1}}}},
            "processes: 'TT' belongs to two of them",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_built(results, changes, message):
    if message is None:
        assert build_templates(results, config(**changes))
        return
    with pytest.raises(TopRecoError, match=message) as caught:
        build_templates(results, config(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": {"2l": {"datasets": {"TT": 1}}}}, "'2l' is no name that Combine takes"),
        ({"processes": {"t-t": {"datasets": {"TT": 1}}}}, "'t-t' is no name that Combine takes"),
        ({"processes": {"data_obs": {"datasets": {"TT": 1}}}}, "'data_obs' is no name that Combine takes"),
        ({"nuisances": {"jes up": {}}}, "'jes up' is no name that Combine takes"),
        ({"processes": {"a": {"datasets": {"TT": 1}}}}, "one with 'signal: true' or more expected"),
        ({"processes": {"a": {"datasets": {"TT": -1}, "signal": True}}}, "greater than 0"),
        ({"nuisances": {"a": {"rate": 1.1, "members": "x*"}}}, "one of rate, up with down, and members"),
        ({"nuisances": {"a": {"down": "x"}}}, "'down' is given without 'up'"),
        ({"nuisances": {"a": {"correlated": False}}}, "needs the key 'year'"),
        ({"nuisances": {"a": {"processes": ["q"]}}}, "'q' is none of ttbar, dy"),
        ({"edges": [3, 2]}, r"^test: edges.0: rising edges expected, found \[3, 2\]$"),
        ({"edges": [1]}, r"^test: edges.0: .* at least 2 items [^;]*, found \[1\]$"),
        ({"channels": ["em"]}, "^test: channels.0: Input should be [^;]*, found 'em'$"),
        ({"nuisances": {"a": {"rate": 0}}}, "^test: nuisances.a.rate: [^;]* greater than 0, found 0$"),
        ({"variation_name": "$PROCESS_$SYSTEMATIC"}, "lacks \\$CHANNEL"),
        (
            {"processes": {"a": {"datasets": {"TT": 1}, "signal": True, "rate_parameter": [0, 2]}}},
            "rate_parameter is for backgrounds",
        ),
        ({"processes": SIGNAL_ALONE | {"b": {"datasets": {"TT": 1}, "rate_parameter": [2, 3]}}}, "lower end"),
    ],
)  # fmt: skip
def test_what_cannot_be_configured(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_a_missing_variation_is_an_error(sample, results):
    """Of one direction, and of one process."""
    one = results | {"histograms": fill_all(sample, ("jes_up",))}
    with pytest.raises(TopRecoError, match="variation 'jes_down': not in these results, though 'jes_up' is"):
        build_templates(one, config())
    assert build_templates(one, config(nuisances={"jes": None})).shape_nuisances == []
    fewer = dict(sample)
    events, pair, truth, weights = fewer["DY_high"]
    fewer["DY_high"] = events, pair, truth, {"nominal": weights["nominal"]}
    lacking = results | {"histograms": fill_all(fewer, ("jes_up", "jes_down"))}
    with pytest.raises(TopRecoError, match=r"'jes_up': not filled for dy .*nuisances\.jes\.processes"):
        build_templates(lacking, config())
    limited = build_templates(lacking, config(nuisances={"jes": {"processes": ["ttbar"]}}))
    assert [list(process.shapes) for process in limited.processes] == [["jes"], []]


def test_channels_and_bins_without_events(sample, results):
    """A channel without events, and negative weights."""
    changed = {}
    for name, (events, pair, truth, weights) in sample.items():
        same_flavour = np.full_like(events.lepton_flavour, events.lepton_flavour[0, 0])
        alike = dataclasses.replace(events, lepton_flavour=same_flavour)
        changed[name] = alike, pair, truth, {"nominal": weights["nominal"]}
    flavour = "ee" if changed["TT"][0].channel[0] == 0 else "mumu"
    empty = results | {"histograms": fill_all(changed, ())}
    with pytest.raises(TopRecoError, match="channel 'emu': no events of any process; leave it out"):
        build_templates(empty, config(channels=["emu"]))
    events, pair, truth, weights = changed["DY_low"]
    m_tt = pair_values(pair, events.lepton_p4, ["m_tt"])["m_tt"]
    signed = np.where(np.nan_to_num(m_tt) < 400, -0.01, 1.0)
    changed["DY_low"] = events, pair, truth, {"nominal": signed}
    negative = results | {"histograms": fill_all(changed, ())}
    processes = SIGNAL_ALONE | {"dy": {"datasets": {"DY_low": 1}}}
    found = build_templates(negative, config(channels=[flavour], processes=processes))
    assert found.remarks == (f"dy has 1 negative of 6 bins in {flavour}: 1",)


def test_preselected_files_need_their_sum_of_weights(results):
    chosen = results | {"metadata": {"kept": {"TT": {"entries": 10, "generated": 20}}}}
    with pytest.raises(TopRecoError, match="TT: the files have 10 of 20 generated events; give"):
        build_templates(chosen, config())
    twice = build_templates(chosen, config(sum_of_weights={"TT": 2.0 * GENERATED * 4000}))
    once = build_templates(results, config())
    for channel in once.channels:
        half = once.processes[0].nominal[channel].value / 2
        np.testing.assert_allclose(twice.processes[0].nominal[channel].value, half)
    with pytest.raises(TopRecoError, match="TT: these results have no cutflow"):
        build_templates({"histograms": results["histograms"]}, config())


# ---- pyhf ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("histogram", ["measured/m_tt", "response/m_tt"])
def test_the_workspace_has_the_content_of_the_card(results, histogram):
    """Expected events at the templates' own points: nominal, and each nuisance up and down."""
    pyhf = pytest.importorskip("pyhf")
    settings = config(histogram=histogram, nuisances={"lumi": {"rate": 1.1}})
    templates = build_templates(results, settings)
    model = pyhf.Workspace(workspace(templates)).model()
    names, start = list(model.config.par_names), np.array(model.config.suggested_init())

    def expected(channel, **values):
        parameters = start.copy()
        for name, value in values.items():
            parameters[names.index(name)] = value
        where = model.config.channel_slices[channel]
        return np.asarray(model.expected_actualdata(parameters))[where]

    def by_hand(channel, nuisance, way):
        total = 0
        for process in templates.processes:
            if channel in process.nominal:
                pair = process.shapes.get(nuisance)
                total = total + (pair[way][channel] if pair else process.nominal[channel]).value
        return total

    for channel in templates.channels:
        nominal = sum(p.nominal[channel].value for p in templates.processes if channel in p.nominal)
        np.testing.assert_allclose(expected(channel), nominal)
        np.testing.assert_allclose(expected(channel, lumi=1.0), 1.1 * nominal)
        np.testing.assert_allclose(expected(channel, lumi=-1.0), nominal / 1.1)
        for way, value in ((0, 1.0), (1, -1.0)):
            np.testing.assert_allclose(expected(channel, jes=value), by_hand(channel, "jes", way))
    text = datacard(templates, settings, "x.root")
    signals = parse_card(text)["signals"]
    strengths = [f"r_{name}" for name in signals] if templates.unfolds else ["r"]
    assert set(strengths) <= set(names)
    first = signals[0]
    change = expected("emu", **{strengths[0]: 2.0}) - expected("emu")
    (process,) = [p for p in templates.processes if p.name == first]
    np.testing.assert_allclose(change, process.nominal["emu"].value)
    # Statistical errors of a bin: those of all processes together.
    errors = [np.asarray(m["data"]) for c in workspace(templates)["channels"] if c["name"] == "emu"
              for s in c["samples"] for m in s["modifiers"] if m["type"] == "staterror"]  # fmt: skip
    variance = sum(p.nominal["emu"].variance for p in templates.processes)
    np.testing.assert_allclose(np.sum(np.square(errors), axis=0), variance)
