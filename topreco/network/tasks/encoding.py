r"""Objects as a few integers: a vector-quantised encoding, and plain bins as its rival.

An object has the coordinates ln pT, η, φ and ln m. A codebook of K vectors is the K-means of the training
objects in these coordinates, each in units of its standard deviation and φ as cos φ and sin φ, so that
nothing happens at ±π; the next codebook is that of the differences to the nearest vectors, and so on
(residual vector quantisation [1]_). K-means looks for the K values with the smallest mean squared error, so
that little is left to learnt layers around a codebook, as in VQ-VAE [2]_ and OmniJet-α [3]_, unless they look
at the other objects. Bins have edges at quantiles of each coordinate.

Positive lepton, negative lepton, MET and jets have codebooks and bins of their own.

References
----------
.. [1] N. Zeghidour et al., SoundStream: an end-to-end neural audio codec, arXiv:2107.03312.
.. [2] A. van den Oord, O. Vinyals, K. Kavukcuoglu, Neural discrete representation learning, arXiv:1711.00937.
.. [3] J. Birk, A. Hallin, G. Kasieczka, OmniJet-α: the first cross-task foundation model for particle
   physics, arXiv:2403.05618.
"""

import math
from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from topreco.config import NextTokenConfig
from topreco.core import fourvector
from topreco.core.errors import needs_extra
from topreco.network.task import TrainingError
from topreco.network.tasks.summaries import positive

KINDS = ("lepton_plus", "lepton_minus", "met", "jet")
"""Kinds of objects, in the order in which they are predicted."""
MET, JET = 2, 3
"""Places of MET and jets among `KINDS`."""

_COORDINATES = 4
_SMALLEST_PT = 0.1
_SMALLEST_MASS = 0.1
_LARGEST_ETA = 6.0
# Objects of a kind from which codebooks are made, and iterations of K-means.
_SAMPLE = 20_000
_ITERATIONS = 15


def coordinates(p4: Float[Tensor, "*n 4"], kind: Int[Tensor, "*n"]) -> Float[Tensor, "*n 4"]:
    """Coordinates ln pT, η, φ and ln m, with GeV as the unit.

    Parameters
    ----------
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (..., 4).
    kind
        Places among `KINDS`, shape (...). ln m is 0 but for jets, and η is 0 for MET.
    """
    _, px, py, pz = p4.unbind(-1)
    pt = (px.square() + py.square()).sqrt().clamp(min=_SMALLEST_PT)
    eta = torch.asinh(pz / pt).clamp(-_LARGEST_ETA, _LARGEST_ETA)
    log_m = 0.5 * fourvector.mass_squared(p4).clamp(min=_SMALLEST_MASS**2).log()
    zero = torch.zeros_like(pt)
    return torch.stack(
        [
            pt.log(),
            torch.where(kind == MET, zero, eta),
            torch.atan2(py, px),
            torch.where(kind == JET, log_m, zero),
        ],
        -1,
    )


def momenta(
    x: Float[Tensor, "*n 4"], kind: Int[Tensor, "*n"], lepton_mass: Float[Tensor, "*n"]
) -> Float[Tensor, "*n 4"]:
    """Four-momenta (E, px, py, pz) in GeV from `coordinates`, shape (..., 4).

    Parameters
    ----------
    x
        ln pT, η, φ and ln m, shape (..., 4).
    kind
        Places among `KINDS`, shape (...).
    lepton_mass
        Mass of the object in GeV if it is a lepton, shape (...).
    """
    log_pt, eta, phi, log_m = x.unbind(-1)
    mass = torch.where(kind == JET, log_m.exp(), torch.where(kind == MET, 0.0, lepton_mass))
    return fourvector.from_pt_eta_phi_mass(log_pt.exp(), eta, phi, mass)


class ObjectEncoding(nn.Module):
    """From coordinates of objects to integers and back.

    Attributes
    ----------
    levels
        Number of integers of an object.
    codes
        Number of values that each of them has.
    """

    levels: int
    codes: int

    @abstractmethod
    def fit(self, x: Float[Tensor, "m 4"], kind: int) -> None:
        """Make the codebook or the bins of a kind of objects from training objects."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "*n 4"], kind: Int[Tensor, "*n"]) -> Int[Tensor, "*n levels"]:
        """Integers of objects of known kinds."""

    @abstractmethod
    def decode(self, codes: Int[Tensor, "*n levels"], kind: Int[Tensor, "*n"]) -> Float[Tensor, "*n 4"]:
        """Coordinates of the objects that integers stand for."""


class Codebooks(ObjectEncoding):
    """Residual vector quantisation.

    Parameters
    ----------
    levels, codes
        Codebooks for each kind of objects, and vectors in each of them.
    """

    books: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, levels: int, codes: int) -> None:
        super().__init__()
        self.levels, self.codes = levels, codes
        n, d = len(KINDS), _COORDINATES + 1
        self.register_buffer("books", torch.zeros(n, levels, codes, d))
        self.register_buffer("mean", torch.zeros(n, d))
        self.register_buffer("std", torch.ones(n, d))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "m 4"], kind: int) -> None:
        """Codebooks of a kind of objects by K-means of training objects, with torch's global generator.

        Raises
        ------
        TrainingError
            If the package `vector-quantize-pytorch` is not installed.
        """
        try:
            from vector_quantize_pytorch import ResidualVQ
        except ImportError as error:
            raise TrainingError(f"model.encoding 'codebook': {needs_extra('tokens', error)}") from error
        vectors = _vectors(x[:: math.ceil(len(x) / _SAMPLE)])
        self.mean[kind] = vectors.mean(0)
        self.std[kind] = positive(vectors.std(0, correction=0))
        vectors = (vectors - self.mean[kind]) / self.std[kind]
        books = ResidualVQ(
            dim=vectors.shape[-1],
            num_quantizers=self.levels,
            codebook_size=self.codes,
            kmeans_init=True,
            kmeans_iters=_ITERATIONS,
        )
        # The first call is the K-means of each level in turn.
        books(vectors[None])
        self.books[kind] = books.codebooks

    def encode(self, x: Float[Tensor, "*n 4"], kind: Int[Tensor, "*n"]) -> Int[Tensor, "*n levels"]:
        """Nearest vector of each codebook, of what the ones before leave."""
        shape = x.shape[:-1]
        x, kind = x.reshape(-1, _COORDINATES), kind.expand(shape).reshape(-1)
        rest = (_vectors(x) - self.mean[kind]) / self.std[kind]
        found = x.new_zeros((len(x), self.levels), dtype=torch.int64)
        for each in range(len(KINDS)):
            chosen = (kind == each).nonzero().squeeze(1)
            left = rest[chosen]
            for level in range(self.levels):
                book = self.books[each, level].to(left)
                # |left|² is the same for all.
                nearest = (book.square().sum(-1) - 2 * left @ book.T).argmin(-1)
                left = left - book[nearest]
                found[chosen, level] = nearest
        return found.reshape(*shape, self.levels)

    def decode(self, codes: Int[Tensor, "*n levels"], kind: Int[Tensor, "*n"]) -> Float[Tensor, "*n 4"]:
        """Coordinates of the sums of the vectors."""
        levels = torch.arange(self.levels, device=codes.device)
        whole = self.books[kind[..., None], levels, codes].sum(-2) * self.std[kind] + self.mean[kind]
        log_pt, eta, cos, sin, log_m = whole.unbind(-1)
        return torch.stack([log_pt, eta, torch.atan2(sin, cos), log_m], -1)


class Bins(ObjectEncoding):
    """Bins of equal population in each coordinate.

    Parameters
    ----------
    codes
        Bins of each coordinate.
    """

    edges: Tensor
    centres: Tensor

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.levels, self.codes = _COORDINATES, codes
        self.register_buffer("edges", torch.zeros(len(KINDS), _COORDINATES, codes - 1))
        self.register_buffer("centres", torch.zeros(len(KINDS), _COORDINATES, codes))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "m 4"], kind: int) -> None:
        """Edges at quantiles of training objects, and their means between these."""
        levels = torch.linspace(0, 1, self.codes + 1, dtype=torch.float64)[1:-1]
        for i, column in enumerate(x.double().unbind(-1)):
            edges = torch.sort(column).values[(levels * (len(column) - 1)).round().long()].float()
            place = torch.searchsorted(edges, column.float(), right=True)
            sums = torch.bincount(place, column, minlength=self.codes)
            count = torch.bincount(place, minlength=self.codes)
            # An empty bin has the value of the edge above it.
            empty = torch.cat([edges, edges[-1:]]).double()
            self.edges[kind, i] = edges
            self.centres[kind, i] = torch.where(count > 0, sums / count.clamp(min=1), empty).float()

    def encode(self, x: Float[Tensor, "*n 4"], kind: Int[Tensor, "*n"]) -> Int[Tensor, "*n levels"]:
        """Number of the bin in each coordinate."""
        edges = self.edges[kind.expand(x.shape[:-1])].to(x)
        return torch.searchsorted(edges.contiguous(), x[..., None].contiguous(), right=True)[..., 0]

    def decode(self, codes: Int[Tensor, "*n levels"], kind: Int[Tensor, "*n"]) -> Float[Tensor, "*n 4"]:
        """Mean coordinates in the bins."""
        which = torch.arange(_COORDINATES, device=codes.device)
        return self.centres[kind[..., None], which, codes]


def build_encoding(config: NextTokenConfig) -> ObjectEncoding:
    """Encoding of a configuration, not yet fitted."""
    if config.encoding == "bins":
        return Bins(config.codes)
    return Codebooks(config.levels, config.codes)


def fit_encoding(
    encoding: ObjectEncoding,
    p4: Float[Tensor, "n R 4"],
    kind: Int[Tensor, "R"],
    exists: Bool[Tensor, "n R"],
) -> None:
    """Fit an encoding to the objects of training events.

    Parameters
    ----------
    encoding
        The encoding that is changed.
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (n, R, 4).
    kind
        Places among `KINDS`, shape (R,).
    exists
        True where there is an object, shape (n, R).

    Raises
    ------
    TrainingError
        If there is no object of a kind, or a package is missing.
    """
    x = coordinates(p4, kind.expand(p4.shape[:-1]))
    for number, name in enumerate(KINDS):
        own = x[exists & (kind == number)]
        if not len(own):
            raise TrainingError(f"data.files: no training event has a {name}, of which an encoding is made")
        encoding.fit(own, number)


def _vectors(x: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 5"]:
    """Coordinates with cos φ and sin φ in the place of φ."""
    log_pt, eta, phi, log_m = x.unbind(-1)
    return torch.stack([log_pt, eta, phi.cos(), phi.sin(), log_m], -1)
