"""The second stage's window against its serial loop: `python -m bench.fidelity --stage 2 [--objects 6] [--seeds 2]`.

Held-out objects: the first stage once, then the mesh refined serially, with windows of 4 and 8, with the paper's tail
and with the paper's distance, shipped settings otherwise. Novel views: 16, PSNR against the truth; the input view
beside them. `python -m bench.ablation --stage 2` is here too: the second stage's settings, on validation objects; and
what `bench.speed` says of it: the loop's seconds as shipped and as it was, kept object by object in build/bench.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench import kept
from bench.kept import Figures
from bench.solving import priors_called
from bench.truth import SCORE_PX, Case, asset_cameras, cases, novel_angles, over_white, psnr_db
from bench.whole import asset_config
from gs_propeller.app.config import Config, updated
from gs_propeller.app.guides import picture_of
from gs_propeller.app.refining import TRAVELLERS, refinement, refining
from gs_propeller.mesh import refine
from gs_propeller.mesh.render import render, render_torch
from gs_propeller.mesh.texture import Textured, shade
from gs_propeller.solver.picard import Report, Window, solve
from gs_propeller.solver.ranks import Ranks
from guidance.pocket.data import TEST_SEED, VALIDATION_SEED
from main_propeller import make_asset

WAYS: dict[str, dict[str, object]] = {
    "serial": {"window": 1},
    "window 4": {"window": 4},
    "window 8": {"window": 8},
    "window 4, the paper's tail (copy)": {"window": 4, "tail": "copy"},
    "window 4, the paper's distance": {"window": 4, "distance": "paper"},
}
# As it was: one update an evaluation, 20 steps of denoising, torch's own operations for the mesh's pixels.
BEFORE: dict[str, object] = {"window": 1, "refine_updates_per_evaluation": 1, "refine_denoise": 20}


@contextmanager
def meshed(case: Case) -> Iterator[tuple[Config, Textured]]:
    """The configuration of a case's first stage, as shipped, whose folder lasts as long as the context, and its
    mesh."""
    with tempfile.TemporaryDirectory() as folder:
        config = asset_config(case, Path(folder), [], "configs/image.yaml")
        yield config, make_asset(config, quiet=True).textured


@dataclass(frozen=True)
class Refined:
    """A finished run of the second stage's loop: the asset, the solver's steps, passes and evaluations, the last
    threshold, and seconds in the loop."""

    textured: Textured
    steps: int
    passes: int
    evaluations: int
    threshold: float
    seconds: float


def refined(config: Config, textured: Textured, by_torch: bool = False) -> Refined:
    """The loop alone, in this process. by_torch: the mesh's pixels by torch's operations instead of the kernels."""
    task = refinement(config, textured, picture_of(config), priors_called(config.prior, False))
    ranks = Ranks(kinds=TRAVELLERS)
    ranks.begin(0, task.compute)
    stage = refining(config, ranks, task, b"")

    def on_pass(window: Window[Any], report: Report[Any]) -> None:
        stage.logged(report)

    refine.render = render_torch if by_torch else render
    try:
        begun_s = time.perf_counter()
        window = solve(stage.problem, stage.settings, stage.first(), on_pass)
        seconds = time.perf_counter() - begun_s
    finally:
        refine.render = render
    counts = window.start, window.passes, window.evaluations
    return Refined(task.finished(window.states[0]), *counts, window.threshold, seconds)


@torch.no_grad()
def scored(textured: Textured, case: Case) -> tuple[float, float]:
    """(PSNR of 16 novel views, PSNR of the input view)."""
    azimuths, elevations = novel_angles(case.pose)
    front = torch.zeros(1), torch.tensor([case.pose.elevation_rad])
    return tuple(  # type: ignore[return-value]
        psnr_db(shade(textured, asset_cameras(*at), SCORE_PX)[0], over_white(case.truth(*at)))
        for at in ((azimuths, elevations), front)
    )


def main(objects: int, seeds: int) -> None:
    console = Console(width=110)
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in WAYS}
    baked: list[tuple[float, float]] = []
    for case in cases(objects, TEST_SEED)[1:]:
        with meshed(case) as (config, textured):
            baked.append(scored(textured, case))
            for seed in range(seeds):
                for name, change in WAYS.items():
                    done = refined(updated(config, {"seed": seed, **change}), textured)
                    counts = done.steps, done.passes, done.evaluations, done.threshold
                    found[name].append((*counts, *scored(done.textured, case)))
        console.print(f"{case.name}: " + ", ".join(f"{k} {v[-1][4]:.2f} dB" for k, v in found.items()))
    table = Table(title=f"{objects} held-out objects x {seeds} seeds, second stage")
    for heading in (
        "setting", "passes", "steps a pass", "evaluations", "last threshold", "novel dB", "lost dB", "input dB"
    ):  # fmt: skip
        table.add_column(heading)
    table.add_row(
        "baked, not refined", *[""] * 4, f"{np.mean(baked, 0)[0]:.3f}", "", f"{np.mean(baked, 0)[1]:.2f}"
    )
    means = {name: np.mean(rows, 0) for name, rows in found.items()}
    for name, (steps, passes, evaluations, threshold, novel, known) in means.items():
        lost = np.array(found["serial"])[:, 4] - np.array(found[name])[:, 4]
        error = lost.std(ddof=1) / len(lost) ** 0.5 if len(lost) > 1 else 0.0
        table.add_row(
            name, f"{passes:.1f}", f"{steps / passes:.2f}", f"{evaluations:.1f}", f"{threshold:.1e}", f"{novel:.3f}",
            f"{lost.mean():.3f} ± {error:.3f}", f"{known:.2f}",
        )  # fmt: skip
    console.print(table)
    serial, four, eight, copy, paper = means.values()
    figures = {
        "stage": 2, "window": 4, "steps": serial[0], "passes": four[1], "steps_per_pass": four[0] / four[1],
        "serial_psnr_db": serial[4], "parallel_psnr_db": four[4], "w8_steps_per_pass": eight[0] / eight[1],
        "w8_psnr_db": eight[4], "copy_steps_per_pass": copy[0] / copy[1], "copy_psnr_db": copy[4],
        "paper_steps_per_pass": paper[0] / paper[1], "paper_psnr_db": paper[4], "baked_psnr_db": np.mean(baked, 0)[0],
    }  # fmt: skip
    print(json.dumps({k: round(float(v), 3) for k, v in figures.items()}))


@dataclass(frozen=True)
class Timing:
    """A held-out object, by its place among them, refined as it was and as shipped."""

    index: int
    threads: int

    def key(self, mark: str) -> str:
        return kept.key_of("stage 2", mark, self.index, self.threads)


def both(one: Timing) -> Figures:
    """{way: [seconds in the loop, dB of the novel views, dB of the input view]}, one way after the other."""
    case = cases(one.index + 1, TEST_SEED)[-1]
    with meshed(case) as (config, textured):
        ways: dict[str, tuple[dict[str, object], bool]] = {
            "before": (BEFORE, True),
            "shipped": ({"window": 1}, False),
        }
        found = {}
        for name, (change, by_torch) in ways.items():
            done = refined(updated(config, change), textured, by_torch)
            found[name] = (done.seconds, *scored(done.textured, case))
    return found


def told(one: Timing, result: Figures) -> str:
    return f"object {one.index}: " + ", ".join(
        f"{way} {s:.1f} s {db:.2f} dB" for way, (s, db, _) in result.items()
    )


def timed(objects: int = 6) -> dict[str, float]:
    """What bench.speed says of the second stage: the loop's seconds and the novel views' dB over held-out objects, as
    it was (BEFORE, the mesh's pixels by torch's operations) and as shipped, in turn for each object. Prints a table."""
    from bench.fidelity import weights_mark

    jobs = [Timing(index, torch.get_num_threads()) for index in range(objects)]
    results = kept.done(jobs, both, 0, Path("build/bench/second.jsonl"), weights_mark(), told)
    table = Table(title=f"second stage, {objects} held-out objects, {torch.get_num_threads()} threads")
    for heading in ("way", "s", "novel dB", "input dB"):
        table.add_column(heading)
    means = {way: np.mean([results[one][way] for one in jobs], 0) for way in ("before", "shipped")}
    for way, (seconds, novel, known) in means.items():
        table.add_row(way, f"{seconds:.1f}", f"{novel:.3f}", f"{known:.2f}")
    Console(width=110).print(table)
    before, shipped = means.values()
    figures = {
        "stage2_s": shipped[0], "stage2_before_s": before[0], "stage2_ratio": shipped[0] / before[0],
        "stage2_psnr_db": shipped[1], "stage2_before_psnr_db": before[1],
    }  # fmt: skip
    return {k: round(float(v), 3) for k, v in figures.items()}


CHOICES: dict[str, dict[str, object]] = {
    "shipped": {},
    "an evaluation for one update": {"refine_updates_per_evaluation": 1},
    "an evaluation for 5 updates": {"refine_updates_per_evaluation": 5},
    "20 steps of denoising": {"refine_denoise": 20},
    "5 steps of denoising": {"refine_denoise": 5},
    "the shape kept": {"train_geo": False},
    "the shape moves at 0.0003": {"geo_lr": 3e-4},
    "the shape moves at 0.001": {"geo_lr": 1e-3},
    "strength 0.6 to 0.2": {"refine_strength_max": 0.6, "refine_strength_min": 0.2},
    "guidance 2": {"refine_guidance": 2.0},
    "offset of 128 texels": {"refine_texels": 128},
    "40 steps": {"refine_steps": 40},
    "100 steps": {"refine_steps": 100},
    "8 views a step": {"refine_batch": 8},
}


def ablation(seeds: int = 1, objects: tuple[int, ...] = (2, 5, 11, 17)) -> None:
    """The second stage's settings on validation objects, the first stage being done once."""
    from bench.mesh import dssim

    rows: dict[str, list[tuple[float, float, float]]] = {}
    listed = cases(max(objects) + 1, VALIDATION_SEED)[1:]
    for case in (listed[i] for i in objects):
        truth = over_white(case.truth(*novel_angles(case.pose)))

        def note(name: str, textured: Textured, case: Case = case, truth: torch.Tensor = truth) -> None:
            drawn = shade(textured, asset_cameras(*novel_angles(case.pose)), SCORE_PX)[0]
            novel, known = scored(textured, case)
            rows.setdefault(name, []).append((novel, dssim(drawn, truth), known))

        with meshed(case) as (config, textured):
            note("baked, not refined", textured)
            for seed in range(seeds):
                for name, change in CHOICES.items():
                    note(name, refined(updated(config, {"seed": seed, **change}), textured).textured)
    table = Table(title=f"{len(objects)} validation objects, second stage")
    for heading in ("choice", "novel dB", "DSSIM", "input dB"):
        table.add_column(heading)
    means = {name: np.mean(found, 0) for name, found in rows.items()}
    for name, (novel, structure, known) in means.items():
        table.add_row(name, f"{novel:.2f}", f"{structure:.4f}", f"{known:.2f}")
    Console(width=110).print(table)
    print(json.dumps({name: [round(float(x), 4) for x in found] for name, found in means.items()}))
