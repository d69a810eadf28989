"""A mesh's pixels on a CPU, compiled: which triangle a pixel sees, its texture, its silhouettes, and their adjoints.

V views, H x W pixels, Nv vertices, Nf faces, E edges, T and C texels along a side, F texels with a fine offset. Camera
axes are OpenCV's; a pixel centre's ray is d = (x, y, 1), x = (column + 0.5 - W / 2) / focal. With corners a, b, c seen
from the camera, the ray meets the face's plane at depth z = det / s and barycentrics e / s, where e = (d . (b x c),
d . (c x a), d . (a x b)), det = a . (b x c) and s is e's sum (Olano & Greer 1997): no division by a corner's depth, so
faces may reach behind the camera; and of two faces the edge between them gives the same number but for its sign, so no
pixel falls between. One thread each, every sum in a fixed order and in float64. What they must equal, in torch and for
any device, are `barycentrics` and `antialias` (antialias.py) and `sample_texture` (texture.py).
"""

from __future__ import annotations

import numpy as np
from numba import njit

NEAR = 1e-6  # camera z from which a corner's place in the picture is bounded
NOTHING = 1e9  # depth of a pixel that sees no surface
JUMP_PX = 4.0  # a surface that steps back by more pixel widths than this from one pixel to the next ends between them


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def project(vertices, w2c, seen):  # type: ignore[no-untyped-def]
    """vertices [Nv, 3], w2c [V, 4, 4] -> seen [V, Nv, 3], in the cameras' axes."""
    for v in range(seen.shape[0]):
        m = w2c[v]
        for i in range(seen.shape[1]):
            x, y, z = np.float64(vertices[i, 0]), np.float64(vertices[i, 1]), np.float64(vertices[i, 2])
            for k in range(3):
                seen[v, i, k] = m[k, 0] * x + m[k, 1] * y + m[k, 2] * z + m[k, 3]


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def unproject_adjoint(g_seen, w2c, g_vertices):  # type: ignore[no-untyped-def]
    """Adjoint of project: adds to g_vertices [Nv, 3]."""
    for v in range(g_seen.shape[0]):
        m = w2c[v]
        for i in range(g_seen.shape[1]):
            for k in range(3):
                g = g_seen[v, i, k]
                if g != 0.0:
                    for j in range(3):
                        g_vertices[i, j] += m[k, j] * g


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def fill(seen, faces, focal, face_id, barycentric, depth):  # type: ignore[no-untyped-def]
    """The nearest face at each pixel centre, of equally near ones the first. seen [Nv, 3] of one view; face_id [H, W]
    comes in as -1, depth [H, W] as NOTHING; barycentric [H, W, 3]."""
    height, width = face_id.shape
    for f in range(faces.shape[0]):
        ax, ay, az = seen[faces[f, 0]]
        bx, by, bz = seen[faces[f, 1]]
        cx, cy, cz = seen[faces[f, 2]]
        if max(az, bz, cz) <= 0.0:
            continue
        px, py, pz = by * cz - bz * cy, bz * cx - bx * cz, bx * cy - by * cx
        qx, qy, qz = cy * az - cz * ay, cz * ax - cx * az, cx * ay - cy * ax
        rx, ry, rz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        det = ax * px + ay * py + az * pz
        if det == 0.0:
            continue  # seen from its edge
        side = 1.0 if det > 0.0 else -1.0
        left, right, top, bottom = 0, width - 1, 0, height - 1
        if min(az, bz, cz) > NEAR:
            u0, u1, u2 = ax / az, bx / bz, cx / cz
            v0, v1, v2 = ay / az, by / bz, cy / cz
            left = max(0, int(max(-1.0, min(u0, u1, u2) * focal + 0.5 * width - 0.5)))
            right = min(width - 1, int(min(width, max(u0, u1, u2) * focal + 0.5 * width + 0.5)))
            top = max(0, int(max(-1.0, min(v0, v1, v2) * focal + 0.5 * height - 0.5)))
            bottom = min(height - 1, int(min(height, max(v0, v1, v2) * focal + 0.5 * height + 0.5)))
        for row in range(top, bottom + 1):
            y = (row + 0.5 - 0.5 * height) / focal
            p, q, r = y * py + pz, y * qy + qz, y * ry + rz
            for column in range(left, right + 1):
                x = (column + 0.5 - 0.5 * width) / focal
                e0, e1, e2 = side * (x * px + p), side * (x * qx + q), side * (x * rx + r)
                if e0 >= 0.0 and e1 >= 0.0 and e2 >= 0.0:
                    s = e0 + e1 + e2
                    z = side * det / s
                    if s > 0.0 and z < depth[row, column]:
                        depth[row, column] = z
                        face_id[row, column] = f
                        barycentric[row, column, 0] = e0 / s
                        barycentric[row, column, 1] = e1 / s
                        barycentric[row, column, 2] = e2 / s


@njit(cache=True, error_model="numpy", inline="always")  # pragma: no cover - compiled
def _texel(at, size):  # type: ignore[no-untyped-def]
    """(first texel, second, weight of the second, whether it moves) along one axis, `at` in texels from the edge."""
    where = at - 0.5
    inside = 1.0
    if where <= 0.0:
        where, inside = 0.0, 0.0
    elif where >= size - 1.0:
        where, inside = size - 1.0, 0.0
    first = int(where)
    return first, min(first + 1, size - 1), where - first, inside


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def paint(face_id, barycentric, uvs, uv_faces, texture, coarse, row_of, fine, image):  # type: ignore[no-untyped-def]
    """Colours of one view. texture [T, T, 3]; coarse [C, C, 3]; row_of [T, T], the row of fine [F, 3] that a texel has,
    -1 for none; image [3 or more, H, W]: of its first three, over white."""
    size, few = texture.shape[0], coarse.shape[0]
    for row in range(face_id.shape[0]):
        for column in range(face_id.shape[1]):
            f = face_id[row, column]
            if f < 0:
                image[0, row, column] = image[1, row, column] = image[2, row, column] = 1.0
                continue
            u = v = 0.0
            for k in range(3):
                corner = uvs[uv_faces[f, k]]
                u += barycentric[row, column, k] * corner[0]
                v += barycentric[row, column, k] * corner[1]
            red = green = blue = 0.0
            x0, x1, wx, _ = _texel(u * size, size)
            y0, y1, wy, _ = _texel((1.0 - v) * size, size)
            for n in range(4):
                x, y = x1 if n & 1 else x0, y1 if n & 2 else y0
                w = (wx if n & 1 else 1.0 - wx) * (wy if n & 2 else 1.0 - wy)
                texel, own = texture[y, x], row_of[y, x]
                red += w * texel[0]
                green += w * texel[1]
                blue += w * texel[2]
                if own >= 0:
                    red += w * fine[own, 0]
                    green += w * fine[own, 1]
                    blue += w * fine[own, 2]
            x0, x1, wx, _ = _texel(u * few, few)
            y0, y1, wy, _ = _texel((1.0 - v) * few, few)
            for n in range(4):
                texel = coarse[y1 if n & 2 else y0, x1 if n & 1 else x0]
                w = (wx if n & 1 else 1.0 - wx) * (wy if n & 2 else 1.0 - wy)
                red += w * texel[0]
                green += w * texel[1]
                blue += w * texel[2]
            image[0, row, column], image[1, row, column], image[2, row, column] = red, green, blue


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def paint_adjoint(  # type: ignore[no-untyped-def]
    grad, face_id, barycentric, uvs, uv_faces, texture, coarse, row_of, fine, seen, faces, focal, moves,
    g_coarse, g_fine, g_seen,
):  # fmt: skip
    """Adjoint of paint for grad [3 or more, H, W]: adds to g_coarse, to g_fine, and where `moves` to g_seen [Nv, 3],
    since the surface slides under a pixel whose corners move."""
    height, width = face_id.shape
    size, few = texture.shape[0], coarse.shape[0]
    weight = np.zeros(3)
    for row in range(height):
        for column in range(width):
            f = face_id[row, column]
            if f < 0:
                continue
            gr, gg, gb = (
                np.float64(grad[0, row, column]),
                np.float64(grad[1, row, column]),
                np.float64(grad[2, row, column]),
            )
            if gr == 0.0 and gg == 0.0 and gb == 0.0:
                continue
            u = v = 0.0
            for k in range(3):
                corner = uvs[uv_faces[f, k]]
                u += barycentric[row, column, k] * corner[0]
                v += barycentric[row, column, k] * corner[1]
            gu = gv = 0.0
            x0, x1, wx, free_x = _texel(u * size, size)
            y0, y1, wy, free_y = _texel((1.0 - v) * size, size)
            for n in range(4):
                x, y = x1 if n & 1 else x0, y1 if n & 2 else y0
                ax, ay = wx if n & 1 else 1.0 - wx, wy if n & 2 else 1.0 - wy
                texel, own = texture[y, x], row_of[y, x]
                value = gr * texel[0] + gg * texel[1] + gb * texel[2]
                if own >= 0:
                    w = ax * ay
                    value += gr * fine[own, 0] + gg * fine[own, 1] + gb * fine[own, 2]
                    g_fine[own, 0] += w * gr
                    g_fine[own, 1] += w * gg
                    g_fine[own, 2] += w * gb
                gu += (value if n & 1 else -value) * ay * free_x * size
                gv -= (value if n & 2 else -value) * ax * free_y * size
            x0, x1, wx, free_x = _texel(u * few, few)
            y0, y1, wy, free_y = _texel((1.0 - v) * few, few)
            for n in range(4):
                x, y = x1 if n & 1 else x0, y1 if n & 2 else y0
                ax, ay = wx if n & 1 else 1.0 - wx, wy if n & 2 else 1.0 - wy
                texel, w = coarse[y, x], ax * ay
                value = gr * texel[0] + gg * texel[1] + gb * texel[2]
                g_coarse[y, x, 0] += w * gr
                g_coarse[y, x, 1] += w * gg
                g_coarse[y, x, 2] += w * gb
                gu += (value if n & 1 else -value) * ay * free_x * few
                gv -= (value if n & 2 else -value) * ax * free_y * few
            if not moves:
                continue
            mean = 0.0
            for k in range(3):
                corner = uvs[uv_faces[f, k]]
                weight[k] = gu * corner[0] + gv * corner[1]
                mean += weight[k] * barycentric[row, column, k]
            i, j, l = faces[f, 0], faces[f, 1], faces[f, 2]  # noqa: E741
            ax, ay, az = seen[i]
            bx, by, bz = seen[j]
            cx, cy, cz = seen[l]
            dx, dy = (column + 0.5 - 0.5 * width) / focal, (row + 0.5 - 0.5 * height) / focal
            # d . (b x c) has d x b for its derivative in c, and -(d x c) in b; so round the corners
            dax, day, daz = dy * az - ay, ax - dx * az, dx * ay - dy * ax  # d x a
            dbx, dby, dbz = dy * bz - by, bx - dx * bz, dx * by - dy * bx
            dcx, dcy, dcz = dy * cz - cy, cx - dx * cz, dx * cy - dy * cx
            s = (
                dbx * cx
                + dby * cy
                + dbz * cz
                + dcx * ax
                + dcy * ay
                + dcz * az
                + dax * bx
                + day * by
                + daz * bz
            )
            h0, h1, h2 = (weight[0] - mean) / s, (weight[1] - mean) / s, (weight[2] - mean) / s
            g_seen[i, 0] += h1 * dcx - h2 * dbx
            g_seen[i, 1] += h1 * dcy - h2 * dby
            g_seen[i, 2] += h1 * dcz - h2 * dbz
            g_seen[j, 0] += h2 * dax - h0 * dcx
            g_seen[j, 1] += h2 * day - h0 * dcy
            g_seen[j, 2] += h2 * daz - h0 * dcz
            g_seen[l, 0] += h0 * dbx - h1 * dax
            g_seen[l, 1] += h0 * dby - h1 * day
            g_seen[l, 2] += h0 * dbz - h1 * daz


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def crossings(seen, faces, ends, sides, depth, focal, edge, far):  # type: ignore[no-untyped-def]
    """Which silhouette edge is the last between two neighbouring pixels, and how far from the nearer surface's pixel.

    seen [Nv, 3] of one view; ends, sides [E, 2] of `edges_of`; depth [H, W]. Pixel (row, column) and its neighbour to
    the right make pair [0, row, column], that and the one below [1, row, column]: edge [2, H, W] comes in as -1, far
    [2, H, W] gets t.
    """
    height, width = depth.shape
    plane = np.empty((seen.shape[0], 2))
    for i in range(seen.shape[0]):
        z = max(seen[i, 2], NEAR)
        plane[i, 0] = seen[i, 0] / z * focal + 0.5 * width
        plane[i, 1] = seen[i, 1] / z * focal + 0.5 * height
    towards = np.empty(faces.shape[0], np.bool_)
    for f in range(faces.shape[0]):
        a, b, c = plane[faces[f, 0]], plane[faces[f, 1]], plane[faces[f, 2]]
        towards[f] = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) > 0.0
    for n in range(ends.shape[0]):
        if sides[n, 1] >= 0 and towards[sides[n, 0]] == towards[sides[n, 1]]:
            continue
        start, end = plane[ends[n, 0]], plane[ends[n, 1]]
        near_z, end_z = max(seen[ends[n, 0], 2], NEAR), max(seen[ends[n, 1], 2], NEAR)
        # Edges nearer to an axis' direction than to its normal are left to the other axis.
        axis = 0 if abs(end[1] - start[1]) > max(abs(end[0] - start[0]), 1e-9) else 1
        if axis == 1 and not abs(end[0] - start[0]) > max(abs(end[1] - start[1]), 1e-9):
            continue
        along, across = axis, 1 - axis
        count, length = (height, width) if axis == 0 else (width, height)
        low, high = min(start[across], end[across]), max(start[across], end[across])
        first = max(0, int(np.ceil(min(max(low - 0.5, -1.0), count + 1.0))))
        last = min(count - 1, int(np.floor(min(max(high - 0.5, -1.0), count + 1.0))))
        rise = end[across] - start[across]
        for line in range(first, last + 1):
            share = (line + 0.5 - start[across]) / rise
            if share < 0.0 or share > 1.0:
                continue
            place = start[along] + share * (end[along] - start[along])
            middle = int(np.floor(min(max(place - 0.5, -2.0), length + 1.0)))
            for cell in range(max(0, middle - 1), min(length - 2, middle + 1) + 1):
                row, column = (line, cell) if axis == 0 else (cell, line)
                here = depth[row, column]
                there = depth[row, column + 1] if axis == 0 else depth[row + 1, column]
                nearer, farther = min(here, there), max(here, there)
                if not farther - nearer > JUMP_PX * nearer / focal:
                    continue
                t = cell + 1.5 - place if there < here else place - (cell + 0.5)
                if t < 0.0 or t > 1.0 or not near_z + share * (end_z - near_z) < 0.5 * (nearer + farther):
                    continue
                if edge[axis, row, column] < 0 or t > far[axis, row, column]:
                    edge[axis, row, column] = n
                    far[axis, row, column] = t


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def blend(hard, depth, edge, far, soft):  # type: ignore[no-untyped-def]
    """soft [C, H, W], which comes in as hard, gets its silhouettes blended: by how far the nearer surface reaches."""
    height, width = depth.shape
    for axis in range(2):
        for row in range(height - axis):
            for column in range(width - 1 + axis):
                if edge[axis, row, column] < 0:
                    continue
                below, beside = row + axis, column + 1 - axis
                turned = depth[below, beside] < depth[row, column]
                share = far[axis, row, column] - 0.5
                second = (share > 0.0) != turned  # which of the two pixels is blended
                for c in range(hard.shape[0]):
                    gap = hard[c, row, column] - hard[c, below, beside]
                    change = share * (-gap if turned else gap)
                    if second:
                        soft[c, below, beside] += change
                    else:
                        soft[c, row, column] += change


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def blend_adjoint(grad, hard, depth, edge, far, ends, seen, focal, g_hard, g_seen):  # type: ignore[no-untyped-def]
    """Adjoint of crossings and blend: adds to g_hard [C, H, W], which comes in as grad, and to g_seen [Nv, 3]."""
    height, width = depth.shape
    for axis in range(2):
        along, across = axis, 1 - axis
        centre = (0.5 * width, 0.5 * height)
        for row in range(height - axis):
            for column in range(width - 1 + axis):
                n = edge[axis, row, column]
                if n < 0:
                    continue
                below, beside = row + axis, column + 1 - axis
                turned = depth[below, beside] < depth[row, column]
                share = far[axis, row, column] - 0.5
                second = (share > 0.0) != turned
                g_far = np.float64(0.0)
                for c in range(hard.shape[0]):
                    g = np.float64(grad[c, below, beside] if second else grad[c, row, column])
                    gap = np.float64(hard[c, row, column]) - np.float64(hard[c, below, beside])
                    sign = -1.0 if turned else 1.0
                    g_far += g * sign * gap
                    g_hard[c, row, column] += sign * share * g
                    g_hard[c, below, beside] -= sign * share * g
                if g_far == 0.0:
                    continue
                start, end = seen[ends[n, 0]], seen[ends[n, 1]]
                zs, ze = max(start[2], NEAR), max(end[2], NEAR)
                us, ue = start[along] / zs * focal + centre[along], end[along] / ze * focal + centre[along]
                vs, ve = (
                    start[across] / zs * focal + centre[across],
                    end[across] / ze * focal + centre[across],
                )
                rise, lean = ve - vs, ue - us
                q = ((row if axis == 0 else column) + 0.5 - vs) / rise
                g = -g_far if turned else g_far  # for the crossing's place along the axis
                for k in range(2):
                    w = q if k else 1.0 - q
                    i, x, z = ends[n, k], end if k else start, ze if k else zs
                    gu, gv = g * w, -g * w * lean / rise
                    g_seen[i, along] += gu * focal / z
                    g_seen[i, across] += gv * focal / z
                    if x[2] > NEAR:
                        g_seen[i, 2] -= (gu * x[along] + gv * x[across]) * focal / (z * z)


@njit(cache=True, error_model="numpy", nogil=True)  # pragma: no cover - compiled
def pair_up(faces, vertices, ends, sides):  # type: ignore[no-untyped-def]
    """How many edges faces [Nf, 3] have; ends, sides [3 Nf, 2] get them as `edges_of` has them, in the order met."""
    first, following = np.full(vertices, -1, np.int64), np.empty(3 * faces.shape[0], np.int64)
    count = 0
    for f in range(faces.shape[0]):
        for k in range(3):
            a, b = faces[f, k], faces[f, (k + 1) % 3]
            low, high = min(a, b), max(a, b)
            n = first[low]
            while n >= 0 and ends[n, 1] != high:
                n = following[n]
            if n >= 0:
                if sides[n, 1] < 0:
                    sides[n, 1] = f
                continue
            ends[count, 0], ends[count, 1], sides[count, 0], sides[count, 1] = low, high, f, -1
            following[count], first[low] = first[low], count
            count += 1
    return count
