"""Configuration of the commands that read events: simulation, skims, runs and what they fill."""

import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from topreco.config.base import Config, Fraction, Mass, NonNegative, Positive, PositiveInt
from topreco.config.fileset import FileDetails, plain_fileset
from topreco.config.selection import SelectionConfig
from topreco.config.systematics import SystematicsConfig
from topreco.core.constants import M_TOP, M_W
from topreco.core.errors import TopRecoError, nearest
from topreco.core.observables import OBSERVABLE_GROUPS, OBSERVABLES, observable_names
from topreco.core.threads import checked_device


def _check_device(device: str) -> str:
    try:
        return checked_device(device)
    except TopRecoError as error:
        raise ValueError(str(error)) from error


Device = Annotated[str, AfterValidator(_check_device)]


class PreselectionConfig(Config):
    """What generated electrons and muons must fulfil for an event to reach the detector.

    The thresholds are those of `skim-loose.yaml` with a margin that loses less than 0.1 % of its events; a
    looser selection needs lower ones.
    """

    pt_leading: NonNegative = 23.0
    """Smallest transverse momentum in GeV of the leading lepton."""
    pt_trailing: NonNegative = 18.0
    """Smallest transverse momentum in GeV of two leptons of opposite charge."""
    abs_eta: Positive = 2.45
    """Largest |η| of all of them."""


class ResonanceConfig(Config):
    """A spin-0 resonance that decays to tt̄."""

    mass: Positive
    """In GeV. Below 2 m_top the tops are off shell."""
    width: Positive
    """Full width in GeV."""
    mass_range: tuple[Positive, Positive] | None = None
    """Masses in GeV that occur; null: 15 widths to both sides."""

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.mass_range is not None and not self.mass_range[0] < self.mass < self.mass_range[1]:
            raise ValueError(f"mass_range: {list(self.mass_range)} found, a range about mass expected")
        return self


class SimulationConfig(Config):
    """`topreco simulate`: what to generate.

    The events depend on this configuration alone, not on the number of workers.
    """

    n_events: PositiveInt = 20_000
    """Events that Pythia generates: hard events."""
    process: Literal["ttbar", "pseudoscalar", "scalar", "tw", "drell_yan"] = "ttbar"
    """Dileptonic tt̄ of QCD, gg → A → tt̄ or gg → H → tt̄ without interference with it, tW at leading order, or
    Z/γ* → ℓℓ with a parton."""
    pt_parton: Positive = 20.0
    """Smallest transverse momentum in GeV of the parton beside Z/γ*."""
    resonance: ResonanceConfig | None = None
    """Mass and width of A or H."""
    seed: Annotated[int, Field(ge=0)] = 1
    sqrt_s: Positive = 13_000.0
    """Centre-of-mass energy in GeV."""
    m_top: Mass = M_TOP
    tune: Literal["CP5", "Monash"] = "CP5"
    mpi: bool = True
    """Multi-parton interactions; without them four times as fast."""
    lhe: Path | None = None
    """Shower these external events instead of Pythia's own matrix elements."""
    decays_per_event: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pairs of W decays that are tried for each hard event, the first being Pythia's own. Copies have the
    same run, luminosity block and event; the branch `decayCopy` tells them apart."""
    spin_correlation: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Accept decays such that t and t̄ have this multiple of the spin correlation of leading-order QCD, or
    that of the resonance; null accepts all of them, which have none, but is 1 for a resonance. With 1 half
    of the tries are refused."""
    preselection: PreselectionConfig | None = None
    """Simulate the detector only for events whose generated leptons can pass; null: for all. Sums of weights
    count all generated events."""
    pileup: NonNegative | Literal["run2", "run3"] = 0.0
    """Mean number of additional collisions in an event, or a profile of it: `run2` (UL2018 of CMS, 31 on
    average) or `run3` (2022 and 2023, 48); the number is Poisson distributed about it."""
    pileup_pool: PositiveInt = 20_000
    """Minimum-bias events that these are drawn from, made once."""
    pileup_cache: Path | None = None
    """Folder where they are kept; null: `topreco` in the user's cache folder."""
    block_size: PositiveInt = 500
    """Events per independently seeded block: the unit of resuming."""
    nanoaod_version: Literal["v7", "v9", "v11", "v12", "v14", "v15"] | None = None
    """Write the branches of that NanoAOD version, of the same events; null: those that all have in common."""

    @property
    def redecays(self) -> bool:
        """Some option needs the W decays of the generated events."""
        return self.decays_per_event > 1 or self.spin_scale is not None or self.preselection is not None

    @property
    def spin_scale(self) -> float | None:
        """Spin correlation in units of that of the process; None for none."""
        return 1.0 if self.resonance is not None and self.spin_correlation is None else self.spin_correlation

    @model_validator(mode="after")
    def _own_process(self) -> Self:
        is_resonance = self.process in ("pseudoscalar", "scalar")
        if is_resonance != (self.resonance is not None):
            raise ValueError(
                f"resonance: mass and width of a resonance belong to the processes pseudoscalar and scalar, "
                f"which need them; {self.process} found with {'none' if is_resonance else 'some'}"
            )
        if self.lhe is not None and self.process != "ttbar":
            raise ValueError(f"process: {self.process} found with lhe, whose events have their own process")
        # A complete file has the default with every process.
        if self.pt_parton != type(self).model_fields["pt_parton"].default and self.process != "drell_yan":
            raise ValueError(f"pt_parton: {self.pt_parton:g} found, is of drell_yan; {self.process} found")
        if self.process in ("tw", "drell_yan") and self.redecays:
            raise ValueError(
                "decays_per_event, spin_correlation and preselection are for pairs of tops; leave them at "
                f"their defaults with {self.process}"
            )
        if self.lhe is not None and self.redecays:
            raise ValueError(
                "decays_per_event, spin_correlation and preselection are for Pythia's own process; "
                "leave them at their defaults with lhe, whose events have decays of their own"
            )
        return self


def _rising(edges: tuple[float, ...]) -> tuple[float, ...]:
    if not all(map(math.isfinite, edges)):
        raise ValueError("finite edges expected")
    if any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError("rising edges expected")
    return edges


# `_rising` refuses ∞ and NaN with one message for the whole list.
Edges = Annotated[
    tuple[Annotated[float, Field(allow_inf_nan=True)], ...], Field(min_length=2), AfterValidator(_rising)
]
"""Edges of bins, finite and rising."""


def _known(by_name: dict[str, Any]) -> dict[str, Any]:
    for name in by_name:
        if name not in OBSERVABLES:
            raise ValueError(
                f"unknown observable {name!r}{nearest(name, OBSERVABLES)}; allowed: {', '.join(OBSERVABLES)}"
            )
    return by_name


_MOST_AXES = 3


class HistogramConfig(Config):
    """Histograms that the processor fills."""

    observables: tuple[str, ...] = OBSERVABLE_GROUPS["default"]
    """Names of observables, or of groups of them: default, angles, threshold, polarisation,
    correlation, spin, all."""
    bins: dict[str, Edges] = {}
    """Edges per observable in place of the defaults."""

    joint: dict[str, dict[str, Edges]] = {}
    """Histograms in two or three observables, by name: edges by observable."""

    @field_validator("joint")
    @classmethod
    def _joint_known(cls, joint: dict[str, dict[str, Any]]) -> dict[str, Any]:
        for name, edges in joint.items():
            if not 2 <= len(edges) <= _MOST_AXES:
                raise ValueError(f"{name}: {len(edges)} observables found, two or three expected")
            _known(edges)
        return joint

    @field_validator("observables")
    @classmethod
    def _members_of_groups(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return observable_names(names)

    @field_validator("bins")
    @classmethod
    def _observables_known(cls, bins: dict[str, Any]) -> dict[str, Any]:
        return _known(bins)


class ResponseBins(Config):
    """Bins of a response matrix."""

    truth: Edges | None = None
    """Edges; null takes fine ones, from which `topreco unfolding --min-purity` can make better."""
    reco: Edges | None = None
    """Edges; null takes those of `truth`. For purity and stability those of `truth` must be among them."""

    @model_validator(mode="after")
    def _reco_needs_truth(self) -> Self:
        if self.truth is None and self.reco is not None:
            raise ValueError("'reco' is given without 'truth'; give the edges of both, or of none")
        return self


class PairBins(Config):
    """Bins of the response matrix of two observables together."""

    truth: dict[str, Edges]
    """Edges by observable, of two."""
    reco: dict[str, Edges] | None = None
    """Edges of the same observables; null takes those of `truth`."""

    @property
    def name(self) -> str:
        """Name of the pair in histograms: both observables with _x_ between them."""
        return "_x_".join(self.truth)

    @model_validator(mode="after")
    def _of_two(self) -> Self:
        _known({**self.truth, **(self.reco or {})})
        if len(self.truth) != 2:
            raise ValueError(f"edges of two observables expected, found {', '.join(self.truth) or 'none'}")
        if self.reco is not None and list(self.reco) != list(self.truth):
            raise ValueError(
                f"'reco' has {', '.join(self.reco)}; {', '.join(self.truth)} as 'truth' expected"
            )
        return self


class ParticleLevelConfig(Config):
    """Generated particles of the phase space, pT in GeV: dressed leptons, jets with b hadrons, neutrinos."""

    lepton_pt_min: NonNegative = 20.0
    lepton_eta_max: Positive = 2.4
    m_ll_min: NonNegative = 20.0
    """Smallest invariant mass of both leptons."""
    jet_pt_min: NonNegative = 30.0
    jet_eta_max: Positive = 2.4
    jet_lepton_delta_r: NonNegative = 0.4
    """Jets closer to one of the leptons do not count."""
    m_w: Mass = 80.4
    m_top: Mass = 172.5
    """Masses that leptons, neutrinos and jets are assigned by."""


class PhaseSpaceConfig(Config):
    """Generated events that a measurement is unfolded to; with cuts on their partons, pT in GeV."""

    level: Literal["parton", "particle"] = "parton"
    """Top quarks before their decay, or pseudo-tops made of generated leptons, neutrinos and jets."""
    particle: ParticleLevelConfig = ParticleLevelConfig()
    """Cuts of the particle level, where those on partons have no meaning."""
    decay: Literal["dileptonic", "prompt", "any"] = "dileptonic"
    """Both W bosons give an e or μ, directly or through a τ; `prompt`: directly; `any`: every tt̄ pair."""
    lepton_pt_min: NonNegative = 0.0
    """Smallest pT of both charged leptons."""
    lepton_eta_max: Positive | None = None
    b_pt_min: NonNegative = 0.0
    """Smallest pT of both b quarks, before they radiate."""
    b_eta_max: Positive | None = None

    @model_validator(mode="after")
    def _cuts_of_the_level(self) -> Self:
        if self.level == "parton":
            if self.particle != ParticleLevelConfig():
                raise ValueError("'particle' is for 'level: particle'")
            return self
        cuts = (self.lepton_pt_min, self.lepton_eta_max, self.b_pt_min, self.b_eta_max)
        if self.decay == "any" or any(cuts):
            raise ValueError(
                "level: particle has its cuts in 'particle', and decay dileptonic or prompt; no other keys"
            )
        return self


class UnfoldingConfig(Config):
    """Response matrices, with the generated spectra of all events; none by default."""

    observables: dict[str, ResponseBins] = {}
    """Bins by observable. A list of names, or of groups of them, takes fine bins."""
    pairs: tuple[PairBins, ...] = ()
    """Pairs of observables, each with one matrix whose bins are unrolled, the second observable fastest."""
    phase_space: PhaseSpaceConfig = PhaseSpaceConfig()

    @property
    def fills(self) -> bool:
        """True if there is something to fill."""
        return bool(self.observables or self.pairs)

    @field_validator("pairs")
    @classmethod
    def _pairs_differ(cls, pairs: tuple[PairBins, ...]) -> tuple[PairBins, ...]:
        names = [pair.name for pair in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"a pair is given twice: {', '.join(names)}")
        return pairs

    @field_validator("observables", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {name: {} for name in observable_names(value)}
        return value

    @field_validator("observables")
    @classmethod
    def _observables_known(cls, value: dict[str, ResponseBins]) -> dict[str, ResponseBins]:
        return _known(value)


class SkimConfig(Config):
    """`topreco skim`: ROOT files to a Parquet file of selected events."""

    selection: SelectionConfig = SelectionConfig()
    dataset: str = "default"
    """Name of the sample, part of an event's identity."""
    tree: str = "Events"
    step_size: PositiveInt = 50_000
    """Entries read at a time."""


Summary = Literal["mean", "median", "mode"]
"""What a method with a posterior says of an observable."""


class SolverConfig(Config):
    """Analytic methods: the constraints, and how the detector's resolution is smeared over."""

    m_top: Mass = M_TOP
    m_w: Mass = M_W
    """Used where the W masses are not drawn."""
    n_draws: PositiveInt = 100
    """Smeared copies of each event."""
    pairing: Literal["candidates", "all"] = "candidates"
    """The b candidates of the selection, or every pair of jets in the best tag category: the largest sum of
    weights wins."""
    reset_energy: bool = True
    """Give the averaged momenta of a smeared event the energy of a top quark on shell."""
    response: Path | None = None
    """Detector response of `topreco response`; null takes the one that comes with the package."""
    seed: Annotated[int, Field(ge=0)] = 1
    """With run, lumi and event it fixes the draws of an event."""


class ValidationConfig(Config):
    """`topreco validate`: what the validated methods, events and numbers depend on."""

    solvers: SolverConfig = SolverConfig()
    """Settings of the analytic methods; `m_top` is also the mass that tops are compared with."""
    summary: Summary = "mean"
    """Values of observables: what methods say, which for posteriors is the mean; the medians of the quantiles
    that a method gives; or the modes of its samples. Methods without them keep their values."""
    histograms: HistogramConfig = HistogramConfig()
    """`bins` replaces the edges of the validated observables."""
    observables: tuple[str, ...] = ()
    """Observables with figures besides m_tt, pt_top, y_top and c_hel, or groups of them as in `histograms`.
    The numbers of all observables are in the tables."""
    test_split: tuple[Path, ...] = ()
    """Model files; only events that the split of their trainings has set apart are used."""
    spin_correlation: Literal["add", "remove"] | Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Weight events such that the tt̄ spin correlation of leading-order QCD is added to a sample without it,
    removed from one that has it, or made this many times as large there."""
    d_of_sample: Annotated[float, Field(gt=-1, lt=1)] = 0.0
    """Spin correlation D of the sample before cuts: 0 for Pythia's own tops, −0.24 with that of QCD."""
    reference: str = "sonnenschein"
    """Method with whose widths `comparison.md` compares those of the others, if it is among them."""
    posterior: Literal["auto"] | bool = "auto"
    """Examine the calibration of the methods that give samples; true is an error if there is none."""
    samples: Annotated[int, Field(ge=2)] = 64
    """Samples of each event for that."""
    posterior_events: PositiveInt | None = 20_000
    """About as many events are sampled, chosen by a hash of their key; null samples all."""

    @field_validator("observables")
    @classmethod
    def _observables_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return observable_names(names)


class PepperWriteConfig(SkimConfig):
    """`topreco pepper-write`: reconstructed tops into copies of pepper's event files."""

    method: str = "dilepton"
    """Model file, or name that `topreco.load` knows."""
    column: str | None = None
    """Name of the new column, which begins with recot; null makes it from the method's name. An existing
    column of this name is replaced."""
    solvers: SolverConfig = SolverConfig()
    """Settings of the analytic methods."""


class ClusterConfig(Config):
    """Where the workers of the executors `dask` and `parsl` run."""

    kind: Literal["local", "htcondor", "slurm"] = "local"
    """On this machine, or as jobs of a batch system."""
    address: str | None = None
    """Address of a running Dask scheduler (tcp://host:8786), in place of starting one."""
    options: dict[str, Any] = {}
    """Passed on: to dask_jobqueue's HTCondorCluster or SLURMCluster or to LocalCluster, or to parsl's
    CondorProvider, SlurmProvider or LocalProvider."""


class RunConfig(Config):
    """`topreco run`: files through a coffea Runner to histograms."""

    fileset: dict[str, tuple[str, ...]] = {}
    """Files by dataset name; also a fileset of coffea, or the name of a JSON or YAML file with one."""
    details: dict[str, dict[str, FileDetails]] = {}
    """Ranges of entries and identity of files, by dataset and file, as a fileset of coffea has them."""
    tree: str = "Events"
    methods: tuple[str, ...] = ()
    """Model files, or names that `topreco.load` knows."""
    ratios: dict[str, Path] = {}
    """Learned observables: model files of the task `ratio`, of reconstructed objects, by name.
    Their log-ratios are booked as ``ratio/NAME``, of all variations, and columns ``ratio_NAME``."""
    min_quality: dict[str, float] = {}
    """Smallest quality of an event that counts as solved, by name of the method: for networks with quantiles
    −0.1 keeps events whose m_tt is known to 10 %."""
    summary: Summary = "mean"
    """Values of observables: what methods say, which for posteriors is the mean; the medians of the quantiles
    that a method gives; or the modes of its samples. Methods without them keep their values."""
    solvers: SolverConfig = SolverConfig()
    """Settings of the analytic methods."""
    selection: SelectionConfig = SelectionConfig()
    histograms: HistogramConfig = HistogramConfig()
    systematics: SystematicsConfig = SystematicsConfig()
    unfolding: UnfoldingConfig = UnfoldingConfig()
    executor: Literal["iterative", "futures", "dask", "parsl"] = "iterative"
    workers: PositiveInt = 1
    """Processes on this machine, or jobs of the batch system."""
    cluster: ClusterConfig = ClusterConfig()
    device: Device = "cpu"
    """Where torch evaluates networks: cpu, cuda, cuda:1, mps, or auto for CUDA where there is any."""
    ship_model: bool = False
    """Send the files of `methods` to the workers, which otherwise read them under the same path."""
    chunk_size: PositiveInt = 100_000
    max_chunks: PositiveInt | None = None
    skip_bad_files: bool = False
    """Leave out files, or chunks of them, that cannot be read, and list them in `run.json`."""
    skip_limit: Fraction = 0.05
    """Largest share of the events that may be left out; above it the command fails, after it has written the
    results."""
    checkpoint: Path | None = None
    """Folder that keeps each finished chunk, so that the same command continues where it was stopped."""
    output: Path = Path("results/run")
    output_columns: Path | None = None
    """Folder for the results of each event, as friends of the input files."""
    columns_format: Literal["parquet", "root"] = "parquet"
    columns_samples: Annotated[int, Field(ge=0)] = 0
    """Samples of the tops of each event in `output_columns`, from each method that gives some."""

    @model_validator(mode="before")
    @classmethod
    def _plain_fileset(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "fileset" not in content:
            return content
        fileset, trees, details = plain_fileset(content["fileset"])
        if "tree" in content:
            trees.add(str(content["tree"]))
        trees = {tree.lstrip("/") for tree in trees}
        if len(trees) > 1:
            raise ValueError(f"fileset: one tree for all files expected, found {', '.join(sorted(trees))}")
        read = {"fileset": fileset} | ({"tree": trees.pop()} if trees else {})
        return {**content, **read, **({"details": details} if details else {})}

    @model_validator(mode="after")
    def _cluster_used(self) -> Self:
        if self.executor in ("iterative", "futures") and self.cluster != ClusterConfig():
            raise ValueError(
                f"cluster: executor '{self.executor}' runs on this machine and has none; "
                "executor dask or parsl expected"
            )
        if self.cluster.address is not None and (
            self.executor != "dask" or self.cluster.kind != "local" or self.cluster.options
        ):
            raise ValueError(
                "cluster.address: belongs to a Dask scheduler that runs already; executor dask and no other "
                "key of cluster expected beside it"
            )
        return self

    @model_validator(mode="after")
    def _samples_written(self) -> Self:
        if self.columns_samples and self.output_columns is None:
            raise ValueError(
                f"columns_samples: {self.columns_samples} found without output_columns, where samples are "
                "written; name its folder (--output-columns)"
            )
        return self

    @model_validator(mode="after")
    def _something_to_fill(self) -> Self:
        if not self.histograms.observables and not self.unfolding.fills:
            raise ValueError(
                "histograms.observables: empty, and so is unfolding.observables; one or more observables of "
                "either expected"
            )
        return self
