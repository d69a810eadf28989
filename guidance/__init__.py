"""Priors that guide the distillation: one self-contained file for each, imported where it is used."""

from guidance.folder import POCKET, POCKET_TEXT, find_prior, find_text_prior

__all__ = ["POCKET", "POCKET_TEXT", "find_prior", "find_text_prior"]
