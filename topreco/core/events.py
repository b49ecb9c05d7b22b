"""The dataclasses that carry events between the rooms: `DileptonEvents`, `TopPair`, `Posterior`, `Truth`.

All are structs of numpy arrays with the event as first axis. Indexing one with a mask, a slice or an index
array gives the same struct for those events. On every axis of length two that distinguishes legs, index 0
is the top (with ℓ⁺ and ν) and 1 the antitop (with ℓ⁻ and ν̄).
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from topreco.core.constants import PDG_ELECTRON, PDG_MUON
from topreco.core.errors import TopRecoError
from topreco.core.fourvector import from_pt_eta_phi_mass, pt

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.integer[Any]]

CHANNELS = ("ee", "emu", "mumu")
"""Lepton channels; `DileptonEvents.channel` indexes this tuple."""

PRODUCTIONS = ("gg", "qq", "other")
"""Partonic initial states of QCD tt̄, and all else, resonances too; `Truth.production` indexes this tuple."""

WORKING_POINTS = ("L", "M", "T", "XT", "XXT")
"""Working points of b taggers, which `DileptonEvents.jet_working_points` counts from the loosest on."""

QUANTILE_LEVELS = (0.025, 0.16, 0.5, 0.84, 0.975)
"""Levels of `TopPair.quantiles`: limits of the central 95 % and 68 % intervals, and the median between."""


def dataset_id(name: str) -> int:
    """Stable 64-bit identity of a dataset's name, part of the key of an event."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _mix(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """SplitMix64's output function [1]_, a bijection of 64-bit integers that scatters neighbours.

    References
    ----------
    .. [1] G. L. Steele, D. Lea, C. H. Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed_uniform(salt: int, *parts: npt.ArrayLike) -> FloatArray:
    """Reproducible numbers in [0, 1): a hash of the salt and of each part in turn.

    Parameters
    ----------
    salt
        Different salts, 0 to 2⁶⁴ − 1, give independent numbers.
    *parts
        Integers, at least one of them an array of shape (n,), the others of that shape or scalars.

    Returns
    -------
    numbers
        Multiples of 2⁻⁵³, shape (n,).
    """
    state = _mix(np.array([salt], dtype=np.uint64))
    for part in parts:
        state = _mix(state ^ np.asarray(part).astype(np.uint64))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


class _Struct:
    """A struct of arrays, and mappings of arrays, over events: length, indexing, concatenation."""

    _KEPT_IF_COMMON: ClassVar[tuple[str, ...]] = ()
    """Fields of which a concatenation keeps what all parts have."""

    def __len__(self) -> int:
        first = dataclasses.fields(self)[0]  # type: ignore[arg-type]
        return len(getattr(self, first.name))

    def __getitem__(self, index: Any) -> Self:
        return dataclasses.replace(  # type: ignore[type-var]
            self,
            **{
                field.name: _picked(getattr(self, field.name), index)
                for field in dataclasses.fields(self)  # type: ignore[arg-type]
            },
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """One struct of the events of several, in their order."""
        if not parts:
            raise TopRecoError(f"{cls.__name__}.concatenate: needs at least one part, got none")
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            values = [getattr(part, field.name) for part in parts]
            if field.name in cls._KEPT_IF_COMMON:
                values = _common(values)
            absent = [value is None for value in values]
            if any(absent) and not all(absent):
                raise TopRecoError(
                    f"{cls.__name__}.concatenate: field {field.name!r} is present in some parts only"
                )
            if isinstance(values[0], Mapping):
                if len({frozenset(value) for value in values}) > 1:
                    raise TopRecoError(f"{cls.__name__}.concatenate: the entries of {field.name!r} differ")
                columns[field.name] = {key: np.concatenate([v[key] for v in values]) for key in values[0]}
            else:
                columns[field.name] = None if absent[0] else np.concatenate(values)
        return cls(**columns)

    def _check(self, shapes: dict[str, tuple[int | None, ...]]) -> None:
        """Raise unless each named field has its shape after the event axis (None: any length)."""
        n = len(self)
        for name, tail in shapes.items():
            value = getattr(self, name)
            if value is None:
                continue
            found = np.shape(value)
            expected = (n, *tail)
            if len(found) != len(expected) or any(
                e is not None and e != f for e, f in zip(expected, found, strict=True)
            ):
                wanted = "(" + ", ".join("any" if e is None else str(e) for e in expected) + ")"
                raise TopRecoError(f"{type(self).__name__}.{name}: shape {found} found, {wanted} expected")


def _common(values: Sequence[Any]) -> list[Any]:
    """An optional column of all parts, with None, or without some entries, if a part lacks them."""
    if any(value is None for value in values):
        return [None] * len(values)
    if not isinstance(values[0], Mapping):
        return list(values)
    names = [name for name in values[0] if all(name in value for value in values)]
    return [{name: value[name] for name in names} for value in values]


def _picked(value: Any, index: Any) -> Any:
    """Some events of a column or of a mapping of columns; None stays None."""
    if isinstance(value, Mapping):
        return {key: column[index] for key, column in value.items()}
    return None if value is None else value[index]


@dataclass(frozen=True, eq=False)
class DileptonEvents(_Struct):
    """Selected dileptonic events: reconstructed objects only, no truth.

    Attributes
    ----------
    lepton_plus, lepton_minus
        Four-momenta (E, px, py, pz) in GeV of the positive and the negative lepton, shape (n, 4).
    lepton_flavour
        |pdgId| (11 or 13) of the positive and the negative lepton, shape (n, 2).
    jets
        Four-momenta (E, px, py, pz) in GeV in falling pT, zero where padded, shape (n, max_jets, 4).
    jet_mask
        True where there is a jet, shape (n, max_jets).
    jet_btag
        b-tag score, zero where padded, shape (n, max_jets).
    jet_tagged
        Score above the working point of the selection, shape (n, max_jets).
    b_candidates
        Index into the jets of the b candidate for ℓ⁺ and of that for ℓ⁻, −1 where there is none,
        shape (n, 2).
    met
        Missing transverse momentum (px, py) in GeV, shape (n, 2).
    dataset
        `dataset_id` of the dataset's name, shape (n,); with the next three the key of an event.
    run, luminosity_block, event
        As in NanoAOD, shape (n,); `event` has 64 bits.
    weight
        Signed event weight, 1 in data, shape (n,).
    jet_working_points
        How many of `WORKING_POINTS` the score passes, of those that the tagger has, zero where padded, shape
        (n, max_jets); None where they are not known.
    features
        Further reconstructed quantities, as `topreco.config.FeaturesConfig` names them: ``jet:NAME`` of shape
        (n, max_jets), zero where padded; ``lepton:NAME`` of ℓ⁺ and ℓ⁻, shape (n, 2); ``event:NAME``, shape
        (n,). None for none.
    """

    _KEPT_IF_COMMON = ("jet_working_points", "features")

    lepton_plus: FloatArray
    lepton_minus: FloatArray
    lepton_flavour: IntArray
    jets: FloatArray
    jet_mask: BoolArray
    jet_btag: FloatArray
    jet_tagged: BoolArray
    b_candidates: IntArray
    met: FloatArray
    dataset: IntArray
    run: IntArray
    luminosity_block: IntArray
    event: IntArray
    weight: FloatArray
    jet_working_points: IntArray | None = None
    features: Mapping[str, FloatArray] | None = None

    def __post_init__(self) -> None:
        max_jets = np.shape(self.jet_mask)[-1]
        self._check(
            {
                "lepton_plus": (4,),
                "lepton_minus": (4,),
                "lepton_flavour": (2,),
                "jets": (max_jets, 4),
                "jet_mask": (max_jets,),
                "jet_btag": (max_jets,),
                "jet_tagged": (max_jets,),
                "b_candidates": (2,),
                "met": (2,),
                "dataset": (),
                "run": (),
                "luminosity_block": (),
                "event": (),
                "weight": (),
                "jet_working_points": (max_jets,),
            }
        )
        tails: dict[str, tuple[int, ...]] = {"jet": (max_jets,), "lepton": (2,), "event": ()}
        for name, values in (self.features or {}).items():
            tail = tails.get(name.partition(":")[0])
            if tail is None:
                raise TopRecoError(
                    f"DileptonEvents.features: {name!r} found, a name such as 'jet:Jet_mass', "
                    "'lepton:pfRelIso03_all' or 'event:PV_npvsGood' expected"
                )
            if np.shape(values) != (len(self), *tail):
                raise TopRecoError(
                    f"DileptonEvents.features[{name!r}]: shape {np.shape(values)} found, "
                    f"{(len(self), *tail)} expected"
                )

    def further_inputs(
        self, *, working_points: bool, features: Mapping[str, Sequence[str]]
    ) -> dict[str, npt.NDArray[Any]]:
        """Inputs of a network beyond those that every network has.

        Parameters
        ----------
        working_points
            Give the number of working points that each jet passes.
        features
            Names by kind: jet, lepton, event.

        Returns
        -------
        inputs
            ``jet_working_points``, shape (n, max_jets), and of each kind that has names ``jet_features``,
            shape (n, max_jets, F), ``lepton_features``, shape (n, 2, F), and ``event_features``, shape
            (n, F), in the order of the names.

        Raises
        ------
        TopRecoError
            If the events lack some of it.
        """
        inputs: dict[str, npt.NDArray[Any]] = {}
        if working_points:
            if self.jet_working_points is None:
                raise TopRecoError(
                    "the model takes the number of working points that each jet passes (tokens.btag), which "
                    "the events do not have: no working points of their tagger and era are known; "
                    "selection.era, or selection.jet.btag_working_points, gives them, and a skim needs to be "
                    "made again"
                )
            inputs["jet_working_points"] = self.jet_working_points
        elif self.jet_working_points is not None:
            score = self.jet_btag[self.jet_mask]
            if len(score) and np.isnan(score).all():
                raise TopRecoError(
                    "the model takes the b-tag score, and the events have only the number of working points "
                    "that each jet passes"
                )
        present = self.features or {}
        wanted = {kind: [f"{kind}:{name}" for name in names] for kind, names in features.items() if names}
        missing = [name for names in wanted.values() for name in names if name not in present]
        if missing:
            kind, _, name = missing[0].partition(":")
            raise TopRecoError(
                f"the model takes the feature {missing[0]!r}, which the events do not have; they have "
                f"{', '.join(present) or 'none'}; selection.features.{kind}=[{name}] keeps it, and a skim "
                "needs to be made again"
            )
        for kind, names in wanted.items():
            inputs[f"{kind}_features"] = np.stack([present[name] for name in names], axis=-1)
        return inputs

    @property
    def channel(self) -> IntArray:
        """Index into `CHANNELS`, shape (n,): the number of muons."""
        return (self.lepton_flavour == PDG_MUON).sum(axis=1).astype(np.int8)

    @property
    def n_jets(self) -> IntArray:
        """Number of jets, shape (n,)."""
        return self.jet_mask.sum(axis=1)

    def uniform(self, salt: int = 0) -> FloatArray:
        """Reproducible number in [0, 1) per event, a hash of its key (dataset, run, lumi, event).

        It decides on splits and folds, so it depends neither on the order of events nor on which others
        are present.

        Parameters
        ----------
        salt
            Different salts give independent numbers.
        """
        return hashed_uniform(salt, self.dataset, self.run, self.luminosity_block, self.event)

    @property
    def lepton_p4(self) -> FloatArray:
        """Four-momenta (E, px, py, pz) of ℓ⁺ and ℓ⁻ in GeV, shape (n, 2, 4)."""
        return np.stack([self.lepton_plus, self.lepton_minus], axis=1)

    @property
    def b_candidate_p4(self) -> FloatArray:
        """Four-momenta of the b candidates for ℓ⁺ and ℓ⁻ in GeV, NaN where there is none, shape (n, 2, 4)."""
        picked = np.take_along_axis(self.jets, np.maximum(self.b_candidates, 0)[..., None], axis=1)
        return np.where((self.b_candidates >= 0)[..., None], picked, np.nan)


@dataclass(frozen=True, eq=False)
class TopPair(_Struct):
    """Reconstructed top quark and antiquark: what every `Method` returns.

    Attributes
    ----------
    p4
        Four-momenta (E, px, py, pz) in GeV of top (index 0) and antitop (1), shape (n, 2, 4); NaN where
        not valid, and for methods that reconstruct only the tt̄ system.
    valid
        True if the method has a prediction, shape (n,).
    ttbar
        Four-momentum of the tt̄ system in GeV, shape (n, 4), only from methods that give just the system.
    observables
        Values of observables that are better than those of `p4`, such as means over a posterior, by name in
        `topreco.core.observables.OBSERVABLES`; each of shape (n,).
    quality
        Larger is better; its meaning belongs to the method, shape (n,).
    uncertainty
        Standard deviation of p4 in GeV as the method estimates it, shape (n, 2, 4).
    quantiles
        Quantiles of the true value of observables as the method estimates them, by name in
        `topreco.core.observables.OBSERVABLES`; each of shape (n, 5), at `QUANTILE_LEVELS`, rising.
    """

    p4: FloatArray
    valid: BoolArray
    ttbar: FloatArray | None = None
    observables: Mapping[str, FloatArray] | None = None
    quality: FloatArray | None = None
    uncertainty: FloatArray | None = None
    quantiles: Mapping[str, FloatArray] | None = None

    def __post_init__(self) -> None:
        self._check({"p4": (2, 4), "valid": (), "ttbar": (4,), "quality": (), "uncertainty": (2, 4)})
        for field, expected in (
            ("observables", (len(self),)),
            ("quantiles", (len(self), len(QUANTILE_LEVELS))),
        ):
            for name, values in (getattr(self, field) or {}).items():
                if np.shape(values) != expected:
                    raise TopRecoError(
                        f"TopPair.{field}[{name!r}]: shape {np.shape(values)} found, {expected} expected"
                    )

    @property
    def system(self) -> FloatArray:
        """Four-momentum of the tt̄ system in GeV, shape (n, 4)."""
        return self.p4.sum(axis=1) if self.ttbar is None else self.ttbar


@dataclass(frozen=True, eq=False)
class Posterior(_Struct):
    """Samples of the top-quark pairs that an event may have come from.

    Attributes
    ----------
    samples
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, k, 2, 4); NaN where a sample does not exist.
    log_weight
        Logarithm of the weight of each sample, whose scale is free in each event, shape (n, k); −∞ where a
        sample does not exist or does not count. An event in which none counts has no posterior.
    """

    samples: FloatArray
    log_weight: FloatArray

    def __post_init__(self) -> None:
        k = np.shape(self.log_weight)[-1]
        self._check({"samples": (k, 2, 4), "log_weight": (k,)})

    @classmethod
    def equal(cls, samples: FloatArray) -> Self:
        """Samples of equal weight, shape (n, k, 2, 4); an event with one that is not finite has none."""
        valid = np.asarray(np.isfinite(samples).all(axis=(1, 2, 3)))
        log_weight = np.where(valid[:, None], 0.0, -np.inf) * np.ones(samples.shape[:2])
        return cls(np.where(valid[:, None, None, None], samples, np.nan), log_weight)

    @property
    def valid(self) -> BoolArray:
        """There are samples with weight, shape (n,)."""
        return np.asarray((self.log_weight > -np.inf).any(axis=1))

    @property
    def weight(self) -> FloatArray:
        """Weights with a sum of 1 in each event, all zero without a posterior, shape (n, k)."""
        largest = self.log_weight.max(axis=1, initial=-np.inf, keepdims=True)
        weight = np.exp(self.log_weight - np.where(np.isfinite(largest), largest, 0.0))
        return np.asarray(weight / np.maximum(weight.sum(axis=1, keepdims=True), np.finfo(float).tiny))


@dataclass(frozen=True, eq=False)
class Truth(_Struct):
    """Generated top quarks and their decay, joined to events only in training and in filling histograms.

    Attributes
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄ after radiation and before decay, shape (n, 2, 4);
        NaN where the event has none, as for all arrays below.
    w, b, lepton, neutrino
        Four-momenta of the W boson, the bottom quark, the charged lepton (the e or μ at the end of a τ
        decay) and the neutrino from the W of each leg in GeV, shape (n, 2, 4).
    via_tau
        True if the W of the leg decayed to a τ, shape (n, 2).
    dileptonic
        Both W bosons gave an electron or a muon, directly or through a τ, shape (n,).
    production
        Index into `PRODUCTIONS`, shape (n,).
    """

    tops: FloatArray
    w: FloatArray
    b: FloatArray
    lepton: FloatArray
    neutrino: FloatArray
    via_tau: BoolArray
    dileptonic: BoolArray
    production: IntArray

    def __post_init__(self) -> None:
        self._check(
            dict.fromkeys(("tops", "w", "b", "lepton", "neutrino"), (2, 4))
            | {"via_tau": (2,), "dileptonic": (), "production": ()}
        )

    @property
    def valid(self) -> BoolArray:
        """Both tops were found, shape (n,)."""
        return np.asarray(np.isfinite(self.tops).all(axis=(1, 2)))

    @property
    def w_lepton(self) -> FloatArray:
        """Four-momenta of ℓ⁺ and ℓ⁻ as W less neutrino, a τ before its decay, shape (n, 2, 4)."""
        return self.w - self.neutrino


_FLAVOURS = (PDG_ELECTRON, PDG_MUON)


def mass_quality(quantiles: Mapping[str, FloatArray]) -> FloatArray | None:
    """Quality of events by how well m_tt is known: −½ ln(q₈₄/q₁₆), about minus its relative uncertainty.

    Parameters
    ----------
    quantiles
        As in `TopPair`.

    Returns
    -------
    quality
        Shape (n,); None without quantiles of m_tt.
    """
    if "m_tt" not in quantiles:
        return None
    low, high = (quantiles["m_tt"][:, QUANTILE_LEVELS.index(level)] for level in (0.16, 0.84))
    quality: FloatArray = -0.5 * np.log(high / low)
    return quality


def toy_events(n: int, *, max_jets: int = 12, seed: int = 0) -> DileptonEvents:
    """Random, kinematically sane events for tests, examples and benchmarks: no physics in them.

    Parameters
    ----------
    n
        Number of events.
    max_jets
        Padded length of the jet axis.
    seed
        Seed of the generator.
    """
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...], mean_pt: float, min_pt: float, mass: float) -> FloatArray:
        momentum = min_pt + rng.exponential(mean_pt, shape)
        return from_pt_eta_phi_mass(
            momentum, rng.uniform(-2.4, 2.4, shape), rng.uniform(-np.pi, np.pi, shape), np.full(shape, mass)
        )

    jets = draw((n, max_jets), 50.0, 30.0, 8.0)
    jets = np.take_along_axis(jets, np.argsort(-pt(jets), axis=1)[..., None], axis=1)
    jet_mask = np.arange(max_jets) < rng.integers(2, min(8, max_jets) + 1, n)[:, None]
    btag = np.where(jet_mask, rng.beta(0.5, 0.5, (n, max_jets)), 0.0)
    return DileptonEvents(
        lepton_plus=draw((n,), 40.0, 25.0, 0.1),
        lepton_minus=draw((n,), 40.0, 25.0, 0.1),
        lepton_flavour=rng.choice(_FLAVOURS, (n, 2)),
        jets=np.where(jet_mask[..., None], jets, 0.0),
        jet_mask=jet_mask,
        jet_btag=btag,
        jet_tagged=btag > 0.2783,
        b_candidates=np.argsort(rng.random((n, 2)), axis=1),
        met=rng.normal(0.0, 50.0, (n, 2)),
        dataset=np.full(n, dataset_id("toy"), dtype=np.uint64),
        run=np.ones(n, dtype=np.uint32),
        luminosity_block=np.ones(n, dtype=np.uint32),
        event=np.arange(n, dtype=np.uint64),
        weight=np.ones(n),
        # L, M and T of DeepJet in UL2018.
        jet_working_points=(btag[..., None] > np.array([0.049, 0.2783, 0.71])).sum(axis=-1),
    )
