# Copyright the topreco developers. SPDX-License-Identifier: BSD-3-Clause
"""Top quark and antiquark from plain arrays with a model that `topreco export` wrote.

This file needs numpy and onnxruntime, nothing else, and Python 3.9 or newer: copy it beside your processor,
whatever versions of coffea and awkward that one pins. It is the same for every model and holds nothing of
any. With arrays of the n events that pass your selection of two leptons and at least two jets,

    from model_reader import TopModel

    model = TopModel("model.onnx")  # in the constructor of a processor; pickles as its path
    tops = model(
        lepton_pt=..., lepton_eta=..., lepton_phi=..., lepton_charge=..., lepton_pdgid=...,  # (n, 2)
        jet_pt=..., jet_eta=..., jet_phi=..., jet_mass=..., jet_btag=...,  # (n, any number of jets)
        met_pt=..., met_phi=...,  # (n,)
    )
    tops.top, tops.antitop  # (n, 4): E, px, py, pz in GeV
    tops.valid  # (n,): False, and NaN above, where an event has no prediction
    tops.quantiles["m_tt"], tops.quality  # of models with uncertainties, see Tops
    tops.observables["c_han"]  # of a posterior, for which p4 is not the best answer to every question

A model that sees features of your own (`TopModel.features` names them) takes them by name as `features`, see
`make_objects`. One that sees the working points that a jet passes counts them with its setting
`btag_working_points`, or takes `jet_working_points`, of the shape of the scores. Who has nothing but these
numbers gives them as `jet_btag` too: `btag_threshold` 1.5 is medium.

Momenta, masses and MET are in GeV. Jets need no order; a slot with pT = 0, or one that a numpy mask hides, is
empty. In awkward, `ak.to_numpy(ak.pad_none(jets.pt, 12, clip=True))` is such an array; leptons are
`ak.to_numpy(leptons.pt[:, :2])` and the like, in any order of the charges.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

INPUTS = {
    "lepton_plus": np.float32,
    "lepton_minus": np.float32,
    "lepton_flavour": np.int64,
    "jets": np.float32,
    "jet_mask": np.bool_,
    "jet_btag": np.float32,
    "jet_tagged": np.bool_,
    "b_candidates": np.int64,
    "met": np.float32,
}
"""Inputs of every model, with the type of their numbers; models of several folds have `fold` too."""

FURTHER_INPUTS = {
    "jet_working_points": np.int64,
    "jet_features": np.float32,
    "lepton_features": np.float32,
    "event_features": np.float32,
}
"""Inputs of models that see working points or features, with the type of their numbers."""

OUTPUTS = ("p4", "quantiles", "p4_std", "means", "samples")
"""Outputs: the first, of models with quantiles the first three, of a posterior all."""

DIMENSIONS = 6
"""Numbers of the noise that becomes a sample."""

QUANTILE_LEVELS = (0.025, 0.16, 0.5, 0.84, 0.975)
"""Levels of the quantiles of observables."""

DIGEST_MARK = b"topreco_sha256\x12\x40"
"""What stands before the last 64 bytes of a file, the SHA-256 of all others in hexadecimal digits."""

M_ELECTRON, M_MUON, M_TOP, M_W = 0.000511, 0.105658, 172.5, 80.4
"""Masses in GeV."""

# Matrix products of few rows take other code paths, which round differently. In multiples of this many rows,
# the prediction for an event does not depend on how many others are in its batch.
_BATCH_MULTIPLE = 64


FORMAT = 2
"""Version of the metadata that this reader knows."""


class ModelError(ValueError):
    """A model file or arrays that cannot be used."""


class Tops(NamedTuple):
    """Reconstructed top quark and antiquark.

    Attributes
    ----------
    top, antitop
        Four-momenta (E, px, py, pz) in GeV, shape (n, 4); NaN where not valid.
    valid
        True where there is a prediction, shape (n,).
    quantiles
        Of models that have them: quantiles of the true value of observables at `QUANTILE_LEVELS` by name,
        each of shape (n, 5), rising.
    quality
        Larger is better: minus the relative uncertainty of the mass of the pair, −½ ln(q₈₄/q₁₆), shape (n,).
    top_std, antitop_std
        Uncertainty of (E, px, py, pz) in GeV, half the width of the 68 % interval, shape (n, 4).
    observables
        Of a posterior: means of observables by name, each of shape (n,).
    """

    top: Array
    antitop: Array
    valid: Array
    quantiles: Optional[dict[str, Array]] = None
    quality: Optional[Array] = None
    top_std: Optional[Array] = None
    antitop_std: Optional[Array] = None
    observables: Optional[dict[str, Array]] = None


class Prediction(NamedTuple):
    """Predictions of a model.

    Attributes
    ----------
    p4
        (E, px, py, pz) in GeV of top (index 0) and antitop (1), shape (n, 2, 4); NaN where not valid.
    valid
        True where everything that exists in the event, and the prediction, is finite, shape (n,).
    quantiles
        See `Tops`.
    uncertainty
        Of p4 in GeV, shape (n, 2, 4), of models with quantiles.
    observables
        See `Tops`.
    """

    p4: Array
    valid: Array
    quantiles: Optional[dict[str, Array]] = None
    uncertainty: Optional[Array] = None
    observables: Optional[dict[str, Array]] = None


class TopModel:
    """A model that `topreco export` wrote.

    Pickles as its path and settings: each process opens the file once, when it needs it.

    Parameters
    ----------
    path
        File to read (`.onnx`).
    threads
        Threads per call; 0 takes all cores. Workers that share a machine want 1.
    batch_size
        Events per forward pass. It changes memory and speed, not results.
    btag_threshold
        Working point of the b tag, exclusive; by default that of the model's training data. Another tagger
        or data-taking year needs its own.
    max_jets
        Leading jets among which the b candidates are sought; by default as for the training data.
    m_lb_max
        Largest lepton–jet mass of a b candidate in GeV, exclusive; by default as for the training data.
    btag_working_points
        Scores at all working points of the b tagger, rising from the loosest on, for models that see how many
        of them a jet passes; by default those of the model's training data.

    Raises
    ------
    ModelError
        If the file is not a usable model.
    """

    def __init__(
        self,
        path: Union[str, Path],
        *,
        threads: int = 1,
        batch_size: int = 256,
        btag_threshold: Optional[float] = None,
        max_jets: Optional[int] = None,
        m_lb_max: Optional[float] = None,
        btag_working_points: Optional[Sequence[float]] = None,
    ) -> None:
        if batch_size < 1:
            raise ModelError(f"batch_size: {batch_size} found, at least 1 expected")
        self.path = Path(path).absolute()
        self.threads = threads
        self.batch_size = batch_size
        self.btag_threshold = btag_threshold
        self.max_jets = max_jets
        self.m_lb_max = m_lb_max
        self.btag_working_points = None if btag_working_points is None else tuple(btag_working_points)
        self._open()  # Fail here, not in the first worker.

    @property
    def metadata(self) -> dict[str, Any]:
        """Configuration, training data, versions and results of the model."""
        return self._open()[1]

    @property
    def folds(self) -> int:
        """Number of networks in the file; with more than one, each event needs its fold, see `fold_of`."""
        return int(self.metadata["folds"])

    @property
    def observables(self) -> tuple[str, ...]:
        """Observables with quantiles, none in a model without uncertainties."""
        task = self.metadata["task"]
        if task["kind"] == "posterior":
            return tuple(task["schema"]["observables"])
        return tuple((task["config"].get("quantiles") or {}).get("observables", ()))

    @property
    def is_posterior(self) -> bool:
        """True if the model gives samples."""
        return bool(self.metadata["task"]["kind"] == "posterior")

    @property
    def features(self) -> dict[str, tuple[str, ...]]:
        """Names of the features that the model sees, of each jet, lepton and event."""
        features = self.metadata["encoder"]["config"]["tokens"].get("features", {})
        return {kind: tuple(features.get(kind, ())) for kind in ("jet", "lepton", "event")}

    @property
    def sees_working_points(self) -> bool:
        """True if the model sees how many working points of the b tagger a jet passes, not the score."""
        return bool(self.metadata["encoder"]["config"]["tokens"].get("btag") == "working_points")

    @property
    def inputs(self) -> dict[str, Any]:
        """Inputs of this model, with the type of their numbers, `fold` and `noise` excepted."""
        features = self.features
        seen = {f"{kind}_features" for kind in features if features[kind]}
        if self.sees_working_points:
            seen.add("jet_working_points")
        return {**INPUTS, **{name: kind for name, kind in FURTHER_INPUTS.items() if name in seen}}

    def __call__(self, *, fold: Any = None, **arrays: Any) -> Tops:
        """Reconstruct the top-quark pair of each event.

        Parameters
        ----------
        fold
            Which network reconstructs each event, shape (n,), from `fold_of`; for models of several alone.
        **arrays
            Leptons, jets and MET, see `make_objects`.

        Returns
        -------
        tops
            Not valid where an input is NaN or infinite, or the leptons do not have opposite charges.

        Raises
        ------
        ModelError
            If the arrays do not fit together, or a setting is neither given nor known from the file.
        """
        found = self.run(self._objects(arrays), fold=fold)
        tops = Tops(found.p4[:, 0], found.p4[:, 1], found.valid, observables=found.observables)
        quantiles, std = found.quantiles, found.uncertainty
        if quantiles is None or std is None:
            return tops
        mass = quantiles.get("m_tt")
        quality = None if mass is None else -0.5 * np.log(mass[:, 3] / mass[:, 1])
        return tops._replace(quantiles=quantiles, quality=quality, top_std=std[:, 0], antitop_std=std[:, 1])

    def samples(
        self,
        *,
        dataset: str,
        run: Any,
        luminosity_block: Any,
        event: Any,
        n_samples: int = 64,
        seed: int = 1,
        fold: Any = None,
        **arrays: Any,
    ) -> Array:
        """Samples of the top-quark pair of each event, from a posterior.

        Parameters
        ----------
        dataset, run, luminosity_block, event
            Key of each event, which with the seed determines its samples; all but the name of shape (n,).
        n_samples
            Number of samples of each event.
        seed
            Other seeds give other samples.
        fold
            See a call.
        **arrays
            Leptons, jets and MET, see `make_objects`.

        Returns
        -------
        samples
            Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, n_samples, 2, 4); NaN where an input is
            not finite.

        Raises
        ------
        ModelError
            As a call, and if the model is no posterior.
        """
        n = len(np.asarray(event))
        identity = np.full(n, dataset_id(dataset), dtype=np.uint64)
        noise = normal_noise((identity, run, luminosity_block, event), n_samples, seed)
        return self.run_samples(self._objects(arrays), noise, fold=fold)

    def _objects(self, arrays: dict[str, Any]) -> dict[str, Array]:
        """Inputs of the model from plain arrays, with the settings of its training data."""
        settings = {
            "btag_threshold": self._setting("btag_threshold", "jet"),
            "max_jets": self._setting("max_jets", "jet"),
            "m_lb_max": self._setting("m_lb_max"),
            "feature_names": self.features,
        }
        if self.sees_working_points and arrays.get("jet_working_points") is None:
            settings["btag_working_points"] = self._working_points()
        return make_objects(**arrays, **settings)

    def _working_points(self) -> tuple[float, ...]:
        """Scores at the working points as given, or as all training data had them."""
        points = self._setting("btag_working_points", "jet")
        if points is None:
            raise ModelError(
                f"{self.path}: the file does not tell btag_working_points; give them, or jet_working_points"
            )
        return points if isinstance(points, tuple) else tuple(points.values())

    def run(self, objects: Mapping[str, Array], *, fold: Any = None, quantiles: bool = True) -> Prediction:
        """Predictions for objects in GeV.

        Parameters
        ----------
        objects
            The arrays of `TopModel.inputs`, as `make_objects` gives them; other types of numbers are
            converted.
        fold
            See a call.
        quantiles
            Evaluate the uncertainties, too, of models that have them.

        Returns
        -------
        answer
            Four-momenta and, of models that have them, uncertainties.

        Raises
        ------
        ModelError
            If a model of several folds gets none.
        """
        n, names = len(objects["met"]), self.observables if quantiles or self.is_posterior else ()
        shapes: dict[str, tuple[int, ...]] = {"p4": (2, 4)}
        if names and quantiles:
            shapes |= {"quantiles": (len(names), len(QUANTILE_LEVELS)), "p4_std": (2, 4)}
        if self.is_posterior:
            shapes["means"] = (len(names),)
            # The graph has samples too, and one of them costs next to nothing.
            objects = {**objects, "noise": np.zeros((n, 1, DIMENSIONS))}
        columns = self._evaluated(objects, fold, shapes)
        valid = np.asarray(np.isfinite(columns["p4"]).all(axis=(1, 2)))
        for column in columns.values():
            column[~valid] = np.nan

        def by_name(output: str) -> Optional[dict[str, Array]]:
            if output not in columns:
                return None
            return {name: columns[output][:, i] for i, name in enumerate(names)}

        return Prediction(columns["p4"], valid, by_name("quantiles"), columns.get("p4_std"), by_name("means"))

    def run_samples(self, objects: Mapping[str, Array], noise: Array, *, fold: Any = None) -> Array:
        """Samples from noise, of a posterior, shape (n, k, 2, 4).

        Parameters
        ----------
        objects
            The arrays of `INPUTS`.
        noise
            Normal numbers, shape (n, k, 6), from `normal_noise`.
        fold
            See a call.

        Raises
        ------
        ModelError
            If the model is no posterior, or one of several folds gets none.
        """
        if not self.is_posterior:
            raise ModelError(f"{self.path}: samples need a model of the task 'posterior'")
        return self._evaluated({**objects, "noise": noise}, fold, {"samples": (noise.shape[1], 2, 4)})[
            "samples"
        ]

    def _evaluated(
        self, objects: Mapping[str, Array], fold: Any, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, Array]:
        """Outputs of these shapes per event, NaN where an input that exists is not finite."""
        session, metadata = self._open()
        kinds = self.inputs if "noise" not in objects else {**self.inputs, "noise": np.float32}
        if missing := [name for name in kinds if name not in objects]:
            raise ModelError(f"{self.path}: the model takes the input {missing[0]!r}, which is missing")
        # A value beyond single precision is an infinity, not an error.
        with np.errstate(over="ignore"):
            inputs: dict[str, Array] = {
                name: np.asarray(objects[name]).astype(kind) for name, kind in kinds.items()
            }
        n = len(inputs["met"])
        if metadata["folds"] > 1:
            inputs["fold"] = _checked_fold(self.path, fold, n, metadata["folds"])
        finite = _finite(inputs)
        columns = {name: np.full((n, *shape), np.nan) for name, shape in shapes.items()}
        for start in range(0, n, self.batch_size):
            own = start + np.flatnonzero(finite[start : start + self.batch_size])
            if len(own):
                filled = -(-len(own) // _BATCH_MULTIPLE) * _BATCH_MULTIPLE
                padded = own[np.arange(filled) % len(own)]
                batch = {name: values[padded] for name, values in inputs.items()}
                for column, output in zip(columns.values(), session.run(list(columns), batch)):
                    column[own] = output[: len(own)]
        return columns

    def _open(self) -> tuple[Any, dict[str, Any]]:
        """Session and metadata."""
        # Times alone may be those of the file that this one replaced.
        state = self.path.stat() if self.path.exists() else None
        changed = None if state is None else (state.st_mtime_ns, state.st_size, state.st_ino)
        # The threads of a session do not survive a fork: each process has a session of its own.
        return _open_model(self.path, changed, self.threads, os.getpid())

    def _setting(self, name: str, section: Optional[str] = None) -> Any:
        """A setting as given, or as all training data had it."""
        given = getattr(self, name)
        if given is not None:
            return given
        selections = [file["selection"] for file in self.metadata.get("data", {}).get("files", [])]
        sections = [selection[section] if section else selection for selection in selections]
        found = {json.dumps(content.get(name)): content.get(name) for content in sections}
        if len(found) != 1:
            known = ", ".join(sorted(found)) or "nothing"
            raise ModelError(f"{self.path}: the file does not tell {name} (found {known}); give it")
        return found.popitem()[1]


@lru_cache(maxsize=8)
def _open_model(
    path: Path,
    changed: Optional[tuple[int, int, int]],  # noqa: ARG001 - part of the cache's key, as the process
    threads: int,
    process: int,  # noqa: ARG001
) -> tuple[Any, dict[str, Any]]:
    """Session and metadata of a file, once per process and version of the file."""
    import onnxruntime

    if not path.is_file():
        raise ModelError(f"{path}: no such file; a model written by `topreco export` expected")
    content = path.read_bytes()
    body, digest = content[:-64], content[-64:]
    if not body.endswith(DIGEST_MARK):
        raise ModelError(f"{path}: cut short, or not a model written by `topreco export`")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ModelError(f"{path}: damaged or changed after its export, content and checksum differ")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelError(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot open it ({str(error).splitlines()[0]})"
        ) from error
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["topreco"])
    if metadata.get("format") != FORMAT:
        raise ModelError(
            f"{path}: model format {metadata.get('format')!r} found, {FORMAT} expected; export the model "
            "again, or use the reader that was written beside it"
        )
    return session, metadata


def _checked_fold(path: Path, fold: Any, n: int, folds: int) -> Array:
    """Fold as the graph takes it, shape (n, 1)."""
    if fold is None:
        raise ModelError(
            f"{path}: holds {folds} networks, one per fold; say with fold=fold_of(dataset, run, "
            f"luminosity_block, event, {folds}) which of them has not been trained with an event"
        )
    checked = np.asarray(fold)
    if checked.shape != (n,) or not np.isin(checked, np.arange(folds)).all():
        raise ModelError(f"fold: {n} integers from 0 to {folds - 1} expected, found {fold!r}")
    return checked.astype(np.int64)[:, None]


def _finite(inputs: Mapping[str, Array]) -> Array:
    """True where everything that exists in an event is finite, shape (n,)."""
    jets = np.isfinite(inputs["jets"]).all(axis=-1)
    if "jet_working_points" not in inputs:
        jets &= np.isfinite(inputs["jet_btag"])
    if "jet_features" in inputs:
        jets &= np.isfinite(inputs["jet_features"]).all(axis=-1)
    finite = (jets | ~inputs["jet_mask"]).all(axis=-1)
    for name in ("lepton_plus", "lepton_minus", "met"):
        finite &= np.isfinite(inputs[name]).all(axis=-1)
    for name in ("lepton_features", "event_features"):
        if name in inputs:
            finite &= np.isfinite(inputs[name]).reshape(len(inputs["met"]), -1).all(axis=-1)
    return np.asarray(finite)


# ---- objects of an event ---------------------------------------------------------------------------------


def make_objects(
    *,
    lepton_pt: Any,
    lepton_eta: Any,
    lepton_phi: Any,
    lepton_charge: Any,
    lepton_pdgid: Any,
    jet_pt: Any,
    jet_eta: Any,
    jet_phi: Any,
    jet_mass: Any,
    jet_btag: Any,
    met_pt: Any,
    met_phi: Any,
    btag_threshold: float,
    max_jets: int = 12,
    m_lb_max: float = 180.0,
    jet_working_points: Any = None,
    btag_working_points: Optional[Sequence[float]] = None,
    features: Optional[Mapping[str, Any]] = None,
    feature_names: Optional[Mapping[str, Sequence[str]]] = None,
) -> dict[str, Array]:
    """Inputs of a model from the objects of selected events, GeV and radians throughout.

    Parameters
    ----------
    lepton_pt, lepton_eta, lepton_phi, lepton_charge, lepton_pdgid
        The two leptons, electrons or muons, in any order, shape (n, 2).
    jet_pt, jet_eta, jet_phi, jet_mass, jet_btag
        Jets apart from the leptons and their b-tag scores in any order, shape (n, J); a slot is empty where
        pT is 0 or masked.
    met_pt, met_phi
        Missing transverse momentum, shape (n,).
    btag_threshold
        Working point of the b tag, exclusive.
    max_jets
        Leading jets to keep.
    m_lb_max
        Largest lepton–jet mass of a b candidate in GeV, exclusive.
    jet_working_points
        Number of working points of the b tagger that each jet passes, shape (n, J); by default counted with
        `btag_working_points`, where those are given.
    btag_working_points
        Scores at the working points, rising.
    features
        Features by name, of jets (n, J) and leptons (n, 2), in the order of theirs, and of events (n,).
    feature_names
        Names of the features that a model sees, `TopModel.features`.

    Returns
    -------
    objects
        The arrays of `INPUTS`, and of `FURTHER_INPUTS` those that something was given for; leptons of equal
        charge are NaN.

    Raises
    ------
    ModelError
        If the arrays do not fit together, or a lepton is neither electron nor muon.
    """
    met = _columns((None,), met_pt=met_pt, met_phi=met_phi)
    n = len(met[0])
    jet_columns = _columns(
        (n, None), jet_pt=jet_pt, jet_eta=jet_eta, jet_phi=jet_phi, jet_mass=jet_mass, jet_btag=jet_btag
    )
    pt, eta, phi, charge, pdgid = _columns(
        (n, 2),
        lepton_pt=lepton_pt,
        lepton_eta=lepton_eta,
        lepton_phi=lepton_phi,
        lepton_charge=lepton_charge,
        lepton_pdgid=lepton_pdgid,
    )
    flavour = np.abs(pdgid)
    unknown = ~np.isin(flavour, (11, 13))
    if unknown.any():
        raise ModelError(f"lepton_pdgid: {pdgid[unknown][0]:g} found, ±11 or ±13 expected")
    leptons = _four_momenta(pt, eta, phi, np.where(flavour == 13, M_MUON, M_ELECTRON))
    leptons[charge.sum(axis=1) != 0] = np.nan
    by_charge = np.argsort(-charge, axis=1, kind="stable")
    leptons = np.take_along_axis(leptons, by_charge[..., None], axis=1)

    # In falling pT, at equal pT as given. A NaN must not hide behind the last jet that is kept.
    rank = np.where(np.isnan(jet_columns[0]), np.inf, jet_columns[0])
    leading = np.argsort(-rank, axis=1, kind="stable")[:, :max_jets]
    pt, eta, phi, mass, btag = (np.take_along_axis(column, leading, axis=1) for column in jet_columns)
    mask = pt != 0
    jets = np.where(mask[..., None], _four_momenta(pt, eta, phi, mass), 0.0)
    tagged = mask & (btag > btag_threshold)

    further: dict[str, Array] = {}
    if jet_working_points is not None:
        (counts,) = _columns(jet_columns[0].shape, jet_working_points=jet_working_points)
        further["jet_working_points"] = np.where(mask, np.take_along_axis(counts, leading, axis=1), 0)
    elif btag_working_points is not None:
        further["jet_working_points"] = mask * np.sum([btag > score for score in btag_working_points], axis=0)
    shapes = {"jet": jet_columns[0].shape, "lepton": (n, 2), "event": (n,)}
    for kind, names in (feature_names or {}).items():
        absent = [name for name in names if name not in (features or {})]
        if absent:
            raise ModelError(
                f"features: the model sees {absent[0]!r} of each {kind}, which is missing; found "
                f"{', '.join(features or {}) or 'none'}"
            )
        columns = [_columns(shapes[kind], **{name: (features or {})[name]})[0] for name in names]
        if kind != "event":
            order = leading if kind == "jet" else by_charge
            columns = [np.take_along_axis(column, order, axis=1) for column in columns]
        if kind == "jet":
            columns = [np.where(mask, column, 0.0) for column in columns]
        if columns:
            further[f"{kind}_features"] = np.stack(columns, axis=-1)
    return {
        **further,
        "lepton_plus": leptons[:, 0],
        "lepton_minus": leptons[:, 1],
        "lepton_flavour": np.take_along_axis(flavour, by_charge, axis=1).astype(np.int64),
        "jets": jets,
        "jet_mask": mask,
        "jet_btag": np.where(mask, btag, 0.0),
        "jet_tagged": tagged,
        "b_candidates": b_candidates(leptons[:, 0], leptons[:, 1], jets, mask, tagged, m_lb_max=m_lb_max),
        "met": np.stack([met[0] * np.cos(met[1]), met[0] * np.sin(met[1])], axis=-1),
    }


def _columns(shape: tuple[Optional[int], ...], **arrays: Any) -> list[Array]:
    """Arrays of one shape, None being any length, in double precision; NaN, or no jet, where masked."""
    columns: list[Array] = []
    for name, values in arrays.items():
        column = np.asarray(
            np.ma.filled(np.ma.asarray(values, np.float64), 0 if name == "jet_pt" else np.nan)
        )
        if not len(column) and shape[0] in (0, None):
            # An awkward array of no events does not know its other axes.
            column = np.zeros([length or 0 for length in shape])
        if column.ndim != len(shape) or any(e not in (None, f) for e, f in zip(shape, column.shape)):
            expected = ", ".join("any" if length is None else str(length) for length in shape)
            raise ModelError(f"{name}: shape {column.shape} found, ({expected}) expected")
        shape = column.shape
        columns.append(column)
    return columns


def _four_momenta(pt: Array, eta: Array, phi: Array, mass: Array) -> Array:
    """(E, px, py, pz), shape (..., 4); a negative mass counts as zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        pz = pt * np.sinh(eta)
        mass = np.where(mass > 0, mass, 0 * mass)
        energy = np.sqrt(pt**2 + pz**2 + mass**2)
        return np.stack([energy, pt * np.cos(phi), pt * np.sin(phi), pz], axis=-1)


# ---- b candidates ----------------------------------------------------------------------------------------

# Fractions of longitudinal, left- and right-handed W bosons in top decay at NNLO in QCD, arXiv:1005.2625.
_LONGITUDINAL, _LEFT, _RIGHT = 0.687, 0.311, 0.002
_RESOLUTION = 0.10
_STEP, _LAST = 0.5, 400.0


def b_candidates(
    lepton_plus: Array,
    lepton_minus: Array,
    jets: Array,
    jet_mask: Array,
    jet_tagged: Array,
    *,
    m_lb_max: float = 180.0,
) -> Array:
    """Ordered pair of b candidates: the jet of the top with ℓ⁺ and the jet of the antitop with ℓ⁻.

    Pairs of two tagged jets are preferred to those of one, and those to pairs without any; both lepton–jet
    masses must lie below `m_lb_max`. Then the largest P(m_ℓ⁺b) P(m_ℓ⁻b̄) wins, at a tie the first jets. It is
    what `topreco.core.pairing.b_candidates` does.

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

    Returns
    -------
    candidates
        Index into the jets for ℓ⁺ and for ℓ⁻, shape (n, 2); −1 for both where no pair is allowed.
    """
    n, n_jets = jet_mask.shape
    if n == 0 or n_jets == 0:
        return np.full((n, 2), -1)
    probabilities, allowed = [], []
    for lepton in (lepton_plus, lepton_minus):
        with np.errstate(invalid="ignore"):  # infinities, in events that have no prediction
            pair = lepton[:, None] + jets
            squared = pair[..., 0] * pair[..., 0] - (pair[..., 1:] * pair[..., 1:]).sum(-1)
            mass = np.sqrt(np.maximum(squared, 0.0))
        allowed.append(jet_mask & (mass < m_lb_max))
        probabilities.append(np.interp(mass, *_mlb_density()))
    possible = allowed[0][:, :, None] & allowed[1][:, None, :] & ~np.eye(n_jets, dtype=bool)
    n_tagged = jet_tagged[:, :, None].astype(np.int8) + jet_tagged[:, None, :]
    n_tagged = np.where(possible, n_tagged, -1)
    best = n_tagged.max(axis=(1, 2), keepdims=True)
    score = probabilities[0][:, :, None] * probabilities[1][:, None, :]
    score = np.where((n_tagged == best) & possible, score, -1.0)
    chosen = np.stack(np.divmod(score.reshape(n, -1).argmax(axis=1), n_jets), axis=1)
    return np.where(best[:, :, 0] >= 0, chosen, -1)


@cache
def _mlb_density() -> tuple[Array, Array]:
    """Masses in GeV and the density of m_ℓb of correct pairs there, with the detector's resolution."""
    grid = np.arange(0.0, _LAST + _STEP, _STEP)
    generated = grid[1:, None] - _STEP / 2
    end_squared = M_TOP**2 - M_W**2
    x = np.clip(generated**2 / end_squared, 0.0, 1.0)
    density = 6 * _LONGITUDINAL * x * (1 - x) + 3 * _LEFT * (1 - x) ** 2 + 3 * _RIGHT * x**2
    density = np.where(generated**2 < end_squared, density * 2 * generated / end_squared, 0.0)
    width = _RESOLUTION * generated
    kernel = np.exp(-(((grid - generated) / width) ** 2) / 2) / (np.sqrt(2 * np.pi) * width)
    return grid, (density * kernel).sum(axis=0) * _STEP


# ---- folds -----------------------------------------------------------------------------------------------

_FOLD_SALT = 2


def fold_of(dataset: str, run: Any, luminosity_block: Any, event: Any, folds: int) -> Array:
    """Fold of each event: the index of the one network of a model that has not been trained with it.

    For events that no network has seen, as data, it is a fixed random choice, so that data and simulation
    are reconstructed alike.

    Parameters
    ----------
    dataset
        Name of the sample, the same as in `topreco skim --dataset`.
    run, luminosity_block, event
        As in NanoAOD, shape (n,).
    folds
        Number of networks, `TopModel.folds`.

    Returns
    -------
    fold
        Index in [0, folds), shape (n,).
    """
    n = len(np.asarray(event))
    identity = np.full(n, dataset_id(dataset), dtype=np.uint64)
    uniform = _hashed_uniform(_FOLD_SALT, identity, run, luminosity_block, event)
    return np.floor(uniform * folds).astype(np.int64)


# ---- noise of samples ------------------------------------------------------------------------------------

_NOISE_SALT = 4


def normal_noise(key: Any, n_samples: int, seed: int) -> Array:
    """Normal numbers of each event, from its key and the seed alone, shape (n, n_samples, 6).

    It is what the package draws, so that both give the same samples.

    Parameters
    ----------
    key
        `dataset_id`, run, luminosity block and event number, shape (n,) each.
    n_samples
        Number of samples; those of fewer samples come first.
    seed
        Seed.
    """
    pairs, n = n_samples * DIMENSIONS // 2, len(np.asarray(key[-1]))
    repeated = [np.repeat(np.asarray(part).astype(np.uint64), pairs) for part in key]
    index = np.tile(np.arange(pairs, dtype=np.uint64), n)
    first, second = (
        _hashed_uniform(_NOISE_SALT + i, seed, *repeated, index).reshape(n, pairs) for i in range(2)
    )
    # Of Box and Muller; 1 − u is never 0.
    radius, angle = np.sqrt(-2 * np.log1p(-first)), 2 * np.pi * second
    noise = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return np.asarray(noise.reshape(n, n_samples, DIMENSIONS))


def dataset_id(name: str) -> int:
    """Stable 64-bit identity of a dataset's name, part of the key of an event."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _hashed_uniform(salt: int, *parts: Any) -> Array:
    """Reproducible numbers in [0, 1): a hash of the salt and of each part in turn."""
    state = _mix(np.array([salt], dtype=np.uint64))
    for part in parts:
        state = _mix(state ^ np.asarray(part).astype(np.uint64))
    return np.asarray((state >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(x: Array) -> Array:
    """Output function of SplitMix64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
