"""Which jet belongs to which lepton: b candidates from b tags and the lepton–b mass."""

from collections.abc import Callable
from functools import cache

import numpy as np

from topreco.core.constants import M_TOP, M_W
from topreco.core.events import BoolArray, FloatArray, IntArray
from topreco.core.fourvector import mass_squared

Density = Callable[[FloatArray], FloatArray]
"""Probability density of the mass of a correct lepton–b pair, from GeV to 1/GeV, any shape."""

# Fractions of longitudinal, left- and right-handed W bosons in top decay at NNLO in QCD,
# Czarnecki, Körner, Piclum, arXiv:1005.2625.
_LONGITUDINAL, _LEFT, _RIGHT = 0.687, 0.311, 0.002
# Relative width of reconstructed over generated m_ℓb of correct pairs: about half the jets' resolution.
_RESOLUTION = 0.10
_STEP, _LAST = 0.5, 400.0
_BLOCK = 1024


def parton_mlb_density(mass: FloatArray) -> FloatArray:
    """Density of m_ℓb in t → b W → b ℓ ν at leading order, massless b and ℓ, W and t on shell.

    With x = m²/(m_t² − m_W²) = (1 + cos θ*)/2, where θ* is the angle of the lepton in the rest frame of the W
    against the W's direction of flight, the helicity fractions of the W give

        dN/dx = 6 F₀ x (1 − x) + 3 F_L (1 − x)² + 3 F_R x².

    Parameters
    ----------
    mass
        Lepton–b mass in GeV, any shape.

    Returns
    -------
    density
        dN/dm in 1/GeV, of the same shape; zero beyond √(m_t² − m_W²) = 152.6 GeV.
    """
    end_squared = M_TOP**2 - M_W**2
    x = np.clip(mass**2 / end_squared, 0.0, 1.0)
    density = 6 * _LONGITUDINAL * x * (1 - x) + 3 * _LEFT * (1 - x) ** 2 + 3 * _RIGHT * x**2
    return np.where(mass**2 < end_squared, density * 2 * mass / end_squared, 0.0)


def mlb_density(mass: FloatArray) -> FloatArray:
    """Density of the reconstructed m_ℓb of correct pairs: the parton-level shape with a Gaussian resolution.

    The resolution of 10 % turns the kinematic edge into a smooth tail, so that every allowed pair has a
    probability. A density from simulation takes its place through the argument of `b_candidates`.

    Parameters
    ----------
    mass
        Lepton–b mass in GeV, any shape.

    Returns
    -------
    density
        dN/dm in 1/GeV, of the same shape.
    """
    return np.interp(mass, *_smeared())


@cache
def _smeared() -> tuple[FloatArray, FloatArray]:
    """Grid of masses in GeV and the smeared density on it."""
    grid = np.arange(0.0, _LAST + _STEP, _STEP)
    generated = grid[1:, None] - _STEP / 2
    width = _RESOLUTION * generated
    kernel = np.exp(-(((grid - generated) / width) ** 2) / 2) / (np.sqrt(2 * np.pi) * width)
    return grid, (parton_mlb_density(generated) * kernel).sum(axis=0) * _STEP


def b_candidates(
    lepton_plus: FloatArray,
    lepton_minus: FloatArray,
    jets: FloatArray,
    jet_mask: BoolArray,
    jet_tagged: BoolArray,
    *,
    m_lb_max: float = 180.0,
    density: Density = mlb_density,
) -> IntArray:
    """Ordered pair of b candidates: the jet of the top with ℓ⁺ and the jet of the antitop with ℓ⁻.

    Pairs of two tagged jets are preferred to those of one, and those to pairs without any; a pair is allowed
    only if both lepton–jet masses lie below `m_lb_max`. Within the best category that has an allowed pair,
    both orderings compete and the largest P(m_ℓ⁺b) P(m_ℓ⁻b̄) wins, at a tie the jets that come first.

    Parameters
    ----------
    lepton_plus, lepton_minus
        Four-momenta (E, px, py, pz) in GeV, shape (n, 4).
    jets
        Four-momenta (E, px, py, pz) in GeV, shape (n, J, 4).
    jet_mask, jet_tagged
        Whether there is a jet, and whether it is b-tagged, shape (n, J).
    m_lb_max
        Largest allowed lepton–jet mass in GeV, exclusive.
    density
        Probability density of the mass of a correct pair.

    Returns
    -------
    candidates
        Index into the jets for ℓ⁺ and for ℓ⁻, shape (n, 2); −1 for both where no pair is allowed.
    """
    n = len(jet_mask)
    found = np.full((n, 2), -1)
    # In blocks whose arrays of pairs of jets stay in the cache, without places that none of the events uses.
    for start in range(0, n, _BLOCK):
        block = slice(start, start + _BLOCK)
        n_jets = 1 + np.flatnonzero(jet_mask[block].any(axis=0)).max(initial=-1)
        if n_jets > 0:
            found[block] = _best_pair(
                (lepton_plus[block], lepton_minus[block]),
                jets[block, :n_jets],
                jet_mask[block, :n_jets],
                jet_tagged[block, :n_jets],
                m_lb_max,
                density,
            )
    return found


def _best_pair(
    leptons: tuple[FloatArray, FloatArray],
    jets: FloatArray,
    jet_mask: BoolArray,
    jet_tagged: BoolArray,
    m_lb_max: float,
    density: Density,
) -> IntArray:
    """See `b_candidates`."""
    n, n_jets = jet_mask.shape
    probabilities, allowed = [], []
    for lepton in leptons:
        # A jet along the lepton may have a mass of −ε² from rounding.
        mass = np.sqrt(np.maximum(mass_squared(lepton[:, None] + jets), 0.0))
        allowed.append(jet_mask & (mass < m_lb_max))
        probabilities.append(density(mass))
    possible = allowed[0][:, :, None] & allowed[1][:, None, :] & ~np.eye(n_jets, dtype=bool)
    n_tagged = jet_tagged[:, :, None].astype(np.int8) + jet_tagged[:, None, :]
    n_tagged = np.where(possible, n_tagged, -1)
    best = n_tagged.max(axis=(1, 2), keepdims=True)
    score = probabilities[0][:, :, None] * probabilities[1][:, None, :]
    # Below any probability, even one that vanishes.
    score = np.where((n_tagged == best) & possible, score, -1.0)
    chosen = np.stack(np.divmod(score.reshape(n, -1).argmax(axis=1), n_jets), axis=1)
    return np.where(best[:, :, 0] >= 0, chosen, -1)
