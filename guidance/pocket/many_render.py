"""True views of many objects at once: the z-buffer of render.py in tensor operations, for a GPU.

N objects, V views, M points, F faces, K places where a face may cover a pixel, S picture side in pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from guidance.pocket import laws
from guidance.pocket.data import SIZE_PX, VIEWS
from guidance.pocket.many import Chance, Library, Many, framed, looking, picked
from guidance.pocket.render import FOV_Y_RAD

SUPERSAMPLE = 2
EMPTY = torch.iinfo(torch.int64).max  # in a z-buffer: nothing is there


def drawn(models: Library, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training objects by chance, all on the generator's device, as data.shard gives them: images [N, V, 3, S, S] uint8
    over white, view 0 the known one; poses [N, V, 4] relative to it."""
    chance = Chance(generator)
    many, azimuth, elevation = framed(picked(models, count, chance), chance)
    tilt = chance.uniform(*laws.TILT_RAD, count, VIEWS - 1)
    tilt = torch.where(chance.happens(laws.SAME_HEIGHT, count, VIEWS - 1), torch.zeros_like(tilt), tilt)
    turn = chance.uniform(-math.pi, math.pi, count, VIEWS - 1) - azimuth[:, None]
    turn, tilt = (torch.cat([torch.zeros_like(x[:, :1]), x], 1) for x in (turn, tilt))
    w2c = looking(azimuth[:, None] + turn, elevation[:, None] + tilt)
    images = torch.stack([view(many, w2c[:, v]) for v in range(VIEWS)], 1)
    side = torch.where(chance.happens(laws.MIRRORED, count), -1.0, 1.0)[:, None]  # half of them in a mirror
    images = torch.where(side[:, :, None, None, None] < 0, images.flip(-1), images)
    return images, torch.stack([-tilt, turn.sin() * side, turn.cos(), torch.zeros_like(turn)], 2)


def view(many: Many, w2c: Tensor, size_px: int = SIZE_PX) -> Tensor:
    """[N, 3, size, size] uint8 over white of each object from its camera [N, 3, 4]."""
    size, count = size_px * SUPERSAMPLE, len(many)
    cameras = w2c[many.of]
    seen = torch.einsum("mij,mj->mi", cameras[:, :, :3], many.points) + cameras[:, :, 3]
    nearness = 1 / seen[:, 2:].clamp_min(1e-3)
    focal = 0.5 * size / math.tan(0.5 * FOV_Y_RAD)
    place = torch.cat([seen[:, :2] * nearness * focal + 0.5 * size, nearness], 1)
    corners = place[many.faces]  # [F, 3, 3]: each corner's x, y and 1 / depth
    pixel, face = candidates(corners, size)
    shares = weights(corners[face], pixel, size)
    inside = (shares >= 0).all(1)
    pixel, face, shares = pixel[inside], face[inside], shares[inside]
    depth = 1 / (shares * corners[face, :, 2]).sum(1)
    key = (depth.view(torch.int32).long() << 32) | face  # of positive numbers the bits go as the numbers
    slot = many.face_of[face] * size**2 + pixel
    nearest = torch.full((count * size**2,), EMPTY, device=key.device).scatter_reduce_(0, slot, key, "amin")
    shown = (nearest != EMPTY).nonzero()[:, 0]
    face = nearest[shown] & 0xFFFFFFFF
    shares = weights(corners[face], shown % size**2, size) * corners[face, :, 2]
    shares = shares / shares.sum(1, keepdim=True)
    colour = (shares[:, :, None] * many.colours[face]).sum(1) * shade(many, w2c)[face][:, None]
    picture = torch.zeros(count * size**2, 4, device=key.device)
    picture[shown] = torch.cat([colour, torch.ones_like(colour[:, :1])], 1)
    picture = picture.reshape(count, size_px, SUPERSAMPLE, size_px, SUPERSAMPLE, 4).mean((2, 4))
    over = picture[..., :3] + (1 - picture[..., 3:])
    return (over.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(0, 3, 1, 2)


def candidates(corners: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(pixel [K] = row size + column, face [K]): the pixels with their centre in the box around a face's corners."""
    first = (corners[:, :, :2].amin(1) - 0.5).ceil().clamp_min(0).long()
    last = (corners[:, :, :2].amax(1) - 0.5).floor().clamp_max(size - 1).long()
    extent = (last - first + 1).clamp_min(0)
    a, b, c = corners[:, :, :2].unbind(1)
    flat = (b - a)[:, 0] * (c - a)[:, 1] == (c - a)[:, 0] * (b - a)[:, 1]
    counts = extent.prod(1) * ~flat
    face = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    within = torch.arange(len(face), device=face.device) - (counts.cumsum(0) - counts)[face]
    wide = extent[face, 0]
    row = torch.div(within, wide, rounding_mode="floor")
    return (first[face, 1] + row) * size + first[face, 0] + within - row * wide, face


def weights(corners: Tensor, pixel: Tensor, size: int) -> Tensor:
    """[K, 3] barycentric, on the screen, of pixels [K] in faces of these corners [K, 3, 3]."""
    row = torch.div(pixel, size, rounding_mode="floor")
    px, py = pixel - row * size + 0.5, row + 0.5
    (xi, xj, xk), (yi, yj, yk) = corners[:, :, 0].unbind(1), corners[:, :, 1].unbind(1)
    area = (xj - xi) * (yk - yi) - (xk - xi) * (yj - yi)
    wi = ((xj - px) * (yk - py) - (xk - px) * (yj - py)) / area
    wj = ((xk - px) * (yi - py) - (xi - px) * (yk - py)) / area
    return torch.stack([wi, wj, 1 - wi - wj], 1)


def shade(many: Many, w2c: Tensor) -> Tensor:
    """[F] half-Lambert of the faces from these cameras [N, 3, 4], seen from both sides."""
    a, b, c = many.points[many.faces].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    normal = normal / normal.norm(dim=1, keepdim=True).clamp_min(1e-12)
    eye = -torch.einsum("nji,nj->ni", w2c[:, :, :3], w2c[:, :, 3])[many.face_of]
    lit = (normal * many.light[many.face_of]).sum(1)
    lit = torch.where(((eye - a) * normal).sum(1) < 0, -lit, lit)
    ambient = many.ambient[many.face_of]
    return ambient + (1 - ambient) * (0.5 + 0.5 * lit) ** 2
