"""Machines: a family of the view prior's stream. Results as in living.py.

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
    FACING,
    LYING,
    WHITE,
    Paint,
    Part,
    blob,
    disc,
    euler,
    named,
    one_kind,
    one_of,
    paint,
    tube,
)
from guidance.pocket.robots import light


def machine(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A tank, a tractor, a digger, a locomotive, a saucer, a fighter, a balloon or a windmill."""
    kinds = {
        "tank": _tank,
        "tractor": _tractor,
        "digger": _digger,
        "locomotive": _locomotive,
        "flying saucer": _saucer,
        "spaceship": _fighter,
        "balloon": _balloon,
        "windmill": _windmill,
    }
    kind, made = one_kind(rng, kinds)
    cover = paint(rng, plain=0.75)
    return f"a {cover.name} {kind}", made(rng, cover)


def wheel(x: float, z: float, radius: float, half: float, rim: Paint) -> list[Part]:
    """One that rolls to the front, its hub outside."""
    side = math.copysign(half, x)
    return [
        disc((x, radius, z), radius, half, BLACK, LYING),
        disc((x + side * 0.6, radius, z), radius * 0.55, half * 0.6, rim, LYING),
    ]


def tracks(wide: float, long: float, half: float, rim: Paint) -> list[Part]:
    """A belt on each side, with its wheels."""
    parts = []
    for s in (-1, 1):
        parts.append(blob((s * wide, half, 0), (0.09, half, long), BLACK, eps=(0.6, 0.35)))
        for k in range(4):
            at = (s * (wide + 0.075), half, long * (-0.72 + 0.48 * k))
            parts.append(disc(at, half * 0.6, 0.03, rim, LYING))
    return parts


def _tank(rng: np.random.Generator, cover: Paint) -> list[Part]:
    other = cover if rng.random() < 0.5 else paint(rng, plain=0.9)
    wide, long, half = rng.uniform(0.24, 0.34), rng.uniform(0.42, 0.58), rng.uniform(0.09, 0.14)
    high = rng.uniform(0.08, 0.14)
    parts = tracks(wide, long, half, other)
    parts.append(
        blob((0, half * 1.5 + high * 0.5, 0), (wide * 0.95, high, long * 0.92), cover, eps=(0.3, 0.25))
    )
    top, r = half * 1.5 + high * 1.4, wide * rng.uniform(0.6, 0.85)
    tall, turn = rng.uniform(0.08, 0.15), euler(yaw=float(rng.normal(0, 0.5)))
    flat = (0.3, 1.0) if rng.random() < 0.6 else (0.3, 0.3)
    parts.append(blob((0, top + tall * 0.6, 0), (r, tall, r), other, eps=flat, taper=-0.2, turn=turn))
    root = turn @ np.array([0, 0, r * 0.8]) + [0, top + tall * 0.7, 0]
    reach = turn @ np.array([0, rng.uniform(0, 0.15), rng.uniform(0.3, 0.55)])
    thick = rng.uniform(0.03, 0.055)
    parts += tube(root, [root + reach], thick, cover)
    parts += tube(root + reach * 0.9, [root + reach * 1.1], thick * 1.5, BLACK)
    parts.append(blob((r * 0.3, top + tall * 1.6, -r * 0.2), (0.08, 0.04, 0.08), cover, eps=EDGED))
    return parts


def _tractor(rng: np.random.Generator, cover: Paint) -> list[Part]:
    rim, cabin = paint(rng, plain=1.0), paint(rng, plain=1.0)
    big, small = rng.uniform(0.22, 0.3), rng.uniform(0.11, 0.16)
    wide, long = rng.uniform(0.13, 0.18), rng.uniform(0.3, 0.42)
    floor = big * 0.9
    parts = [blob((0, floor + 0.1, long * 0.55), (wide, 0.13, long * 0.6), cover, eps=(0.25, 0.35))]
    parts.append(blob((0, floor + 0.02, -long * 0.2), (wide, 0.08, long * 0.5), cover, eps=BOX))
    for s in (-1, 1):
        parts += wheel(s * (wide + 0.11), -long * 0.35, big, 0.09, rim)
        parts += wheel(s * (wide + 0.08), long * 0.85, small, 0.06, rim)
        parts.append(blob((s * wide * 0.6, floor + 0.12, long * 1.12), (0.045,) * 3, named("yellow")))
        roof = blob(
            (s * (wide + 0.1), big * 1.95, -long * 0.35), (0.1, 0.03, big * 0.8), cover, eps=(0.5, 0.4)
        )
        parts.append(roof)
    tall = rng.uniform(0.15, 0.22)
    if rng.random() < 0.7:
        at = (0, floor + 0.1 + tall, -long * 0.35)
        parts.append(blob(at, (wide * 1.05, tall, long * 0.32), cabin, eps=(0.2, 0.25), taper=-0.15))
        parts.append(blob((0, at[1] + tall, at[2]), (wide * 1.15, 0.035, long * 0.4), cover, eps=BOX))
    else:
        parts.append(blob((0, floor + 0.15, -long * 0.4), (wide * 0.8, 0.05, 0.1), BLACK, eps=(0.4, 0.4)))
        parts.append(blob((0, floor + 0.25, -long * 0.55), (wide * 0.8, 0.13, 0.04), BLACK, eps=(0.4, 0.4)))
    pipe = np.array([wide * 0.5, floor + 0.2, long * 0.6])
    parts += tube(pipe, [pipe + [0, rng.uniform(0.15, 0.3), 0]], 0.03, BLACK)
    return parts


def _digger(rng: np.random.Generator, cover: Paint) -> list[Part]:
    metal, long, half = (
        one_of(rng, "grey", "black"),
        rng.uniform(0.32, 0.42),
        rng.uniform(0.08, 0.12),
    )
    wide = rng.uniform(0.2, 0.28)
    parts = tracks(wide, long, half, metal)
    y = 2 * half
    parts.append(blob((0, y, 0), (wide * 0.6, 0.05, wide * 0.6), metal, eps=EDGED))
    parts.append(blob((0, y + 0.14, -long * 0.25), (wide * 1.05, 0.12, long * 0.75), cover, eps=(0.25, 0.3)))
    cab, x = rng.uniform(0.15, 0.2), -wide * 0.5
    parts.append(blob((x, y + 0.2 + cab, 0), (wide * 0.45, cab, 0.16), cover, eps=(0.25, 0.3), taper=-0.1))
    parts.append(
        blob((x, y + 0.24 + cab, 0.1), (wide * 0.38, cab * 0.7, 0.08), named("blue"), eps=(0.25, 0.3))
    )
    root = np.array([wide * 0.35, y + 0.15, long * 0.25])
    elbow = root + [0, rng.uniform(0.3, 0.5), rng.uniform(0.15, 0.35)]
    hand = elbow + [0, -rng.uniform(0.15, 0.45), rng.uniform(0.2, 0.35)]
    parts += [*tube(root, [elbow], 0.06, cover), *tube(elbow, [hand], 0.05, cover)]
    parts += tube((root + elbow) / 2 + [0, -0.06, 0.08], [(elbow + hand) / 2], 0.025, metal)
    turn = euler(pitch=float(rng.uniform(-0.3, 0.9)))
    parts.append(blob(hand + [0, -0.08, 0.02], (0.13, 0.1, 0.1), metal, eps=(0.4, 0.2), taper=0.2, turn=turn))
    for k in (-1, 0, 1):
        tooth = hand + turn @ np.array([k * 0.09, -0.16, 0.08])
        parts.append(blob(tooth, (0.02, 0.05, 0.02), metal, eps=BOX, turn=turn))
    return parts


def _locomotive(rng: np.random.Generator, cover: Paint) -> list[Part]:
    rim, other = paint(rng, plain=1.0), paint(rng, plain=1.0)
    long, r, low = rng.uniform(0.42, 0.55), rng.uniform(0.15, 0.2), rng.uniform(0.09, 0.13)
    parts = [blob((0, low * 1.6, 0), (r * 1.1, 0.05, long), other, eps=BOX)]
    y = low * 1.9 + r
    parts.append(blob((0, y, long * 0.25), (r, long * 0.7, r), cover, eps=CYLINDER, turn=FACING))
    parts.append(disc((0, y, long * 0.95), r * 0.92, 0.025, BLACK))
    parts.append(disc((0, y + r * 0.2, long * 0.98), r * 0.3, 0.04, named("yellow")))
    for k in range(int(rng.integers(1, 4))):
        at = (0, y, long * (0.75 - 0.35 * k))
        parts.append(disc(at, r * 1.03, 0.03, rim))
    tall = r * rng.uniform(1.0, 1.3)
    parts.append(blob((0, y + tall * 0.35, -long * 0.68), (r * 1.1, tall * 1.2, long * 0.3), cover, eps=BOX))
    parts.append(blob((0, y + tall * 1.6, -long * 0.68), (r * 1.3, 0.04, long * 0.38), other, eps=(0.4, 0.2)))
    for s in (-1, 1):
        parts.append(blob((s * r * 1.1, y + tall * 0.8, -long * 0.68), (0.02, 0.09, 0.1), WHITE, eps=BOX))
        for k in range(3):
            parts += wheel(s * r * 1.1, long * (-0.7 + 0.65 * k), low * (1.25 if k == 0 else 1.0), 0.04, rim)
    chimney = rng.uniform(0.1, 0.2)
    at = (0, y + r + chimney * 0.8, long * 0.65)
    parts.append(blob(at, (0.07, chimney, 0.07), BLACK, eps=CYLINDER, taper=rng.uniform(-0.1, 0.5)))
    parts.append(blob((0, y + r, long * 0.1), (0.08, 0.09, 0.08), other))
    plough = blob((0, low * 0.8, long * 1.05), (r, 0.09, 0.12), other, eps=(0.5, 0.3), taper=-0.5)
    return [*parts, plough] if rng.random() < 0.6 else parts


def _saucer(rng: np.random.Generator, cover: Paint) -> list[Part]:
    glass, r, high = (
        one_of(rng, "teal", "blue", "white", "green"),
        rng.uniform(0.42, 0.5),
        rng.uniform(0.08, 0.16),
    )
    y = 0.3
    parts = [blob((0, y, 0), (r, high, r), cover, eps=(0.9, 1))]
    parts.append(blob((0, y, 0), (r * 1.04, 0.035, r * 1.04), paint(rng, plain=1.0), eps=EDGED))
    dome = r * rng.uniform(0.35, 0.55)
    parts.append(blob((0, y + high * 0.7, 0), (dome, dome * rng.uniform(0.8, 1.1), dome), glass))
    shine, count = light(rng), int(rng.integers(6, 12))
    for k in range(count):
        a = 2 * math.pi * k / count
        at = (r * 0.75 * math.sin(a), y + high * 0.6, r * 0.75 * math.cos(a))
        parts.append(blob(at, (0.045,) * 3, shine))
    if rng.random() < 0.6:
        for k in range(3):
            a = 2 * math.pi * k / 3
            top, way = np.array([0, y - high * 0.5, 0]), np.array([math.sin(a), 0, math.cos(a)])
            foot = way * r * 0.8 + [0, 0.02, 0]
            parts += [
                *tube(top + way * r * 0.4, [foot], 0.02, BLACK),
                blob(foot, (0.06, 0.02, 0.06), BLACK, eps=EDGED),
            ]
    return parts


def _fighter(rng: np.random.Generator, cover: Paint) -> list[Part]:
    wing, engine = paint(rng, plain=0.9), one_of(rng, "grey", "black", "white")
    long, thick = rng.uniform(0.42, 0.55), rng.uniform(0.09, 0.15)
    y = 0.3
    edge = float(rng.uniform(0.3, 1.0))
    parts = [blob((0, y, 0), (thick, long, thick * 0.8), cover, eps=(0.6, edge), taper=-0.35, turn=FACING)]
    parts.append(
        blob((0, y + thick * 0.6, long * 0.15), (thick * 0.5, thick * 0.5, long * 0.28), named("blue"))
    )
    span, sweep = rng.uniform(0.25, 0.45), rng.uniform(-0.7, 0.5)
    lift, chord = rng.uniform(-0.35, 0.35), long * rng.uniform(0.22, 0.36)
    armed, glow = rng.random() < 0.6, light(rng)
    for s in (-1, 1):
        turn = euler(roll=s * lift) @ euler(yaw=s * sweep)
        middle = np.array(
            [
                s * (thick * 0.6 + span * 0.8 * math.cos(sweep)),
                y + span * lift,
                -long * 0.35 - span * sweep * 0.5,
            ]
        )
        parts.append(blob(middle, (span, 0.025, chord), wing, eps=(0.3, 0.4), turn=turn))
        tip = np.array(
            [
                s * (thick * 0.6 + span * 1.6 * math.cos(sweep)),
                y + 2 * span * lift,
                middle[2] - span * sweep * 0.4,
            ]
        )
        if armed:
            parts.append(blob(tip, (0.03, 0.22, 0.03), engine, eps=CYLINDER, turn=FACING))
        at = (s * thick * 0.7, y, -long * 0.85)
        parts.append(blob(at, (thick * 0.45, long * 0.25, thick * 0.45), engine, eps=CYLINDER, turn=FACING))
        end = (s * thick * 0.7, y, -long * 1.1)
        parts.append(disc(end, thick * 0.35, 0.02, glow))
    if rng.random() < 0.6:
        parts.append(
            blob(
                (0, y + thick * 1.4, -long * 0.7), (0.02, thick, long * 0.2), wing, eps=(0.3, 0.4), taper=-0.4
            )
        )
    return parts


def _balloon(rng: np.random.Generator, cover: Paint) -> list[Part]:
    r, drop = rng.uniform(0.32, 0.42), rng.uniform(0.12, 0.25)
    basket, y = paint(rng, plain=0.9) if rng.random() < 0.5 else named("brown"), 0.25 + drop
    high = r * rng.uniform(1.0, 1.25)
    parts = [blob((0, y + high, 0), (r, high, r), cover, taper=rng.uniform(0.0, 0.3))]
    parts.append(
        blob((0, y + 0.03, 0), (r * 0.35, 0.06, r * 0.35), paint(rng, plain=1.0), eps=EDGED, taper=0.3)
    )
    size = rng.uniform(0.09, 0.13)
    parts.append(
        blob((0, size, 0), (size * 1.1, size, size * 1.1), basket, eps=(0.2, float(rng.choice([0.2, 1.0]))))
    )
    parts.append(blob((0, 2 * size, 0), (size * 1.2, 0.025, size * 1.2), BLACK, eps=(0.3, 0.3)))
    for x in (-1, 1):
        for z in (-1, 1):
            foot = np.array([x * size, 2 * size, z * size])
            parts += tube(foot, [np.array([x * r * 0.3, y + 0.03, z * r * 0.3])], 0.01, BLACK)
    return parts


def _windmill(rng: np.random.Generator, cover: Paint) -> list[Part]:
    roof, sail = paint(rng, plain=0.9), paint(rng, plain=0.8) if rng.random() < 0.5 else WHITE
    high, r = rng.uniform(0.35, 0.5), rng.uniform(0.18, 0.25)
    round_ = 1.0 if rng.random() < 0.6 else 0.3
    parts = [blob((0, high, 0), (r, high, r), cover, eps=(0.1, round_), taper=-rng.uniform(0.15, 0.35))]
    parts.append(blob((0, 2 * high + 0.08, 0), (r * 0.6, 0.14, r * 0.6), roof, eps=(0.3, round_), taper=-0.8))
    parts.append(blob((0, 0.12, r * 1.1), (0.07, 0.12, 0.05), BLACK, eps=(0.4, 0.4)))
    for k in range(int(rng.integers(0, 3))):
        parts.append(blob((0, high * (0.8 + 0.45 * k), r * 0.95), (0.05, 0.06, 0.05), named("blue"), eps=BOX))
    hub = np.array([0, 2 * high * 0.92, r * 0.95])
    parts.append(disc(hub, 0.05, 0.1, BLACK))
    start, long = rng.uniform(0, math.pi / 2), rng.uniform(0.28, 0.42)
    for k in range(4):
        turn = euler(roll=start + k * math.pi / 2)
        middle = hub + turn @ np.array([0.03, long * 0.55, 0.08])
        parts.append(blob(middle, (0.07, long * 0.5, 0.014), sail, eps=BOX, turn=turn))
        parts += tube(
            hub + [0, 0, 0.08], [hub + turn @ np.array([0, long * 1.1, 0.08])], 0.014, named("brown")
        )
    return parts
