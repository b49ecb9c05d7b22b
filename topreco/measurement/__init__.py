"""From histograms to a measurement: response matrices, binning, unfolding."""
