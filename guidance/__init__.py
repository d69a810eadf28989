"""Priors that guide the distillation: one self-contained file for each, imported where it is used."""

from guidance.folder import POCKET, find_prior

__all__ = ["POCKET", "find_prior"]
