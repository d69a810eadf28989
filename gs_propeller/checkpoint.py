"""Runs that outlive an interruption: checkpoints, one run a folder, orderly Ctrl-C.

A checkpoint holds all that evolves: every state of the window, its place, threshold and counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from torch import Tensor

from gs_propeller.config import Config
from gs_propeller.errors import UserError
from gs_propeller.io import load_tensors, save_tensors
from gs_propeller.picard import Window
from guidance import POCKET, POCKET_TEXT, find_prior, find_text_prior

S = TypeVar("S", bound=Any)
FILE = "checkpoint.safetensors"
SECOND_STAGE = (
    "refine_steps",
    "refine_batch",
    "refine_guidance",
    "refine_text_guidance",
    "refine_denoise",
    "refine_threshold",
    "texture_lr",
    "refine_strength_max",
    "refine_strength_min",
    "refine_texels",
    "train_geo",
    "geo_lr",
    "lambda_smooth",
    "lambda_normal",
)
# What may change between a run and its continuation without another result being asked for.
FREE = frozenset(
    [
        "resume",
        "outdir",
        "ranks",
        "group",
        "threads",
        "raster",
        "timeout_s",
        "device",
        "window",
        "checkpoint_every_s",
        "batch_slots",
        "compile",
        "attention_slicing",
        "nonfinite",
        "turntable_frames",
        "turntable_size",
        "fps",
        "mesh",
        "mesh_resolution",
        "mesh_faces",
        "texture_size",
        "bake_views",
        "bake_size",
        *SECOND_STAGE,
    ]
)


def given_bytes(config: Config) -> bytes:
    """The input picture's; none for a prompt alone, which is an option."""
    return Path(config.input).read_bytes() if config.input else b""


def _meant(folder: str, shipped: Path) -> str:
    return "pocket" if folder == str(shipped) else folder


def fingerprint(config: Config, picture: bytes, also: Iterable[str] = ()) -> str:
    """A hash of every option that shapes the Gaussians, of those named, and of the input's bytes.

    A prior of auto counts as what it means on this machine today: a run does not go on under another one.
    """
    priors = {
        "prior": _meant(find_prior(config.prior), POCKET) if config.input else "",
        "text_prior": _meant(find_text_prior(config.text_prior), POCKET_TEXT) if config.prompt else "",
    }
    shaping = {
        key: value
        for key, value in asdict(config).items()
        if key not in FREE.difference(also) and key not in ("input", "name")
    } | priors
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode() + picture).hexdigest()[:16]


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
