"""Tile kernels of the CPU rasteriser: blend front to back, and its adjoint back to front.

Vocabulary: a splat is one Gaussian in one view. splats [V, N, 8] = conic (A, B, C), opacity,
red, green, blue, depth; means2d [V, N, 2] px, pixel centres at +0.5; reach [V, N, 2] px, half
extents of the box outside which alpha < 1/255 (0: nowhere visible). Tiles are TILE x TILE px,
numbered row by row, view after view; `ids[starts[t]:starts[t + 1]]` are tile t's splats, near to far.

A tile is walked splat by splat, and within a splat row by row: the innermost loop runs over the
16 pixels of a row without a branch, which the compiler turns into vector code. That is why alpha's
tests are selects, and why exp is a polynomial. (Walking pixel by pixel, as a GPU thread does, leaves a
branch in every step and nothing to vectorise.) Compiled without fast-math: each sum is the one written
here, in its order.

Constants are frozen into the compiled code, and numba's cache only watches the file a kernel is in:
after changing TILE or ALPHA_MIN here, delete the package's __pycache__.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

TILE = 16  # px
ALPHA_MIN = 1.0 / 255.0  # fainter than one grey level: skipped, as in 3DGS
ALPHA_MAX = 0.99  # as in 3DGS; keeps 1 / (1 - alpha) finite
T_MIN = 1e-4  # a pixel whose transmittance would fall below this is finished, as in 3DGS
RECORD = 10  # gradient of one (tile, splat) pair: mean2d (2), conic (3), opacity, colour (3), depth

F = np.float32
_HALF, _ONE, _ZERO = F(0.5), F(1.0), F(0.0)
_ALPHA_MIN, _ALPHA_MAX, _T_MIN = F(ALPHA_MIN), F(ALPHA_MAX), F(T_MIN)
_POWER_MIN = F(-5.6)  # exp(-5.6) < 1/255: below it alpha is skipped whatever the opacity
# exp(x) = exp(x / 8)^8, and exp(y) = 1 + y q(y) with q the degree 5 interpolant of (exp(y) - 1) / y at
# the Chebyshev nodes of [-0.7, 0]: 1.5e-6 relative in float32. No bit tricks, so it is plain vector code.
_Q0, _Q1, _Q2 = F(1.0), F(0.49999910593032837), F(0.16665145754814148)
_Q3, _Q4, _Q5 = F(0.04157276451587677), F(0.00806795246899128), F(0.0010332433739677072)
_EIGHTH = F(0.125)


@njit(cache=True, error_model="numpy", inline="always")  # pragma: no cover - compiled
def _exp(x):
    y = max(x, _POWER_MIN) * _EIGHTH
    p = _ONE + y * (_Q0 + y * (_Q1 + y * (_Q2 + y * (_Q3 + y * (_Q4 + y * _Q5)))))
    p = p * p
    p = p * p
    return p * p


@njit(cache=True, error_model="numpy", inline="always")  # pragma: no cover - compiled
def _rows(mean_y, reach_y, top, height):
    """Rows of the tile, as a range, that the splat's box covers."""
    first = max(0.0, math.ceil(mean_y - reach_y - 0.5 - top))
    last = min(float(min(TILE, height - top)), math.floor(mean_y + reach_y - 0.5 - top) + 1.0)
    return int(first), int(max(first, last))


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def blend(ids, starts, first_tile, grid, means2d, splats, reach, background, out, part, parts):
    """Composite tiles first_tile + part, + parts, ...: writes out = image, alpha, depth, T, last, used.

    T [V, H, W] is the light left; last [V, H, W] how far down its tile's list a pixel blended, and
    used [tiles] the greatest of those in a tile: all behind is hidden, and the adjoint leaves it out.
    """
    image, alpha_out, depth_out, t_out, last_out, used = out
    height, width = t_out.shape[1], t_out.shape[2]
    rows_n, cols_n = grid
    s = np.empty((7, TILE, TILE), np.float32)
    T, KEPT, LAST, R, G, B, D = 0, 1, 2, 3, 4, 5, 6
    for local in range(part, starts.shape[0] - 1, parts):
        tile = first_tile + local
        view = tile // (rows_n * cols_n)
        top = tile // cols_n % rows_n * TILE
        left = tile % cols_n * TILE
        for y in range(TILE):
            for x in range(TILE):
                inside = top + y < height and left + x < width
                s[T, y, x] = _ONE if inside else _ZERO
        s[KEPT] = _ONE
        s[LAST:] = _ZERO
        begin, end = starts[local], starts[local + 1]
        for i in range(begin, end):
            n = ids[i]
            mx, my = means2d[view, n, 0] - F(left) - _HALF, means2d[view, n, 1]
            a, b, c = splats[view, n, 0], splats[view, n, 1], splats[view, n, 2]
            opacity, red, green = splats[view, n, 3], splats[view, n, 4], splats[view, n, 5]
            blue, z = splats[view, n, 6], splats[view, n, 7]
            position = F(i - begin + 1)
            a = -_HALF * a
            first, last = _rows(my, reach[view, n, 1], top, height)
            my -= F(top) + _HALF
            for y in range(first, last):
                dy = F(y) - my
                row_b, row_c = b * dy, -_HALF * c * dy * dy
                for x in range(TILE):
                    dx = F(x) - mx
                    power = dx * (a * dx - row_b) + row_c
                    alpha = min(_ALPHA_MAX, opacity * _exp(power))
                    t = s[T, y, x]
                    after = t * (_ONE - alpha)
                    seen = (power <= _ZERO) & (alpha >= _ALPHA_MIN)
                    blended = seen & (after >= _T_MIN)
                    w = alpha * t if blended else _ZERO
                    s[R, y, x] += w * red
                    s[G, y, x] += w * green
                    s[B, y, x] += w * blue
                    s[D, y, x] += w * z
                    kept = s[KEPT, y, x]
                    s[KEPT, y, x] = after if blended else kept
                    s[LAST, y, x] = position if blended else s[LAST, y, x]
                    after = after if blended else _ZERO
                    s[T, y, x] = after if seen else t
            if (i - begin) % 16 == 15:
                alive = 0
                for y in range(TILE):
                    for x in range(TILE):
                        alive += s[T, y, x] > _ZERO
                if alive == 0:
                    break
        deepest = 0
        for y in range(min(TILE, height - top)):
            for x in range(min(TILE, width - left)):
                t = s[KEPT, y, x]
                deepest = max(deepest, int(s[LAST, y, x]))
                for k in range(3):
                    image[view, k, top + y, left + x] = s[R + k, y, x] + t * background[view, k]
                alpha_out[view, 0, top + y, left + x] = _ONE - t
                depth_out[view, 0, top + y, left + x] = s[D, y, x]
                t_out[view, top + y, left + x] = t
                last_out[view, top + y, left + x] = s[LAST, y, x]
        used[tile] = deepest


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def blend_adjoint(
    ids,
    slots,
    starts,
    first_tile,
    grid,
    means2d,
    splats,
    reach,
    background,
    saved,
    grads,
    records,
    part,
    parts,
):
    """Gradient of blend: one record for each (tile, splat) pair, at records[slots[i]].

    The lists are blend's, each cut to its used part."""
    t_out, last_out = saved
    g_image, g_alpha, g_depth = grads
    height, width = t_out.shape[1], t_out.shape[2]
    rows_n, cols_n = grid
    s = np.empty((7, TILE, TILE), np.float32)
    T, LAST, REST, R, G, B, D = 0, 1, 2, 3, 4, 5, 6
    lanes = np.empty((RECORD, TILE), np.float32)
    for local in range(part, starts.shape[0] - 1, parts):
        tile = first_tile + local
        view = tile // (rows_n * cols_n)
        top = tile // cols_n % rows_n * TILE
        left = tile % cols_n * TILE
        begin, end = starts[local], starts[local + 1]
        s[:] = _ZERO
        for y in range(min(TILE, height - top)):
            for x in range(min(TILE, width - left)):
                s[T, y, x] = t_out[view, top + y, left + x]
                s[LAST, y, x] = last_out[view, top + y, left + x]
                rest = -g_alpha[view, 0, top + y, left + x]  # d loss / d (final transmittance)
                for k in range(3):
                    g = g_image[view, k, top + y, left + x]
                    s[R + k, y, x] = g
                    rest += background[view, k] * g
                s[REST, y, x] = rest * s[T, y, x]
                s[D, y, x] = g_depth[view, 0, top + y, left + x]
        for i in range(end - 1, begin - 1, -1):
            n = ids[i]
            mx, my = means2d[view, n, 0] - F(left) - _HALF, means2d[view, n, 1]
            a, b, c = splats[view, n, 0], splats[view, n, 1], splats[view, n, 2]
            opacity, red, green = splats[view, n, 3], splats[view, n, 4], splats[view, n, 5]
            blue, z = splats[view, n, 6], splats[view, n, 7]
            position = F(i - begin + 1)
            half_a = -_HALF * a
            first, last = _rows(my, reach[view, n, 1], top, height)
            my -= F(top) + _HALF
            lanes[:] = _ZERO
            for y in range(first, last):
                dy = F(y) - my
                row_b, row_c = b * dy, -_HALF * c * dy * dy
                for x in range(TILE):
                    dx = F(x) - mx
                    power = dx * (half_a * dx - row_b) + row_c
                    raw = opacity * _exp(power)
                    alpha = min(_ALPHA_MAX, raw)
                    seen = (power <= _ZERO) & (alpha >= _ALPHA_MIN) & (position <= s[LAST, y, x])
                    inverse = _ONE / (_ONE - alpha)
                    g_r, g_g, g_b, g_d = s[R, y, x], s[G, y, x], s[B, y, x], s[D, y, x]
                    t = s[T, y, x]
                    before = t * inverse
                    w = alpha * before if seen else _ZERO
                    q = red * g_r + green * g_g + blue * g_b + z * g_d
                    rest = s[REST, y, x]
                    g_power = raw * (before * q - rest * inverse)
                    g_power = g_power if seen & (raw <= _ALPHA_MAX) else _ZERO
                    s[REST, y, x] = rest + w * q
                    s[T, y, x] = before if seen else t
                    lanes[0, x] += g_power
                    lanes[1, x] += g_power * dy
                    lanes[2, x] += g_power * dy * dy
                    lanes[3, x] += w * g_r
                    lanes[4, x] += w * g_g
                    lanes[5, x] += w * g_b
                    lanes[6, x] += w * g_d
            # dx is the same in every row, so its moments are taken once: power's derivatives
            # are -dx^2/2, -dx dy, -dy^2/2 in the conic and A dx + B dy, B dx + C dy in the mean.
            for x in range(TILE):
                dx = F(x) - mx
                lanes[7, x] = lanes[0, x] * dx
                lanes[8, x] = lanes[7, x] * dx
                lanes[9, x] = lanes[1, x] * dx
            for step in (8, 4, 2, 1):
                for k in range(RECORD):
                    for x in range(step):
                        lanes[k, x] += lanes[k, x + step]
            out = records[slots[i]]
            sx, sy = lanes[7, 0], lanes[1, 0]
            out[0], out[1] = a * sx + b * sy, b * sx + c * sy
            out[2], out[3], out[4] = -_HALF * lanes[8, 0], -lanes[9, 0], -_HALF * lanes[2, 0]
            out[5] = lanes[0, 0] / opacity
            out[6], out[7], out[8], out[9] = lanes[3, 0], lanes[4, 0], lanes[5, 0], lanes[6, 0]
