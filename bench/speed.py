"""Wall clock of the real command, alternated in one run: `python -m bench.speed [--rounds 3] [key=value ...]`.

Serial on one core (a device here is one core), two ranks on two cores, and, for honesty, serial with two threads.
What is timed is the loop, as the run itself reports it: loading (parallel in the ranks), mesh and files are left
out. The median of the rounds counts. Both cores must be free. Prints a table, then one JSON object.
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
from gs_propeller.base.files import load_tensors
from gs_propeller.scenes.gaussians.state import State
from guidance.pocket.data import held_out

WAYS = {
    "serial, one core": ["ranks=1", "window=1", "threads=1"],
    "2 ranks on 2 cores": ["ranks=2", "threads=1"],
    "serial, 2 threads": ["ranks=1", "window=1", "threads=2"],
}
# The smallest mesh and no pictures: they come after the loop.
BRIEF = ["mesh_resolution=32", "mesh_faces=200", "texture_size=64", "bake_views=4", "bake_size=64",
         "turntable_frames=0", "device=cpu", "prior=pocket", "resume=false"]  # fmt: skip


def timed(words: list[str], outdir: Path) -> tuple[float, int, State]:
    """(seconds in the loop, passes, the last state) of one run of the command."""
    command = [
        sys.executable,
        "main_propeller.py",
        "--config",
        "configs/image.yaml",
        *words,
        f"outdir={outdir}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    tensors, meta = load_tensors(next(outdir.glob("*/checkpoint.safetensors")))
    state = State.from_tensors({key[2:]: value for key, value in tensors.items() if key.startswith("0/")})
    return meta["elapsed_s"], meta["passes"], state


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("pairs", nargs="*", help="key=value")
    given = parser.parse_args()
    thing, pose = held_out(1)[0]
    case, console = Case(f"{thing.family}-{thing.seed}", thing, pose), Console(width=110)
    config = configured(case, {})
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    last: dict[str, tuple[int, State]] = {}
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / f"{case.name}.png"
        save_png(str(picture), case.picture())
        shared = [f"input={picture}", f"elevation={config.elevation}", *BRIEF, *given.pairs]
        for turn in range(given.rounds):
            for way, words in WAYS.items():
                spent_s, passes, state = timed([*shared, *words], Path(folder) / f"{turn}-{way}")
                seconds[way].append(spent_s)
                last[way] = passes, state
                console.print(f"round {turn + 1}, {way}: {spent_s:.1f} s, {passes} passes", highlight=False)
    middle = {way: statistics.median(values) for way, values in seconds.items()}
    table = Table(title=f"{case.name}, {config.steps} steps, {given.rounds} rounds")
    for heading in ("way", "median s", "all s", "passes", "novel dB", "input dB"):
        table.add_column(heading)
    for way, (passes, state) in last.items():
        novel, _, known = scored(case, config, state)
        spent = " ".join(f"{value:.1f}" for value in seconds[way])
        table.add_row(way, f"{middle[way]:.1f}", spent, f"{passes}", f"{novel:.2f}", f"{known:.2f}")
    console.print(table)
    one, two, threads = middle.values()
    figures = {
        "serial_1core_s": round(one, 2),
        "serial_2threads_s": round(threads, 2),
        "parallel_s": round(two, 2),
        "ratio": round(one / two, 3),
        "ratio_vs_2threads": round(threads / two, 3),
    }
    print(dumps(figures))


if __name__ == "__main__":
    main()
