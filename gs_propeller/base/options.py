"""Options: settings records whose fields say what they are, checked where they are made.

A section of the configuration is such a record, the very one that a module takes. `option` makes a field of one.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from gs_propeller.base.errors import UserError

AUTO: Literal["auto"] = "auto"


def option(
    default: Any, remark: str, unit: str = "", low: float | None = None, high: float | None = None,
    choices: tuple[str, ...] = (), above: float | None = None, path: bool = False, auto: bool = False,
) -> Any:  # fmt: skip
    """A field with its remark, unit, least and largest value (`above`: a bound that is itself out) or choices. path:
    a ~ at its start is the home folder, also where a shell leaves it alone (input=~/photo.jpg). auto: a number, or AUTO
    where the program is to find it out."""
    meta = {
        "help": remark,
        "unit": unit,
        "low": low,
        "high": high,
        "choices": choices,
        "above": above,
        "path": path,
        "auto": auto,
    }
    return field(default=default, metadata=meta)


def within(record: Any) -> None:
    """Raises UserError, naming it, for a field out of its range or not among its choices."""
    for f in fields(record):
        value, meta = getattr(record, f.name), f.metadata
        if meta.get("auto") and isinstance(value, str):
            if value != AUTO:
                raise UserError(f"{f.name}={value}: a number or {AUTO} is wanted")
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{f.name} must be a finite number, not {value}")
        unit = f" {meta['unit']}" if meta.get("unit") else ""
        if meta.get("low") is not None and value < meta["low"]:
            raise UserError(f"{f.name}={value} is below its least value, {meta['low']:g}{unit}")
        if meta.get("high") is not None and value > meta["high"]:
            raise UserError(f"{f.name}={value} is above its largest value, {meta['high']:g}{unit}")
        if meta.get("above") is not None and not value > meta["above"]:
            raise UserError(f"{f.name}={value} must be above {meta['above']:g}{unit}")
        if meta.get("choices") and value not in meta["choices"]:
            raise UserError(f"{f.name}={value} is not one of {', '.join(meta['choices'])}")


def _writable(name: str, text: str) -> None:
    """Raises UserError for a text that a configuration file cannot hold."""
    if "${" in text:
        raise UserError(
            f"{name}={text}: '${{' stands for another option in a configuration file; leave it out"
        )
    if not text.isprintable() and any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise UserError(f"{name}={text!a} is not UTF-8; rename it")


@dataclass(frozen=True)
class Section:
    """A record of options. Raises UserError for a value out of range or not among the choices, naming it."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.metadata.get("path") and value.startswith("~"):
                object.__setattr__(self, f.name, os.path.expanduser(value))
            if isinstance(value, str):
                _writable(f.name, value)
        within(self)

    def ordered(self, low: str, high: str) -> None:
        """Raises UserError where the first is above the second."""
        if getattr(self, low) > getattr(self, high):
            raise UserError(f"{low}={getattr(self, low)} is above {high}={getattr(self, high)}")
