"""Analytic reconstruction of both tops from the W, top and missing-momentum constraints, compiled with numba.

One paper per file: `sonnenschein` and `ellipse` find all neutrino pairs that meet the six constraints;
`quartic` finds the real roots that both need, `solutions` holds what they share.

Numba recompiles a cached function when its own file changes, not when a function that it calls does: after
an edit in `quartic` or `solutions`, delete the ``__pycache__`` of this folder.
"""
