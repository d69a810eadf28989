"""Families of animals, people and plants. World: y up, front +z; members stand near y = 0, not yet normalised.

A family takes its generator of random numbers and returns (caption, parts).
"""

from __future__ import annotations

import math

import numpy as np

from guidance.pocket.objects import (
    BLACK,
    CONE,
    CYLINDER,
    FACING,
    WHITE,
    Part,
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
    parts.append(
        blob(
            (0, y, z + head + beak * 0.4),
            (head * 0.35, beak, head * 0.3),
            other,
            eps=CONE,
            taper=-0.9,
            turn=FACING,
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


def beast(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A four-legged animal in motion: legs swung, head turned, back arched, parts grown into one another."""
    hide, other = paint(rng, plain=0.4), paint(rng, plain=1.0)
    long, high, leg = rng.uniform(0.35, 0.6), rng.uniform(0.17, 0.3), rng.uniform(0.2, 0.55)
    wide, thick = high * rng.uniform(0.75, 1.05), rng.uniform(0.06, 0.1)
    rise = rng.uniform(-0.12, 0.25)  # the chest above the hips
    back_y = 2 * leg + high * 0.7
    hips, chest = np.array([0, back_y - rise / 2, -long * 0.5]), np.array([0, back_y + rise / 2, long * 0.5])
    parts = [
        blob((0, back_y, 0), (wide, high, long * 0.9), hide, turn=euler(pitch=-math.atan2(rise, long))),
        blob(hips, (wide * 1.02, high * rng.uniform(0.85, 1.1), wide), hide),
        blob(chest, (wide * 1.02, high * rng.uniform(0.9, 1.15), wide), hide),
    ]
    head, neck, look = rng.uniform(0.15, 0.25), rng.uniform(0.1, 0.45), rng.uniform(-0.7, 0.7)
    skull = chest + [0, high * 0.5 + neck, long * 0.25 + head * 0.5]
    parts += tube(chest + [0, high * 0.3, 0.05], [skull], head * rng.uniform(0.5, 0.7), hide)
    turned = euler(yaw=look)

    def on_head(x: float, y: float, z: float) -> np.ndarray:
        return skull + turned @ (np.array([x, y, z]) * head)

    parts.append(blob(skull, (head * 0.9, head * 0.85, head), hide, turn=turned))
    snout = rng.uniform(0.4, 0.6) * head
    far = rng.uniform(0.8, 1.3)
    parts.append(blob(on_head(0, -0.25, far), (snout, snout * 0.8, snout * 1.2), other, turn=turned))
    ear, horned = rng.uniform(0.35, 0.8) * head, rng.random() < 0.3
    for s in (-1, 1):
        parts.append(blob(on_head(s * 0.5, 0.25, 0.78), (head * 0.13, head * 0.16, head * 0.1), BLACK))
        tilt = turned @ euler(roll=-s * rng.uniform(0.1, 0.7))
        shape = (ear * 0.3, ear * 1.2, ear * 0.3) if horned else (ear * 0.55, ear, ear * 0.35)
        material = WHITE if horned else hide
        parts.append(blob(on_head(s * 0.6, 0.95, 0), shape, material, eps=CONE, taper=-0.9, turn=tilt))
        for end in (hips, chest):
            swing = rng.uniform(-0.5, 0.5)
            hip = end + [s * wide * 0.65, -high * 0.3, 0]
            foot = np.array([hip[0], thick * 0.5, hip[2] + math.tan(swing) * leg])
            knee = (hip + foot) / 2 + [0, 0, rng.uniform(-0.06, 0.06)]
            parts += tube(hip, [knee, foot], thick, hide)
            parts.append(blob(foot + [0, 0, thick * 0.4], (thick, thick * 0.6, thick * 1.3), other))
    tail = hips + [0, high * 0.5, -wide * 0.8]
    aside = rng.uniform(-0.3, 0.3)
    bend = [tail + [aside * 0.5, rng.uniform(-0.1, 0.2), -0.15]]
    bend.append(bend[0] + [aside, rng.uniform(-0.25, 0.3), -0.1])
    parts += tube(tail, bend, rng.uniform(0.03, 0.07), hide)
    return f"a walking {hide.name} animal with {other.name} feet", parts


def insect(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A beetle, bee or spider: segments, six or eight legs, sometimes wings and feelers."""
    shell, other = paint(rng, plain=0.4), paint(rng, plain=1.0)
    size, lift = rng.uniform(0.2, 0.32), rng.uniform(0.22, 0.4)
    abdomen, thorax, head = (
        size * rng.uniform(1.0, 1.5),
        size * rng.uniform(0.6, 0.9),
        size * rng.uniform(0.5, 0.8),
    )
    parts = [
        blob((0, lift + 0.05, -abdomen * 0.9), (size, size * 0.85, abdomen), shell),
        blob((0, lift, thorax * 0.6), (thorax, thorax * 0.8, thorax), other),
        blob((0, lift + 0.04, thorax * 1.5 + head * 0.5), (head, head * 0.85, head * 0.9), shell),
    ]
    parts += eyes(lift + head * 0.3, thorax * 1.5 + head * 1.25, head * 0.55, head * 0.25)
    pairs, reach = int(rng.integers(3, 5)), rng.uniform(0.35, 0.55)
    for s in (-1, 1):
        for k in range(pairs):
            z = thorax * 0.6 + (k - (pairs - 1) / 2) * size * 0.5
            root, spread = np.array([s * thorax * 0.6, lift, z]), (k - (pairs - 1) / 2) * 0.18
            knee = root + [s * reach * 0.55, rng.uniform(0.05, 0.16), spread * 0.6]
            parts += tube(root, [knee, np.array([s * (reach + 0.12), 0.0, z + spread])], 0.035, other)
    if rng.random() < 0.5:
        wing = rng.uniform(0.4, 0.65)
        for s in (-1, 1):
            at = (s * wing * 0.75, lift + size * 0.8, -0.1)
            turn = euler(yaw=s * rng.uniform(-0.2, 0.5), roll=s * 0.35)
            parts.append(blob(at, (wing * 0.8, 0.03, wing * 0.4), WHITE, turn=turn))
        return f"a {shell.name} bee with white wings", parts
    return f"a {shell.name} beetle with {other.name} legs", parts


def flower(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A flower or leafy plant, in a pot or bare."""
    petal, heart, pot = paint(rng, plain=0.7), paint(rng, plain=1.0), paint(rng, plain=0.7)
    green = named("green")
    stem, y = rng.uniform(0.35, 0.7), 0.0
    potted = rng.random() < 0.7
    parts: list[Part] = []
    if potted:
        wide, high = rng.uniform(0.18, 0.3), rng.uniform(0.12, 0.22)
        parts.append(blob((0, high, 0), (wide, high, wide), pot, eps=(0.1, 1), taper=rng.uniform(0.05, 0.3)))
        y = 2 * high - 0.03
    top = np.array([rng.uniform(-0.1, 0.1), y + stem, rng.uniform(-0.1, 0.1)])
    parts += tube(np.array([0, y, 0]), [top * [0.3, 0, 0.3] + [0, y + stem * 0.5, 0], top], 0.03, green)
    for k in range(int(rng.integers(2, 6))):
        angle = 2.4 * k + rng.uniform(-0.3, 0.3)
        leaf = rng.uniform(0.13, 0.26)
        out = np.array([math.sin(angle), 0.5, math.cos(angle)]) * leaf
        at = np.array([0, y + stem * rng.uniform(0.15, 0.6), 0]) + out
        parts.append(blob(at, (0.07, 0.02, leaf), green, turn=euler(angle, -0.5)))
    if rng.random() < 0.75:
        count, size, tip = int(rng.integers(5, 9)), rng.uniform(0.1, 0.17), rng.uniform(0.2, 1.3)
        facing = euler(pitch=tip)
        for k in range(count):
            angle = 2 * math.pi * k / count
            around = np.array([math.sin(angle), 0.1, math.cos(angle)]) * size * 1.3
            at = top + facing @ around
            parts.append(blob(at, (size * 0.55, 0.035, size), petal, turn=facing @ euler(yaw=angle)))
        parts.append(blob(top, (size * 0.6, 0.07, size * 0.6), heart, turn=facing))
        where = f" in a {pot.name} pot" if potted else ""
        return f"a {petal.name} flower{where}", parts
    size = rng.uniform(0.18, 0.3)
    parts.append(blob(top, (size, size, size), petal))
    return f"a small {petal.name} tree" + (f" in a {pot.name} pot" if potted else ""), parts


def fish(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A fish with fins and a tail."""
    scale, fin = paint(rng, plain=0.4), paint(rng, plain=1.0)
    long, high = rng.uniform(0.45, 0.7), rng.uniform(0.2, 0.38)
    wide = high * rng.uniform(0.4, 0.8)
    parts = [blob((0, 0.5, 0), (wide, high, long), scale)]
    tail = rng.uniform(0.18, 0.3)
    for s in (-1, 1):
        parts.append(
            blob(
                (0, 0.5 + s * tail * 0.5, -long * 1.15),
                (0.035, tail * 0.85, tail * 0.5),
                fin,
                turn=euler(pitch=s * 0.6),
            )
        )
        parts.append(
            blob((s * wide * 1.1, 0.45, long * 0.15), (0.14, 0.03, 0.1), fin, turn=euler(roll=-s * 0.5))
        )
    parts.append(blob((0, 0.5 + high, -long * 0.05), (0.03, rng.uniform(0.1, 0.2), long * 0.35), fin))
    parts.append(blob((0, 0.5 - high, -long * 0.2), (0.03, 0.1, long * 0.2), fin))
    for s in (-1, 1):
        at = (s * wide * 0.68, 0.5 + high * 0.25, long * 0.68)
        parts.append(blob(at, (0.04, 0.06, 0.06), BLACK))
    return f"a {scale.name} fish with {fin.name} fins", parts
