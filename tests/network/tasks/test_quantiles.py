"""Quantiles of true observables: laws of the network, the loss, the calibration; training and files."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from topreco.network.tasks.quantile_training import add_quantiles

from topreco.cli import main
from topreco.config import ModelConfig, QuantilesConfig, TrainConfig
from topreco.core import fourvector
from topreco.core.events import QUANTILE_LEVELS, Truth, mass_quality, toy_events
from topreco.core.skim import SkimWriter
from topreco.network.fit.data import TrainingError
from topreco.network.fit.loop import train
from topreco.network.inference import predict
from topreco.network.model_file import load_model, save_model
from topreco.network.tasks.quantiles import Calibration, calibrated, fit_calibration, pinball_loss
from topreco.network.tasks.tops import TopNetwork

SMALL = {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}
MODEL = {"backbone": SMALL, "head": "direct", "tokens": {"max_jets": 6}, "spurions": {"embed": "channel"}}
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


def answers(network, inputs):
    with torch.no_grad():
        p4, quantiles, std = network.answers(inputs)
    return p4, quantiles, std


# ---- the network -----------------------------------------------------------------------------------------


def test_quantiles_rise_and_stay_in_range(inputs):
    network = network_with_quantiles()
    p4, quantiles, std = answers(network, inputs)
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
    assert plain.answers(inputs)[0].shape == (len(inputs.met), 2, 4)
    assert len(plain.answers(inputs)) == 1


def test_rotation_about_the_beam(inputs, rotation):
    """Observables do not change; the uncertainty of a momentum has no direction of its own but the top's."""
    network = network_with_quantiles()
    rotated = inputs._replace(
        lepton_plus=inputs.lepton_plus @ rotation.T,
        lepton_minus=inputs.lepton_minus @ rotation.T,
        jets=inputs.jets @ rotation.T,
        met=inputs.met @ rotation[1:3, 1:3].T,
    )
    _, quantiles, std = answers(network, inputs)
    _, turned, turned_std = answers(network, rotated)
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
        first = quantiles(inputs, p4).quantiles[:, 0]
        second = quantiles(inputs, 2 * p4).quantiles[:, 0]
    torch.testing.assert_close(second, 2 * first)


@pytest.mark.parametrize("observables", [("m_tt",), ("c_hel", "cos_theta_star"), ("y_top", "pt_tt")])
def test_any_observables(inputs, observables):
    network = network_with_quantiles(observables=observables)
    _, quantiles, _ = answers(network, inputs)
    assert network.quantiles.observables == observables
    assert quantiles.isfinite().all()


def test_a_bivector_needs_other_spurions_beside_it(inputs):
    model = MODEL | {"backbone": {"kind": "lgatr", "blocks": 1}, "spurions": {"beam": "xyplane"}}
    with pytest.raises(ValueError, match=r"quantiles\.spurions\.beam: 'xyplane' is a bivector"):
        ModelConfig.model_validate(model | {"quantiles": QUANTILES})
    config = ModelConfig.model_validate(
        model | {"quantiles": QUANTILES | {"spurions": {"beam": "spacelike"}}}
    )
    _, quantiles, _ = answers(TopNetwork(config).double(), inputs)
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
    at = [
        network.quantiles._at(table, torch.from_numpy(log_mass))[:, :2]
        for table in (network.quantiles.shift, network.quantiles.stretch)
    ]
    better = calibrated(torch.from_numpy(u), *at).numpy()
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


def test_nothing_known_changes_nothing():
    u, truth, log_mass = gaussian(10, 4)
    calibration = fit_calibration(u, np.full_like(truth, np.nan), np.ones(10), log_mass, n_bins=1)
    assert (calibration.shift == 0).all()
    assert (calibration.stretch == 1).all()


def test_more_knots_are_the_same_function():
    network = network_with_quantiles(calibration_bins=7)
    other = network_with_quantiles(calibration_bins=2)
    log_mass = torch.linspace(5.5, 7.5, 50, dtype=torch.float64)
    for name in ("shift", "stretch"):
        tables = [getattr(each.quantiles, name) for each in (network, other)]
        assert len(tables[0]) == 7
        torch.testing.assert_close(
            network.quantiles._at(tables[0], log_mass), other.quantiles._at(tables[1], log_mass)
        )


def test_calibrated_quantiles_still_rise():
    u = torch.tensor([[[-2.0, -1.0, 0.0, 1.0, 2.0]]])
    stretch = torch.tensor([[[0.1, 1.0, 1.0, 1.0, 0.2]]])
    assert calibrated(u, torch.zeros(1, 1), stretch).flatten().tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]


# ---- training and files ----------------------------------------------------------------------------------


def truth_of(events, seed):
    """Tops with the leptons in them, and a momentum that the measurement knows nothing of."""
    n = len(events)
    rng = np.random.default_rng(seed)
    tops = np.stack([events.lepton_plus, events.lepton_minus], 1) * 2
    tops[..., 1:] += rng.normal(0, 30, (n, 2, 3))
    tops[..., 0] = np.sqrt(172.5**2 + (tops[..., 1:] ** 2).sum(-1))
    nothing = np.full((n, 2, 4), np.nan)
    return Truth(
        tops=tops,
        w=nothing,
        b=nothing,
        lepton=events.lepton_p4,
        neutrino=nothing,
        via_tau=np.zeros((n, 2), bool),
        dileptonic=np.ones(n, bool),
        production=np.zeros(n, np.int8),
    )


@pytest.fixture(scope="module")
def skims(tmp_path_factory):
    paths = []
    for seed, n in ((1, 3000), (2, 1500)):
        events = dataclasses.replace(
            toy_events(n, max_jets=6, seed=seed),
            weight=np.where(np.arange(n) % 9, 1.0, -1.0),
            dataset=np.full(n, seed, np.uint64),
        )
        paths.append(tmp_path_factory.mktemp("skims") / f"toy{seed}.parquet")
        with SkimWriter(paths[-1]) as writer:
            writer.metadata |= {"selection": {}, "datasets": {f"toy{seed}": 2**64 - 1}}
            writer.write(events, truth_of(events, seed))
    return paths


def configuration(skim, output, **changes):
    content = {
        "model": MODEL | {"quantiles": QUANTILES},
        "data": {"files": [skim]},
        "quantiles": {"epochs": 4, "batch_size": 64, "learning_rate": 1e-2},
        "epochs": 2,
        "batch_size": 64,
        "accelerator": "cpu",
        "threads": 1,
        "output": output,
    }
    return TrainConfig.model_validate(content | changes)


@pytest.fixture(scope="module")
def trained(skims, tmp_path_factory):
    return train(configuration(skims[0], tmp_path_factory.mktemp("trained")), progress=False)


def test_training_ends_with_calibrated_quantiles(trained):
    model = load_model(trained)
    test = model.metadata["quantiles"]["test"]
    assert set(test) == set(QuantilesConfig().observables)
    for name, numbers in test.items():
        # Of 600 test events and 300 for the calibration.
        assert numbers["coverage68"] == pytest.approx(0.68, abs=0.08), name
        assert numbers["coverage95"] == pytest.approx(0.95, abs=0.05), name
    pair = predict(model.networks, toy_events(50))
    assert set(pair.quantiles) == set(test)
    assert pair.uncertainty.shape == (50, 2, 4)
    np.testing.assert_array_equal(pair.quality, mass_quality(pair.quantiles))
    assert (pair.quality < 0).all()


def test_tops_are_those_of_a_training_without_quantiles(trained, skims, tmp_path):
    plain = configuration(skims[0], tmp_path, model=MODEL)
    expected = predict(load_model(train(plain, progress=False)).networks, toy_events(50))
    assert expected.quantiles is None
    np.testing.assert_array_equal(predict(load_model(trained).networks, toy_events(50)).p4, expected.p4)


def test_adding_them_later_gives_the_same_file(trained, skims, tmp_path):
    plain = train(configuration(skims[0], tmp_path / "plain", model=MODEL), progress=False)
    config = configuration(skims[0], tmp_path)
    add_quantiles(load_model(plain), config, tmp_path / "rich.safetensors", report=lambda _: None)
    first, second = load_model(trained), load_model(tmp_path / "rich.safetensors")
    for name, tensor in first.networks[0].state_dict().items():
        assert torch.equal(tensor, second.networks[0].state_dict()[name]), name
    assert second.metadata["quantiles"]["test"] == first.metadata["quantiles"]["test"]


def test_folds(skims, tmp_path):
    config = configuration(skims[0], tmp_path, data={"files": [skims[0]], "folds": 2}, epochs=1)
    model = load_model(train(config, progress=False))
    assert len(model.networks) == 2
    assert model.metadata["quantiles"]["test"]["m_tt"]["coverage68"] == pytest.approx(0.68, abs=0.08)
    assert np.isfinite(predict(model.networks, toy_events(20)).quality).all()


def test_calibration_on_other_events(trained, skims, tmp_path):
    config = configuration(skims[1], tmp_path)
    path = tmp_path / "calibrated.safetensors"
    before = load_model(trained)
    add_quantiles(before, config, path, calibrate_only=True, report=lambda _: None)
    after = load_model(path)
    calibration = after.metadata["quantiles"]["calibration"]
    assert (calibration["events"], calibration["validation_only"]) == (1500, False)
    assert "test" not in after.metadata["quantiles"]
    for name, tensor in before.networks[0].state_dict().items():
        changed = name.rpartition(".")[2] in {"knots", "shift", "stretch"}
        assert torch.equal(tensor, after.networks[0].state_dict()[name]) != changed, name
    # What has been read stays as it was.
    assert torch.equal(before.networks[0].quantiles.shift, load_model(trained).networks[0].quantiles.shift)


def test_training_events_never_calibrate(trained, skims, tmp_path):
    """Of a dataset that the model was trained on, only what it was validated with, whatever is asked for."""
    model = load_model(trained)
    config = configuration(skims[0], tmp_path, data={"files": [skims[0]], "validation_fraction": 0.5})
    path = tmp_path / "again.safetensors"
    add_quantiles(model, config, path, calibrate_only=True, report=lambda _: None)
    again = load_model(path)
    expected = model.metadata["data"]["networks"][0]["validation"]["events"]
    assert again.metadata["quantiles"]["calibration"]["events"] == expected
    for name, tensor in model.networks[0].state_dict().items():
        assert torch.equal(tensor, again.networks[0].state_dict()[name]), name


def test_events_without_an_answer_have_no_quantiles(trained):
    events = toy_events(4)
    met = events.met.copy()
    met[1] = np.nan
    pair = predict(load_model(trained).networks, dataclasses.replace(events, met=met))
    assert pair.valid.tolist() == [True, False, True, True]
    for column in (pair.quality, pair.uncertainty[:, 0, 0], pair.quantiles["c_hel"][:, 0]):
        assert np.isfinite(column).tolist() == [True, False, True, True]


def test_batches_and_order_change_nothing(trained):
    networks, events = load_model(trained).networks, toy_events(150)
    pair, other = predict(networks, events), predict(networks, events, batch_size=64)
    np.testing.assert_array_equal(pair.quantiles["m_tt"], other.quantiles["m_tt"])
    back = predict(networks, events[::-1])[::-1]
    np.testing.assert_allclose(back.quantiles["m_tt"], pair.quantiles["m_tt"], rtol=1e-4)


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
def test_one_clear_error(toy_model, skims, tmp_path, monkeypatch, capsys, arguments, message):
    replaced = [a.replace("PLAIN", str(toy_model)).replace("SKIM", str(skims[1])) for a in arguments]
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


def test_the_command(toy_model, skims, tmp_path, monkeypatch, capsys):
    output = tmp_path / "rich.safetensors"
    overrides = ["quantiles.epochs=1", "threads=1", "model.quantiles.hidden=8"]
    command = [
        "topreco",
        "quantiles",
        str(toy_model),
        "-o",
        str(output),
        f"data.files=[{skims[1]}]",
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


def test_unreadable_calibration_is_refused(trained, tmp_path):
    """A file whose tensors are not those of its configuration."""
    model = load_model(trained)
    network = model.networks[0]
    network.quantiles.knots = torch.zeros(5)
    save_model(tmp_path / "odd.safetensors", [network], {})
    with pytest.raises(Exception, match=r"quantiles\.knots.* of shape \(5,\), .* of shape \(3,\) expected"):
        load_model(tmp_path / "odd.safetensors")


def test_needs_validation_events(skims, tmp_path):
    config = configuration(skims[1], tmp_path, data={"files": [skims[1]], "validation_fraction": 0.0})
    with pytest.raises(TrainingError, match=r"data\.validation_fraction"):
        train(config, progress=False)
