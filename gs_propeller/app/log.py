"""What the command says of a run: one live line, metrics as JSON lines, a table at the end."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gs_propeller.app.config import help_text
from gs_propeller.app.events import (
    Audience,
    Event,
    FilesWritten,
    Listener,
    Note,
    PassDone,
    PriorFound,
    Say,
    StageBegun,
    StageEnded,
)
from gs_propeller.base.errors import unwritten
from gs_propeller.solver.picard import Report

if TYPE_CHECKING:
    from torch import Tensor

PLAIN_EVERY_S = 10.0  # between lines where no terminal shows a live one


def quiet_libraries() -> None:
    """Silences the libraries' bars and notices; errors still come through."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("transformers", "diffusers", "huggingface_hub", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


@contextmanager
def said_if_long(line: str, say: Say, after_s: float = 2.0) -> Iterator[None]:
    """Says the line, from a thread of its own, if what is done within takes longer than that."""
    timer = threading.Timer(after_s, say, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Log:
    """The command's listener: notes and a live line on standard error, a table on standard output."""

    def __init__(self) -> None:
        self.progress = Progress("", 0, 0, None)

    def __call__(self, event: Event) -> None:
        match event:
            case Note(line):
                say_note(line)
            case PriorFound(line):
                print(f"prior: {line}", file=sys.stderr, flush=True)
            case StageBegun(stage, step, steps):
                self.progress = Progress(stage, steps, step, sys.stderr)
            case PassDone(step=step, shown=shown):
                self.progress.update(step, **shown)
            case StageEnded(how=how):
                self.progress.close(how != "broken off")
            case FilesWritten(title, files, facts):
                summary(title, [*facts, *((kind, str(path)) for kind, path in files.items())])


def audience_of(quiet: bool, on_event: Listener | None, stop: threading.Event | None) -> Audience:
    """The command's log unless quiet, and whoever else listens."""
    listeners: list[Listener] = [] if quiet else [Log()]
    return Audience(*listeners, *(() if on_event is None else (on_event,)), stop=stop)


def say_note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


class Progress:
    """The live line of one stage, a context manager. stream None: silent."""

    def __init__(self, title: str, steps: int, start: int = 0, stream: Any = sys.stderr) -> None:
        self.title, self.steps, self.start, self.stream = title, steps, start, stream
        self.live = stream is not None and stream.isatty()
        self.begun_s = time.monotonic()
        self.said_s = -PLAIN_EVERY_S
        self.line = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(kind is None)

    def close(self, whole: bool) -> None:
        """The last line stays. whole: nothing went wrong."""
        if self.live and self.line:
            print(file=self.stream)
        elif self.stream is not None and self.line and whole:
            print(self.line, file=self.stream, flush=True)

    def update(self, step: int, **values: str) -> None:
        """step: done so far; values: shown as `key value` in their order."""
        done = max(step - self.start, 1e-9)
        pace_s = (time.monotonic() - self.begun_s) / done
        left_s = int(pace_s * max(self.steps - step, 0))
        parts = [f"{self.title} {step}/{self.steps}", *(f"{key} {value}" for key, value in values.items())]
        parts += [f"{pace_s:.2f} s/step", f"ETA {left_s // 60}:{left_s % 60:02d}"]
        self.line = " | ".join(parts)
        now = time.monotonic()
        if self.live:
            print(f"\r\x1b[2K{self.line}", end="", file=self.stream, flush=True)
        elif self.stream is not None and now - self.said_s >= PLAIN_EVERY_S:
            self.said_s = now
            print(self.line, file=self.stream, flush=True)


class Metrics:
    """JSON lines; on resume, the lines of steps that are done again go away. Raises UserError."""

    def __init__(self, path: Path, start: int = 0) -> None:
        from gs_propeller.base.files import atomic  # it loads torch, and --help needs none

        self.path, self.skipped = path, 0
        try:
            kept = []
            if start > 0 and path.is_file():
                kept = [line for line in path.read_text().splitlines() if _step_of(line) < start]
            self.skipped = sum(_is_skipped(json.loads(line)) for line in kept)
            with atomic(path) as temporary:  # a full disk keeps the lines that are there
                temporary.write_text("".join(f"{line}\n" for line in kept))
            self.file = path.open("a")
        except OSError as error:
            raise unwritten(path, error) from error

    def write(self, **values: Any) -> None:
        try:
            self.file.write(json.dumps(values) + "\n")
            self.file.flush()
        except OSError as error:
            raise unwritten(self.path, error) from error

    def write_pass(
        self,
        report: Report[Any],
        losses: Sequence[Tensor],
        names: Sequence[str],
        passes: int,
        gaussians: int,
        elapsed_s: float,
        every: int = 1,
        counted: str = "N",
    ) -> dict[str, str]:
        """A line for each step that a pass accepted; returns what the live line shows of the last. A loss that is no
        number is one of a step that was skipped; it is written as null, and such steps are counted in `skipped`.

        losses: [L] of each accepted step, named by `names`; they leave the device here, once a pass. every:
        updates that a step of the report stands for. counted: what the live line calls `gaussians`, which are other
        numbers where the scene is another.
        """
        import torch  # --help needs none

        table = torch.stack(list(losses)).tolist()
        shared = {
            "pass": passes,
            "threshold": report.threshold,
            "gaussians": gaussians,
            "elapsed_s": elapsed_s,
        }
        for k, row in enumerate(table):
            values = {
                name: value if math.isfinite(value) else None for name, value in zip(names, row, strict=True)
            }
            self.skipped += _is_skipped(values)
            error = report.errors[k] if k < len(report.errors) else 0.0
            self.write(step=(report.start + k) * every, error=error, **shared, **values)
        shown = {"pass": f"{passes}", "accepted": f"{report.accepted}/{report.slots}"}
        shown["error"] = f"{max(report.errors, default=0.0):.1e}/{report.threshold:.1e}"
        shown |= {
            name: f"{value:.3g}"
            for name, value in zip(names, table[-1], strict=True)
            if value and math.isfinite(value)
        }
        if self.skipped:
            shown["skipped"] = f"{self.skipped}"
        return shown | {counted: f"{gaussians}"}

    def close(self) -> None:
        """A line that found no room is tried once more."""
        try:
            self.file.close()
        except OSError as error:
            raise unwritten(self.path, error) from error


def _is_skipped(values: dict[str, Any]) -> bool:
    return None in values.values()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a torn last line, or one that is not ours


def summary(title: str, rows: Sequence[tuple[str, str]], stream: Any = sys.stdout) -> None:
    """A table of two columns, as wide as the terminal; a path is in one line where there is none."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, escape(value))
    console = Console(file=stream)
    if not console.is_terminal:
        console.width = max(
            console.width, console.measure(table, options=console.options.update(width=9999)).maximum
        )
    console.print(table)


def show_help(program: str) -> None:
    """Every option with its default, unit and meaning."""
    console = Console(width=max(110, Console().width))
    console.print(
        f"python {program} --config configs/image.yaml input=PICTURE \\[key=value ...] \\[--dry-run]\n"
    )
    table = Table("option", "default", "unit", "what it is", box=None)
    section = ""
    for where, name, default, unit, remark in help_text():
        if where != section:
            table.add_row(f"[bold]{where}[/bold]")
            section = where
        table.add_row(f"  {name}", default, unit, remark.replace("[", r"\["))
    console.print(table)
