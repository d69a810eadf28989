"""Locks between processes: the kernel lets go of them however a process ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gs_propeller.base.kernels import own_folder

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

AGAIN_S = 0.2  # between two looks at a lock that another process holds


@contextmanager
def locked(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Holds the file, made where there is none. Raises OSError where another process still holds it after wait_s."""
    until = time.monotonic() + wait_s
    with path.open("w") as file:
        while True:
            try:
                _take(file)
                break
            except OSError:
                if time.monotonic() >= until:
                    raise
                time.sleep(AGAIN_S)
        yield


@contextmanager
def one_at_a_time(what: str, wait_s: float) -> Iterator[None]:
    """Of this user's processes on this machine, one is in it at a time for the same `what`, the others wait. Raises
    OSError after wait_s."""
    with locked(own_folder() / f"{what}.lock", wait_s):
        yield


def _take(file: IO[str]) -> None:
    """Raises OSError where another process holds the file."""
    if "fcntl" in globals():
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
