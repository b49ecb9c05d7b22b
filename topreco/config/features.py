"""Further reconstructed quantities that events carry and networks see, by their names in NanoAOD."""

import re
from collections.abc import Iterable
from typing import Self

from pydantic import field_validator

from topreco.config.base import Config

_NAME = re.compile(r"[A-Za-z]\w*")

_REFUSED = (
    (r"gen(?!eric)|LHE|HTXS|PSWeight", "is of the generator"),
    (r"(hadron|parton)Flavour|n[BC]Hadrons|flavour", "tells the true flavour"),
    (r"tru(e|th)", "is of the truth"),
    (r"^Pileup_", "is the simulated pile-up, which data do not have"),
    (r"weight", "is a weight, which says how an event was simulated"),
    (
        r"^(run|luminosityBlock|event|bunchCrossing|orbitNumber)$",
        "numbers events, which can only be memorised",
    ),
    (r"^(dataset|sample)", "names the sample"),
)
"""Expressions, without regard to case, of names that are no measurement, with the reason."""

_KINDS = ("jet", "lepton", "event")


def refused(branch: str) -> str | None:
    """Reason for which a branch cannot be a feature; None if its name says nothing against it."""
    for expression, reason in _REFUSED:
        if re.search(expression, branch, re.IGNORECASE):
            return reason
    return None


def lepton_branches(name: str) -> tuple[str, str]:
    """Branches of electrons and of muons that a feature of leptons is read from.

    Parameters
    ----------
    name
        A field that both collections have (`pfRelIso03_all`), or a branch of each (`Electron_a/Muon_b`).
    """
    electron, separator, muon = name.partition("/")
    return (electron, muon) if separator else (f"Electron_{name}", f"Muon_{name}")


class FeaturesConfig(Config):
    """Scalar branches by their names in NanoAOD; none by default.

    Only what the detector measured is allowed: branches of the generator are refused by name.
    """

    jet: tuple[str, ...] = ()
    """Branches of jets (`Jet_PNetRegPtRawRes`)."""
    lepton: tuple[str, ...] = ()
    """Fields that electrons and muons both have (`pfRelIso03_all`), or pairs of branches
    (`Electron_mvaIso/Muon_mvaMuID`)."""
    event: tuple[str, ...] = ()
    """Branches with one value per event (`PV_npvsGood`)."""

    @field_validator(*_KINDS)
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is given twice")
            for branch in lepton_branches(name) if "/" in name else (name,):
                if not _NAME.fullmatch(branch):
                    raise ValueError(f"{name!r}: a name of NanoAOD expected, letters, digits and _")
                if (reason := refused(branch)) is not None:
                    raise ValueError(f"{name!r} {reason}; only reconstructed quantities can be features")
        return names

    @field_validator("jet")
    @classmethod
    def _of_jets(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not name.startswith("Jet_") or name == "Jet_":
                raise ValueError(f"{name!r}: a branch of jets expected, such as 'Jet_PNetRegPtRawRes'")
        return names

    @field_validator("lepton")
    @classmethod
    def _of_leptons(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            electron, muon = lepton_branches(name)
            single = "/" not in name and name.startswith(("Electron_", "Muon_"))
            if single or not (electron.startswith("Electron_") and muon.startswith("Muon_")):
                raise ValueError(
                    f"{name!r}: a field that electrons and muons both have expected, such as "
                    "'pfRelIso03_all', or a pair such as 'Electron_mvaIso/Muon_mvaMuID'"
                )
        return names

    @field_validator("event")
    @classmethod
    def _of_events(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name.startswith(("Jet_", "Electron_", "Muon_")) or "/" in name:
                raise ValueError(
                    f"{name!r}: a branch with one value per event expected, such as 'PV_npvsGood'"
                )
        return names

    @property
    def names(self) -> tuple[str, ...]:
        """Names in events and in the layout of tokens, such as ``jet:Jet_PNetRegPtRawRes``."""
        return tuple(f"{kind}:{name}" for kind in _KINDS for name in getattr(self, kind))

    @property
    def branches(self) -> dict[str, str]:
        """Branches that are read, and the key of the configuration that asks for each."""
        of_leptons = [branch for name in self.lepton for branch in lepton_branches(name)]
        by_kind = {"jet": self.jet, "lepton": of_leptons, "event": self.event}
        return {branch: f"features.{kind}" for kind, names in by_kind.items() for branch in names}

    def joined(self, others: Iterable["FeaturesConfig"]) -> Self:
        """These features, and those of others that are not among them."""
        everything = {kind: list(getattr(self, kind)) for kind in _KINDS}
        for other in others:
            for kind, names in everything.items():
                names += [name for name in getattr(other, kind) if name not in names]
        return type(self)(**{kind: tuple(names) for kind, names in everything.items()})
