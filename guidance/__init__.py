"""Priors that guide the distillation: one self-contained file for each, imported where it is used."""

from __future__ import annotations

from pathlib import Path

from gs_propeller.errors import UserError

_DATA = Path(__file__).resolve().parent.parent / "data"
POCKET, POCKET_TEXT = _DATA / "zero123-pocket", _DATA / "text-pocket"


def find_text_prior(name: str) -> str:
    """'auto' or '' -> the shipped pocket text prior; else the folder or hub id itself. Raises UserError."""
    if name not in ("", "auto"):
        return name
    if not (POCKET_TEXT / "unet").is_dir():
        raise UserError(
            f"the pocket text prior is missing from {POCKET_TEXT}; restore data/, or give text_prior= another folder"
        )
    return str(POCKET_TEXT)


def find_prior(name: str) -> str:
    """'auto' or '' -> the shipped pocket prior; else the folder or hub id itself. Raises UserError."""
    if name not in ("", "auto"):
        return name
    if not (POCKET / "unet").is_dir():
        raise UserError(
            f"the pocket prior is missing from {POCKET}; restore data/, or give prior= another folder"
        )
    return str(POCKET)
