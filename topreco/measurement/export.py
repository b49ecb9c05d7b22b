"""Response matrices in files (ROOT for TUnfold and RooUnfold, JSON for all else), tables and figures."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hist
import numpy as np
import yaml
from rich.table import Table

from topreco.config import NOMINAL
from topreco.core.errors import TopRecoError
from topreco.core.events import CHANNELS
from topreco.core.files import complete_file, folder_name, plain, write_text
from topreco.core.statistics import Estimate
from topreco.evaluation.draw import plot_migration, plot_shares
from topreco.evaluation.figures import FORMATS, save
from topreco.evaluation.latex import latex_of_markdown
from topreco.evaluation.pairs import described
from topreco.evaluation.report import format_estimate, markdown_table, terminal_table
from topreco.evaluation.responses import responses_of
from topreco.evaluation.style import Label
from topreco.evaluation.summary import ALL_CHANNELS
from topreco.measurement.unfolding import (
    BinRequirements,
    ResponseMatrix,
    Sums,
    optimise,
    read_response,
    variations_in,
)

SHARES = {
    "purity": "purity",
    "stability": "stability",
    "acceptance": "acceptance × efficiency",
    "efficiency": "efficiency of the method",
}
"""Fractions of events in truth bins: attributes of `ResponseMatrix`, and their names in figures."""

_SUMS = ("response", "measured", "fakes", "not_reconstructed", "generated")


class Key(NamedTuple):
    """Method, sample, observable, channel and variation of a response matrix."""

    method: str
    dataset: str
    observable: str
    channel: str
    variation: str


ResponseMatrices = dict[Key, ResponseMatrix]


def collect_responses(
    histograms: Mapping[str, hist.Hist],
    *,
    methods: Sequence[str] = (),
    observables: Sequence[str] = (),
    bins: BinRequirements | None = None,
    signal: str | None = None,
) -> ResponseMatrices:
    """Response matrices of everything that was filled, on request in bins that meet requirements.

    Parameters
    ----------
    histograms
        Filled histograms of `responses.book_responses`, others may be among them.
    methods, observables
        Methods and observables to take; all by default.
    bins
        Requirements of the bins of each method and observable; None keeps the bins as they are.
    signal
        Dataset whose nominal events of all channels decide on the bins; None takes the only one with truth.

    Raises
    ------
    TopRecoError
        If there are no response matrices, a name is unknown, `signal` must be given, or there are no such
        bins; the error then names all methods and observables without.
    """
    known = responses_of(histograms)
    if not known:
        raise TopRecoError(
            "no response matrices in these histograms: the configuration of the run had no "
            "'unfolding.observables'"
        )
    axes = histograms[f"measured/{known[0]}"].axes
    observables = _chosen("observable", observables, known)
    methods = _chosen("method", methods, axes["method"])
    found: ResponseMatrices = {}
    for method in methods:
        for dataset in axes["dataset"]:
            for name in observables:
                for variation in variations_in(histograms, name, dataset, method):
                    for channel in (ALL_CHANNELS, *CHANNELS):
                        found[Key(method, dataset, name, channel, variation)] = read_response(
                            histograms,
                            name,
                            dataset=dataset,
                            method=method,
                            variation=variation,
                            channel=channel,
                        )
    return found if bins is None else _rebinned(found, bins, signal)


def _chosen(what: str, names: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in names:
        if name not in known:
            raise TopRecoError(f"no {what} {name!r} in these histograms; there are: {', '.join(known)}")
    return list(names or known)


def _rebinned(responses: ResponseMatrices, wanted: BinRequirements, signal: str | None) -> ResponseMatrices:
    with_truth = list(dict.fromkeys(key.dataset for key, r in responses.items() if r.has_truth))
    if signal is None and len(with_truth) != 1:
        raise TopRecoError(
            f"bins are optimised for one dataset with truth, found {len(with_truth)}"
            + (f": name one of {', '.join(with_truth)}" if with_truth else "")
        )
    signal = with_truth[0] if signal is None else signal
    _chosen("dataset with truth", [signal], with_truth)
    best: dict[tuple[str, str], ResponseMatrix] = {}
    failures = []
    for key, response in responses.items():
        if key[1:] == (signal, key.observable, ALL_CHANNELS, NOMINAL) and not response.truth_axes:
            try:
                best[key.method, key.observable] = optimise(response, wanted)
            except TopRecoError as error:
                failures.append(f"{key.method}, {error}")
    if failures:
        raise TopRecoError("; ".join(failures))
    found = {}
    for key, response in responses.items():
        if response.truth_axes:  # a pair, which keeps its bins
            found[key] = response
            continue
        if (key.method, key.observable) not in best:
            raise TopRecoError(f"{key.method} reconstructs no event of {signal!r}, so there are no bins")
        edges = best[key.method, key.observable]
        found[key] = response.merged(edges.truth_edges, edges.reco_edges)
    return found


# ---- writing ---------------------------------------------------------------------------------------------


def write_responses(
    responses: ResponseMatrices, folder: str | Path, *, about: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write ``responses.root`` with everything, and for each method ``METHOD.json``, its bins and tables.

    Parameters
    ----------
    responses
        Response matrices of `collect_responses`.
    folder
        Where to write; made if need be.
    about
        Plain data to put into the JSON files, such as the phase space.

    Returns
    -------
    paths
        Files written, each whole or not at all. ``METHOD.yaml`` has the bins in the form of a configuration,
        ``METHOD.tex`` the fractions of events as LaTeX.

    Raises
    ------
    TopRecoError
        If the folder cannot be written.
    """
    import uproot

    root = Path(folder) / "responses.root"
    with complete_file(root) as temporary, uproot.recreate(temporary) as file:
        for key, response in responses.items():
            where = "/".join(map(folder_name, key))
            for name, histogram in root_histograms(response, shares=key.variation == NOMINAL).items():
                file[f"{where}/{name}"] = histogram
    paths = [root]
    for method in dict.fromkeys(key.method for key in responses):
        of_method = {key: response for key, response in responses.items() if key.method == method}
        stem = Path(folder) / folder_name(method)
        config = yaml.safe_dump({"unfolding": _bins_of(of_method)}, default_flow_style=None, sort_keys=False)
        latex = latex_of_markdown("\n".join(markdown_tables(of_method)))
        contents = ((".json", to_json(of_method, about=about)), (".yaml", config), (".tex", latex))
        for suffix, text in contents:
            path = stem.with_name(f"{stem.name}{suffix}")
            write_text(path, text)
            paths.append(path)
    return paths


def _bins_of(responses: ResponseMatrices) -> dict[str, Any]:
    """Bins of response matrices as in the configuration of a run."""
    observables, pairs = {}, {}
    for key, response in responses.items():
        if response.truth_axes:
            both = {"truth": response.truth_axes, "reco": response.reco_axes}
            pairs[key.observable] = {
                level: {name: list(edges) for name, edges in axes} for level, axes in both.items()
            }
        else:
            edges = {"truth": response.truth_edges.tolist(), "reco": response.reco_edges.tolist()}
            observables[key.observable] = edges
    return {"observables": observables} | ({"pairs": list(pairs.values())} if pairs else {})


def root_histograms(response: ResponseMatrix, *, shares: bool = True) -> dict[str, hist.Hist]:
    """Histograms of a response matrix for ROOT, each with sums of squared weights.

    Parameters
    ----------
    response
        Response matrix of simulation, or of data, which have ``measured`` alone.
    shares
        Add the fractions of events, with their errors.

    Returns
    -------
    histograms
        ``response`` with reconstruction on x and truth on y, as RooUnfold and TUnfold (kHistMapOutputVert)
        take it. Its x underflow holds all generated events that are not in a bin further up: not selected,
        not solved or below the first edge; TUnfold takes the efficiency from there. Then ``measured``,
        ``fakes``, ``generated`` and ``not_reconstructed``.
    """
    truth, reco = response.axes
    found = {"measured": response.measured.to_hist(reco)}
    if not response.has_truth:
        return found
    matrix = Sums(*(part.T.copy() for part in response.response))
    for part, missed in zip(matrix, response.missed, strict=True):
        part[0] += missed
    found["response"] = matrix.to_hist(reco, truth)
    found["fakes"] = response.fakes.to_hist(reco)
    found["generated"] = response.generated.to_hist(truth)
    found["not_reconstructed"] = response.not_reconstructed.to_hist(truth)
    if shares:
        for name, axis in (*((share, truth) for share in SHARES), ("fake_fraction", reco)):
            share: Estimate = getattr(response, name)
            found[name] = Sums(*(np.pad(x, 1) for x in (share.value, share.error**2))).to_hist(axis)
    return found


def to_json(responses: ResponseMatrices, *, about: Mapping[str, Any] | None = None) -> str:
    """Response matrices as JSON, null for undefined numbers.

    Parameters
    ----------
    responses
        Response matrices of `collect_responses`.
    about
        Plain data to put beside them.
    """
    content = {
        "layout": "sums by bin begin with the underflow and end with the overflow; response[truth][reco]",
        **(about or {}),
        "responses": [{**key._asdict(), **_content(response)} for key, response in responses.items()],
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def _content(response: ResponseMatrix) -> dict[str, Any]:
    found: dict[str, Any] = {
        "truth_edges": response.truth_edges.tolist(),
        "reco_edges": response.reco_edges.tolist(),
    }
    if response.truth_axes:
        found |= {"truth_axes": response.truth_axes, "reco_axes": response.reco_axes}
    for name in _SUMS if response.has_truth else ("measured",):
        sums: Sums = getattr(response, name)
        found |= {name: sums.value.tolist(), f"{name}_variance": sums.variance.tolist()}
    if not response.has_truth:
        return found
    found["condition_number"] = plain(response.condition_number)
    for name in (*SHARES, "fake_fraction"):
        share: Estimate = getattr(response, name)
        found |= {name: plain(share.value.tolist()), f"{name}_error": plain(share.error.tolist())}
    return found


def read_json(path: str | Path) -> ResponseMatrices:
    """Response matrices of a file of `write_responses`.

    Parameters
    ----------
    path
        JSON file.

    Raises
    ------
    TopRecoError
        If it is not such a file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return {Key(*(entry[name] for name in Key._fields)): _matrix(entry) for entry in content["responses"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise TopRecoError(f"{path}: not the response matrices of `topreco unfolding` ({reason})") from error


def _matrix(entry: Mapping[str, Any]) -> ResponseMatrix:
    truth, reco = (np.asarray(entry[f"{axis}_edges"], float) for axis in ("truth", "reco"))
    k, m = len(truth) + 1, len(reco) + 1
    shapes = dict(zip(_SUMS, ((k, m), (m,), (m,), (k,), (k,)), strict=True))
    sums = {
        name: Sums(
            *(
                np.asarray(entry[part], float).reshape(shape) if part in entry else np.zeros(shape)
                for part in (name, f"{name}_variance")
            )
        )
        for name, shape in shapes.items()
    }
    truth_axes, reco_axes = (
        tuple((name, tuple(edges)) for name, edges in entry.get(axis, ()))
        for axis in ("truth_axes", "reco_axes")
    )
    return ResponseMatrix(
        observable=entry["observable"],
        truth_edges=truth,
        reco_edges=reco,
        response=sums["response"],
        measured=sums["measured"],
        fakes=sums["fakes"],
        not_reconstructed=sums["not_reconstructed"],
        generated=sums["generated"],
        truth_axes=truth_axes,
        reco_axes=reco_axes,
    )


# ---- showing ---------------------------------------------------------------------------------------------


def save_figures(
    responses: ResponseMatrices,
    folder: str | Path,
    *,
    label: Label | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw each nominal response matrix with truth, over all channels, and the fractions of events.

    Parameters
    ----------
    responses
        Response matrices of `collect_responses`.
    folder
        Where to write; made if need be.
    label
        Text above the figures.
    formats
        Suffixes that matplotlib knows.

    Returns
    -------
    paths
        Files written, in one folder per dataset.

    Raises
    ------
    TopRecoError
        If the folder cannot be written.
    """
    paths: list[Path] = []
    for key, response in _nominal(responses):
        observable = described(key.observable)
        matrix = plot_migration(
            response.response.value,
            response.truth_edges,
            observable,
            method=key.method,
            reco_edges=response.reco_edges,
            label=label,
        )
        shares = {label: getattr(response, name) for name, label in SHARES.items()}
        curves = plot_shares(shares, response.truth_edges, observable, method=key.method, label=label)
        for kind, figure in (("response", matrix), ("shares", curves)):
            stem = f"{kind}_{key.observable}_{folder_name(key.method)}"
            paths += save(figure, Path(folder) / folder_name(key.dataset) / stem, formats=formats)
    return paths


def tables(responses: ResponseMatrices) -> Iterator[Table]:
    """Tables of the fractions of each nominal response matrix with truth, over all channels."""
    for key, response in _nominal(responses):
        where = f"{key.observable}, {key.dataset}, {key.method}"
        columns = [map(format_estimate, *getattr(response, name)) for name in SHARES]
        yield terminal_table(
            f"{where}: condition number {response.condition_number:.3g}",
            ("true bin", *SHARES),
            zip(response.truth_bins, *columns, strict=True),
        )


def markdown_tables(responses: ResponseMatrices) -> Iterator[str]:
    """The same tables as Markdown, each below a heading."""
    for key, response in _nominal(responses):
        columns = [map(format_estimate, *getattr(response, name)) for name in SHARES]
        condition = f"condition number {response.condition_number:.3g}"
        yield f"### {key.observable}, {key.dataset}, {key.method}: {condition}\n"
        yield markdown_table(("true bin", *SHARES), zip(response.truth_bins, *columns, strict=True))


def _nominal(responses: ResponseMatrices) -> Iterator[tuple[Key, ResponseMatrix]]:
    for key, response in responses.items():
        if key.channel == ALL_CHANNELS and key.variation == NOMINAL and response.has_truth:
            yield key, response
