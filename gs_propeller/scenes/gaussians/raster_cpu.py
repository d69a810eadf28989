"""The CPU rasteriser: two autograd functions over compiled kernels, threads, bounded memory.

N Gaussians, V views; a splat is one Gaussian in one view (raster_cpu_project). The kernels release
the interpreter's lock and take (part, parts), so threads are plain Python threads that run one and
the same compiled code on different parts. Every sum lies within one part or is taken in a fixed
order, and nothing is compiled with fast-math: the bits do not depend on the number of threads.
Numba's own `parallel=True` lost: its thread pools are unsafe either after a fork (omp) or when entered
from two threads (workqueue), and it would be a second compilation whose bits need not be the first's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.scenes.gaussians import raster_cpu_bins as bins
from gs_propeller.scenes.gaussians import raster_cpu_tiles as tiles
from gs_propeller.scenes.gaussians.raster_cpu_project import project, project_adjoint
from gs_propeller.scenes.gaussians.raster_cpu_tiles import RECORD, TILE
from gs_propeller.scenes.gaussians.state import Gaussians

# Bound on the lists and gradient records of (tile, splat) pairs held at once, in bytes. Beyond it
# tiles are taken in several runs, with the same result; a single tile's list is never cut, so the
# true bound is the larger of this and 48 N bytes.
BUDGET_BYTES = 64 << 20
MAX_GAUSSIANS = 1 << 24  # a position in a tile's list is kept as a float32

_threads: int | None = None
_pool: tuple[int, ThreadPoolExecutor] | None = None


def set_threads(threads: int | None) -> None:
    """Threads that the rasteriser uses, at least 1; None: as many as torch."""
    global _threads
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    _threads = threads


def get_threads() -> int:
    return torch.get_num_threads() if _threads is None else _threads


def _forget_pool() -> None:
    """A forked child inherits the pool but not its threads."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def _run(kernel: Callable[..., None], *args: Any) -> None:
    """kernel(*args, part, parts) for every part; one thread starts no pool."""
    global _pool
    parts = get_threads()
    if parts == 1:
        kernel(*args, 0, 1)
        return
    if _pool is None or _pool[0] != parts:
        _pool = (parts, ThreadPoolExecutor(parts - 1, thread_name_prefix="raster"))
    others = [_pool[1].submit(kernel, *args, part, parts) for part in range(1, parts)]
    kernel(*args, 0, parts)
    for other in others:
        other.result()


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
    return tensor.detach().to(torch.float32).contiguous().numpy()


class _Project(torch.autograd.Function):
    """Gaussians' fields -> means2d [V, N, 2], splats [V, N, 8], radii [V, N], reach [V, N, 2]."""

    @staticmethod
    def forward(ctx: Any, cameras: Cameras, size: tuple[int, int], *fields: Tensor) -> tuple[Tensor, ...]:
        poses = cameras.w2c.double()
        centres = -(poses[:, :3, :3].transpose(1, 2) @ poses[:, :3, 3:])[:, :, 0]
        degree = {0: 0, 3: 1, 8: 2, 15: 3}[fields[5].shape[1]]
        eyes = (poses.contiguous().numpy(), centres.contiguous().numpy())
        ctx.view = (degree, eyes, cameras.focal_px(size[0]), size)
        shape = (len(cameras), fields[0].shape[0])
        outputs = tuple(torch.empty(*shape, *tail) for tail in ((2,), (8,), (), (2,)))
        arrays = tuple(_array(field) for field in fields)
        _run(project, arrays, *ctx.view, *(output.numpy() for output in outputs))
        ctx.save_for_backward(outputs[2], *fields)
        ctx.mark_non_differentiable(*outputs[2:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_means2d: Tensor, g_splats: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        radii, *fields = ctx.saved_tensors
        arrays = tuple(_array(field) for field in fields)
        grads = tuple(torch.empty(field.shape) for field in fields)
        out = tuple(grad.numpy() for grad in grads)
        _run(project_adjoint, arrays, *ctx.view, _array(radii), _array(g_means2d), _array(g_splats), out)
        return None, None, *grads


class _Blend(torch.autograd.Function):
    """Splats -> image [V, 3, H, W], alpha [V, 1, H, W], depth [V, 1, H, W]."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        splats: Tensor,
        radii: Tensor,
        reach: Tensor,
        background: Tensor,
        size: tuple[int, int],
    ) -> tuple[Tensor, ...]:
        views, n = radii.shape
        height, width = size
        grid = (-(-height // TILE), -(-width // TILE))
        centres, looks, radii_px, box = _array(means2d), _array(splats), _array(radii), _array(reach)
        order, visible = np.empty((views, n), np.int32), np.empty(views, np.int64)
        _run(bins.sort_by_depth, looks, box, order, visible)
        counts = np.zeros(views * grid[0] * grid[1], np.int64)
        _run(bins.count, order, visible, centres, radii_px, box, grid, counts)
        starts = _starts(counts)

        outputs = tuple(torch.empty(views, channels, height, width) for channels in (3, 1, 1))
        saved = (np.empty((views, height, width), np.float32), np.empty((views, height, width), np.float32))
        used = np.empty(len(counts), np.int64)
        out = (*(output.numpy() for output in outputs), *saved, used)
        backdrop = _array(background)
        no_slots, no_firsts = np.empty(0, np.int32), np.empty((0, 0), np.int32)
        for first, end in _runs(starts, 4):
            local = starts[first : end + 1] - starts[first]
            ids = np.empty(local[-1], np.int32)
            lists = (order, visible, centres, radii_px, box, grid, first, local, ids)
            _run(bins.fill, *lists, no_slots, no_firsts)
            _run(tiles.blend, ids, local, first, grid, centres, looks, box, backdrop, out)
        ctx.save_for_backward(means2d, splats, radii, reach)
        ctx.lists = (backdrop, grid, order, visible, _starts(used), saved)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        centres, looks, radii_px, box = (_array(tensor) for tensor in ctx.saved_tensors)
        backdrop, grid, order, visible, starts, saved = ctx.lists
        views, n = radii_px.shape
        per_view = grid[0] * grid[1]
        grads_out = tuple(_array(cotangent) for cotangent in cotangents)
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
        return g_means2d, g_splats, None, None, None, None


def splat(
    gaussians: Gaussians, cameras: Cameras, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Projection alone: means2d, splats, radii and reach, as in raster_cpu_project."""
    return _Project.apply(cameras, size, *(tensor for _, tensor in gaussians.items()))


def render_cpu(
    scenes: Sequence[Gaussians],
    cameras: Sequence[Cameras],
    size: tuple[int, int],
    backgrounds: Sequence[Tensor],
) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """K times image, alpha, depth, radii_px and means2d, as in raster.Rendered; backgrounds [V, 3] each.

    Smaller scenes are filled up with splats of radius 0, which no tile lists: views do not feel each other.
    """
    largest = max(len(scene) for scene in scenes)
    if largest > MAX_GAUSSIANS:
        raise ValueError(f"at most {MAX_GAUSSIANS} Gaussians, got {largest}")
    seen = [splat(scene, eyes, size) for scene, eyes in zip(scenes, cameras, strict=True)]
    for means2d, *_ in seen:
        if means2d.requires_grad:
            means2d.retain_grad()
    padded = [[_filled(part, largest) for part in parts] for parts in seen]
    stacked = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*padded, strict=True)]
    blended = _Blend.apply(*stacked, torch.cat(list(backgrounds)), size)
    views = [len(eyes) for eyes in cameras]
    pictures = zip(*(part.split(views) for part in blended), strict=True)
    return [
        (*picture, radii, means2d) for picture, (means2d, _, radii, _) in zip(pictures, seen, strict=True)
    ]


def _filled(part: Tensor, rows: int) -> Tensor:
    """[V, N, ...] with zeros up to so many rows."""
    if part.shape[1] == rows:
        return part
    return torch.cat([part, part.new_zeros(len(part), rows - part.shape[1], *part.shape[2:])], 1)


def warm() -> None:
    """Compile every kernel, or load it from the cache, by rendering a tiny scene. Takes seconds once."""
    sh = torch.zeros(2, 15, 3)
    fields = (torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 4), torch.zeros(2), sh[:, :1], sh)
    leaves = [field.clone().requires_grad_() for field in fields]
    cameras = orbit([0.0], [0.0], 2.0, 0.857)
    (rendered,) = render_cpu([Gaussians(*leaves)], [cameras], (TILE, TILE), [torch.zeros(1, 3)])
    (rendered[0].sum() + rendered[1].sum() + rendered[2].sum()).backward()
