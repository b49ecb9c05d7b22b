"""Where torch evaluates a network; of a GPU what can be tested without one."""

import copy
import pickle

import numpy as np
import pytest
import torch

import topreco
from topreco.config import ConfigError, RunConfig, build_config
from topreco.core.errors import TopRecoError
from topreco.core.events import toy_events
from topreco.core.shipped import shipped_models
from topreco.network.tasks.posterior import PosteriorNetwork
from topreco.network.tokens import Inputs
from topreco.reconstruction import network
from topreco.reconstruction.load import load_methods


@pytest.fixture
def without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def with_cuda(monkeypatch):
    """Two GPUs, as far as torch says; whatever is sent to them stays here."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    sent = []

    def to(self, device):
        sent.append(device)
        return self

    monkeypatch.setattr(torch.nn.Module, "to", to)
    network._on_device.cache_clear()
    yield sent
    network._on_device.cache_clear()


def same(a, b):
    np.testing.assert_array_equal(a.p4, b.p4)
    np.testing.assert_array_equal(a.valid, b.valid)
    assert a.observables.keys() == b.observables.keys()


def test_auto_without_a_gpu_is_the_cpu(without_cuda):
    events = toy_events(20)
    method = topreco.load("dilepton", device="auto")
    same(topreco.load("dilepton")(events), method(events))
    expected = topreco.load("dilepton").sample(events, 3)
    np.testing.assert_array_equal(method.sample(events, 3).samples, expected.samples)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_networks_are_sent_once_and_to_where_they_should(with_cuda, device):
    events = toy_events(20)
    method = pickle.loads(pickle.dumps(topreco.load("dilepton", device=device)))
    assert with_cuda == []  # a worker, not the process that loads, may ask CUDA
    same(topreco.load("dilepton")(events), method(events))
    method(events)
    method.sample(events, 2)
    assert with_cuda == [device]


def test_a_gpu_gets_large_batches(with_cuda, monkeypatch):
    seen = []
    forward = PosteriorNetwork.predictions
    monkeypatch.setattr(
        PosteriorNetwork, "predictions", lambda self, x: seen.append(len(x.met)) or forward(self, x)
    )
    topreco.load("dilepton", device="cuda")(toy_events(400))
    topreco.load("dilepton")(toy_events(400))
    assert seen == [448, 256, 192]  # multiples of 64


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_nothing_of_a_network_stays_behind(name):
    """torch's `meta` device computes no numbers, but refuses tensors of another device as a GPU does."""
    trained = topreco.load(name).model.networks[0]
    moved = copy.deepcopy(trained).to("meta")
    inputs = Inputs.from_events(toy_events(64), torch.float32, trained.config.tokens).to("meta")
    with torch.no_grad():
        outputs = moved.predictions(inputs) if isinstance(moved, PosteriorNetwork) else (moved(inputs),)
    assert {output.device.type for output in outputs} == {"meta"}
    assert outputs[0].shape == (64, 2, 4)


def test_a_device_that_is_not_there(without_cuda, monkeypatch):
    with pytest.raises(
        TopRecoError, match="device: 'cuda' found, and torch sees 0 CUDA devices; cpu or auto"
    ):
        topreco.load("dilepton-point", device="cuda")(toy_events(1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TopRecoError, match="device: 'cuda:1' found, and torch sees 1 CUDA devices"):
        topreco.load("dilepton-point", device="cuda:1")(toy_events(1))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(TopRecoError, match="device: 'mps' found, which this machine does not have"):
        topreco.load("dilepton-point", device="mps")(toy_events(1))


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "CUDA", ""])
def test_what_is_no_device(device):
    for name in ("dilepton-point", "loose"):
        with pytest.raises(TopRecoError, match=f"device: '{device}' found, auto, cpu, cuda"):
            topreco.load(name, device=device)
    with pytest.raises(ConfigError, match=f"device: device: '{device}' found|device: '{device}' found"):
        build_config(RunConfig, {"device": device}, "test")


def test_the_device_of_a_run_is_that_of_its_networks():
    found = load_methods(["dilepton-point", "loose"], device="cuda:1")
    assert found[0].device == "cuda:1"
    assert not hasattr(found[1], "device")
    assert build_config(RunConfig, {}, "test").device == "cpu"
