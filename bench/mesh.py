"""From Gaussians to a refined mesh, against the true object: `python -m bench.mesh [--objects 8] [key=value]`.

Held-out objects, both stages with the shipped settings. Novel views: 16 at 128 px, of the Gaussians, of the baked
mesh and of the refined one. Geometry, of the last, against the true solid, in the asset's own frame: symmetric
Chamfer distance of surface points (world units, the picture spans 1.46) and volume IoU of points in the box around
both. Models of the test split apart, where their folder is there: their Chamfer distance is to what is seen of them
from all sides, and no volume is compared, since most of them are open. Prints a table for each, then one JSON object.
Finished runs are kept in build/bench, so an interrupted bench goes on.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.spatial import cKDTree
from skimage.metrics import structural_similarity
from torch import Tensor

from bench.truth import (
    SCORE_PX,
    Case,
    asset_cameras,
    novel_angles,
    over_white,
    psnr_db,
)
from bench.whole import arguments, asset_config, measured
from gs_propeller.base.camera import orbit
from gs_propeller.mesh.surface import Mesh
from gs_propeller.mesh.texture import shade
from guidance.pocket.meshes import NO_TEXTURE, ColouredMesh
from guidance.pocket.objects import Thing
from guidance.pocket.render import FOV_Y_RAD, surface, views
from main2_mesh import refine_asset
from main_propeller import make_asset

POINTS = 100_000  # in the box, and a tenth as many on each surface
MEASURES = ("gaussian", "baked", "refined")
Array = NDArray[np.float64]


def to_asset(points: Array, case: Case) -> Array:
    """[M, 3] of the true object's world, turned about y until the input view is at azimuth 0."""
    sine, cosine = np.sin(case.pose.azimuth_rad), np.cos(case.pose.azimuth_rad)
    x, y, z = points.T
    return np.stack([x * cosine - z * sine, y, x * sine + z * cosine], 1)


def to_truth(points: Array, case: Case) -> Array:
    """Inverse of to_asset."""
    sine, cosine = np.sin(case.pose.azimuth_rad), np.cos(case.pose.azimuth_rad)
    x, y, z = points.T
    return np.stack([x * cosine + z * sine, y, z * cosine - x * sine], 1)


def geometry(mesh: Mesh, case: Case, seed: int = 0) -> tuple[float, float | None]:
    """(Chamfer distance, volume IoU), None for a model, which need not be closed."""
    rng = np.random.default_rng(seed)
    solid = mesh.trimesh()
    ours, _ = solid.sample(POINTS // 10, return_index=True, seed=seed)
    theirs = outside(case.thing, rng) if isinstance(case.thing, Thing) else seen(case.thing, rng)
    theirs = to_asset(theirs, case)
    near = cKDTree(theirs).query(ours)[0].mean(), cKDTree(ours).query(theirs)[0].mean()
    if not isinstance(case.thing, Thing):
        return float(np.mean(near)), None
    low = np.minimum(ours.min(0), theirs.min(0)) - 0.02
    high = np.maximum(ours.max(0), theirs.max(0)) + 0.02
    points = rng.uniform(low, high, (POINTS, 3))
    inside, truth = solid.contains(points), case.thing.inside(to_truth(points, case))
    return float(np.mean(near)), float((inside & truth).sum() / (inside | truth).sum())


def seen(mesh: ColouredMesh, rng: np.random.Generator, far: float = 4.0, size: int = 128) -> Array:
    """[M, 3] points of its surface that show from some of 26 sides, about even by area: views of it painted with its
    own places, thinned to one point in each small cell."""
    low, span = mesh.points.min(0), float(np.ptp(mesh.points, axis=0).max())
    places = replace(mesh, colours=((mesh.points - low) / span)[mesh.faces], ambient=1.0, texture=NO_TEXTURE)
    heights = {-1.5: 1, -0.7: 8, 0.0: 8, 0.7: 8, 1.5: 1}  # radians, and how many sides from there
    where = [(2 * np.pi * k / n, height) for height, n in heights.items() for k in range(n)]
    cameras = orbit([a for a, _ in where], [e for _, e in where], far, FOV_Y_RAD / 2)
    rgba = views(places, cameras, size, supersample=1).permute(0, 2, 3, 1).reshape(-1, 4).double().numpy()
    points = rgba[rgba[:, 3] > 0.5, :3] * span + low
    points = points[rng.permutation(len(points))]
    _, first = np.unique((points / (1.5 * span / size)).astype(np.int64), axis=0, return_index=True)
    return points[first]


def outside(thing: Thing, rng: np.random.Generator) -> Array:
    """[M, 3] points on the object's outer surface, even by area; parts hide parts of others."""
    shape = surface(thing)
    corners = shape.vertices.astype(np.float64)[shape.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    chosen = rng.choice(len(area), POINTS // 5, p=area / area.sum())
    u, v = np.sort(rng.random((2, len(chosen))), axis=0)
    weights = np.stack([u, v - u, 1 - v], 1)
    points = (corners[chosen] * weights[:, :, None]).sum(1)
    normals = (shape.normals.astype(np.float64)[shape.faces[chosen]] * weights[:, :, None]).sum(1)
    return points[~thing.inside(points + 0.01 * normals)]


def dssim(images: Tensor, truth: Tensor) -> float:
    """(1 - SSIM) / 2, mean over the views."""
    pairs = zip(images.numpy(), truth.numpy(), strict=True)
    return float(
        np.mean([(1 - structural_similarity(a, b, channel_axis=0, data_range=1.0)) / 2 for a, b in pairs])
    )


def score(
    case: Case, folder: Path, pairs: list[str], config_path: str
) -> tuple[dict[str, float], torch.Tensor]:
    """One object's measures, and a contact sheet [3, H, W]: truth, Gaussians, baked, refined."""
    config = asset_config(case, folder, pairs, config_path)
    asset = make_asset(config, quiet=True)
    refined, _ = refine_asset(config, quiet=True)
    azimuths, elevations = novel_angles(case.pose)
    cameras = asset_cameras(azimuths, elevations)
    truth = over_white(case.truth(azimuths, elevations))
    with torch.no_grad():
        drawn = {
            "gaussian": asset.viewer.views(cameras, SCORE_PX)[0].clamp(0, 1),
            "baked": shade(asset.textured, cameras, SCORE_PX)[0],
            "refined": shade(refined, cameras, SCORE_PX)[0],
        }
    result: dict[str, float] = {}
    for name, image in drawn.items():
        result[f"{name}_psnr_db"], result[f"{name}_dssim"] = psnr_db(image, truth), dssim(image, truth)
    mesh = refined.mesh
    result["watertight"] = float(mesh.trimesh().is_watertight and mesh.trimesh().is_winding_consistent)
    result["faces"] = float(len(mesh.faces))
    result["chamfer"], volume = geometry(mesh, case)
    if volume is not None:
        result["volume_iou"] = volume
    return result, torch.cat([torch.cat(list(x[::2]), 2) for x in (truth, *drawn.values())], 1)


def main() -> None:
    given = arguments(__doc__, "mesh", 8).parse_args()
    console = Console(width=120)
    objects, models = measured("mesh", score, given, cat=False)
    result: dict[str, float] = {}
    for prefix, kind, listed in (("", "objects", objects), ("models_", "models", models)):
        if listed:
            found = summed(listed, kind, console)
            result |= {kind: len(listed), **{f"{prefix}{key}": value for key, value in found.items()}}
    print(json.dumps(result))


def summed(rows: dict[str, dict[str, float]], kind: str, console: Console) -> dict[str, float]:
    """The means of all measures, shown with the rows in a table; of watertight, the number."""
    mean = {key: float(np.mean([row[key] for row in rows.values()])) for key in next(iter(rows.values()))}
    table = Table(title=f"{len(rows)} held-out {kind}, 16 novel views at {SCORE_PX} px: dB / DSSIM")
    for heading in ("", *MEASURES, "watertight", "faces", "Chamfer", "volume IoU"):
        table.add_column(heading)
    for name, row in [*rows.items(), ("mean", mean)]:
        cells = [f"{row[f'{m}_psnr_db']:.2f} / {row[f'{m}_dssim']:.4f}" for m in MEASURES]
        shape = [f"{row['watertight']:.2f}", f"{row['faces']:.0f}", f"{row['chamfer']:.4f}"]
        table.add_row(name, *cells, *shape, f"{row['volume_iou']:.3f}" if "volume_iou" in row else "")
    console.print(table)
    figures = {key: round(value, 4) for key, value in mean.items()}
    return figures | {"watertight": int(sum(row["watertight"] for row in rows.values()))}


if __name__ == "__main__":
    main()
