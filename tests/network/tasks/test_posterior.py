"""Task `posterior`: axes of an event, coordinates, flow, laws of the network, its noise, its training."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from topreco.config import LossConfig, PosteriorConfig
from topreco.core import fourvector
from topreco.core.events import DileptonEvents, toy_events
from topreco.core.observables import OBSERVABLES, observable_values
from topreco.core.posterior import normal_noise
from topreco.network.inference import predict, sample
from topreco.network.model_file import load_model, save_model
from topreco.network.task import Evaluated
from topreco.network.tasks.augmentation import Augmentation
from topreco.network.tasks.calibration import Calibration
from topreco.network.tasks.frame import in_own_axes, own_axes, turned
from topreco.network.tasks.posterior import PosteriorNetwork, PosteriorTask
from topreco.network.tasks.summaries import SUMMARISED
from topreco.network.tasks.velocity import integrate
from topreco.network.tokens import Inputs

SMALL = {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}
MODEL = {"backbone": SMALL, "hidden": 16, "velocity": {"hidden": 16, "blocks": 1}, "steps": 4}


def random_network(**changes) -> PosteriorNetwork:
    """Untrained, with scales, a calibration and a velocity that are none of the trivial ones."""
    torch.manual_seed(3)
    network = PosteriorNetwork(PosteriorConfig.model_validate(MODEL | changes))
    for name in ("coordinate_mean", "feature_std"):
        getattr(network, name).uniform_(0.3, 0.8)
    for name in ("momentum_std", "mean_unit", "unit", "value_std"):
        getattr(network.summary, name).uniform_(0.3, 0.8)
    network.summary.momentum_std.mul_(100)
    if changes.get("velocity", {}).get("kind") != "tokens":
        torch.nn.init.normal_(network.velocity.out.weight, std=0.3)
    rng = np.random.default_rng(1)
    k = len(network.summary.unit)
    knots = np.log([350.0, 500.0])
    network.summary.set_calibration(
        Calibration(knots, rng.normal(0, 0.3, (2, k)), rng.uniform(0.5, 2, (2, k, 5)))
    )
    return network.double().eval()


def transformed(events: DileptonEvents, matrix: np.ndarray) -> DileptonEvents:
    """The events with all momenta multiplied by a matrix (3, 3)."""
    whole = np.eye(4)
    whole[1:, 1:] = matrix
    return dataclasses.replace(
        events,
        lepton_plus=events.lepton_plus @ whole.T,
        lepton_minus=events.lepton_minus @ whole.T,
        jets=events.jets @ whole.T,
        met=events.met @ matrix[:2, :2].T,
    )


def rotation(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])


SYMMETRIES = {
    "rotation": rotation(1.1),
    "mirror": np.diag([1.0, -1.0, 1.0]),
    "reflection": np.diag([1.0, 1.0, -1.0]),
    "all": rotation(-2.0) @ np.diag([-1.0, 1.0, -1.0]),
}


# ---- axes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_an_event_looks_alike_in_its_own_axes(symmetry):
    events = toy_events(50)
    found = []
    for each in (events, transformed(events, SYMMETRIES[symmetry])):
        inputs = Inputs.from_events(each, torch.float64)
        axes = own_axes(inputs)
        torch.testing.assert_close(axes @ axes.mT, torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
        found.append(in_own_axes(inputs, axes))
    for before, after in zip(*found, strict=True):
        torch.testing.assert_close(before, after)
    assert (found[0].lepton_plus[:, 2].abs() < 1e-9).all()
    assert (found[0].lepton_minus[:, 2] >= 0).all()


def test_axes_lead_there_and_back():
    inputs = Inputs.from_events(toy_events(20), torch.float64)
    axes = own_axes(inputs)
    torch.testing.assert_close(turned(turned(inputs.jets, axes), axes.mT), inputs.jets)


def test_a_lepton_along_the_beam_has_axes():
    events = toy_events(3)
    along = np.array([[30.0, 0, 0, 30.0]] * 3)
    axes = own_axes(Inputs.from_events(dataclasses.replace(events, lepton_plus=along), torch.float64))
    assert axes.isfinite().all()


# ---- coordinates and flow --------------------------------------------------------------------------------


def test_coordinates_are_invertible():
    network = random_network()
    momenta = torch.randn(30, 5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tops = fourvector.from_three_momentum(150 * momenta, 172.5)
    torch.testing.assert_close(network.tops(network.coordinates(tops)), tops)


def test_integration_is_of_second_order():
    """Where the target is a normal distribution the velocity is known, and the flow is a straight line."""
    mean, width = 1.5, 0.4

    def velocity(x, t):
        variance = (1 - t) ** 2 + (width * t) ** 2
        return mean + (width**2 * t - (1 - t)) / variance * (x - t * mean)

    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[None, :, None]
    errors = [(integrate(velocity, x, steps) - (mean + width * x)).abs().max() for steps in (8, 16)]
    assert errors[1] < 0.01
    assert errors[0] / errors[1] > 3


# ---- the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["head", "tokens"])
@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_symmetries_are_exact(symmetry, kind):
    network = random_network(velocity={"kind": kind, "hidden": 16, "blocks": 1})
    matrix, events = SYMMETRIES[symmetry], toy_events(40)
    other = transformed(events, matrix)
    before, after = (predict([network], each) for each in (events, other))
    np.testing.assert_allclose(after.p4[..., 1:], before.p4[..., 1:] @ matrix.T, rtol=1e-7, atol=1e-6)
    np.testing.assert_allclose(after.quantiles["m_tt"], before.quantiles["m_tt"], rtol=1e-7)
    samples = [sample([network], each, n_samples=3).samples for each in (events, other)]
    np.testing.assert_allclose(samples[1][..., 1:], samples[0][..., 1:] @ matrix.T, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_observables_change_as_those_of_momenta(symmetry):
    """The sign that an observable gets from a mirror is the one that its definition gives it."""
    matrix, events = SYMMETRIES[symmetry], toy_events(40)
    network = random_network()
    other = transformed(events, matrix)
    before, after = (predict([network], each) for each in (events, other))
    rng = np.random.default_rng(2)
    tops = fourvector.from_three_momentum(rng.normal(0, 150, (40, 2, 3)), 172.5)
    moved = fourvector.from_three_momentum(tops[..., 1:] @ matrix.T, 172.5)
    values = observable_values(SUMMARISED, tops, tops.sum(1), events.lepton_p4)
    values_moved = observable_values(SUMMARISED, moved, moved.sum(1), other.lepton_p4)
    for name in SUMMARISED:
        sign = np.sign((values_moved[name] / values[name]).mean().round(6))
        np.testing.assert_allclose(values_moved[name], sign * values[name], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(
            after.observables[name], sign * before.observables[name], rtol=1e-6, atol=1e-6
        )
        expected = before.quantiles[name] if sign > 0 else -before.quantiles[name][:, ::-1]
        np.testing.assert_allclose(after.quantiles[name], expected, rtol=1e-6, atol=1e-6)


def test_outputs_are_physical():
    pair = predict([random_network()], toy_events(100))
    np.testing.assert_allclose(fourvector.mass(pair.p4), 172.5, rtol=1e-6)
    for name, values in pair.quantiles.items():
        assert (np.diff(values, axis=1) >= 0).all(), name
        if name.startswith(("c_", "cos_")):
            assert (np.abs(values) <= 1).all(), name
            assert (np.abs(pair.observables[name]) <= 1).all(), name
    left_out = {"m_top", "m_antitop", "delta_phi_ll", "beta_t", "relative_velocity"}
    assert set(pair.observables) == set(OBSERVABLES) - left_out
    assert (pair.uncertainty > 0).all()


def test_padding_changes_nothing():
    network, events = random_network(), toy_events(60, max_jets=12)
    nothing = np.zeros((60, 3))
    wider = dataclasses.replace(
        events,
        jets=np.concatenate([events.jets, np.full((60, 3, 4), np.nan)], axis=1),
        jet_mask=np.concatenate([events.jet_mask, nothing > 0], axis=1),
        jet_btag=np.concatenate([events.jet_btag, nothing], axis=1),
        jet_tagged=np.concatenate([events.jet_tagged, nothing > 0], axis=1),
        jet_working_points=None,
    )
    for before, after in zip(
        *(predict([network], e).observables.values() for e in (events, wider)), strict=True
    ):
        np.testing.assert_allclose(before, after, rtol=1e-9, atol=1e-12)


def test_few_places_for_jets():
    events = toy_events(30, max_jets=4)
    one = dataclasses.replace(
        events,
        **{name: getattr(events, name)[:, :1] for name in ("jets", "jet_mask", "jet_btag", "jet_tagged")},
        b_candidates=np.where(events.b_candidates < 1, events.b_candidates, -1),
        jet_working_points=None,
    )
    assert predict([random_network()], one).valid.all()


# ---- samples ---------------------------------------------------------------------------------------------


def test_samples_depend_on_the_event_alone():
    network, events = random_network(), toy_events(300)
    whole = sample([network], events, n_samples=4, batch_size=1000).samples
    np.testing.assert_allclose(
        sample([network], events, n_samples=4, batch_size=50).samples, whole, rtol=1e-9
    )
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_allclose(sample([network], events[order], n_samples=4).samples, whole[order], rtol=1e-9)
    np.testing.assert_allclose(sample([network], events, n_samples=9).samples[:, :4], whole, rtol=1e-9)
    other = sample([network], events, n_samples=4, seed=2).samples
    assert (np.abs(other - whole).max(axis=(1, 2, 3)) > 1e-3).all()


def test_noise_is_normal_and_differs_between_events():
    events = toy_events(400)
    noise = normal_noise(events, (64, 6), 1)
    n = noise.size
    assert abs(noise.mean()) < 5 / math.sqrt(n)
    assert abs((noise**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((noise**4).mean() - 3) < 5 * math.sqrt(96 / n)
    flat = noise.reshape(-1, 6)
    correlation = np.corrcoef(flat.T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / math.sqrt(len(flat))
    assert len(np.unique(noise)) == n


def test_an_event_that_is_not_finite_has_no_samples():
    events = toy_events(5)
    met = events.met.copy()
    met[2] = np.nan
    posterior = sample([random_network()], dataclasses.replace(events, met=met), n_samples=3)
    assert posterior.valid.tolist() == [True, True, False, True, True]
    assert np.isnan(posterior.samples[2]).all()


# ---- training --------------------------------------------------------------------------------------------


def columns_of(events: DileptonEvents, tops: np.ndarray) -> dict[str, torch.Tensor]:
    return Inputs.from_events(events).columns() | {
        "tops": torch.from_numpy(tops.astype(np.float32)),
        "c_hel": torch.zeros(len(events)),
    }


def test_learns_a_distribution_with_two_humps():
    """pz(t) is ±300 GeV with equal chance whatever the event: the samples say so."""
    n = 2048
    events = toy_events(n, max_jets=4)
    inputs = Inputs.from_events(events)
    rng = np.random.default_rng(7)
    sign = rng.choice([-1.0, 1.0], n)
    momenta = np.zeros((n, 2, 3))
    momenta[:, 0, 2] = sign * 300 + rng.normal(0, 10, n)
    momenta[:, 1, 2] = rng.normal(0, 10, n)
    axes = own_axes(inputs)
    own = torch.from_numpy(fourvector.from_three_momentum(momenta, 172.5)).float()
    tops = turned(own, axes.mT).numpy()
    columns = columns_of(events, tops)
    torch.manual_seed(1)
    model = PosteriorConfig.model_validate(MODEL | {"velocity": {"hidden": 64, "blocks": 2}, "steps": 10})
    task = PosteriorTask(model, LossConfig(), Augmentation())
    network = task.build()
    task.prepare(network, columns)
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(300):
        part = slice(256 * (step % 8), 256 * (step % 8 + 1))
        loss = task.loss(network, {name: column[part] for name, column in columns.items()})[0].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    fresh = dataclasses.replace(events[:200], event=events.event[:200] + 10**6)
    posterior = sample([network], fresh, n_samples=32)
    pz = turned(torch.from_numpy(posterior.samples), axes[:200].double()).numpy()[..., 0, 3]
    share = (np.abs(np.abs(pz) - 300) < 100).mean()
    assert share > 0.9
    assert 0.35 < (pz > 0).mean() < 0.65


def test_metrics_are_reproducible():
    events = toy_events(64)
    rng = np.random.default_rng(1)
    tops = fourvector.from_three_momentum(rng.normal(0, 150, (64, 2, 3)), 172.5)
    columns = columns_of(events, tops)
    task = PosteriorTask(PosteriorConfig.model_validate(MODEL), LossConfig(), Augmentation())
    network = task.build()
    task.prepare(network, columns)
    one = torch.ones(64)
    with torch.no_grad():
        metrics = [task.metrics([Evaluated(network.eval(), columns, one, one)]) for _ in range(2)]
    assert metrics[0] == metrics[1]
    assert np.isfinite(list(metrics[0].values())).all()
    assert metrics[0]["loss"] > 0
    assert task.metrics([]) == {}
    assert "c_han" in task.describe(metrics[0])


def test_model_file_round_trip(tmp_path):
    network = random_network().float()
    save_model(tmp_path / "model.safetensors", [network], {})
    model = load_model(tmp_path / "model.safetensors")
    assert model.kind == "posterior"
    events = toy_events(70)
    before, after = predict([network], events), predict(model.networks, events)
    assert (before.p4 == after.p4).all()
    for name in SUMMARISED:
        assert (before.observables[name] == after.observables[name]).all()
