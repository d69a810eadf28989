"""Captioned scenes of plain solids, for the text prior: one, or two and how they stand. Results as in living.py.

Unlike shapes.solids these face the front squarely, so that a sentence and a view's name say all that is to be seen.
"""

from __future__ import annotations

import numpy as np

from guidance.pocket.objects import (
    BOX,
    DOTS,
    GRADIENT,
    STRIPES,
    Array,
    Paint,
    Part,
    blob,
    paint,
)

# eps, taper, radii (x, y, z) of a solid about one unit wide
SOLIDS: dict[str, tuple[tuple[float, float], float, tuple[float, float, float]]] = {
    "cube": (BOX, 0.0, (0.42, 0.42, 0.42)),
    "ball": ((1.0, 1.0), 0.0, (0.46, 0.46, 0.46)),
    "cylinder": ((0.1, 1.0), 0.0, (0.4, 0.44, 0.4)),
    "cone": ((0.1, 1.0), -0.95, (0.26, 0.48, 0.26)),
    "pyramid": (BOX, -0.95, (0.26, 0.44, 0.26)),
    "egg": ((1.0, 1.0), -0.25, (0.38, 0.5, 0.38)),
    "brick": (BOX, 0.0, (0.56, 0.24, 0.3)),
    "disc": ((0.1, 1.0), 0.0, (0.52, 0.14, 0.52)),
    "pillar": ((0.1, 1.0), 0.0, (0.22, 0.62, 0.22)),
}
POINTED = ("cone", "pyramid", "egg", "ball")  # nothing stands on these but with luck

# what a material looks like: colour, second colour, pattern, frequency
MATERIALS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], int, float]] = {
    "wooden": ((0.62, 0.42, 0.24), (0.48, 0.30, 0.16), STRIPES, 5.0),
    "golden": ((0.80, 0.58, 0.12), (1.00, 0.90, 0.45), GRADIENT, 1.0),
    "silver": ((0.48, 0.50, 0.54), (0.95, 0.96, 0.98), GRADIENT, 1.0),
    "stone": ((0.56, 0.55, 0.53), (0.42, 0.41, 0.40), DOTS, 5.0),
}


def _cover(rng: np.random.Generator) -> Paint:
    """A paint, or in one of six draws a material."""
    if rng.random() < 5 / 6:
        return paint(rng, plain=0.7)
    name = str(rng.choice(list(MATERIALS)))
    colour, second, pattern, frequency = MATERIALS[name]
    return Paint(name, np.array(colour), np.array(second), pattern, 1, frequency)


def _solid(rng: np.random.Generator, kind: str, cover: Paint, at: Array) -> tuple[Part, str]:
    """The solid standing on `at` [3], of a size drawn near one, and its name."""
    eps, taper, radii = SOLIDS[kind]
    size = np.array(radii) * rng.uniform(0.88, 1.12)
    return blob(at + np.array([0, size[1], 0]), size, cover, eps=eps, taper=taper), f"{cover.name} {kind}"


def single(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """One plain solid."""
    part, name = _solid(rng, str(rng.choice(list(SOLIDS))), _cover(rng), np.zeros(3))
    return f"a {name}", [part]


def pair(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """Two solids: one on, under, beside, in front of or behind the other. Beside: to its left, seen from the front."""
    kinds = list(SOLIDS)
    covers = _cover(rng), _cover(rng)
    relation = str(rng.choice(["on", "on", "on", "under", "beside", "in front of", "behind"]))
    first, second = (str(k) for k in rng.choice(kinds, 2))
    if relation == "on" and second in POINTED:
        second = str(rng.choice([k for k in kinds if k not in POINTED]))
    if relation == "under" and first in POINTED:
        first = str(rng.choice([k for k in kinds if k not in POINTED]))
    origin = np.zeros(3)
    if relation in ("on", "under"):
        low_kind, high_kind = (second, first) if relation == "on" else (first, second)
        low_cover, high_cover = (covers[1], covers[0]) if relation == "on" else covers
        low, low_name = _solid(rng, low_kind, low_cover, origin)
        top = np.array([0, 2 * low.radii[1] * 0.99, 0])
        high, high_name = _solid(rng, high_kind, high_cover, top)
        names = (high_name, low_name) if relation == "on" else (low_name, high_name)
        return f"a {names[0]} {relation} a {names[1]}", [low, high]
    a, a_name = _solid(rng, first, covers[0], origin)
    b, b_name = _solid(rng, second, covers[1], origin)
    axis = 0 if relation == "beside" else 2
    gap = _reach(a, axis) + _reach(b, axis) + 0.04
    way = -1.0 if relation in ("beside", "behind") else 1.0
    shift = np.eye(3)[axis] * gap * way
    a = blob(a.centre + shift, a.radii, covers[0], eps=a.eps, taper=a.taper)
    return f"a {a_name} {relation} a {b_name}", [a, b]


def _reach(part: Part, axis: int) -> float:
    """Half of its width along an axis, a taper's wide end counted."""
    return float(part.radii[axis] * (1.0 + abs(part.taper)))
