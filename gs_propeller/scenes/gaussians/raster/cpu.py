"""The CPU rasteriser: two autograd functions over compiled kernels, threads, bounded memory.

N Gaussians, V views; a splat is one Gaussian in one view (cpu_project). Kernels run
in parts (base/threads.py). Every sum lies within one part or is taken in a fixed order, and nothing is
compiled with fast-math: the bits do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.base.threads import get_threads, set_threads
from gs_propeller.base.threads import run as _run
from gs_propeller.scenes.gaussians.raster import cpu_bins as bins
from gs_propeller.scenes.gaussians.raster import cpu_tiles as tiles
from gs_propeller.scenes.gaussians.raster.cpu_project import lens, project, project_adjoint
from gs_propeller.scenes.gaussians.raster.cpu_tiles import RECORD, TILE
from gs_propeller.scenes.gaussians.state import Gaussians

# Bound on the lists and gradient records of (tile, splat) pairs held at once, in bytes. Beyond it
# tiles are taken in several runs, with the same result; a single tile's list is never cut, so the
# true bound is the larger of this and 48 N bytes.
BUDGET_BYTES = 64 << 20
MAX_GAUSSIANS = 1 << 24  # a position in a tile's list is kept as a float32

Group = tuple[Cameras, tuple[int, int], Tensor]  # V cameras, (height, width) px, backgrounds [V, 3]
Images = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # image, alpha, depth, radii_px, means2d
__all__ = ["get_threads", "render_cpu", "set_threads", "splat", "warm"]


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)])


def _runs(starts: np.ndarray, pair_bytes: int) -> Iterator[tuple[int, int]]:
    """Runs of tiles [first, end) whose lists fit the budget together; at least one tile each."""
    first, tiles_n = 0, len(starts) - 1
    while first < tiles_n:
        fits = int(np.searchsorted(starts, starts[first] + BUDGET_BYTES // pair_bytes, side="right")) - 1
        end = min(max(fits, first + 1), tiles_n)
        yield first, end
        first = end


def _array(tensor: Tensor) -> np.ndarray:
    if tensor.dtype is torch.float32 and tensor.is_contiguous():  # most are: two calls less
        return tensor.detach().numpy()
    return tensor.detach().to(torch.float32).contiguous().numpy()


class _Eyes(NamedTuple):
    """All views of a call, group after group. poses [V, 4, 4] and centres [V, 3] float64; lenses [V, 5] float64: focal
    length, width, height px, and the slopes at which the Jacobian is clamped; views: how many each group has."""

    poses: np.ndarray
    centres: np.ndarray
    lenses: np.ndarray
    views: tuple[int, ...]

    @staticmethod
    def of(groups: Sequence[Group]) -> _Eyes:
        poses = np.concatenate([cameras.w2c.numpy() for cameras, _, _ in groups]).astype(np.float64)
        centres = -(poses[:, :3, :3] * poses[:, :3, 3:]).sum(1)  # -R^T t
        lenses = [
            lens(cameras.focal_px(size[0]), *size) for cameras, size, _ in groups for _ in range(len(cameras))
        ]
        views = tuple(len(cameras) for cameras, _, _ in groups)
        return _Eyes(poses, centres, np.array(lenses, np.float64).reshape(-1, 5), views)

    def split(self, part: Tensor) -> tuple[Tensor, ...]:
        return part.split(self.views) if len(self.views) > 1 else (part,)


class _Project(torch.autograd.Function):
    """Gaussians' fields -> means2d [V, N, 2], splats [V, N, 8], radii [V, N], reach [V, N, 2], each for every group."""

    @staticmethod
    def forward(ctx: Any, eyes: _Eyes, *fields: Tensor) -> tuple[Tensor, ...]:
        ctx.degree = {0: 0, 3: 1, 8: 2, 15: 3}[fields[5].shape[1]]
        ctx.eyes = eyes
        shape = (len(eyes.poses), fields[0].shape[0])
        outputs = tuple(torch.empty(*shape, *tail) for tail in ((2,), (8,), (), (2,)))
        arrays = tuple(_array(field) for field in fields)
        _run(project, arrays, ctx.degree, eyes[:3], *(output.numpy() for output in outputs))
        ctx.radii = outputs[2].numpy()
        ctx.save_for_backward(*fields)
        parts = tuple(part for output in outputs for part in eyes.split(output))
        ctx.mark_non_differentiable(*parts[2 * len(eyes.views) :])
        return parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        fields = ctx.saved_tensors
        arrays = tuple(_array(field) for field in fields)
        grads = tuple(torch.empty(field.shape) for field in fields)
        groups = len(ctx.eyes.views)
        g_means2d, g_splats = (
            np.concatenate([_array(part) for part in parts]) if groups > 1 else _array(parts[0])
            for parts in (cotangents[:groups], cotangents[groups : 2 * groups])
        )
        out = tuple(grad.numpy() for grad in grads)
        _run(project_adjoint, arrays, ctx.degree, ctx.eyes[:3], ctx.radii, g_means2d, g_splats, out)
        return None, *grads


class _Splats(NamedTuple):
    """Of a group, as arrays: means2d, splats, radii and reach."""

    centres: np.ndarray
    looks: np.ndarray
    radii_px: np.ndarray
    box: np.ndarray


class _Listed(NamedTuple):
    """What the blending of a group leaves to its adjoint."""

    backdrop: np.ndarray
    grid: tuple[int, int]
    order: np.ndarray
    visible: np.ndarray
    starts: np.ndarray
    saved: tuple[np.ndarray, np.ndarray]


class _Blend(torch.autograd.Function):
    """Splats -> image [V, 3, H, W], alpha [V, 1, H, W], depth [V, 1, H, W], of every group.

    parts: the means2d of all groups, their splats, radii and reach, as _Project gives them.
    """

    @staticmethod
    def forward(ctx: Any, groups: Sequence[Group], *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*parts)
        ctx.lists = []
        outputs: list[Tensor] = []
        for k, (_, size, background) in enumerate(groups):
            seen = _Splats(*(_array(part) for part in parts[k :: len(groups)]))
            pictures, listed = _blended(seen, _array(background), size)
            ctx.lists.append(listed)
            outputs += pictures
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        groups = len(ctx.lists)
        grads: list[Tensor | None] = [None] * (4 * groups)
        for k, listed in enumerate(ctx.lists):
            seen = _Splats(*(_array(part) for part in ctx.saved_tensors[k::groups]))
            asked = cotangents[3 * k : 3 * k + 3]
            if any(cotangent is not None for cotangent in asked):
                grads[k], grads[groups + k] = _pulled_back(seen, listed, asked)
        return None, *grads


def _blended(
    seen: _Splats, backdrop: np.ndarray, size: tuple[int, int]
) -> tuple[tuple[Tensor, ...], _Listed]:
    """image, alpha and depth of a group, and what their adjoint needs."""
    centres, looks, radii_px, box = seen
    views, n = radii_px.shape
    height, width = size
    grid = (-(-height // TILE), -(-width // TILE))
    order, visible = np.empty((views, n), np.int32), np.empty(views, np.int64)
    _run(bins.sort_by_depth, looks, box, order, visible)
    counts = np.zeros(views * grid[0] * grid[1], np.int64)
    _run(bins.count, order, visible, centres, radii_px, box, grid, counts)
    starts = _starts(counts)

    outputs = tuple(torch.empty(views, channels, height, width) for channels in (3, 1, 1))
    saved = (np.empty((views, height, width), np.float32), np.empty((views, height, width), np.float32))
    used = np.empty(len(counts), np.int64)
    out = (*(output.numpy() for output in outputs), *saved, used)
    no_slots, no_firsts = np.empty(0, np.int32), np.empty((0, 0), np.int32)
    for first, end in _runs(starts, 4):
        local = starts[first : end + 1] - starts[first]
        ids = np.empty(local[-1], np.int32)
        lists = (order, visible, centres, radii_px, box, grid, first, local, ids)
        _run(bins.fill, *lists, no_slots, no_firsts)
        _run(tiles.blend, ids, local, first, grid, centres, looks, box, backdrop, out)
    return outputs, _Listed(backdrop, grid, order, visible, _starts(used), saved)


def _pulled_back(
    seen: _Splats, listed: _Listed, cotangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Gradients at the means2d and splats of a group; a cotangent that is None is zero."""
    centres, looks, radii_px, box = seen
    backdrop, grid, order, visible, starts, saved = listed
    (views, n), pixels = radii_px.shape, saved[0].shape
    per_view = grid[0] * grid[1]
    grads_out = tuple(
        np.zeros((views, channels, *pixels[1:]), np.float32) if cotangent is None else _array(cotangent)
        for channels, cotangent in zip((3, 1, 1), cotangents, strict=True)
    )
    g_means2d, g_splats = torch.zeros(views, n, 2), torch.zeros(views, n, 8)
    for first, end in _runs(starts, 8 + 4 * RECORD):
        local = starts[first : end + 1] - starts[first]
        pairs = int(local[-1])
        if pairs == 0:
            continue
        ids, slots = np.empty(pairs, np.int32), np.empty(pairs, np.int32)
        records = np.empty((pairs, RECORD), np.float32)
        first_view, end_view = first // per_view, -(-end // per_view)
        firsts = np.empty((end_view - first_view, n + 1), np.int32)
        _run(bins.fill, order, visible, centres, radii_px, box, grid, first, local, ids, slots, firsts)
        lists = (ids, slots, local, first, grid, centres, looks, box, backdrop)
        _run(tiles.blend_adjoint, *lists, saved, grads_out, records)
        span = (first_view, end_view - first_view, firsts, records)
        _run(bins.gather, order, visible, *span, g_means2d.numpy(), g_splats.numpy())
    return g_means2d, g_splats


def splat(gaussians: Gaussians, groups: Sequence[Group]) -> tuple[Tensor, ...]:
    """Projection alone: of all groups means2d, then splats, radii and reach, as in cpu_project."""
    return _Project.apply(_Eyes.of(groups), *(tensor for _, tensor in gaussians.items()))  # type: ignore[no-any-return]


def render_cpu(gaussians: Gaussians, groups: Sequence[Group]) -> list[Images]:
    """Of each group image, alpha, depth, radii_px and means2d, as in raster.Rendered; one projection for all."""
    if len(gaussians) > MAX_GAUSSIANS:
        raise ValueError(f"at most {MAX_GAUSSIANS} Gaussians, got {len(gaussians)}")
    parts, k = splat(gaussians, groups), len(groups)
    means2d, radii = parts[:k], parts[2 * k : 3 * k]
    for part in means2d:
        if part.requires_grad:
            part.retain_grad()
    pictures = _Blend.apply(groups, *parts)
    return [(*pictures[3 * g : 3 * g + 3], radii[g], means2d[g]) for g in range(k)]


def warm() -> None:
    """Compile every kernel, or load it from the cache, by rendering a tiny scene. Takes seconds once."""
    sh = torch.zeros(2, 15, 3)
    fields = (torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 4), torch.zeros(2), sh[:, :1], sh)
    leaves = [field.clone().requires_grad_() for field in fields]
    cameras = orbit([0.0], [0.0], 2.0, 0.857)
    (rendered,) = render_cpu(Gaussians(*leaves), [(cameras, (TILE, TILE), torch.zeros(1, 3))])
    (rendered[0].sum() + rendered[1].sum() + rendered[2].sum()).backward()
