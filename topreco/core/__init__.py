"""What all rooms share: four-momenta, events, observables, statistics, files, errors. No torch, no coffea."""
