"""Which pictures an .obj's materials name: also where trimesh does not find them."""

from __future__ import annotations

import re
from pathlib import Path

from gs_propeller.base.errors import UserError

LIBRARY = re.compile(r"^[ \t]*mtllib[ \t]+(.+?)[ \t]*\r?$", re.MULTILINE)
OPTIONS = re.compile(
    r"^(-[a-z]+(\s+(-?[\d.]+|on|off|[rgbmlz]))+\s+)+", re.IGNORECASE
)  # before a map's file name


def pictures_of(path: Path) -> tuple[dict[str, Path], list[str]]:
    """(the file of each material's colours, by the material's name; a line for each material file that is not there).
    Raises UserError where a material names a picture that is not there."""
    found: dict[str, Path] = {}
    missing = []
    for name in LIBRARY.findall(path.read_text(encoding="utf-8", errors="replace")):
        library = _beside(path, name)
        if not library.is_file():
            missing.append(f"{path} has its colours in {library}, which is not there: it is grey")
            continue
        material = ""
        for line in library.read_text(encoding="utf-8", errors="replace").splitlines():
            word, _, rest = line.strip().partition(" ")
            if word.lower() == "newmtl":
                material = " ".join(rest.split())
            elif word.lower() == "map_kd" and rest.strip():
                picture = _beside(path, rest.strip())
                if not picture.is_file():
                    picture = _beside(path, OPTIONS.sub("", rest.strip()))
                if not picture.is_file():
                    raise UserError(
                        f"{path} has the colours of its material {material!r} in {picture}, which is not there; put it "
                        f"beside the mesh, or take the line out of {library}"
                    )
                found[material] = picture
    return found, missing


def _beside(path: Path, name: str) -> Path:
    return path.parent / name.strip('"').replace("\\", "/")
