"""Configuration of the event selection."""

import itertools
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from topreco.config.base import Config, ConfigError, Fraction, NonNegative, Positive
from topreco.config.features import FeaturesConfig, refused
from topreco.core.constants import M_Z
from topreco.core.folders import differences

WorkingPoint = Literal["L", "M", "T", "XT", "XXT"]
"""Working points of b taggers, from the loosest on."""


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
    corrects it (`nano_v12`) or computes it from energy fractions and multiplicities."""
    pu_id: Literal["loose", "medium", "tight"] | None = None
    """Pile-up identification (`Jet_puId`) required of jets below 50 GeV; for CHS jets, so Run 2 only."""
    pu_id_reversed: bool = False
    """Bits of `Jet_puId` in the wrong order, as in UL2016; set by the presets."""
    min_jets: Annotated[int, Field(ge=0)] = 2
    min_btags: Annotated[int, Field(ge=0)] = 1
    btag: str = "btagDeepFlavB"
    working_point: WorkingPoint = "M"
    """Gives `btag_threshold`, where that is not set, from `presets/working_points.yaml`."""
    btag_threshold: float = 0.2783
    """The default, without an era, is DeepJet medium of UL2018."""
    btag_working_points: dict[WorkingPoint, float] | None = None
    """Scores at all working points of the tagger, from L on, which jets are counted by; null takes those of
    era and tagger from `presets/working_points.yaml`."""
    max_jets: Annotated[int, Field(ge=2)] = 12
    """Leading jets kept per event."""

    @field_validator("btag_working_points")
    @classmethod
    def _rising_from_loose(cls, points: dict[WorkingPoint, float] | None) -> dict[WorkingPoint, float] | None:
        if points is None:
            return None
        names = get_args(WorkingPoint)[: len(points)]
        if not points or set(points) != set(names):
            raise ValueError(f"{', '.join(points) or 'nothing'} found, L or L, M, ... without gaps expected")
        ordered = {name: points[name] for name in names}
        if any(b <= a for a, b in itertools.pairwise(ordered.values())):
            raise ValueError(f"{', '.join(map(str, ordered.values()))} found, rising scores expected")
        return ordered

    @model_validator(mode="after")
    def _recipe_has_bit(self) -> Self:
        if self.id_recipe != "branch" and self.id_bit not in (None, 1, 2):
            raise ValueError(
                f"id_bit: {self.id_bit} with id_recipe '{self.id_recipe}', which gives only 1 (tight) and "
                "2 (tight with lepton veto)"
            )
        return self


class JetVetoMap(Config):
    """Regions of the detector that lose or invent jets, from a correctionlib file of the CMS JME group."""

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
    """Fraction of the simulated events that `hem_veto` treats as later ones, chosen by a hash of their keys;
    the default is the share of those runs in the luminosity."""
    ee_leak_veto: bool = False
    """2022EE: electrons in the leaking part of the ECAL endcap are not identified."""
    bpix_veto: bool = False
    """2023BPix: reject events with a jet in the hole of the pixel barrel, where b tagging suffers."""


class PepperSelection(Config):
    """Event files of pepper, which contain selected objects and events.

    Of the other keys of the selection only `channels`, `m_lb_max`, `jet.btag`, `jet.btag_threshold` (for
    files without `Jet_btagged`) and `jet.max_jets` apply to them; changing another one is an error.
    """

    cut: str | None = None
    """Last of pepper's cuts to require, by the name of its flag; null requires all of them."""


class SelectionConfig(Config):
    """The dileptonic selection, momenta and masses in GeV.

    Keys that are not set follow the preset of the file's NanoAOD version, see `topreco.config.presets`.
    """

    preset: str | None = None
    """NanoAOD version (`nano_v9`); null detects it from the branches, `none` uses only what is set here."""
    era: Annotated[str | None, BeforeValidator(_text_of_year)] = None
    """Data-taking era (`UL2017`), which gives the b-tag working point; null takes the preset's default."""
    branches: dict[str, str] = {}
    """For custom ntuples: name in NanoAOD → name in the file, `{PuppiMET_pt: MET_pt}`."""
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
    features: FeaturesConfig = FeaturesConfig()
    """Further branches that events carry, for networks that see them. `topreco run` and `topreco.reconstruct`
    add those that their models need."""
    pepper: PepperSelection = PepperSelection()
    cuts: CutsConfig = CutsConfig()

    @model_validator(mode="after")
    def _features_are_measured(self) -> Self:
        for branch, key in self.features.branches.items():
            stored = self.branches.get(branch, branch)
            if (reason := refused(stored)) is not None:
                raise ValueError(
                    f"branches: {stored!r}, taken for {branch} of {key}, {reason}; only reconstructed "
                    "quantities can be features"
                )
        return self

    def with_features(self, features: Iterable[FeaturesConfig]) -> Self:
        """The selection with further features; itself if it has them all."""
        joined = self.features.joined(features)
        if joined == self.features:
            return self
        # Validated, as the names in the file may be those of generator branches.
        content = self.model_dump(exclude_unset=True) | {"features": joined.model_dump()}
        return type(self).model_validate(content)

    def in_file(self, names: Iterable[str]) -> list[str]:
        """Names of branches as the file has them, see `branches`."""
        return [self.branches.get(name, name) for name in names]

    def require_effect(self, keys: Collection[str], what: str) -> None:
        """Refuse keys that the user changed and that would be ignored.

        Parameters
        ----------
        keys
            Keys, or sections of them, that have an effect.
        what
            Description of the input, for the error.

        Raises
        ------
        ConfigError
            If another key has a value that is not the default.
        """
        ignored = [
            f"selection.{key}"
            for key in differences(self.model_dump(), SelectionConfig().model_dump())
            if not any(f"{key}.".startswith(f"{known}.") for known in keys)
        ]
        if ignored:
            raise ConfigError(
                f"{', '.join(ignored)}: would be ignored for {what}; of the selection only "
                f"{', '.join(keys)} apply"
            )
