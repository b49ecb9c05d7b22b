"""The only place that packs, unpacks and boosts four-momenta (E, px, py, pz).

Every function works on numpy arrays and on torch tensors alike and broadcasts over leading axes; energies
are in GeV, angles in radians. Nothing here guards against unphysical input: a spacelike vector has a NaN
mass, so that it cannot pass unnoticed.
"""

import sys
from typing import Any, TypeVar

import numpy as np

from topreco.core.errors import TopRecoError

# numpy arrays and torch tensors; no common type exists without importing torch here.
Array = TypeVar("Array", bound=Any)


def namespace(array: Any) -> Any:
    """Module (numpy or torch) whose functions act on an array.

    Looks torch up instead of importing it, so that torch-free inference stays torch-free.
    """
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(array, torch.Tensor) else np


def pack(energy: Array, px: Array, py: Array, pz: Array) -> Array:
    """Four-momenta from their components.

    Parameters
    ----------
    energy, px, py, pz
        Components in GeV, of one shape (...).

    Returns
    -------
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (..., 4).
    """
    return namespace(energy).stack([energy, px, py, pz], -1)


def from_pt_eta_phi_mass(pt: Array, eta: Array, phi: Array, mass: Array) -> Array:
    """Four-momenta from the coordinates that NanoAOD stores.

    Parameters
    ----------
    pt, mass
        Transverse momentum and mass in GeV, shape (...).
    eta, phi
        Pseudorapidity and azimuth, shape (...).

    Returns
    -------
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (..., 4). A negative mass, as NanoAOD's rounding
        sometimes stores for light jets, counts as zero.
    """
    xp = namespace(pt)
    pz = pt * xp.sinh(eta)
    mass = xp.where(mass > 0, mass, 0 * mass)
    energy = xp.sqrt(pt**2 + pz**2 + mass**2)
    return pack(energy, pt * xp.cos(phi), pt * xp.sin(phi), pz)


def to_pt_eta_phi_mass(p4: Array) -> dict[str, Array]:
    """The coordinates that NanoAOD stores by name, see `from_pt_eta_phi_mass`, of p4 (..., 4), each (...)."""
    return {"pt": pt(p4), "eta": eta(p4), "phi": phi(p4), "mass": mass(p4)}


def from_three_momentum(momentum: Array, mass: Array | float) -> Array:
    """On-shell four-momenta of given three-momenta.

    Parameters
    ----------
    momentum
        Three-momenta (px, py, pz) in GeV, shape (..., 3).
    mass
        Mass in GeV, broadcastable to (...).

    Returns
    -------
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (..., 4).
    """
    xp = namespace(momentum)
    energy = xp.sqrt((momentum**2).sum(-1) + mass**2)
    return xp.concatenate([energy[..., None], momentum], -1)


def from_awkward(records: Any) -> Any:
    """Four-momenta from an awkward array of records, one per event.

    Parameters
    ----------
    records
        `ak.Array` of Lorentz vectors of `vector` or coffea, or of plain records with a complete set of
        coordinates such as (px, py, pz, E) or (pt, eta, phi, mass), in GeV. A missing record is no momentum.

    Returns
    -------
    p4
        Four-momenta (E, px, py, pz) in GeV, numpy array of shape (n, 4); NaN where missing.

    Raises
    ------
    TopRecoError
        If these are no four-momenta, or not one per event.
    """
    import awkward as ak
    import vector
    from vector.backends.awkward import behavior

    try:
        known = isinstance(records, vector.Lorentz)
        vectors = records if known else ak.with_name(records, "Momentum4D", behavior=behavior)
        columns = [getattr(vectors, name) for name in ("E", "px", "py", "pz")]
    except (AttributeError, TypeError) as error:
        raise TopRecoError(
            f"awkward four-momenta: records with (px, py, pz, E) or (pt, eta, phi, mass) expected, "
            f"{records.type} found"
        ) from error
    if records.ndim != 1:
        raise TopRecoError(f"awkward four-momenta: one record per event expected, {records.type} found")
    return np.stack([ak.to_numpy(ak.fill_none(column, np.nan)) for column in columns], axis=-1)


def to_awkward(p4: Array) -> Any:
    """Awkward array of `vector` records ``Momentum4D`` from four-momenta (E, px, py, pz) in GeV, (n, 4)."""
    import vector

    return vector.zip(dict(zip(("E", "px", "py", "pz"), np.moveaxis(p4, -1, 0), strict=True)))


def dot(a: Array, b: Array) -> Array:
    """Minkowski product a·b = E_a E_b − p_a·p_b (p: momentum) in GeV², shape (...)."""
    return a[..., 0] * b[..., 0] - (a[..., 1:] * b[..., 1:]).sum(-1)


def mass_squared(p4: Array) -> Array:
    """Squared invariant mass in GeV², shape (...); negative where spacelike."""
    return dot(p4, p4)


def mass(p4: Array) -> Array:
    """Invariant mass of four-momenta.

    Parameters
    ----------
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (..., 4).

    Returns
    -------
    mass
        Mass in GeV, shape (...); NaN where spacelike.
    """
    xp = namespace(p4)
    squared = mass_squared(p4)
    # numpy would warn about the root of a negative number, which is meant to become NaN.
    return xp.sqrt(xp.where(squared >= 0, squared, xp.nan * squared))


def pt(p4: Array) -> Array:
    """Transverse momentum in GeV, shape (...)."""
    return namespace(p4).sqrt(p4[..., 1] ** 2 + p4[..., 2] ** 2)


def phi(p4: Array) -> Array:
    """Azimuth in (−π, π], shape (...)."""
    return namespace(p4).arctan2(p4[..., 2], p4[..., 1])


def eta(p4: Array) -> Array:
    """Pseudorapidity, shape (...); infinite along the beam, NaN for a null vector."""
    xp = namespace(p4)
    transverse = pt(p4)
    on_axis = transverse == 0
    finite = xp.arcsinh(p4[..., 3] / xp.where(on_axis, transverse + 1, transverse))
    limit = xp.where(p4[..., 3] > 0, xp.inf, xp.where(p4[..., 3] < 0, -xp.inf, xp.nan))
    return xp.where(on_axis, limit, finite)


def rapidity(p4: Array) -> Array:
    """Rapidity ½ ln[(E + pz)/(E − pz)] along the beam, shape (...); NaN unless E > |pz|."""
    xp = namespace(p4)
    ratio = p4[..., 3] / xp.where(p4[..., 0] > 0, p4[..., 0], xp.nan * p4[..., 0])
    return xp.arctanh(xp.where(abs(ratio) < 1, ratio, xp.nan * ratio))


def delta_phi(a: Array, b: Array) -> Array:
    """Signed azimuthal difference φ(a) − φ(b) of four-momenta in [−π, π), shape (...)."""
    return (phi(a) - phi(b) + np.pi) % (2 * np.pi) - np.pi


def delta_r(a: Array, b: Array) -> Array:
    """Distance √(Δη² + Δφ²) of four-momenta, shape (...)."""
    return namespace(a).sqrt((eta(a) - eta(b)) ** 2 + delta_phi(a, b) ** 2)


def boost(p4: Array, velocity: Array) -> Array:
    """Active boost by a velocity, without rotation.

    Parameters
    ----------
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (..., 4).
    velocity
        Velocity in units of c, shape (..., 3), |velocity| < 1.

    Returns
    -------
    boosted
        Four-momenta as seen from a frame that moves with −velocity, shape (..., 4).
    """
    xp = namespace(p4)
    gamma = 1 / xp.sqrt(1 - (velocity**2).sum(-1))
    parallel = (velocity * p4[..., 1:]).sum(-1)
    energy = gamma * (p4[..., 0] + parallel)
    # (γ−1)/β² written as γ²/(γ+1), which is regular at rest.
    along = gamma**2 / (gamma + 1) * parallel + gamma * p4[..., 0]
    momentum = p4[..., 1:] + along[..., None] * velocity
    return xp.concatenate([energy[..., None], momentum], -1)


def to_rest_frame(p4: Array, frame: Array) -> Array:
    """Four-momenta in the rest frame of another, by one rotation-free boost.

    Parameters
    ----------
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (..., 4).
    frame
        Timelike four-momenta that come to rest, in GeV, shape (..., 4).

    Returns
    -------
    boosted
        Four-momenta (E, px, py, pz) in GeV, shape (..., 4).
    """
    return boost(p4, -frame[..., 1:] / frame[..., :1])
