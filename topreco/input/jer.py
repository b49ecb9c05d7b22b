"""Jets matched to generated ones, for the hybrid method of smearing the jet energy resolution.

Beside `topreco.input.truth` the only reader of generator branches: `Jet_genJetIdx` and the momenta of
`GenJet`, of simulation. One factor per jet leaves it, which corrects the simulation as a scale factor does.
Data have none.
"""

import numpy as np

from topreco.core.events import BoolArray, FloatArray, IntArray
from topreco.input.branches import Branches
from topreco.input.objects import Particles

GENERATOR_BRANCHES = ("GenJet_eta", "GenJet_phi", "GenJet_pt", "Jet_genJetIdx")
"""Branches that the matching reads."""

# Half the radius of the jets, and as many widths in pT [1]_.
_DISTANCE_MAX = 0.2
_WIDTHS_MAX = 3.0


def scale_matched(
    branches: Branches, jets: Particles, chosen: IntArray, resolution: FloatArray, ratio: FloatArray
) -> tuple[BoolArray, FloatArray]:
    """Factors of the momenta of matched jets: 1 + (s − 1)(pT − pT_gen)/pT [1]_.

    A jet is matched if the generated jet at `Jet_genJetIdx` is closer than ΔR = 0.2 and if
    |pT − pT_gen| < 3 σ pT. An index beyond the stored generated jets, which NanoAOD has for soft ones, is no
    match.

    Parameters
    ----------
    branches
        Branches of the chunk.
    jets
        All jets of the chunk, with the momenta to be smeared.
    chosen
        Positions of the jets to consider, shape (chosen,).
    resolution
        Relative resolution σ of the simulation, shape (chosen,).
    ratio
        Ratio s of the resolution in data to that in simulation, shape (chosen,).

    Returns
    -------
    matched
        Shape (chosen,).
    factor
        1 where not matched, shape (chosen,).

    Raises
    ------
    topreco.input.nano.InputError
        If a branch is missing or cannot be read, or a generated jet is not finite.

    References
    ----------
    .. [1] CMS JERC, "Smearing procedures", https://cms-jerc.web.cern.ch/JER/#smearing-procedures
    """
    counts = branches.counts("GenJet_pt")
    number = branches.read("Jet_genJetIdx").astype(np.int64)[chosen]
    event = jets.event[chosen]
    matched = (number >= 0) & (number < counts[event])
    found = ((np.cumsum(counts) - counts)[event] + number)[matched]
    pt, eta, phi = (
        values[chosen[matched]] - branches.finite(f"GenJet_{name}")[found]
        for name, values in (("pt", jets.pt), ("eta", jets.eta), ("phi", jets.phi))
    )
    distance = np.hypot(eta, (phi + np.pi) % (2 * np.pi) - np.pi)
    momentum = jets.pt[chosen[matched]]
    near = (distance < _DISTANCE_MAX) & (np.abs(pt) < _WIDTHS_MAX * resolution[matched] * momentum)
    factor = np.ones(len(chosen))
    matched[matched] = near
    factor[matched] += (ratio[matched] - 1) * pt[near] / momentum[near]
    return matched, factor
