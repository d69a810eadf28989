"""Gaussians to a closed triangle mesh: density field, marching cubes, cleaning, decimation.

N Gaussians, R voxels along a side, Nv vertices, Nf faces. World axes as in camera.py; faces are
counter-clockwise seen from outside, so normals face outward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import fast_simplification
import numpy as np
import torch
import trimesh
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label
from skimage.measure import marching_cubes
from torch import Tensor

from gs_propeller.base.errors import UserError
from gs_propeller.scenes.gaussians.state import Gaussians

Array = NDArray[Any]
SUPPORT = 3.0  # standard deviations that a Gaussian reaches in the field
SPACE = 1.5  # half side of the cube around the origin that the cameras look into, world units
LEVELS = (0.15, 0.25, 0.4, 0.6, 1.0, 1.6)  # density thresholds tried; DreamGaussian's is 1
CUBE = np.ones((3, 3, 3), dtype=bool)
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
    """Adds every Gaussian to grid [R, R, R], inside its ellipsoid of SUPPORT; one thread, so one order.

    Along a row of z the power is quadratic, so each value is the last times a ratio that itself changes by a
    constant factor: two exponentials a row instead of one a voxel.
    """
    side, edge = grid.shape[0], SUPPORT * SUPPORT
    first, last = np.empty(2, np.int64), np.empty(2, np.int64)
    for n in range(means.shape[0]):
        for k in range(2):
            first[k] = max(0, int(math.ceil((means[n, k] - reach[n, k] - low[k]) / cell)))
            last[k] = min(side - 1, int(math.floor((means[n, k] + reach[n, k] - low[k]) / cell)))
        zz = precisions[n, 2]
        bend = math.exp(-zz * cell * cell)
        for i in range(first[0], last[0] + 1):
            x = low[0] + i * cell - means[n, 0]
            for j in range(first[1], last[1] + 1):
                y = low[1] + j * cell - means[n, 1]
                # power = flat + 2 slope z + zz z^2
                flat = precisions[n, 0] * x * x + precisions[n, 1] * y * y + 2 * precisions[n, 3] * x * y
                slope = precisions[n, 4] * x + precisions[n, 5] * y
                root = slope * slope - zz * (flat - edge)
                if root <= 0:
                    continue
                root = math.sqrt(root)
                offset = means[n, 2] - low[2]
                begin = max(0, int(math.ceil((offset - (slope + root) / zz) / cell)))
                end = min(side - 1, int(math.floor((offset - (slope - root) / zz) / cell)))
                z = begin * cell - offset
                value = opacities[n] * math.exp(-0.5 * (flat + z * (2 * slope + zz * z)))
                ratio = math.exp(-cell * (slope + zz * (z + 0.5 * cell)))
                for k in range(begin, end + 1):
                    grid[i, j, k] += value
                    value *= ratio
                    ratio *= bend


def _rotation(gaussians: Gaussians) -> Tensor:
    """[N, 3, 3] float64."""
    w, x, y, z = torch.nn.functional.normalize(gaussians.quats.detach().double(), dim=1).unbind(1)
    return torch.stack(
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
         2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
         2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], 1,
    ).reshape(-1, 3, 3)  # fmt: skip


def density_grid(
    gaussians: Gaussians, resolution: int, extent: float = 1.0, centre: Sequence[float] = (0.0, 0.0, 0.0)
) -> Array:
    """[R, R, R] sum of o exp(-x^T S^-1 x / 2) at points from centre - extent to centre + extent, axes x, y, z.

    Scales are raised to half a voxel, since a thinner Gaussian would fall between the points, and cut to
    `extent`. Time grows with the voxels that the Gaussians cover; memory is the grid.
    """
    cell = 2 * extent / (resolution - 1)
    scales = gaussians.log_scales.detach().double().exp().clamp(min=0.5 * cell, max=extent)
    rotation = _rotation(gaussians)
    precision = rotation / scales.square()[:, None, :] @ rotation.transpose(1, 2)
    reach = SUPPORT * (rotation.square() @ scales.square()[:, :, None])[:, :, 0].sqrt()
    six = torch.stack([precision[:, a, b] for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))], 1)
    opacities = gaussians.logit_opacities.detach().double().sigmoid()
    grid = np.zeros((resolution,) * 3, dtype=np.float32)
    means, *rest = (a.cpu().numpy() for a in (gaussians.means.detach().double(), six, opacities, reach))
    _accumulate(means, *rest, grid, np.asarray(centre, dtype=np.float64) - extent, cell)  # type: ignore[call-arg]
    return grid


def _box(gaussians: Gaussians) -> tuple[Array, float]:
    """(centre [3], half side) of the cube to look in: what can be seen, save a few strays, cut to SPACE."""
    opacities = gaussians.logit_opacities.detach().sigmoid().cpu()
    seen = opacities >= min(0.05, 0.5 * float(opacities.max()))
    means = gaussians.means.detach().double().cpu()[seen].numpy()
    variances = _rotation(gaussians).square() @ (2 * gaussians.log_scales.detach().double()).exp()[:, :, None]
    reach = SUPPORT * variances[:, :, 0].sqrt().cpu()[seen].numpy()
    low, high = np.quantile(means - reach, 0.002, axis=0), np.quantile(means + reach, 0.998, axis=0)
    if bool((np.abs(means) < SPACE).all(1).any()):
        low, high = low.clip(-SPACE, SPACE), high.clip(-SPACE, SPACE)
    return 0.5 * (low + high), max(0.525 * float((high - low).max()), 1e-3)


@dataclass(frozen=True)
class Density:
    """grid [R, R, R] of what the finite ones of some Gaussians are, round `centre` [3] with half side `extent`; level:
    where their surface is."""

    grid: Array
    centre: Array
    extent: float
    level: float
    gaussians: Gaussians

    @property
    def cell(self) -> float:
        return 2 * self.extent / (len(self.grid) - 1)


def extract(
    gaussians: Gaussians,
    resolution: int = 128,
    faces: int = 10_000,
    silhouettes: Callable[[Mesh], float] | None = None,
) -> Mesh:
    """A watertight mesh of about `faces` faces around the Gaussians; never empty.

    silhouettes(mesh): how well a mesh fits the renders' alphas, higher is better; the density threshold is
    the best of several by it, else DreamGaussian's 1, or less where most Gaussians would fall through it.
    Raises UserError for N = 0.
    """
    found = density_of(gaussians, resolution, silhouettes)
    return meshed(found.grid, found.level, found.cell, found.centre - found.extent, faces)


def density_of(
    gaussians: Gaussians,
    resolution: int,
    silhouettes: Callable[[Mesh], float] | None = None,
    centred: bool = False,
) -> Density:
    """Of Gaussians, and the level that `extract` takes. centred: round the origin. Raises UserError for N = 0."""
    finite = torch.stack(
        [t.detach().flatten(1).isfinite().all(1) for _, t in gaussians.items() if t.ndim > 1]
    ).all(0)
    finite &= gaussians.logit_opacities.detach().isfinite()
    gaussians = gaussians.map(lambda tensor: tensor.detach()[finite])
    if len(gaussians) == 0:
        raise UserError(
            "there is nothing to make a mesh of: no Gaussian is left; run again with resume=false"
        )
    centre, extent = _box(gaussians)
    if centred:
        centre, extent = np.zeros(3), extent + float(np.abs(centre).max())
    grid = density_grid(gaussians, resolution, extent, centre.tolist())
    grid = gaussian_filter(grid, 0.7, mode="constant")
    cell = 2 * extent / (resolution - 1)
    at = np.round((gaussians.means.cpu().numpy() - centre + extent) / cell).clip(0, resolution - 1)
    typical = float(np.median(grid[tuple(at.astype(np.int64).T)]))
    level = fitting(grid, LEVELS, min(1.0, 0.9 * typical), cell, centre - extent, silhouettes)
    return Density(grid, centre, extent, level, gaussians)


def meshed(grid: Array, level: float, cell: float, low: Array, faces: int) -> Mesh:
    """About `faces` faces around what is above a level, above 0, of grid [R, R, R], whose first point is `low` [3]."""
    mesh = clean(_surface(solid(grid, level), level, cell, low), faces)
    for stride in (2, 4):  # a surface too rugged to decimate without holes is taken from a coarser field
        if len(mesh.faces) <= 2 * faces:
            break
        field = gaussian_filter(grid, 0.7 * stride, mode="constant")[::stride, ::stride, ::stride]
        same_volume = float(np.quantile(field, 1 - (grid > level).mean()))
        coarse = _surface(solid(field, same_volume), same_volume, cell * stride, low)
        mesh = clean(coarse, faces)
    return mesh


def fitting(
    grid: Array,
    levels: Sequence[float],
    usual: float,
    cell: float,
    low: Array,
    silhouettes: Callable[[Mesh], float] | None,
) -> float:
    """The one of several levels below the grid's peak, or half way between two of them, whose silhouettes fit best;
    where none judge, the highest that is at most `usual`."""
    peak = float(grid.max())
    levels = [level for level in levels if level < 0.9 * peak] or [0.5 * peak]
    if silhouettes is None:
        return max([level for level in levels if level <= usual], default=levels[0])

    def fit(
        level: float,
    ) -> float:  # as it is: smoothing and decimation, the dear part, move no outline by a pixel
        return silhouettes(from_trimesh(_surface(solid(grid, level), level, cell, low)))

    fits = {level: fit(level) for level in levels}
    best = max(levels, key=lambda level: fits[level])
    place = levels.index(best)
    for other in (*levels[max(place - 1, 0) : place], *levels[place + 1 : place + 2]):
        between = math.sqrt(best * other)
        fits[between] = fit(between)
    return max(fits, key=lambda level: fits[level])


def solid(grid: Array, level: float, pinhole: int = 1) -> Array:
    """The field without floaters above the level, and with cavities filled: nobody sees into them, nor through a hole
    in their walls of twice `pinhole` voxels.

    Done on voxels, since it also takes what floats inside a cavity, and needs no watertight parts.
    """
    box = _box_of(grid > level)
    part = grid[box]  # most of the grid is empty
    inside, count = label(part > level, CUBE)
    if count == 0:
        return grid
    sizes = np.bincount(inside.reshape(-1))
    sizes[0] = 0
    kept = sizes >= KEPT_SHARE * sizes.max()
    grid = grid.copy()
    grid[box] = np.where((inside > 0) & ~kept[inside], 0, part)
    box = _box_of(grid > level)
    room = pinhole + 2  # to walk round it, also where it is dilated
    padded = np.pad(grid[box] > level, room)
    hidden = _shut_off(padded)
    thick = padded
    for _ in range(pinhole):
        thick = _dilated(thick)
    behind = _shut_off(thick)
    for _ in range(pinhole):
        behind = _dilated(behind)
    hidden |= behind & ~padded
    inner = slice(room, -room)
    grid[box] = np.where(hidden[inner, inner, inner], np.float32(2 * level), grid[box])
    return grid


def _box_of(inside: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box of what is true; empty where nothing is."""
    spans = []
    for axis in range(3):
        found = np.flatnonzero(inside.any(tuple(other for other in range(3) if other != axis)))
        spans.append(slice(found[0], found[-1] + 1) if len(found) else slice(0, 0))
    return tuple(spans)


def _dilated(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """By a cube of three voxels, an axis at a time; scipy's binary_dilation looks at all 27."""
    for axis in range(3):
        grown = inside.copy()
        ahead, behind = [slice(None)] * 3, [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        grown[tuple(ahead)] |= inside[tuple(behind)]
        grown[tuple(behind)] |= inside[tuple(ahead)]
        inside = grown
    return inside


def _shut_off(walls: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is not wall and cannot be reached from the corner, a step along an axis at a time."""
    rooms, _ = label(~walls)
    return (rooms > 0) & (rooms != rooms[0, 0, 0])


def _surface(grid: Array, level: float, cell: float, low: Array) -> trimesh.Trimesh:
    """Marching cubes; a border of nothing closes what the grid cuts. Degenerate fields give a small ball."""
    padded = np.pad(grid, 1)
    if not 0.0 < level < float(padded.max()):
        return trimesh.creation.icosphere(3, radius=2 * cell).apply_translation(low + 0.5 * cell * len(grid))
    vertices, faces, _, _ = marching_cubes(padded, level, gradient_direction="ascent")
    return trimesh.Trimesh(
        (vertices - 1) * cell + low, faces, process=False
    )  # merging would pinch thin sheets


def clean(mesh: trimesh.Trimesh, faces: int) -> Mesh:
    """Smoothed, decimated to about `faces`, closed and facing outward."""
    mesh = trimesh.smoothing.filter_taubin(mesh, iterations=SMOOTHING)
    closed = mesh
    for eagerness in (5, 2):  # the gentler the decimation, the fewer surfaces it folds open
        if len(closed.faces) <= faces:
            break
        points, triangles = fast_simplification.simplify(
            closed.vertices.astype(np.float32),
            closed.faces.astype(np.int32),
            target_count=faces,
            agg=eagerness,
        )
        mesh = trimesh.Trimesh(points, triangles, process=False)
        if not mesh.is_watertight:
            trimesh.repair.fill_holes(mesh)
        if mesh.is_watertight:
            break
        mesh = closed  # more faces than asked for, but no holes
    trimesh.repair.fix_normals(mesh, multibody=True)
    return from_trimesh(mesh)
