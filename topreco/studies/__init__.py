"""Studies: trainings that differ in a few keys, and their comparison."""
