"""Runs that outlive an interruption: checkpoints, one run a folder, orderly Ctrl-C.

A checkpoint holds all that evolves: every state of the window, its place, threshold and counts.
"""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from torch import Tensor

from gs_propeller.base.errors import UserError
from gs_propeller.base.files import load_meta, load_tensors, save_tensors
from gs_propeller.base.locks import locked
from gs_propeller.solver.picard import Window

S = TypeVar("S", bound=Any)
FILE, LOCK = "checkpoint.safetensors", ".lock"
# A run of more of these goes on where the shorter one ended, if its last evaluation served as many as the others.
GROWING = {"steps": "updates_per_evaluation", "refine_steps": "refine_updates_per_evaluation"}


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

    mark: JSON of whatever must be the same, save that GROWING may have grown. Raises UserError, naming what differs,
    for a checkpoint of another mark, and for one that cannot be read.
    """
    if not path.exists():
        return None
    tensors, meta = load_tensors(path)
    _refuse_another(path, meta, mark)
    states = tuple(read(_group(tensors, i)) for i in range(meta["states"]))
    return Window(states, meta["start"], meta["threshold"], meta["passes"], meta["evaluations"]), meta[
        "elapsed_s"
    ]


def check(path: Path, mark: str) -> None:
    """Raises UserError, as restore, for a checkpoint of another mark; none of its tensors is read."""
    if path.exists():
        _refuse_another(path, load_meta(path), mark)


def _refuse_another(path: Path, meta: dict[str, Any], mark: str) -> None:
    if (other := differing(str(meta.get("fingerprint")), mark)) is not None:
        raise UserError(
            f"{path} belongs to {other}; add resume=false to start anew, or name=... for a folder of its own"
        )


def _group(tensors: dict[str, Tensor], i: int) -> dict[str, Tensor]:
    """Those of the window's state i, by its own names."""
    mine = f"{i}/"
    return {key.removeprefix(mine): value for key, value in tensors.items() if key.startswith(mine)}


def first_state(path: Path, read: Callable[[dict[str, Tensor]], S]) -> S:
    """The exact state of a checkpoint, whatever its mark. Raises UserError for one that cannot be read."""
    return read(_group(load_tensors(path)[0], 0))


def differing(before: str, mark: str) -> str | None:
    """What keeps a run of this mark from going on from one of the other; None where nothing does."""
    if before == mark:
        return None
    try:
        old, new = json.loads(before), json.loads(mark)
        keys = [key for key in sorted(old | new) if old.get(key) != new.get(key)]
        grown = [key for key in keys if key in GROWING and old.get(key, math.inf) < new.get(key, 0)]
        torn = {key: GROWING[key] for key in grown if old[key] % new.get(GROWING[key], 1)}
    except (ValueError, TypeError, AttributeError):
        return "other options or another picture"  # not a mark of today's
    if grown == keys and not torn:
        return None
    default = "default"  # what a mark does not name
    why = {key: f"; it goes on from a multiple of {every}={new[every]} alone" for key, every in torn.items()}
    said = [
        f"{key}={old.get(key, default)} (here {new.get(key, default)}{why.get(key, '')})"
        for key in keys
        if " " not in key
    ]
    said += [f"another file as {key}" for key in keys if " " in key]
    return "a run with " + ", ".join(said)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the run folder; the kernel lets go of it however the process ends. Raises UserError when it is taken."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another outdir=") from error
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / LOCK))
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
    with _handling({signal.SIGINT: handler, signal.SIGTERM: handler}):
        yield handler


@contextmanager
def terms_as_interrupts() -> Iterator[None]:
    """Within it a TERM is what Ctrl-C is, wherever the program is just then."""
    with _handling({signal.SIGTERM: signal.default_int_handler}):
        yield


@contextmanager
def _handling(handlers: dict[signal.Signals, Any]) -> Iterator[None]:
    """Signals go to these handlers; in a thread, where Python has none, to whoever started it, as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
