"""Priors of a posterior: spectra of generated and selected events, and the weights that exchange them.

The samples x of a network follow its posterior p(x | event) ∝ L(event | x) g(z) ε(z), where z is m(tt̄), or
m(tt̄) and pT(t), g(z) the spectrum of *generated* training events, and ε(z) the fraction of them that is
selected. Their product is the spectrum of the events that the network was trained with. Under the hypothesis
that the generated spectrum is g′, a selected event has the prior g′(z) ε(z), so that each sample takes the
weight

    w(z) = g′(z) ε(z) / [g(z) ε(z)] = g′(z) / g(z).

At given z everything else stays as in the training.
"""

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from topreco.core.constants import M_TOP
from topreco.core.errors import TopRecoError
from topreco.core.events import FloatArray, Truth
from topreco.core.fourvector import from_three_momentum, mass, pt

M_TT_EDGES = np.concatenate([2 * M_TOP + 5.0 * np.arange(11), np.geomspace(400.0, 2000.0, 41)])
"""Edges in m(tt̄) in GeV: 5 GeV wide from 2 m_t = 345 GeV, below which no pair is on shell, to 395 GeV, 4 %
wide from 400 to 2000 GeV. The last bin holds everything above too."""

PT_TOP_EDGES = np.concatenate([np.arange(0.0, 400.0, 20.0), np.arange(400.0, 801.0, 50.0)])
"""Edges in pT(t) in GeV. The last bin holds everything above too."""

METADATA_KEY = "spectra"
"""Key of `Spectra` in the metadata of a skim."""

_SHAPE = (len(M_TT_EDGES) - 1, len(PT_TOP_EDGES) - 1)


def on_shell_spectrum(tops: FloatArray) -> tuple[FloatArray, FloatArray]:
    """m(tt̄) and pT(t) in GeV of the three-momenta of tops, with energies for m_t = 172.5 GeV.

    Samples of a posterior are on shell while generated tops have a width, so this is what they share.

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).

    Returns
    -------
    m_tt, pt_top
        Shape (...); NaN where a momentum is.
    """
    pair = from_three_momentum(tops[..., 1:], M_TOP)
    return mass(pair[..., 0, :] + pair[..., 1, :]), pt(pair[..., 0, :])


@dataclass(frozen=True, eq=False)
class Spectra:
    """Sums of weights of generated and of selected events by m(tt̄) and pT(t), of dileptonic tt̄ events.

    An event counts if both tops are in its record and both W bosons gave an electron or a muon, directly or
    through a τ. Spectra of several files add up.

    Attributes
    ----------
    generated
        Before any cut, with the weights of the generator, shape (m, p) by `M_TT_EDGES` and `PT_TOP_EDGES`.
    selected
        In the skim, with the weights of the skim, shape (m, p).
    complete
        The files hold all generated events. From files with a selection of events ε would be too large.
    """

    generated: FloatArray = field(default_factory=lambda: np.zeros(_SHAPE))
    selected: FloatArray = field(default_factory=lambda: np.zeros(_SHAPE))
    complete: bool = True

    def __post_init__(self) -> None:
        for name in ("generated", "selected"):
            found = np.shape(getattr(self, name))
            if found != _SHAPE:
                raise TopRecoError(f"Spectra.{name}: shape {found} found, {_SHAPE} expected")

    @classmethod
    def of(
        cls,
        generated: Truth,
        generated_weight: FloatArray,
        selected: Truth,
        selected_weight: FloatArray,
        *,
        complete: bool = True,
    ) -> Self:
        """Spectra of some events.

        Parameters
        ----------
        generated, selected
            Truth of all events, and of the selected ones.
        generated_weight, selected_weight
            Their weights.
        complete
            See `Spectra`.
        """
        return cls(_filled(generated, generated_weight), _filled(selected, selected_weight), complete)

    def __add__(self, other: "Spectra") -> "Spectra":
        return Spectra(
            self.generated + other.generated,
            self.selected + other.selected,
            self.complete and other.complete,
        )

    def scaled(self, factor: float) -> "Spectra":
        """The spectra with all weights times a factor."""
        return replace(self, generated=factor * self.generated, selected=factor * self.selected)

    @property
    def efficiency(self) -> FloatArray:
        """Selected over generated events ε, NaN without generated events, shape (m, p).

        Raises
        ------
        TopRecoError
            If the files did not hold all generated events.
        """
        self.check_complete()
        return _ratio(self.selected, self.generated)

    def efficiency_of(self, tops: FloatArray) -> FloatArray:
        """ε in the bins of some tops, shape (n, 2, 4); NaN without generated events, shape (n,).

        Raises
        ------
        TopRecoError
            As `efficiency`.
        """
        m_tt, pt_top = on_shell_spectrum(tops)
        return np.asarray(self.efficiency[_bin(m_tt, M_TT_EDGES), _bin(pt_top, PT_TOP_EDGES)])

    @property
    def efficiency_m_tt(self) -> FloatArray:
        """ε in bins of m(tt̄) alone, shape (m,)."""
        self.check_complete()
        return _ratio(self.selected.sum(axis=1), self.generated.sum(axis=1))

    def check_complete(self) -> None:
        """Raise unless the generated spectrum is that of all generated events."""
        if not self.complete:
            raise TopRecoError(
                "spectra of generated events: a skimmed file does not hold all events that its Runs tree "
                "counts, so their spectrum before the selection is unknown; skim the unselected files"
            )
        if not (self.generated > 0).any():
            raise TopRecoError("spectra of generated events: empty; a simulated tt̄ sample is expected")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "m_tt_edges": M_TT_EDGES.tolist(),
            "pt_top_edges": PT_TOP_EDGES.tolist(),
            "generated": self.generated.tolist(),
            "selected": self.selected.tolist(),
            "complete": self.complete,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Spectra from `to_dict`.

        Raises
        ------
        TopRecoError
            If they have other edges.
        """
        for name, edges in (("m_tt_edges", M_TT_EDGES), ("pt_top_edges", PT_TOP_EDGES)):
            if not (len(content[name]) == len(edges) and np.allclose(content[name], edges)):
                raise TopRecoError(f"spectra of generated events: {name} of another version; skim again")
        generated, selected = (np.asarray(content[name], float) for name in ("generated", "selected"))
        return cls(generated, selected, bool(content["complete"]))


def sum_spectra(
    metadata: Iterable[Mapping[str, Any]], scales: Sequence[float] | None = None
) -> Spectra | None:
    """Spectra of several skims together.

    Parameters
    ----------
    metadata
        `Skim.metadata` of each.
    scales
        Factor of the weights of each skim, such as a training that normalises each dataset applies.

    Returns
    -------
    spectra
        None if a skim has none: of data, of pepper, or written before there were any.
    """
    total = Spectra()
    for i, entry in enumerate(metadata):
        content = entry.get(METADATA_KEY)
        if content is None:
            return None
        total += Spectra.from_dict(content).scaled(1.0 if scales is None else scales[i])
    return total


def _filled(truth: Truth, weight: FloatArray) -> FloatArray:
    known = truth.valid & truth.dileptonic
    m_tt, pt_top = on_shell_spectrum(truth.tops[known])
    cell = np.ravel_multi_index((_bin(m_tt, M_TT_EDGES), _bin(pt_top, PT_TOP_EDGES)), _SHAPE)
    size = math.prod(_SHAPE)
    return np.bincount(cell, weights=weight[known], minlength=size).reshape(_SHAPE).astype(float)


def _bin(values: FloatArray, edges: FloatArray) -> npt.NDArray[np.intp]:
    """Index of the bin, that of the nearest one outside of the edges."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


@dataclass(frozen=True, eq=False)
class Prior:
    """Density of *generated* events in m(tt̄), or in m(tt̄) and pT(t), that replaces the training's.

    The density is constant in each bin: nothing is interpolated. With m(tt̄) alone, pT(t) at given m(tt̄)
    stays as in the training.

    Attributes
    ----------
    name
        What it is called in tables.
    m_tt_edges
        Edges of its bins in GeV, shape (m + 1,).
    density
        Events per GeV, or GeV², up to a factor, shape (m,) or (m, p).
    pt_top_edges
        Edges in GeV, shape (p + 1,); None for a density in m(tt̄) alone.
    open_ended
        The first and the last bins hold everything beyond too; else the density there is zero.
    training
        Spectra of the events that the posterior was trained with, see `relative_to`.
    max_ratio
        Largest ratio of the two densities, each with an integral of 1: where hardly a training event was
        generated, a few samples would otherwise have all weight.
    """

    name: str
    m_tt_edges: FloatArray
    density: FloatArray
    pt_top_edges: FloatArray | None = None
    open_ended: bool = False
    training: Spectra | None = None
    max_ratio: float = 1000.0

    def __post_init__(self) -> None:
        axes = [("m_tt_edges", self.m_tt_edges)]
        if self.pt_top_edges is not None:
            axes.append(("pt_top_edges", self.pt_top_edges))
        for name, edges in axes:
            if len(edges) < 2 or not (np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
                raise TopRecoError(f"prior {self.name!r}: {name} are {list(edges)}, rising numbers expected")
        shape = tuple(len(edges) - 1 for _, edges in axes)
        if self.density.shape != shape:
            raise TopRecoError(
                f"prior {self.name!r}: contents of shape {self.density.shape}, {shape} expected by its edges"
            )
        if not (np.isfinite(self.density).all() and (self.density >= 0).all() and self.density.any()):
            raise TopRecoError(
                f"prior {self.name!r}: contents must be finite and not negative, and one positive"
            )
        if not self.max_ratio > 0:
            raise TopRecoError(f"prior {self.name!r}: max_ratio {self.max_ratio}, a positive number expected")

    @classmethod
    def flat(cls, low: float = 2 * M_TOP, high: float = 2000.0) -> Self:
        """Every m(tt̄) in a range in GeV is as probable, none outside."""
        return cls(f"flat from {low:g} to {high:g} GeV", np.array([low, high], float), np.ones(1))

    @classmethod
    def from_histogram(
        cls,
        counts: npt.ArrayLike,
        m_tt_edges: npt.ArrayLike,
        pt_top_edges: npt.ArrayLike | None = None,
        *,
        name: str = "histogram",
    ) -> Self:
        """Density from contents of bins, which are divided by the bins' widths; zero outside of the edges.

        Parameters
        ----------
        counts
            Contents, up to a factor, shape (m,) or (m, p).
        m_tt_edges, pt_top_edges
            Edges in GeV.
        name
            What it is called in tables.
        """
        edges = np.asarray(m_tt_edges, float)
        other = None if pt_top_edges is None else np.asarray(pt_top_edges, float)
        contents = np.asarray(counts, float)
        shape = (len(edges) - 1,) if other is None else (len(edges) - 1, len(other) - 1)
        if contents.shape != shape:
            raise TopRecoError(
                f"prior {name!r}: contents of shape {contents.shape}, {shape} expected by its edges"
            )
        return cls(name, edges, contents / _areas(edges, other), other)

    @classmethod
    def from_spectra(
        cls,
        spectra: Spectra,
        variables: Literal["m_tt", "m_tt, pt_top"] = "m_tt",
        *,
        name: str = "sample",
    ) -> Self:
        """Density of a sample's generated events; bins with a sum of weights below zero count as empty."""
        spectra.check_complete()
        both = variables == "m_tt, pt_top"
        counts = np.maximum(spectra.generated if both else spectra.generated.sum(axis=1), 0.0)
        edges = PT_TOP_EDGES if both else None
        return cls(name, M_TT_EDGES, counts / _areas(M_TT_EDGES, edges), edges, open_ended=True)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Density from a file of contents of bins.

        Parameters
        ----------
        path
            JSON with the keys ``counts``, ``m_tt_edges`` and, for two variables, ``pt_top_edges``; or CSV
            with the columns ``m_tt_low``, ``m_tt_high`` and ``counts``, whose bins follow each other.

        Raises
        ------
        TopRecoError
            If it is no such file.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix.lower() != ".csv":
                content = json.loads(text)
                edges, counts = content["m_tt_edges"], content["counts"]
                return cls.from_histogram(counts, edges, content.get("pt_top_edges"), name=path.stem)
            rows = list(csv.DictReader(text.splitlines()))
            low, high, counts = ([float(r[key]) for r in rows] for key in ("m_tt_low", "m_tt_high", "counts"))
        except TopRecoError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TopRecoError(
                f"{path}: no prior ({type(error).__name__}: {error}); expected JSON with m_tt_edges and "
                "counts, or CSV with m_tt_low, m_tt_high and counts"
            ) from error
        if not rows or low[1:] != high[:-1]:
            raise TopRecoError(f"{path}: each m_tt_low must be the m_tt_high of the row before")
        return cls.from_histogram(counts, [*low, high[-1]], name=path.stem)

    def relative_to(self, training: Spectra) -> Self:
        """The same prior for a posterior that was trained with events of these spectra."""
        training.check_complete()
        return replace(self, training=training)

    def log_ratio(self, tops: FloatArray) -> FloatArray:
        """Logarithm of w = g′(z)/g(z), what `Posterior.log_weight` grows by for this prior.

        Both densities have an integral of 1. w is 0 where g′ is, and where no training event was generated,
        since nothing is known there; it is at most `max_ratio`.

        Parameters
        ----------
        tops
            Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (..., 2, 4).

        Returns
        -------
        log_ratio
            Shape (...); −∞ for a weight of 0 and where there are no tops.

        Raises
        ------
        TopRecoError
            If the spectra of the training are unknown.
        """
        if self.training is None:
            raise TopRecoError(
                f"prior {self.name!r}: the spectra of the training are unknown; give them by "
                "Prior.relative_to(sum_spectra(metadata of its skims))"
            )
        both = self.pt_top_edges is not None
        generated = self.training.generated if both else self.training.generated.sum(axis=1)
        old_edges = PT_TOP_EDGES if both else None
        old = np.maximum(generated, 0.0)
        old = old / old.sum() / _areas(M_TT_EDGES, old_edges)
        new = self.density / (self.density * _areas(self.m_tt_edges, self.pt_top_edges)).sum()
        z = on_shell_spectrum(tops)[: 1 + both]
        known = np.isfinite(z).all(axis=0)
        edges = [self.m_tt_edges] if self.pt_top_edges is None else [self.m_tt_edges, self.pt_top_edges]
        at_old = old[tuple(_bin(v, e) for v, e in zip(z, (M_TT_EDGES, PT_TOP_EDGES), strict=False))]
        at_new = new[tuple(_bin(v, e) for v, e in zip(z, edges, strict=True))]
        inside = known & (at_old > 0)
        if not self.open_ended:
            for values, limits in zip(z, edges, strict=True):
                # A pair at rest may be rounded to a mass below twice that of a top.
                inside = inside & (values >= limits[0] * (1 - 1e-9)) & (values <= limits[-1])
        with np.errstate(divide="ignore"):
            ratio = np.where(inside, at_new, 0.0) / np.where(inside, at_old, 1.0)
            return np.log(np.minimum(ratio, self.max_ratio))

    @property
    def fingerprint(self) -> str:
        """Digest of everything that determines the weights."""
        pt_edges = None if self.pt_top_edges is None else self.pt_top_edges.tolist()
        training = None if self.training is None else self.training.generated.tolist()
        parts = [self.m_tt_edges.tolist(), pt_edges, self.density.tolist(), self.open_ended, self.max_ratio]
        return hashlib.sha256(json.dumps([*parts, training]).encode()).hexdigest()


def _areas(m_tt_edges: FloatArray, pt_top_edges: FloatArray | None) -> FloatArray:
    """Widths of the bins, or areas of those in two variables."""
    widths = np.diff(m_tt_edges)
    return widths if pt_top_edges is None else widths[:, None] * np.diff(pt_top_edges)
