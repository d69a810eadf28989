"""One rule for the names of runs, which are folders and files: from words, from one picture, from many."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from gs_propeller.base.errors import UserError

MOST_LETTERS, MOST_BYTES = 60, 120  # a file's name, with its ending, has 255 bytes


def clean(text: str) -> str:
    """The text as a file's name: letters of any script, digits, `_`, `.` and `-`; an emoji by what it is called; ""
    where nothing is left."""
    spoken = "".join(_spoken(letter) for letter in unicodedata.normalize("NFC", text))
    name = re.sub(r" +", "-", spoken.strip(" -.")).strip("-.")[:MOST_LETTERS]
    while len(name.encode(errors="replace")) > MOST_BYTES:
        name = name[:-1]
    return re.sub(r"-+", "-", name).strip("-.")


def _spoken(letter: str) -> str:
    kind = unicodedata.category(letter)
    if kind[0] in "LN" or letter in "_.-" or (kind[0] == "M" and not "\ufe00" <= letter <= "\ufe0f"):
        return letter
    return f" {unicodedata.name(letter, '').lower()} " if kind == "So" else " "


def told_apart(files: Sequence[str]) -> list[str]:
    """A name for each file: its stem, and of those that share one, as much of their paths as tells them apart.

    Case does not count: some file systems do not keep it. Raises UserError where two files have the same name still.
    """
    stems = [clean(Path(file).stem) or "asset" for file in files]
    groups: dict[str, list[int]] = {}
    for i, stem in enumerate(stems):
        groups.setdefault(stem.casefold(), []).append(i)
    names = list(stems)
    for alike in groups.values():
        if len(alike) == 1:
            continue
        deepest = max(len(Path(files[i]).absolute().parts) for i in alike)
        # parents first, then endings: cat/rgba.png is cat-rgba, and a.jpg beside a.png is a.jpg
        ways = [(more - ending, ending) for more in range(deepest) for ending in (0, 1) if more >= ending]
        for parents, ending in ways:
            longer = [_longer(Path(files[i]), parents, bool(ending)) for i in alike]
            if len({n.casefold() for n in longer}) == len(alike):
                for i, n in zip(alike, longer, strict=True):
                    names[i] = n
                break
    first: dict[str, str] = {}
    for file, name in zip(files, names, strict=True):
        if name.casefold() in first:
            raise UserError(
                f"{first[name.casefold()]} and {file} would both be named {name}; rename one of them"
            )
        first[name.casefold()] = file
    return names


def _longer(file: Path, parents: int, ending: bool) -> str:
    folders = file.absolute().parent.parts[1:]
    return (
        clean("-".join([*folders[len(folders) - parents :], file.name if ending else file.stem])) or "asset"
    )
