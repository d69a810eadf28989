"""Procedural objects: unions of tapered superquadrics with painted patterns.

P parts. World: y up, front +z, as gs_propeller.base.camera. Every object is a function of its family and seed,
carries the caption that describes it, and knows its inside, so that views and volumes can be scored.
A part maps its unit superquadric |x|^(2/e2) + |z|^(2/e2) ... = 1 (axis y) to the world by
p = centre + rotation @ (radii * taper(u)), where taper scales x and z by (1 + k u_y).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
T = TypeVar("T")

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.82, 0.12, 0.12),
    "orange": (0.93, 0.50, 0.12),
    "yellow": (0.95, 0.82, 0.18),
    "green": (0.20, 0.62, 0.24),
    "teal": (0.12, 0.60, 0.60),
    "blue": (0.16, 0.34, 0.80),
    "purple": (0.50, 0.24, 0.68),
    "pink": (0.94, 0.58, 0.70),
    "brown": (0.46, 0.28, 0.15),
    "beige": (0.86, 0.76, 0.58),
    "grey": (0.52, 0.53, 0.55),
    "black": (0.12, 0.12, 0.13),
    "white": (0.93, 0.93, 0.92),
}
SOLID, STRIPES, DOTS, GRADIENT, TWO_TONE, CHECKS = range(6)
PATTERNS = ("plain", "striped", "dotted", "shaded", "two-tone", "chequered")


@dataclass(frozen=True)
class Part:
    """One tapered superquadric and its paint.

    centre, radii [3] world units; rotation [3, 3]; eps (e1, e2) exponents, 1 round, 0.2 boxy; taper k in [-1, 1];
    colour and second [3] in 0..1; pattern with its axis (0 x, 1 y, 2 z), frequency (cycles over [-1, 1] / 2) and phase.
    """

    centre: Array
    radii: Array
    rotation: Array
    eps: tuple[float, float]
    taper: float
    colour: Array
    second: Array
    pattern: int = SOLID
    axis: int = 1
    frequency: float = 3.0
    phase: float = 0.0

    def depth(self, points: Array) -> Array:
        """points [M, 3] -> [M] distance to the surface along the ray from the centre, positive inside."""
        local = (points - self.centre) @ self.rotation
        u = local / self.radii
        width = 1.0 + self.taper * u[:, 1]
        safe = np.maximum(width, 1e-6)
        e1, e2 = self.eps
        round_ = np.abs(u[:, 0] / safe) ** (2 / e2) + np.abs(u[:, 2] / safe) ** (2 / e2)
        level = round_ ** (e2 / e1) + np.abs(u[:, 1]) ** (2 / e1)
        reach = np.linalg.norm(local, axis=1)
        with np.errstate(divide="ignore", over="ignore"):
            result = reach * (np.maximum(level, 1e-30) ** (-e1 / 2) - 1.0)
        return np.where(width > 0.0, np.minimum(result, self.radii.min()), -reach)


@dataclass(frozen=True)
class Thing:
    """A named object: its parts, caption, and the light it is seen under.

    light [3]: unit vector towards the light, world axes; ambient in 0..1, the rest is diffuse.
    blend: world units over which parts grow into one another (a smooth union); 0 is the plain union.
    """

    family: str
    seed: int
    caption: str
    parts: tuple[Part, ...]
    light: Array
    ambient: float
    blend: float = 0.0

    def moved(self, scale: float, offset: Array) -> Thing:
        """The object scaled about the origin, then shifted by offset [3]."""
        parts = tuple(replace(p, centre=p.centre * scale + offset, radii=p.radii * scale) for p in self.parts)
        return replace(self, parts=parts, blend=self.blend * scale)

    def inside(self, points: Array) -> NDArray[np.bool_]:
        """points [M, 3] -> [M] whether each lies in the object."""
        return self.depth(points) >= 0.0

    def depth(self, points: Array) -> Array:
        """points [M, 3] -> [M] about how deep each lies, world units, negative outside: a (smooth) maximum of the
        parts' depths along the ray from their centres."""
        depths = np.stack([part.depth(points) for part in self.parts])
        highest = depths.max(0)
        if self.blend == 0.0:
            return highest
        return highest + self.blend * np.log(np.exp((depths - highest) / self.blend).sum(0))


def euler(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """Rotation [3, 3] about y, then x, then z, radians, applied right to left."""
    cy, sy, cx, sx, cz, sz = (f(a) for a in (yaw, pitch, roll) for f in (math.cos, math.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def turned(parts: list[Part], turn: Array, at: Sequence[float] | Array = (0.0, 0.0, 0.0)) -> list[Part]:
    """The parts turned about the origin by turn [3, 3], then put at [3]."""
    return [replace(p, centre=at + turn @ p.centre, rotation=turn @ p.rotation) for p in parts]


@dataclass(frozen=True)
class Paint:
    """A colour with its pattern, shared by the parts of one material."""

    name: str
    colour: Array
    second: Array
    pattern: int
    axis: int = 1
    frequency: float = 3.0
    phase: float = 0.0


def paint(rng: np.random.Generator, *, plain: float = 0.5) -> Paint:
    """A random palette colour, jittered, with a pattern in (1 - plain) of the draws."""
    names = list(PALETTE)
    first, other = rng.choice(len(names), 2, replace=False)
    colour = np.clip(np.array(PALETTE[names[first]]) + rng.normal(0, 0.03, 3), 0.02, 0.98)
    second = np.clip(np.array(PALETTE[names[other]]) + rng.normal(0, 0.03, 3), 0.02, 0.98)
    pattern = SOLID if rng.random() < plain else int(rng.integers(1, 6))
    name = names[first] if pattern == SOLID else f"{PATTERNS[pattern]} {names[first]} and {names[other]}"
    phase = float(rng.uniform(-0.4, 0.4))
    return Paint(name, colour, second, pattern, int(rng.integers(3)), float(rng.uniform(2, 5)), phase)


def named(name: str, second: str = "", pattern: int = SOLID, axis: int = 1, frequency: float = 3.0) -> Paint:
    """A paint of fixed palette colours."""
    colour = np.array(PALETTE[name])
    return Paint(name, colour, np.array(PALETTE[second or name]), pattern, axis, frequency)


def one_of(rng: np.random.Generator, *names: str) -> Paint:
    """A paint of one of these palette colours."""
    return named(str(rng.choice(names)))


def one_kind(rng: np.random.Generator, kinds: Mapping[str, T]) -> tuple[str, T]:
    """One of a family's kinds: its name, and what makes it."""
    kind = str(rng.choice(list(kinds)))
    return kind, kinds[kind]


def blob(
    at: Sequence[float] | Array,
    radii: Sequence[float] | Array,
    material: Paint,
    *,
    eps: tuple[float, float] = (1.0, 1.0),
    taper: float = 0.0,
    turn: Array | None = None,
) -> Part:
    """A part from a material; turn is its rotation, none by default."""
    rotation = np.eye(3) if turn is None else turn
    return Part(
        np.array(at, dtype=float), np.array(radii, dtype=float), rotation, eps, taper,
        material.colour, material.second, material.pattern, material.axis, material.frequency, material.phase,
    )  # fmt: skip


BOX, CYLINDER, CONE = (0.15, 0.15), (0.15, 1.0), (0.25, 1.0)
EDGED = (0.25, 1.0)  # exponents of what is round about its axis, with an edge
FACING = euler(pitch=math.pi / 2)  # a part's own axis towards the front
LYING = euler(roll=math.pi / 2)  # and towards the side
BLACK, WHITE = named("black"), named("white")


def disc(
    at: Sequence[float] | Array, radius: float, half: float, material: Paint, turn: Array = FACING
) -> Part:
    """A flat cylinder that looks to the front, or is turned so, `half` of its thickness to each side."""
    return blob(at, (radius, half, radius), material, eps=EDGED, turn=turn)


def eyes(y: float, z: float, apart: float, size: float) -> list[Part]:
    """Two black ellipsoids, `apart` to each side of x = 0."""
    return [blob((s * apart, y, z), (size, size * 1.2, size * 0.6), BLACK) for s in (-1, 1)]


def tube(start: Array, points: list[Array], radius: float, material: Paint) -> list[Part]:
    """A bent tube as overlapping ellipsoids along a polyline."""
    parts = []
    here = start
    for there in points:
        along = there - here
        length = float(np.linalg.norm(along))
        pitch, yaw = math.acos(float(np.clip(along[1] / length, -1, 1))), math.atan2(along[0], along[2])
        middle = tuple((here + there) / 2)
        parts.append(
            blob(middle, (radius, length / 2 + radius * 0.7, radius), material, turn=euler(yaw, pitch))
        )
        here = there
    return parts
