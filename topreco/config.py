"""Configuration: frozen models with every default, read from YAML with dotted overrides.

An unknown key, a wrong type or an impossible combination is one `ConfigError` that names the file, the key,
the value found and what is allowed.
"""

import copy
import difflib
import itertools
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from topreco.constants import M_TOP, M_W, M_Z
from topreco.errors import TopRecoError
from topreco.observables import OBSERVABLE_GROUPS, OBSERVABLES

Positive = Annotated[float, Field(gt=0)]
Mass = Annotated[float, Field(gt=0, lt=1e5)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]


class ConfigError(TopRecoError):
    """A configuration that cannot be used."""


class Config(BaseModel):
    """Base of all configurations: immutable, refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


# ---- simulation ------------------------------------------------------------------------------------------


class SimulationConfig(Config):
    """`topreco simulate`: what to generate.

    The events depend on this configuration alone, not on the number of workers.
    """

    n_events: PositiveInt = 20_000
    seed: Annotated[int, Field(ge=0)] = 1
    sqrt_s: Positive = 13_000.0
    """Centre-of-mass energy in GeV."""
    m_top: Mass = M_TOP
    tune: Literal["CP5", "Monash"] = "CP5"
    mpi: bool = True
    """Multi-parton interactions; without them four times as fast."""
    lhe: Path | None = None
    """Shower these external events instead of Pythia's own matrix elements."""
    block_size: PositiveInt = 500
    """Events per independently seeded block: the unit of resuming."""
    nanoaod_version: Literal["v7", "v9", "v11", "v12", "v14", "v15"] | None = None
    """Write the branches of that NanoAOD version, of the same events; null: what all have in common."""


# ---- selection -------------------------------------------------------------------------------------------


def _text_of_year(value: Any) -> Any:
    """An era such as 2022, which YAML reads as a number."""
    return str(value) if type(value) is int else value


class ElectronSelection(Config):
    """Electron identification and acceptance."""

    pt_min: NonNegative = 20.0
    eta_max: Positive = 2.4
    gap: tuple[float, float] | None = (1.4442, 1.566)
    """Vetoed range of the supercluster's |η|, applied where the file has it."""
    id: str = "cutBased"
    """Field of `Electron`: a level (`cutBased`), or a flag such as `mvaIso_WP90` with `id_min` 1."""
    id_min: int = 4


class MuonSelection(Config):
    """Muon identification, isolation and acceptance."""

    pt_min: NonNegative = 20.0
    eta_max: Positive = 2.4
    id: str = "tightId"
    isolation: str = "pfRelIso04_all"
    isolation_max: Positive = 0.15


class JetSelection(Config):
    """Jet acceptance, cleaning and b tagging."""

    pt_min: NonNegative = 30.0
    eta_max: Positive = 2.4
    lepton_distance: NonNegative = 0.4
    """Smallest ΔR to the two selected leptons."""
    id_bit: Annotated[int, Field(ge=0, le=31)] | None = 1
    """Bit of `Jet_jetId` to require (1: tight, 2: tight with lepton veto); null requires none."""
    id_recipe: Literal["branch", "nano_v12", "run3_puppi", "ul2017_puppi", "ul2016_puppi"] = "branch"
    """Where that bit comes from: the branch, where it exists, or a recipe of `topreco.input.jet_id` that
    mends it (`nano_v12`) or computes it from energy fractions and multiplicities."""
    pu_id: Literal["loose", "medium", "tight"] | None = None
    """Pile-up identification (`Jet_puId`) required of jets below 50 GeV; for CHS jets, so Run 2 only."""
    pu_id_reversed: bool = False
    """Bits of `Jet_puId` in the wrong order, as in UL2016; set by the presets."""
    min_jets: Annotated[int, Field(ge=0)] = 2
    min_btags: Annotated[int, Field(ge=0)] = 1
    btag: str = "btagDeepFlavB"
    working_point: Literal["L", "M", "T", "XT", "XXT"] = "M"
    """Gives `btag_threshold`, where that is not set, from `presets/working_points.yaml`."""
    btag_threshold: float = 0.2783
    """The default, without an era, is DeepJet medium of UL2018."""
    max_jets: Annotated[int, Field(ge=2)] = 12
    """Leading jets kept per event."""

    @model_validator(mode="after")
    def _recipe_has_bit(self) -> Self:
        if self.id_recipe != "branch" and self.id_bit not in (None, 1, 2):
            raise ValueError(
                f"id_bit: {self.id_bit} with id_recipe '{self.id_recipe}', which gives only 1 (tight) and "
                "2 (tight with lepton veto)"
            )
        return self


class JetVetoMap(Config):
    """Regions of the detector that lose or invent jets, as correctionlib file of the CMS JME group."""

    file: Path
    """`jetvetomaps.json.gz` of the era."""
    name: str | None = None
    """Correction in the file; null takes the only one."""
    kind: str = "jetvetomap"
    level: Literal["event", "jet"] = "event"
    """Reject the event, as recommended for Run 3, or only drop the jet."""


class CutsConfig(Config):
    """Optional cuts, all off by default, each a step of the cutflow."""

    golden_json: Path | None = None
    """Certified luminosity sections; data only."""
    met_filters: tuple[str, ...] | Literal["preset"] = ()
    """Flags that must all be set, such as `Flag_goodVertices`; `preset` takes those of preset and era."""
    triggers: dict[str, tuple[str, ...]] = {}
    """Paths (`HLT_...`) by primary dataset. Simulation passes with any. Data pass with one of their primary
    dataset, whose name the dataset's contains, if none of the primary datasets before it fired."""
    missing_trigger: Literal["not_fired", "error"] = "not_fired"
    """A path that is not in the file: NanoAOD has those of the menu of its time, so it counts as not fired. A
    file with none of the paths is an error in any case."""
    jet_veto_map: JetVetoMap | None = None
    hem_veto: bool = False
    """2018: reject events with a jet or electron in the dead HCAL sector, in data from run 319077 on."""
    hem_fraction: Fraction = 0.632
    """Part of the simulated events that `hem_veto` treats as later ones, chosen by a hash of their keys; the
    default is the luminosity of those runs."""
    ee_leak_veto: bool = False
    """2022EE: electrons in the leaking part of the ECAL endcap are not identified."""
    bpix_veto: bool = False
    """2023BPix: reject events with a jet in the hole of the pixel barrel, where b tagging suffers."""


class PepperSelection(Config):
    """Event files of pepper, which has selected objects and events already.

    Of the rest of the selection only `channels`, `m_lb_max`, `jet.btag`, `jet.btag_threshold` (for files
    without `Jet_btagged`) and `jet.max_jets` apply to them.
    """

    cut: str | None = None
    """Last of pepper's cuts to require, by the name of its flag; null requires all of them."""


class SelectionConfig(Config):
    """The dileptonic selection, momenta and masses in GeV.

    Keys that are not set follow the preset of the file's NanoAOD version, see `topreco.presets`.
    """

    preset: str | None = None
    """NanoAOD version (`nano_v9`); null detects it from the branches, `none` uses only what is set here."""
    era: Annotated[str | None, BeforeValidator(_text_of_year)] = None
    """Data-taking era (`UL2017`), which gives the b-tag working point; null takes the preset's default."""
    branches: dict[str, str] = {}
    """For custom ntuples: name as here and in NanoAOD → name in the file, `{PuppiMET_pt: MET_pt}`."""
    electron: ElectronSelection = ElectronSelection()
    muon: MuonSelection = MuonSelection()
    jet: JetSelection = JetSelection()
    met: str = "PuppiMET"
    """NanoAOD collection of the missing transverse momentum."""
    leading_pt_min: NonNegative = 25.0
    m_ll_min: NonNegative = 20.0
    z_mass: Positive = M_Z
    z_window: NonNegative = 15.0
    """Half-width of the mass range removed in ee and μμ; 0 keeps all."""
    met_min: NonNegative = 40.0
    """In ee and μμ."""
    channels: tuple[Literal["ee", "emu", "mumu"], ...] = ("ee", "emu", "mumu")
    m_lb_max: Positive = 180.0
    """Largest lepton–b mass of a b candidate."""
    pepper: PepperSelection = PepperSelection()
    cuts: CutsConfig = CutsConfig()

    def in_file(self, names: Iterable[str]) -> list[str]:
        """Names of branches as the file has them, see `branches`."""
        return [self.branches.get(name, name) for name in names]

    @field_validator("branches")
    @classmethod
    def _event_key_keeps_its_names(cls, value: dict[str, str]) -> dict[str, str]:
        fixed = {"run", "luminosityBlock", "event"} & set(value)
        if fixed:
            raise ValueError(f"{', '.join(sorted(fixed))} cannot be renamed")
        return value


# ---- model -----------------------------------------------------------------------------------------------


class TokensConfig(Config):
    """Which reconstructed objects the network sees and how."""

    max_jets: Annotated[int, Field(ge=2)] = 7
    b_candidates: Literal["token", "flag", "none"] = "flag"
    log_pt: bool = False
    """Give log pT as a scalar feature. It restricts the symmetry to rotations about the beam."""


class NormalisationConfig(Config):
    """One Lorentz-invariant number per event that divides every four-momentum, targets included."""

    kind: Literal["constant", "event_mass", "object_mass"] = "constant"
    """`object_mass` divides each input by its own mass, targets by the constant. It is wrong, for it erases
    the energy of every lepton, and is here only to be compared with (configs/study/normalisation.yaml)."""
    scale: Positive = 100.0
    """The constant, in GeV."""
    include_met: bool = False
    """Count the MET in the event's mass, which is then invariant only along and about the beam."""


class SpurionConfig(Config):
    """Reference directions that tell the network about the beam and the laboratory frame."""

    beam: Literal["lightlike", "spacelike", "timelike", "xyplane"] | None = "lightlike"
    mirror: bool = True
    """Both beams rather than the one along +z."""
    time: bool = True
    embed: Literal["token", "channel"] = "token"


class LGATrConfig(Config):
    """The full geometric-algebra transformer of `lgatr`."""

    kind: Literal["lgatr"] = "lgatr"
    blocks: PositiveInt = 6
    multivector_channels: PositiveInt = 12
    scalar_channels: PositiveInt = 32
    heads: PositiveInt = 4
    dropout: Fraction | None = None


class LGATrSlimConfig(Config):
    """The vectors-only transformer of `lgatr`."""

    kind: Literal["lgatr_slim"] = "lgatr_slim"
    blocks: PositiveInt = 6
    vector_channels: PositiveInt = 24
    scalar_channels: PositiveInt = 64
    heads: PositiveInt = 4
    dropout: Fraction | None = None


class TransformerConfig(Config):
    """A plain transformer, the baseline without built-in symmetry."""

    kind: Literal["transformer"] = "transformer"
    blocks: PositiveInt = 6
    channels: PositiveInt = 64
    heads: PositiveInt = 4
    dropout: Fraction | None = None


class LLoCaConfig(Config):
    """The transformer in local Lorentz frames of `lloca`, extra `lloca`."""

    kind: Literal["lloca"] = "lloca"
    blocks: PositiveInt = 6
    channels: PositiveInt = 64
    """A multiple of 8 · `heads`."""
    heads: PositiveInt = 4
    dropout: Fraction | None = None


def _backbone_kind(value: Any) -> str:
    """Kind of a backbone that is being read; without one, the default."""
    if isinstance(value, dict):
        return str(value.get("kind", "lgatr_slim"))
    return str(getattr(value, "kind", type(value).__name__))


QuantileObservable = Literal[
    "m_tt",
    "pt_tt",
    "y_tt",
    "pt_top",
    "pt_antitop",
    "y_top",
    "y_antitop",
    "delta_abs_y",
    "cos_theta_star",
    "c_hel",
]

HeadKind = Literal["on_shell", "timelike", "direct", "projected", "three_momentum", "neutrinos"]

BackboneConfig = Annotated[
    Annotated[LGATrSlimConfig, Tag("lgatr_slim")]
    | Annotated[LGATrConfig, Tag("lgatr")]
    | Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[LLoCaConfig, Tag("lloca")],
    Discriminator(_backbone_kind),
]


class QuantilesConfig(Config):
    """A second, small network for the uncertainty of each event: quantiles of true observables."""

    backbone: BackboneConfig = LGATrSlimConfig(blocks=3, vector_channels=12, scalar_channels=48)
    spurions: SpurionConfig | None = None
    """Beam references, by default those of the model; a model with a bivector needs others here."""
    observables: tuple[QuantileObservable, ...] = (
        *("m_tt", "pt_tt", "y_tt", "pt_top", "pt_antitop", "y_top", "y_antitop", "delta_abs_y", "c_hel"),
    )
    """Observables with quantiles; the four-momenta of t and t̄ always have uncertainties. The quality of an
    event is that of m_tt."""
    hidden: PositiveInt = 64
    """Width of the layers behind the backbone."""
    calibration_bins: PositiveInt = 8
    """Bins of equal population in predicted m_tt in which the validation events correct the quantiles; fewer
    if there are less than 1500 events for each."""

    @field_validator("observables")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{repeated[0]!r} is given twice")
        return names


class ModelConfig(Config):
    """A network from reconstructed objects to the four-momenta of t and t̄."""

    backbone: BackboneConfig = LGATrSlimConfig()
    tokens: TokensConfig = TokensConfig()
    normalisation: NormalisationConfig = NormalisationConfig()
    spurions: SpurionConfig = SpurionConfig()
    readout: Literal["first_token", "mean", "sum", "query_tokens"] = "query_tokens"
    head: HeadKind = "on_shell"
    """How the network's vectors become top momenta: with mass `m_top` (`on_shell`, `projected`,
    `three_momentum`), with a predicted mass (`timelike`: 105 to 284 GeV, `direct`: from m_top/10), or as
    lepton + neutrino + jets weighted by the network (`neutrinos`). All but `three_momentum` are
    Lorentz-covariant."""
    m_top: Mass = M_TOP
    charge_symmetric: bool = False
    """Exact symmetry under ℓ⁺ ↔ ℓ⁻, t ↔ t̄, at twice the cost. Not for asymmetry measurements."""
    quantiles: QuantilesConfig | None = None
    """With it, the model also says how uncertain each event is; null: four-momenta alone."""

    @model_validator(mode="after")
    def _spurions_visible(self) -> Self:
        seen = {"": (self.backbone, self.spurions)}
        if self.quantiles is not None:
            seen["quantiles."] = (self.quantiles.backbone, self.quantiles.spurions or self.spurions)
        for key, (backbone, spurions) in seen.items():
            if spurions.beam == "xyplane" and backbone.kind != "lgatr":
                raise ValueError(
                    f"{key}spurions.beam: 'xyplane' is a bivector, which {key}backbone.kind "
                    f"'{backbone.kind}' cannot see; use lightlike, spacelike, timelike or null, or "
                    f"{key}backbone.kind 'lgatr'"
                )
            if backbone.kind == "lloca" and (spurions.beam, spurions.embed) == ("spacelike", "token"):
                raise ValueError(
                    f"{key}spurions.beam: 'spacelike' with {key}spurions.embed 'token' is a momentum without "
                    f"rest frame; {key}backbone.kind 'lloca' makes frames of momenta of tokens; use embed "
                    "'channel'"
                )
        return self


# ---- training --------------------------------------------------------------------------------------------


class LossConfig(Config):
    """Base loss on scaled four-momenta plus auxiliary terms."""

    base: Literal["mse", "smooth_l1"] = "smooth_l1"
    component_weights: tuple[NonNegative, NonNegative, NonNegative, NonNegative] = (1.0, 1.0, 1.0, 1.0)
    """Weights of (E, px, py, pz)."""
    m_tt: NonNegative = 0.0
    """Coefficient of the auxiliary loss on m_tt."""
    m_tt_kind: Literal["log", "relative", "ratio"] = "log"
    """Smooth-L1 of ln(m/m_true) or of m/m_true − 1, or m/m_true − 1 − ln(m/m_true), whose minimum has no
    relative bias."""
    top_mass: NonNegative = 0.0
    """Coefficient of the auxiliary loss on the masses of t and t̄, for heads that predict them."""
    pt_top: NonNegative = 0.0
    """Coefficient of the auxiliary loss on the transverse momenta of t and t̄."""
    c_hel: NonNegative = 0.0
    """Coefficient of the auxiliary loss on the cosine between the leptons in their tops' rest frames."""
    m_tt_bias: NonNegative = 0.0
    """Coefficient of the loss on RB of m_tt at given true m_tt, which trades resolution for a
    response without shrinkage. It needs batches of some hundred events."""
    flat_m_tt: Fraction = 0.0
    """Weight training events by the density of true ln m_tt to this power, inverted: 0 leaves the spectrum
    as it is, towards 1 it becomes flat. Less shrinkage to the mean, at the price of resolution."""
    negative_weights: Literal["absolute", "clip"] = "absolute"
    """What a negative event weight counts in the loss: |w|, or 0. Metrics use signed weights."""


class OptimiserConfig(Config):
    """Optimiser, schedule and what stabilises them."""

    kind: Literal["adamw", "muon", "schedulefree"] = "adamw"
    """`muon` is Muon for the matrices between hidden layers, with steps as large as AdamW's, and AdamW for
    the rest. `schedulefree` averages weights by itself: `schedule` and `ema_decay` then have no effect."""
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Fraction = 0.05
    """Fraction of all steps in which the rate rises linearly."""
    clip_norm: Positive | None = 1.0
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.999


class QuantileTrainingConfig(Config):
    """Training of the quantiles, after that of the tops, which it leaves as they are."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 256
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 0.01


class DataConfig(Config):
    """Training data and its split, which is a hash of each event's key and so never changes."""

    files: tuple[Path, ...] = ()
    """Skims written by `topreco skim`."""
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.2
    """With several folds each network is tested on its fold instead."""
    folds: PositiveInt = 1
    """With k > 1, k networks, each trained without the events of its fold, which it alone reconstructs."""
    max_events: PositiveInt | None = None
    """Read at most so many events, the same share of each file, for quick trials."""
    normalise_weights: bool = True
    """Scale the weights of each dataset to a mean of 1 in absolute value: generators differ in what they call
    a weight, and the one with the largest numbers would be all that is learnt."""
    require_dileptonic: bool = True
    """Train only on events whose W bosons both gave an electron or a muon."""
    stream: Literal["auto"] | bool = "auto"
    """Keep the events in a temporary file, 0.4 kB each, and in memory what of it fits; auto does so for more
    than a million. The result is the same."""
    cache: Path | None = None
    """Folder of that file, on a fast disk; null is that of the output."""


class TrainConfig(Config):
    """`topreco train`: everything that determines a training."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    quantiles: QuantileTrainingConfig = QuantileTrainingConfig()
    """How `model.quantiles` are trained, if there are any."""
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 512
    """Events per step, over all devices."""
    accumulate: PositiveInt = 1
    """Parts in which a device takes its share of a batch, one after the other: as many times less memory and
    the same gradient, but for `loss.m_tt_bias`, which then sees the events of a part."""
    patience: PositiveInt | None = 8
    """Stop after so many epochs without a better validation loss."""
    augment_rotation: bool = False
    """Random rotation about the beam of each training event, for networks that do not have it built in."""
    augment_reflection: bool = False
    """Random reflection z → −z of each training event."""
    augment_charge_exchange: bool = False
    """Random exchange ℓ⁺ ↔ ℓ⁻, t ↔ t̄ of each training event, a symmetry but for the charge asymmetry."""
    seed: Annotated[int, Field(ge=0)] = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: PositiveInt = 1
    """Processes that share each batch; `torchrun`, which starts its own, overrides it."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    threads: PositiveInt | None = None
    """Torch threads per process; null leaves torch's choice."""
    compile: bool = False
    """Compile the network with torch.compile, after a minute of compiling and with other rounding: for a GPU.
    On a CPU it needs a C++ compiler, and the kernels of `lgatr_slim` and `lgatr`, which it does not
    use, are faster."""
    output: Path = Path("results/train")
    mlflow: bool = False
    """Also log to MLflow, extra `mlflow`."""


# ---- systematics -----------------------------------------------------------------------------------------

NOMINAL = "nominal"
"""Name of what is not varied."""


def _check_input(value: Any) -> Any:
    """One error in place of one for each type that it could have been."""
    if not isinstance(value, str | int | float):
        raise ValueError("a text or a number expected")  # noqa: TRY004 - pydantic reports these alone
    return value


def _check_choices(value: Any) -> Any:
    """The same where the variations may have values of their own."""
    return value if isinstance(value, dict) else _check_input(value)


InputValue = Annotated[str | int | float, BeforeValidator(_check_input)]
Input = Annotated[str | int | float | dict[str, InputValue], BeforeValidator(_check_choices)]


class Range(Config):
    """Values from `min` on and below `max`."""

    min: float = -math.inf
    max: float = math.inf


Condition = Annotated[
    Annotated[tuple[InputValue, ...], Tag("values")] | Annotated[Range, Tag("range")],
    Discriminator(lambda value: "range" if isinstance(value, dict | Range) else "values"),
]


class CorrectionConfig(Config):
    """One correction of a correctionlib file, and what to give it."""

    file: Path | None = None
    """JSON or JSON.gz, seen by every worker."""
    correction: str | None = None
    """Name of a correction, or of a compound one."""
    inputs: dict[str, Input] = {}
    """By name of the correction's input: for a number, a quantity of the object (pt, eta, abseta, phi, mass,
    btag, charge, eta_sc, abseta_sc), a branch or a constant; for a text, the text itself. One input may have
    a value for each variation: `{nominal: nom, up: up, down: down}`. An input that is named like a quantity
    needs no entry."""

    @property
    def choices(self) -> dict[str, InputValue]:
        """Values of the input that makes the variations, by variation; empty without."""
        return next((value for value in self.inputs.values() if isinstance(value, dict)), {})

    @model_validator(mode="after")
    def _check_correction(self) -> Self:
        if self.file is not None and self.correction is None:
            raise ValueError("a file needs the name of one of its corrections: key 'correction'")
        if self.inputs and self.correction is None:
            raise ValueError("inputs without a correction to give them to")
        if sum(isinstance(value, dict) for value in self.inputs.values()) > 1:
            raise ValueError("at most one input may have a value for each variation")
        return self


class ScaleFactorConfig(CorrectionConfig):
    """Ratio of the resolution in data to that in simulation; `file` is that of the resolution by default."""

    correction: str


# Whatever a generator fills: flavours, matches, weights.
_OF_GENERATOR = re.compile(
    r"^(gen|lhe|htxs|psweight|pileup|subgen|fatgen)|gen(part|jet|vis)|flavour", re.IGNORECASE
)


class ObjectSource(CorrectionConfig):
    """A correction or uncertainty of the momentum of jets, electrons, muons or of MET."""

    object: Literal["jet", "electron", "muon", "met"]
    kind: Literal["shift", "factor", "smear", "unclustered"] = "shift"
    """shift: p → p (1 ± value). factor: p → p · value. smear: p → p (1 + value · g) with g a normal random
    number of the object. unclustered: the variation of MET that NanoAOD stores."""
    flat: float | None = None
    """The value, in place of a correction."""
    scale_factor: ScaleFactorConfig | None = None
    """For smear: the value becomes value · √(max(s² − 1, 0))."""
    raw: bool = False
    """For jets: undo the corrections of the file (`Jet_rawFactor`) first; pt and mass are the raw ones."""
    where: dict[str, Condition] = {}
    """Objects to change: values or a range, by quantity or branch."""
    applies_to: Literal["simulation", "data", "both"] = "simulation"
    """Data have no variations, only corrections."""

    @property
    def ratio(self) -> CorrectionConfig | None:
        """The scale factor of a smearing, with its file."""
        found = self.scale_factor
        if found is None or found.file is not None:
            return found
        return found.model_copy(update={"file": self.file})

    @property
    def choices(self) -> dict[str, InputValue]:
        """Values of the input that makes the variations, by variation; empty without."""
        return super().choices or (self.scale_factor.choices if self.scale_factor is not None else {})

    @property
    def corrects(self) -> bool:
        """Whether it changes what is nominal."""
        return NOMINAL in self.choices if self.choices else self.kind in ("factor", "smear")

    @property
    def variations(self) -> tuple[str, ...]:
        """Names of its variations."""
        if self.choices:
            return tuple(name for name in self.choices if name != NOMINAL)
        return ("up", "down") if self.kind in ("shift", "unclustered") else ()

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.object == "met") != (self.kind == "unclustered"):
            raise ValueError("kind 'unclustered' belongs to object 'met', and no other kind does")
        if (self.flat is not None) + (self.correction is not None) != (self.object != "met"):
            raise ValueError("one of 'correction' and 'flat' expected, and neither for MET")
        if self.correction is not None and self.file is None:
            raise ValueError("a correction needs the file it is in: key 'file'")
        if self.scale_factor is not None and (self.kind != "smear" or super().choices):
            raise ValueError("'scale_factor' belongs to kind 'smear', and then it alone may have variations")
        if self.scale_factor is not None and self.scale_factor.file is None and self.file is None:
            raise ValueError("'scale_factor' needs the file it is in: key 'file'")
        if self.raw and (self.object != "jet" or self.kind != "factor"):
            raise ValueError("'raw' belongs to object 'jet' and kind 'factor'")
        inner = self.scale_factor.inputs if self.scale_factor is not None else {}
        for name in (*self.inputs.values(), *inner.values(), *self.where):
            if isinstance(name, str) and _OF_GENERATOR.search(name):
                raise ValueError(f"what a method sees must not depend on the generator, as {name!r} does")
        return self


_ELEMENT = re.compile(r"(\w+)(?:\[(\d+)(?::(\d+))?\])?")


class WeightSource(CorrectionConfig):
    """A factor of the event weight: of the event, or the product over its selected objects."""

    object: Literal["event", "jet", "electron", "muon"] = "event"
    flat: float | None = None
    """Factor 1 ± this, in place of a correction."""
    branches: dict[str, str] = {}
    """Factor by variation from a branch of the event: `L1PreFiringWeight_Up`, an element `LHEScaleWeight[8]`
    or a range of elements `LHEPdfWeight[1:101]`, which makes a variation of each."""
    where: dict[str, Condition] = {}
    """Objects to count: values or a range, by quantity or branch; others have the factor 1."""

    @property
    def elements(self) -> dict[str, tuple[str, int | None]]:
        """Branch and index of each variation in `branches`."""
        found: dict[str, tuple[str, int | None]] = {}
        for name, text in self.branches.items():
            branch, first, last = _ELEMENT.fullmatch(text).groups()  # type: ignore[union-attr]  # validated
            if last is not None:
                found |= {f"{name}{i}": (branch, i) for i in range(int(first), int(last))}
            else:
                found[name] = branch, None if first is None else int(first)
        return found

    @property
    def corrects(self) -> bool:
        """Whether it changes the nominal weight."""
        if self.flat is not None:
            return False
        choices = self.branches or self.choices
        return NOMINAL in choices if choices else True

    @property
    def variations(self) -> tuple[str, ...]:
        """Names of its variations."""
        if self.flat is not None:
            return "up", "down"
        return tuple(name for name in (self.elements or self.choices) if name != NOMINAL)

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.flat is not None) + (self.correction is not None) + bool(self.branches) != 1:
            raise ValueError("exactly one of 'correction', 'branches' and 'flat' expected")
        if self.correction is not None and self.file is None:
            raise ValueError("a correction needs the file it is in: key 'file'")
        if self.object == "event" and self.where:
            raise ValueError("'where' chooses objects, and the object is 'event'")
        if self.branches and self.object != "event":
            raise ValueError("'branches' are of the event, so the object must be 'event'")
        for text in self.branches.values():
            if not _ELEMENT.fullmatch(text):
                raise ValueError(f"a branch, branch[i] or branch[i:j] expected, found {text!r}")
        return self


class SystematicsConfig(Config):
    """Corrections and systematic variations; a variation is called SOURCE_VARIATION, such as jes_up."""

    objects: dict[str, ObjectSource] = {}
    """Applied in this order."""
    weights: dict[str, WeightSource] = {}
    """Of simulation only."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 1
    """With run, lumi, event and the number of the object it fixes the random numbers of smearing."""
    metrics: bool = False
    """Fill for variations, besides spectra and migrations, what RB, Res and widths come from. That is most of
    the memory and of the time that filling takes."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The correction files of all sources, each once."""
        sources: list[CorrectionConfig] = [*self.objects.values(), *self.weights.values()]
        sources += [s.scale_factor for s in self.objects.values() if s.scale_factor is not None]
        return tuple(sorted({source.file for source in sources if source.file is not None}))

    @property
    def variations(self) -> tuple[str, ...]:
        """Names of all variations."""
        sources: dict[str, ObjectSource | WeightSource] = {**self.objects, **self.weights}
        return tuple(f"{name}_{key}" for name, source in sources.items() for key in source.variations)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        both = self.objects.keys() & self.weights.keys()
        names = self.variations
        twice = sorted(both) or [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise ValueError(f"every source and variation needs a name of its own, {twice[0]!r} found twice")
        jets = [source for source in self.objects.values() if source.object == "jet"]
        for other in ("simulation", "data"):
            of_sample = [source.raw for source in jets if source.applies_to in (other, "both")]
            if any(of_sample[1:]):
                raise ValueError("a source with 'raw' undoes all others, so it must be the first one of jets")
        return self


# ---- running ---------------------------------------------------------------------------------------------


class HistogramConfig(Config):
    """What the processor fills."""

    observables: tuple[str, ...] = OBSERVABLE_GROUPS["default"]
    """Names of observables, or of groups of them: default, angles, polarisation, correlation, spin, all."""
    bins: dict[str, tuple[float, ...]] = {}
    """Edges per observable in place of the defaults."""

    @field_validator("observables")
    @classmethod
    def _members_of_groups(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(o for name in names for o in OBSERVABLE_GROUPS.get(name, (name,))))


Edges = Annotated[tuple[float, ...], Field(min_length=2)]


class ResponseBins(Config):
    """Bins of a response matrix."""

    truth: Edges | None = None
    """Edges; null takes fine ones, from which `topreco unfolding --min-purity` can make better."""
    reco: Edges | None = None
    """Edges; null takes those of `truth`. For purity and stability those of `truth` must be among them."""

    @field_validator("truth", "reco")
    @classmethod
    def _rise(cls, edges: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if edges is not None and not all(map(math.isfinite, edges)):
            raise ValueError("finite edges expected")
        if edges is not None and any(b <= a for a, b in itertools.pairwise(edges)):
            raise ValueError("rising edges expected")
        return edges

    @model_validator(mode="after")
    def _reco_needs_truth(self) -> Self:
        if self.truth is None and self.reco is not None:
            raise ValueError("'reco' is given without 'truth'; give the edges of both, or of none")
        return self


class PhaseSpaceConfig(Config):
    """Generated events that a measurement is unfolded to; with cuts on their partons, pT in GeV."""

    decay: Literal["dileptonic", "prompt", "any"] = "dileptonic"
    """Both W bosons give an e or μ, directly or through a τ; `prompt`: directly; `any`: every tt̄ pair."""
    lepton_pt_min: NonNegative = 0.0
    """Of both charged leptons."""
    lepton_eta_max: Positive | None = None
    b_pt_min: NonNegative = 0.0
    """Of both b quarks, before they radiate."""
    b_eta_max: Positive | None = None


class UnfoldingConfig(Config):
    """Response matrices, with the generated spectra of all events; none by default."""

    observables: dict[str, ResponseBins] = {}
    """Bins by observable. A list of names, or of groups of them, takes fine bins."""
    phase_space: PhaseSpaceConfig = PhaseSpaceConfig()

    @field_validator("observables", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {o: {} for name in value for o in OBSERVABLE_GROUPS.get(name, (name,))}
        return value

    @field_validator("observables")
    @classmethod
    def _known(cls, value: dict[str, ResponseBins]) -> dict[str, ResponseBins]:
        for name in value:
            if name not in OBSERVABLES:
                known = ", ".join(OBSERVABLES)
                raise ValueError(f"unknown observable {name!r}{nearest(name, OBSERVABLES)}; allowed: {known}")
        return value


class SkimConfig(Config):
    """`topreco skim`: ROOT files to a Parquet file of selected events."""

    selection: SelectionConfig = SelectionConfig()
    dataset: str = "default"
    """Name of the sample, part of an event's identity."""
    tree: str = "Events"
    step_size: PositiveInt = 50_000
    """Entries read at a time."""


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
    """Response histograms of `topreco response`; null takes those that come with the package."""
    seed: Annotated[int, Field(ge=0)] = 1
    """With run, lumi and event it fixes the draws of an event."""
    threads: PositiveInt = 1


class ValidationConfig(Config):
    """`topreco validate`: what the validated methods and their numbers depend on."""

    solvers: SolverConfig = SolverConfig()
    """Of the analytic methods; `m_top` is also the mass that tops are compared with."""
    histograms: HistogramConfig = HistogramConfig()
    """`bins` replaces the edges of m_tt, pt_top, y_top or c_hel."""


class PepperWriteConfig(SkimConfig):
    """`topreco pepper-write`: reconstructed tops into copies of pepper's event files."""

    method: str = "dilepton"
    """Model file, or name that `topreco.load` knows."""
    column: str | None = None
    """Name of the new column, which begins with recot; null makes it from the method's name. An existing
    column of this name is replaced."""
    solvers: SolverConfig = SolverConfig()
    """Of the analytic methods."""


class ClusterConfig(Config):
    """Where the workers of the executors `dask`, `parsl` and `taskvine` run."""

    kind: Literal["local", "htcondor", "slurm"] = "local"
    """On this machine, or as jobs of a batch system."""
    address: str | None = None
    """Address of a running Dask scheduler (tcp://host:8786), in place of starting one."""
    options: dict[str, Any] = {}
    """Passed on: to dask_jobqueue's HTCondorCluster or SLURMCluster or to LocalCluster, to parsl's
    CondorProvider, SlurmProvider or LocalProvider, to coffea's TaskVineExecutor."""


class RunConfig(Config):
    """`topreco run`: files through a coffea Runner to histograms."""

    fileset: dict[str, tuple[str, ...]] = {}
    """Files by dataset name."""
    tree: str = "Events"
    methods: tuple[str, ...] = ()
    """Model files, or names that `topreco.load` knows."""
    min_quality: dict[str, float] = {}
    """Smallest quality of an event that counts as solved, by name of the method: for networks with quantiles
    −0.1 keeps events whose m_tt is known to 10 %."""
    solvers: SolverConfig = SolverConfig()
    """Of the analytic methods."""
    selection: SelectionConfig = SelectionConfig()
    histograms: HistogramConfig = HistogramConfig()
    systematics: SystematicsConfig = SystematicsConfig()
    unfolding: UnfoldingConfig = UnfoldingConfig()
    executor: Literal["iterative", "futures", "dask", "parsl", "taskvine"] = "iterative"
    workers: PositiveInt = 1
    """Processes on this machine, or jobs of the batch system."""
    cluster: ClusterConfig = ClusterConfig()
    ship_model: bool = False
    """Send the files of `methods` to the workers, which otherwise read them under the same path."""
    chunk_size: PositiveInt = 100_000
    max_chunks: PositiveInt | None = None
    skip_bad_files: bool = False
    """Go on without files, or chunks of them, that cannot be read, and list them in `run.json`."""
    checkpoint: Path | None = None
    """Folder that keeps each finished chunk, so that the same command continues where it was stopped."""
    output: Path = Path("results/run")
    output_columns: Path | None = None
    """Folder for the results of each event, as friends of the input files."""
    columns_format: Literal["parquet", "root"] = "parquet"

    @model_validator(mode="after")
    def _cluster_used(self) -> Self:
        if self.executor in ("iterative", "futures") and self.cluster != ClusterConfig():
            raise ValueError(
                f"cluster: executor '{self.executor}' runs on this machine and has none; "
                "executor dask, parsl or taskvine expected"
            )
        if self.cluster.address is not None and (
            self.executor != "dask" or self.cluster.kind != "local" or self.cluster.options
        ):
            raise ValueError(
                "cluster.address: belongs to a Dask scheduler that runs already; executor dask and no other "
                "key of cluster expected beside it"
            )
        return self


class StudyConfig(Config):
    """`topreco study`: trainings that differ in a few keys, with several seeds each, and their comparison."""

    base: str = "dilepton.yaml"
    """Configuration of `topreco train` that all start from: a file, or the name of a shipped one."""
    train: dict[str, Any] = {}
    """What all trainings change in `base`, nested as there: `train.data.files=[...]`, `train.epochs=5`."""
    points: dict[str, tuple[str, ...]] = {}
    """What each point of the study changes, by its name: overrides as for `topreco train`."""
    grid: dict[str, tuple[str | int | float | bool | None, ...]] = {}
    """Points that are all combinations of values of keys, named KEY=VALUE; multiplied by `points`, if any."""
    only: tuple[str, ...] = ()
    """Names of the points to train; empty for all."""
    reference: str
    """Name of the point that the others are compared with."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (1, 2, 3)
    test_skims: tuple[Path, ...] = ()
    """Skims with truth on which all networks are compared, none of them trained on."""
    observables: tuple[str, ...] = ("m_tt", "pt_top", "c_hel")
    scaling: Literal["events", "parameters"] | None = None
    """Also show the metrics against the number of training events or of parameters, with power laws."""
    workers: PositiveInt | None = None
    """Trainings at a time; null: one per GPU, or per core without any."""
    size: Literal["small", "full"] = "small"
    """`full` applies the overrides of the key `full`, before those of the command line."""
    full: tuple[str, ...] = ()
    """Overrides of this configuration for the size `full`."""
    output: Path = Path("results/study")

    @field_validator("points")
    @classmethod
    def _folder_names(cls, points: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name in points:
            if not re.fullmatch(r"[A-Za-z0-9][\w.+=,-]*", name):
                raise ValueError(
                    f"a name is a folder's too: letters, digits and _ . + = , - expected, found {name!r}"
                )
        return points

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError("one or more seeds expected, each once")
        return seeds

    @field_validator("observables")
    @classmethod
    def _observables_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = OBSERVABLE_GROUPS["all"]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise ValueError(f"names out of {', '.join(known)} expected")
        return names

    @model_validator(mode="after")
    def _points_exist(self) -> Self:
        for override in (*self.grid, *itertools.chain(*self.points.values())):
            key = override.partition("=")[0]
            if key in ("seed", "output"):
                raise ValueError(f"points, grid: {key!r} is not a point's to change; see the key 'seeds'")
        names = self.all_points
        if not names:
            raise ValueError("points, grid: at least one point expected")
        for key, chosen in {"reference": (self.reference,), "only": self.only}.items():
            for name in chosen:
                if name not in names:
                    raise ValueError(
                        f"{key}: no point {name!r}; there are {', '.join(names)}{nearest(name, names)}"
                    )
        if self.only and self.reference not in self.only:
            raise ValueError(f"only: the reference {self.reference!r} is not among {', '.join(self.only)}")
        return self

    @property
    def all_points(self) -> dict[str, tuple[str, ...]]:
        """Overrides of every point by its name, those of `grid` after those of `points`."""
        tails = [key.rpartition(".")[2] for key in self.grid]
        short = {
            key: key if tails.count(tail) > 1 else tail for key, tail in zip(self.grid, tails, strict=True)
        }
        found: dict[str, tuple[str, ...]] = {}
        for name, overrides in (self.points or {"": ()}).items():
            for values in itertools.product(*self.grid.values()):
                pairs = [
                    (
                        key,
                        "null"
                        if value is None
                        else str(value).lower()
                        if isinstance(value, bool)
                        else str(value),
                    )
                    for key, value in zip(self.grid, values, strict=True)
                ]
                whole = ",".join(filter(None, [name, *(f"{short[key]}={value}" for key, value in pairs)]))
                if whole:
                    found[whole] = (*overrides, *(f"{key}={value}" for key, value in pairs))
        return found

    @property
    def chosen_points(self) -> dict[str, tuple[str, ...]]:
        """Overrides of the points to train by name."""
        return {name: point for name, point in self.all_points.items() if not self.only or name in self.only}

    def training(self, point: str, seed: int) -> TrainConfig:
        """The training of a point with a seed, in its folder ``<output>/<point>/seed<seed>``.

        Raises
        ------
        ConfigError
            If there is none: an override does not fit, or the configuration it makes is impossible.
        """
        # A copy, since overrides are assigned in place.
        content = copy.deepcopy(_merged(read_yaml(find_config(self.base)), self.train))
        assign(content, self.all_points[point])
        found = build_config(TrainConfig, content, f"point {point!r} of {self.base}")
        return found.model_copy(update={"seed": seed, "output": self.output / point / f"seed{seed}"})


def load_study(source: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read the configuration of a study; of size ``full`` if it says so.

    Parameters
    ----------
    source
        YAML file or bare name of a shipped configuration.
    overrides
        Dotted assignments, as for `load_config`.

    Raises
    ------
    ConfigError
        As `load_config`.
    """
    config = load_config(StudyConfig, source, overrides)
    return load_config(StudyConfig, source, [*config.full, *overrides]) if config.size == "full" else config


def _merged(content: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with changes; mappings are merged, everything else replaced."""
    both = dict(content)
    for key, value in changes.items():
        inner = both.get(key)
        both[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return both


# ---- reading ---------------------------------------------------------------------------------------------

C = TypeVar("C", bound=Config)


def shipped_folder() -> Path:
    """Folder of the configurations that come with the package."""
    # In the wheel it lies inside the package, in a checkout beside it.
    inside = Path(str(resources.files("topreco"))) / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def shipped_configs() -> dict[str, Path]:
    """Configurations that come with the package, by file name (`dilepton.yaml`)."""
    folder = shipped_folder()
    names = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.yaml"))}
    return {name: path for name, path in names.items() if not name.startswith("presets/")}


def find_config(source: str | Path) -> Path:
    """File of a configuration given as a path or as the bare name of a shipped one.

    Raises
    ------
    ConfigError
        If there is neither.
    """
    path = Path(source)
    if path.is_file():
        return path
    shipped = shipped_configs()
    name = str(source)
    for candidate in (name, f"{name}.yaml"):
        if candidate in shipped:
            return shipped[candidate]
    raise ConfigError(
        f"--config {name}: no such file, and no shipped configuration of that name; "
        f"shipped: {', '.join(shipped) or 'none'}{nearest(name, shipped)}"
    )


def load_config(kind: type[C], source: str | Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Read a configuration.

    Parameters
    ----------
    kind
        Class of the configuration.
    source
        YAML file or bare name of a shipped configuration; None starts from the defaults.
    overrides
        Dotted assignments such as ``optimiser.learning_rate=3e-4``; values are YAML.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key or value is not allowed.
    """
    origin = "command line"
    content: dict[str, Any] = {}
    if source is not None:
        path = find_config(source)
        origin = str(path)
        content = read_yaml(path)
    assign(content, overrides)
    return build_config(kind, content, origin)


def assign(content: dict[str, Any], overrides: Iterable[str]) -> None:
    """Apply dotted assignments such as ``optimiser.learning_rate=3e-4`` to plain data, in place.

    Raises
    ------
    ConfigError
        If one is no assignment, or passes through something that is not a mapping.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"override {override!r}: expected key=value, such as epochs=10")
        try:
            value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        except _NOT_YAML as error:
            raise ConfigError(f"override {override!r}: value is not YAML") from error
        _assign(content, key.split("."), value, override)


def read_yaml(path: Path) -> dict[str, Any]:
    """Content of a YAML file, a mapping.

    Raises
    ------
    ConfigError
        If it cannot be read or is something else.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (*_NOT_YAML, OSError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise ConfigError(f"{path}: a mapping of keys to values expected, {type(loaded).__name__} found")
    return loaded or {}


def build_config(kind: type[C], content: dict[str, Any], origin: str) -> C:
    """Validated configuration from plain data; `origin` is named in errors.

    Raises
    ------
    ConfigError
        If a key or value is not allowed.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(f"{origin}: {_explain(kind, problem)}" for problem in error.errors())
        ) from error


def dump_config(config: Config) -> str:
    """The full effective configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as everybody but YAML 1.1 does."""


_NOT_YAML = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What the loader raises, of values too that only look like a date or a number."""

_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _assign(content: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        inner = content.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {key!r} is a value, not a section")
        content = inner
    content[keys[-1]] = value


def nearest(name: str, names: Iterable[str]) -> str:
    """End of an error message that names what was probably meant, empty if nothing is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


_TAGS = frozenset(
    str(cls.model_fields["kind"].default)
    for cls in (LGATrConfig, LGATrSlimConfig, TransformerConfig, LLoCaConfig)
)


def _explain(kind: type[Config], problem: Any) -> str:
    """One line about a pydantic error: key, value found, what is allowed."""
    location = [str(part) for part in problem["loc"]]
    # The tag of a union is no key of the file.
    key = ".".join(part for part in location if part not in _TAGS)
    if problem["type"] == "extra_forbidden":
        names = _keys_at(kind, location[:-1])
        hint = nearest(location[-1], names)
        return f"unknown key {key!r}{hint} (allowed: {', '.join(names)})"
    message = problem["msg"].removeprefix("Value error, ")
    if not key or isinstance(problem["input"], dict):
        return f"{key}: {message}" if key else message
    return f"{key}: {message}, found {problem['input']!r}"


def _keys_at(kind: type[Config], location: list[str]) -> list[str]:
    """Valid keys of the section at a location, which may pass through a tagged union."""
    classes: list[type[Config]] = [kind]
    for part in location:
        inner: list[type[Config]] = []
        for cls in classes:
            if part in cls.model_fields:
                inner += _config_classes(cls.model_fields[part].annotation)
            elif "kind" in cls.model_fields and cls.model_fields["kind"].default == part:
                inner.append(cls)
        # A part that no class knows is a key of a dictionary of them.
        classes = inner or classes
    return sorted({name for cls in classes for name in cls.model_fields})


def _config_classes(annotation: Any) -> list[type[Config]]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated, dict):
        return [cls for argument in typing.get_args(annotation) for cls in _config_classes(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, Config) else []
