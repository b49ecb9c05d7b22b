"""Configuration of networks: their inputs, sizes and outputs."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from topreco.config.base import Config, Fraction, Mass, NonNegative, Positive, PositiveInt
from topreco.config.features import FeaturesConfig
from topreco.core.constants import M_TOP
from topreco.core.errors import nearest
from topreco.core.observables import OBSERVABLES


class TokensConfig(Config):
    """Which reconstructed objects the network sees and how."""

    max_jets: Annotated[int, Field(ge=2)] = 6
    b_candidates: Literal["token", "flag", "none"] = "flag"
    btag: Literal["score", "working_points"] = "score"
    """The b-tag score itself, or which of the tagger's working points L, M, T, XT and XXT a jet passes: then
    one model serves every tagger and era, and sees what there are scale factors for."""
    features: FeaturesConfig = FeaturesConfig()
    """Further inputs, which the skims must have (`selection.features`)."""


class NormalisationConfig(Config):
    """One Lorentz-invariant number per event that divides every four-momentum, targets included."""

    kind: Literal["constant", "event_mass"] = "constant"
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
    embed: Literal["token", "channel"] = "channel"


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


class _AttentionConfig(Config):
    """A backbone whose channels are shared by heads of attention."""

    unit: ClassVar[int] = 1
    """Channels that a head cannot divide."""
    kind: str
    blocks: PositiveInt = 6
    channels: PositiveInt = 64
    """A multiple of `heads`."""
    heads: PositiveInt = 4
    dropout: Fraction | None = None

    @model_validator(mode="after")
    def _shared_by_heads(self) -> Self:
        shared = self.unit * self.heads
        if self.channels % shared:
            heads = "heads" if self.unit == 1 else f"{self.unit} · heads"
            raise ValueError(f"channels: {self.channels} found, a multiple of {heads} ({shared}) expected")
        return self


class TransformerConfig(_AttentionConfig):
    """A plain transformer, the baseline without built-in symmetry."""

    kind: Literal["transformer"] = "transformer"


class PETConfig(_AttentionConfig):
    """The Point-Edge Transformer of OmniLearn, without built-in symmetry."""

    kind: Literal["pet"] = "pet"
    blocks: PositiveInt = 5
    neighbours: PositiveInt = 4
    """Nearest objects in ΔR with which an object has edges."""


class LLoCaConfig(_AttentionConfig):
    """The transformer in local Lorentz frames of `lloca`, extra `lloca`."""

    unit: ClassVar[int] = 8
    kind: Literal["lloca"] = "lloca"
    channels: PositiveInt = 64
    """A multiple of 8 · `heads`."""


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

HeadKind = Literal["on_shell", "timelike", "direct", "neutrinos"]

ReadoutKind = Literal["first_token", "mean", "sum", "query_tokens"]

BackboneConfig = Annotated[
    Annotated[LGATrSlimConfig, Tag("lgatr_slim")]
    | Annotated[LGATrConfig, Tag("lgatr")]
    | Annotated[TransformerConfig, Tag("transformer")]
    | Annotated[LLoCaConfig, Tag("lloca")]
    | Annotated[PETConfig, Tag("pet")],
    Discriminator(_backbone_kind),
]


class EncoderConfig(Config):
    """Inputs of a network and its backbone, the same for every task."""

    backbone: BackboneConfig = LGATrSlimConfig()
    tokens: TokensConfig = TokensConfig()
    normalisation: NormalisationConfig = NormalisationConfig()
    spurions: SpurionConfig = SpurionConfig()

    @model_validator(mode="after")
    def _spurions_visible(self) -> Self:
        check_spurions(self.backbone, self.spurions)
        return self

    @property
    def encoder(self) -> "EncoderConfig":
        """The part that does not depend on the task."""
        return EncoderConfig(**{name: getattr(self, name) for name in EncoderConfig.model_fields})


def check_spurions(backbone: BackboneConfig, spurions: SpurionConfig, section: str = "") -> None:
    """Raise if a backbone cannot see the spurions.

    Parameters
    ----------
    backbone, spurions
        Configuration of both.
    section
        Section of the configuration that both are in, with its dot, for the error.

    Raises
    ------
    ValueError
        If the spurion is a bivector and the backbone knows vectors only, or if the backbone needs the rest
        frame of a spacelike vector.
    """
    if spurions.beam == "xyplane" and backbone.kind != "lgatr":
        raise ValueError(
            f"{section}spurions.beam: 'xyplane' is a bivector, which {section}backbone.kind "
            f"'{backbone.kind}' cannot see; use lightlike, spacelike, timelike or null, or "
            f"{section}backbone.kind 'lgatr'"
        )
    if backbone.kind == "lloca" and (spurions.beam, spurions.embed) == ("spacelike", "token"):
        raise ValueError(
            f"{section}spurions.beam: 'spacelike' with {section}spurions.embed 'token' is a momentum without "
            f"rest frame; {section}backbone.kind 'lloca' makes frames of momenta of tokens; use embed "
            "'channel'"
        )


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
    """Width of the layers after the backbone."""
    calibration_bins: PositiveInt = 8
    """Bins of equal population in predicted m_tt in which the validation events correct the quantiles; fewer
    if there are less than 1500 events for each."""

    @field_validator("observables")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{repeated[0]!r} is given twice")
        return names


class ModelConfig(EncoderConfig):
    """A network from reconstructed objects to the four-momenta of t and t̄."""

    task: Literal["tops"] = "tops"
    readout: ReadoutKind = "query_tokens"
    """Tokens from which the predictions for t and t̄ are read: the first one, the mean or sum of all objects,
    or one additional token each."""
    head: HeadKind = "direct"
    """Top momenta from the network's vectors: with mass `m_top` (`on_shell`), with a predicted mass
    (`timelike`: 105 to 284 GeV, `direct`: from m_top/10), or as lepton + neutrino + jets weighted by the
    network (`neutrinos`). All are Lorentz-covariant."""
    m_top: Mass = M_TOP
    quantiles: QuantilesConfig | None = None
    """With it, the model also predicts the uncertainty of each event; null: four-momenta alone."""

    @model_validator(mode="after")
    def _quantiles_see_spurions(self) -> Self:
        if self.quantiles is not None:
            check_spurions(self.quantiles.backbone, self.quantiles.spurions or self.spurions, "quantiles.")
        return self


class VelocityConfig(Config):
    """The velocity field of the flow from noise to samples of t and t̄."""

    kind: Literal["head", "tokens"] = "head"
    """A small network that reads what the encoder gives for an event (`head`), or the encoder itself with the
    current tops as readout tokens (`tokens`), many times slower."""
    hidden: PositiveInt = 160
    blocks: PositiveInt = 3
    frequencies: PositiveInt = 8
    """Pairs of sine and cosine that stand for the time."""


class PosteriorConfig(EncoderConfig):
    """A network from reconstructed objects to the distribution of the on-shell four-momenta of t and t̄."""

    task: Literal["posterior"] = "posterior"
    m_top: Mass = M_TOP
    vectors: PositiveInt = 4
    """Vectors that each of the two readout tokens gives."""
    scalars: PositiveInt = 48
    """Scalars that each of them gives."""
    velocity: VelocityConfig = VelocityConfig()
    steps: PositiveInt = 8
    """Midpoint steps from noise to a sample."""
    hidden: PositiveInt = 192
    """Width of the layers that give means and quantiles of the observables."""
    calibration_bins: PositiveInt = 8
    """As `quantiles.calibration_bins` of a model of the tops."""


class MaskedConfig(EncoderConfig):
    """Pre-training without truth: hidden objects of an event are predicted, the others cleaned of noise."""

    task: Literal["masked"] = "masked"
    hide: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Probability with which each lepton, the MET and one of the jets are hidden, each by itself."""
    noise: NonNegative = 0.1
    """Standard deviation of the noise on ln pT, η and φ of the objects that are not hidden."""

    @model_validator(mode="after")
    def _nothing_repeated(self) -> Self:
        if self.tokens.b_candidates == "token":
            raise ValueError(
                "tokens.b_candidates: 'token' found, which shows a jet that task 'masked' hides; flag or "
                "none expected"
            )
        return self


class NextTokenConfig(EncoderConfig):
    """Pre-training without truth: the objects of an event, as a few integers each, are predicted in turn."""

    task: Literal["tokens"] = "tokens"
    encoding: Literal["codebook", "bins"] = "codebook"
    """Integers of an object: entries of a codebook and of those of what it leaves (extra `tokens`), or the
    bins of ln pT, η, φ and ln m."""
    levels: PositiveInt = 2
    """Codebooks, of which each refines the one before; bins always have four."""
    codes: Annotated[int, Field(ge=2)] = 512
    """Entries of a codebook, or bins of a coordinate."""
    scalars: PositiveInt = 64
    """Scalars that the encoder gives for an object."""
    hidden: PositiveInt = 128
    """Width of the layers that predict the next object."""

    @model_validator(mode="after")
    def _what_can_be_generated(self) -> Self:
        wanted: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "backbone.kind": (self.backbone.kind, ("transformer",)),
            "tokens.btag": (self.tokens.btag, ("working_points",)),
            "tokens.b_candidates": (self.tokens.b_candidates, ("flag", "none")),
            "normalisation.kind": (self.normalisation.kind, ("constant",)),
        }
        for key, (found, allowed) in wanted.items():
            if found not in allowed:
                raise ValueError(
                    f"{key}: {found!r} found; task 'tokens' predicts objects from those before them, which "
                    f"needs {' or '.join(map(repr, allowed))}"
                )
        if self.tokens.features.names:
            raise ValueError(
                f"tokens.features: {self.tokens.features.names[0]!r} found; task 'tokens' knows "
                "four-momenta, flavours and b tags alone"
            )
        return self


class RatioConfig(EncoderConfig):
    """A classifier of events of two samples A and B, whose output is the ratio of their densities."""

    task: Literal["ratio"] = "ratio"
    inputs: Literal["objects", "generated"] = "objects"
    """Reconstructed objects, as `tokens` says, or the generated tops and leptons of simulation, for which
    `tokens` means nothing."""
    observables: tuple[str, ...] = ()
    """With generated inputs: observables of t, t̄ and leptons that join what the encoder gives. Directions in
    rest frames are far from four-momenta, and a small difference is then learnt from far fewer events."""
    scalars: PositiveInt = 64
    """Scalars that the encoder gives for an event."""
    hidden: PositiveInt = 64
    """Width of the layers after it."""
    members: PositiveInt = 1
    """Networks of each fold, which differ in their seed; the answer is the mean of their log-ratios."""
    calibration_bins: PositiveInt = 40
    """Largest number of bins in which validation events calibrate the ratio."""
    calibration_events: PositiveInt = 10_000
    """Smallest number n of validation events in each of them, which know a log-ratio to 2/√n; with fewer than
    two bins the calibration is a factor and a power of the ratio."""

    @model_validator(mode="after")
    def _observables_of_generated_events(self) -> Self:
        for name in self.observables:
            if name not in OBSERVABLES:
                raise ValueError(f"observables: unknown observable {name!r}{nearest(name, OBSERVABLES)}")
        if self.observables and self.inputs != "generated":
            raise ValueError(
                f"observables: {self.observables[0]!r} found with inputs 'objects', which have no t and t̄; "
                "only inputs 'generated' have observables"
            )
        return self


def _task_kind(value: Any) -> str:
    """Task of a model that is being read; without one, the tops."""
    return str(value.get("task", "tops") if isinstance(value, dict) else getattr(value, "task", "tops"))


AnyModelConfig = Annotated[
    Annotated[ModelConfig, Tag("tops")]
    | Annotated[PosteriorConfig, Tag("posterior")]
    | Annotated[MaskedConfig, Tag("masked")]
    | Annotated[NextTokenConfig, Tag("tokens")],
    Discriminator(_task_kind),
]
