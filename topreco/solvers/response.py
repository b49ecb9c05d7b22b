"""Detector response as histograms: derived from simulated skims, kept as correctionlib JSON.

Eight corrections hold probability densities:

    jet_energy, electron_energy, muon_energy     of E_gen/E_reco, in bins of the reconstructed |η| and pT
    jet_angle, electron_angle, muon_angle        of the angle between generated and reconstructed direction
    m_lb                                         of the mass of a lepton and its own b jet
    m_w                                          of the mass of the W boson

The first six take (pt, abseta, value), the others (value), in GeV and radians. pT and |η| beyond the bins
take the nearest; the density is zero beyond the bins of the value.

The procedure is that of the CMS dilepton kinematic reconstruction [1]_, [2]_.

References
----------
.. [1] CMS Collaboration, Eur. Phys. J. C 75 (2015) 542, arXiv:1505.04480.
.. [2] CMS Collaboration, JHEP 02 (2019) 149, arXiv:1811.06625.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import correctionlib.schemav2 as schema
import numpy as np
from numpy.typing import NDArray

from topreco.core.constants import M_W, PDG_ELECTRON, PDG_MUON
from topreco.core.errors import TopRecoError
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, IntArray, Truth
from topreco.core.files import write_text
from topreco.core.fourvector import delta_r, eta, mass_squared, pt
from topreco.core.progress import progress_bar
from topreco.core.skim import Skim
from topreco.core.versions import versions
from topreco.solvers.per_event import Floats

OBJECTS = ("jet", "electron", "muon")
"""Objects that have a response of their own."""

SHIPPED = "response.json"

# A b quark and a jet, a generated and a reconstructed lepton belong together within these ΔR.
_JET_CONE, _LEPTON_CONE = 0.4, 0.1
# Cells of |η| and pT are joined until each has this effective number of entries, (Σw)²/Σw².
_MIN_ENTRIES = 800.0
# A bin is looked up in a table of this length, from which few steps lead to the right one.
_GUIDE = 512

_ABSETA = {
    "jet": np.array([0.0, 0.8, 1.5, 2.5]),
    "electron": np.array([0.0, 0.5, 1.5, 2.5]),
    "muon": np.array([0.0, 0.5, 1.5, 2.5]),
}
_JET_PT = np.array(
    [20.0, 30, 35, 40, 45, 50, 55, 60, 65, 70, 80, 90, 100, 110, 120, 135, 150, 200, 300, 1000]
)
_LEPTON_PT = np.array([15.0, 25, 30, 35, 40, 45, 50, 60, 70, 80, 100, 120, 150, 200, 1000])
_PT = {"jet": _JET_PT, "electron": _LEPTON_PT, "muon": _LEPTON_PT}


def _around(center: float, half_width: float, steepness: float, bins: int) -> Floats:
    """Bin edges that are dense around a value."""
    x = np.linspace(-1.0, 1.0, bins + 1)
    return center + half_width * np.sinh(steepness * x) / math.sinh(steepness)


_JET_RATIO = np.concatenate(
    [
        np.linspace(start, stop, bins, endpoint=False)
        for start, stop, bins in ((0.3, 0.7, 8), (0.7, 1.4, 35), (1.4, 2.0, 12), (2.0, 3.2, 6))
    ]
)
_LEPTON_RATIO = _around(1.0, 0.5, 5.0, 80)
_LEPTON_ANGLE = np.concatenate([[0.0], np.geomspace(1e-5, _LEPTON_CONE, 41)])
_VALUE = {
    ("jet", "energy"): _JET_RATIO,
    ("jet", "angle"): _JET_CONE * np.linspace(0.0, 1.0, 41) ** 1.5,
    ("electron", "energy"): _LEPTON_RATIO,
    ("electron", "angle"): _LEPTON_ANGLE,
    ("muon", "energy"): _LEPTON_RATIO,
    ("muon", "angle"): _LEPTON_ANGLE,
}
_M_LB = np.linspace(0.0, 200.0, 51)
_M_W = _around(M_W, 20.0, 3.0, 80)

_MEANING = {"energy": "E_gen/E_reco", "angle": "angle between generated and reconstructed direction"}


class Table(NamedTuple):
    """Densities of K kinds of objects in C cells of kind, |η| and pT, for sampling in compiled code.

    Attributes
    ----------
    abseta_edges
        Edges in |η|, ∞ from the last one on, shape (K, A + 1).
    pt_edges
        Edges in GeV of the pT bins of each |η| bin, ∞ from the last one on, shape (K, A, P + 1).
    edges
        Edges of the value's bins, the last one repeated where a cell has fewer, shape (C, V + 1) with
        C = K A P.
    cumulative
        Probability below each edge, from 0 to 1, shape (C, V + 1).
    slope
        Width over probability of each bin, 0 for empty ones, shape (C, V).
    guide
        Bin that holds the probability g/G, shape (C, G).
    """

    abseta_edges: Floats
    pt_edges: Floats
    edges: Floats
    cumulative: Floats
    slope: Floats
    guide: NDArray[np.int32]


class Density(NamedTuple):
    """A histogram of one variable, to be evaluated.

    Attributes
    ----------
    edges
        Bin edges, shape (V + 1,).
    values
        Probability density in each bin, shape (V,).
    guide
        Bin that holds the lower end of each of G equal parts of the range, shape (G,).
    """

    edges: Floats
    values: Floats
    guide: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class DetectorResponse:
    """Detector response as plain arrays.

    Attributes
    ----------
    energy, angle
        E_gen/E_reco and angle, kinds in the order of `OBJECTS`.
    m_lb
        Density of the mass of a lepton and its b jet in 1/GeV.
    m_w
        Mass of the W boson, a single cell.
    description
        Sample from which it was derived.
    """

    energy: Table
    angle: Table
    m_lb: Density
    m_w: Table
    description: str = ""


# ---- from simulation to histograms -----------------------------------------------------------------------


class _Filled:
    """A histogram in fine cells of |η| and pT, with the sums for the effective entries of each cell.

    Entries beyond the outer |η| and pT edges count in the outer cells; values beyond theirs are dropped.
    """

    def __init__(self, abseta: Floats, pt_edges: Floats, value: Floats) -> None:
        self.edges = (abseta, pt_edges, value)
        cells = (len(abseta) - 1, len(pt_edges) - 1)
        self.sumw = np.zeros((*cells, len(value) - 1))
        self.cell_sumw = np.zeros(cells)
        self.cell_sumw2 = np.zeros(cells)

    def fill(self, abseta: FloatArray, pt_values: FloatArray, value: FloatArray, weight: FloatArray) -> None:
        inside = (value >= self.edges[2][0]) & (value < self.edges[2][-1])
        i, j = (
            np.clip(np.searchsorted(edges, x[inside], "right") - 1, 0, len(edges) - 2)
            for edges, x in zip(self.edges[:2], (abseta, pt_values), strict=True)
        )
        k = np.searchsorted(self.edges[2], value[inside], "right") - 1
        w = weight[inside]
        np.add.at(self.sumw, (i, j, k), w)
        np.add.at(self.cell_sumw, (i, j), w)
        np.add.at(self.cell_sumw2, (i, j), w**2)


def derive_detector_response(
    skims: Sequence[str | Path], *, description: str | None = None, progress: bool = False
) -> Any:
    """Derive the detector response from simulated skims.

    A b quark belongs to a jet if it is the only b quark of the event within ΔR < 0.4 of the jet and the jet
    the only one within ΔR < 0.4 of the quark; generated and reconstructed lepton (of a τ decay, the e or μ)
    belong together within ΔR < 0.1. The generated momenta are those before radiation, so that the histograms
    hold radiation and resolution. Cells of |η| and pT are joined until they have 800 effective entries.

    Entries carry their signed event weights; a bin that negative weights leave below zero is set to zero.

    Parameters
    ----------
    skims
        Files written by `topreco skim` from simulation.
    description
        Text that precedes the samples, numbers of events, selection and versions in the file.
    progress
        Show a progress bar.

    Returns
    -------
    corrections
        A `correctionlib.schemav2.CorrectionSet`.

    Raises
    ------
    TopRecoError
        If a file is no skim or has no truth, or if too few objects match for a histogram.
    """
    if not skims:
        raise TopRecoError("detector response: no skim given, at least one expected")
    opened = [Skim(path) for path in skims]
    for skim in opened:
        if not skim.has_truth:
            raise TopRecoError(f"{skim.path}: has no truth; the detector response needs a skim of simulation")
    filled = {
        (kind, what): _Filled(_ABSETA[kind], _PT[kind], value) for (kind, what), value in _VALUE.items()
    }
    everywhere = np.array([0.0, np.inf])
    filled["m_lb", ""] = _Filled(everywhere, everywhere, _M_LB)
    filled["m_w", ""] = _Filled(everywhere, everywhere, _M_W)
    with progress_bar("response", sum(map(len, opened)), show=progress) as advance:
        for skim in opened:
            for events, truth in skim.row_groups():
                if truth is not None:
                    _fill(filled, events, truth)
                advance(len(events))
    names = ", ".join(str(skim.path) for skim in opened)
    return schema.CorrectionSet(
        schema_version=schema.VERSION,
        description=f"{description}. {_describe(opened)}" if description else _describe(opened),
        corrections=[
            *(_object_correction(kind, what, filled[kind, what], names) for kind, what in _VALUE),
            _mass_correction("m_lb", "mass of a lepton and its own b jet", filled["m_lb", ""], names),
            _mass_correction("m_w", "mass of the W boson", filled["m_w", ""], names),
        ],
    )


def match_jets(b: FloatArray, jets: FloatArray, jet_mask: BoolArray) -> IntArray:
    """Jet of each b quark.

    Parameters
    ----------
    b
        Four-momenta of the b quarks in GeV, NaN where there is none, shape (n, 2, 4).
    jets, jet_mask
        As in `DileptonEvents`.

    Returns
    -------
    index
        Index into the jets, −1 unless quark and jet are each other's only neighbour within ΔR < 0.4,
        shape (n, 2).
    """
    # Padded jets have no direction.
    safe = np.where(jet_mask[..., None], jets, np.array([1.0, 1.0, 0.0, 0.0]))
    near = (delta_r(b[:, :, None], safe[:, None]) < _JET_CONE) & jet_mask[:, None]
    near &= np.asarray(np.isfinite(b).all(axis=2))[..., None]
    alone = (near.sum(axis=2) == 1)[..., None] & (near.sum(axis=1) == 1)[:, None]
    matched = near & alone
    return np.where(matched.any(axis=2), matched.argmax(axis=2), -1)


def _fill(filled: dict[tuple[str, str], _Filled], events: DileptonEvents, truth: Truth) -> None:
    index = match_jets(truth.b, events.jets, events.jet_mask)
    matched_jet = index >= 0
    jet = np.take_along_axis(events.jets, np.maximum(index, 0)[..., None], axis=1)
    lepton = events.lepton_p4
    with np.errstate(invalid="ignore"):
        matched_lepton = delta_r(lepton, truth.lepton) < _LEPTON_CONE
    weight = np.repeat(events.weight[:, None], 2, axis=1)

    def fill_object(kind: str, chosen: BoolArray, reco: FloatArray, generated: FloatArray) -> None:
        found, true = reco[chosen], generated[chosen]
        where = (np.abs(eta(found)), pt(found))
        filled[kind, "energy"].fill(*where, true[:, 0] / found[:, 0], weight[chosen])
        filled[kind, "angle"].fill(*where, _angle(found, true), weight[chosen])

    fill_object("jet", matched_jet, jet, truth.b)
    for kind, flavour in (("electron", PDG_ELECTRON), ("muon", PDG_MUON)):
        fill_object(kind, matched_lepton & (events.lepton_flavour == flavour), lepton, truth.lepton)

    def fill_mass(name: str, chosen: BoolArray, p4: FloatArray) -> None:
        mass = np.sqrt(np.maximum(mass_squared(p4[chosen]), 0.0))
        nowhere = np.zeros_like(mass)
        filled[name, ""].fill(nowhere, nowhere, mass, weight[chosen])

    fill_mass("m_lb", matched_jet & matched_lepton, jet + lepton)
    fill_mass("m_w", np.asarray(np.isfinite(truth.w).all(axis=2)), truth.w)


def _angle(a: FloatArray, b: FloatArray) -> FloatArray:
    """Angle between four-momenta, exact for small angles too, shape (n,)."""
    cross = np.linalg.norm(np.cross(a[:, 1:], b[:, 1:]), axis=1)
    return np.arctan2(cross, (a[:, 1:] * b[:, 1:]).sum(axis=1))


def _describe(skims: Sequence[Skim]) -> str:
    """Samples, numbers of events, selection and versions."""
    samples = []
    for skim in skims:
        m = skim.metadata
        samples.append(
            f"{', '.join(m.get('datasets', {})) or skim.path.name} (from {', '.join(m.get('sources', []))}; "
            f"{m.get('n_generated')} events generated, {len(skim)} selected)"
        )
    selections = dict.fromkeys(json.dumps(skim.metadata.get("selection")) for skim in skims)
    made_with = ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"Response in dileptonic ttbar: {'; '.join(samples)}. "
        f"Selection: {'; '.join(selections)}. Made with {made_with}."
    )


# ---- from histograms to correctionlib --------------------------------------------------------------------


def _groups(entries: Floats) -> list[slice]:
    """Neighbours joined from the left until each group has enough entries; a poor rest joins the last."""
    groups: list[slice] = []
    start, total = 0, 0.0
    for i, n in enumerate(entries):
        total += n
        if total >= _MIN_ENTRIES:
            groups.append(slice(start, i + 1))
            start, total = i + 1, 0.0
    if start < len(entries):
        start = groups.pop().start if groups else 0
        groups.append(slice(start, len(entries)))
    return groups


def _effective(filled: _Filled, abseta: slice) -> Floats:
    """Effective entries of the pT cells of joined |η| bins."""
    sumw, sumw2 = filled.cell_sumw[abseta].sum(0), filled.cell_sumw2[abseta].sum(0)
    return np.divide(sumw**2, sumw2, out=np.zeros_like(sumw), where=sumw2 > 0)


def _density(sumw: Floats, edges: Floats, what: str) -> list[float]:
    """Normalised density of a histogram, six digits."""
    content = np.maximum(sumw, 0.0)
    if not content.sum() > 0:
        raise TopRecoError(f"{what}: no matched object in the skims, cannot derive a density")
    density = content / (content.sum() * np.diff(edges))
    return [float(f"{x:.6g}") for x in density]


def _binned(variable: str, edges: Iterable[float], content: list[Any], flow: Any) -> Any:
    """Node that is binned in a variable."""
    edges = [float(edge) for edge in edges]
    return schema.Binning(nodetype="binning", input=variable, edges=edges, content=content, flow=flow)


def _value_node(sumw: Floats, edges: Floats, what: str) -> Any:
    """Normalised density in the bins of the value, whose edges are rounded first."""
    rounded = [float(f"{x:.8g}") for x in edges]
    return _binned("value", rounded, _density(sumw, np.array(rounded), what), 0.0)


def _object_correction(kind: str, what: str, filled: _Filled, files: str) -> Any:
    abseta, pt_edges, value = filled.edges
    by_abseta = []
    rows = _groups(np.array([_effective(filled, slice(i, i + 1)).sum() for i in range(len(abseta) - 1)]))
    for row in rows:
        columns = _groups(_effective(filled, row))
        cells = [filled.sumw[row, column].sum((0, 1)) for column in columns]
        densities = [_value_node(cell, value, f"response {kind} {what} from {files}") for cell in cells]
        by_abseta.append(
            _binned("pt", [*pt_edges[[c.start for c in columns]], pt_edges[-1]], densities, "clamp")
        )
    variables = {"pt": "reconstructed transverse momentum in GeV", "abseta": "reconstructed |pseudorapidity|"}
    return _correction_of(
        f"{kind}_{what}",
        f"{_MEANING[what]} of {kind}s",
        variables | {"value": _MEANING[what]},
        "probability density",
        _binned("abseta", [*abseta[[row.start for row in rows]], abseta[-1]], by_abseta, "clamp"),
    )


def _mass_correction(name: str, meaning: str, filled: _Filled, files: str) -> Any:
    density = _value_node(filled.sumw[0, 0], filled.edges[2], f"response {name} from {files}")
    return _correction_of(
        name, meaning, {"value": f"{meaning} in GeV"}, "probability density in 1/GeV", density
    )


def _correction_of(name: str, meaning: str, variables: dict[str, str], density: str, data: Any) -> Any:
    """Correction with a probability density, as a function of variables with their descriptions."""
    return schema.Correction(
        name=name,
        version=1,
        description=f"Probability density of the {meaning}",
        inputs=[schema.Variable(name=v, type="real", description=d) for v, d in variables.items()],
        output=schema.Variable(name="density", type="real", description=density),
        data=data,
    )


def write_detector_response(corrections: Any, path: str | Path) -> None:
    """Write a detector response as correctionlib JSON, whole or not at all.

    Parameters
    ----------
    corrections
        `correctionlib.schemav2.CorrectionSet` from `derive_detector_response`.
    path
        File to write.

    Raises
    ------
    TopRecoError
        If the folder cannot be written to.
    """
    write_text(path, corrections.model_dump_json(exclude_unset=True) + "\n")


# ---- from correctionlib to arrays ------------------------------------------------------------------------


def load_detector_response(path: str | Path | None = None) -> DetectorResponse:
    """Detector response from a file.

    Parameters
    ----------
    path
        correctionlib JSON as `write_detector_response` makes it; None for the one that ships with the
        package, made from the package's own simulation.

    Returns
    -------
    response
        The histograms as arrays.

    Raises
    ------
    TopRecoError
        If the file is missing, is not JSON or not a correctionlib payload, or if a correction is missing,
        has other inputs or a density that is negative, not finite or zero everywhere.
    """
    if path is None:
        name = f"topreco/solvers/{SHIPPED}"
        text = resources.files("topreco.solvers").joinpath(SHIPPED).read_text(encoding="utf-8")
    else:
        name = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise TopRecoError(
                f"response {name}: cannot be read ({error.strerror}); a file of `topreco response` expected"
            ) from error
        except UnicodeDecodeError as error:
            raise TopRecoError(f"response {name}: not a text file, correctionlib JSON expected") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TopRecoError(f"response {name}: not JSON ({error})") from error
    try:
        payload = schema.CorrectionSet.model_validate(content)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise TopRecoError(f"response {name}: not a correctionlib payload of version 2 ({first})") from error
    corrections = {c.name: c for c in payload.corrections}
    energy, angle = (
        _table([_object_densities(corrections, f"{kind}_{what}", name) for kind in OBJECTS])
        for what in ("energy", "angle")
    )
    m_lb, m_w = (
        _read_density(_correction(corrections, mass, ("value",), name).data, mass, name)
        for mass in ("m_lb", "m_w")
    )
    return DetectorResponse(energy, angle, histogram(*m_lb), single_cell(*m_w), payload.description or "")


def _correction(corrections: dict[str, Any], name: str, inputs: tuple[str, ...], file: str) -> Any:
    if name not in corrections:
        found = ", ".join(sorted(corrections)) or "none"
        raise TopRecoError(f"response {file}: correction {name!r} is missing (found: {found})")
    correction = corrections[name]
    found_inputs = tuple(variable.name for variable in correction.inputs)
    if found_inputs != inputs:
        raise TopRecoError(f"response {file}: {name} has inputs {found_inputs}, expected {inputs}")
    return correction


def _binning(node: Any, variable: str, name: str, file: str) -> tuple[Floats, list[Any]]:
    """Edges and content of a node that must be a binning in a variable."""
    if not isinstance(node, schema.Binning) or node.input != variable:
        raise TopRecoError(
            f"response {file}: {name} is not binned in (abseta, pt, value) or (value), in that order"
        )
    if isinstance(node.edges, schema.UniformBinning):
        edges = np.linspace(node.edges.low, node.edges.high, node.edges.n + 1)
    else:
        edges = np.array([float(edge) for edge in node.edges])
    return edges, list(node.content)


def _read_density(node: Any, name: str, file: str) -> tuple[Floats, Floats]:
    """Edges and densities of a binning in the value."""
    edges, content = _binning(node, "value", name, file)
    if not all(isinstance(x, float) for x in content) or not np.isfinite(edges).all():
        raise TopRecoError(f"response {file}: {name} has bins that hold no number or have infinite edges")
    values = np.array(content)
    bad = values[~(np.isfinite(values) & (values >= 0))]
    if len(bad):
        raise TopRecoError(f"response {file}: {name} has a density of {bad[0]}, expected finite and >= 0")
    if not values.any():
        raise TopRecoError(f"response {file}: {name} has a density that is zero everywhere")
    return edges, values


class _Densities(NamedTuple):
    """Densities of one kind of object: |η| edges; pT edges and (edges, values) of each cell per |η| bin."""

    abseta: Floats
    pt: list[Floats]
    cells: list[list[tuple[Floats, Floats]]]


def _object_densities(corrections: dict[str, Any], name: str, file: str) -> _Densities:
    data = _correction(corrections, name, ("pt", "abseta", "value"), file).data
    abseta, rows = _binning(data, "abseta", name, file)
    by_pt = [_binning(row, "pt", name, file) for row in rows]
    cells = [[_read_density(cell, name, file) for cell in row] for _, row in by_pt]
    return _Densities(abseta, [edges for edges, _ in by_pt], cells)


def single_cell(edges: Floats, values: Floats) -> Table:
    """Table of one density that depends on neither |η| nor pT.

    Parameters
    ----------
    edges
        Bin edges, shape (V + 1,).
    values
        Density in each bin, of any normalisation, shape (V,).
    """
    everywhere = np.array([0.0, np.inf])
    return _table([_Densities(everywhere, [everywhere], [[(edges, values)]])])


def histogram(edges: Floats, values: Floats) -> Density:
    """Histogram that compiled code can evaluate.

    Parameters
    ----------
    edges
        Bin edges, shape (V + 1,).
    values
        Density in each bin, shape (V,).
    """
    starts = np.linspace(edges[0], edges[-1], _GUIDE, endpoint=False)
    # Rounding may put a value a little below the start of its part: begin one bin lower.
    return Density(edges, values, np.maximum(_guide(edges, starts) - 1, 0).astype(np.int32))


def _guide(edges: Floats, starts: Floats) -> NDArray[np.int32]:
    """Bin of each start."""
    bins = np.searchsorted(edges, starts, "right") - 1
    return np.clip(bins, 0, len(edges) - 2).astype(np.int32)


def _table(kinds: Sequence[_Densities]) -> Table:
    """Arrays of equal length for all kinds and cells."""
    n_abseta = max(len(kind.cells) for kind in kinds)
    n_pt = max(len(row) for kind in kinds for row in kind.cells)
    n_value = max(len(values) for kind in kinds for row in kind.cells for _, values in row)
    shape = (len(kinds), n_abseta, n_pt)
    abseta = np.full((len(kinds), n_abseta + 1), np.inf)
    pt_edges = np.full((len(kinds), n_abseta, n_pt + 1), np.inf)
    edges = np.zeros((*shape, n_value + 1))
    cumulative = np.ones((*shape, n_value + 1))
    for k, kind in enumerate(kinds):
        abseta[k, : len(kind.cells)] = kind.abseta[:-1]
        for i, row in enumerate(kind.cells):
            pt_edges[k, i, : len(row)] = kind.pt[i][:-1]
            for j, (bins, values) in enumerate(row):
                probability = np.cumsum(values * np.diff(bins))
                edges[k, i, j] = bins[-1]
                edges[k, i, j, : len(bins)] = bins
                cumulative[k, i, j, : len(bins)] = np.concatenate([[0.0], probability / probability[-1]])
    return _searchable(abseta, pt_edges, edges.reshape(-1, n_value + 1), cumulative.reshape(-1, n_value + 1))


def _searchable(abseta: Floats, pt_edges: Floats, edges: Floats, cumulative: Floats) -> Table:
    """Table with what makes sampling fast."""
    probability = np.diff(cumulative, axis=1)
    slope = np.divide(
        np.diff(edges, axis=1), probability, out=np.zeros_like(probability), where=probability > 0
    )
    guide = [_guide(cell, np.arange(_GUIDE) / _GUIDE) for cell in cumulative]
    return Table(abseta, pt_edges, edges, cumulative, slope, np.array(guide))
