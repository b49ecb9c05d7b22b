"""Top quarks in pepper's dileptonic tt̄ processor, in place of its Sonnenschein or Betchart reconstruction.

    topreco export dilepton -o dilepton.onnx    # anywhere with topreco; writes model_reader.py too
    PYTHONPATH=. python -m pepper.runproc pepper_processor.py config.hjson -o output

with `dilepton.onnx` and `model_reader.py` beside this file, in pepper's environment with onnxruntime. The
configuration is that of `pepper.ProcessorTTbarLL`; `reco_algorithm` must be set for pepper to reconstruct at
all, to whatever value. `recot` and what pepper derives from it, `reconu`, `chel` and `dark_pt`, then come
from the network, anew for each variation of jets and MET.
"""

from pathlib import Path

import awkward as ak
import numpy as np
import pepper
from model_reader import TopModel

MODEL = Path(__file__).with_name("dilepton.onnx")
BTAG_WORKING_POINT = 0.2783  # that of `btag` in pepper's configuration; deepjet:medium, ul2018


class Processor(pepper.ProcessorTTbarLL):
    """`pepper.ProcessorTTbarLL` with the network's tops."""

    def __init__(self, config, eventdir):
        super().__init__(config, eventdir)
        # Pickles as its path, and each worker opens the file once.
        self.model = TopModel(MODEL, btag_threshold=BTAG_WORKING_POINT)

    def ttbar_system(self, reco_alg, rng, data):
        """Column `recot`: top and antitop of each event, none where there is no answer."""
        leptons, jets, met = data["recolepton"], data["Jet"], data["MET"]
        jets = jets[ak.argsort(jets["pt"], ascending=False)]

        def padded(values):
            return ak.to_numpy(ak.pad_none(values, 12, clip=True))

        pdgid = ak.to_numpy(leptons["pdgId"][:, :2])
        tops = self.model(
            lepton_pt=ak.to_numpy(leptons["pt"][:, :2]),
            lepton_eta=ak.to_numpy(leptons["eta"][:, :2]),
            lepton_phi=ak.to_numpy(leptons["phi"][:, :2]),
            lepton_charge=-np.sign(pdgid),
            lepton_pdgid=pdgid,
            jet_pt=padded(jets["pt"]),
            jet_eta=padded(jets["eta"]),
            jet_phi=padded(jets["phi"]),
            jet_mass=padded(jets["mass"]),
            jet_btag=padded(jets["btag"]),
            met_pt=ak.to_numpy(met["pt"]),
            met_phi=ak.to_numpy(met["phi"]),
        )
        both = np.stack([tops.top, tops.antitop], axis=1)[tops.valid]
        energy, px, py, pz = np.moveaxis(both, -1, 0)
        pt = np.hypot(px, py)
        columns = {
            "pt": pt,
            "eta": np.arcsinh(pz / pt),
            "phi": np.arctan2(py, px),
            "mass": np.sqrt(energy**2 - px**2 - py**2 - pz**2),
        }
        counts = np.where(tops.valid, 2, 0)
        return ak.zip(
            {name: ak.unflatten(values.reshape(-1), counts) for name, values in columns.items()},
            with_name="PtEtaPhiMLorentzVector",
            behavior=leptons.behavior,
        )
