"""Validation of methods on simulated events: one page and one JSON file with everything that was measured."""
