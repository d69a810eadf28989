"""A run as a stream of events: what the command's log, a page, a server or Python's own on_event= listen to.

V views, S their side in pixels. Events are told on rank 0 alone, in the order in which things happen, by the thread
that works: a listener that takes its time holds up the run, and what it raises ends it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # --help needs none
    from torch import Tensor

    from gs_propeller.pictures.picture import Picture

Say = Callable[[str], None]  # takes a line
How = Literal["finished", "stopped", "broken off"]


@dataclass(frozen=True)
class Note:
    """Something that the user should know, a line; it may come from another thread (that a step takes long)."""

    line: str


@dataclass(frozen=True)
class PriorFound:
    """Which prior auto took, a line."""

    line: str


@dataclass(frozen=True)
class CutOut:
    """The picture as the program sees it; `picture.rgba` has its cut-out for alpha."""

    picture: Picture


@dataclass(frozen=True)
class StageBegun:
    """The first pass comes. stage: "distil" or "refine"; step: where it goes on from, of how many."""

    stage: str
    step: int
    steps: int


@dataclass(frozen=True)
class PassDone:
    """A pass of the solver. step: done so far, of how many; accepted: of this pass, of so many slots; seconds: in the
    loop, earlier calls included; shown: what the live line says, by name. draw(azimuths_deg [V], S) -> [V, 3, S, S] in
    0..1, the scene of this moment at the input's elevation: to be called within the listener, a render a view."""

    stage: str
    step: int
    steps: int
    passes: int
    accepted: int
    slots: int
    seconds: float
    shown: Mapping[str, str]
    draw: Callable[[Sequence[float], int], Tensor]


@dataclass(frozen=True)
class StageEnded:
    """However the stage ended: all steps done, a listener's stop, or an interruption or error that comes next."""

    stage: str
    step: int
    steps: int
    how: How


@dataclass(frozen=True)
class FilesWritten:
    """The result is there: its files by kind, and what a summary says of it."""

    title: str
    files: Mapping[str, Path]
    facts: Sequence[tuple[str, str]]


Event = Note | PriorFound | CutOut | StageBegun | PassDone | StageEnded | FilesWritten
Listener = Callable[[Event], None]


class Audience:
    """Who listens to a run, and whether one of them wants it to stop: after the pass that is under way the run then
    makes mesh, texture and files of the last accepted state. The same command again goes on from there.

    stop: from any thread; None: nobody will.
    """

    def __init__(self, *listeners: Listener, stop: threading.Event | None = None) -> None:
        self.listeners, self.stop = listeners, stop or threading.Event()

    def tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)

    def note(self, line: str) -> None:
        self.tell(Note(line))

    def prior_found(self, line: str) -> None:
        self.tell(PriorFound(line))


NOBODY = Audience()
