"""Backbones: networks from tokens to vectors and scalars."""
