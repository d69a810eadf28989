"""Runs as a page follows them: in a thread of their own, their events as they come, passes with a small picture.

S, a picture's side in pixels.
"""

from __future__ import annotations

import queue
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from gs_propeller.app.events import Event, Listener, PassDone

TURN_DEG = 15.0  # from one picture to the next
OURS = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")  # what fresh_folder calls its folders
KEPT = 30  # runs in the page's folder; older ones go
INSIDE = ("checkpoint", ".lock")  # what goes on with a run is no part of what is downloaded


@dataclass(frozen=True)
class Shown:
    """A pass, and the scene after it from one side: [S, S, 3]."""

    done: PassDone
    picture: NDArray[np.uint8]


class Gone(Exception):
    """Nobody follows the run any more."""


def followed(
    work: Callable[[Listener], Any], every_s: float = 0.4, size: int = 320
) -> Generator[Event | Shown, None, None]:
    """What work(listener) tells, as it comes, and what it raises. A pass is shown from a side further on, every_s apart
    and the last one always. Where this is closed before its end, the run ends at its next event."""
    told: queue.SimpleQueue[Event | Shown | BaseException | None] = queue.SimpleQueue()
    gone = threading.Event()
    shown_s, turned_deg = -every_s, 0.0

    def listening(event: Event) -> None:
        nonlocal shown_s, turned_deg
        if gone.is_set():
            raise Gone
        if not isinstance(event, PassDone):
            told.put(event)
        elif time.monotonic() - shown_s >= every_s or event.step == event.steps:
            picture = event.draw([turned_deg], size)[0].permute(1, 2, 0).clamp(0, 1).numpy()
            told.put(Shown(event, (picture * 255 + 0.5).astype(np.uint8)))
            shown_s, turned_deg = time.monotonic(), turned_deg + TURN_DEG

    def working() -> None:
        try:
            work(listening)
        except BaseException as error:  # raised where the run is followed
            told.put(error)
        told.put(None)

    thread = threading.Thread(target=working, daemon=True)
    thread.start()
    try:
        while (event := told.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        gone.set()
        thread.join()


def fresh_folder(outdir: Path) -> Path:
    """A folder of its own for a run; of those that it made in outdir the KEPT latest stay, and all that others made."""
    folder = outdir / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid4().hex[:6]}"
    folder.mkdir(parents=True)
    own = sorted(path for path in outdir.iterdir() if path.is_dir() and OURS.fullmatch(path.name))
    for old in own[:-KEPT]:
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def latest_mesh(folder: Path, name: str) -> Path | None:
    """The run's mesh that was written last: the refined one, unless the run was made anew since."""
    meshes = [mesh for kind in ("", "_refined") if (mesh := folder / f"{name}{kind}.glb").is_file()]
    return max(meshes, key=lambda mesh: mesh.stat().st_mtime, default=None)


def zipped(folder: Path) -> Path:
    """NAME.zip beside the run's folder NAME: its results, and the options that made them."""
    target = folder.parent / f"{folder.name}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            if file.is_file() and not any(word in file.name for word in INSIDE):
                archive.write(file, f"{folder.name}/{file.name}")
    return target
