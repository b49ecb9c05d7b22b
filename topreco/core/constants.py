"""Masses, PDG identities and NanoAOD flag bits.

Masses are in GeV and follow the Review of Particle Physics, except that `M_TOP` and `M_W` are the values
conventional in CMS simulation and analytic reconstruction.
"""

M_TOP = 172.5
M_W = 80.4
M_Z = 91.19
M_B = 4.8
M_ELECTRON = 0.000511
M_MUON = 0.105658

PDG_B = 5
PDG_TOP = 6
PDG_ELECTRON = 11
PDG_MUON = 13
PDG_TAU = 15
PDG_W = 24
PDG_GLUON = 21

# Bits of GenPart_statusFlags, see the NanoAOD documentation of reco::GenStatusFlags.
FLAG_IS_PROMPT = 0
FLAG_IS_TAU_DECAY_PRODUCT = 2
FLAG_IS_PROMPT_TAU_DECAY_PRODUCT = 3
FLAG_IS_DIRECT_TAU_DECAY_PRODUCT = 4
FLAG_IS_DIRECT_PROMPT_TAU_DECAY_PRODUCT = 5
FLAG_IS_HARD_PROCESS = 7
FLAG_FROM_HARD_PROCESS = 8
FLAG_FROM_HARD_PROCESS_BEFORE_FSR = 11
FLAG_IS_FIRST_COPY = 12
FLAG_IS_LAST_COPY = 13
FLAG_IS_LAST_COPY_BEFORE_FSR = 14
