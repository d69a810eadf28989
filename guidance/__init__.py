"""Priors that guide the distillation: one self-contained file for each, imported where it is used."""

from __future__ import annotations

from pathlib import Path

from gs_propeller.errors import UserError

POCKET = Path(__file__).resolve().parent.parent / "data" / "zero123-pocket"


def find_prior(name: str) -> str:
    """'auto' or '' -> the shipped pocket prior; else the folder or hub id itself. Raises UserError."""
    if name not in ("", "auto"):
        return name
    if not (POCKET / "unet").is_dir():
        raise UserError(
            f"the pocket prior is missing from {POCKET}; restore data/, or give prior= another folder"
        )
    return str(POCKET)
