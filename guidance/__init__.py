"""Priors that guide the distillation: one self-contained file for each."""
