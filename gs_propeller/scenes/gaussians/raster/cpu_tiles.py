"""Tile kernels of the CPU rasteriser: blend front to back, and its adjoint back to front.

Vocabulary: a splat is one Gaussian in one view. splats [V, N, 8] = conic (A, B, C), opacity,
red, green, blue, depth; means2d [V, N, 2] px, pixel centres at +0.5; reach [V, N, 2] px, half
extents of the box outside which alpha < 1/255 (0: nowhere visible). Tiles are TILE x TILE px,
numbered row by row, view after view; `ids[starts[t]:starts[t + 1]]` are tile t's splats, near to far.

A tile is walked splat by splat, a splat in strips of LANES columns from the left edge of its box, a strip
row by row: the innermost loop runs over the LANES pixels of a row without a branch, which the compiler turns
into one vector's code. What that takes:
- alpha's tests are selects, and exp is a polynomial. (Walking pixel by pixel, as a GPU thread does, leaves a
  branch in every step and nothing to vectorise.)
- A select never chooses between a new value and the one that stands where it goes: that becomes a masked
  store, which takes dozens of cycles on some processors. Hence sums with 0 where nothing changes.
- What a loop writes lies on the stack, which the compiler knows to be apart from all arrays; it refuses to
  check that at run time for so few pixels. Indices are unsigned, as signed ones may count from the end.
- LANES more columns than a tile has, dark from the start, so that a strip may stick out.
Multiplications and additions may be fused ("contract"), which is as fast again and rounds once where it would
twice; no other liberty is taken: each sum is the one written here, in its order.

Constants are frozen into the compiled code, and numba's cache only watches the file a kernel is in:
after changing TILE or ALPHA_MIN here, delete the package's __pycache__.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

TILE = 16  # px
LANES = 8  # px, the width of a vector of float32 on most processors
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
# The powers of 1/8, exact, are in the coefficients: fewer constants, which the inner loops keep addresses of.
_Q0, _Q1, _Q2 = F(1.0 / 8.0), F(0.49999910593032837 / 8.0**2), F(0.16665145754814148 / 8.0**3)
_Q3, _Q4 = F(0.04157276451587677 / 8.0**4), F(0.00806795246899128 / 8.0**5)
_Q5 = F(0.0010332433739677072 / 8.0**6)


@njit(cache=True, error_model="numpy", inline="always")  # pragma: no cover - compiled
def _exp(x):
    y = max(x, _POWER_MIN)
    p = _ONE + y * (_Q0 + y * (_Q1 + y * (_Q2 + y * (_Q3 + y * (_Q4 + y * _Q5)))))
    p = p * p
    p = p * p
    return p * p


@njit(cache=True, error_model="numpy", inline="always")  # pragma: no cover - compiled
def _span(mean, reach, start, pixels):
    """The part of start ... start + pixels - 1, counted from start, that the splat's box covers."""
    first = max(0.0, math.ceil(mean - reach - 0.5 - start))
    last = min(float(pixels), math.floor(mean + reach - 0.5 - start) + 1.0)
    return int(first), int(max(first, last))


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator,unused-ignore]
def _stack(typing, floats):  # type: ignore[no-untyped-def]
    """Pointer to so many float32 on the stack of the kernel; the number is a constant."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        slot = cgutils.alloca_once(builder, ir.ArrayType(ir.FloatType(), floats.literal_value))
        slot.align = 4 * LANES
        return builder.bitcast(slot, ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(floats), codegen


_WIDTH = TILE + LANES
_PLANE = TILE * _WIDTH
_BLEND_PLANES, _ADJOINT_PLANES, _MOMENTS = 6, 7, 7
_BLEND_FLOATS, _ADJOINT_FLOATS = _BLEND_PLANES * _PLANE, _ADJOINT_PLANES * _PLANE
_MOMENT_FLOATS, _RECORD_FLOATS = _MOMENTS * LANES, RECORD * LANES
_0, _1, _2, _3, _4, _5, _6 = (np.uint64(k) for k in range(7))
_7, _8, _9, _LANES = np.uint64(7), np.uint64(8), np.uint64(9), np.uint64(LANES)


@njit(cache=True, error_model="numpy", nogil=True, fastmath={"contract"})  # pragma: no cover - compiled
def blend(ids, starts, first_tile, grid, means2d, splats, reach, background, out, part, parts):
    """Composite tiles first_tile + part, + parts, ...: writes out = image, alpha, depth, T, last, used.

    T [V, H, W] is the light left; last [V, H, W] how far down its tile's list a pixel blended, and
    used [tiles] the greatest of those in a tile: all behind is hidden, and the adjoint leaves it out.
    """
    image, alpha_out, depth_out, t_out, last_out, used = out
    height, width = t_out.shape[1], t_out.shape[2]
    rows_n, cols_n = grid
    s = carray(_stack(_BLEND_FLOATS), (_BLEND_PLANES, TILE, _WIDTH))  # type: ignore[call-arg]
    light = s[0].reshape(-1)
    T, LAST, R, G, B, D = _0, _1, _2, _3, _4, _5  # T: the light left, negative where the pixel is finished
    for local in range(part, starts.shape[0] - 1, parts):
        tile = first_tile + local
        view = tile // (rows_n * cols_n)
        top = tile // cols_n % rows_n * TILE
        left = tile % cols_n * TILE
        high, wide = min(TILE, height - top), min(TILE, width - left)
        s[:] = _ZERO
        s[0] = -_ONE
        s[0, :high, :wide] = _ONE
        begin, end = starts[local], starts[local + 1]
        for i in range(begin, end):
            n = ids[i]
            mx, my = means2d[view, n, 0], means2d[view, n, 1]
            b, opacity = splats[view, n, 1], splats[view, n, 3]
            half_a, half_c = -_HALF * splats[view, n, 0], -_HALF * splats[view, n, 2]
            red, green, blue, z = (
                splats[view, n, 4],
                splats[view, n, 5],
                splats[view, n, 6],
                splats[view, n, 7],
            )
            position = F(i - begin + 1)
            first, last = _span(my, reach[view, n, 1], top, high)
            x_first, x_last = _span(mx, reach[view, n, 0], left, wide)
            my -= F(top) + _HALF
            mx -= F(left) + _HALF
            for strip in range(x_first, x_last, LANES):
                base, column = F(strip) - mx, np.uint64(strip)
                for row in range(first, last):
                    dy, y = F(row) - my, np.uint64(row)
                    row_b, row_c = b * dy, half_c * dy * dy
                    for k in range(_LANES):
                        x, dx = column + k, base + F(k)
                        power = dx * (half_a * dx - row_b) + row_c
                        alpha = min(_ALPHA_MAX, opacity * _exp(power))
                        t = s[T, y, x]
                        w = alpha * t
                        seen = (power <= _ZERO) & (alpha >= _ALPHA_MIN)
                        blended = seen & (t - w >= _T_MIN)
                        finished = t + t if seen & (t > _ZERO) else _ZERO
                        s[T, y, x] = t - (w if blended else finished)
                        w = w if blended else _ZERO
                        s[R, y, x] += w * red
                        s[G, y, x] += w * green
                        s[B, y, x] += w * blue
                        s[D, y, x] += w * z
                        deep = s[LAST, y, x]
                        s[LAST, y, x] = deep + (position - deep if blended else _ZERO)
            if (i - begin) % 16 == 15:
                alive = False
                for p in range(light.shape[0]):
                    alive |= light[p] > _ZERO
                if not alive:
                    break
        deepest = _ZERO
        for y in range(high):
            for x in range(wide):
                t = abs(s[0, y, x])
                deepest = max(deepest, s[1, y, x])
                for k in range(3):
                    image[view, k, top + y, left + x] = s[2 + k, y, x] + t * background[view, k]
                alpha_out[view, 0, top + y, left + x] = _ONE - t
                depth_out[view, 0, top + y, left + x] = s[5, y, x]
                t_out[view, top + y, left + x] = t
                last_out[view, top + y, left + x] = s[1, y, x]
        used[tile] = int(deepest)


@njit(cache=True, error_model="numpy", nogil=True, fastmath={"contract"})  # pragma: no cover - compiled
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
    s = carray(_stack(_ADJOINT_FLOATS), (_ADJOINT_PLANES, TILE, _WIDTH))  # type: ignore[call-arg]
    lanes = carray(_stack(_MOMENT_FLOATS), (_MOMENTS, LANES))
    total = carray(_stack(_RECORD_FLOATS), (RECORD, LANES))
    T, LAST, REST, R, G, B, D = _0, _1, _2, _3, _4, _5, _6
    for local in range(part, starts.shape[0] - 1, parts):
        begin, end = starts[local], starts[local + 1]
        if begin == end:
            continue
        tile = first_tile + local
        view = tile // (rows_n * cols_n)
        top = tile // cols_n % rows_n * TILE
        left = tile % cols_n * TILE
        high, wide = min(TILE, height - top), min(TILE, width - left)
        s[:] = _ZERO
        for y in range(high):
            for x in range(wide):
                t = t_out[view, top + y, left + x]
                s[0, y, x] = t
                s[1, y, x] = last_out[view, top + y, left + x]
                rest = -g_alpha[view, 0, top + y, left + x]  # d loss / d (final transmittance)
                for k in range(3):
                    g = g_image[view, k, top + y, left + x]
                    s[3 + k, y, x] = g
                    rest += background[view, k] * g
                s[2, y, x] = rest * t
                s[6, y, x] = g_depth[view, 0, top + y, left + x]
        for i in range(end - 1, begin - 1, -1):
            n = ids[i]
            mx, my = means2d[view, n, 0], means2d[view, n, 1]
            a, b, c = splats[view, n, 0], splats[view, n, 1], splats[view, n, 2]
            opacity, red, green = splats[view, n, 3], splats[view, n, 4], splats[view, n, 5]
            blue, z = splats[view, n, 6], splats[view, n, 7]
            position = F(i - begin + 1)
            half_a, half_c = -_HALF * a, -_HALF * c
            first, last = _span(my, reach[view, n, 1], top, high)
            x_first, x_last = _span(mx, reach[view, n, 0], left, wide)
            my -= F(top) + _HALF
            mx -= F(left) + _HALF
            total[:] = _ZERO
            for strip in range(x_first, x_last, LANES):
                base, column = F(strip) - mx, np.uint64(strip)
                lanes[:] = _ZERO
                for row in range(first, last):
                    dy, y = F(row) - my, np.uint64(row)
                    row_b, row_c = b * dy, half_c * dy * dy
                    for k in range(_LANES):
                        x, dx = column + k, base + F(k)
                        power = dx * (half_a * dx - row_b) + row_c
                        raw = opacity * _exp(power)
                        alpha = min(_ALPHA_MAX, raw)
                        seen = (power <= _ZERO) & (alpha >= _ALPHA_MIN) & (position <= s[LAST, y, x])
                        alpha = alpha if seen else _ZERO
                        inverse = _ONE / (_ONE - alpha)
                        g_r, g_g, g_b, g_d = s[R, y, x], s[G, y, x], s[B, y, x], s[D, y, x]
                        before = s[T, y, x] * inverse
                        w = alpha * before
                        q = red * g_r + green * g_g + blue * g_b + z * g_d
                        rest = s[REST, y, x]
                        g_power = raw * (before * q - rest * inverse)
                        g_power = g_power if seen & (raw <= _ALPHA_MAX) else _ZERO
                        s[REST, y, x] = rest + w * q
                        s[T, y, x] = before
                        lanes[_0, k] += g_power
                        g_power *= dy
                        lanes[_1, k] += g_power
                        lanes[_2, k] += g_power * dy
                        lanes[_3, k] += w * g_r
                        lanes[_4, k] += w * g_g
                        lanes[_5, k] += w * g_b
                        lanes[_6, k] += w * g_d
                # dx is the same in every row of a strip, so its moments are taken once: power's derivatives
                # are -dx^2/2, -dx dy, -dy^2/2 in the conic and A dx + B dy, B dx + C dy in the mean.
                for k in range(_LANES):
                    dx = base + F(k)
                    along = lanes[_0, k] * dx
                    total[_0, k] += along
                    total[_1, k] += lanes[_1, k]
                    total[_2, k] += along * dx
                    total[_3, k] += lanes[_1, k] * dx
                    total[_4, k] += lanes[_2, k]
                    total[_5, k] += lanes[_0, k]
                    total[_6, k] += lanes[_3, k]
                    total[_7, k] += lanes[_4, k]
                    total[_8, k] += lanes[_5, k]
                    total[_9, k] += lanes[_6, k]
            for step in (4, 2, 1):
                for k in range(RECORD):
                    for x in range(step):
                        total[k, x] += total[k, x + step]
            out = records[slots[i]]
            sx, sy = total[0, 0], total[1, 0]
            out[0], out[1] = a * sx + b * sy, b * sx + c * sy
            out[2], out[3], out[4] = -_HALF * total[2, 0], -total[3, 0], -_HALF * total[4, 0]
            out[5] = total[5, 0] / opacity
            out[6], out[7], out[8], out[9] = total[6, 0], total[7, 0], total[8, 0], total[9, 0]
