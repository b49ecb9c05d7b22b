"""Analytic reconstruction of both tops from the W, top and missing-momentum constraints, compiled with numba.

One paper per file: `sonnenschein` and `ellipse` find all neutrino pairs that meet the six constraints;
`neutrino_weighting` scans for the best pair, `loose` finds the tt̄ system alone. `per_event` runs a compiled
function over events, `solutions` holds the constraints of one leg, `quartic` finds real roots. `smearing`
averages over draws from the detector response (`response`), with random numbers of the event (`random`).

Numba recompiles a cached function when its own file changes, not when a function that it calls does: after
an edit in `quartic`, `solutions` or `per_event`, delete the ``__pycache__`` of this folder.
"""
