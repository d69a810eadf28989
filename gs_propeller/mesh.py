"""Gaussians to a closed triangle mesh: density field, marching cubes, cleaning, decimation.

N Gaussians, R voxels along a side, Nv vertices, Nf faces. World axes as in camera.py; faces are
counter-clockwise seen from outside, so normals face outward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import fast_simplification
import numpy as np
import torch
import trimesh
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.measure import marching_cubes
from torch import Tensor

from gs_propeller.errors import UserError
from gs_propeller.gaussians import Gaussians

Array = NDArray[np.float32]
SUPPORT = 3.0  # standard deviations that a Gaussian reaches in the field
KEPT_SHARE = 0.05  # of the largest component's volume: smaller ones are floaters
SMOOTHING = 8  # Taubin passes: they take the voxels' steps off and shrink nothing


@dataclass(frozen=True)
class Mesh:
    """vertices [Nv, 3] float32 world units; faces [Nf, 3] int64, counter-clockwise from outside."""

    vertices: Tensor
    faces: Tensor

    def __post_init__(self) -> None:
        for name, tensor in (("vertices", self.vertices), ("faces", self.faces)):
            if tensor.ndim != 2 or tensor.shape[1] != 3:
                raise ValueError(f"{name} must be [*, 3], got {list(tensor.shape)}")

    def trimesh(self) -> trimesh.Trimesh:
        return trimesh.Trimesh(self.vertices.numpy(), self.faces.numpy(), process=False)


def from_trimesh(mesh: trimesh.Trimesh) -> Mesh:
    vertices = torch.from_numpy(np.array(mesh.vertices, dtype=np.float32))
    return Mesh(vertices, torch.from_numpy(np.array(mesh.faces, dtype=np.int64)))


def vertex_normals(mesh: Mesh) -> Tensor:
    """[Nv, 3] unit normals, faces weighted by their area; (0, 0, 1) at a vertex without faces."""
    corners = mesh.vertices[mesh.faces]
    face = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = torch.zeros_like(mesh.vertices)
    for corner in range(3):
        total = total.index_add(0, mesh.faces[:, corner], face)
    length = total.norm(dim=1, keepdim=True)
    up = torch.tensor([0.0, 0.0, 1.0]).expand_as(total)
    return torch.where(length > 1e-20, total / length.clamp_min(1e-20), up)


@njit(cache=True)
def _accumulate(means, precisions, opacities, reach, grid, low, cell):  # type: ignore[no-untyped-def] # pragma: no cover
    """Adds every Gaussian to grid [R, R, R], inside its box of `reach` only; one thread, so one order."""
    side = grid.shape[0]
    for n in range(means.shape[0]):
        first, last = np.empty(3, np.int64), np.empty(3, np.int64)
        for k in range(3):
            first[k] = max(0, int(math.ceil((means[n, k] - reach[n, k] - low) / cell)))
            last[k] = min(side - 1, int(math.floor((means[n, k] + reach[n, k] - low) / cell)))
        for i in range(first[0], last[0] + 1):
            x = low + i * cell - means[n, 0]
            for j in range(first[1], last[1] + 1):
                y = low + j * cell - means[n, 1]
                for k in range(first[2], last[2] + 1):
                    z = low + k * cell - means[n, 2]
                    power = (
                        precisions[n, 0] * x * x + precisions[n, 1] * y * y + precisions[n, 2] * z * z
                        + 2 * (precisions[n, 3] * x * y + precisions[n, 4] * x * z + precisions[n, 5] * y * z)
                    )  # fmt: skip
                    if power < SUPPORT * SUPPORT:
                        grid[i, j, k] += opacities[n] * math.exp(-0.5 * power)


def density_grid(gaussians: Gaussians, resolution: int, extent: float) -> Array:
    """[R, R, R] sum of o exp(-x^T S^-1 x / 2) at points from -extent to extent, axes x, y, z.

    Scales are raised to half a voxel, since a thinner Gaussian would fall between the points.
    """
    cell = 2 * extent / (resolution - 1)
    scales = gaussians.log_scales.detach().double().exp().clamp(min=0.5 * cell, max=extent)
    quats = torch.nn.functional.normalize(gaussians.quats.detach().double(), dim=1)
    w, x, y, z = quats.unbind(1)
    rotation = torch.stack(
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
         2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
         2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], 1,
    ).reshape(-1, 3, 3)  # fmt: skip
    precision = rotation / scales.square()[:, None, :] @ rotation.transpose(1, 2)
    reach = SUPPORT * (rotation.square() @ scales.square()[:, :, None])[:, :, 0].sqrt()
    six = torch.stack([precision[:, a, b] for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))], 1)
    opacities = gaussians.logit_opacities.detach().double().sigmoid()
    grid = np.zeros((resolution,) * 3, dtype=np.float32)
    arrays = (a.cpu().numpy() for a in (gaussians.means.detach().double(), six, opacities, reach))
    _accumulate(*arrays, grid, -extent, cell)
    return grid


def extract(
    gaussians: Gaussians,
    resolution: int = 128,
    faces: int = 10_000,
    silhouettes: Callable[[Mesh], float] | None = None,
) -> Mesh:
    """A watertight mesh of about `faces` faces around the Gaussians; never empty.

    silhouettes(mesh): how well a mesh fits the renders' alphas, higher is better; the density threshold is
    the best of several by it, else DreamGaussian's 1 where that leaves anything. Raises UserError for N = 0.
    """
    if len(gaussians) == 0:
        raise UserError(
            "there is nothing to make a mesh of: no Gaussian is left; run again with resume=false"
        )
    reach = (gaussians.means.detach().abs().amax(1) + 3 * gaussians.log_scales.detach().exp().amax(1)).cpu()
    extent = float(reach.quantile(0.98).clamp(0.05, 2.0)) if len(reach) < 10_000_000 else 1.0
    grid = density_grid(gaussians, resolution, extent)
    grid = gaussian_filter(grid, 0.7, mode="constant")
    cell = 2 * extent / (resolution - 1)
    peak = float(grid.max())
    candidates = [level for level in (0.15, 0.25, 0.4, 0.6, 1.0) if level < 0.9 * peak] or [0.5 * peak]
    if silhouettes is None:
        candidates = candidates[-1:]
    best: Mesh | None = None
    best_fit = -math.inf
    for level in candidates:
        mesh = clean(_surface(grid, level, cell, extent), faces)
        fit = silhouettes(mesh) if silhouettes else 0.0
        if best is None or fit > best_fit:
            best, best_fit = mesh, fit
    assert best is not None
    return best


def _surface(grid: Array, level: float, cell: float, extent: float) -> trimesh.Trimesh:
    """Marching cubes; a border of nothing closes what the grid cuts. Degenerate fields give a small ball."""
    padded = np.pad(grid, 1)
    if not 0.0 < level < float(padded.max()):
        return trimesh.creation.icosphere(3, radius=2 * cell)
    vertices, faces, _, _ = marching_cubes(padded, level, gradient_direction="ascent")
    return trimesh.Trimesh((vertices - 1) * cell - extent, faces, process=True)


def clean(mesh: trimesh.Trimesh, faces: int) -> Mesh:
    """Floaters out, smoothed, decimated to about `faces`, closed and facing outward."""
    parts = mesh.split(only_watertight=True)
    if len(parts):
        volumes = [abs(part.volume) for part in parts]
        # A cavity's surface faces inward: its volume is negative, and nobody sees it.
        solid = [
            p for p, v in zip(parts, volumes, strict=True) if v >= KEPT_SHARE * max(volumes) and p.volume > 0
        ]
        mesh = trimesh.util.concatenate(solid or [parts[int(np.argmax(volumes))]])
    mesh = trimesh.smoothing.filter_taubin(mesh, iterations=SMOOTHING)
    closed = mesh
    if len(mesh.faces) > faces:
        points, triangles = fast_simplification.simplify(
            mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), target_count=faces, agg=5
        )
        mesh = trimesh.Trimesh(points, triangles, process=True)
        if not mesh.is_watertight:
            trimesh.repair.fill_holes(mesh)
        if not mesh.is_watertight:
            mesh = closed  # more faces than asked for, but no holes
    trimesh.repair.fix_normals(mesh, multibody=True)
    return from_trimesh(mesh)
