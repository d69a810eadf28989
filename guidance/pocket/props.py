"""Props of games and tales: a family of the view prior's stream. Results as in living.py.

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
    turned,
)

BRIGHT = ["red", "blue", "green", "purple", "teal", "pink", "orange"]


def prop(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A chest, a barrel, a crown, a cup, a book, a key, a shield, a sword, a gem, a gift or a mushroom."""
    kinds = {
        "chest": _chest,
        "barrel": _barrel,
        "crown": _crown,
        "trophy": _trophy,
        "book": _book,
        "key": _key,
        "shield": _shield,
        "sword": _sword,
        "crystal": _crystal,
        "gift": _gift,
        "mushroom": _mushroom,
    }
    kind, made = one_kind(rng, kinds)
    main, parts = made(rng)
    return f"a {main.name} {kind}", parts


def _metal(rng: np.random.Generator) -> Paint:
    return one_of(rng, "grey", "yellow", "orange", "white", "black")


def _gem(rng: np.random.Generator) -> Paint:
    return one_of(rng, *BRIGHT)


def _chest(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    wood, metal = named("brown") if rng.random() < 0.5 else paint(rng, plain=0.8), _metal(rng)
    wide, high, deep = rng.uniform(0.35, 0.5), rng.uniform(0.16, 0.25), rng.uniform(0.22, 0.32)
    parts = [blob((0, high, 0), (wide, high, deep), wood, eps=BOX)]
    lid = rng.uniform(0.6, 1.0) * deep
    parts.append(blob((0, 2 * high, 0), (lid, wide, deep), wood, eps=CYLINDER, turn=LYING))
    bands = (-0.97, 0.97) if rng.random() < 0.5 else (-0.97, -0.35, 0.35, 0.97)
    for x in bands:
        parts.append(blob((x * wide, high, 0), (0.035, high * 1.02, deep * 1.03), metal, eps=BOX))
        at, size = (x * wide, 2 * high, 0.0), (lid * 1.04, 0.035, deep * 1.04)
        parts.append(blob(at, size, metal, eps=CYLINDER, turn=LYING))
    parts.append(blob((0, 2 * high, 0), (wide * 1.01, 0.03, deep * 1.04), metal, eps=BOX))
    parts.append(blob((0, 1.85 * high, deep), (0.07, 0.09, 0.035), metal, eps=(0.3, 0.5)))
    parts.append(blob((0, 1.8 * high, deep + 0.03), (0.02, 0.035, 0.02), BLACK))
    return wood, parts


def _barrel(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    wood, metal = named("brown") if rng.random() < 0.4 else paint(rng, plain=0.7), _metal(rng)
    r, high, belly = rng.uniform(0.26, 0.36), rng.uniform(0.35, 0.5), rng.uniform(0.0, 0.2)
    parts = []
    for s in (-1, 1):
        at = (0, high + s * high / 2, 0)
        parts.append(
            blob(
                at,
                (r * (1 + belly / 2), high / 2, r * (1 + belly / 2)),
                wood,
                eps=(0.1, 1),
                taper=-s * belly / 2,
            )
        )
    for t in (-0.95, -0.45, 0.45, 0.95):
        out = r * (1.02 + belly * (1 - abs(t)))
        parts.append(blob((0, high * (1 + t), 0), (out, 0.035, out), metal, eps=EDGED))
    parts.append(
        blob((0, 2 * high, 0), (r * 0.9, 0.02, r * 0.9), wood if rng.random() < 0.6 else BLACK, eps=EDGED)
    )
    if rng.random() < 0.35:
        parts = turned(parts, euler(roll=math.pi / 2, yaw=float(rng.uniform(0, 1.5))))
    return wood, parts


def _crown(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    metal, cloth = _metal(rng) if rng.random() < 0.7 else paint(rng, plain=1.0), _gem(rng)
    r, count, high = rng.uniform(0.35, 0.45), int(rng.integers(5, 9)), rng.uniform(0.12, 0.28)
    parts = [blob((0, 0.09, 0), (r, 0.09, r), metal, eps=(0.1, 1))]
    if rng.random() < 0.7:
        parts.append(blob((0, 0.12, 0), (r * 0.93, high * 1.3, r * 0.93), cloth))
    for k in range(count):
        angle = 2 * math.pi * k / count
        way = np.array([math.sin(angle), 0, math.cos(angle)])
        at, turn = way * r * 0.97 + [0, 0.16 + high * 0.6, 0], euler(yaw=angle)
        parts.append(blob(at, (r * 0.28, high, 0.03), metal, eps=(0.3, 0.3), taper=-0.9, turn=turn))
        parts.append(blob(way * r * 0.98 + [0, 0.17 + high * 1.5, 0], (0.05,) * 3, metal if k % 2 else WHITE))
        parts.append(blob(way * r + [0, 0.09, 0], (0.05, 0.05, 0.03), _gem(rng), turn=turn))
    return metal, parts


def _trophy(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    metal, base = _metal(rng), paint(rng, plain=0.9) if rng.random() < 0.5 else BLACK
    foot, stem, bowl = rng.uniform(0.15, 0.24), rng.uniform(0.06, 0.2), rng.uniform(0.2, 0.3)
    parts = [
        blob((0, 0.1, 0), (foot, 0.1, foot), base, eps=BOX if rng.random() < 0.5 else CYLINDER, taper=-0.1)
    ]
    parts.append(blob((0, 0.22, 0), (foot * 0.8, 0.04, foot * 0.8), metal, eps=EDGED))
    y = 0.24 + 2 * stem
    parts.append(blob((0, 0.22 + stem, 0), (0.04, stem + 0.04, 0.04), metal, eps=CYLINDER))
    parts.append(blob((0, 0.22 + stem, 0), (0.07, 0.05, 0.07), metal))
    parts.append(
        blob((0, y + bowl * 0.9, 0), (bowl * 0.8, bowl, bowl * 0.8), metal, eps=(0.5, 1), taper=0.35)
    )
    rim = y + bowl * 1.8
    parts.append(blob((0, rim, 0), (bowl * 1.08, 0.03, bowl * 1.08), metal, eps=EDGED))
    parts.append(blob((0, rim + 0.02, 0), (bowl * 0.95, 0.02, bowl * 0.95), BLACK, eps=EDGED))
    for s in (-1, 1) if rng.random() < 0.8 else ():
        top, low = np.array([s * bowl, rim - 0.05, 0]), np.array([s * bowl * 0.6, y + bowl * 0.5, 0])
        out = np.array([s * bowl * rng.uniform(0.5, 0.8), 0, 0])
        parts += tube(top, [top + out, (top + low) / 2 + out * 1.2, low], 0.03, metal)
    if rng.random() < 0.5:
        parts.append(disc((0, y + bowl, bowl * 0.78), bowl * 0.3, 0.03, _gem(rng)))
    return metal, parts


def _book(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    cover, trim = paint(rng, plain=0.85), _metal(rng)
    wide, high, deep = rng.uniform(0.26, 0.36), rng.uniform(0.36, 0.46), rng.uniform(0.05, 0.14)
    parts = [blob((0.015, high, 0), (wide * 0.97, high * 0.95, deep * 0.85), WHITE, eps=BOX)]
    for s in (-1, 1):
        parts.append(blob((0, high, s * deep), (wide, high, 0.02), cover, eps=BOX))
    parts.append(blob((-wide, high, 0), (0.025, high, deep + 0.01), cover, eps=(0.15, 0.6)))
    if rng.random() < 0.6:
        for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            at = (x * wide * 0.88, high * (1 + 0.9 * y), deep)
            parts.append(blob(at, (wide * 0.14, high * 0.11, 0.03), trim, eps=BOX))
    sign = rng.random()
    if sign < 0.4:
        parts.append(disc((0, high * 1.1, deep + 0.02), wide * 0.35, 0.02, trim))
    elif sign < 0.8:
        for k in range(2):
            parts.append(
                blob((0, high * (1.3 - 0.25 * k), deep + 0.015), (wide * 0.6, 0.03, 0.015), trim, eps=BOX)
            )
    lying = rng.random() < 0.3
    return cover, turned(parts, euler(pitch=-1.3)) if lying else turned(
        parts, euler(yaw=float(rng.normal(0, 0.3)))
    )


def _key(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    metal = _metal(rng) if rng.random() < 0.6 else paint(rng, plain=1.0)
    long, thick, r = rng.uniform(0.3, 0.45), rng.uniform(0.04, 0.06), rng.uniform(0.14, 0.2)
    parts = [blob((0, long, 0), (thick, long, thick), metal, eps=CYLINDER)]
    for k in range(int(rng.integers(2, 4))):
        reach = rng.uniform(0.09, 0.16)
        at = (reach, 0.06 + 0.11 * k, 0.0)
        parts.append(blob(at, (reach, 0.04, thick * 0.8), metal, eps=BOX))
    y = 2 * long + r * 0.85
    for centre in ((0.0, y),) if rng.random() < 0.5 else ((-r * 0.8, y), (r * 0.8, y), (0.0, y + r)):
        ring = [
            np.array([centre[0] + r * 0.8 * math.sin(a), centre[1] + r * 0.8 * math.cos(a), 0])
            for a in np.linspace(0, 2 * math.pi, 10)
        ]
        parts += tube(ring[0], ring[1:], thick, metal)
    parts.append(blob((0, 2 * long - 0.02, 0), (thick * 1.8, 0.035, thick * 1.8), metal, eps=EDGED))
    return metal, turned(parts, euler(roll=float(rng.normal(0, 0.4))))


def _shield(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    face, rim, boss = paint(rng, plain=0.6), _metal(rng), _metal(rng)
    r, deep = rng.uniform(0.36, 0.46), rng.uniform(0.03, 0.08)
    if rng.random() < 0.5:
        parts = [disc((0, r, -0.02), r, deep, rim), disc((0, r, 0.015), r * 0.86, deep, face)]
    else:
        tall = r * rng.uniform(1.1, 1.35)
        parts = [
            blob((0, tall, z), (r * size, tall * size, deep), cover, eps=(0.4, 0.3), taper=0.45)
            for z, size, cover in ((-0.02, 1.0, rim), (0.015, 0.88, face))
        ]
        r = tall
    middle = deep + 0.02
    kind = rng.random()
    if kind < 0.4:
        parts.append(blob((0, r, middle), (r * 0.22, r * 0.22, 0.08), boss))
    elif kind < 0.75:
        parts.append(blob((0, r, middle), (r * 0.09, r * 0.75, 0.02), boss, eps=BOX))
        parts.append(blob((0, r * 1.15, middle), (r * 0.6, r * 0.09, 0.02), boss, eps=BOX))
    parts += tube(
        np.array([0, 1.4 * r, -deep]),
        [np.array([0, r, -deep - 0.12]), np.array([0, 0.6 * r, -deep])],
        0.03,
        BLACK,
    )
    return face, turned(parts, euler(yaw=float(rng.normal(0, 0.3))))


def _sword(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    blade = one_of(rng, "grey", "white", "blue", "teal", "red")
    guard, grip = _metal(rng), paint(rng, plain=0.7)
    long, wide = rng.uniform(0.45, 0.65), rng.uniform(0.05, 0.11)
    parts = [
        blob((0, 0.05, 0), (0.06,) * 3, guard),
        blob((0, 0.2, 0), (0.04, 0.14, 0.04), grip, eps=CYLINDER),
    ]
    reach, rise = rng.uniform(0.13, 0.24), rng.uniform(-0.05, 0.08)
    for s in (-1, 1):
        parts += tube(np.array([0, 0.35, 0]), [np.array([s * reach, 0.35 + rise, 0])], 0.04, guard)
    if rng.random() < 0.4:
        parts.append(blob((0, 0.35, 0.04), (0.05,) * 3, _gem(rng)))
    parts.append(
        blob((0, 0.36 + long, 0), (wide, long, 0.025), blade, eps=(0.25, 0.4), taper=-rng.uniform(0, 0.4))
    )
    parts.append(blob((0, 0.36 + 2 * long, 0), (wide * 0.7, 0.1, 0.022), blade, eps=(1, 0.4), taper=-0.8))
    return blade, turned(parts, euler(roll=float(rng.normal(0, 0.35)) + math.pi * float(rng.random() < 0.3)))


def _crystal(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    stone, rock = paint(rng, plain=0.8), one_of(rng, "grey", "black", "brown", "beige")
    parts = [blob((0, 0.06, 0), (0.3, 0.1, 0.26), rock, eps=(0.7, 0.6))]
    for _ in range(int(rng.integers(3, 8))):
        lean = euler(yaw=float(rng.uniform(0, 6.3))) @ euler(roll=float(rng.uniform(-0.7, 0.7)))
        long, thick = rng.uniform(0.15, 0.42), rng.uniform(0.05, 0.11)
        foot = np.array([rng.uniform(-0.14, 0.14), 0.08, rng.uniform(-0.12, 0.12)])
        up = lean @ np.array([0, 1.0, 0])
        parts.append(blob(foot + up * long, (thick, long, thick), stone, eps=(0.2, 0.3), turn=lean))
        tip = foot + up * (2 * long + thick * 0.9)
        parts.append(
            blob(tip, (thick * 0.5, thick, thick * 0.5), stone, eps=(0.2, 0.3), taper=-0.95, turn=lean)
        )
    return stone, parts


def _gift(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    cover, band = paint(rng, plain=0.5), paint(rng, plain=1.0)
    wide, high, deep = rng.uniform(0.25, 0.4), rng.uniform(0.18, 0.36), rng.uniform(0.25, 0.38)
    parts = [blob((0, high, 0), (wide, high, deep), cover, eps=BOX)]
    if rng.random() < 0.5:
        parts.append(blob((0, 2 * high, 0), (wide * 1.07, 0.06, deep * 1.07), cover, eps=BOX))
    parts.append(blob((0, high + 0.03, 0), (wide * 0.16, high + 0.05, deep * 1.09), band, eps=BOX))
    parts.append(blob((0, high + 0.03, 0), (wide * 1.09, high + 0.05, deep * 0.16), band, eps=BOX))
    size = rng.uniform(0.1, 0.18)
    for s in (-1, 1):
        at, turn = (s * size * 0.9, 2 * high + size * 0.7, 0.0), euler(roll=s * 0.5)
        parts.append(blob(at, (size, size * 0.55, size * 0.4), band, turn=turn))
    parts.append(blob((0, 2 * high + size * 0.45, 0), (size * 0.35,) * 3, band))
    return cover, turned(parts, euler(yaw=float(rng.uniform(-0.7, 0.7))))


def _mushroom(rng: np.random.Generator) -> tuple[Paint, list[Part]]:
    cap, stem = paint(rng, plain=0.4), one_of(rng, "white", "beige", "grey")
    parts = []
    for k in range(int(rng.choice([1, 1, 2, 3]))):
        size = rng.uniform(0.8, 1.1) if k == 0 else rng.uniform(0.35, 0.6)
        x, z = (
            (0.0, 0.0) if k == 0 else (rng.choice([-1, 1]) * rng.uniform(0.2, 0.35), rng.uniform(-0.1, 0.25))
        )
        r, long = size * rng.uniform(0.26, 0.4), size * rng.uniform(0.16, 0.3)
        thick = size * rng.uniform(0.08, 0.16)
        parts.append(blob((x, long, z), (thick, long * 1.1, thick), stem, eps=(0.5, 1), taper=-0.2))
        y, high = 2 * long, r * rng.uniform(0.5, 0.9)
        parts.append(blob((x, y + high * 0.35, z), (r * 0.8, high, r * 0.8), cap, eps=(0.9, 1), taper=-0.4))
        parts.append(blob((x, y + high * 0.02, z), (r * 0.9, 0.03, r * 0.9), stem, eps=EDGED))
        for _ in range(int(rng.integers(0, 7))):
            a, t = rng.uniform(0, 2 * math.pi), rng.uniform(0.2, 0.9)
            out = r * 0.8 * math.cos(t) * (1 - 0.4 * math.sin(t))
            at = (x + out * math.sin(a), y + high * (0.35 + math.sin(t)), z + out * math.cos(a))
            parts.append(blob(at, (0.045 * size,) * 3, WHITE))
    return cap, parts
