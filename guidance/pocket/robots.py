"""Robots: a family of the view prior's stream. Results as in living.py.

World: y up, front +z; members stand near y = 0, not yet normalised.
"""

from __future__ import annotations

import math

import numpy as np

from guidance.pocket.objects import (
    BLACK,
    BOX,
    CYLINDER,
    EDGED,
    LYING,
    WHITE,
    Array,
    Paint,
    Part,
    blob,
    disc,
    named,
    one_of,
    paint,
    tube,
)


def light(rng: np.random.Generator) -> Paint:
    """Of eyes, buttons and screens that shine."""
    return one_of(rng, "yellow", "red", "blue", "teal", "green", "white", "orange")


def robot(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A robot: trunk with a panel, head with eyes, arms, and legs, tracks, wheels or a foot under it."""
    skin, other, joint = paint(rng, plain=0.85), paint(rng, plain=0.9), paint(rng, plain=1.0)
    if rng.random() < 0.4:
        joint = named("grey")
    wide, high, deep = rng.uniform(0.18, 0.32), rng.uniform(0.18, 0.34), rng.uniform(0.13, 0.24)
    floor, parts = _under(rng, wide, deep, other, joint)
    square = float(rng.uniform(0.15, 0.9))
    body = (square, square if rng.random() < 0.7 else 1.0)
    middle = floor + high
    parts.append(blob((0, middle, 0), (wide, high, deep), skin, eps=body, taper=rng.uniform(-0.3, 0.3)))
    parts += _panel(rng, middle, wide, high, deep, other)
    if rng.random() < 0.3:
        parts.append(blob((0, middle, -deep), (wide * 0.7, high * 0.7, deep * 0.5), other, eps=BOX))
    top = floor + 2 * high
    for s in (-1, 1):
        parts += _arm(rng, np.array([s * wide, top - high * 0.35, 0.0]), s, high, skin, joint)
    neck = rng.uniform(0.0, 0.07)
    parts.append(blob((0, top + neck, 0), (wide * 0.3, neck + 0.04, wide * 0.3), joint, eps=CYLINDER))
    parts += _head(rng, top + 2 * neck, wide, skin if rng.random() < 0.6 else other, joint)
    return f"a {skin.name} robot", parts


def _under(
    rng: np.random.Generator, wide: float, deep: float, cover: Paint, joint: Paint
) -> tuple[float, list[Part]]:
    """(where the trunk begins, what it stands on)."""
    kind = str(rng.choice(["legs", "tracks", "wheels", "foot"], p=[0.5, 0.2, 0.15, 0.15]))
    if kind == "legs":
        long, thick = rng.uniform(0.12, 0.35), wide * rng.uniform(0.2, 0.38)
        parts, step = [], rng.uniform(0, 0.08)
        for s in (-1, 1):
            x, z = s * wide * rng.uniform(0.5, 0.7), s * step
            parts.append(blob((x, 0.04 + long / 2, z), (thick, long / 2 + 0.05, thick), joint, eps=CYLINDER))
            parts.append(
                blob((x, 0.06, z + thick * 0.5), (thick * 1.4, 0.06, thick * 2), cover, eps=(0.4, 0.5))
            )
        return long, parts
    if kind == "tracks":
        half = rng.uniform(0.07, 0.13)
        parts = [
            blob((s * wide * 0.95, half, 0), (wide * 0.3, half, deep * 1.5), BLACK, eps=(0.5, 0.3))
            for s in (-1, 1)
        ]
        return half * 1.5, [*parts, blob((0, half, 0), (wide * 0.7, half * 0.7, deep), joint, eps=BOX)]
    if kind == "wheels":
        radius = rng.uniform(0.07, 0.12)
        parts = [
            disc((s * wide, radius, z), radius, 0.04, BLACK, LYING)
            for s in (-1, 1)
            for z in (-deep * 0.8, deep * 0.8)
        ]
        return radius * 1.2, [*parts, blob((0, radius, 0), (wide, radius * 0.5, deep), joint, eps=BOX)]
    high = rng.uniform(0.08, 0.2)
    foot = blob((0, high / 2, 0), (wide * 1.1, high / 2, deep * 1.2), cover, eps=EDGED, taper=-0.3)
    return high * 0.95, [foot]


def _panel(
    rng: np.random.Generator, y: float, wide: float, high: float, deep: float, cover: Paint
) -> list[Part]:
    """What is on its chest: a plate with lamps, a dial, a grille, or nothing."""
    kind, front, parts = rng.random(), deep * 0.95, list[Part]()
    if kind < 0.2:
        return parts
    parts.append(blob((0, y + high * 0.1, front), (wide * 0.6, high * 0.5, 0.03), cover, eps=BOX))
    if kind < 0.55:
        for k in range(int(rng.integers(2, 5))):
            at = (wide * (-0.4 + 0.27 * k), y + high * 0.3, front + 0.03)
            parts.append(disc(at, wide * 0.1, 0.02, light(rng)))
    elif kind < 0.8:
        parts.append(disc((0, y + high * 0.15, front + 0.03), wide * 0.32, 0.02, WHITE))
        parts.append(disc((0, y + high * 0.15, front + 0.05), wide * 0.12, 0.02, light(rng)))
    if rng.random() < 0.5:
        for k in range(3):
            at = (0.0, y - high * (0.05 + 0.13 * k), front + 0.03)
            parts.append(blob(at, (wide * 0.45, 0.012, 0.02), BLACK, eps=BOX))
    return parts


def _arm(
    rng: np.random.Generator, shoulder: Array, side: int, long: float, skin: Paint, joint: Paint
) -> list[Part]:
    """From the shoulder by an elbow to a ball or a claw."""
    thick, lift = rng.uniform(0.035, 0.06), rng.uniform(-1.4, 0.9)
    parts = [blob(shoulder, (thick * 1.6,) * 3, joint)]
    elbow = shoulder + long * 0.8 * np.array([side * math.cos(lift) * 0.7, math.sin(lift), 0.15])
    bend = lift + rng.uniform(-0.6, 1.0)
    hand = elbow + long * 0.8 * np.array([side * math.cos(bend) * 0.5, math.sin(bend), rng.uniform(0.1, 0.5)])
    parts += tube(shoulder, [elbow], thick, joint)
    parts += tube(elbow, [hand], thick * 1.35, skin)
    if rng.random() < 0.4:
        return [*parts, blob(hand, (thick * 1.7,) * 3, skin)]
    for s in (-1, 1):
        tip = hand + np.array([s * thick * 1.2, -thick * 0.4, thick * 2.4])
        parts += tube(hand, [hand + [s * thick * 1.5, 0, thick], tip], thick * 0.5, joint)
    return parts


def _head(rng: np.random.Generator, y: float, wide: float, cover: Paint, joint: Paint) -> list[Part]:
    """A head that stands at y: eyes or a visor, a mouth, ears, antennas."""
    r = np.array([wide * rng.uniform(0.55, 1.0), wide * rng.uniform(0.45, 0.8), wide * rng.uniform(0.5, 0.8)])
    square = float(rng.uniform(0.15, 1.0))
    middle = y + r[1] * 0.95
    parts = [blob((0, middle, 0), r, cover, eps=(square, square if rng.random() < 0.6 else 1.0))]
    shine, front = light(rng), r[2] * 0.93
    if rng.random() < 0.3:
        parts.append(
            blob((0, middle + r[1] * 0.2, front * 0.9), (r[0] * 0.75, r[1] * 0.3, 0.05), BLACK, eps=BOX)
        )
        front += 0.03
    size = r[0] * rng.uniform(0.15, 0.28)
    single = rng.random() < 0.15
    for x in (0.0,) if single else (-r[0] * 0.42, r[0] * 0.42):
        parts.append(disc((x, middle + r[1] * 0.2, front), size * (1.6 if single else 1.0), 0.04, shine))
        parts.append(blob((x, middle + r[1] * 0.2, front + 0.04), (size * 0.4,) * 3, BLACK))
    if rng.random() < 0.5:
        mouth = (r[0] * 0.5, r[1] * 0.1, 0.03)
        parts.append(
            blob(
                (0, middle - r[1] * 0.5, r[2] * 0.93), mouth, BLACK if rng.random() < 0.6 else joint, eps=BOX
            )
        )
    if rng.random() < 0.6:
        for s in (-1, 1):
            at = (s * r[0], middle, 0.0)
            parts.append(disc(at, r[1] * 0.3, 0.04, joint, LYING))
    for x in {0: (), 1: (0.0,), 2: (-r[0] * 0.6, r[0] * 0.6)}[int(rng.integers(3))]:
        root = np.array([x, middle + r[1] * 0.8, 0.0])
        tip = root + [x * 0.4, rng.uniform(0.1, 0.2), 0]
        parts += [*tube(root, [tip], 0.018, joint), blob(tip, (0.045,) * 3, shine)]
    return parts
