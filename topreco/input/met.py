"""How MET follows the corrections of objects, as type-1 corrections do, and its own variations.

MET' = MET − Σ(p'_T − p_T) over jets of pT > 15 GeV, after subtraction of the muons in them and without jets
of more than 90 % electromagnetic energy where NanoAOD has the branches for that, and over identified leptons.
`type1_met` begins with raw MET instead, and corrections that the file does not have.
"""

from collections.abc import Callable

import numpy as np

from topreco.config import NOMINAL, CorrectionConfig
from topreco.core.events import FloatArray, IntArray
from topreco.input.branches import Branches
from topreco.input.corrections import Columns, evaluate
from topreco.input.objects import Objects, Particles

SOFT_JETS = "CorrT1METJet"
"""NanoAOD's collection of jets that are too soft for `Jet`."""

_PT_MIN = 15.0
_EM_MAX = 0.9


def vector_sums(particles: Particles, pt: FloatArray, n: int) -> FloatArray:
    """Sum (px, py) in GeV of transverse momenta pt (objects,) along the particles of each event, (n, 2)."""
    direction = np.cos(particles.phi), np.sin(particles.phi)
    return np.stack([np.bincount(particles.event, pt * part, minlength=n) for part in direction], axis=-1)


def share_in_met(branches: Branches, kind: str, particles: Particles) -> FloatArray:
    """Fraction of the change of each object that MET follows, shape (objects,)."""
    if kind != "jet":
        return particles.identified.astype(np.float64)
    share = _without_muons(branches, "Jet", len(particles.pt))
    counted = particles.pt * share > _PT_MIN
    if branches.has("Jet_chEmEF", "Jet_neEmEF"):
        counted &= branches.finite("Jet_chEmEF") + branches.finite("Jet_neEmEF") < _EM_MAX
    return np.where(counted, share, 0.0)


def _without_muons(branches: Branches, collection: str, n: int) -> FloatArray:
    """Fraction of the raw momentum of each jet that is no muon, shape (jets,)."""
    name = f"{collection}_muonSubtrFactor"
    return 1 - branches.finite(name) if branches.has(name) else np.ones(n)


def type1_branches(raw_met: str) -> set[str]:
    """Branches that `type1_met` cannot do without, those of its correction excepted."""
    return {f"{raw_met}_{field}" for field in ("pt", "phi")}


def type1_met(
    objects: Objects,
    jets: Particles,
    raw: Particles,
    raw_met: str,
    offset: CorrectionConfig | None,
    correct: Callable[[Columns], FloatArray],
) -> FloatArray:
    """MET from raw MET: its jets are replaced by corrected ones [1]_.

    MET = raw MET − Σ(p_T − p_T^offset) over corrected jets of p_T > 15 GeV, all without their muons.
    p_T^offset is the raw momentum after the correction for pile-up alone, or the raw momentum where there is
    none. The sum runs over `Jet` and, where the file has them, over the softer jets of `CorrT1METJet`.

    Parameters
    ----------
    objects
        Objects as read.
    jets
        The jets, corrected.
    raw
        The jets without any correction.
    raw_met
        Name of raw MET.
    offset
        Correction for pile-up alone, if there is one.
    correct
        Corrections of soft jets, shape (jets,), from the columns that they depend on.

    Returns
    -------
    met
        (px, py) in GeV, shape (n, 2).

    Raises
    ------
    topreco.input.nano.InputError
        If a branch is missing or cannot be read.
    topreco.input.payloads.CorrectionError
        If a correction refuses its inputs or gives no number.

    References
    ----------
    .. [1] CMS Collaboration, "Performance of missing transverse momentum reconstruction in proton-proton
       collisions at √s = 13 TeV using the CMS detector", JINST 14 (2019) P07004, arXiv:1903.06078.
    """
    branches, n = objects.branches, len(objects)
    pt, phi = (branches.finite(f"{raw_met}_{field}", per_event=True) for field in ("pt", "phi"))
    met = np.stack([pt * np.cos(phi), pt * np.sin(phi)], axis=-1)

    def after_offset(pt: FloatArray, columns: Columns, chosen: IntArray) -> FloatArray:
        return pt[chosen] if offset is None else pt[chosen] * evaluate(offset, NOMINAL, columns, chosen)

    share = share_in_met(branches, "jet", jets)
    counted = np.flatnonzero(share)
    change = np.zeros(len(raw.pt))
    change[counted] = jets.pt[counted] - after_offset(raw.pt, Columns(branches, "jet", raw), counted)
    met -= vector_sums(jets, change * share, n)

    if not branches.has(f"{SOFT_JETS}_rawPt"):
        return met
    soft = _soft_jets(branches)
    columns = Columns(branches, "soft jet", soft)
    share = _without_muons(branches, SOFT_JETS, len(soft.pt))
    corrected = soft.pt * correct(columns)
    counted = np.flatnonzero((corrected * share > _PT_MIN) & soft.identified)
    change = np.zeros(len(soft.pt))
    change[counted] = corrected[counted] - after_offset(soft.pt, columns, counted)
    return met - vector_sums(soft, change * share, n)


def _soft_jets(branches: Branches) -> Particles:
    """Jets below the threshold of `Jet`, with raw momenta; identified unless mostly electromagnetic."""
    pt, eta, phi = (branches.finite(f"{SOFT_JETS}_{field}") for field in ("rawPt", "eta", "phi"))
    name = f"{SOFT_JETS}_EmEF"
    return Particles(
        counts=branches.counts(f"{SOFT_JETS}_rawPt"),
        pt=pt,
        eta=eta,
        phi=phi,
        mass=np.zeros(len(pt)),
        identified=branches.finite(name) < _EM_MAX if branches.has(name) else np.ones(len(pt), dtype=bool),
        dropped=np.zeros(len(pt), dtype=bool),
    )


def unclustered_deltas(met: str) -> list[str]:
    """Branches of the upward change of MET with the unclustered energy, as in older versions of NanoAOD."""
    return [f"{met}_MetUnclustEnUpDelta{axis}" for axis in "XY"]


def unclustered_momenta(met: str) -> list[str]:
    """Branches of the varied MET, as in newer versions."""
    return [f"{met}_{field}Unclustered{way}" for way in ("Up", "Down") for field in ("pt", "phi")]


def unclustered_shift(branches: Branches, variation: str) -> FloatArray:
    """Change of MET (px, py) in GeV with the unclustered energy, as NanoAOD stores it, shape (n, 2)."""
    met = branches.selection.met
    delta = unclustered_deltas(met)
    if branches.has(*delta):
        sign = 1 if variation == "up" else -1
        return sign * np.stack([branches.finite(name) for name in delta], axis=-1)
    suffix = f"Unclustered{variation.capitalize()}"
    pt, phi, varied_pt, varied_phi = (
        branches.finite(f"{met}_{name}") for name in ("pt", "phi", f"pt{suffix}", f"phi{suffix}")
    )
    return np.stack(
        [varied_pt * function(varied_phi) - pt * function(phi) for function in (np.cos, np.sin)],
        axis=-1,
    )
