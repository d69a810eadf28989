"""The whole pipeline against the generator's truth: `python -m bench.asset [--objects 12] [key=value ...]`.

The cat and held-out objects (seeds that the prior never saw), and apart from them models of the test split, where the
folder of models is there. Beside it, in the same run, trivial rivals: the blob that the optimisation starts from, the
input picture unchanged, and a billboard, the input silhouette extruded and textured, at several depths, of which the
best for each measure counts. Prints a table for each kind, then one JSON object. Finished runs are kept in build/bench,
so an interrupted bench goes on.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from bench.truth import (
    SCORE_PX,
    Case,
    asset_cameras,
    billboard,
    mask_iou,
    novel_angles,
    over_white,
    psnr_db,
)
from bench.whole import arguments, asset_config, measured
from gs_propeller.app.asset import Viewer
from gs_propeller.mesh.texture import shade
from gs_propeller.scenes.gaussians.state import init_ball
from main_propeller import make_asset

DEPTHS = (0.1, 0.2, 0.4, 0.6)  # of the billboard, world units; the picture spans 1.46
MEASURES = (
    "psnr_db",
    "iou",
    "blob_psnr_db",
    "blob_iou",
    "billboard_psnr_db",
    "billboard_iou",
    "copy_psnr_db",
    "copy_iou",
    "mesh_psnr_db",
    "mesh_iou",
)


def score(
    case: Case, folder: Path, pairs: list[str], config_path: str
) -> tuple[dict[str, float], torch.Tensor]:
    """One object's measures, and a contact sheet [3, H, W]: truth, ours, its mesh."""
    config = asset_config(case, folder, pairs, config_path)
    asset = make_asset(config, quiet=True)
    azimuths, elevations = novel_angles(case.pose)
    cameras = asset_cameras(azimuths, elevations)
    rgba = case.truth(azimuths, elevations)
    truth, mask = over_white(rgba), rgba[:, 3:]
    result: dict[str, float] = {}

    def note(prefix: str, image: torch.Tensor, alpha: torch.Tensor) -> None:
        result[f"{prefix}psnr_db"], result[f"{prefix}iou"] = psnr_db(image, truth), mask_iou(alpha, mask)

    image, alpha = asset.viewer.views(cameras, SCORE_PX)
    note("", image, alpha)
    ball = init_ball(config.num_points, config.init_radius, config.sh_degree, config.seed)
    note("blob_", *Viewer(ball.params, config).views(cameras, SCORE_PX))
    with torch.no_grad():
        drawn = shade(asset.textured, cameras, SCORE_PX)
    note("mesh_", *drawn)
    for depth in DEPTHS:
        slab = billboard(case.picture(), case.pose, cameras, depth)
        result[f"billboard_psnr_db@{depth}"] = psnr_db(slab[0], truth)
        result[f"billboard_iou@{depth}"] = mask_iou(slab[1], mask)
    known = asset_cameras(torch.zeros(1), torch.tensor([case.pose.elevation_rad]))
    front = over_white(case.truth(torch.zeros(1), torch.tensor([case.pose.elevation_rad])))
    shown = F.interpolate(case.picture()[None], (SCORE_PX, SCORE_PX), mode="area").expand(
        len(truth), -1, -1, -1
    )
    note("copy_", over_white(shown), shown[:, 3:])
    result["reference_psnr_db"] = psnr_db(asset.viewer.views(known, SCORE_PX)[0], front)
    picks = slice(0, 16, 2)
    rows = [torch.cat(list(x[picks]), 2) for x in (truth, image, drawn[0])]
    return result, torch.cat(rows, 1)


def main() -> None:
    given = arguments(__doc__, "asset", 12).parse_args()
    console = Console(width=120)
    objects, models = measured("asset", score, given, cat=True)
    figures = summed(objects, "objects", console)
    result = {"objects": len(objects), **figures, "cat": {k: round(objects["cat"][k], 3) for k in figures}}
    if models:
        found = summed(models, "models", console)
        result |= {"models": len(models), **{f"models_{key}": value for key, value in found.items()}}
    print(json.dumps(result))


def summed(rows: dict[str, dict[str, float]], kind: str, console: Console) -> dict[str, float]:
    """The means of all measures, shown with the rows in a table; the billboard's are put into the rows."""
    mean = {key: sum(row[key] for row in rows.values()) / len(rows) for key in next(iter(rows.values()))}
    for measure in ("psnr_db", "iou"):  # the strongest billboard there is, on average over the objects
        best = max(DEPTHS, key=lambda depth: mean[f"billboard_{measure}@{depth}"])
        for row in (*rows.values(), mean):
            row[f"billboard_{measure}"] = row[f"billboard_{measure}@{best}"]
    table = Table(title=f"{len(rows)} {kind}, 16 novel views at {SCORE_PX} px: dB / IoU")
    prefixes = {"ours": "", "mesh": "mesh_", "billboard": "billboard_", "picture": "copy_", "blob": "blob_"}
    for heading in ("", *prefixes, "reference dB"):
        table.add_column(heading)
    for name, row in [*rows.items(), ("mean", mean)]:
        cells = [f"{row[f'{p}psnr_db']:.2f} / {row[f'{p}iou']:.3f}" for p in prefixes.values()]
        table.add_row(name, *cells, f"{row['reference_psnr_db']:.2f}")
    console.print(table)
    return {key: round(mean[key], 3) for key in (*MEASURES, "reference_psnr_db")}


if __name__ == "__main__":
    main()
