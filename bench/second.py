"""The second stage's window against its serial loop: `python -m bench.fidelity --stage 2 [--objects 6] [--seeds 2]`.

Held-out objects: the first stage once, then the texture refined with window 1, window 4, and window 4 with the
paper's tail, shipped settings otherwise. Novel views: 16, PSNR against the truth; the input view beside them.
`python -m bench.ablation --stage 2` is here too: the second stage's settings, on validation objects.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench.asset import asset_config
from bench.truth import SCORE_PX, Case, asset_cameras, cases, novel_angles, over_white, psnr_db
from gs_propeller.app.config import updated
from gs_propeller.mesh.texture import Textured, shade
from guidance.pocket.data import TEST_SEED, VALIDATION_SEED
from main2_mesh import refine_asset
from main_propeller import make_asset

WINDOW = 4
WAYS: dict[str, dict[str, object]] = {
    "serial": {"window": 1},
    f"window {WINDOW}": {"window": WINDOW},
    "the paper's tail (copy)": {"window": WINDOW, "tail": "copy"},
}


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
    found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in WAYS}
    baked: list[tuple[float, float]] = []
    for case in cases(objects, TEST_SEED)[1:]:
        with tempfile.TemporaryDirectory() as folder:
            config = asset_config(case, Path(folder), [], "configs/image.yaml")
            baked.append(scored(make_asset(config, quiet=True).textured, case))
            for seed in range(seeds):
                for name, change in WAYS.items():
                    refined, _ = refine_asset(updated(config, {"seed": seed, **change}), quiet=True)
                    lines = (config.run_folder / "refine_metrics.jsonl").read_text().splitlines()
                    last = json.loads(lines[-1])
                    found[name].append((len(lines), last["pass"], *scored(refined, case)))
        console.print(f"{case.name}: " + ", ".join(f"{k} {v[-1][2]:.2f} dB" for k, v in found.items()))
    table = Table(title=f"{objects} held-out objects x {seeds} seeds, second stage")
    for heading in ("setting", "passes", "steps a pass", "novel dB", "input dB"):
        table.add_column(heading)
    table.add_row("baked, not refined", "", "", *(f"{x:.2f}" for x in np.mean(baked, 0)))
    means = {name: np.mean(rows, 0) for name, rows in found.items()}
    for name, (steps, passes, novel, known) in means.items():
        table.add_row(name, f"{passes:.1f}", f"{steps / passes:.2f}", f"{novel:.3f}", f"{known:.2f}")
    console.print(table)
    serial, shipped, copy = means.values()
    figures = {
        "stage": 2, "window": WINDOW, "steps": serial[0],
        "passes": shipped[1], "steps_per_pass": shipped[0] / shipped[1],
        "serial_psnr_db": serial[2], "parallel_psnr_db": shipped[2], "copy_steps_per_pass": copy[0] / copy[1],
        "copy_psnr_db": copy[2], "baked_psnr_db": float(np.mean(baked, 0)[0]),
    }  # fmt: skip
    print(json.dumps({k: round(float(v), 3) for k, v in figures.items()}))


CHOICES: dict[str, dict[str, object]] = {
    "shipped": {},
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
        with tempfile.TemporaryDirectory() as folder:
            config = asset_config(case, Path(folder), [], "configs/image.yaml")

            def note(name: str, textured: Textured, case: Case = case, truth: torch.Tensor = truth) -> None:
                drawn = shade(textured, asset_cameras(*novel_angles(case.pose)), SCORE_PX)[0]
                novel, known = scored(textured, case)
                rows.setdefault(name, []).append((novel, dssim(drawn, truth), known))

            note("baked, not refined", make_asset(config, quiet=True).textured)
            for seed in range(seeds):
                for name, change in CHOICES.items():
                    note(name, refine_asset(updated(config, {"seed": seed, **change}), quiet=True)[0])
    table = Table(title=f"{len(objects)} validation objects, second stage")
    for heading in ("choice", "novel dB", "DSSIM", "input dB"):
        table.add_column(heading)
    means = {name: np.mean(found, 0) for name, found in rows.items()}
    for name, (novel, structure, known) in means.items():
        table.add_row(name, f"{novel:.2f}", f"{structure:.4f}", f"{known:.2f}")
    Console(width=110).print(table)
    print(json.dumps({name: [round(float(x), 4) for x in found] for name, found in means.items()}))
