"""Top quarks in a PocketCoffea 0.9 workflow, and a small configuration to run it with.

    topreco export dilepton -o dilepton.onnx    # anywhere with topreco; writes model_reader.py too
    pocket-coffea run --cfg pocketcoffea_workflow.py -o output --executor iterative

with `dilepton.onnx`, `model_reader.py` and the dataset definition `datasets.json` of PocketCoffea beside this
file. The parameters are the few that the workflow needs, to run without CVMFS: an analysis merges its own
into `defaults.get_default_parameters()`, adds calibrators and weights, and calls `add_tops` from the hook in
which it defines its variables.
"""

from pathlib import Path

import awkward as ak
import cloudpickle
import model_reader
import numpy as np
from model_reader import TopModel
from omegaconf import OmegaConf
from pocket_coffea.lib.columns_manager import ColOut
from pocket_coffea.lib.cut_definition import Cut
from pocket_coffea.lib.hist_manager import Axis, HistConf
from pocket_coffea.parameters.cuts import passthrough
from pocket_coffea.utils.configurator import Configurator
from pocket_coffea.workflows.base import BaseProcessorABC

HERE = Path(__file__).parent


def add_tops(events, model, btag):
    """Write collections `Top` and `AntiTop` and a mass `m_tt` into events with `LeptonGood` and `JetGood`."""
    leptons, jets = events.LeptonGood, events.JetGood
    jets = jets[ak.argsort(jets.pt, ascending=False)]

    def padded(values):
        return ak.to_numpy(ak.pad_none(values, 12, clip=True))

    tops = model(
        lepton_pt=ak.to_numpy(leptons.pt[:, :2]),
        lepton_eta=ak.to_numpy(leptons.eta[:, :2]),
        lepton_phi=ak.to_numpy(leptons.phi[:, :2]),
        lepton_charge=ak.to_numpy(leptons.charge[:, :2]),
        lepton_pdgid=ak.to_numpy(leptons.pdgId[:, :2]),
        jet_pt=padded(jets.pt),
        jet_eta=padded(jets.eta),
        jet_phi=padded(jets.phi),
        jet_mass=padded(jets.mass),
        jet_btag=padded(jets[btag]),
        met_pt=ak.to_numpy(events.PuppiMET.pt),
        met_phi=ak.to_numpy(events.PuppiMET.phi),
    )
    for name, p4 in (("Top", tops.top), ("AntiTop", tops.antitop)):
        energy, px, py, pz = p4.T
        events[name] = ak.zip({"x": px, "y": py, "z": pz, "t": energy}, with_name="LorentzVector")
    system = tops.top + tops.antitop
    events["m_tt"] = np.sqrt(system[:, 0] ** 2 - (system[:, 1:] ** 2).sum(axis=1))
    return events


class TopWorkflow(BaseProcessorABC):
    """Leptons and jets of the default selection of topreco for UL2018, and the tops behind it."""

    def __init__(self, cfg):
        super().__init__(cfg)
        # Pickles as its path, and each worker opens the file once.
        self.model = TopModel(
            self.workflow_options["topreco_model"], btag_threshold=self.params.topreco.btag_threshold
        )

    def apply_object_preselection(self, variation):
        """Collections `LeptonGood` and `JetGood`."""
        electrons, muons = self.events.Electron, self.events.Muon
        # Newer versions of NanoAOD store it.
        eta_sc = abs(
            electrons.superclusterEta
            if "superclusterEta" in electrons.fields
            else electrons.eta + electrons.deltaEtaSC
        )
        electrons = electrons[
            (electrons.pt > 20)
            & (abs(electrons.eta) < 2.4)
            & (electrons.cutBased >= 4)
            & ((eta_sc < 1.4442) | (eta_sc > 1.566))
        ]
        muons = muons[
            (muons.pt > 20) & (abs(muons.eta) < 2.4) & muons.tightId & (muons.pfRelIso04_all < 0.15)
        ]
        fields = ("pt", "eta", "phi", "mass", "charge", "pdgId")
        both = [ak.zip({field: part[field] for field in fields}) for part in (electrons, muons)]
        leptons = ak.with_name(ak.concatenate(both, axis=1), "PtEtaPhiMCandidate")
        self.events["LeptonGood"] = leptons[ak.argsort(leptons.pt, ascending=False)]
        jets = self.events.Jet
        jets = jets[(jets.pt > 30) & (abs(jets.eta) < 2.4) & ((jets.jetId & 2) > 0)]
        distance = jets.metric_table(self.events.LeptonGood)
        self.events["JetGood"] = jets[ak.all(distance > 0.4, axis=2)]

    def count_objects(self, variation):
        """Numbers of leptons and jets."""
        self.events["nLeptonGood"] = ak.num(self.events.LeptonGood)
        self.events["nJetGood"] = ak.num(self.events.JetGood)

    def define_common_variables_after_presel(self, variation):
        """Tops of the events that are left, anew for each variation of the objects."""
        self.events = add_tops(self.events, self.model, self.params.topreco.btag)


def dileptonic(events, params, **kwargs):
    """Mask of events with two leptons of opposite charge and two jets, one of them b-tagged."""
    leptons = ak.pad_none(events.LeptonGood, 2)
    first, second = leptons[:, 0], leptons[:, 1]
    m_ll = (first + second).mass
    same_flavour = abs(first.pdgId) == abs(second.pdgId)
    mask = (
        (events.nLeptonGood == 2)
        & (first.charge + second.charge == 0)
        & (first.pt > 25)
        & (m_ll > 20)
        & (~same_flavour | ((abs(m_ll - 91.19) > 15) & (events.PuppiMET.pt > 40)))
        & (events.nJetGood >= 2)
        & ak.any(events.JetGood[params["btag"]] > params["btag_threshold"], axis=1)
    )
    return ak.fill_none(mask, False)


TOPRECO = {"btag": "btagDeepFlavB", "btag_threshold": 0.2783}  # DeepJet medium, UL2018

# Workers have neither of these two files.
cloudpickle.register_pickle_by_value(model_reader)

cfg = Configurator(
    parameters=OmegaConf.create(
        {"topreco": TOPRECO, "jets_calibration": {}, "default_nano_version": {"2018": 9}, "lumi": {}}
    ),
    datasets={"jsons": [str(HERE / "datasets.json")]},
    workflow=TopWorkflow,
    workflow_options={"topreco_model": str(HERE / "dilepton.onnx"), "donotscale_sumgenweights": True},
    skim=[],
    preselections=[Cut(name="dileptonic", params=TOPRECO, function=dileptonic)],
    categories={"all": [passthrough]},
    weights_classes=[],
    weights={"common": {"inclusive": []}},
    variations={"weights": {"common": {"inclusive": []}}},
    calibrators=[],
    variables={
        "m_tt": HistConf(
            [Axis(coll="events", field="m_tt", bins=50, start=300, stop=1300, label="m(tt) [GeV]")]
        )
    },
    columns={
        "common": {
            "inclusive": [
                ColOut("events", ["event"], flatten=False),
                ColOut("Top", ["t", "x", "y", "z"], flatten=False),
                ColOut("AntiTop", ["t", "x", "y", "z"], flatten=False),
            ]
        }
    },
)
