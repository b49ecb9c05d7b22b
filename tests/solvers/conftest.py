"""Events that meet every constraint, drawn or read, with the neutrinos that solve them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from topreco.core.fourvector import boost, from_pt_eta_phi_mass, from_three_momentum, mass


class Exact(NamedTuple):
    """Arguments of a solver, and the true neutrinos (n, 2, 4)."""

    arguments: dict[str, Any]
    neutrinos: np.ndarray


class Kinematics(NamedTuple):
    """What determines an event: arrays (n,), (n, 2) for one per leg, directions (n, 5, 2) as cos θ and φ."""

    m_tt_excess: np.ndarray
    pt: np.ndarray
    phi: np.ndarray
    rapidity: np.ndarray
    m_top: np.ndarray
    m_w: np.ndarray
    m_b: np.ndarray
    m_lepton: np.ndarray
    directions: np.ndarray


def _decay(parent, m_1, m_2, direction):
    m = mass(parent)
    momentum = np.sqrt((m**2 - (m_1 + m_2) ** 2) * (m**2 - (m_1 - m_2) ** 2)) / (2 * m)
    cosine, phi = direction.T
    sine = np.sqrt(1 - cosine**2)
    p = momentum[:, None] * np.stack([sine * np.cos(phi), sine * np.sin(phi), cosine], -1)
    velocity = parent[:, 1:] / parent[:, :1]
    return boost(from_three_momentum(p, m_1), velocity), boost(from_three_momentum(-p, m_2), velocity)


def close(legs: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Exact:
    """Arguments with MET and each leg's masses computed from (lepton, b, neutrino) of both legs."""
    # Massless to the last digit, as the solvers take them.
    legs = [(lepton, b, from_three_momentum(neutrino[:, 1:], 0.0)) for lepton, b, neutrino in legs]
    (lepton_plus, b, neutrino), (lepton_minus, bbar, antineutrino) = legs
    arguments = {
        "lepton_plus": lepton_plus,
        "lepton_minus": lepton_minus,
        "b": b,
        "bbar": bbar,
        "met": (neutrino + antineutrino)[:, 1:3],
        "m_top": mass(lepton_plus + b + neutrino),
        "m_antitop": mass(lepton_minus + bbar + antineutrino),
        "m_w_plus": mass(lepton_plus + neutrino),
        "m_w_minus": mass(lepton_minus + antineutrino),
    }
    return Exact(arguments, np.stack([neutrino, antineutrino], 1))


def build(k: Kinematics) -> Exact:
    """Events of given kinematics."""
    m_tt = k.m_top.sum(1) + k.m_tt_excess
    m_transverse = np.hypot(m_tt, k.pt)
    system = np.stack(
        [
            m_transverse * np.cosh(k.rapidity),
            k.pt * np.cos(k.phi),
            k.pt * np.sin(k.phi),
            m_transverse * np.sinh(k.rapidity),
        ],
        -1,
    )
    tops = _decay(system, k.m_top[:, 0], k.m_top[:, 1], k.directions[:, 0])
    legs = []
    for leg, top in enumerate(tops):
        w, b = _decay(top, k.m_w[:, leg], k.m_b[:, leg], k.directions[:, 1 + 2 * leg])
        lepton, neutrino = _decay(w, k.m_lepton[:, leg], 0.0, k.directions[:, 2 + 2 * leg])
        legs.append((lepton, b, neutrino))
    return close(legs)


def draw(n: int, seed: int) -> Exact:
    """Random events with massive b quarks and leptons, and W and top masses that vary."""
    rng = np.random.default_rng(seed)
    directions = np.stack([rng.uniform(-1, 1, (n, 5)), rng.uniform(-np.pi, np.pi, (n, 5))], -1)
    return build(
        Kinematics(
            m_tt_excess=rng.exponential(120.0, n),
            pt=rng.exponential(40.0, n),
            phi=rng.uniform(-np.pi, np.pi, n),
            rapidity=rng.normal(0.0, 1.0, n),
            m_top=rng.normal(172.5, 1.5, (n, 2)),
            m_w=rng.normal(80.4, 2.0, (n, 2)),
            m_b=rng.uniform(0.0, 20.0, (n, 2)),
            m_lepton=rng.choice([0.000511, 0.105658, 1.777], (n, 2)),
            directions=directions,
        )
    )


@pytest.fixture(scope="session")
def exact_events() -> Callable[[int, int], Exact]:
    """Function (n, seed) that draws random exact events."""
    return draw


@pytest.fixture(scope="session")
def smeared_events() -> Callable[[int, int], dict[str, Any]]:
    """Function (n, seed) that draws arguments that no exact event has."""

    def smear(n: int, seed: int) -> dict[str, Any]:
        arguments = draw(n, seed).arguments
        rng = np.random.default_rng(seed)
        for name in ("lepton_plus", "lepton_minus", "b", "bbar"):
            arguments[name] = arguments[name] * rng.normal(1, 0.15, (n, 1))
        arguments["met"] = arguments["met"] + rng.normal(0, 25, (n, 2))
        return arguments

    return smear


@pytest.fixture(scope="session")
def events_of() -> Callable[..., Exact]:
    """Function of the fields of `Kinematics` that builds exact events."""
    return lambda **fields: build(Kinematics(**fields))


@pytest.fixture(scope="session")
def events_from_legs() -> Callable[..., Exact]:
    """Function of two (lepton, b, neutrino) that closes them to exact events."""
    return close


@pytest.fixture(scope="session")
def parton_events(data) -> Exact:
    """The parton-level sample: lbar, b, v belong to the top, l, bbar, vbar to the antitop."""
    uproot = pytest.importorskip("uproot")
    with uproot.open(data / "parton_tt2l_10k.root") as file:
        names = ("lbar", "b", "v", "l", "bbar", "vbar")
        branches = [f"{name}_{field}" for name in names for field in ("pt", "eta", "phi", "m")]
        tree = file["truth"].arrays(branches, library="np")
    p4 = {
        name: from_pt_eta_phi_mass(
            *(tree[f"{name}_{field}"].astype(np.float64) for field in ("pt", "eta", "phi", "m"))
        )
        for name in names
    }
    return close([(p4["lbar"], p4["b"], p4["v"]), (p4["l"], p4["bbar"], p4["vbar"])])


def residuals(arguments: dict[str, Any], neutrinos: np.ndarray, *, met: bool = True) -> np.ndarray:
    """Largest relative violation of the constraints per solution; NaN where there is none."""
    a = arguments
    found = []
    for leg, (lepton, b, m_w, m_top) in enumerate(
        (
            (a["lepton_plus"], a["b"], a["m_w_plus"], a["m_top"]),
            (a["lepton_minus"], a["bbar"], a["m_w_minus"], a["m_antitop"]),
        )
    ):
        neutrino = neutrinos[..., leg, :]
        found += [
            mass(neutrino + lepton[:, None]) / np.reshape(m_w, (-1, 1)) - 1,
            mass(neutrino + (lepton + b)[:, None]) / np.reshape(m_top, (-1, 1)) - 1,
        ]
    if met:
        missing = neutrinos[..., 1:3].sum(-2) - a["met"][:, None]
        found.append(np.linalg.norm(missing, axis=-1) / np.linalg.norm(a["met"], axis=-1)[:, None])
    return np.abs(np.stack(found)).max(0)


@pytest.fixture(scope="session")
def constraint_residuals() -> Callable[..., np.ndarray]:
    """Function (arguments, neutrinos (n, k, 2, 4)) → largest relative violation (n, k)."""
    return residuals
