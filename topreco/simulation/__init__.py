"""Simulation of dileptonic tt̄ in a CMS-like detector, written with NanoAOD's names.

Pythia 8 generates pp → tt̄ → (b ℓ⁺ ν)(b̄ ℓ⁻ ν̄), ℓ = e, μ, τ, also from a spin-0 resonance, tW or Drell-Yan
(`process`), or showers external events; a parametrised detector with the formulas of the public Delphes CMS
card and an energy-flow combination of tracks and calorimeter cells gives leptons, anti-kT jets and MET. What
is *not* modelled:

- by default pile-up, and the additional jets, worse MET and lower isolation efficiency that it brings: see
  `topreco.simulation.pileup` and `topreco.simulation.mitigation`; with it, other bunch crossings;
- trigger, misidentified leptons and photons, charge misassignment, cosmic and beam backgrounds, dead
  channels;
- the magnetic field (particles reach the calorimeter along straight lines), showers that spread over cells,
  material and bremsstrahlung (other than radiation in the generator);
- tracks' impact parameters and vertices: b-tag scores are drawn at random from hadron flavour and pT;
- non-gaussian tails of resolutions, and systematic variations;
- in Pythia's own process: higher orders, for which give events of another generator (`lhe`), and by default
  tt̄ spin correlation, see `topreco.simulation.decays`; interference of resonances and of tW with QCD tt̄.
"""

from topreco.simulation.simulate import SimulationSummary, simulate

__all__ = ["SimulationSummary", "simulate"]
