"""Families of what has a front with things on it: gadgets, instruments. Results as in living.py.

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

# ---- gadgets


def gadget(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A camera, a clock, a radio, headphones, a game controller or a screen."""
    kinds = {
        "camera": _camera,
        "clock": _clock,
        "radio": _radio,
        "pair of headphones": _headphones,
        "game controller": _controller,
        "screen": _screen,
    }
    kind, made = one_kind(rng, kinds)
    cover = named("black") if rng.random() < 0.25 else paint(rng, plain=0.85)
    return f"a {cover.name} {kind}", made(rng, cover)


def _camera(rng: np.random.Generator, cover: Paint) -> list[Part]:
    trim, metal = paint(rng, plain=0.9), one_of(rng, "grey", "black", "white")
    wide, high, deep = rng.uniform(0.35, 0.5), rng.uniform(0.22, 0.32), rng.uniform(0.09, 0.16)
    parts = [blob((0, high, 0), (wide, high, deep), cover, eps=(0.2, 0.35))]
    if rng.random() < 0.6:
        parts.append(
            blob((0, 1.75 * high, 0), (wide * 1.01, high * 0.26, deep * 1.02), trim, eps=(0.2, 0.35))
        )
    if rng.random() < 0.5:
        parts.append(
            blob((-wide * 0.85, high, deep * 0.5), (wide * 0.16, high * 0.9, deep), trim, eps=(0.4, 0.7))
        )
    x, r = rng.uniform(-0.1, 0.15) * wide, high * rng.uniform(0.5, 0.75)
    z = deep
    for k in range(int(rng.integers(2, 5))):
        long = rng.uniform(0.04, 0.09)
        parts.append(disc((x, high * 0.9, z + long * 0.8), r, long, metal if k % 2 == 0 else BLACK))
        z, r = z + 1.6 * long, r * rng.uniform(0.8, 0.97)
    parts.append(
        disc((x, high * 0.9, z + 0.005), r * 0.75, 0.02, named("blue") if rng.random() < 0.3 else BLACK)
    )
    parts.append(
        blob((x, 2 * high, 0), (wide * 0.28, high * 0.3, deep * 0.8), cover, eps=(0.4, 0.4), taper=-0.3)
    )
    parts.append(blob((-wide * 0.65, 2.05 * high, 0), (0.05, 0.04, 0.05), metal, eps=CYLINDER))
    if rng.random() < 0.5:
        parts.append(blob((wide * 0.65, 1.6 * high, deep), (wide * 0.16, high * 0.14, 0.03), WHITE, eps=BOX))
    return parts


def _clock(rng: np.random.Generator, cover: Paint) -> list[Part]:
    r, half, metal = rng.uniform(0.32, 0.45), rng.uniform(0.08, 0.2), paint(rng, plain=1.0)
    y, boxy = r * 1.15, rng.random() < 0.25
    if boxy:
        parts = [blob((0, y, 0), (r * 1.15, r * 1.15, half), cover, eps=(0.2, 0.3))]
    else:
        parts = [disc((0.0, y, 0.0), r, half, cover)]
    face = WHITE if rng.random() < 0.7 else paint(rng, plain=1.0)
    parts.append(disc((0, y, half), r * 0.86, 0.02, face))
    ink = WHITE if face.name == "black" else BLACK
    for k in range(12):
        angle = 2 * math.pi * k / 12
        at = (r * 0.7 * math.sin(angle), y + r * 0.7 * math.cos(angle), half + 0.02)
        parts.append(blob(at, (0.022,) * 3, ink))
    for long, thick in ((0.35, 0.026), (0.58, 0.018)):
        angle = float(rng.uniform(0, 2 * math.pi))
        at = (r * long / 2 * math.sin(angle), y + r * long / 2 * math.cos(angle), half + 0.03)
        parts.append(blob(at, (thick, r * long / 2, 0.012), ink, eps=BOX, turn=euler(roll=-angle)))
    for s in (-1, 1):
        foot = np.array([s * r * 0.75, 0.03, 0.0])
        parts += tube(np.array([s * r * 0.5, y - r * 0.8, 0.0]), [foot], 0.04, metal)
    if rng.random() < 0.6:  # bells and what strikes them
        for s in (-1, 1):
            bell, turn = (s * r * 0.55, y + r * 0.98, 0.0), euler(roll=-s * 0.5)
            parts.append(blob(bell, (r * 0.3, r * 0.2, r * 0.3), metal, eps=(0.8, 1), taper=-0.3, turn=turn))
        parts += tube(np.array([0, y + r * 0.9, 0]), [np.array([0, y + r * 1.3, 0])], 0.02, metal)
        parts.append(blob((0, y + r * 1.3, 0), (0.05,) * 3, metal))
    return parts


def _radio(rng: np.random.Generator, cover: Paint) -> list[Part]:
    trim, knob = paint(rng, plain=0.9), paint(rng, plain=1.0)
    wide, high, deep = rng.uniform(0.35, 0.5), rng.uniform(0.2, 0.32), rng.uniform(0.1, 0.18)
    parts = [blob((0, high, 0), (wide, high, deep), cover, eps=(0.2, float(rng.uniform(0.15, 0.5))))]
    twin = rng.random() < 0.4
    r = min(high * 0.62, wide * 0.36)
    for x in (-wide * 0.58, wide * 0.58) if twin else (-wide * 0.5,):
        parts.append(disc((x, high * 0.85, deep), r, 0.025, BLACK if rng.random() < 0.6 else trim))
        parts.append(disc((x, high * 0.85, deep + 0.02), r * 0.72, 0.02, named("grey")))
        parts.append(blob((x, high * 0.85, deep + 0.03), (r * 0.28, r * 0.28, 0.03), BLACK))
    middle = 0.0 if twin else wide * 0.45
    parts.append(blob((middle, high * 1.4, deep), (wide * 0.3, high * 0.22, 0.025), trim, eps=BOX))
    for k in (-1, 1):
        at = (middle + k * wide * 0.16, high * 0.7, deep + 0.01)
        parts.append(disc(at, wide * 0.09, 0.04, knob))
    if rng.random() < 0.6:
        left, right = np.array([-wide * 0.8, 1.9 * high, 0]), np.array([wide * 0.8, 1.9 * high, 0])
        rise = [0, rng.uniform(0.12, 0.25), 0]
        parts += tube(left, [left + rise, right + rise, right], 0.03, trim)
    if rng.random() < 0.7:
        root = np.array([wide * rng.choice([-0.85, 0.85]), 2 * high, -deep * 0.5])
        tip = root + [rng.uniform(-0.4, 0.4), rng.uniform(0.25, 0.5), 0]
        parts += [*tube(root, [tip], 0.014, named("grey")), blob(tip, (0.025,) * 3, named("grey"))]
    return parts


def _headphones(rng: np.random.Generator, cover: Paint) -> list[Part]:
    pad, r = paint(rng, plain=1.0) if rng.random() < 0.5 else BLACK, rng.uniform(0.3, 0.38)
    cup, y = rng.uniform(0.15, 0.21), rng.uniform(0.2, 0.25)
    angles = np.linspace(-math.pi / 2, math.pi / 2, 10)
    arc = [np.array([r * math.sin(a), y + 0.12 + 1.15 * r * math.cos(a), 0.0]) for a in angles]
    parts = tube(arc[0], arc[1:], rng.uniform(0.03, 0.05), cover)
    parts += tube(arc[3], arc[4:7], rng.uniform(0.05, 0.065), pad)
    lean = rng.uniform(0, 0.25)
    for s in (-1, 1):
        turn = euler(roll=math.pi / 2 + s * lean)
        out = np.array([s * 0.06, 0.0, 0.0])
        at = np.array([s * (r - 0.01), y, 0.0])
        parts += tube(np.array([s * r, y + 0.14, 0.0]), [at + out], 0.03, cover)
        parts.append(blob(at - out, (cup, 0.055, cup * 0.9), pad, eps=(0.7, 1), turn=turn))
        parts.append(blob(at + out * 0.6, (cup * 0.95, 0.06, cup * 0.85), cover, eps=(0.4, 1), turn=turn))
        parts.append(blob(at + out * 1.5, (cup * 0.6, 0.03, cup * 0.55), pad, eps=EDGED, turn=turn))
    return parts


def _controller(rng: np.random.Generator, cover: Paint) -> list[Part]:
    """Upright, its buttons to the front."""
    wide, high, deep = rng.uniform(0.32, 0.42), rng.uniform(0.15, 0.2), rng.uniform(0.08, 0.12)
    y, stick = 0.42, BLACK if cover.name != "black" else named("grey")
    parts = [blob((0, y, 0), (wide, high, deep), cover, eps=(0.5, 0.6))]
    for s in (-1, 1):
        turn = euler(roll=s * rng.uniform(0.2, 0.5))
        at = (s * wide * 0.85, y - high * 0.8, 0.0)
        parts.append(blob(at, (wide * 0.28, high * 1.3, deep * 1.1), cover, turn=turn))
        parts.append(
            blob(
                (s * wide * 0.6, y + high * 0.95, -deep * 0.3),
                (wide * 0.25, 0.04, 0.05),
                stick,
                eps=(0.4, 0.6),
            )
        )
        parts.append(disc((s * wide * 0.33, y - high * 0.35, deep), wide * 0.14, 0.03, stick))
        parts.append(disc((s * wide * 0.33, y - high * 0.35, deep + 0.05), wide * 0.1, 0.02, stick))
    for size in ((wide * 0.17, wide * 0.055, 0.03), (wide * 0.055, wide * 0.17, 0.03)):
        parts.append(blob((-wide * 0.65, y + high * 0.25, deep * 0.95), size, stick, eps=BOX))
    bright = rng.random() < 0.7
    for k, name in enumerate(("green", "red", "blue", "yellow")):
        way = np.array([math.sin(k * math.pi / 2), -math.cos(k * math.pi / 2)]) * wide * 0.13
        at = (wide * 0.65 + way[0], y + high * 0.25 + way[1], deep * 0.97)
        parts.append(disc(at, wide * 0.055, 0.03, named(name) if bright else stick))
    if rng.random() < 0.5:
        parts.append(blob((0, y + high * 0.3, deep), (wide * 0.25, high * 0.25, 0.02), stick, eps=BOX))
    return parts


def _screen(rng: np.random.Generator, cover: Paint) -> list[Part]:
    wide, high = rng.uniform(0.35, 0.5), rng.uniform(0.22, 0.34)
    old, shown = rng.random() < 0.4, paint(rng, plain=0.4)
    deep = rng.uniform(0.15, 0.3) if old else rng.uniform(0.02, 0.05)
    rise = rng.uniform(0.02, 0.08) if old else rng.uniform(0.1, 0.22)
    y = rise + high
    front = min(deep, 0.06) + 0.02
    parts = [blob((0, y, 0), (wide, high, front), cover, eps=(0.15, 0.2))]
    if old:
        back = blob(
            (0, y, -deep * 0.8),
            (high * 0.9, deep, high * 0.8),
            cover,
            eps=(0.3, 0.4),
            taper=0.35,
            turn=FACING,
        )
        parts.append(back)
    parts.append(
        blob((0, y + high * 0.04, front), (wide * 0.88, high * 0.82, 0.015), shown, eps=(0.12, 0.15))
    )
    if old:
        for s in (-1, 1):
            parts.append(blob((s * wide * 0.6, rise / 2, 0), (0.04, rise / 2 + 0.02, 0.08), BLACK, eps=BOX))
        if rng.random() < 0.6:
            for s in (-1, 1):
                root = np.array([0, y + high, -0.05])
                parts += tube(root, [root + [s * 0.25, rng.uniform(0.2, 0.35), 0]], 0.014, named("grey"))
    else:
        parts.append(blob((0, rise / 2, -0.04), (0.06, rise / 2 + 0.06, 0.03), cover, eps=BOX))
        parts.append(blob((0, 0.02, -0.02), (wide * 0.45, 0.02, 0.14), cover, eps=(0.3, 0.6)))
    return parts


# ---- instruments


def instrument(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A guitar or a drum."""
    return _guitar(rng) if rng.random() < 0.65 else _drum(rng)


def _guitar(rng: np.random.Generator) -> tuple[str, list[Part]]:
    wood, dark = paint(rng, plain=0.9), named("brown") if rng.random() < 0.6 else BLACK
    r, deep = rng.uniform(0.22, 0.3), rng.uniform(0.035, 0.09)
    eps = (0.3, 1.0)
    parts = [blob((0, r, 0), (r, deep, r * 0.9), wood, eps=eps, turn=FACING)]
    upper, y = r * rng.uniform(0.68, 0.85), r * 1.85
    parts.append(blob((0, y, 0), (upper, deep, upper), wood, eps=eps, turn=FACING))
    if rng.random() < 0.35:  # horns, no hole
        for s in (-1, 1):
            at, turn = (s * upper * 0.75, y + upper * 0.5, 0.0), euler(roll=-s * 0.3)
            parts.append(blob(at, (upper * 0.25, upper * 0.7, deep), wood, eps=(1, 0.4), turn=turn))
        parts.append(
            blob((r * 0.1, r * 1.1, deep), (r * 0.55, r * 0.6, 0.012), paint(rng, plain=1.0), eps=(0.6, 0.6))
        )
    else:
        parts.append(disc((0, y - upper * 0.25, deep), r * 0.32, 0.015, BLACK))
    parts.append(blob((0, r * 0.75, deep), (r * 0.4, 0.03, 0.025), dark, eps=BOX))
    long, thin = rng.uniform(0.35, 0.55), rng.uniform(0.03, 0.045)
    parts.append(blob((0, y + long * 0.75, deep * 0.8), (thin, long, 0.025), dark, eps=BOX))
    end = y + long * 1.75
    parts.append(blob((0, end + 0.06, deep * 0.5), (thin * 1.8, 0.1, 0.022), wood, eps=BOX, taper=0.2))
    for s in (-1, 1):
        for k in range(3):
            parts.append(blob((s * thin * 2.2, end + 0.05 * k, deep * 0.5), (0.03, 0.014, 0.014), WHITE))
    lean = euler(roll=float(rng.normal(0, 0.25)))
    return f"a {wood.name} guitar", turned(parts, lean)


def _drum(rng: np.random.Generator) -> tuple[str, list[Part]]:
    shell, rim = paint(rng, plain=0.6), paint(rng, plain=1.0)
    r, half = rng.uniform(0.3, 0.45), rng.uniform(0.15, 0.35)
    parts = [blob((0, half, 0), (r, half, r), shell, eps=(0.1, 1), taper=rng.uniform(-0.15, 0.25))]
    for y in (0.03, 2 * half - 0.02):
        parts.append(blob((0, y, 0), (r * 1.08, 0.035, r * 1.08), rim, eps=EDGED))
    parts.append(blob((0, 2 * half + 0.01, 0), (r * 0.98, 0.02, r * 0.98), WHITE, eps=EDGED))
    if rng.random() < 0.6:  # cords, up and down
        count = int(rng.integers(5, 9))
        for k in range(count):
            a, b = 2 * math.pi * k / count, 2 * math.pi * (k + 0.5) / count
            low = np.array([r * math.sin(a), 0.05, r * math.cos(a)]) * [1.03, 1, 1.03]
            top = np.array([r * math.sin(b), 2 * half - 0.04, r * math.cos(b)]) * [1.03, 1, 1.03]
            parts += tube(low, [top], 0.014, rim)
    if rng.random() < 0.5:  # sticks on it
        for s in (-1, 1):
            tail = np.array([s * 0.2, 2 * half + 0.05, r * 1.1])
            tip = np.array([-s * 0.1, 2 * half + 0.06, -r * rng.uniform(0, 0.5)])
            parts += [*tube(tail, [tip], 0.018, named("beige")), blob(tip, (0.035,) * 3, named("beige"))]
    return f"a {shell.name} drum", parts
