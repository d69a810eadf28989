"""Runs that outlive an interruption: checkpoints, one run a folder, orderly Ctrl-C.

A checkpoint holds all that evolves: every state of the window, its place, threshold and counts.
"""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from torch import Tensor

from gs_propeller.base.errors import UserError
from gs_propeller.base.files import load_tensors, save_tensors
from gs_propeller.solver.picard import Window

S = TypeVar("S", bound=Any)
FILE = "checkpoint.safetensors"


def save(path: Path, window: Window[S], mark: str, elapsed_s: float) -> None:
    """Writes the window, of states that have `tensors`; the last checkpoint stays if that fails. Raises UserError."""
    tensors = {
        f"{i}/{key}": value for i, state in enumerate(window.states) for key, value in state.tensors().items()
    }
    meta = {
        "states": len(window.states),
        "start": window.start,
        "threshold": window.threshold,
        "passes": window.passes,
        "evaluations": window.evaluations,
        "fingerprint": mark,
        "elapsed_s": elapsed_s,
    }
    save_tensors(path, tensors, meta)


def restore(path: Path, mark: str, read: Callable[[dict[str, Tensor]], S]) -> tuple[Window[S], float] | None:
    """The window of the checkpoint and the seconds spent so far; None where there is no checkpoint.

    Raises UserError for a checkpoint of other options or another picture, or one that cannot be read.
    """
    if not path.exists():
        return None
    tensors, meta = load_tensors(path)
    if meta.get("fingerprint") != mark:
        raise UserError(
            f"{path} belongs to other options or another picture; add resume=false to start anew, or name=... "
            "for a folder of its own"
        )
    groups: list[dict[str, Tensor]] = [{} for _ in range(meta["states"])]
    for key, value in tensors.items():
        i, name = key.split("/", 1)
        groups[int(i)][name] = value
    states = tuple(read(group) for group in groups)
    return Window(states, meta["start"], meta["threshold"], meta["passes"], meta["evaluations"]), meta[
        "elapsed_s"
    ]


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the run folder; the kernel lets go of it however the process ends. Raises UserError when it is taken."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another outdir=") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another run is at work in {folder}; wait for it, or give name=... to this one"
            ) from error
        yield


class Interrupts:
    """Whether Ctrl-C or a TERM has come; the second Ctrl-C ends the program at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Within it, signals only set a flag that is read between passes."""
    handler = Interrupts()
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield handler
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def terms_as_interrupts() -> Iterator[None]:
    """Within it a TERM is what Ctrl-C is, wherever the program is just then."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
