"""Toy tt̄ pairs: on-shell truth, and a reconstruction that shrinks and smears it."""

import dataclasses

import numpy as np
import pytest

from topreco import fourvector
from topreco.events import TopPair, Truth, toy_events


def _tops(transverse, y, mass):
    return fourvector.from_three_momentum(
        np.stack(
            [
                transverse[..., 0],
                transverse[..., 1],
                np.sqrt((transverse**2).sum(-1) + mass**2) * np.sinh(y),
            ],
            axis=-1,
        ),
        mass,
    )


def make_toy(n, *, seed=0, shrink=0.8, smear=0.2, efficiency=0.9, signed=False):
    rng = np.random.default_rng(seed)
    events = toy_events(n, seed=seed)
    if signed:
        events = dataclasses.replace(events, weight=rng.choice([1.0, 1.0, 1.0, 1.0, -1.0], n))
    pt, phi = rng.gamma(2.2, 50.0, n), rng.uniform(-np.pi, np.pi, n)
    back_to_back = np.stack([pt * np.cos(phi), pt * np.sin(phi)], axis=-1)
    transverse = np.stack([back_to_back, -back_to_back], axis=1) + rng.normal(0, 25, (n, 2, 2))
    y = rng.normal(0, 0.9, (n, 2))
    mass = 172.5 + rng.normal(0, 1.4, (n, 2))
    tops = _tops(transverse, y, mass)

    rng = np.random.default_rng([seed, round(1000 * shrink)])
    pred = _tops(
        shrink * transverse + rng.normal(0, 100 * smear, transverse.shape),
        shrink * y + rng.normal(0, smear, y.shape),
        rng.normal(172.5, 5, (n, 2)),
    )
    valid = rng.random(n) < efficiency
    pred[~valid] = np.nan
    unknown = np.full((n, 2, 4), np.nan)
    leptons = events.lepton_p4
    rng = np.random.default_rng([seed, 1])
    true_leptons = fourvector.from_three_momentum(leptons[..., 1:] + rng.normal(0, 3, (n, 2, 3)), 0.0)
    truth = Truth(
        tops=tops,
        w=unknown,
        b=unknown,
        lepton=true_leptons,
        neutrino=unknown,
        via_tau=np.zeros((n, 2), bool),
        dileptonic=np.ones(n, bool),
        production=np.zeros(n, np.int8),
    )
    return events, TopPair(p4=pred, valid=valid), truth


@pytest.fixture(scope="session")
def toy():
    """Factory (n, **options) → events, pair, truth."""
    return make_toy
