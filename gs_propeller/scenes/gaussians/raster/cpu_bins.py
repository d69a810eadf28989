"""Binning kernels of the CPU rasteriser: splats in depth order, listed tile by tile, and back.

N Gaussians, V views. order [V, N] holds in its first visible[v] places the ids of the view's visible
splats, near to far. Walking them in that order and appending to each tile's list leaves every list
sorted. Lists are made for a run of tiles at a time, so that their memory has a bound; a pair of
(tile, splat) also has a slot, numbered splat by splat, at which the blend's adjoint leaves its
gradient record: the records of one splat are neighbours and are summed in tile order.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from gs_propeller.scenes.gaussians.raster.cpu_tiles import RECORD, TILE


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def sort_by_depth(splats, reach, order, visible, part, parts):
    """Stable radix sort (11 bits at a time) on the bits of the depth: positive floats order as integers."""
    views, total = reach.shape[0], reach.shape[1]
    for v in range(part, views, parts):
        count = 0
        depth = np.empty(total, np.float32)
        ids = np.empty(total, np.int32)
        for n in range(total):
            if reach[v, n, 0] > 0.0:
                depth[count] = splats[v, n, 7]
                ids[count] = n
                count += 1
        visible[v] = count
        keys = depth.view(np.uint32)
        other_keys, other_ids = np.empty(count, np.uint32), np.empty(count, np.int32)
        for shift in (0, 11, 22):
            slots = np.zeros(2049, np.int64)
            for i in range(count):
                slots[((keys[i] >> np.uint32(shift)) & np.uint32(2047)) + 1] += 1
            for k in range(2048):
                slots[k + 1] += slots[k]
            for i in range(count):
                digit = (keys[i] >> np.uint32(shift)) & np.uint32(2047)
                other_keys[slots[digit]] = keys[i]
                other_ids[slots[digit]] = ids[i]
                slots[digit] += 1
            keys, other_keys = other_keys, keys
            ids, other_ids = other_ids, ids
        order[v, :count] = ids[:count]


@njit(cache=True, error_model="numpy")  # pragma: no cover - compiled
def _tile_range(mean, half, tiles):
    first = min(max(math.floor((mean - half) / TILE), 0.0), float(tiles))
    last = min(max(math.ceil((mean + half) / TILE), 0.0), float(tiles))
    return int(first), int(last)


@njit(cache=True, error_model="numpy")  # pragma: no cover - compiled
def _tile_box(mean, radius, reach, grid):
    """Tiles of 3DGS's square of that radius, less those that reach shows to be invisible."""
    rows = _tile_range(float(mean[1]), float(min(radius, reach[1])), grid[0])
    cols = _tile_range(float(mean[0]), float(min(radius, reach[0])), grid[1])
    return rows, cols


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def count(order, visible, means2d, radii, reach, grid, counts, part, parts):
    """counts [V * rows * cols]: splats in each tile. Parts share out the views."""
    for v in range(part, order.shape[0], parts):
        base = v * grid[0] * grid[1]
        for r in range(visible[v]):
            n = order[v, r]
            rows, cols = _tile_box(means2d[v, n], radii[v, n], reach[v, n], grid)
            for y in range(rows[0], rows[1]):
                for x in range(cols[0], cols[1]):
                    counts[base + y * grid[1] + x] += 1


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def fill(order, visible, means2d, radii, reach, grid, first_tile, starts, ids, slots, firsts, part, parts):
    """Lists for tiles first_tile ... first_tile + len(starts) - 2. Parts share out the views.

    A list ends where starts says, be it before the last splat that touches the tile.
    With slots (empty: not wanted) also each pair's slot, and firsts [views, N + 1]: the slots of the
    splat of rank r in view v are firsts[v, r] ... firsts[v, r + 1] - 1.
    """
    per_view = grid[0] * grid[1]
    end_tile = first_tile + starts.shape[0] - 1
    first_view, end_view = first_tile // per_view, (end_tile + per_view - 1) // per_view
    want_slots = slots.shape[0] > 0
    for v in range(first_view + part, end_view, parts):
        base = v * per_view
        low, high = max(first_tile, base), min(end_tile, base + per_view)
        cursor = starts[low - first_tile : high - first_tile].copy()
        slot = cursor[0]
        row_low, row_high = (low - base) // grid[1], (high - 1 - base) // grid[1] + 1
        for r in range(visible[v]):
            n = order[v, r]
            if want_slots:
                firsts[v - first_view, r] = slot
            rows, cols = _tile_box(means2d[v, n], radii[v, n], reach[v, n], grid)
            for y in range(max(rows[0], row_low), min(rows[1], row_high)):
                for x in range(cols[0], cols[1]):
                    tile = base + y * grid[1] + x
                    if low <= tile < high and cursor[tile - low] < starts[tile + 1 - first_tile]:
                        ids[cursor[tile - low]] = n
                        if want_slots:
                            slots[cursor[tile - low]] = slot
                        cursor[tile - low] += 1
                        slot += 1
        if want_slots:
            firsts[v - first_view, visible[v]] = slot


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def gather(order, visible, first_view, views, firsts, records, g_means2d, g_splats, part, parts):
    """Adds each splat's records to its gradient. Parts share out the splats of each view."""
    total = np.empty(RECORD, np.float32)
    for local in range(views):
        v = first_view + local
        for r in range(visible[v] * part // parts, visible[v] * (part + 1) // parts):
            n = order[v, r]
            total[:2], total[2:] = g_means2d[v, n], g_splats[v, n]
            for slot in range(firsts[local, r], firsts[local, r + 1]):
                for k in range(RECORD):
                    total[k] += records[slot, k]
            g_means2d[v, n], g_splats[v, n] = total[:2], total[2:]
