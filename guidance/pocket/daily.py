"""Families of what people hold in a hand and photograph: food, shoes, bags. Results as in living.py.

World: y up, front +z; members stand near y = 0, not yet normalised.
"""

from __future__ import annotations

import math

import numpy as np

from guidance.pocket.objects import (
    BLACK,
    CONE,
    CYLINDER,
    WHITE,
    Paint,
    Part,
    blob,
    euler,
    named,
    one_kind,
    one_of,
    paint,
    tube,
    turned,
)

DISC = (0.5, 1.0)  # exponents of what is round with a rounded edge


def meal(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A burger, a cake, an ice cream, a cupcake, a fruit or a ring of dough."""
    kinds = {
        "burger": _burger,
        "cake": _cake,
        "ice cream": _ice,
        "cupcake": _cupcake,
        "fruit": _fruit,
        "ring": _ring,
    }
    kind, made = one_kind(rng, kinds)
    main, parts = made(rng)
    return f"a {main.name} {kind}", parts


def _burger(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    bun, wide = one_of(rng, "orange", "beige", "brown", "yellow"), rng.uniform(0.35, 0.5)
    low = rng.uniform(0.06, 0.14)
    parts = [blob((0, low, 0), (wide, low, wide), bun, eps=DISC)]
    y = 2 * low
    for _ in range(int(rng.integers(2, 6))):
        high, out = rng.uniform(0.02, 0.06), wide * rng.uniform(0.92, 1.12)
        square = rng.random() < 0.2
        eps, turn = ((0.4, 0.2), euler(yaw=float(rng.uniform(0, 1.5)))) if square else (DISC, None)
        parts.append(blob((0, y + high, 0), (out, high, out), paint(rng, plain=0.9), eps=eps, turn=turn))
        y += 2 * high * 0.9
    top = rng.uniform(0.15, 0.3)
    parts.append(blob((0, y + top * 0.3, 0), (wide, top, wide), bun, eps=(0.8, 1), taper=-0.15))
    if rng.random() < 0.5:
        for _ in range(12):
            way = np.array([rng.normal(), rng.uniform(0.6, 2.0), rng.normal()])
            way /= np.linalg.norm(way)
            at = way * [wide * 0.9, top * 0.97, wide * 0.9] + [0, y + top * 0.3, 0]
            parts.append(blob(at, (0.02, 0.02, 0.02), WHITE))
    return bun, parts


def _cake(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    wide, y, parts = rng.uniform(0.3, 0.5), 0.0, []
    cream = paint(rng, plain=0.8)
    if rng.random() < 0.5:  # on a plate
        parts.append(blob((0, 0.03, 0), (wide * 1.3, 0.03, wide * 1.3), paint(rng, plain=0.8), eps=CYLINDER))
    for _ in range(int(rng.integers(1, 4))):
        high = rng.uniform(0.08, 0.2)
        parts.append(blob((0, y + high, 0), (wide, high, wide), paint(rng, plain=0.6), eps=CYLINDER))
        y += 2 * high
        parts.append(blob((0, y, 0), (wide * 1.03, 0.03, wide * 1.03), cream, eps=DISC))
        wide *= rng.uniform(0.65, 1.0)
    around, size, berry = int(rng.integers(4, 11)), rng.uniform(0.03, 0.07), paint(rng, plain=1.0)
    for k in range(around):
        angle = 2 * math.pi * k / around
        at = np.array([math.sin(angle) * wide * 0.8, y + size * 0.6, math.cos(angle) * wide * 0.8])
        parts.append(blob(at, (size, size, size), berry))
    if rng.random() < 0.4:
        parts.append(blob((0, y + 0.12, 0), (0.025, 0.12, 0.025), paint(rng), eps=CYLINDER))
    return cream, parts


def _ice(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    cone, high, wide = paint(rng, plain=0.5), rng.uniform(0.3, 0.5), rng.uniform(0.16, 0.26)
    parts = [blob((0, high, 0), (wide * 0.6, high, wide * 0.6), cone, eps=CONE, taper=0.85)]
    y = 2 * high
    for _ in range(int(rng.integers(1, 4))):
        ball = wide * rng.uniform(0.95, 1.25)
        parts.append(
            blob((rng.normal(0, 0.03), y + ball * 0.5, 0), (ball, ball * 0.9, ball), paint(rng, plain=0.8))
        )
        y += ball * 1.2
        wide *= 0.9
    if rng.random() < 0.5:
        parts.append(blob((0, y + 0.1, 0), (0.06, 0.06, 0.06), named("red")))
    return cone, parts


def _cupcake(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    cup, cream, wide = paint(rng, plain=0.4), paint(rng, plain=0.8), rng.uniform(0.28, 0.4)
    high = rng.uniform(0.15, 0.25)
    parts = [blob((0, high, 0), (wide * 0.85, high, wide * 0.85), cup, eps=CYLINDER, taper=0.2)]
    y, out = 2 * high, wide * 1.15
    for _ in range(int(rng.integers(2, 5))):
        parts.append(blob((0, y + 0.05, 0), (out, 0.1, out), cream, eps=(0.8, 1)))
        y, out = y + 0.12, out * rng.uniform(0.6, 0.85)
    size = rng.uniform(0.05, 0.1)
    parts.append(blob((0, y + size * 0.6, 0), (size, size, size), paint(rng, plain=1.0)))
    return cream, parts


def _fruit(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    skin, high = paint(rng, plain=0.7), rng.uniform(0.3, 0.5)
    wide = high * rng.uniform(0.6, 1.3)
    parts = [
        blob(
            (0, high, 0),
            (wide, high, wide),
            skin,
            eps=(rng.uniform(0.7, 1.1), 1),
            taper=rng.uniform(-0.5, 0.5),
        )
    ]
    stem = np.array([0, 2 * high * 0.97, 0])
    tip = stem + [rng.normal(0, 0.06), rng.uniform(0.08, 0.2), rng.normal(0, 0.06)]
    parts += tube(stem - [0, 0.05, 0], [tip], 0.025, named("brown"))
    leaf = named("green")
    for _ in range(int(rng.integers(0, 6))):
        yaw, size = float(rng.uniform(0, 6.3)), rng.uniform(0.1, 0.25)
        way = np.array([math.sin(yaw), rng.uniform(-0.1, 1.0), math.cos(yaw)])
        turn = euler(yaw=yaw, pitch=-math.atan2(float(way[1]), 1.0))
        parts.append(blob(stem + way * size, (size * 0.45, 0.02, size), leaf, turn=turn))
    return skin, parts


def _ring(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    dough, icing = paint(rng, plain=0.9), paint(rng, plain=0.8)
    wide, thick = rng.uniform(0.28, 0.42), rng.uniform(0.1, 0.18)
    upright = euler(pitch=math.pi / 2 * float(rng.random() < 0.5), yaw=float(rng.normal(0, 0.4)))
    parts = []
    for k in range(10):
        angle = 2 * math.pi * k / 10
        at, turn = np.array([math.sin(angle) * wide, 0, math.cos(angle) * wide]), upright @ euler(yaw=angle)
        size = (wide * 0.42, thick, thick)
        parts.append(blob(upright @ at, size, dough, turn=turn))
        lifted = at + [0, thick * 0.25, 0]
        parts.append(blob(upright @ lifted, (wide * 0.42, thick * 0.85, thick * 0.97), icing, turn=turn))
    return icing, parts


def shoe(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A shoe or boot, from the side or from the front: sole, toe, heel, shaft, laces, a stripe."""
    upper, sole, mark = paint(rng, plain=0.75), paint(rng, plain=0.9), paint(rng, plain=1.0)
    long, wide = rng.uniform(0.4, 0.5), rng.uniform(0.14, 0.2)
    low, toe = rng.uniform(0.03, 0.09), rng.uniform(0.1, 0.16)
    parts = [blob((0, low, 0), (wide * 1.05, low, long * 1.03), sole, eps=(0.3, 0.8))]
    if rng.random() < 0.3:  # a heel under it
        parts[0] = blob((0, 3 * low, 0), (wide * 1.02, low * 0.6, long), sole, eps=(0.3, 0.8))
        parts.append(
            blob((0, 1.5 * low, -long * 0.7), (wide * 0.9, 1.5 * low, long * 0.28), sole, eps=(0.2, 0.4))
        )
        low *= 1.8
    floor = 2 * low
    parts.append(blob((0, floor + toe * 0.5, long * 0.5), (wide, toe, long * 0.48), upper))
    parts.append(
        blob((0, floor + toe * 0.7, 0), (wide * 0.97, toe * 1.3, long * 0.6), upper, turn=euler(pitch=-0.2))
    )
    shaft = rng.uniform(0.12, 0.2) if rng.random() < 0.6 else rng.uniform(0.25, 0.5)
    back = np.array([0, floor + shaft, -long * 0.55])
    parts.append(
        blob(back, (wide * 0.95, shaft, long * 0.4), upper, eps=(0.35, 1), taper=rng.uniform(-0.2, 0.1))
    )
    inside = back + [0, shaft * 0.95, 0]
    parts.append(
        blob(inside, (wide * 0.7, 0.03, long * 0.3), BLACK if rng.random() < 0.6 else mark, eps=DISC)
    )
    if rng.random() < 0.6:
        for k in range(int(rng.integers(2, 5))):
            at = (0.0, floor + toe * (1.35 + 0.28 * k), long * (0.35 - 0.12 * k))
            parts.append(blob(at, (wide * 0.7, 0.02, 0.03), WHITE if rng.random() < 0.8 else mark))
    if rng.random() < 0.5:
        for s in (-1, 1):
            at = (s * wide * 0.85, floor + toe * 0.8, -long * 0.1)
            turn = euler(pitch=float(rng.uniform(-0.9, 0.3)))
            parts.append(blob(at, (wide * 0.16, 0.03, long * 0.4), mark, turn=turn))
    if rng.random() < 0.6:
        turn = euler(yaw=float(rng.choice([-1, 1])) * math.pi / 2 + float(rng.normal(0, 0.3)))
        parts = turned(parts, turn)
    return f"a {upper.name} shoe", parts


def bag(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A handbag, a backpack or a suitcase: body, flap or lid, pockets, handle, straps behind."""
    cloth, other, metal = paint(rng, plain=0.7), paint(rng, plain=0.8), paint(rng, plain=1.0)
    wide, high, deep = rng.uniform(0.25, 0.45), rng.uniform(0.25, 0.45), rng.uniform(0.1, 0.22)
    eps = (float(rng.uniform(0.2, 0.6)), float(rng.uniform(0.2, 0.7)))
    parts = [blob((0, high, 0), (wide, high, deep), cloth, eps=eps, taper=rng.uniform(-0.25, 0.1))]
    flap = rng.random()
    if flap < 0.4:
        drop = high * rng.uniform(0.3, 0.6)
        parts.append(blob((0, 2 * high - drop, deep * 0.35), (wide * 1.02, drop, deep * 0.8), other, eps=eps))
        parts.append(blob((0, 2 * high - 2 * drop, deep * 1.1), (0.04, 0.05, 0.03), metal, eps=(0.4, 0.4)))
    elif flap < 0.7:  # an edge all round
        parts.append(
            blob((0, high * 2 * rng.uniform(0.5, 0.9), 0), (wide * 1.02, 0.03, deep * 1.04), metal, eps=eps)
        )
    if rng.random() < 0.6:
        half = high * rng.uniform(0.25, 0.45)
        at = (0, half * 1.3, deep * 0.95)
        parts.append(blob(at, (wide * rng.uniform(0.5, 0.8), half, deep * 0.4), other, eps=eps))
    grip, rise = wide * rng.uniform(0.25, 0.7), rng.uniform(0.08, 0.3)
    left, right = np.array([-grip, 2 * high * 0.95, 0]), np.array([grip, 2 * high * 0.95, 0])
    bow = [left + [grip * 0.3, rise, 0], right + [-grip * 0.3, rise, 0], right]
    parts += tube(left, bow, rng.uniform(0.018, 0.035), metal)
    if rng.random() < 0.5:
        for s in (-1, 1):
            top, low = (
                np.array([s * wide * 0.5, 1.8 * high, -deep]),
                np.array([s * wide * 0.55, 0.3 * high, -deep]),
            )
            parts += tube(top, [(top + low) / 2 - [0, 0, rng.uniform(0.05, 0.2)], low], 0.035, other)
    return f"a {cloth.name} bag", parts
