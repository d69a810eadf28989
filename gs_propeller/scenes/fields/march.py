"""Rendering a field: grids added up, cells that hold nothing skipped, rays marched.

V views, S pixels along a side, R corners along a side of the finest grid. Two routes with one result: compiled kernels
with their adjoints in the host's memory (kernels.py, where the formulas stand), and torch's own operations on any
device, `composed_torch` and `march_torch`, which the tests hold the kernels against. What is skipped is a function of
the grids alone: no state is kept from step to step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.base.threads import run
from gs_propeller.scenes.fields import kernels
from gs_propeller.scenes.fields.kernels import DARK, FLAT, PARTS
from gs_propeller.scenes.fields.state import Grids

FAINT = 0.01  # a density, per world unit, that is none
FAR = 7.0  # a distance in units of 1 / sharpness at which a surface lets all light pass but a thousandth

Group = tuple[Cameras, int, Tensor]  # V cameras, pixels along a side, backgrounds [3] or [V, 3]


@dataclass(frozen=True)
class Look:
    """How grids are seen. extent: half the cube's side; radius, peak: of the first density, or of the first ball; step:
    between samples, in finest cells; sdf: whether channel 0 is a distance, and then its sharpness and the annealing of
    the cosine, 0 to 1."""

    extent: float
    radius: float
    peak: float
    step: float
    sdf: bool = False
    sharpness: float = 1.0
    ratio: float = 1.0

    def bound(self, cell: float) -> float:
        """Channel 0 from which a corner makes its cells count, upwards for a density, downwards for a distance."""
        return FAR / self.sharpness + self.step * cell if self.sdf else math.log(math.expm1(FAINT))


@dataclass(frozen=True)
class FieldView:
    """image [V, 3, S, S]; alpha [V, 1, S, S]; where asked for normal [V, 3, S, S], the mean outward one, and away
    [V, 1, S, S], sum of w max(n . d, 0)^2 with d the view's direction; grid [R, R, R, 4]: what was rendered."""

    image: Tensor
    alpha: Tensor
    normal: Tensor | None
    away: Tensor | None
    grid: Tensor


def render(grids: Grids, look: Look, groups: Sequence[Group], normals: bool = False) -> list[FieldView]:
    """Each group of views, differentiable in the grids; one sum of the grids for all. Raises ValueError."""
    for _, size, _ in groups:
        if size < 1:
            raise ValueError(f"size must be at least 1 px, got {size}")
    if not groups:
        return []
    grid = composed(grids, look)
    cell = 2 * look.extent / grids.cells
    occupied = occupancy(grid, look, cell)
    march = march_cpu if grid.device.type == "cpu" else march_torch
    views = []
    for cameras, size, background in groups:
        backdrop = background.detach().to(grid).expand(len(cameras), 3)
        out = march(grid, occupied, look, cameras, size, backdrop, normals)
        normal, away = (out[:, 4:7], out[:, 7:8]) if normals else (None, None)
        views.append(FieldView(out[:, :3], out[:, 3:4], normal, away, grid))
    return views


# ---- the grid


def composed(grids: Grids, look: Look) -> Tensor:
    """[R, R, R, C] what grids hold at the finest one's corners, the first density or distance included."""
    if grids.device.type != "cpu":
        return composed_torch(grids, look)
    return _Compose.apply(ground(grids.levels[-1], look), *grids.levels)  # type: ignore[no-any-return]


def composed_torch(grids: Grids, look: Look) -> Tensor:
    """The same by torch's operations."""
    total = grids.levels[0]
    for level in grids.levels[1:]:
        for axis in range(3):
            size = total.shape[axis] - 1
            low, high = total.narrow(axis, 0, size), total.narrow(axis, 1, size)
            between = torch.stack([low, 0.5 * (low + high)], axis + 1).flatten(axis, axis + 1)
            total = torch.cat([between, total.narrow(axis, size, 1)], axis)
        total = total + level
    return total + F.pad(ground(total, look)[..., None], (0, total.shape[-1] - 1))


def ground(like: Tensor, look: Look) -> Tensor:
    """[R, R, R]: what channel 0 is before training, 10 (1 - r / 0.5) of DreamFusion, or the distance from a ball."""
    return _ground_of(
        like.shape[0], look.extent, look.radius, look.peak, look.sdf, like.dtype, str(like.device)
    )


@lru_cache(maxsize=4)
def _ground_of(
    side: int, extent: float, radius: float, peak: float, sdf: bool, dtype: torch.dtype, device: str
) -> Tensor:
    axis = torch.linspace(-extent, extent, side, dtype=torch.float64).square()
    r = (axis[:, None, None] + axis[None, :, None] + axis[None, None, :]).sqrt()
    return (r - radius if sdf else peak * (1 - r / radius)).to(device, dtype)


def occupancy(grid: Tensor, look: Look, cell: float) -> Tensor:
    """[R - 1] ^ 3 bool: cells where something may be seen. A cell's inside lies between its corners' least and most."""
    grid = grid.detach()
    if grid.device.type == "cpu":
        occupied = torch.empty([len(grid) - 1] * 3, dtype=torch.bool)
        run(kernels.occupy, grid.numpy(), look.sdf, look.bound(cell), occupied.numpy())
        return occupied
    sign = -1.0 if look.sdf else 1.0
    most = F.max_pool3d(sign * grid[None, None, ..., 0], 2, 1)[0, 0]
    return most > sign * look.bound(cell)


class _Compose(torch.autograd.Function):
    """The kernels' route of composed."""

    @staticmethod
    def forward(ctx: Any, ground: Tensor, *levels: Tensor) -> Tensor:
        total = levels[0].detach()
        for level in levels[1:]:
            finer = torch.empty_like(level)
            run(kernels.refine, total.numpy(), level.detach().numpy(), finer.numpy())
            total = finer
        if len(levels) == 1:
            total = total.clone()
        total[..., 0] += ground
        ctx.shapes = [level.shape for level in levels]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = [grad.contiguous()]
        for shape in reversed(ctx.shapes[:-1]):
            coarser = grads[0].new_empty(shape)
            run(kernels.coarsen, grads[0].numpy(), coarser.numpy())
            grads.insert(0, coarser)
        return None, *grads


# ---- the rays


def march_cpu(
    grid: Tensor, occupied: Tensor, look: Look, cameras: Cameras, size: int, backdrop: Tensor, normals: bool
) -> Tensor:
    """[V, 4 or 8, S, S]: colour over the backdrop [V, 3], alpha; with normals mean normal and `away`."""
    cell = 2 * look.extent / (len(grid) - 1)
    poses = cameras.w2c.double().numpy()
    lens = np.array([cameras.focal_px(size), size, size], np.float64)
    where = (-look.extent, cell, poses, lens)
    how = (look.step * cell, look.sdf, look.sharpness, look.ratio)
    return _March.apply(grid, occupied.numpy(), where, backdrop.double().numpy(), how, size, normals)  # type: ignore[no-any-return]


class _March(torch.autograd.Function):
    """The kernels' route of march."""

    @staticmethod
    def forward(
        ctx: Any, grid: Tensor, occupied: np.ndarray, where: Any, backdrop: np.ndarray, how: Any, size: int,
        normals: bool,
    ) -> Tensor:  # fmt: skip
        out = np.empty((len(backdrop), 8 if normals else 4, size, size))
        run(kernels.march, grid.detach().numpy(), occupied, *where, backdrop, *how, out)
        ctx.save_for_backward(grid)
        ctx.kept = occupied, where, how, out
        return torch.from_numpy(out).to(grid.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (grid,), (occupied, where, how, out) = ctx.saved_tensors, ctx.kept
        grads = np.zeros((PARTS, *grid.shape), grid.numpy().dtype)  # pages that no ray reaches stay unwritten
        given = grad.contiguous().numpy()
        run(kernels.march_adjoint, grid.numpy(), occupied, *where, *how, out, given, grads)
        total = torch.empty_like(grid)
        run(kernels.gather, grads, total.numpy())
        return total, None, None, None, None, None, None


def march_torch(
    grid: Tensor, occupied: Tensor, look: Look, cameras: Cameras, size: int, backdrop: Tensor, normals: bool
) -> Tensor:
    """The same by torch's operations, a view at a time."""
    return torch.stack(
        [
            _view_torch(grid, occupied, look, cameras[v : v + 1], size, backdrop[v], normals)
            for v in range(len(cameras))
        ]
    )


def _view_torch(
    grid: Tensor, occupied: Tensor, look: Look, camera: Cameras, size: int, backdrop: Tensor, normals: bool
) -> Tensor:
    """[4 or 8, S, S] of one view. N rays, M samples of the longest, K of all rays that count."""
    cells = len(grid) - 1
    cell = 2 * look.extent / cells
    step = look.step * cell
    pose = camera.w2c[0].to(grid.device, torch.float64)
    pixel = (
        torch.arange(size, device=grid.device, dtype=torch.float64) + 0.5 - 0.5 * size
    ) / camera.focal_px(size)
    seen = torch.stack(
        [
            pixel.expand(size, size),
            pixel[:, None].expand(size, size),
            torch.ones_like(pixel.expand(size, size)),
        ],
        -1,
    )
    direction = F.normalize(seen.reshape(-1, 3), dim=1) @ pose[:3, :3]  # [N, 3]
    ray = direction / cell
    start = (-(pose[:3, :3].T @ pose[:3, 3]) + look.extent) / cell
    ends = torch.stack([-start / ray, (cells - start) / ray])
    near, far = ends.amin(0).amax(1).clamp_min(0), ends.amax(0).amin(1)
    count = ((far - near) / step).floor().clamp_min(0).long()
    m = torch.arange(int(count.max()), device=grid.device)
    t = near[:, None] + (m + 0.5) * step  # [N, M]
    place = start + t[..., None] * ray[:, None]
    corner = place.long().clamp(0, cells - 1)
    counts = (m < count[:, None]) & occupied[corner.unbind(-1)]

    corner, of_ray = corner[counts], ray[:, None].expand_as(place)[counts]  # [K, 3]
    x = (place[counts] - corner).to(grid)
    values, slope = grid.new_zeros(len(corner), 4), grid.new_zeros(len(corner), 3)
    for n in range(8):
        shift = torch.tensor([n & 1, n >> 1 & 1, n >> 2], device=grid.device)
        at, sides = grid[(corner + shift).unbind(1)], torch.where(shift > 0, x, 1 - x)
        values = values + at * sides.prod(1, keepdim=True)
        others = torch.stack(
            [sides[:, 1] * sides[:, 2], sides[:, 0] * sides[:, 2], sides[:, 0] * sides[:, 1]], 1
        )
        slope = slope + at[:, :1] * others * (2 * shift - 1)
    of_ray = of_ray.to(grid)
    passing = _passing(values[:, 0], (slope * of_ray).sum(1), look, step)

    through = _spread(passing[:, None], counts)[..., 0].cumsum(1)
    alive = (through - _spread(passing[:, None], counts)[..., 0]).exp() >= DARK
    lit = torch.where(alive, _spread(passing[:, None], counts)[..., 0], 0.0)
    light = lit.cumsum(1).exp()
    before = torch.cat([torch.ones_like(light[:, :1]), light[:, :-1]], 1)
    w = (before - light)[..., None]  # [N, M, 1]
    alpha = w.sum(1)
    parts = [(w * _spread(values[:, 1:].sigmoid(), counts)).sum(1) + (1 - alpha) * backdrop, alpha]
    if normals:
        outward = slope if look.sdf else -slope
        normal = outward / (slope.square().sum(1, keepdim=True) + FLAT).sqrt()
        facing = (normal * of_ray).sum(1, keepdim=True).clamp_min(0) * cell
        parts.append((w * _spread(normal, counts)).sum(1))
        parts.append((w.detach() * _spread(facing.square(), counts)).sum(1))
    return torch.cat(parts, 1).T.reshape(-1, size, size)


def _spread(values: Tensor, counts: Tensor) -> Tensor:
    """[N, M, C] of values [K, C], zero where nothing counts."""
    dense = values.new_zeros(*counts.shape, values.shape[1])
    return dense.masked_scatter(counts[..., None].expand_as(dense), values)


def _passing(f: Tensor, slope: Tensor, look: Look, step: float) -> Tensor:
    """The logarithm of the light that samples let pass."""
    if not look.sdf:
        return -step * F.softplus(f)
    c = -(F.relu(0.5 - 0.5 * slope) * (1 - look.ratio) + F.relu(-slope) * look.ratio)
    h = 0.5 * step * c
    ahead, behind = (F.softplus(-look.sharpness * x) for x in (f + h, f - h))
    return -F.relu(ahead - behind)


def warm() -> None:
    """Compile every kernel, or load it from the cache, by rendering a tiny field. Takes seconds once."""
    levels = tuple(torch.zeros(side, side, side, 4, requires_grad=True) for side in (2, 3))
    cameras, white = orbit([0.0], [0.0], 2.0, 0.857), torch.ones(3)
    (view,) = render(Grids(levels), Look(1.0, 0.5, 10.0, 0.5), [(cameras, 4, white)])
    view.image.sum().backward()
