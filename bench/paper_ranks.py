"""Table 2's speed-up, measured where two devices are: `python -m bench.paper_ranks [--systems a,b] [--share 5]`.

Each system of bench.paper by the real command, one sentence: serially on one rank, then at window 8 on two ranks, a
core each, one after the other. A fifth of each stage's steps, since it is the seconds of a step that are compared; the
loop's own seconds, as the runs report them: loading, mesh and files are left out. Both cores must be free. Prints a
table, then one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import paper
from bench.speed import SMALLEST, command
from gs_propeller.app.config import load, to_yaml
from gs_propeller.base.files import load_meta
from gs_propeller.solver.checkpoint import FILE

RANKS = {"serial": 1, "parallel": 2}


def shortened(system: str, share: int) -> tuple[tuple[str, object], ...]:
    """The options by which each stage has one in `share` of its steps."""
    base, _ = load(["--config", f"configs/{paper.SYSTEMS[system][0]}.yaml"])
    pairs: dict[str, object] = {"steps": max(1, base.steps // share)}
    if base.stages:
        stages = json.loads(base.stages)
        pairs["stages"] = [stage | {"steps": max(1, stage["steps"] // share)} for stage in stages]
    return tuple(pairs.items())


def timed(system: str, way: str, share: int) -> tuple[float, int]:
    """(seconds in the loops of all stages, their passes)."""
    with tempfile.TemporaryDirectory() as folder:
        config = paper.configured(paper.Job(0, system, way, pairs=shortened(system, share)), folder)
        options = Path(folder) / "options.yaml"
        options.write_text(to_yaml(config), encoding="utf-8")
        command(["--config", str(options), *SMALLEST, f"ranks={RANKS[way]}", "threads=1"])
        metas = [load_meta(file) for file in Path(folder).rglob(FILE)]
    return sum(meta["elapsed_s"] for meta in metas), sum(meta["passes"] for meta in metas)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", default=",".join(paper.SYSTEMS), help="of Table 2, with commas between")
    parser.add_argument("--share", type=int, default=5, help="one in so many of the steps")
    given = parser.parse_args(words)
    table = Table(title="one rank, serial, against two ranks at window 8")
    for heading in ("system", "serial s", "two ranks s", "passes", "speed-up"):
        table.add_column(heading)
    found: dict[str, float] = {}
    for system in paper.named(given.systems, parser):
        (alone_s, _), (both_s, passes) = (timed(system, way, given.share) for way in RANKS)
        found[system] = round(alone_s / both_s, 3)
        table.add_row(system, f"{alone_s:.1f}", f"{both_s:.1f}", f"{passes}", f"{found[system]:.2f}")
    Console(width=110).print(table)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
