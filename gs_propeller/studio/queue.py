"""The server's orders: a bounded line of them, one worker, each order in a folder of its own that goes when it ends.

An order is waiting, working, and then done, failed or cancelled; results are kept for a while, and so many at most.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gs_propeller.app.events import Event, Note, PassDone, PriorFound
from gs_propeller.base.errors import UserError

PICTURE = "picture"  # the file's name in an order's folder
PREFIX = "propeller-order-"
State = Literal["waiting", "working", "done", "failed", "cancelled"]
# make(options, folder, listener) -> the .glb; what the listener raises ends it. The picture, if any, is folder/PICTURE.
Make = Callable[[Mapping[str, Any], Path, Callable[[Event], None]], bytes]


class Full(Exception):
    """The line is as long as it may be."""


class _Cancelled(Exception):
    """Raised in the worker, out of a listener."""


class _TooLong(Exception):
    """The same, past the time limit."""


@dataclass
class Order:
    """id: a word that nobody guesses. blame: of a failed one, whose fault it is: the input's, the time limit's or the
    program's. step: updates done, of steps, 0 before they begin. notes: lines that whoever ordered should know. ended:
    set once nothing more happens to it."""

    id: str
    options: Mapping[str, Any]
    folder: Path
    state: State = "waiting"
    step: int = 0
    steps: int = 0
    notes: list[str] = field(default_factory=list)
    error: str = ""
    blame: Literal["", "input", "time", "program"] = ""
    glb: bytes = b""
    ended_s: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def told(self, line: str) -> str:
        """A line as whoever ordered may read it: without the folder."""
        return line.replace(f"{self.folder}/", "")


class Queue:
    """Orders in the order of their coming, one at a time; a context manager that ends them all.

    waiting: most orders in the line besides the one at work. limit_s: longest time at work, looked at after every pass.
    kept, keep_s: how many ended orders are remembered, and for how long.
    """

    def __init__(
        self, make: Make, waiting: int = 16, limit_s: float = 600.0, kept: int = 32, keep_s: float = 900.0
    ) -> None:
        self.make, self.most, self.limit_s, self.kept, self.keep_s = make, waiting, limit_s, kept, keep_s
        self._line: OrderedDict[str, Order] = OrderedDict()  # those that wait
        self._orders: OrderedDict[str, Order] = OrderedDict()  # all that are remembered
        self._changed, self._closed = threading.Condition(), False
        self._worker = threading.Thread(target=self._work, name="propeller-orders", daemon=True)

    def __enter__(self) -> Queue:
        self._worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            for order in self._orders.values():
                self._cancel(order)
            self._changed.notify_all()
        self._worker.join()

    def submit(self, options: Mapping[str, Any], picture: Path | None = None) -> Order:
        """Puts it in the line; the picture's file is moved. Raises Full."""
        with self._changed:
            if self._closed or len(self._line) >= self.most:
                raise Full(f"{len(self._line)} orders are waiting, and no more may; try again later")
            self._forget()
            order = Order(secrets.token_urlsafe(12), options, Path(tempfile.mkdtemp(prefix=PREFIX)))
            if picture is not None:
                shutil.move(picture, order.folder / PICTURE)
            self._line[order.id] = self._orders[order.id] = order
            self._changed.notify_all()
        return order

    def find(self, id: str) -> Order | None:
        with self._changed:
            self._forget()
            return self._orders.get(id)

    def ahead(self, order: Order) -> int:
        """Orders that come before it, the one at work included."""
        with self._changed:
            at_work = sum(one.state == "working" for one in self._orders.values())
            return [*self._line].index(order.id) + at_work if order.id in self._line else 0

    def cancel(self, order: Order) -> None:
        """One that waits ends at once, the one at work after its pass, one that has ended is forgotten."""
        with self._changed:
            if order.ended.is_set():
                self._orders.pop(order.id, None)
            else:
                self._cancel(order)

    def _cancel(self, order: Order) -> None:
        order.stop.set()
        if self._line.pop(order.id, None) is not None:
            self._end(order, "cancelled")

    def _end(self, order: Order, state: State) -> None:
        shutil.rmtree(order.folder, ignore_errors=True)
        order.state, order.ended_s = state, time.monotonic()
        order.ended.set()

    def _forget(self) -> None:
        now = time.monotonic()
        ended = [order for order in self._orders.values() if order.ended.is_set()]
        for order in ended:
            if len(ended) > self.kept or now - order.ended_s > self.keep_s:
                del self._orders[order.id]
                ended = ended[1:]

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._line)
                if self._closed:
                    return
                order = self._line.popitem(last=False)[1]
                order.state = "working"
            state = self._made(order)
            with self._changed:
                self._end(order, state)
                self._forget()

    def _made(self, order: Order) -> State:
        until = time.monotonic() + self.limit_s

        def listen(event: Event) -> None:
            if order.stop.is_set():
                raise _Cancelled
            if time.monotonic() > until:
                raise _TooLong
            if isinstance(event, PassDone):
                order.step, order.steps = event.step, event.steps
            elif isinstance(event, Note | PriorFound):
                order.notes.append(order.told(event.line))

        try:
            order.glb = self.make(order.options, order.folder, listen)
        except _Cancelled:
            return "cancelled"
        except _TooLong:
            reached = f"step {order.step} of {order.steps}"
            order.blame, order.error = (
                "time",
                f"not done in {self.limit_s:g} s, at {reached}; ask for fewer steps",
            )
        except UserError as error:
            order.blame, order.error = "input", order.told(str(error))
        except Exception as error:  # whatever it is, the next order must be served
            logging.getLogger(__name__).exception("order %s", order.id)
            order.blame, order.error = "program", f"{type(error).__name__}: {error}".splitlines()[0]
        return "failed" if order.blame else "done"
