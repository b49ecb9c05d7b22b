"""Studies: trainings that differ in a few keys, and what their comparison says."""
