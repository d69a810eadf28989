"""Wall clock of the loop on 2 to 64 devices: `python -m bench.scaling [--jobs 1]`.

Modelled (bench/model.py) from what is measured here: the seconds of a drift, of a roll-out step, of a guess, of a
message to a rank and back, and the steps that real runs with a window accepted, pass by pass. The model is first held
against a measured run on two ranks (its drift then as slow as it is here with both cores busy). Then the same at the
paper's cost ratio: DreamGaussian with 16 views a step on an A100, 500 steps in 700 s (Table 2). What a roll-out step
costs on such a GPU has not been measured: rows for several values, and the headline's, ROLL_OUT_GPU_S, is an estimate.
Prints tables, draws a plot, ends with a JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.fidelity import finished, job, weights_mark
from bench.model import ROLL_OUT_GPU_S, Costs, loop_s, serial_s
from bench.solving import Setup, configured, prepared
from bench.speed import BRIEF, timed
from bench.truth import Case, save_png
from gs_propeller.base.processes import end_with_parent
from gs_propeller.distil.pull import Pull
from gs_propeller.scenes.gaussians.raster.cpu import set_threads
from gs_propeller.scenes.gaussians.state import Gaussians, init_ball
from gs_propeller.solver.launcher import launch
from gs_propeller.solver.picard import advance, init
from gs_propeller.solver.ranks import Ranks
from guidance.pocket.data import held_out

PAPERS_LOOP: dict[str, object] = {"updates_per_evaluation": 1}
DEVICES = (2, 4, 8, 16, 32, 64)
PAPER_STEP_S = 700.0 / 500.0  # DreamGaussian, batch 16, A100: Table 2's runtime over its 500 steps
PAPER_SPEEDUP_AT_8 = 4.67  # Table 2, window 7
ROLL_OUT_ROWS = (0.003, 0.010, 0.030, 0.100)
PICTURES_MB = 2 * 16 * 3 * 256 * 256 * 4 / 1e6  # a pull and the renders it was taken at
HOST_MB_S = 5000.0  # through the host's memory, by gloo
# four rounds of drifts a pass where rank 0 only rolls out, 64 slots at most: each roll-out hides behind the next drifts
WINDOWS = {2: 2, 4: 4, 8: 32, 16: 64, 32: 64, 64: 64}


def middle(call: Callable[[], object], repeats: int) -> float:
    call()
    spent = []
    for _ in range(repeats):
        begun_s = time.perf_counter()
        call()
        spent.append(time.perf_counter() - begun_s)
    return statistics.median(spent)


def costs_of(setup: Setup, message: float, repeats: int = 15) -> Costs:
    """At a state a few passes into the run, one thread."""
    settings = replace(setup.settings, window=4)
    window = init(setup.first(), setup.problem, settings)
    for _ in range(3):
        window, _ = advance(window, setup.problem, settings)
    state, step, problem = window.states[0], window.start, setup.problem
    (drift,) = problem.evaluate([state], [step])
    assert problem.coast is not None and problem.mismatch is not None
    guess, apart = problem.coast, problem.mismatch
    return Costs(
        drift=middle(lambda: list(problem.evaluate([state], [step])), repeats),
        roll_out=middle(lambda: (apart(state, drift), problem.update(state, drift)), repeats),
        guess=middle(lambda: guess(state), repeats),
        message=message,
    )


def nothing(params: Sequence[Gaussians], steps: Sequence[int]) -> list[Pull]:
    """An answer of the shipped settings' size."""
    picture, one = torch.zeros(4, 3, 64, 64), torch.zeros(1)
    return [Pull(picture, picture, torch.zeros(4), torch.zeros(4), one) for _ in params]


def message_s(rows: int) -> float:
    """Seconds for a state of so many Gaussians to another rank and its answer back, packing included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seconds"
        code = launch([__file__, "messages", str(rows), str(path)], ranks=2, threads=1)
        if code:
            raise SystemExit(f"the ranks ended with exit code {code}")
        return float(path.read_text())


def exchange(rows: int, path: Path) -> None:
    """A rank of message_s."""
    torch.set_num_threads(1)
    state = init_ball(rows, 0.5, 0, 0)
    with Ranks(timeout_s=60.0, kinds=(Gaussians, Pull), rollout="own") as ranks:
        if ranks.rank > 0:
            ranks.serve(lambda job: nothing)
            return
        ranks.begin(0, nothing)
        path.write_text(str(middle(lambda: list(ranks.evaluate([state], [0])), 200)))


def busy(index: int, ready: str) -> None:
    """Keeps a core at drifts, as the other rank of a two-rank run does."""
    end_with_parent()
    torch.set_num_threads(1)
    set_threads(1)
    setup = prepared(configured(object_at(index), PAPERS_LOOP))
    state = setup.first()
    while True:
        list(setup.problem.evaluate([state], [0]))
        Path(ready).touch()


def object_at(index: int) -> Case:
    thing, pose = held_out(index + 1)[-1]
    return Case(f"{thing.family}-{thing.seed}", thing, pose)


def contended(setup: Setup, message: float, index: int) -> Costs:
    """costs_of, with the machine's other core as busy as in a two-rank run."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        other = multiprocessing.get_context("spawn").Process(
            target=busy, args=(index, str(ready)), daemon=True
        )
        other.start()
        try:
            until = time.monotonic() + 120
            while not ready.exists() and time.monotonic() < until:
                time.sleep(0.1)
            return costs_of(setup, message)
        finally:
            other.kill()
            other.join()


def measured_s(case: Case, index: int) -> tuple[float, int]:
    """(seconds in the loop, passes) of the command on two ranks."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / f"{case.name}.png"
        save_png(str(picture), case.picture())
        elevation = configured(case, {}).elevation
        words = [
            f"input={picture}",
            f"elevation={elevation}",
            *BRIEF,
            "ranks=2",
            "threads=1",
            "updates_per_evaluation=1",
        ]
        spent_s, passes, _ = timed(words, Path(folder) / "run")
        return spent_s, passes


def plot(path: Path, curves: dict[str, dict[int, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(6, 4))
    ax.plot(DEVICES, DEVICES, "--", color="grey", label="ideal")
    for name, speedups in curves.items():
        ax.plot(list(speedups), list(speedups.values()), "o-", label=name)
    ax.plot([8], [PAPER_SPEEDUP_AT_8], "x", markersize=9, label="the paper, 8 devices")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(DEVICES, [str(n) for n in DEVICES])
    ax.set_yticks(DEVICES, [str(n) for n in DEVICES])
    ax.set_xlabel("devices")
    ax.set_ylabel("times the serial run's speed")
    ax.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    if sys.argv[1:2] == ["messages"]:
        exchange(int(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="processes for the runs in process, a thread each"
    )
    parser.add_argument("--object", type=int, default=0, help="which held-out object")
    parser.add_argument("--plot", type=Path, default=Path("build/bench/scaling.png"))
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    torch.set_num_threads(1)
    set_threads(1)
    index, console = given.object, Console(width=110)
    case = object_at(index)

    windows = {n: job(index, 0, PAPERS_LOOP, {"window": WINDOWS[n]}) for n in DEVICES}
    runs = finished([*windows.values()], given.jobs, Path("build/bench/fidelity.jsonl"), weights_mark())
    accepted: dict[int, Sequence[int]] = {n: runs[one]["accepted"] for n, one in windows.items()}

    setup = prepared(configured(case, PAPERS_LOOP))
    steps = setup.settings.steps
    message = message_s(setup.config.num_points)
    here, together = costs_of(setup, message), contended(setup, message, index)
    actual_s, passes = measured_s(case, index)
    modelled_s = loop_s(together, accepted[2], steps, 2, 2)
    error = abs(modelled_s - actual_s) / actual_s
    papers = {
        roll_out: Costs(PAPER_STEP_S - roll_out, roll_out, roll_out / 10, PICTURES_MB / HOST_MB_S)
        for roll_out in ROLL_OUT_ROWS
    }

    def gained(costs: Costs, n: int) -> float:
        return serial_s(costs, steps) / loop_s(costs, accepted[n], steps, WINDOWS[n], n)

    curves = {"this machine's costs": {n: gained(here, n) for n in DEVICES}} | {
        f"A100, 16 views, roll-out {1e3 * roll_out:g} ms": {n: gained(costs, n) for n in DEVICES}
        for roll_out, costs in papers.items()
    }
    table = Table(title="costs, ms")
    for heading in ("where", "drift", "roll-out step", "guess", "message"):
        table.add_column(heading)
    for name, costs in (
        ("one core", here),
        ("both cores busy", together),
        ("A100, 16 views", papers[ROLL_OUT_GPU_S]),
    ):
        table.add_row(name, *(f"{1e3 * value:.2f}" for value in costs.__dict__.values()))
    console.print(table)
    console.print(
        f"two ranks: measured {actual_s:.1f} s in {passes} passes, modelled {modelled_s:.1f} s "
        f"({len(accepted[2])} passes): {100 * error:.1f} % apart",
        highlight=False,
    )
    table = Table(title=f"{case.name}, {steps} steps, one update an evaluation")
    for heading in ("devices", "window", "passes", "steps a pass", "novel dB", "input dB", *curves):
        table.add_column(heading)
    for n in DEVICES:
        run = runs[windows[n]]
        table.add_row(
            f"{n}", f"{WINDOWS[n]}", f"{len(accepted[n])}", f"{steps / len(accepted[n]):.2f}",
            f"{run['novel_psnr_db']:.2f}", f"{run['input_psnr_db']:.2f}",
            *(f"{curve[n]:.2f}" for curve in curves.values()),
        )  # fmt: skip
    console.print(table)
    given.plot.parent.mkdir(parents=True, exist_ok=True)
    plot(given.plot, curves)
    mine, headline = curves["this machine's costs"], papers[ROLL_OUT_GPU_S]
    figures = {
        "model_error_at_2": round(error, 4), "speedup_at_8": round(mine[8], 3), "speedup_at_64": round(mine[64], 3),
        "paper_setting_speedup_at_8": round(gained(headline, 8), 3),
        "paper_setting_speedup_at_64": round(gained(headline, 64), 3), "roll_out_gpu_s_assumed": ROLL_OUT_GPU_S,
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
