"""Task `quantiles`: laws of its network, its loss, its calibration; no truth in its network; its command."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch

from topreco.cli import main
from topreco.config import ModelConfig, QuantilesConfig
from topreco.core import fourvector
from topreco.core.events import QUANTILE_LEVELS, toy_events
from topreco.network.inference import predict
from topreco.network.model_file import load_model, save_model
from topreco.network.task import Evaluated, TrainingError
from topreco.network.tasks.calibration import Calibration, calibrated, check_events, fit_calibration
from topreco.network.tasks.quantiles import QuantilesTask, by_observable, pinball_loss
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs

SMALL = {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}
MODEL = {"backbone": SMALL}
QUANTILES = {"backbone": SMALL, "hidden": 16, "calibration_bins": 3}


def network_with_quantiles(**changes):
    """Untrained, with scales and a calibration that are none of the trivial ones."""
    network = TopNetwork(ModelConfig.model_validate(MODEL | {"quantiles": QUANTILES | changes}))
    quantiles = network.quantiles
    k = len(quantiles.unit)
    quantiles.unit.copy_(torch.linspace(0.1, 0.5, k))
    rng = np.random.default_rng(1)
    knots = np.log([350.0, 500.0])
    quantiles.set_calibration(Calibration(knots, rng.normal(0, 0.3, (2, k)), rng.uniform(0.5, 2, (2, k, 5))))
    return network.double().eval()


def predictions(network, inputs):
    with torch.no_grad():
        p4, quantiles, std = network.predictions(inputs)
    return p4, quantiles, std


# ---- the network -----------------------------------------------------------------------------------------


def test_quantiles_rise_and_stay_in_range(inputs):
    network = network_with_quantiles()
    p4, quantiles, std = predictions(network, inputs)
    names = network.quantiles.observables
    assert quantiles.shape == (len(p4), len(names), len(QUANTILE_LEVELS))
    assert (quantiles.diff(dim=-1) >= 0).all()
    assert (std > 0).all()
    for name, values in zip(names, quantiles.unbind(1), strict=True):
        if name.startswith("pt_") or name == "m_tt":
            assert (values >= 0).all(), name
        if name == "c_hel":
            assert (values.abs() <= 1).all()


def test_tops_do_not_know_of_quantiles(inputs):
    torch.manual_seed(5)
    plain = TopNetwork(ModelConfig.model_validate(MODEL)).double()
    torch.manual_seed(5)
    rich = TopNetwork(ModelConfig.model_validate(MODEL | {"quantiles": QUANTILES})).double()
    with torch.no_grad():
        assert (plain(inputs) == rich(inputs)).all()
    assert plain.predictions(inputs)[0].shape == (len(inputs.met), 2, 4)
    assert len(plain.predictions(inputs)) == 1


def test_rotation_about_the_beam(inputs, rotation):
    """Observables do not change; the uncertainty of a momentum has no direction of its own but the top's."""
    network = network_with_quantiles()
    rotated = inputs._replace(
        lepton_plus=inputs.lepton_plus @ rotation.T,
        lepton_minus=inputs.lepton_minus @ rotation.T,
        jets=inputs.jets @ rotation.T,
        met=inputs.met @ rotation[1:3, 1:3].T,
    )
    _, quantiles, std = predictions(network, inputs)
    _, turned, turned_std = predictions(network, rotated)
    torch.testing.assert_close(turned, quantiles, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(turned_std[..., [0, 3]], std[..., [0, 3]], rtol=1e-6, atol=1e-6)
    total = (std[..., 1:3] ** 2).sum(-1)
    torch.testing.assert_close((turned_std[..., 1:3] ** 2).sum(-1), total, rtol=1e-6, atol=1e-6)


def test_quantiles_move_with_the_prediction(inputs):
    """They are those of the residual: with all of it constant, a shifted prediction shifts them alike."""
    quantiles = network_with_quantiles().quantiles
    with torch.no_grad():
        quantiles.layers[-1].weight.zero_()
        quantiles.set_calibration(Calibration.none(len(quantiles.unit), 3))
        p4 = fourvector.from_pt_eta_phi_mass(
            *torch.tensor([[100.0, 250.0], [0.3, -1.0], [1.0, -2.0], [170.0, 170.0]], dtype=torch.float64)
        ).expand(len(inputs.met), 2, 4)
        first = quantiles.spread(inputs, p4).quantiles[:, 0]
        second = quantiles.spread(inputs, 2 * p4).quantiles[:, 0]
    torch.testing.assert_close(second, 2 * first)


@pytest.mark.parametrize("observables", [("m_tt",), ("c_hel", "cos_theta_star"), ("y_top", "pt_tt")])
def test_any_observables(inputs, observables):
    network = network_with_quantiles(observables=observables)
    _, quantiles, _ = predictions(network, inputs)
    assert network.quantiles.observables == observables
    assert quantiles.isfinite().all()


def test_a_bivector_needs_other_spurions_beside_it(inputs):
    model = MODEL | {"backbone": {"kind": "lgatr", "blocks": 1}, "spurions": {"beam": "xyplane"}}
    with pytest.raises(ValueError, match=r"quantiles\.spurions\.beam: 'xyplane' is a bivector"):
        ModelConfig.model_validate(model | {"quantiles": QUANTILES})
    config = ModelConfig.model_validate(
        model | {"quantiles": QUANTILES | {"spurions": {"beam": "spacelike"}}}
    )
    _, quantiles, _ = predictions(TopNetwork(config).double(), inputs)
    assert quantiles.isfinite().all()


def test_an_observable_counts_once():
    with pytest.raises(ValueError, match="'m_tt' is given twice"):
        QuantilesConfig(observables=("m_tt", "m_tt"))


# ---- the loss --------------------------------------------------------------------------------------------


def test_the_pinball_loss_is_smallest_at_the_quantiles():
    truth = torch.from_numpy(np.random.default_rng(2).gamma(2.0, 1.0, (20_001, 1)))
    best = torch.quantile(truth[:, 0], torch.tensor(QUANTILE_LEVELS, dtype=torch.float64))
    unit = torch.ones(1, dtype=torch.float64)

    def loss(values):
        return float(pinball_loss(values.expand(len(truth), 1, -1), truth, unit).mean())

    for i in range(len(QUANTILE_LEVELS)):
        for step in (-0.05, 0.05):
            moved = best.clone()
            moved[i] += step
            assert loss(moved) > loss(best)


def test_unknown_truth_counts_nothing():
    u = torch.zeros(3, 2, 5, requires_grad=True)
    truth = torch.tensor([[1.0, torch.nan]] * 3)
    loss = pinball_loss(u, truth, torch.ones(2))
    assert (loss[:, 1] == 0).all()
    loss.sum().backward()
    assert u.grad.isfinite().all()
    assert (u.grad[:, 1] == 0).all()


# ---- calibration -----------------------------------------------------------------------------------------


def gaussian(n, seed):
    """Claimed quantiles of a unit Gaussian, wrong in centre and width, more so for heavier pairs."""
    rng = np.random.default_rng(seed)
    log_mass = rng.uniform(5.9, 6.9, n)
    claimed = np.tile([-1.95996, -0.99446, 0.0, 0.99446, 1.95996], (n, 2, 1))
    centre, width = 0.5 * (log_mass - 6), 1 + (log_mass - 6)
    truth = np.stack([rng.normal(centre, width), rng.normal(0, 0.5, n)], 1)
    return claimed, truth, log_mass


def pairs(log_mass):
    """Tops at rest relative to each other, whose pair has the mass, shape (n, 2, 4)."""
    p4 = torch.zeros(len(log_mass), 2, 4, dtype=torch.float64)
    p4[..., 0] = 0.5 * torch.as_tensor(log_mass).exp()[:, None]
    return p4


def shares(u, truth):
    return (truth[..., None] < u).mean(axis=0)


def test_calibration_gives_each_quantile_its_share():
    u, truth, log_mass = gaussian(40_000, 1)
    calibration = fit_calibration(u, truth, np.ones(len(u)), log_mass, n_bins=8)
    network = network_with_quantiles(observables=("m_tt", "c_hel"), calibration_bins=8)
    network.quantiles.set_calibration(
        Calibration(
            calibration.knots,
            np.pad(calibration.shift, ((0, 0), (0, 8))),
            np.pad(calibration.stretch, ((0, 0), (0, 8), (0, 0))),
        )
    )
    u, truth, log_mass = gaussian(40_000, 2)
    assert abs(shares(u, truth)[0] - QUANTILE_LEVELS).max() > 0.1
    padded = torch.from_numpy(np.pad(u, ((0, 0), (0, 8), (0, 0))))
    better = network.quantiles.calibrated(padded, pairs(log_mass))[:, :2].numpy()
    for region in (log_mass < 6.2, (log_mass >= 6.2) & (log_mass < 6.6), log_mass >= 6.6):
        np.testing.assert_allclose(
            shares(better[region], truth[region]), np.tile(QUANTILE_LEVELS, (2, 1)), atol=0.02
        )


def test_calibration_counts_weights_and_ignores_unknown_truth():
    u, truth, log_mass = gaussian(4000, 3)
    weight = np.r_[np.ones(2000), np.zeros(2000)]
    changed = truth.copy()
    changed[2000:] += 100
    expected = fit_calibration(u, truth, weight, log_mass, n_bins=2)
    for name, value in fit_calibration(u, changed, weight, log_mass, n_bins=2)._asdict().items():
        np.testing.assert_array_equal(value, getattr(expected, name))
    changed[2000:] = np.nan
    for name, value in fit_calibration(u, changed, np.ones(4000), log_mass, n_bins=2)._asdict().items():
        np.testing.assert_array_equal(value, getattr(expected, name))


@pytest.mark.parametrize("n", [39, 60, 200])
def test_calibration_on_few_events_promises_what_it_says(n):
    """Conformal ranks: averaged over calibrations, new events lie within at least as often as claimed."""
    rng = np.random.default_rng(n)
    outside = np.zeros((400, 2))
    for repeat in outside:
        claimed = np.tile([-0.4, -0.2, 0.0, 0.2, 0.4], (n, 1, 1))
        truth = rng.normal(0.3, 1.0, (n, 1))
        found = fit_calibration(claimed, truth, np.ones(n), np.zeros(n), n_bins=1)
        limits = calibrated(*map(torch.as_tensor, (claimed[:1], found.shift, found.stretch)))[0, 0].numpy()
        probability = [0.5 * (1 + math.erf((x - 0.3) / math.sqrt(2))) for x in limits]
        repeat[:] = 1 - probability[4] + probability[0], 1 - probability[3] + probability[1]
    assert outside.mean(0)[0] <= 0.05 + 0.005
    assert outside.mean(0)[1] <= 0.32 + 0.01


def test_calibration_ranks_by_hand():
    """Of 39 events the 95 % limits are the outermost, with weights as with copies but for their number."""
    claimed = np.tile([-2.0, -1.0, 0.0, 1.0, 2.0], (39, 1, 1))
    truth = np.random.default_rng(1).permutation(np.arange(-19.0, 20.0))[:, None]
    found = fit_calibration(claimed, truth, np.full(39, 0.3), np.zeros(39), n_bins=1)
    assert found.shift.tolist() == [[0.0]]
    # The 33.6th and the 39th of 39.
    assert found.stretch[0, 0].tolist() == [9.5, 14.0, 1.0, 14.0, 9.5]


@pytest.mark.parametrize(("n", "weight"), [(1, 1.0), (38, 2.0), (400, None)])
def test_too_few_events_to_calibrate(n, weight):
    weights = np.r_[1e3, np.ones(n - 1)] if weight is None else np.full(n, weight)
    message = {
        1: "1 events, worth 1 of equal weight, .* no more than 0 %",
        38: "38 events, worth 38 of equal weight, .* no more than 95 % .* 95 % need 39",
        400: "400 events, worth 1.96 of equal weight, .* no more than 32 %",
    }[n]
    with pytest.raises(TrainingError, match=f"data: {message}"):
        check_events(weights, "data")
    u, truth, log_mass = gaussian(n, 4)
    assert (fit_calibration(u, truth, weights, log_mass, n_bins=1).stretch == 1).all()
    check_events(np.full(39, 0.1), "data")


def test_nothing_known_changes_nothing():
    u, truth, log_mass = gaussian(10, 4)
    calibration = fit_calibration(u, np.full_like(truth, np.nan), np.ones(10), log_mass, n_bins=1)
    assert (calibration.shift == 0).all()
    assert (calibration.stretch == 1).all()


def test_more_knots_are_the_same_function():
    network = network_with_quantiles(calibration_bins=7)
    other = network_with_quantiles(calibration_bins=2)
    assert (len(network.quantiles.knots), len(other.quantiles.knots)) == (7, 2)
    p4 = pairs(np.linspace(5.5, 7.5, 50))
    u = torch.randn(50, 1, 5, dtype=torch.float64).sort(-1).values.expand(-1, len(network.quantiles.unit), -1)
    torch.testing.assert_close(network.quantiles.calibrated(u, p4), other.quantiles.calibrated(u, p4))


def test_one_knot_is_the_same_everywhere():
    network = network_with_quantiles(calibration_bins=1)
    k = len(network.quantiles.unit)
    network.quantiles.set_calibration(Calibration(np.zeros(1), np.full((1, k), 0.5), np.full((1, k, 5), 2.0)))
    u = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64).expand(3, k, 5)
    expected = torch.tensor([-3.5, -1.5, 0.5, 2.5, 4.5], dtype=torch.float64).expand(3, k, 5)
    torch.testing.assert_close(network.quantiles.calibrated(u, pairs([5.0, 6.0, 7.0])), expected)


def test_calibrated_quantiles_still_rise():
    u = torch.tensor([[[-2.0, -1.0, 0.0, 1.0, 2.0]]])
    stretch = torch.tensor([[[0.1, 1.0, 1.0, 1.0, 0.2]]])
    assert calibrated(u, torch.zeros(1, 1), stretch).flatten().tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]


# ---- the task --------------------------------------------------------------------------------------------

TRUTH_COLUMNS = {"tops", "c_hel"}


def make_task(charge_exchange=False):
    config = ModelConfig.model_validate(MODEL | {"quantiles": QUANTILES | {"observables": ["m_tt", "c_hel"]}})
    torch.manual_seed(3)
    tops = [TopNetwork(config.model_copy(update={"quantiles": None})).eval() for _ in range(2)]
    return QuantilesTask(config, tops, charge_exchange=charge_exchange)


@pytest.fixture
def columns(truth_of):
    events = toy_events(64, max_jets=4)
    return make_task().columns(events, truth_of(events))


@pytest.mark.parametrize("exchange", [False, True])
def test_predictions_of_the_fold_s_tops_are_derived(columns, exchange):
    task = make_task(exchange)
    inputs = Inputs.from_columns(columns)
    with torch.no_grad():
        derived = task.derive(1, columns)
        assert torch.equal(derived["p4"], task.tops[1](inputs))
        assert set(derived) == ({"p4", "p4_exchanged"} if exchange else {"p4"})
        if exchange:
            assert torch.equal(derived["p4_exchanged"], task.tops[1](inputs.charge_exchanged()))
    whole = columns | derived
    drawn = task.draw(64, torch.Generator().manual_seed(2))
    augmented = task.augment(whole, drawn)
    if not exchange:
        assert augmented is whole
        return
    chosen = drawn["exchange"]
    assert 16 < chosen.sum() < 48
    assert torch.equal(augmented["p4"][chosen], derived["p4_exchanged"][chosen])
    assert torch.equal(augmented["p4"][~chosen], derived["p4"][~chosen])
    assert torch.equal(augmented["tops"][chosen], columns["tops"].flip(1)[chosen])
    assert torch.equal(augmented["lepton_plus"][chosen], columns["lepton_minus"][chosen])


def test_truth_never_reaches_the_network(columns, truth_of):
    """Derived predictions, tokens and quantiles are the same bits whatever the truth is."""
    events = toy_events(64, max_jets=4)
    truth = truth_of(events)
    truth.tops[:] = np.random.default_rng(1).normal(0, 500, truth.tops.shape)
    truth.lepton[:] = truth.lepton[::-1]
    task = make_task()
    other = task.columns(events, truth)
    assert not torch.equal(other["tops"], columns["tops"])
    without = {name: column for name, column in columns.items() if name not in TRUTH_COLUMNS}
    network = task.build().eval()
    results = []
    with torch.no_grad():
        for seen in (columns, other, without):
            inputs, derived = Inputs.from_columns(seen), task.derive(0, seen)
            spread = network.spread(inputs, derived["p4"])
            results.append([*derived.values(), *network.encoder.tokens(inputs), *spread])
    for changed in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(changed, results[0], strict=True))


def test_scales_and_loss_of_the_task(columns):
    task = make_task()
    network = task.build()
    with torch.no_grad():
        whole = columns | task.derive(0, columns)
    task.prepare(network, whole)
    assert network.encoder.feature_mean.any()
    inputs, p4 = Inputs.from_columns(whole), whole["p4"]
    predicted = network.values(inputs, p4, p4)
    torch.testing.assert_close(network.value_mean, predicted.mean(0), rtol=1e-4, atol=1e-4)
    truth = network.values(inputs, whole["tops"], p4)
    truth[:, 1] = whole["c_hel"]
    residual = truth - predicted
    # Mean absolute residual; c_hel of one event is unknown.
    expected = torch.stack([r[r.isfinite()].abs().mean() for r in residual.unbind(1)])
    torch.testing.assert_close(network.unit, expected, rtol=1e-4, atol=1e-5)
    per_event, per_batch = task.loss(network, whole)
    assert per_batch is None
    torch.testing.assert_close(per_event, pinball_loss(network(inputs, p4), residual, network.unit).mean(1))
    assert torch.equal(task.loss_weights(torch.tensor([2.0, -3.0]), {}), torch.tensor([2.0, 3.0]))


def test_metrics_by_hand(columns):
    """Coverage with signed weights, the loss with positive ones; batches change nothing."""
    task = make_task()
    network = task.build().eval()
    weight = torch.where(torch.arange(64) % 5 == 0, -1.0, 1.0)
    with torch.no_grad():
        whole = columns | task.derive(0, columns)

        def batches(size):
            for part in torch.arange(64).split(size):
                own = {name: column[part] for name, column in whole.items()}
                yield Evaluated(network, own, weight[part], weight[part].abs())

        metrics = task.metrics(batches(64))
        assert task.metrics(batches(7)) == pytest.approx(metrics, rel=1e-5)
        m_tt = fourvector.mass(whole["tops"].sum(1))
        limits = network.spread(Inputs.from_columns(whole), whole["p4"]).quantiles[:, 0]
        inside = (m_tt > limits[:, 1]) & (m_tt <= limits[:, 3])
        per_event, _ = task.loss(network, whole)
    assert metrics["m_tt_coverage68"] == pytest.approx(float((weight * inside).sum() / weight.sum()))
    assert metrics["loss"] == pytest.approx(float(per_event.mean()), rel=1e-5)
    nested = by_observable(metrics, ("m_tt", "c_hel"))
    assert nested["c_hel"]["coverage95"] == metrics["c_hel_coverage95"]
    assert "m_tt in the 68 % interval" in task.describe(metrics)
    assert task.metrics([]) == by_observable({}, ("m_tt",)) == {}


def test_calibration_needs_events():
    task = make_task()
    with pytest.raises(TrainingError, match=r"data\.validation_fraction: no validation events"):
        task.finish([task.build()], lambda fold: [])


# ---- files and the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Model file of an untrained network with quantiles."""
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    save_model(path, [network_with_quantiles().float()], {})
    return path


def test_events_without_a_prediction_have_no_quantiles(saved):
    events = toy_events(4)
    met = events.met.copy()
    met[1] = np.nan
    pair = predict(load_model(saved).networks, dataclasses.replace(events, met=met))
    assert pair.valid.tolist() == [True, False, True, True]
    for column in (pair.quality, pair.uncertainty[:, 0, 0], pair.quantiles["c_hel"][:, 0]):
        assert np.isfinite(column).tolist() == [True, False, True, True]


def test_batches_and_order_change_nothing(saved):
    networks, events = load_model(saved).networks, toy_events(150)
    pair, other = predict(networks, events), predict(networks, events, batch_size=64)
    np.testing.assert_array_equal(pair.quantiles["m_tt"], other.quantiles["m_tt"])
    back = predict(networks, events[::-1])[::-1]
    np.testing.assert_allclose(back.quantiles["m_tt"], pair.quantiles["m_tt"], rtol=1e-4)


def test_unreadable_calibration_is_refused(saved, tmp_path):
    """A file whose tensors are not those of its configuration."""
    network = load_model(saved).networks[0]
    network.quantiles.knots = torch.zeros(5)
    save_model(tmp_path / "odd.safetensors", [network], {})
    with pytest.raises(Exception, match=r"quantiles\.knots.* of shape \(5,\), .* of shape \(3,\) expected"):
        load_model(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sonnenschein"], "quantiles 'sonnenschein': a trained network expected"),
        (["PLAIN", "--calibrate-only", "data.files=[SKIM]"], "the model has no quantiles"),
        (["PLAIN"], "data.files: no skims given"),
        (
            ["PLAIN", "data.files=[SKIM]", "data.validation_fraction=0"],
            "data.validation_fraction: no validation",
        ),
        (["PLAIN", "model.quantiles.observables=[pt]"], "observables.*found 'pt'"),
    ],
)
def test_one_clear_error(toy_model, skim, tmp_path, monkeypatch, capsys, arguments, message):
    replaced = [a.replace("PLAIN", str(toy_model)).replace("SKIM", str(skim)) for a in arguments]
    output = tmp_path / "out.safetensors"
    monkeypatch.setattr("sys.argv", ["topreco", "quantiles", *replaced, "-o", str(output)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not output.exists()


def test_the_command(toy_model, skim, tmp_path, monkeypatch, capsys):
    output = tmp_path / "rich.safetensors"
    overrides = [
        "quantiles.epochs=1",
        "threads=1",
        "model.quantiles.hidden=8",
        "data.validation_fraction=0.5",
    ]
    command = [
        "topreco",
        "quantiles",
        str(toy_model),
        "-o",
        str(output),
        f"data.files=[{skim}]",
        *overrides,
    ]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    printed = capsys.readouterr()
    assert "m_tt: " in printed.out
    assert "quantiles, epoch 1/1" in printed.err
    assert load_model(output).config.quantiles.hidden == 8
