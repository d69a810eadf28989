"""Where compiled kernels are kept: beside their source or in the home folder, as numba does it, else in a folder of
this user's among the temporary ones. Imports nothing: it comes before numba."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def find_place() -> None:
    """Sets NUMBA_CACHE_DIR, and says so in one line, where numba itself would find no place and stop."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    folders = [PACKAGE / "mesh"] + [
        PACKAGE / "scenes" / kind for kind in ("gaussians", "fields", "tetrahedra")
    ]
    if all(_writable(folder / "__pycache__") for folder in folders) or _writable(_caches()):
        return
    place = own_folder()
    os.environ["NUMBA_CACHE_DIR"] = str(place)  # processes that this one starts inherit it
    print(
        f"note: neither {PACKAGE} nor the home folder can be written to; compiled kernels are kept in {place}",
        file=sys.stderr,
    )


def _caches() -> Path | None:
    """Numba's folder among the user's caches; None for a user without a home."""
    home, named = os.path.expanduser("~"), os.environ.get("XDG_CACHE_HOME")
    if not named and not os.path.isabs(home):
        return None
    return Path(named or os.path.join(home, ".cache")) / "numba"


def _writable(folder: Path | None) -> bool:
    """Whether it can be written to, or made."""
    while folder is not None and not folder.exists():
        if folder == folder.parent:
            return False
        folder = folder.parent
    return folder is not None and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def own_folder() -> Path:
    """The same one each time, if it is nobody else's: what lies there is run."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    place = Path(tempfile.gettempdir()) / f"propeller-kernels-{user}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        about = place.lstat()
        ours = not hasattr(os, "getuid") or about.st_uid == os.getuid()
        if stat.S_ISDIR(about.st_mode) and ours and not about.st_mode & 0o022:
            return place
    except OSError:
        pass  # a file, or a link to nowhere, of that name
    return Path(tempfile.mkdtemp(prefix="propeller-kernels-"))
