"""Monsters: a family of the view prior's stream. Results as in living.py.

World: y up, front +z; members stand near y = 0, not yet normalised.
"""

from __future__ import annotations

import math

import numpy as np

from guidance.pocket.objects import (
    BLACK,
    CONE,
    WHITE,
    Array,
    Paint,
    Part,
    blob,
    euler,
    named,
    one_kind,
    paint,
    tube,
)


def monster(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A ghost, a slime, a dragon, a dinosaur, an octopus, a cyclops or a snail."""
    kinds = {
        "ghost": _ghost,
        "slime": _slime,
        "dragon": _dragon,
        "dinosaur": _dinosaur,
        "octopus": _octopus,
        "cyclops": _cyclops,
        "snail": _snail,
    }
    kind, made = one_kind(rng, kinds)
    skin = paint(rng, plain=0.6)
    return f"a {skin.name} {kind}", made(rng, skin)


def _eye(at: Array, size: float, turn: Array | None = None) -> list[Part]:
    """A white ball that looks to the front, or that way, with its pupil."""
    way = np.array([0.0, 0.0, 1.0]) if turn is None else turn @ np.array([0.0, 0.0, 1.0])
    return [blob(at, (size,) * 3, WHITE), blob(at + way * size * 0.7, (size * 0.5,) * 3, BLACK)]


def _pair(rng: np.random.Generator, at: Array, apart: float, size: float) -> list[Part]:
    """Two eyes beside `at`: with pupils, or plain black."""
    parts: list[Part] = []
    whites = rng.random() < 0.6
    for s in (-1, 1):
        here = at + [s * apart, 0, 0]
        parts += _eye(here, size) if whites else [blob(here, (size * 0.8, size * 1.1, size * 0.6), BLACK)]
    return parts


def _mouth(rng: np.random.Generator, at: Array, wide: float, high: float) -> list[Part]:
    """An open mouth, now and then with teeth."""
    parts = [blob(at, (wide, high, 0.05), named("black") if rng.random() < 0.6 else named("red"))]
    if rng.random() < 0.5:
        for k in range(int(rng.integers(2, 5))):
            x = wide * (-0.55 + 0.37 * k)
            tooth = blob(
                at + [x, high * 0.6, 0.04], (wide * 0.13, high * 0.45, 0.03), WHITE, eps=CONE, taper=0.8
            )
            parts.append(tooth)
    return parts


def _horns(rng: np.random.Generator, at: Array, apart: float, long: float, out: float = 0.4) -> list[Part]:
    """Two that bend outwards and up."""
    horn, parts = WHITE if rng.random() < 0.5 else paint(rng, plain=1.0), []
    for s in (-1, 1):
        root = at + [s * apart, 0, 0]
        middle = root + [s * long * out, long * 0.5, 0]
        parts += tube(root, [middle], long * 0.2, horn)
        tip = middle + [s * long * out * 0.4, long * 0.45, 0]
        end, turn = (middle + tip) / 2, euler(roll=-s * 0.3)
        parts.append(blob(end, (long * 0.17, long * 0.4, long * 0.17), horn, eps=CONE, taper=-0.8, turn=turn))
    return parts


def _wings(rng: np.random.Generator, root: Array, span: float, cover: Paint) -> list[Part]:
    """Two of three fingers with skin between."""
    parts: list[Part] = []
    lift, back = rng.uniform(0.2, 0.9), rng.uniform(0.1, 0.6)
    for s in (-1, 1):
        here = root + [s * 0.05, 0, 0]
        for k in range(3):
            angle = lift - 0.45 * k
            way = np.array([s * math.cos(angle), math.sin(angle), -back])
            turn = euler(yaw=s * back) @ euler(roll=s * angle)
            size = span * (1 - 0.2 * k)
            parts.append(blob(here + way * size * 0.5, (size * 0.55, span * 0.17, 0.025), cover, turn=turn))
    return parts


def _ghost(rng: np.random.Generator, skin: Paint) -> list[Part]:
    cover = WHITE if rng.random() < 0.5 else skin
    r, high = rng.uniform(0.26, 0.34), rng.uniform(0.3, 0.45)
    y = high + 0.05
    parts = [blob((0, y, 0), (r, high, r * 0.9), cover, eps=(0.5, 1), taper=rng.uniform(-0.25, 0.0))]
    parts.append(blob((0, y + high * 0.7, 0), (r * 0.9, r, r * 0.85), cover))
    count = int(rng.integers(5, 9))
    for k in range(count):
        a = 2 * math.pi * k / count
        at = (r * math.sin(a), 0.1, r * 0.9 * math.cos(a))
        parts.append(blob(at, (r * 0.35, 0.13, r * 0.35), cover))
    front, eyes = r * 0.85, y + high * 0.75
    parts += _pair(rng, np.array([0, eyes, front]), r * 0.38, r * rng.uniform(0.15, 0.24))
    if rng.random() < 0.8:
        parts += _mouth(rng, np.array([0, eyes - r * 0.55, front]), r * 0.22, r * rng.uniform(0.08, 0.25))
    for s in (-1, 1) if rng.random() < 0.7 else ():
        hand = np.array([s * r * 1.35, y + rng.uniform(-0.1, 0.3), r * 0.4])
        parts += tube(np.array([s * r * 0.8, y + high * 0.25, 0]), [hand], r * 0.2, cover)
    return parts


def _slime(rng: np.random.Generator, skin: Paint) -> list[Part]:
    r, high = rng.uniform(0.38, 0.48), rng.uniform(0.26, 0.42)
    parts = [blob((0, high * 0.7, 0), (r, high, r * 0.95), skin, eps=(0.9, 1), taper=-rng.uniform(0.1, 0.35))]
    if rng.random() < 0.5:
        parts.append(blob((0, high * 1.75, 0), (r * 0.25, high * 0.5, r * 0.25), skin, taper=-0.6))
    for _ in range(int(rng.integers(0, 5))):
        a, size = rng.uniform(0, 2 * math.pi), rng.uniform(0.06, 0.13)
        parts.append(
            blob((r * 1.05 * math.sin(a), size * 0.6, r * math.cos(a)), (size, size * 0.7, size), skin)
        )
    front = np.array([0, high * rng.uniform(0.7, 1.0), r * 0.85])
    single = rng.random() < 0.25
    parts += _eye(front, r * 0.3) if single else _pair(rng, front, r * 0.35, r * rng.uniform(0.12, 0.22))
    parts += _mouth(rng, front + [0, -high * 0.42, r * 0.06], r * rng.uniform(0.2, 0.4), high * 0.12)
    return [*parts, *_horns(rng, np.array([0, high * 1.4, 0]), r * 0.5, 0.2)] if rng.random() < 0.3 else parts


def _dragon(rng: np.random.Generator, skin: Paint) -> list[Part]:
    """It sits upright, its wings spread."""
    belly, web = paint(rng, plain=0.9), paint(rng, plain=1.0)
    r, high = rng.uniform(0.2, 0.26), rng.uniform(0.28, 0.38)
    y = high + 0.08
    parts = [blob((0, y, 0), (r, high, r), skin, taper=-0.3)]
    parts.append(blob((0, y - 0.03, r * 0.35), (r * 0.72, high * 0.85, r * 0.75), belly, taper=-0.3))
    for s in (-1, 1):
        parts.append(blob((s * r * 0.9, 0.15, r * 0.2), (r * 0.45, 0.15, r * 0.6), skin))
        parts.append(blob((s * r * 0.95, 0.05, r * 0.9), (r * 0.35, 0.06, r * 0.5), skin))
        hand = np.array([s * r * 0.9, y + 0.02, r * 1.3])
        parts += tube(np.array([s * r * 0.8, y + high * 0.4, r * 0.2]), [hand], 0.055, skin)
    head = rng.uniform(0.16, 0.22)
    skull = np.array([0, y + high + head * 0.6, r * 0.5])
    parts += tube(np.array([0, y + high * 0.6, 0]), [skull], head * 0.6, skin)
    parts.append(blob(skull, (head, head * 0.9, head), skin))
    muzzle = skull + [0, -head * 0.25, head * 0.95]
    parts.append(blob(muzzle, (head * 0.65, head * 0.45, head * 0.6), skin if rng.random() < 0.6 else belly))
    for s in (-1, 1):
        parts.append(blob(muzzle + [s * head * 0.25, head * 0.3, head * 0.5], (0.02,) * 3, BLACK))
    parts += _pair(rng, skull + [0, head * 0.3, head * 0.75], head * 0.5, head * 0.24)
    parts += _horns(rng, skull + [0, head * 0.7, -head * 0.2], head * 0.5, rng.uniform(0.15, 0.3), 0.3)
    parts += _wings(rng, np.array([0, y + high * 0.35, -r * 0.8]), rng.uniform(0.3, 0.55), web)
    tail = [np.array([rng.uniform(-0.3, 0.3), 0.1, -r * 2.2])]
    tail.append(tail[0] + [rng.uniform(-0.3, 0.3), rng.uniform(0, 0.2), -0.2])
    parts += tube(np.array([0, 0.15, -r * 0.7]), tail, 0.07, skin)
    parts.append(blob(tail[-1], (0.09, 0.06, 0.12), web))
    return parts


def _dinosaur(rng: np.random.Generator, skin: Paint) -> list[Part]:
    """On two legs, its tail held out behind."""
    belly, thick = paint(rng, plain=0.9), rng.uniform(0.17, 0.23)
    leg, long = rng.uniform(0.25, 0.35), rng.uniform(0.28, 0.36)
    lean = rng.uniform(0.2, 0.9)
    turn = euler(pitch=lean)
    hips = np.array([0, leg + thick * 0.8, 0])
    chest = hips + turn @ np.array([0, long, 0])
    parts = [blob((hips + chest) / 2, (thick, long * 0.8, thick * 1.05), skin, turn=turn)]
    front = (hips + chest) / 2 + turn @ np.array([0, -0.02, thick * 0.35])
    parts.append(blob(front, (thick * 0.75, long * 0.7, thick * 0.8), belly, turn=turn))
    for s in (-1, 1):
        knee, foot = np.array([s * thick, leg * 0.7, 0.1]), np.array([s * thick, 0.06, 0.0])
        thigh = hips + [s * thick * 0.8, -0.05, 0.03]
        parts.append(blob(thigh, (thick * 0.5, thick * 0.8, thick * 0.7), skin))
        parts += tube(thigh, [knee, foot], 0.06, skin)
        parts.append(blob(foot + [0, -0.01, 0.08], (0.075, 0.05, 0.13), skin))
        arm = chest + [s * thick * 0.75, -0.1, thick * 0.5]
        parts += tube(arm, [arm + [0, -0.08, 0.12]], 0.035, skin)
    head = rng.uniform(0.14, 0.19)
    skull = chest + [0, rng.uniform(0.1, 0.25), head * rng.uniform(0.5, 1.2)]
    parts += tube(chest, [skull], thick * 0.6, skin)
    parts.append(blob(skull, (head * 0.85, head * 0.85, head), skin))
    parts.append(blob(skull + [0, -head * 0.05, head], (head * 0.65, head * 0.45, head * 0.9), skin))
    jaw = skull + [0, -head * 0.6, head * 0.8]
    parts.append(
        blob(jaw, (head * 0.55, head * 0.22, head * 0.8), belly, turn=euler(pitch=rng.uniform(0.0, 0.4)))
    )
    for s in (-1, 1):
        parts += _eye(skull + [s * head * 0.65, head * 0.4, head * 0.5], head * 0.24, euler(yaw=s * 0.7))
    tip = hips + [rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.2), -0.75]
    middle = (hips + tip) / 2 + [0, -0.03, 0]
    parts += [*tube(hips, [middle], thick * 0.6, skin), *tube(middle, [tip], thick * 0.32, skin)]
    spikes = paint(rng, plain=1.0)
    for t in np.linspace(0.1, 0.9, int(rng.integers(4, 8))) if rng.random() < 0.6 else ():
        at = hips * (1 - t) + chest * t + turn @ np.array([0, 0, -thick * 1.05])
        size = rng.uniform(0.06, 0.12)
        parts.append(
            blob(at, (0.02, size, size * 0.8), spikes, eps=CONE, taper=-0.7, turn=euler(pitch=lean - 1.2))
        )
    return parts


def _octopus(rng: np.random.Generator, skin: Paint) -> list[Part]:
    r, high = rng.uniform(0.24, 0.32), rng.uniform(0.26, 0.38)
    y = 0.22 + high * 0.8
    parts = [blob((0, y, 0), (r, high, r), skin, taper=rng.uniform(0, 0.3))]
    count = int(rng.integers(6, 9))
    for k in range(count):
        a = 2 * math.pi * (k + 0.5) / count
        way = np.array([math.sin(a), 0, math.cos(a)])
        knee = way * r * 1.3 + [0, 0.12, 0]
        foot = way * rng.uniform(0.5, 0.65) + [0, 0.05, 0]
        tip = foot + way * 0.08 + [rng.uniform(-0.12, 0.12), rng.uniform(0.05, 0.2), rng.uniform(-0.12, 0.12)]
        start = way * r * 0.5 + [0, 0.22, 0]
        parts += [
            *tube(start, [knee], 0.085, skin),
            *tube(knee, [foot], 0.065, skin),
            *tube(foot, [tip], 0.04, skin),
        ]
    parts += _pair(rng, np.array([0, y * 0.95, r * 0.9]), r * 0.4, r * rng.uniform(0.16, 0.26))
    if rng.random() < 0.6:
        parts += _mouth(rng, np.array([0, y - high * 0.5, r * 0.85]), r * 0.2, 0.03)
    return parts


def _cyclops(rng: np.random.Generator, skin: Paint) -> list[Part]:
    """A ball of fur on legs."""
    limb = skin if rng.random() < 0.5 else paint(rng, plain=1.0)
    r = np.array([rng.uniform(0.26, 0.36), rng.uniform(0.28, 0.42), rng.uniform(0.22, 0.3)])
    leg = rng.uniform(0.08, 0.25)
    y, square = leg + r[1] * 0.95, float(rng.uniform(0.4, 1.0))
    parts = [blob((0, y, 0), r, skin, eps=(square, 1), taper=rng.uniform(-0.25, 0.3))]
    for s in (-1, 1):
        foot = np.array([s * r[0] * 0.45, 0.05, 0])
        parts += tube(foot + [0, leg + 0.05, 0], [foot], 0.055, limb)
        parts.append(blob(foot + [0, 0, 0.06], (0.09, 0.05, 0.13), limb))
        hand = np.array([s * (r[0] + rng.uniform(0.12, 0.25)), y + rng.uniform(-0.3, 0.35), 0.1])
        parts += [*tube(np.array([s * r[0] * 0.85, y, 0]), [hand], 0.05, limb), blob(hand, (0.08,) * 3, limb)]
    front = np.array([0, y + r[1] * 0.25, r[2] * 0.92])
    if rng.random() < 0.6:
        parts += _eye(front, r[0] * rng.uniform(0.3, 0.45))
    else:
        parts += _pair(rng, front, r[0] * 0.35, r[0] * 0.26)
    parts += _mouth(
        rng, np.array([0, y - r[1] * 0.35, r[2] * 0.92]), r[0] * rng.uniform(0.3, 0.55), r[1] * 0.15
    )
    if rng.random() < 0.7:
        parts += _horns(rng, np.array([0, y + r[1] * 0.8, 0]), r[0] * 0.5, rng.uniform(0.15, 0.28))
    return parts


def _snail(rng: np.random.Generator, skin: Paint) -> list[Part]:
    """Its shell is a coil, seen from the side it creeps along."""
    shell, long = paint(rng, plain=0.5), rng.uniform(0.42, 0.52)
    parts = [blob((0, 0.08, 0), (0.13, 0.09, long), skin, eps=(0.7, 0.8))]
    r = rng.uniform(0.24, 0.32)
    for k in range(4):
        size = r * 0.72**k
        for s in (-1, 1):
            at = (s * 0.05 * (k + 0.5), 0.12 + r * 0.95, -long * 0.2)
            parts.append(blob(at, (0.11, size, size), shell if k % 2 == 0 else skin, eps=(1, 1)))
    neck = np.array([0, 0.3 + rng.uniform(0, 0.12), long * 1.0])
    parts += tube(np.array([0, 0.1, long * 0.65]), [neck], 0.1, skin)
    parts.append(blob(neck, (0.12, 0.11, 0.13), skin))
    for s in (-1, 1):
        tip = neck + [s * rng.uniform(0.06, 0.14), rng.uniform(0.15, 0.28), 0.06]
        parts += [*tube(neck + [s * 0.04, 0.06, 0], [tip], 0.025, skin), *_eye(tip, 0.05)]
    return parts
