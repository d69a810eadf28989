"""Wall clock of the real command, alternated in one run: `python -m bench.speed [--rounds 3] [key=value ...]`.

A held-out object serially on one core (a device here is one core), on two ranks on two cores, and, for honesty,
serially with two threads. Then the main job, data/cat.png with two threads: as shipped, and as it was, one update an
evaluation and gradients travelling; and the second stage likewise (bench/second.py). What is timed is the loop, as
the run itself reports it: loading, mesh and files are left out. The median of the rounds counts. Both cores must be
free. Prints tables, then one JSON object.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from json import dumps
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.solving import configured, scored
from bench.truth import Case, save_png
from gs_propeller.base.files import load_meta
from gs_propeller.scenes.gaussians.state import State
from gs_propeller.solver import checkpoint
from guidance.pocket.data import held_out

WAYS = {
    "serial, one core": ["ranks=1", "window=1", "threads=1"],
    "2 ranks on 2 cores": ["ranks=2", "threads=1"],
    "serial, 2 threads": ["ranks=1", "window=1", "threads=2"],
}
CAT = ["input=data/cat.png", "ranks=1", "window=1", "threads=2"]
BEFORE = ["updates_per_evaluation=1", "travels=gradients"]
# The smallest mesh and no pictures: they come after the loop.
SMALLEST = ["mesh_resolution=32", "mesh_faces=200", "texture_size=64", "bake_views=4", "bake_size=64",
            "turntable_frames=0", "device=cpu"]  # fmt: skip
BRIEF = [*SMALLEST, "prior=pocket", "resume=false"]


def command(words: list[str]) -> None:
    """Runs the command to its end. Raises SystemExit where it fails."""
    line = [sys.executable, "main_propeller.py", *words]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} failed:\n{done.stderr[-2000:]}")


def timed(words: list[str], outdir: Path) -> tuple[float, int, State]:
    """(seconds in the loop, passes, the last state) of one run of the command."""
    command(["--config", "configs/image.yaml", *words, f"outdir={outdir}"])
    file = next(outdir.glob(f"*/{checkpoint.FILE}"))
    meta = load_meta(file)
    return meta["elapsed_s"], meta["passes"], checkpoint.first_state(file, State.from_tensors)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--parts", nargs="*", choices=("ranks", "job", "stage2"), default=("ranks", "job", "stage2")
    )
    parser.add_argument("pairs", nargs="*", help="key=value")
    given = parser.parse_args()
    figures: dict[str, float] = {}
    if "ranks" in given.parts:
        figures |= on_ranks(given.rounds, given.pairs)
    if "job" in given.parts:
        figures |= main_job(given.rounds, given.pairs)
    if "stage2" in given.parts:
        from bench import second

        figures |= second.timed()
    print(dumps(figures))


def on_ranks(rounds: int, pairs: list[str]) -> dict[str, float]:
    """One held-out object by WAYS."""
    thing, pose = held_out(1)[0]
    case, console = Case(f"{thing.family}-{thing.seed}", thing, pose), Console(width=110)
    config = configured(case, {})
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / f"{case.name}.png"
        save_png(str(picture), case.picture())
        shared = [f"input={picture}", f"elevation={config.elevation}", *BRIEF, *pairs]
        seconds, last = alternated(
            {way: [*shared, *words] for way, words in WAYS.items()}, rounds, Path(folder)
        )
    table = Table(title=f"{case.name}, {config.steps} steps, {rounds} rounds")
    for heading in ("way", "median s", "all s", "passes", "novel dB", "input dB"):
        table.add_column(heading)
    for way, (passes, state) in last.items():
        novel, _, known = scored(case, config, state)
        spent = " ".join(f"{value:.1f}" for value in seconds[way])
        table.add_row(
            way, f"{statistics.median(seconds[way]):.1f}", spent, f"{passes}", f"{novel:.2f}", f"{known:.2f}"
        )
    console.print(table)
    one, two, threads = (statistics.median(values) for values in seconds.values())
    return {
        "serial_1core_s": round(one, 2), "serial_2threads_s": round(threads, 2), "parallel_s": round(two, 2),
        "ratio": round(one / two, 3), "ratio_vs_2threads": round(threads / two, 3),
    }  # fmt: skip


def main_job(rounds: int, pairs: list[str]) -> dict[str, float]:
    """The cat as shipped and as before."""
    shared = [*CAT, *BRIEF, *pairs]
    with tempfile.TemporaryDirectory() as folder:
        ways = {"shipped": shared, "before": [*shared, *BEFORE]}
        seconds, last = alternated(ways, rounds, Path(folder))
    after, before = (statistics.median(values) for values in seconds.values())
    table = Table(title=f"data/cat.png, two threads, {rounds} rounds")
    for heading in ("way", "median s", "all s", "passes"):
        table.add_column(heading)
    for way, values in seconds.items():
        spent = " ".join(f"{value:.1f}" for value in values)
        table.add_row(way, f"{statistics.median(values):.1f}", spent, f"{last[way][0]}")
    Console(width=110).print(table)
    return {
        "main_job_s": round(after, 2),
        "before_s": round(before, 2),
        "main_job_ratio": round(after / before, 3),
    }


def alternated(
    ways: dict[str, list[str]], rounds: int, folder: Path
) -> tuple[dict[str, list[float]], dict[str, tuple[int, State]]]:
    """(seconds in the loop of every round, passes and the last state) of each way, in turn."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    last: dict[str, tuple[int, State]] = {}
    for turn in range(rounds):
        for way, words in ways.items():
            spent_s, passes, state = timed(words, folder / f"{turn}-{way}")
            seconds[way].append(spent_s)
            last[way] = passes, state
            print(f"round {turn + 1}, {way}: {spent_s:.1f} s, {passes} passes", flush=True)
    return seconds, last


if __name__ == "__main__":
    main()
