"""Many models at once, as tensors, so that a GPU draws its training objects itself: picked, bent, joined, recoloured,
lit, framed. What data.posed_model does to one model after another, by the same laws with other draws, without textures.

N objects, I pieces (an object is one model, or two that are joined), M points, F faces. World as meshes.py. Pieces,
points and faces of all objects lie behind one another; `of` says which piece or object each belongs to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guidance.pocket import laws, meshes
from guidance.pocket.data import REACH
from guidance.pocket.render import FILL, FOV_Y_RAD, RADIUS

FITTING_STEPS = 16  # of framing; of 1536 objects the farthest was .0014 of its size off after it
TRIES = 10  # poses of the known view, where an object would leave the picture as the camera goes round


@dataclass(frozen=True)
class Library:
    """Models on a device: points [M, 3], faces [F, 3] by their model's own points, colours [F, 3, 3] of each face's
    corners; of each of L models its first point and face, how many, and whether it has no front."""

    points: Tensor
    faces: Tensor
    colours: Tensor
    first_point: Tensor
    point_count: Tensor
    first_face: Tensor
    face_count: Tensor
    frontless: Tensor

    def __len__(self) -> int:
        return len(self.point_count)


@dataclass(frozen=True)
class Many:
    """N objects: points [M, 3] of object `of` [M]; faces [F, 3] of object face_of [F], colours [F, 3, 3] of their
    corners; light [N, 3] and ambient [N] as in objects.Thing."""

    points: Tensor
    of: Tensor
    faces: Tensor
    face_of: Tensor
    colours: Tensor
    light: Tensor
    ambient: Tensor

    def __len__(self) -> int:
        return len(self.light)


def library(keys: Sequence[str], device: torch.device) -> Library:
    """The models of these keys."""
    models = [meshes.read(key) for key in keys]
    points, faces = (torch.tensor([len(getattr(m, name)) for m in models]) for name in ("points", "faces"))
    kept = Library(
        torch.cat([torch.from_numpy(m.points).float() for m in models]),
        torch.cat([torch.from_numpy(m.faces) for m in models]),
        torch.cat([torch.from_numpy(m.colours).float() for m in models]),
        points.cumsum(0) - points, points, faces.cumsum(0) - faces, faces,
        torch.tensor([m.family in meshes.FRONTLESS for m in models]),
    )  # fmt: skip
    return Library(*(x.to(device) for x in vars(kept).values()))


class Chance:
    """Random numbers of a generator, on its device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.device = generator, generator.device

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator, device=self.device)

    def normal(self, deviation: float, *shape: int) -> Tensor:
        return deviation * torch.randn(*shape, generator=self.generator, device=self.device)

    def below(self, end: int, *shape: int) -> Tensor:
        return torch.randint(end, shape, generator=self.generator, device=self.device)

    def happens(self, share: float, *shape: int) -> Tensor:
        return self.uniform(0.0, 1.0, *shape) < share


def picked(models: Library, count: int, chance: Chance) -> Many:
    """`count` objects, as meshes.varied, meshes.joined and meshes.lit make them."""
    joiners = chance.happens(laws.JOINED, count).nonzero()[:, 0]
    which = chance.below(len(models), count + len(joiners))
    object_of = torch.cat([torch.arange(count, device=chance.device), joiners])
    index, of = spread(models.first_point[which], models.point_count[which])
    points = varied(models.points[index], of, models.frontless[which], chance)
    starts = models.point_count[which].cumsum(0) - models.point_count[which]
    face_index, face_of = spread(models.first_face[which], models.face_count[which])
    faces = models.faces[face_index] + starts[face_of][:, None]
    colours = recoloured(models.colours[face_index], face_of, len(which), chance)
    points = joined(points, of, count, joiners, chance)
    azimuth, height = chance.uniform(0, 2 * math.pi, count), chance.uniform(*laws.LIGHT_HEIGHT, count)
    flat = (1 - height**2).sqrt()
    light = torch.stack([flat * azimuth.sin(), height, flat * azimuth.cos()], 1)
    ambient = chance.uniform(*laws.AMBIENT, count)
    return Many(points, object_of[of], faces, object_of[face_of], colours, light, ambient)


def spread(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """(index, of) [sum of counts]: count[i] numbers from first[i] on, one run behind the other, and the i of each."""
    of = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    return torch.arange(len(of), device=of.device) + (first - count.cumsum(0) + count)[of], of


def bounds(points: Tensor, of: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(lowest, highest) [count, D] of points [M, D]."""
    where = of[:, None].expand_as(points)
    empty = points.new_full((count, points.shape[1]), math.inf)
    return empty.scatter_reduce(0, where, points, "amin"), (-empty).scatter_reduce(0, where, points, "amax")


def turned(points: Tensor, angle: Tensor) -> Tensor:
    """[M, 3] turned about y, each by its angle [M]: +z goes to +x."""
    c, s = angle.cos(), angle.sin()
    x, y, z = points.unbind(1)
    return torch.stack([c * x + s * z, y, c * z - s * x], 1)


def varied(points: Tensor, of: Tensor, frontless: Tensor, chance: Chance) -> Tensor:
    """[M, 3] of I pieces: stretched a little, a share bent out of shape, turned where they have no front [I]."""
    count = len(frontless)
    points = points * chance.normal(laws.STRETCH, count, 3).exp()[of]
    bent = chance.happens(laws.DEFORMED, count)
    points = torch.where(bent[of][:, None], deformed(points, of, count, chance), points)
    return turned(points, (chance.uniform(0, 2 * math.pi, count) * frontless)[of])


def deformed(points: Tensor, of: Tensor, count: int, chance: Chance) -> Tensor:
    """As meshes.deformed: tapered along an axis, twisted about y, sheared and bent sideways with height."""
    low, high = bounds(points, of, count)
    middle, reach = ((low + high) / 2)[of], ((high - low).amax(1) / 2 + 1e-9)[of, None]
    u = (points - middle) / reach
    axis = chance.below(3, count)[of]
    along = u.gather(1, axis[:, None])
    width = 1 + chance.normal(laws.TAPER, count).clamp(-laws.TAPER_MOST, laws.TAPER_MOST)[of][:, None] * along
    u = torch.where(torch.arange(3, device=u.device) == axis[:, None], u, u * width)
    height = u[:, 1:2]
    u = turned(u, (chance.normal(laws.TWIST, count)[of] * height[:, 0]))
    sheared, curved = (chance.normal(x, count, 2)[of] for x in (laws.SHEAR, laws.CURVE))
    aside = sheared * height + curved * height**2
    return middle + reach * torch.stack([u[:, 0] + aside[:, 0], u[:, 1], u[:, 2] + aside[:, 1]], 1)


def recoloured(colours: Tensor, of: Tensor, count: int, chance: Chance) -> Tensor:
    """[F, 3, 3] of `count` pieces, as meshes.recoloured: hues turned, lights and darks moved, all tinted, or none."""
    kind = chance.uniform(0.0, 1.0, count)
    angle = chance.uniform(0, 2 * math.pi, count) * ((kind >= laws.KEPT) & (kind < laws.HUES_UNTIL))
    c, s = angle.cos(), angle.sin() / math.sqrt(3.0)
    a, b, d = (1 + 2 * c) / 3, (1 - c) / 3 - s, (1 - c) / 3 + s
    turn = torch.stack([a, b, d, d, a, b, b, d, a], 1).reshape(-1, 3, 3)
    result = torch.einsum("fkj,fij->fki", colours, turn[of]).clamp(0, 1)
    power = torch.where(
        kind > laws.POWER_FROM, chance.normal(laws.POWER, count), torch.zeros_like(kind)
    ).exp()
    result = result ** power[of, None, None]
    share = (chance.uniform(*laws.TINT_SHARE, count) * (kind > laws.TINT_FROM))[of, None, None]
    return (1 - share) * result + share * chance.uniform(*laws.TINT, count, 3)[of][:, None]


def joined(points: Tensor, of: Tensor, count: int, joiners: Tensor, chance: Chance) -> Tensor:
    """[M, 3] where each piece from `count` on stands on top of the object `joiners` names for it, beside it or before
    it, smaller and touching, as meshes.joined."""
    low, high = bounds(points, of, count + len(joiners))
    first, theirs = (low[joiners], high[joiners]), (low[count:], high[count:])
    extent, few = (first[1] - first[0]).amax(1), len(joiners)
    scale = chance.uniform(*laws.JOINED_SIZE, few) * extent / (theirs[1] - theirs[0]).amax(1).clamp_min(1e-9)
    near, far = theirs[0] * scale[:, None], theirs[1] * scale[:, None]
    sides = torch.tensor([[0, 1, 0], [1, 0, 0], [-1, 0, 0], [0, 0, 1]], device=points.device)
    side = sides[chance.below(4, few)].float()

    def foot(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([(a + b)[:, 0] / 2, a[:, 1], (a + b)[:, 2] / 2], 1)

    gap = torch.where(side > 0, first[1] - near, first[0] - far) - side * laws.OVERLAP * extent[:, None]
    shift = torch.where(side != 0, gap, foot(*first) - foot(near, far))
    scales = torch.cat([points.new_ones(count), scale])
    shifts = torch.cat([points.new_zeros(count, 3), shift])
    return points * scales[of][:, None] + shifts[of]


def looking(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """[..., 3, 4] world to camera, as base.camera.orbit at RADIUS; angles in radians, of any shape."""
    sin_a, cos_a, sin_e, cos_e = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    nought = torch.zeros_like(azimuth)
    rows = (
        (cos_a, nought, -sin_a, nought),
        (sin_e * sin_a, -cos_e, sin_e * cos_a, nought),
        (-cos_e * sin_a, -sin_e, -cos_e * cos_a, nought + RADIUS),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def fitted(points: Tensor, of: Tensor, w2c: Tensor) -> tuple[Tensor, Tensor]:
    """(scale [N], offset [N, 3]) that frame N objects in their known views [N, 3, 4], as render.fitted does one."""
    count, rotation, half = len(w2c), w2c[:, :, :3], math.tan(FOV_Y_RAD / 2)
    low, high = bounds(points, of, count)
    scale = 1 / (high - low).norm(dim=1)
    offset = -scale[:, None] * (low + high) / 2
    turned_points = torch.einsum("mij,mj->mi", rotation[of], points)
    for step in range(FITTING_STEPS):
        shift = torch.einsum("nij,nj->ni", rotation, offset) + w2c[:, :, 3]
        seen = turned_points * scale[of][:, None] + shift[of]
        first, last = bounds(torch.cat([seen[:, :2] / seen[:, 2:] / half, seen[:, 2:]], 1), of, count)
        factor = FILL / ((last - first)[:, :2].amax(1) / 2)
        middle = (first + last) / 2
        centre = torch.cat([middle[:, :2] * RADIUS * half, middle[:, 2:] - RADIUS], 1)
        if step >= 8:  # by half steps where it swings
            factor, centre = factor.sqrt(), centre / 2
        scale = scale * factor
        offset = (offset - torch.einsum("nji,nj->ni", rotation, centre)) * factor[:, None]
    return scale, offset


def framed(many: Many, chance: Chance) -> tuple[Many, Tensor, Tensor]:
    """The objects as their known views frame them, and these views' azimuths and elevations [N] in radians: mostly from
    the front, mostly level, as data.posed."""
    count, points = len(many), many.points
    kept, fits = points.new_zeros(count, 6), torch.zeros(count, dtype=torch.bool, device=points.device)
    for _ in range(TRIES):
        front = chance.happens(laws.FRONTAL, count)
        azimuth = torch.where(
            front, chance.normal(laws.FRONTAL_SPREAD_RAD, count), chance.uniform(-math.pi, math.pi, count)
        )
        raised = chance.uniform(*laws.RAISED_RAD, count)
        elevation = torch.where(chance.happens(laws.LEVEL, count), torch.zeros_like(raised), raised)
        scale, offset = fitted(points, many.of, looking(azimuth, elevation))
        found = torch.cat([torch.stack([azimuth, elevation, scale], 1), offset], 1)
        kept = torch.where(fits[:, None], kept, found)
        moved = points * kept[many.of, 2:3] + kept[many.of, 3:]
        fits = bounds(moved.norm(dim=1, keepdim=True), many.of, count)[1][:, 0] <= REACH
    return replace(many, points=moved), kept[:, 0], kept[:, 1]
