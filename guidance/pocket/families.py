"""The families of objects, each member by its seed.

World: y up, front +z; members stand on y = 0 and are not yet normalised. A family returns (caption, parts).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from guidance.pocket.objects import (
    BLACK,
    BOX,
    CONE,
    CYLINDER,
    WHITE,
    Part,
    Thing,
    blob,
    euler,
    eyes,
    named,
    paint,
    tube,
)


def sitter(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A sitting animal: upright body, forelegs, haunches, head, ears, tail."""
    fur, other = paint(rng), paint(rng, plain=1.0)
    width, height = rng.uniform(0.26, 0.42), rng.uniform(0.40, 0.60)
    head, lean = rng.uniform(0.22, 0.34), rng.uniform(-0.05, 0.15)
    body_top = 2 * height * 0.86
    skull = body_top + head * rng.uniform(0.35, 0.75)
    front = width * rng.uniform(0.35, 0.7) + lean
    parts = [
        blob(
            (0, height, 0),
            (width, height, width * rng.uniform(0.85, 1.15)),
            fur,
            taper=-rng.uniform(0.1, 0.4),
        )
    ]
    parts.append(
        blob((0, skull, lean), (head * rng.uniform(0.95, 1.2), head * rng.uniform(0.85, 1), head), fur)
    )
    muzzle = rng.uniform(0.3, 0.55) * head
    parts.append(
        blob((0, skull - 0.3 * head, lean + 0.8 * head), (muzzle * 1.1, muzzle * 0.8, muzzle), other)
    )
    parts += eyes(
        skull + 0.12 * head, lean + 0.88 * head, head * rng.uniform(0.35, 0.5), head * rng.uniform(0.1, 0.2)
    )
    ear, ear_kind = rng.uniform(0.35, 0.6) * head, rng.integers(3)
    for s in (-1, 1):
        if ear_kind == 0:  # pointed
            up = (s * head * 0.6, skull + head * 0.85 + ear * 0.4, lean)
            parts.append(
                blob(up, (ear * 0.75, ear, ear * 0.4), fur, eps=CONE, taper=-0.95, turn=euler(roll=-s * 0.3))
            )
        elif ear_kind == 1:  # round
            parts.append(
                blob((s * head * 0.8, skull + head * 0.75, lean), (ear * 0.7, ear * 0.7, ear * 0.35), other)
            )
        else:  # long
            tall = ear * rng.uniform(1.2, 2.0)
            parts.append(
                blob(
                    (s * head * 0.45, skull + head * 0.7 + tall * 0.7, lean),
                    (ear * 0.4, tall, ear * 0.3),
                    fur,
                )
            )
        leg = rng.uniform(0.08, 0.12)
        parts.append(
            blob((s * width * 0.45, height * 0.5, front), (leg, height * 0.52, leg), fur, eps=(0.6, 1))
        )
        parts.append(
            blob((s * width * 0.45, leg * 0.6, front + leg * 0.5), (leg * 1.1, leg * 0.6, leg * 1.5), other)
        )
        parts.append(
            blob((s * width * 0.8, height * 0.42, 0.02), (width * 0.45, height * 0.42, width * 0.75), fur)
        )
    tail = float(rng.uniform(0.05, 0.09))
    side, reach = rng.choice([-1, 1]), rng.uniform(0.2, 0.5)
    start = np.array([0, 0.12, -width * 0.8])
    bend = [start + [side * reach * 0.5, 0.05, -0.15], start + [side * reach, rng.uniform(0.1, 0.5), -0.1]]
    parts += tube(start, bend, tail, fur)
    return f"a sitting {fur.name} animal", parts


def quadruped(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A standing four-legged animal."""
    hide, other = paint(rng), paint(rng, plain=1.0)
    long, high, leg = rng.uniform(0.40, 0.62), rng.uniform(0.2, 0.34), rng.uniform(0.25, 0.6)
    wide, thick = high * rng.uniform(0.8, 1.1), rng.uniform(0.07, 0.12)
    body_y = leg + high * 0.8
    parts = [blob((0, body_y, 0), (wide, high, long), hide)]
    head, neck = rng.uniform(0.16, 0.27), rng.uniform(0.0, 0.4)
    skull_y, skull_z = body_y + high * 0.5 + neck + head * 0.4, long * 0.9 + head * 0.5
    if neck > 0.1:
        start = np.array([0, body_y + high * 0.3, long * 0.7])
        parts += tube(start, [np.array([0, skull_y, skull_z])], head * 0.5, hide)
    parts.append(blob((0, skull_y, skull_z), (head * 0.9, head * 0.9, head), hide))
    nose = head * rng.uniform(0.4, 0.65)
    parts.append(blob((0, skull_y - head * 0.3, skull_z + head * 0.8), (nose, nose * 0.8, nose * 1.2), other))
    parts += eyes(skull_y + head * 0.25, skull_z + head * 0.75, head * 0.5, head * 0.16)
    ear = head * rng.uniform(0.3, 0.6)
    pointed = rng.random() < 0.5
    for s in (-1, 1):
        at = (s * head * 0.65, skull_y + head * 0.8, skull_z - head * 0.1)
        shape = {"eps": CONE, "taper": -0.95} if pointed else {}
        parts.append(blob(at, (ear * 0.6, ear, ear * 0.4), other, **shape))  # type: ignore[arg-type]
        for end in (-1, 1):
            foot = (s * wide * 0.6, leg * 0.5, end * long * 0.65)
            parts.append(
                blob(foot, (thick, leg * 0.62, thick), hide, eps=(0.4, 1), taper=rng.uniform(-0.1, 0.3))
            )
    start = np.array([0, body_y + high * 0.3, -long * 0.9])
    tip = start + [0, rng.uniform(-0.3, 0.4), -rng.uniform(0.1, 0.35)]
    parts += tube(start, [tip], rng.uniform(0.03, 0.07), other)
    return f"a standing {hide.name} animal", parts


def bird(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A standing bird: egg-shaped body, head, beak, wings, tail."""
    feather, other = paint(rng), paint(rng, plain=1.0)
    body, head = rng.uniform(0.34, 0.46), rng.uniform(0.2, 0.3)
    tilt = rng.uniform(0.1, 0.8)
    parts = [blob((0, body + 0.2, 0), (body * 0.8, body * 1.15, body * 0.8), feather, turn=euler(pitch=tilt))]
    y, z = body * 1.9 + 0.2, body * math.sin(tilt) * 0.9
    parts.append(blob((0, y, z), (head, head, head), feather))
    beak = head * rng.uniform(0.5, 1.1)
    cone = euler(pitch=math.pi / 2)
    parts.append(
        blob(
            (0, y, z + head + beak * 0.4),
            (head * 0.35, beak, head * 0.3),
            other,
            eps=CONE,
            taper=-0.9,
            turn=cone,
        )
    )
    parts += eyes(y + head * 0.25, z + head * 0.8, head * 0.5, head * 0.15)
    wing = euler(pitch=tilt * 0.8)
    for s in (-1, 1):
        parts.append(
            blob((s * body * 0.8, body + 0.2, -0.05), (body * 0.18, body * 0.8, body * 0.5), other, turn=wing)
        )
        parts.append(blob((s * body * 0.3, 0.12, 0.02), (0.035, 0.16, 0.035), other, eps=CYLINDER))
        parts.append(blob((s * body * 0.3, 0.02, 0.07), (0.06, 0.03, 0.1), other))
    fan = euler(pitch=-0.9)
    parts.append(blob((0, body * 0.75, -body * 1.1), (body * 0.3, body * 0.5, 0.06), feather, turn=fan))
    return f"a {feather.name} bird with {other.name} wings", parts


def figure(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A toy person or bear: torso, head, arms, legs, sometimes a hat."""
    shirt, trousers, skin = paint(rng), paint(rng, plain=0.8), paint(rng, plain=1.0)
    torso, wide, leg = rng.uniform(0.26, 0.38), rng.uniform(0.2, 0.3), rng.uniform(0.18, 0.4)
    deep, head = wide * rng.uniform(0.6, 0.9), rng.uniform(0.18, 0.3)
    boxy = (0.25, 0.3) if rng.random() < 0.4 else (0.8, 1.0)
    parts = [blob((0, 2 * leg + torso * 0.9, 0), (wide, torso, deep), shirt, eps=boxy)]
    head_y = 2 * leg + torso * 1.8 + head * 0.85
    parts.append(blob((0, head_y, 0), (head, head, head * 0.9), skin, eps=boxy))
    parts += eyes(head_y + head * 0.15, head * 0.86, head * 0.4, head * 0.14)
    arm, swing = rng.uniform(0.2, 0.34), rng.uniform(0.1, 1.2)
    for s in (-1, 1):
        parts.append(blob((s * wide * 0.5, leg, 0), (wide * 0.42, leg * 1.1, deep * 0.7), trousers, eps=boxy))
        parts.append(
            blob((s * wide * 0.5, 0.05, 0.06), (wide * 0.42, 0.07, deep * 0.9), BLACK, eps=(0.5, 0.8))
        )
        shoulder = np.array([s * wide * 0.95, 2 * leg + torso * 1.4, 0])
        hand = shoulder + [s * arm * 2 * math.sin(swing), -arm * 2 * math.cos(swing), 0.05]
        parts += tube(shoulder, [hand], rng.uniform(0.06, 0.09), shirt)
        parts.append(blob(tuple(hand), (0.09, 0.09, 0.09), skin))
    if rng.random() < 0.5:
        hat = paint(rng, plain=0.8)
        top = head_y + head * 0.75
        parts.append(blob((0, top, 0), (head * 1.25, 0.04, head * 1.25), hat, eps=CYLINDER))
        parts.append(
            blob(
                (0, top + 0.15, 0),
                (head * 0.8, 0.17, head * 0.8),
                hat,
                eps=CYLINDER,
                taper=-rng.uniform(0, 0.7),
            )
        )
    return f"a toy figure with a {shirt.name} shirt and {trousers.name} trousers", parts


def vehicle(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A car or truck: body, cabin, wheels, lights."""
    body, cabin = paint(rng, plain=0.75), paint(rng, plain=1.0)
    long, wide, high = rng.uniform(0.55, 0.75), rng.uniform(0.26, 0.36), rng.uniform(0.12, 0.2)
    wheel = rng.uniform(0.11, 0.17)
    edge = (float(rng.uniform(0.15, 0.5)), float(rng.uniform(0.15, 0.5)))
    base = wheel + high * 0.8
    parts = [blob((0, base, 0), (wide, high, long), body, eps=edge)]
    cab_long, cab_high, back = rng.uniform(0.22, 0.42), rng.uniform(0.13, 0.24), rng.uniform(-0.25, 0.25)
    top = base + high + cab_high * 0.75
    parts.append(
        blob(
            (0, top, back), (wide * 0.88, cab_high, cab_long), cabin, eps=edge, taper=-rng.uniform(0.05, 0.35)
        )
    )
    axle = euler(roll=math.pi / 2)
    for s in (-1, 1):
        for end in (-1, 1):
            at = (s * wide * 0.92, wheel, end * long * 0.62)
            parts.append(blob(at, (wheel, 0.07, wheel), BLACK, eps=CYLINDER, turn=axle))
            parts.append(
                blob(
                    (s * (wide * 0.92 + 0.06), wheel, at[2]),
                    (wheel * 0.5, 0.03, wheel * 0.5),
                    WHITE,
                    turn=axle,
                )
            )
        parts.append(blob((s * wide * 0.6, base, long * 0.97), (0.06, 0.05, 0.05), named("yellow")))
        parts.append(blob((s * wide * 0.6, base, -long * 0.97), (0.06, 0.04, 0.04), named("red")))
    return f"a {body.name} car with a {cabin.name} cabin", parts


def house(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A house: walls, roof, door, windows, chimney."""
    wall, roof, door = paint(rng, plain=0.8), paint(rng, plain=0.7), paint(rng, plain=1.0)
    wide, high, deep = rng.uniform(0.36, 0.55), rng.uniform(0.26, 0.5), rng.uniform(0.32, 0.5)
    peak = rng.uniform(0.15, 0.32)
    parts = [blob((0, high, 0), (wide, high, deep), wall, eps=(0.1, 0.1))]
    parts.append(
        blob(
            (0, 2 * high + peak * 0.95, 0),
            (wide * 0.65, peak, deep * 0.65),
            roof,
            eps=(0.1, 0.1),
            taper=-0.85,
        )
    )
    parts.append(blob((0, high * 0.45, deep), (wide * 0.22, high * 0.45, 0.03), door, eps=BOX))
    for s in (-1, 1):
        parts.append(
            blob(
                (s * wide * 0.58, high * 1.2, deep), (wide * 0.16, high * 0.2, 0.025), named("blue"), eps=BOX
            )
        )
        parts.append(
            blob((s * wide, high * 1.1, 0), (0.025, high * 0.2, deep * 0.25), named("blue"), eps=BOX)
        )
    if rng.random() < 0.6:
        at = (wide * 0.45, 2 * high + peak * 0.9, -deep * 0.2)
        parts.append(blob(at, (0.07, peak * 0.9, 0.07), named("brown"), eps=BOX))
    return f"a {wall.name} house with a {roof.name} roof", parts


def plant(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A tree, a cactus-like bush or a mushroom."""
    crown, trunk = paint(rng, plain=0.6), paint(rng, plain=1.0)
    tall, thick = rng.uniform(0.25, 0.5), rng.uniform(0.07, 0.2)
    parts = [blob((0, tall, 0), (thick, tall, thick), trunk, eps=CYLINDER, taper=rng.uniform(-0.3, 0.2))]
    kind = rng.integers(3)
    if kind == 0:
        wide = rng.uniform(0.35, 0.6)
        parts.append(
            blob(
                (0, 2 * tall, 0),
                (wide, rng.uniform(0.18, 0.35), wide),
                crown,
                eps=(0.8, 1),
                taper=-rng.uniform(0, 0.6),
            )
        )
        return f"a {crown.name} mushroom", parts
    if kind == 1:
        wide = rng.uniform(0.4, 0.55)
        for level in range(int(rng.integers(2, 4))):
            reach = wide * (1 - 0.22 * level) * 0.6
            height = 2 * tall * 0.75 + 0.26 * level
            parts.append(blob((0, height, 0), (reach, 0.26, reach), crown, eps=CONE, taper=-0.9))
        return f"a {crown.name} fir tree", parts
    for _ in range(int(rng.integers(3, 6))):
        at = (rng.uniform(-0.22, 0.22), 2 * tall + rng.uniform(-0.08, 0.3), rng.uniform(-0.22, 0.22))
        size = rng.uniform(0.2, 0.36)
        parts.append(blob(at, (size, size, size), crown))
    return f"a tree with a {crown.name} crown", parts


def vessel(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A vase, bottle, lamp or cup: rings stacked on one axis."""
    glaze, other = paint(rng, plain=0.4), paint(rng, plain=1.0)
    count, y = int(rng.integers(2, 5)), 0.0
    parts: list[Part] = []
    for level in range(count):
        wide, high = rng.uniform(0.14, 0.45), rng.uniform(0.12, 0.32)
        eps = (float(rng.choice([0.2, 0.6, 1.0])), 1.0)
        taper = rng.uniform(-0.5, 0.5)
        parts.append(
            blob(
                (0, y + high * 0.9, 0),
                (wide, high, wide),
                glaze if level % 2 == 0 else other,
                eps=eps,
                taper=taper,
            )
        )
        y += high * 1.75
    if rng.random() < 0.35:
        s = rng.choice([-1, 1])
        loop = [
            np.array([s * 0.5, y * 0.7, 0]),
            np.array([s * 0.5, y * 0.35, 0]),
            np.array([s * 0.2, y * 0.2, 0]),
        ]
        parts += tube(np.array([s * 0.2, y * 0.75, 0]), loop, 0.05, other)
    return f"a {glaze.name} vase with {other.name} rings", parts


def furniture(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A chair, stool, table or sofa."""
    seat, frame = paint(rng, plain=0.6), paint(rng, plain=1.0)
    wide, deep, leg = rng.uniform(0.3, 0.5), rng.uniform(0.3, 0.45), rng.uniform(0.15, 0.4)
    thick, slab = rng.uniform(0.04, 0.08), rng.uniform(0.05, 0.14)
    parts = [blob((0, 2 * leg + slab * 0.8, 0), (wide, slab, deep), seat, eps=(0.3, 0.3))]
    for s in (-1, 1):
        for end in (-1, 1):
            parts.append(
                blob((s * wide * 0.8, leg, end * deep * 0.8), (thick, leg * 1.05, thick), frame, eps=BOX)
            )
    if rng.random() < 0.7:
        back = rng.uniform(0.25, 0.45)
        parts.append(blob((0, 2 * leg + back, -deep * 0.9), (wide, back, thick * 1.2), seat, eps=(0.3, 0.3)))
        if rng.random() < 0.5:
            for s in (-1, 1):
                parts.append(
                    blob(
                        (s * wide * 0.95, 2 * leg + 0.22, 0),
                        (thick * 1.2, 0.1, deep * 0.9),
                        frame,
                        eps=(0.4, 0.4),
                    )
                )
        return f"a {seat.name} chair with {frame.name} legs", parts
    return f"a {seat.name} table with {frame.name} legs", parts


def solids(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """One to three plain solids, stacked."""
    names = {
        "cube": ((0.1, 0.1), 0.0),
        "ball": ((1.0, 1.0), 0.0),
        "cylinder": ((0.1, 1.0), 0.0),
        "cone": ((0.1, 1.0), -0.95),
    }
    words: list[str] = []
    parts: list[Part] = []
    y = 0.0
    turn = euler(yaw=float(rng.uniform(0, math.pi / 2)))
    for _ in range(int(rng.integers(1, 4))):
        shape = str(rng.choice(list(names)))
        eps, taper = names[shape]
        cover = paint(rng, plain=0.6)
        wide = float(rng.uniform(0.22, 0.5))
        high = wide * float(rng.uniform(0.6, 1.2)) if shape != "ball" else wide
        radii = (wide, high, wide) if taper == 0.0 else (wide * 0.55, high, wide * 0.55)
        parts.append(blob((0, y + high * 0.98, 0), radii, cover, eps=eps, taper=taper, turn=turn))
        y += high * 1.94
        words.insert(0, f"a {cover.name} {shape}")
        if shape == "cone":
            break
    return " on ".join(words), parts


def rocket(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A rocket or tower: shaft, cone, fins."""
    hull, tip = paint(rng, plain=0.5), paint(rng, plain=1.0)
    wide, high = rng.uniform(0.16, 0.28), rng.uniform(0.35, 0.6)
    parts = [
        blob((0, 0.15 + high, 0), (wide, high, wide), hull, eps=(0.4, 1.0), taper=rng.uniform(-0.2, 0.1))
    ]
    nose = rng.uniform(0.14, 0.3)
    parts.append(
        blob((0, 0.12 + 2 * high + nose * 0.8, 0), (wide * 0.5, nose, wide * 0.5), tip, eps=CONE, taper=-0.95)
    )
    for k in range(int(rng.integers(3, 5))):
        angle = 2 * math.pi * k / 4 + 0.4
        at = (wide * 1.2 * math.sin(angle), 0.24, wide * 1.2 * math.cos(angle))
        parts.append(
            blob(at, (0.03, 0.2, wide * 0.6), tip, eps=(0.3, 0.3), taper=-0.5, turn=euler(yaw=angle))
        )
    for k in range(2):
        parts.append(blob((0, high * (0.9 + 0.6 * k) + 0.15, wide * 0.95), (0.07, 0.07, 0.04), named("teal")))
    return f"a {hull.name} rocket with a {tip.name} tip", parts


FAMILIES: dict[str, Callable[[np.random.Generator], tuple[str, list[Part]]]] = {
    f.__name__: f
    for f in (sitter, quadruped, bird, figure, vehicle, house, plant, vessel, furniture, solids, rocket)
}


def make(family: str, seed: int) -> Thing:
    """The object of that family and seed, standing on y = 0, not yet normalised."""
    if family not in FAMILIES:
        raise ValueError(f"no family {family!r}; there are {', '.join(FAMILIES)}")
    rng = np.random.default_rng([list(FAMILIES).index(family), seed])
    caption, parts = FAMILIES[family](rng)
    stretch = np.exp(rng.normal(0, 0.06))  # taller or squatter, the family's proportions kept
    parts = [replace(p, centre=p.centre * [1, stretch, 1], radii=p.radii) for p in parts]
    azimuth, height = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 0.95)
    flat = math.sqrt(1 - height**2)
    light = np.array([flat * math.sin(azimuth), height, flat * math.cos(azimuth)])
    return Thing(family, seed, caption, tuple(parts), light, float(rng.uniform(0.55, 0.8)))
