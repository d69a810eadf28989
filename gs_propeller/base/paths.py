"""Whether a file is there: of any text, also one that can be no file's name, and of places where one may not look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gs_propeller.base.errors import UserError


def is_there(path: str | Path) -> bool:
    """Raises UserError where the permission to look is lacking, as the others."""
    return _looked(Path.exists, path)


def is_file(path: str | Path) -> bool:
    return _looked(Path.is_file, path)


def is_folder(path: str | Path) -> bool:
    return _looked(Path.is_dir, path)


def _looked(question: Callable[[Path], bool], path: str | Path) -> bool:
    try:
        return question(Path(path))
    except PermissionError as error:
        raise UserError(f"{path} is in a folder that may not be entered: {error.strerror}") from error
    except OSError:
        return False  # too long for a name
