"""Kills at random moments: `python -m bench.faults [--runs 20] [--seed 0]`.

The real command on two ranks, with a tiny random prior and the shipped threshold, checkpoints at every
pass. Each run has a process killed (SIGKILL), a rank or the launcher, at a moment drawn over the whole of the loop;
it must end in bounded time, leave no process behind, name the rank that died, and the same command again must go on
from the checkpoint, with the log's lines before it as they were, times and all, and end in the state of the
undisturbed run, in every bit. Every fourth run is torchrun's with --max-restarts, which must
carry on by itself. Prints a table, then one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gs_propeller.base.errors import UserError
from gs_propeller.base.files import load_tensors
from tests import tiny_prior

NOTICED_WITHIN_S = 60.0
OPTIONS = ["steps=150", "num_points=150", "batch_size=2", "reference_size=32", "densify_from=2", "densify_every=10",
           "densify_until=120", "opacity_reset_every=45", "densify_grad_threshold=0.001", "min_opacity=0.095",
           "max_gaussians=500", "mesh_resolution=32", "mesh_faces=400", "texture_size=64", "bake_views=4",
           "bake_size=64", "turntable_frames=0", "turntable_size=32", "threads=1", "device=cpu", "window=4",
           "checkpoint_every_s=0"]  # fmt: skip
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Outcome:
    """What became of one run. started: the step that the checkpoint stood at when the kill came."""

    victim: str
    started: int
    noticed_s: float
    resumed: bool
    identical: bool
    remark: str


class Bench:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.prior = tiny_prior.write(folder / "prior")
        rgba = np.zeros((64, 64, 4), dtype=np.uint8)
        rgba[10:54, 20:50] = np.random.default_rng(seed).integers(0, 255, (44, 30, 4))
        rgba[10:54, 20:50, 3] = 255
        self.picture = folder / "thing.png"
        Image.fromarray(rgba).save(self.picture)
        outdir, begun_s = folder / "undisturbed", time.monotonic()
        with self.start(outdir) as process:
            process.communicate()
        if process.returncode:
            raise SystemExit("the undisturbed run failed")
        self.total_s = time.monotonic() - begun_s
        self.truth, _ = state_of(outdir)
        lines = (outdir / "thing" / "metrics.jsonl").read_text().splitlines()
        first_s, last_s = (json.loads(line)["elapsed_s"] for line in (lines[0], lines[-1]))
        self.span_s = last_s - first_s  # of the loop after its first pass

    def command(self, outdir: Path) -> list[str]:
        words = ["main_propeller.py", "--config", "configs/image.yaml", f"prior={self.prior}"]
        return [*words, f"input={self.picture}", f"outdir={outdir}", *OPTIONS]

    def start(self, outdir: Path, restarts: bool = False) -> subprocess.Popen[str]:
        if restarts:
            run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
            command = [sys.executable, *run, *self.command(outdir)]
        else:
            command = [sys.executable, *self.command(outdir), "ranks=2"]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )

    def disturbed(self, number: int) -> Outcome:
        """One run with one kill; too late ones are repeated."""
        restarts = number % 4 == 3
        for attempt in range(10):
            outdir = self.folder / f"run-{number}-{attempt}"
            with self.start(outdir, restarts) as process:
                _until_loop(outdir, process)
                time.sleep(self.rng.random() * self.span_s)
                ranks = ranks_of(process.pid)
                victims = [f"rank {rank}" for rank in ranks] + ([] if restarts else ["launcher"])
                if process.poll() is not None or len(ranks) < 2:
                    process.communicate()
                    continue  # the loop had ended
                victim = self.rng.choice(sorted(victims))
                started, before = state_of(outdir)[1], log_of(outdir)
                try:
                    os.kill(process.pid if victim == "launcher" else ranks[int(victim[-1])], signal.SIGKILL)
                except ProcessLookupError:
                    process.communicate()
                    continue
                before = before[: max(started, 0)]
                return self.judged(process, outdir, victim, started, before, list(ranks.values()), restarts)
        raise SystemExit("no kill came in time")

    def judged(
        self,
        process: subprocess.Popen[str],
        outdir: Path,
        victim: str,
        started: int,
        before: list[str],
        pids: list[int],
        restarts: bool,
    ) -> Outcome:
        killed_s, remark = time.monotonic(), ""
        try:
            _, said = process.communicate(timeout=NOTICED_WITHIN_S + (2 * self.total_s if restarts else 0))
        except subprocess.TimeoutExpired:
            process.kill()
            return Outcome(victim, started, NOTICED_WITHIN_S, False, False, "hung")
        while any(_alive(pid) for pid in pids) and time.monotonic() - killed_s < NOTICED_WITHIN_S:
            time.sleep(0.05)
        noticed_s = time.monotonic() - killed_s
        if any(_alive(pid) for pid in pids):
            return Outcome(victim, started, noticed_s, False, False, "a process was left behind")
        if restarts:
            resumed = process.returncode == 0
            remark = "by itself" if resumed else said[-300:]
        else:
            if victim != "launcher" and (victim not in said or str(outdir) not in said):
                remark = "rank or checkpoint not named"
            if process.returncode == 0:
                remark = "exit code 0 after a kill"
            with self.start(outdir) as again:
                _, said = again.communicate()
            resumed = again.returncode == 0 and not remark
            remark = remark or ("" if resumed else said[-300:])
        if resumed and log_of(outdir)[: len(before)] != before:
            resumed, remark = False, "started anew"
        same = resumed and _identical(self.truth, state_of(outdir)[0])
        return Outcome(victim, started, noticed_s, resumed, same, remark)


def log_of(outdir: Path) -> list[str]:
    """A line for each step that is done, with the seconds that it was done at."""
    path = outdir / "thing" / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def state_of(outdir: Path) -> tuple[dict[str, Tensor], int]:
    """(the exact state's tensors, its step) of the checkpoint; nothing and 0 where there is none."""
    path = outdir / "thing" / "checkpoint.safetensors"
    if not path.exists():
        return {}, 0
    try:
        tensors, meta = load_tensors(path)
    except UserError:
        return {}, -1
    return {key: value for key, value in tensors.items() if key.startswith("0/")}, int(meta["start"])


def ranks_of(launcher: int) -> dict[int, int]:
    """Process ids of the launcher's ranks, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if (
                folder.name.isdigit()
                and int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == launcher
            ):
                words = (folder / "environ").read_bytes().split(b"\0")
                ranks = [word[5:] for word in words if word.startswith(b"RANK=")]
                if ranks:
                    found[int(ranks[0])] = int(folder.name)
        except (OSError, IndexError):
            continue  # it ended while we looked
    return found


def _until_loop(outdir: Path, process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    """Waits for the first pass."""
    metrics, until = outdir / "thing" / "metrics.jsonl", time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        if metrics.exists() and metrics.stat().st_size > 0:
            return
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    console, table = Console(width=110), Table(title="kills")
    for heading in ("run", "killed", "checkpoint at step", "ended after s", "resumed", "identical", ""):
        table.add_column(heading)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.seed)
        outcomes = []
        for number in range(given.runs):
            one = bench.disturbed(number)
            outcomes.append(one)
            cells = (
                f"{number}",
                one.victim,
                f"{one.started}",
                f"{one.noticed_s:.1f}",
                f"{one.resumed}",
                f"{one.identical}",
            )
            table.add_row(*cells, one.remark)
            console.print(" | ".join((*cells, one.remark)), highlight=False)
    console.print(table)
    figures = {
        "kills": len(outcomes),
        "resumed": sum(one.resumed for one in outcomes),
        "identical": sum(one.identical for one in outcomes),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
