"""Runs over many files: the coffea processor, executors, checkpoints, friend trees."""
