"""What the two commands share: arguments, help, the launch of local ranks, exit codes.

Nothing heavy is imported before the arguments are read: a wrong one is answered at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gs_propeller.app.config import Config, load, to_yaml
from gs_propeller.app.log import say_note, show_help
from gs_propeller.app.plan import stages_of, unread
from gs_propeller.base.errors import Interrupted, RankError, UserError

INTERRUPTED = 130
FULL = (
    "the GPU's memory is full; fewer views (batch_size), batch_slots=1, attention_slicing=on or precision=float16 need "
    "less, device=cpu none"
)


def run(
    program: str, argv: Sequence[str] | None, check: Callable[[Config], None], work: Callable[[Config], int],
    splats: bool = True,
) -> int:  # fmt: skip
    """Runs `work` here, or in as many local ranks as the configuration means; returns the exit code.

    program: the script's path; argv: its arguments, None: the process's own. check(config) raises UserError before
    ranks are launched. splats: the work draws Gaussians. 0: done; 2: bad input; 3: a rank was lost, a gradient was not
    finite, or the GPU's memory was full; 130: Ctrl-C or TERM.
    """
    # Read when OpenMP is loaded: threads that wait sleep. Spinning, they take the cores from whatever else is at work,
    # and two threads on two busy cores are many times slower than one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    say_all_letters()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        config, flags = load(words)
        if flags.help:
            show_help(Path(program).name)
        elif flags.dry_run:
            print(to_yaml(config), end="")
        else:
            notes = unread(stages_of(config), flags.given)
            return _done([str(Path(program).resolve()), *words], config, check, work, splats, notes)
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, FloatingPointError) as error:
        full = type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported for its name
        if not (full or isinstance(error, (RankError, FloatingPointError))):
            raise
        single = not config.input or Path(config.input).is_file()
        folder = config.run_folder if single else Path(config.outdir)
        print(f"error: {FULL if full else error}", file=sys.stderr)
        if any(folder.glob("**/*checkpoint.safetensors")):
            print(
                f"the last checkpoint is kept in {folder}: the same command goes on from it", file=sys.stderr
            )
        return 3
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return INTERRUPTED
    return 0


def say_all_letters() -> None:
    """What the encoding of standard output and error has no letter for is shown as a code, instead of ending the
    program: a path in Cyrillic on a console or in a log of Windows' western letters."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _done(
    words: Sequence[str],
    config: Config,
    check: Callable[[Config], None],
    work: Callable[[Config], int],
    splats: bool,
    notes: Sequence[str],
) -> int:
    from gs_propeller.app.devices import before_ranks, rank_count
    from gs_propeller.solver.checkpoint import terms_as_interrupts
    from gs_propeller.solver.launcher import launch, under_launcher

    if under_launcher() or (ranks := rank_count(config, splats)) == 1:
        if int(os.environ.get("RANK", 0)) == 0:
            for note in notes:
                say_note(note)
        with terms_as_interrupts():
            return work(config)
    check(config)
    before_ranks(config, splats)
    return launch(words, ranks, config.threads)
