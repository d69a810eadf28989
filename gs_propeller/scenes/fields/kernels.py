"""A field's pixels on a CPU, compiled: rays marched through a grid of corners, and the adjoint.

V views, H x W pixels, R = cells + 1 corners along a side. grid [R, R, R, 4]: at each corner the raw density or the
distance f, and the raw colour. Within a cell all four are trilinear. A ray has samples at t = t0 + (m + 1/2) step from
where it enters the cube; those in cells that are not `occupied` count nothing, and none after less than DARK of the
light is left. A sample adds l <= 0 to the logarithm of the light that passes:
    density    l = -step softplus(f)
    distance   l = -max(0, softplus(-s (f + h)) - softplus(-s (f - h))), h = c step / 2, c <= 0 the slope along the ray:
               NeuS' alpha = max(0, 1 - Phi(f + h) / Phi(f - h)), Phi the logistic function of sharpness s
Weights w = light (1 - e^l); colours are sigmoid(raw). With v what a sample adds to the loss for a unit of weight,
dL/dl_k = -light_(k+1) v_k + sum of w_j v_j over what lies behind k, background and all (which needs no second pass: it
is the sum over all less that over what lies in front). All sums are in float64 and in a fixed order; what goes to the
corners is gathered in PARTS grids, whatever the threads, and those are added in order. `march_torch` (march.py) is the
same by torch's operations, for any device.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

PARTS = 4  # grids that gradients are gathered in: as many threads can work at once
DARK = 1e-4  # light that is none
FLAT = 1e-12  # a squared slope, in cells, that gives no direction


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def occupy(grid, sdf, bound, occupied, part, parts):  # type: ignore[no-untyped-def]
    """occupied [R - 1] ^ 3: whether some corner's density is above the bound, or some distance below it."""
    cells = occupied.shape[0]
    sign = -1.0 if sdf else 1.0
    for i in range(part, cells, parts):
        for j in range(cells):
            for k in range(cells):
                most = -np.inf
                for n in range(8):
                    most = max(most, sign * grid[i + (n & 1), j + (n >> 1 & 1), k + (n >> 2), 0])
                occupied[i, j, k] = most > sign * bound


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def _mix(a, b, share):  # type: ignore[no-untyped-def]
    return a + share * (b - a)


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def _sampled(rows, n, side, x, y, z, shares, at):  # type: ignore[no-untyped-def]
    """at [4] gets the channels at x, y, z in 0..1 of the cell whose first corner is row n of rows [R^3, 4], and shares
    [8] its corners' weights, x the fastest. n and side = R unsigned: no index is taken from the end."""
    u, v, w = 1.0 - x, 1.0 - y, 1.0 - z
    shares[0], shares[1], shares[2], shares[3] = u * v * w, x * v * w, u * y * w, x * y * w
    shares[4], shares[5], shares[6], shares[7] = u * v * z, x * v * z, u * y * z, x * y * z
    one, dx, dy = np.uint64(1), side * side, side
    for c in range(4):
        at[c] = (
            shares[0] * rows[n, c]
            + shares[1] * rows[n + dx, c]
            + shares[2] * rows[n + dy, c]
            + shares[3] * rows[n + dx + dy, c]
            + shares[4] * rows[n + one, c]
            + shares[5] * rows[n + dx + one, c]
            + shares[6] * rows[n + dy + one, c]
            + shares[7] * rows[n + dx + dy + one, c]
        )


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def _slope(grid, i, j, k, x, y, z):  # type: ignore[no-untyped-def]
    """The gradient of channel 0 there, a cell's side for unit."""
    a, b, c, d = grid[i, j, k, 0], grid[i + 1, j, k, 0], grid[i, j + 1, k, 0], grid[i + 1, j + 1, k, 0]
    e, f = grid[i, j, k + 1, 0], grid[i + 1, j, k + 1, 0]
    g, h = grid[i, j + 1, k + 1, 0], grid[i + 1, j + 1, k + 1, 0]
    along_x = _mix(_mix(b - a, d - c, y), _mix(f - e, h - g, y), z)
    along_y = _mix(_mix(c - a, d - b, x), _mix(g - e, h - f, x), z)
    along_z = _mix(_mix(e - a, f - b, x), _mix(g - c, h - d, x), y)
    return along_x, along_y, along_z


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return 1.0 / (1.0 + math.exp(-x))


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def _softplus(x):  # type: ignore[no-untyped-def]
    """(softplus, its slope) by one exponential; log1p would take thrice as long."""
    small = math.exp(-abs(x))
    slope = 1.0 / (1.0 + small) if x > 0.0 else small / (1.0 + small)
    return max(x, 0.0) + math.log(1.0 + small), slope


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def _passing(f, slope, step, neus, sharp, ratio):  # type: ignore[no-untyped-def]
    """(l, dl/df, dl/dslope) of a sample; slope: of the distance along the ray. ratio: NeuS' annealing of the
    cosine, at 1 the slope itself."""
    if not neus:
        soft, rise = _softplus(f)
        return -step * soft, -step * rise, 0.0
    half_slope, steep = 0.5 - 0.5 * slope, -slope
    c = -(max(half_slope, 0.0) * (1.0 - ratio) + max(steep, 0.0) * ratio)
    turn = (0.5 * (1.0 - ratio) if half_slope > 0.0 else 0.0) + (ratio if steep > 0.0 else 0.0)  # dc / dslope
    h = 0.5 * step * c
    ahead, rise_ahead = _softplus(-sharp * (f + h))
    behind, rise_behind = _softplus(-sharp * (f - h))
    loss = ahead - behind
    if not loss > 0.0:
        return 0.0, 0.0, 0.0
    one, two = sharp * rise_ahead, sharp * rise_behind
    return -loss, one - two, (one + two) * 0.5 * step * turn


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def _ray(pose, lens, row, column, low, cell, cells, ray):  # type: ignore[no-untyped-def]
    """ray [8] gets the camera's place and the direction in cells from the cube's corner, a world unit long, and t0, t1:
    where it is in the cube. lens [3]: focal length, width, height in px."""
    x, y = (column + 0.5 - 0.5 * lens[1]) / lens[0], (row + 0.5 - 0.5 * lens[2]) / lens[0]
    norm = math.sqrt(x * x + y * y + 1.0)
    near, far = 0.0, np.inf
    for a in range(3):
        place = -(pose[0, a] * pose[0, 3] + pose[1, a] * pose[1, 3] + pose[2, a] * pose[2, 3])
        ray[a] = (place - low) / cell
        ray[3 + a] = (pose[0, a] * x + pose[1, a] * y + pose[2, a]) / (norm * cell)
        if ray[3 + a] == 0.0:
            if ray[a] <= 0.0 or ray[a] >= cells:
                far = -1.0
            continue
        one, two = -ray[a] / ray[3 + a], (cells - ray[a]) / ray[3 + a]
        near, far = max(near, min(one, two)), min(far, max(one, two))
    ray[6], ray[7] = near, far


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def _place(ray, m, step, cells):  # type: ignore[no-untyped-def]
    """(cell i, j, k; place x, y, z in it, in cells) of a ray's sample m."""
    t = ray[6] + (m + 0.5) * step
    x, y, z = ray[0] + t * ray[3], ray[1] + t * ray[4], ray[2] + t * ray[5]
    i, j, k = min(max(int(x), 0), cells - 1), min(max(int(y), 0), cells - 1), min(max(int(z), 0), cells - 1)
    return i, j, k, x - i, y - j, z - k


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def march(  # type: ignore[no-untyped-def]
    grid, occupied, low, cell, poses, lens, backdrop, step, neus, sharp, ratio, out, part, parts
):
    """out [V, 4 or 8, H, W] gets colour over the backdrop [V, 3] and alpha; and of 8 the mean normal, outward, and the
    sum of w max(n . d, 0)^2."""
    views, channels, height, width = out.shape
    cells, shaped = occupied.shape[0], channels == 8
    outward = 1.0 if neus else -1.0
    ray, shares, at = np.empty(8), np.empty(8), np.empty(4)
    rows, side = grid.reshape(-1, 4), np.uint64(cells + 1)
    for line in range(part, views * height, parts):
        v, row = line // height, line % height
        for column in range(width):
            _ray(poses[v], lens, row, column, low, cell, cells, ray)
            light, through = 1.0, 0.0
            red = green = blue = nx = ny = nz = away = 0.0
            for m in range(int((ray[7] - ray[6]) / step) if ray[7] > ray[6] else 0):
                i, j, k, x, y, z = _place(ray, m, step, cells)
                if not occupied[i, j, k]:
                    continue
                n = (np.uint64(i) * side + np.uint64(j)) * side + np.uint64(k)
                _sampled(rows, n, side, x, y, z, shares, at)
                f = at[0]
                gx = gy = gz = slope = 0.0
                if shaped or neus:
                    gx, gy, gz = _slope(grid, i, j, k, x, y, z)
                    slope = gx * ray[3] + gy * ray[4] + gz * ray[5]
                passing, _, _ = _passing(f, slope, step, neus, sharp, ratio)
                through += passing
                after = math.exp(through)
                w = light - after
                light = after
                if w > 0.0:
                    red += w * _sigmoid(at[1])
                    green += w * _sigmoid(at[2])
                    blue += w * _sigmoid(at[3])
                    if shaped:
                        scale = outward / math.sqrt(gx * gx + gy * gy + gz * gz + FLAT)
                        nx += w * gx * scale
                        ny += w * gy * scale
                        nz += w * gz * scale
                        facing = max(slope * scale * cell, 0.0)
                        away += w * facing * facing
                if light < DARK:
                    break
            out[v, 0, row, column] = red + light * backdrop[v, 0]
            out[v, 1, row, column] = green + light * backdrop[v, 1]
            out[v, 2, row, column] = blue + light * backdrop[v, 2]
            out[v, 3, row, column] = 1.0 - light
            if shaped:
                out[v, 4, row, column], out[v, 5, row, column], out[v, 6, row, column] = nx, ny, nz
                out[v, 7, row, column] = away


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def march_adjoint(  # type: ignore[no-untyped-def]
    grid, occupied, low, cell, poses, lens, step, neus, sharp, ratio, out, grad, grads, part, parts
):
    """Adjoint of march for grad, shaped as out [V, 4 or 8, H, W], which is what march gave: adds to grads
    [PARTS, R, R, R, 4]. The weights in the last channel of 8 count as constants."""
    views, channels, height, width = out.shape
    cells, shaped = occupied.shape[0], channels == 8
    outward = 1.0 if neus else -1.0
    ray, shares, at = np.empty(8), np.empty(8), np.empty(4)
    rows, side, q, ahead = grid.reshape(-1, 4), np.uint64(cells + 1), np.empty(4), np.empty(8, np.uint64)
    for corner in range(8):
        dx, dy, dz = np.uint64(corner & 1), np.uint64(corner >> 1 & 1), np.uint64(corner >> 2)
        ahead[corner] = (dx * side + dy) * side + dz
    for own in range(part, grads.shape[0], parts):
        into = grads[own].reshape(-1, 4)
        for line in range(own, views * height, grads.shape[0]):
            v, row = line // height, line % height
            for column in range(width):
                given, behind = False, 0.0  # behind: sum of w v over what is not passed yet
                for c in range(min(channels, 7)):
                    behind += np.float64(grad[v, c, row, column]) * out[v, c, row, column]
                for c in range(channels):
                    given = given or grad[v, c, row, column] != 0.0
                if not given:
                    continue
                gr, gg, gb = (
                    np.float64(grad[v, 0, row, column]),
                    np.float64(grad[v, 1, row, column]),
                    np.float64(grad[v, 2, row, column]),
                )
                ga = np.float64(grad[v, 3, row, column])
                hx = hy = hz = ho = 0.0
                if shaped:
                    hx, hy, hz = (
                        np.float64(grad[v, 4, row, column]),
                        np.float64(grad[v, 5, row, column]),
                        np.float64(grad[v, 6, row, column]),
                    )
                    ho = np.float64(grad[v, 7, row, column])
                _ray(poses[v], lens, row, column, low, cell, cells, ray)
                light, through = 1.0, 0.0
                for m in range(int((ray[7] - ray[6]) / step) if ray[7] > ray[6] else 0):
                    i, j, k, x, y, z = _place(ray, m, step, cells)
                    if not occupied[i, j, k]:
                        continue
                    n = (np.uint64(i) * side + np.uint64(j)) * side + np.uint64(k)
                    _sampled(rows, n, side, x, y, z, shares, at)
                    f = at[0]
                    gx = gy = gz = slope = 0.0
                    if shaped or neus:
                        gx, gy, gz = _slope(grid, i, j, k, x, y, z)
                        slope = gx * ray[3] + gy * ray[4] + gz * ray[5]
                    passing, of_f, of_slope = _passing(f, slope, step, neus, sharp, ratio)
                    through += passing
                    after = math.exp(through)
                    w = light - after
                    light = after
                    # what the corners get: qf of channel 0, q of its gradient, and the colours'
                    qx = qy = qz = 0.0
                    r, g, b = _sigmoid(at[1]), _sigmoid(at[2]), _sigmoid(at[3])
                    q1, q2, q3 = w * gr * r * (1.0 - r), w * gg * g * (1.0 - g), w * gb * b * (1.0 - b)
                    value = gr * r + gg * g + gb * b + ga
                    if shaped:
                        scale = outward / math.sqrt(gx * gx + gy * gy + gz * gz + FLAT)
                        nx, ny, nz = gx * scale, gy * scale, gz * scale
                        value += hx * nx + hy * ny + hz * nz
                        turned = 2.0 * ho * max(slope * scale * cell, 0.0) * cell
                        px, py, pz = (
                            w * (hx + turned * ray[3]),
                            w * (hy + turned * ray[4]),
                            w * (hz + turned * ray[5]),
                        )
                        inner = px * nx + py * ny + pz * nz
                        qx, qy, qz = (
                            (px - nx * inner) * scale,
                            (py - ny * inner) * scale,
                            (pz - nz * inner) * scale,
                        )
                    behind -= w * value
                    of_passing = behind - light * value
                    qf = of_passing * of_f
                    if neus:
                        bent = of_passing * of_slope
                        qx, qy, qz = qx + bent * ray[3], qy + bent * ray[4], qz + bent * ray[5]
                    q[0], q[1], q[2], q[3] = qf, q1, q2, q3
                    for corner in range(8):
                        to = n + ahead[corner]
                        for c in range(4):
                            into[to, c] += shares[corner] * q[c]
                    if shaped or neus:
                        ux, uy, uz = 1.0 - x, 1.0 - y, 1.0 - z
                        into[n, 0] -= qx * uy * uz + qy * ux * uz + qz * ux * uy
                        into[n + ahead[1], 0] += qx * uy * uz - qy * x * uz - qz * x * uy
                        into[n + ahead[2], 0] += qy * ux * uz - qx * y * uz - qz * ux * y
                        into[n + ahead[3], 0] += qx * y * uz + qy * x * uz - qz * x * y
                        into[n + ahead[4], 0] += qz * ux * uy - qx * uy * z - qy * ux * z
                        into[n + ahead[5], 0] += qx * uy * z - qy * x * z + qz * x * uy
                        into[n + ahead[6], 0] += qy * ux * z - qx * y * z + qz * ux * y
                        into[n + ahead[7], 0] += qx * y * z + qy * x * z + qz * x * y
                    if light < DARK:
                        break


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def gather(grads, total, part, parts):  # type: ignore[no-untyped-def]
    """total [R, R, R, 4] gets the sum of grads [PARTS, R, R, R, 4], in their order."""
    for i in range(part, total.shape[0], parts):
        for j in range(total.shape[1]):
            for k in range(total.shape[2]):
                for c in range(4):
                    sum_ = grads[0, i, j, k, c]
                    for own in range(1, grads.shape[0]):
                        sum_ += grads[own, i, j, k, c]
                    total[i, j, k, c] = sum_


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def refine(coarse, fine, out, part, parts):  # type: ignore[no-untyped-def]
    """out [2 n + 1, .., C] = coarse [n + 1, .., C] between its corners + fine."""
    for i in range(part, out.shape[0], parts):
        i0, i1 = i >> 1, (i + 1) >> 1
        for j in range(out.shape[1]):
            j0, j1 = j >> 1, (j + 1) >> 1
            for k in range(out.shape[2]):
                k0, k1 = k >> 1, (k + 1) >> 1
                for c in range(out.shape[3]):
                    low = (
                        coarse[i0, j0, k0, c]
                        + coarse[i1, j0, k0, c]
                        + coarse[i0, j1, k0, c]
                        + coarse[i1, j1, k0, c]
                    )
                    high = (
                        coarse[i0, j0, k1, c]
                        + coarse[i1, j0, k1, c]
                        + coarse[i0, j1, k1, c]
                        + coarse[i1, j1, k1, c]
                    )
                    out[i, j, k, c] = 0.125 * (low + high) + fine[i, j, k, c]


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def coarsen(grad, out, part, parts):  # type: ignore[no-untyped-def]
    """Adjoint of refine for the coarse grid: out [n + 1, .., C] of grad [2 n + 1, .., C]."""
    last = grad.shape[0] - 1
    for i in range(part, out.shape[0], parts):
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                for c in range(out.shape[3]):
                    out[i, j, k, c] = 0.0
                for a in range(max(2 * i - 1, 0), min(2 * i + 1, last) + 1):
                    wa = 1.0 if a == 2 * i else 0.5
                    for b in range(max(2 * j - 1, 0), min(2 * j + 1, last) + 1):
                        wb = wa if b == 2 * j else 0.5 * wa
                        for d in range(max(2 * k - 1, 0), min(2 * k + 1, last) + 1):
                            w = wb if d == 2 * k else 0.5 * wb
                            for c in range(out.shape[3]):
                                out[i, j, k, c] += w * grad[a, b, d, c]
