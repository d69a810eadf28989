"""Families of made things: vehicles, buildings, vessels, furniture, tools, toys. World and results as in living.py."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from guidance.pocket.objects import (
    BLACK,
    BOX,
    CONE,
    CYLINDER,
    FACING,
    LYING,
    WHITE,
    Part,
    blob,
    euler,
    eyes,
    named,
    paint,
    tube,
    turned,
)


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
    for s in (-1, 1):
        for end in (-1, 1):
            at = (s * wide * 0.92, wheel, end * long * 0.62)
            parts.append(blob(at, (wheel, 0.07, wheel), BLACK, eps=CYLINDER, turn=LYING))
            parts.append(
                blob(
                    (s * (wide * 0.92 + 0.06), wheel, at[2]),
                    (wheel * 0.5, 0.03, wheel * 0.5),
                    WHITE,
                    turn=LYING,
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


def bottle(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A bottle, jar or flask: body, shoulder, neck, cap and a label."""
    glass, cap, label = paint(rng, plain=0.8), paint(rng, plain=1.0), paint(rng, plain=0.4)
    wide, high = rng.uniform(0.16, 0.34), rng.uniform(0.25, 0.48)
    squareness = float(rng.choice([0.2, 1.0], p=[0.3, 0.7]))
    deep = wide * (1.0 if squareness == 1.0 else rng.uniform(0.5, 1.0))
    edge = float(rng.uniform(0.1, 0.5))
    parts = [blob((0, high, 0), (wide, high, deep), glass, eps=(edge, squareness))]
    neck, shoulder = wide * rng.uniform(0.25, 0.7), rng.uniform(0.06, 0.2)
    y = 2 * high
    narrow = (neck - wide) / (neck + wide)
    middle = (neck + wide) / 2
    size = (middle, shoulder, middle * deep / wide)
    parts.append(blob((0, y + shoulder * 0.9, 0), size, glass, eps=(0.15, squareness), taper=narrow))
    y += 1.8 * shoulder
    tall = rng.uniform(0.04, 0.16)
    parts.append(blob((0, y + tall, 0), (neck, tall, neck), glass, eps=CYLINDER))
    lid = rng.uniform(0.04, 0.1)
    parts.append(blob((0, y + 2 * tall + lid * 0.8, 0), (neck * 1.15, lid, neck * 1.15), cap, eps=(0.2, 1)))
    if rng.random() < 0.7:
        band = high * rng.uniform(0.3, 0.6)
        at = (0, high * rng.uniform(0.8, 1.1), 0)
        parts.append(blob(at, (wide * 1.02, band, deep * 1.02), label, eps=(0.1, squareness)))
        return f"a {glass.name} bottle with a {cap.name} cap and a {label.name} label", parts
    return f"a {glass.name} bottle with a {cap.name} cap", parts


def tool(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A screwdriver, brush, spoon or axe, upright or leaning."""
    grip, head = paint(rng, plain=0.6), paint(rng, plain=1.0)
    kind = ("screwdriver", "brush", "spoon", "axe")[rng.integers(4)]
    long, thick = rng.uniform(0.3, 0.5), rng.uniform(0.05, 0.1)
    parts = [blob((0, long, 0), (thick, long, thick), grip, eps=(0.3, 1), taper=rng.uniform(-0.3, 0.3))]
    y = 2 * long
    if kind == "screwdriver":
        shaft = rng.uniform(0.2, 0.4)
        parts.append(blob((0, y + shaft, 0), (thick * 0.4, shaft, thick * 0.4), head, eps=CYLINDER))
        parts.append(blob((0, y + 2 * shaft, 0), (thick * 0.7, 0.08, thick * 0.2), head, eps=BOX, taper=-0.4))
    elif kind == "brush":
        wide, tall = rng.uniform(0.12, 0.3), rng.uniform(0.1, 0.2)
        hair = paint(rng, plain=0.8)
        parts.append(blob((0, y + 0.05, 0), (wide, 0.08, thick * 1.4), head, eps=BOX))
        parts.append(blob((0, y + 0.1 + tall, 0), (wide * 0.9, tall, thick * 1.2), hair, eps=(0.2, 0.3)))
    elif kind == "spoon":
        wide, tall = rng.uniform(0.13, 0.25), rng.uniform(0.16, 0.3)
        parts.append(blob((0, y + tall * 0.8, 0.02), (wide, tall, rng.uniform(0.04, 0.1)), head))
    else:
        reach, tall, s = rng.uniform(0.15, 0.3), rng.uniform(0.1, 0.2), rng.choice([-1, 1])
        turn = euler(roll=-s * math.pi / 2)
        parts.append(
            blob((s * reach * 0.8, y - tall, 0), (tall, reach, 0.05), head, eps=BOX, taper=0.4, turn=turn)
        )
        parts.append(blob((-s * 0.06, y - tall, 0), (0.1, tall * 0.7, 0.07), head, eps=BOX))
    yaw, lean = rng.uniform(0, 2 * math.pi), rng.uniform(-0.3, 0.3)
    turn = euler(yaw=yaw) @ euler(roll=lean)
    parts = turned(parts, turn)
    return f"a {kind} with a {grip.name} handle and a {head.name} head", parts


def toy(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A snowman, ring stack, spinning top or train."""
    first, second, third = paint(rng, plain=0.7), paint(rng, plain=0.8), paint(rng, plain=1.0)
    kind = rng.integers(4)
    parts: list[Part] = []
    if kind == 0:
        size, y = rng.uniform(0.3, 0.4), 0.0
        for _ in range(int(rng.integers(2, 4))):
            parts.append(blob((0, y + size, 0), (size, size, size), first))
            y, size = y + 1.7 * size, size * rng.uniform(0.65, 0.85)
        size = parts[-1].radii[0]
        y = parts[-1].centre[1]
        parts += eyes(y + size * 0.25, size * 0.88, size * 0.4, size * 0.13)
        parts.append(
            blob((0, y, size * 1.2), (size * 0.2, size * 0.5, size * 0.2), third, eps=CONE, taper=-0.9, turn=FACING)
        )  # fmt: skip
        parts.append(blob((0, y - size * 0.85, 0), (size * 0.85, 0.07, size * 0.85), second, eps=(0.6, 1)))
        return f"a {first.name} snowman with a {second.name} scarf", parts
    if kind == 1:
        count = int(rng.integers(3, 6))
        wide, thin = rng.uniform(0.4, 0.55), rng.uniform(0.09, 0.14)
        for k in range(count):
            ring = (first, second, third)[k % 3]
            reach = wide * (1 - 0.6 * k / count)
            parts.append(blob((0, thin * (1 + 1.9 * k), 0), (reach, thin, reach), ring, eps=(0.9, 1)))
        parts.append(blob((0, thin * 2 * count, 0), (0.13, 0.15, 0.13), third))
        return f"a stack of rings in {first.name}, {second.name} and {third.name}", parts
    if kind == 2:
        wide, high = rng.uniform(0.35, 0.5), rng.uniform(0.15, 0.3)
        parts.append(
            blob((0, high * 0.9, 0), (wide * 0.55, high, wide * 0.55), first, eps=(0.2, 1), taper=0.8)
        )
        parts.append(blob((0, high * 2, 0), (wide, high * 0.5, wide), second, eps=(0.8, 1)))
        parts.append(blob((0, high * 2.6 + 0.1, 0), (0.05, 0.18, 0.05), third, eps=CYLINDER))
        return f"a {first.name} and {second.name} spinning top", parts
    wide = rng.uniform(0.18, 0.26)
    boiler, long = rng.uniform(0.14, 0.2), rng.uniform(0.4, 0.55)
    parts.append(blob((0, 0.2, 0), (wide, 0.06, long), third, eps=BOX))
    parts.append(
        blob((0, 0.26 + boiler, long * 0.25), (boiler, long * 0.65, boiler), first, eps=CYLINDER, turn=FACING)
    )
    cab = rng.uniform(0.2, 0.3)
    parts.append(blob((0, 0.24 + cab, -long * 0.6), (wide, cab, long * 0.35), second, eps=BOX))
    parts.append(blob((0, 0.26 + 2 * cab, -long * 0.6), (wide * 1.15, 0.04, long * 0.42), third, eps=BOX))
    chimney = (0, 0.3 + 2 * boiler + 0.08, long * 0.6)
    parts.append(blob(chimney, (0.07, 0.13, 0.07), third, eps=CYLINDER, taper=0.3))
    for s in (-1, 1):
        for z in (-0.6, 0.0, 0.6):
            parts.append(
                blob((s * wide, 0.13, z * long), (0.13, 0.04, 0.13), BLACK, eps=CYLINDER, turn=LYING)
            )
    return f"a {first.name} toy train with a {second.name} cab", parts


def aeroplane(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """An aeroplane: hull, wings, tail, engines or a propeller."""
    hull, wing = paint(rng, plain=0.5), paint(rng, plain=0.8)
    long, thick = rng.uniform(0.55, 0.75), rng.uniform(0.1, 0.2)
    span, chord = rng.uniform(0.5, 0.75), rng.uniform(0.13, 0.22)
    y, sweep = 0.35, rng.uniform(0.0, 0.5)
    parts = [blob((0, y, 0), (thick, thick, long), hull)]
    height = rng.uniform(-0.6, 0.9) * thick
    for s in (-1, 1):
        at = (s * span * 0.55, y + height, 0.05 - math.sin(sweep) * span * 0.4)
        parts.append(blob(at, (span * 0.55, 0.035, chord), wing, eps=(1.0, 0.5), turn=euler(yaw=s * sweep)))
        tail = (s * span * 0.2, y + thick * 0.4, -long * 0.88)
        parts.append(blob(tail, (span * 0.22, 0.03, chord * 0.5), wing, eps=(1.0, 0.5)))
        if span > 0.62:
            engine = (s * span * 0.5, y + height - 0.08, 0.08)
            parts.append(blob(engine, (0.06, 0.06, 0.14), hull, eps=(0.5, 1)))
    parts.append(
        blob((0, y + thick + 0.1, -long * 0.88), (0.03, 0.2, chord * 0.55), wing, eps=(0.5, 0.6), taper=-0.3)
    )
    parts.append(blob((0, y + thick * 0.75, long * 0.35), (thick * 0.6, thick * 0.5, 0.16), named("blue")))
    if span <= 0.62:
        turn = euler(roll=float(rng.uniform(0, 3)))
        parts.append(blob((0, y, long * 1.02), (0.25, 0.035, 0.03), BLACK, turn=turn))
        parts.append(blob((0, y, long), (0.06, 0.06, 0.08), named("yellow")))
    return f"a {hull.name} aeroplane with {wing.name} wings", parts


def boat(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A ship or sailing boat."""
    hull, upper = paint(rng, plain=0.6), paint(rng, plain=0.8)
    long, wide, deep = rng.uniform(0.5, 0.75), rng.uniform(0.2, 0.32), rng.uniform(0.12, 0.22)
    parts = [blob((0, deep, 0), (wide * 0.85, deep, long * 0.85), hull, eps=(0.4, 0.9), taper=0.3)]
    if rng.random() < 0.5:
        mast = rng.uniform(0.4, 0.6)
        parts.append(blob((0, 2 * deep + mast, 0.05), (0.03, mast, 0.03), named("brown"), eps=CYLINDER))
        at = (0, 2 * deep + mast, -long * 0.28)
        parts.append(blob(at, (0.03, mast * 0.8, long * 0.22), upper, eps=(0.2, 0.5), taper=-0.9))
        return f"a {hull.name} sailing boat with a {upper.name} sail", parts
    cabin = rng.uniform(0.12, 0.2)
    parts.append(blob((0, 2 * deep + cabin, -0.1), (wide * 0.6, cabin, long * 0.4), upper, eps=(0.2, 0.3)))
    chimney = rng.uniform(0.1, 0.18)
    at = (0, 2 * deep + 2 * cabin + chimney * 0.8, -0.15)
    parts.append(blob(at, (0.08, chimney, 0.08), paint(rng, plain=0.6), eps=CYLINDER))
    return f"a {hull.name} ship with a {upper.name} cabin", parts


def teapot(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A teapot: belly, lid, spout, handle."""
    china, other = paint(rng, plain=0.4), paint(rng, plain=1.0)
    wide, high = rng.uniform(0.32, 0.45), rng.uniform(0.26, 0.38)
    parts = [blob((0, high, 0), (wide, high, wide), china, eps=(float(rng.uniform(0.6, 1)), 1))]
    parts.append(blob((0, 2 * high * 0.97, 0), (wide * 0.5, 0.07, wide * 0.5), other, eps=(0.7, 1)))
    parts.append(blob((0, 2 * high + 0.1, 0), (0.07, 0.07, 0.07), other))
    root = np.array([wide * 0.8, high * 0.8, 0])
    middle, lip = root + [0.2, 0.08, 0], root + [rng.uniform(0.28, 0.4), high * rng.uniform(0.6, 1.0), 0]
    parts += tube(root, [middle, lip], 0.075, china)
    top, bottom = np.array([-wide * 0.8, high * 1.4, 0]), np.array([-wide * 0.8, high * 0.6, 0])
    reach = rng.uniform(0.2, 0.35)
    bend = [top + [-reach, 0.03, 0], bottom + [-reach * 0.9, -0.02, 0], bottom]
    parts += tube(top, bend, 0.05, other)
    return f"a {china.name} teapot with a {other.name} handle", parts


def hammer(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A hammer or mallet, upright."""
    handle, head = paint(rng, plain=0.6), paint(rng, plain=0.8)
    long, thick = rng.uniform(0.4, 0.55), rng.uniform(0.05, 0.09)
    parts = [blob((0, long, 0), (thick, long, thick), handle, eps=(0.3, 1))]
    reach, wide = rng.uniform(0.2, 0.38), rng.uniform(0.11, 0.2)
    shape = BOX if rng.random() < 0.5 else CYLINDER
    parts.append(blob((0, 2 * long, 0), (wide, reach, wide), head, eps=shape, turn=LYING))
    yaw = euler(yaw=float(rng.uniform(0, math.pi)))
    parts = [replace(p, centre=yaw @ p.centre, rotation=yaw @ p.rotation) for p in parts]
    return f"a hammer with a {handle.name} handle and a {head.name} head", parts


def lamp(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A table lamp: base, pole, shade."""
    shade, base = paint(rng, plain=0.5), paint(rng, plain=0.9)
    wide, pole = rng.uniform(0.2, 0.32), rng.uniform(0.2, 0.38)
    foot = rng.uniform(0.04, 0.18)
    parts = [blob((0, foot, 0), (wide, foot, wide), base, eps=(float(rng.choice([0.2, 0.9])), 1))]
    parts.append(blob((0, 2 * foot + pole * 0.9, 0), (0.045, pole, 0.045), base, eps=CYLINDER))
    tall, reach = rng.uniform(0.16, 0.28), rng.uniform(0.25, 0.42)
    at = (0, 2 * foot + 1.7 * pole + tall, 0)
    parts.append(blob(at, (reach, tall, reach), shade, eps=(0.1, 1), taper=-rng.uniform(0.1, 0.5)))
    return f"a {base.name} table lamp with a {shade.name} shade", parts
