"""True views of procedural objects and of coloured meshes: a z-buffer over their triangles.

V views, P parts, M vertices, S supersamples along a side, T texture side in pixels. Patterns are evaluated for every
pixel from the part's own coordinates, so they are sharp at any size. Images are RGBA, float32 in 0..1, straight alpha.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from gs_propeller.base.camera import Cameras, orbit
from guidance.pocket.meshes import NO_TEXTURE, ColouredMesh
from guidance.pocket.objects import Array, Thing

RADIUS = 2.0  # world units from the camera to the origin
FOV_Y_RAD = math.radians(49.1)  # as the renders that Zero-1-to-3 was trained on
FILL = 0.8  # share of the picture that the input view's bounding box spans: border ratio 0.2
AROUND, UPWARD = 28, 16  # facets of a part
OWN, IMAGE = (
    6,
    7,
)  # paints beyond the patterns: the local coordinates are the colour; a texture lies on the part

Shown = Thing | ColouredMesh
AnyShown = TypeVar("AnyShown", Thing, ColouredMesh)


@lru_cache(maxsize=1)
def _grid() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
    """Angles eta, omega [G] of a part's vertices, and its faces [F, 3], outward."""
    eta = np.linspace(-np.pi / 2, np.pi / 2, UPWARD + 1)
    omega = np.linspace(-np.pi, np.pi, AROUND, endpoint=False)
    high, round_ = np.meshgrid(eta, omega, indexing="ij")
    faces = []
    for i in range(UPWARD):
        for j in range(AROUND):
            a, b = i * AROUND + j, i * AROUND + (j + 1) % AROUND
            c, d = a + AROUND, b + AROUND
            faces += [(a, c, b), (b, c, d)]
    return high.ravel(), round_.ravel(), np.array(faces, dtype=np.int32)


def _power(base: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    return np.sign(base) * np.abs(base) ** exponent


@dataclass(frozen=True)
class Surface:
    """The object's triangles: vertices, normals, local [M, 3]; faces [F, 3]; part [F]; paints [P, 10];
    texture [T, T, 3]; open: faces are seen from both sides, so that normals are turned to the eye."""

    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]
    local: NDArray[np.float32]
    faces: NDArray[np.int32]
    part: NDArray[np.int32]
    paints: NDArray[np.float32]
    texture: NDArray[np.float32]
    open: bool = False

    def facing(self, eye: Array) -> NDArray[np.float32]:
        """The normals [M, 3] as they are seen from eye [3]."""
        if not self.open:
            return self.normals
        away = ((eye - self.vertices) * self.normals).sum(1, keepdims=True) < 0
        return np.where(away, -self.normals, self.normals)


def _grown(thing: Thing, points: Array, normals: Array, faces: NDArray[np.int32]) -> tuple[Array, Array]:
    """Points moved along their normals to where the smooth union ends, which is never farther than blend log P;
    those deep inside another part stay hidden there. And the normals [M, 3] that the moved faces have."""
    most, moved = thing.blend * math.log(len(thing.parts)), np.zeros(len(points))
    for _ in range(4):  # relaxed, since depth is measured along a ray that may be oblique to the normal
        moved = np.clip(moved + 0.8 * thing.depth(points + moved[:, None] * normals), 0.0, most)
    points = points + moved[:, None] * normals
    a, b, c = (points[faces[:, k]] for k in range(3))
    across = np.cross(b - a, c - a)
    summed = np.stack(
        [sum(np.bincount(faces[:, k], across[:, i], len(points)) for k in range(3)) for i in range(3)], 1
    )
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    return points, np.where(length > 1e-12, summed / np.maximum(length, 1e-12), normals)


def surface(thing: Shown) -> Surface:
    """The triangles that `views` draws."""
    return _of_parts(thing) if isinstance(thing, Thing) else _of_mesh(thing)


def outline(thing: Shown) -> Array:
    """[M, 3] points of the surface, all its corners among them."""
    return surface(thing).vertices.astype(np.float64) if isinstance(thing, Thing) else thing.points


def _of_mesh(mesh: ColouredMesh) -> Surface:
    """Flat faces, no corner shared: each with its own normal and colours."""
    corners = mesh.points[mesh.faces]
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(across, axis=1, keepdims=True)
    normals = np.where(length > 1e-12, across / np.maximum(length, 1e-12), [0.0, 1.0, 0.0])
    count = len(mesh.faces)
    local, part = mesh.colours, np.zeros(count, np.int32)
    paints = np.array([[0.0] * 6 + [OWN, 0, 0, 0]])
    if mesh.texture.shape[0] > 1:
        local = (mesh.points if mesh.laid is None else mesh.laid)[mesh.faces]
        part, paints = np.arange(count, dtype=np.int32), np.zeros((count, 10))
        paints[:, :3], paints[:, 6] = mesh.colours.mean(1), IMAGE
        paints[:, 7], paints[:, 8] = np.abs(normals).argmax(1), mesh.repeats
    f32 = np.float32
    return Surface(
        corners.reshape(-1, 3).astype(f32), np.repeat(normals, 3, 0).astype(f32), local.reshape(-1, 3).astype(f32),
        np.arange(3 * count, dtype=np.int32).reshape(-1, 3), part, paints.astype(f32),
        np.ascontiguousarray(mesh.texture, f32), True,
    )  # fmt: skip


def _of_parts(thing: Thing) -> Surface:
    """Triangulates every part; parts may interpenetrate, the z-buffer takes the union, which blend makes smooth."""
    eta, omega, faces = _grid()
    vertices, normals, local, index, part_of, paints = [], [], [], [], [], []
    for k, part in enumerate(thing.parts):
        e1, e2 = part.eps
        ce, se = np.cos(eta), np.sin(eta)
        co, so = np.cos(omega), np.sin(omega)
        unit = np.stack([_power(ce, e1) * _power(co, e2), _power(se, e1), _power(ce, e1) * _power(so, e2)], 1)
        width = 1.0 + part.taper * unit[:, 1:2]
        shaped = unit * np.concatenate([width, np.ones_like(width), width], 1)
        # The gradient of the untapered implicit, then the taper's own slope.
        slope = np.stack(
            [
                _power(ce, 2 - e1) * _power(co, 2 - e2),
                _power(se, 2 - e1),
                _power(ce, 2 - e1) * _power(so, 2 - e2),
            ],
            1,
        )
        safe = np.maximum(width, 1e-3)
        flank = (slope[:, :1] * unit[:, :1] + slope[:, 2:] * unit[:, 2:]) * part.taper / safe
        normal = np.concatenate([slope[:, :1] / safe, slope[:, 1:2] - flank, slope[:, 2:] / safe], 1)
        normal = normal / part.radii @ part.rotation.T
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        vertices.append(part.centre + (shaped * part.radii) @ part.rotation.T)
        normals.append(normal)
        local.append(unit)
        index.append(faces + k * len(eta))
        part_of.append(np.full(len(faces), k))
        paints.append([*part.colour, *part.second, part.pattern, part.axis, part.frequency, part.phase])
    f32, points, directions = np.float32, np.concatenate(vertices), np.concatenate(normals)
    triangles = np.concatenate(index).astype(np.int32)
    if thing.blend > 0.0:
        points, directions = _grown(thing, points, directions, triangles)
    return Surface(
        points.astype(f32), directions.astype(f32), np.concatenate(local).astype(f32), triangles,
        np.concatenate(part_of).astype(np.int32), np.array(paints, dtype=f32), NO_TEXTURE,
    )  # fmt: skip


@njit(cache=True)
def _mix(pattern: int, u0: float, u1: float, u2: float, axis: int, frequency: float, phase: float) -> float:
    """Share of the second colour at local coordinates u, in 0..1."""
    along = u0 if axis == 0 else (u1 if axis == 1 else u2)
    if pattern == 1:
        return 0.5 + 0.5 * math.tanh(4.0 * math.sin(math.pi * frequency * along + phase))
    if pattern == 2:
        k = math.pi * frequency * 0.8
        wave = math.cos(k * u0 + phase) * math.cos(k * u1) + math.cos(k * u1) * math.cos(k * u2)
        wave += math.cos(k * u2) * math.cos(k * u0 + phase)
        return 0.5 + 0.5 * math.tanh(4.0 * (wave - 0.9))
    if pattern == 3:
        return min(1.0, max(0.0, 0.5 + 0.5 * along))
    if pattern == 4:
        return 1.0 if along > phase else 0.0
    if pattern == 5:
        k = math.pi * frequency * 0.5
        wave = math.sin(k * u0 + phase) * math.sin(k * u1 + phase) * math.sin(k * u2 + phase)
        return 1.0 if wave > 0 else 0.0
    return 0.0


@njit(cache=True)
def _sampled(texture, u: float, v: float, c: int) -> float:  # type: ignore[no-untyped-def]
    """One channel of a repeating texture at (u, v), a unit to the whole of it; bilinear."""
    side = texture.shape[0]
    x, y = u * side - 0.5, v * side - 0.5
    left, top = math.floor(x), math.floor(y)
    a, b = x - left, y - top
    x0, y0 = int(left) % side, int(top) % side
    x1, y1 = (x0 + 1) % side, (y0 + 1) % side
    high = texture[y0, x0, c] * (1 - a) + texture[y0, x1, c] * a
    low = texture[y1, x0, c] * (1 - a) + texture[y1, x1, c] * a
    return high * (1 - b) + low * b


@njit(cache=True)
def _draw(vertices, normals, local, faces, part, paints, texture, w2c, focal, size, light, ambient, out):  # type: ignore[no-untyped-def]
    """One view into out [size, size, 4]; the nearest surface wins."""
    depth = np.full((size, size), np.float32(1e9))
    n = vertices.shape[0]
    x, y, inv = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    for i in range(n):
        a, b, c = vertices[i, 0], vertices[i, 1], vertices[i, 2]
        z = w2c[2, 0] * a + w2c[2, 1] * b + w2c[2, 2] * c + w2c[2, 3]
        inv[i] = 1.0 / max(z, 1e-3)
        x[i] = focal * (w2c[0, 0] * a + w2c[0, 1] * b + w2c[0, 2] * c + w2c[0, 3]) * inv[i] + 0.5 * size
        y[i] = focal * (w2c[1, 0] * a + w2c[1, 1] * b + w2c[1, 2] * c + w2c[1, 3]) * inv[i] + 0.5 * size
    for f in range(faces.shape[0]):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        area = (x[j] - x[i]) * (y[k] - y[i]) - (x[k] - x[i]) * (y[j] - y[i])
        if area == 0.0:
            continue
        left = max(0, int(math.ceil(min(x[i], x[j], x[k]) - 0.5)))
        right = min(size - 1, int(math.floor(max(x[i], x[j], x[k]) - 0.5)))
        top = max(0, int(math.ceil(min(y[i], y[j], y[k]) - 0.5)))
        bottom = min(size - 1, int(math.floor(max(y[i], y[j], y[k]) - 0.5)))
        p = part[f]
        for row in range(top, bottom + 1):
            py = row + 0.5
            for col in range(left, right + 1):
                px = col + 0.5
                wi = ((x[j] - px) * (y[k] - py) - (x[k] - px) * (y[j] - py)) / area
                wj = ((x[k] - px) * (y[i] - py) - (x[i] - px) * (y[k] - py)) / area
                wk = 1.0 - wi - wj
                if wi < 0.0 or wj < 0.0 or wk < 0.0:
                    continue
                wi, wj, wk = wi * inv[i], wj * inv[j], wk * inv[k]
                z = 1.0 / (wi + wj + wk)
                if z >= depth[row, col]:
                    continue
                depth[row, col] = z
                wi, wj, wk = wi * z, wj * z, wk * z
                u0 = wi * local[i, 0] + wj * local[j, 0] + wk * local[k, 0]
                u1 = wi * local[i, 1] + wj * local[j, 1] + wk * local[k, 1]
                u2 = wi * local[i, 2] + wj * local[j, 2] + wk * local[k, 2]
                n0 = wi * normals[i, 0] + wj * normals[j, 0] + wk * normals[k, 0]
                n1 = wi * normals[i, 1] + wj * normals[j, 1] + wk * normals[k, 1]
                n2 = wi * normals[i, 2] + wj * normals[j, 2] + wk * normals[k, 2]
                lit = (n0 * light[0] + n1 * light[1] + n2 * light[2]) / max(
                    math.sqrt(n0 * n0 + n1 * n1 + n2 * n2), 1e-6
                )
                # Half-Lambert: the far side keeps some shape instead of going flat.
                shade = ambient + (1.0 - ambient) * (0.5 + 0.5 * lit) ** 2
                kind, axis = int(paints[p, 6]), int(paints[p, 7])
                if kind == 6:
                    out[row, col, 0], out[row, col, 1], out[row, col, 2] = shade * u0, shade * u1, shade * u2
                elif kind == 7:
                    across, down = u2 if axis == 0 else u0, u2 if axis == 1 else -u1
                    for c in range(3):
                        out[row, col, c] = (
                            shade
                            * paints[p, c]
                            * _sampled(texture, across * paints[p, 8], down * paints[p, 8], c)
                        )
                else:
                    m = _mix(kind, u0, u1, u2, axis, paints[p, 8], paints[p, 9])
                    for c in range(3):
                        out[row, col, c] = shade * (paints[p, c] + m * (paints[p, 3 + c] - paints[p, c]))
                out[row, col, 3] = 1.0


def views(thing: Shown, cameras: Cameras, size_px: int, supersample: int = 2) -> Tensor:
    """[V, 4, size, size] straight-alpha RGBA in 0..1 of the object as it stands."""
    shape, fine = surface(thing), size_px * supersample
    out = torch.empty(len(cameras), 4, size_px, size_px)
    w2c = cameras.w2c.numpy()
    eyes = -np.einsum("vij,vi->vj", w2c[:, :3, :3], w2c[:, :3, 3]).astype(np.float64)
    light = thing.light.astype(np.float32)
    for v in range(len(cameras)):
        image = np.zeros((fine, fine, 4), dtype=np.float32)
        _draw(
            shape.vertices, shape.facing(eyes[v]), shape.local, shape.faces, shape.part, shape.paints, shape.texture,
            w2c[v], np.float32(cameras.focal_px(fine)), fine, light, np.float32(thing.ambient), image,
        )  # fmt: skip
        box = boxed(image, supersample)  # colour is premultiplied: 0 outside
        alpha = box[:, :, 3:]
        colour = box[:, :, :3] / np.maximum(alpha, 1e-6)
        out[v] = torch.from_numpy(np.concatenate([colour, alpha], 2)).permute(2, 0, 1)
    return out.clamp_(0.0, 1.0)


def boxed(image: NDArray[np.float32], times: int) -> NDArray[np.float32]:
    """[times S, times S, C] -> [S, S, C], means of squares; numpy's mean over two axes takes ten times as long."""
    total = image[::times, ::times].copy()
    for place in range(1, times * times):
        total += image[place // times :: times, place % times :: times]
    return total / np.float32(times * times)


def on_white(rgba: Tensor) -> Tensor:
    """[V, 4, H, W] -> [V, 3, H, W] over white."""
    return rgba[:, :3] * rgba[:, 3:] + (1.0 - rgba[:, 3:])


def framed(thing: AnyShown, azimuth_rad: float, elevation_rad: float) -> AnyShown:
    """Moved and scaled so that the view from there is centred and spans FILL of the picture.

    That is what cropping does to an input picture, so the true object and the asset share one frame.
    """
    return thing.moved(*fitted(outline(thing), azimuth_rad, elevation_rad))


def fitted(points: Array, azimuth_rad: float, elevation_rad: float) -> tuple[float, Array]:
    """(scale, offset [3]) by which `framed` moves points [M, 3]."""
    camera = orbit([azimuth_rad], [elevation_rad], RADIUS, FOV_Y_RAD)
    rotation, shift = camera.w2c[0, :3, :3].double().numpy(), camera.w2c[0, :3, 3].double().numpy()
    low, high = points.min(0), points.max(0)
    scale = 1.0 / float(np.linalg.norm(high - low))
    offset = -scale * (low + high) / 2
    half = math.tan(FOV_Y_RAD / 2)
    for k in range(60):  # a contraction, by half steps where it swings: long objects that point at the camera
        seen = (points * scale + offset) @ rotation.T + shift
        plane = seen[:, :2] / seen[:, 2:] / half
        first, last = plane.min(0), plane.max(0)
        span = float((last - first).max() / 2)
        centre = np.array(
            [*(first + last) / 2 * RADIUS * half, (seen[:, 2].min() + seen[:, 2].max()) / 2 - RADIUS]
        )
        factor = FILL / span
        if k >= 12:
            factor, centre = math.sqrt(factor), centre / 2
        scale, offset = scale * factor, (offset - rotation.T @ centre) * factor
        if k >= 5 and abs(factor - 1.0) < 1e-3:
            break
    return scale, offset
