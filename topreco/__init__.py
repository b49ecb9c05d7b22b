"""Lorentz-equivariant reconstruction of dileptonic top-quark pairs for CMS analyses with coffea."""
