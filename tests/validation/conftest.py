"""Toy skims with made-up truth, and toy methods that know nothing but the leptons."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from scipy.stats import norm

from topreco.core import fourvector
from topreco.core.events import Posterior, TopPair, Truth, dataset_id, toy_events
from topreco.core.observables import m_tt
from topreco.core.skim import SkimWriter


def _make_events(n, seed, *, m_top=172.5):
    """Toy events, and tops with the leptons in them and a momentum that the measurement does not see."""
    events = toy_events(n, seed=seed)
    rng = np.random.default_rng(seed)
    momentum = 2 * events.lepton_p4[..., 1:] + rng.normal(0, 30, (n, 2, 3))
    nothing = np.full((n, 2, 4), np.nan)
    truth = Truth(
        tops=fourvector.from_three_momentum(momentum, m_top),
        w=nothing,
        b=nothing,
        lepton=events.lepton_p4,
        neutrino=nothing,
        via_tau=rng.random((n, 2)) < 0.1,
        dileptonic=np.ones(n, bool),
        production=np.zeros(n, np.int8),
    )
    return events, truth


def _write_skim(path, n, seed, *, m_top=172.5, with_truth=True, first=0):
    events, truth = _make_events(n, seed, m_top=m_top)
    events.event[:] += first
    with SkimWriter(path, row_group_size=200) as writer:
        writer.metadata["datasets"] = {"toy": int(events.dataset[0])}
        writer.write(events, truth if with_truth else None)
    return path


class _Sampler:
    """The exact posterior of the toy events: twice the leptons, and 30 GeV in each component.

    With another width it is too narrow or too wide. It counts as a network, since it has a path.
    """

    uses_event_key = True
    metadata: ClassVar[dict] = {}

    def __init__(self, name, width=1.0):
        self.name, self.width, self.path = name, width, Path(f"{name}.safetensors")
        self.fingerprint = f"{name} {width}"

    def sample(self, events, n_samples=None):
        n, k = len(events), n_samples or 16
        uniforms = np.stack([events.uniform(i) for i in range(6 * k)], axis=1).reshape(n, k, 2, 3)
        # Of the name, so that two methods have samples of their own.
        shift = events.uniform(dataset_id(self.name)).reshape(n, 1, 1, 1)
        noise = norm.ppf((uniforms + shift) % 1).clip(-6, 6)
        momenta = 2 * events.lepton_p4[:, None, :, 1:] + 30 * self.width * noise
        return Posterior(fourvector.from_three_momentum(momenta, 172.5), np.zeros((n, k)))

    def __call__(self, events):
        p4 = fourvector.from_three_momentum(2 * events.lepton_p4[..., 1:], 172.5)
        return TopPair(p4=p4, valid=np.ones(len(events), bool))


class _Leptons:
    """Twice the leptons, on shell; every seventh event is not solved."""

    name = "leptons"
    uses_event_key = True

    def __call__(self, events):
        p4 = fourvector.from_three_momentum(2 * events.lepton_p4[..., 1:], 172.5)
        valid = events.event % 7 != 0
        mass = m_tt(p4)
        steps = np.array([-0.4, -0.2, 0.0, 0.2, 0.4])
        return TopPair(
            p4=np.where(valid[:, None, None], p4, np.nan),
            valid=valid,
            quality=np.where(valid, -mass, np.nan),
            quantiles={"m_tt": mass[:, None] * np.exp(steps)},
        )


@pytest.fixture
def no_page(monkeypatch):
    """Leave out the page, whose figures take longest."""
    monkeypatch.setattr("topreco.validation.validate.render", lambda *_: "")


@pytest.fixture(scope="session")
def leptons():
    return _Leptons()


@pytest.fixture(scope="session")
def sampler():
    """Class of methods with samples."""
    return _Sampler


@pytest.fixture(scope="session")
def make_events():
    return _make_events


@pytest.fixture(scope="session")
def write_skim():
    return _write_skim


@pytest.fixture(scope="session")
def skims(tmp_path_factory):
    """Two skims of 450 and 300 events in row groups of 200."""
    folder = tmp_path_factory.mktemp("skims")
    return [
        _write_skim(folder / "a.parquet", 450, 1),
        _write_skim(folder / "b.parquet", 300, 2, first=1000),
    ]
