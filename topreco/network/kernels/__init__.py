"""Compiled operations for the CPU."""
