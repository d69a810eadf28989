"""Families of plain shapes: solids, superquadrics, turned shapes, extrusions, frames. Results as in living.py."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from guidance.pocket.objects import (
    BOX,
    CYLINDER,
    FACING,
    STRIPES,
    Part,
    blob,
    euler,
    paint,
    tube,
)


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


def blobs(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """Two to six superquadrics grown on one another, turned any way; half of them symmetric left to right."""
    materials = [paint(rng, plain=0.5) for _ in range(int(rng.integers(1, 4)))]
    symmetric = rng.random() < 0.5

    def random_turn(spread: float) -> np.ndarray:
        return euler(*(float(a) for a in rng.uniform(-spread, spread, 3)))

    parts = [
        blob(
            (0, 0.5, 0), rng.uniform(0.2, 0.45, 3), materials[0],
            eps=(float(rng.uniform(0.15, 1.2)), float(rng.uniform(0.15, 1.2))), taper=float(rng.uniform(-0.5, 0.5)),
            turn=euler(pitch=float(rng.uniform(-0.5, 0.5))) if symmetric else random_turn(math.pi),
        )
    ]  # fmt: skip
    mirror = np.diag([-1.0, 1.0, 1.0])
    for _ in range(int(rng.integers(1, 6))):
        host = parts[int(rng.integers(len(parts)))]
        way = rng.normal(0, 1, 3)
        way /= np.linalg.norm(way)
        at = host.centre + host.rotation @ (way * host.radii * rng.uniform(0.7, 1.1))
        part = blob(
            at, host.radii.mean() * rng.uniform(0.4, 0.9) * rng.uniform(0.5, 1.4, 3),
            materials[int(rng.integers(len(materials)))],
            eps=(float(rng.uniform(0.15, 1.2)), float(rng.uniform(0.15, 1.2))), taper=float(rng.uniform(-0.6, 0.6)),
            turn=random_turn(math.pi),
        )  # fmt: skip
        parts.append(part)
        if symmetric:  # a mirrored superquadric is one too: x of the world and x of the part both flip
            parts.append(replace(part, centre=mirror @ part.centre, rotation=mirror @ part.rotation @ mirror))
    names = " and ".join(dict.fromkeys(m.name for m in materials))
    return f"a {names} sculpture", parts


def revolution(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A turned shape: a smooth random profile about the vertical, in frusta."""
    cover, other = paint(rng, plain=0.4), paint(rng, plain=1.0)
    count, high = int(rng.integers(7, 12)), rng.uniform(0.6, 1.3)
    t = np.linspace(0, 1, count + 1)
    waves = sum(
        rng.normal(0, 0.5 / k) * np.cos(math.pi * k * t + rng.uniform(0, math.pi)) for k in (1, 2, 3, 4)
    )
    profile = rng.uniform(0.2, 0.34) * np.exp(0.9 * np.asarray(waves))
    profile = np.clip(profile, 0.04, 0.55)
    step = high / count
    banded = rng.random() < 0.3
    parts = []
    for k in range(count):
        low, up = profile[k], profile[k + 1]
        material = other if banded and k % 3 == 2 else cover
        if material.pattern == STRIPES and material.axis == 1:  # one pattern along the whole height
            middle, half = (k + 0.5) * step, step / 2
            material = replace(
                material, frequency=2 * material.frequency * half,
                phase=material.phase + 2 * math.pi * material.frequency * middle,
            )  # fmt: skip
        parts.append(
            blob(
                (0, (k + 0.5) * step, 0), ((low + up) / 2, step * 0.52, (low + up) / 2), material,
                eps=(0.05, 1.0), taper=(up - low) / (up + low),
            )
        )  # fmt: skip
    return f"a turned {cover.name} shape" + (f" with {other.name} bands" if banded else ""), parts


def extrusion(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A flat outline of some thickness: letters, star, heart, arrow, cross, ring, gear."""
    cover, other = paint(rng, plain=0.5), paint(rng, plain=1.0)
    deep, bar = rng.uniform(0.08, 0.28), rng.uniform(0.09, 0.16)
    strokes: dict[str, list[tuple[tuple[float, float], tuple[float, float]]]] = {
        "letter L": [((-0.3, 0), (-0.3, 1)), ((-0.3, 0), (0.3, 0))],
        "letter T": [((0, 0), (0, 1)), ((-0.4, 1), (0.4, 1))],
        "letter H": [((-0.3, 0), (-0.3, 1)), ((0.3, 0), (0.3, 1)), ((-0.3, 0.5), (0.3, 0.5))],
        "letter E": [((-0.3, 0), (-0.3, 1)), *(((-0.3, y), (0.3, y)) for y in (0, 0.5, 1))],
        "letter A": [((-0.4, 0), (0, 1)), ((0.4, 0), (0, 1)), ((-0.2, 0.4), (0.2, 0.4))],
        "letter N": [((-0.3, 0), (-0.3, 1)), ((0.3, 0), (0.3, 1)), ((-0.3, 1), (0.3, 0))],
        "cross": [((0, 0), (0, 1)), ((-0.5, 0.5), (0.5, 0.5))],
        "arrow": [((0, 0), (0, 0.6)), ((-0.35, 0.55), (0, 1)), ((0.35, 0.55), (0, 1))],
        "star": [], "heart": [], "ring": [], "gear": [],
    }  # fmt: skip
    kind = str(rng.choice(list(strokes)))
    parts: list[Part] = []
    for a, b in strokes[kind]:
        (x0, y0), (x1, y1) = a, b
        angle, length = math.atan2(x1 - x0, y1 - y0), math.hypot(x1 - x0, y1 - y0)
        size = (bar, length / 2 + bar * 0.9, deep)
        parts.append(blob(((x0 + x1) / 2, (y0 + y1) / 2, 0), size, cover, eps=BOX, turn=euler(roll=-angle)))
    if kind == "star":
        arms = int(rng.integers(4, 8))
        for k in range(arms):
            angle = 2 * math.pi * k / arms
            at = (0.28 * math.sin(angle), 0.5 + 0.28 * math.cos(angle), 0)
            parts.append(blob(at, (0.16, 0.3, deep), cover, eps=BOX, taper=-0.9, turn=euler(roll=-angle)))
    elif kind == "heart":
        for s in (-1, 1):
            size = (0.22, 0.4, deep)
            at = (s * 0.17, 0.5, 0)
            parts.append(blob(at, size, cover, eps=(0.8, 0.4), turn=euler(roll=-s * 0.72)))
    elif kind == "ring":
        for k in range(12):
            angle = 2 * math.pi * k / 12
            at = (0.42 * math.sin(angle), 0.5 + 0.42 * math.cos(angle), 0)
            parts.append(blob(at, (0.15, bar, deep), cover, eps=(0.3, 0.3), turn=euler(roll=-angle)))
    elif kind == "gear":
        teeth = int(rng.integers(6, 11))
        parts.append(blob((0, 0.5, 0), (0.38, deep, 0.38), cover, eps=CYLINDER, turn=FACING))
        parts.append(blob((0, 0.5, 0), (0.15, deep * 1.25, 0.15), other, eps=CYLINDER, turn=FACING))
        for k in range(teeth):
            angle = 2 * math.pi * k / teeth
            at = (0.42 * math.sin(angle), 0.5 + 0.42 * math.cos(angle), 0)
            parts.append(blob(at, (0.07, 0.09, deep * 0.9), cover, eps=BOX, turn=euler(roll=-angle)))
    if rng.random() < 0.4:
        low = min(float(p.centre[1]) for p in parts) - 0.2
        parts.append(blob((0, low, 0), (0.4, 0.06, max(0.2, deep * 1.5)), other, eps=BOX))
        return f"a {cover.name} {kind} on a {other.name} base", parts
    return f"a {cover.name} {kind}", parts


def frame(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """Posts between a floor and a roof, round something: a pavilion, a cage, a well, a lantern's body."""
    bars, cover, inner = paint(rng, plain=0.8), paint(rng, plain=0.7), paint(rng, plain=0.7)
    sides, wide = int(rng.choice([4, 4, 6, 8])), rng.uniform(0.22, 0.45)
    high, thick = rng.uniform(0.2, 0.55), rng.uniform(0.015, 0.05)
    above = wide * rng.uniform(0.6, 1.3)  # the roof's end of the posts
    floor = rng.uniform(0.03, 0.12)
    eps = (0.15, 0.15) if sides == 4 else CYLINDER
    square = euler(yaw=float(rng.uniform(0, 0.4))) if sides == 4 and rng.random() < 0.3 else np.eye(3)
    spread = 0.75 if sides == 4 else 0.92
    parts = [blob((0, floor, 0), (wide, floor, wide), cover, eps=eps, turn=square)]
    for k in range(sides):
        angle = 2 * math.pi * (k + 0.5) / sides
        out = (
            square
            @ np.array([math.sin(angle), 0, math.cos(angle)])
            * (spread * math.sqrt(2) if sides == 4 else spread)
        )
        parts += tube(
            out * wide * 0.9 + [0, floor, 0], [out * above * 0.9 + [0, floor + 2 * high, 0]], thick, bars
        )
    roof = rng.uniform(0.08, 0.35)
    y = 2 * floor + 2 * high * 0.96
    point = rng.uniform(0.2, 0.9)
    parts.append(
        blob(
            (0, y + roof, 0),
            (above * rng.uniform(0.7, 0.95), roof, above * 0.85),
            cover,
            eps=eps,
            taper=-point,
            turn=square,
        )
    )
    if rng.random() < 0.5:
        knob = rng.uniform(0.04, 0.09)
        parts.append(blob((0, y + 2 * roof + knob * 0.7, 0), (knob, knob, knob), bars))
    if rng.random() < 0.7:
        size = wide * rng.uniform(0.15, 0.5)
        tall = min(high, size * rng.uniform(0.8, 2.5))
        parts.append(
            blob((0, 2 * floor + tall, 0), (size, tall, size), inner, eps=(float(rng.uniform(0.2, 1)), 1.0))
        )
    if rng.random() < 0.35:  # panes between the posts
        pane = paint(rng, plain=1.0)
        parts.append(
            blob(
                (0, 2 * floor + high, 0),
                (min(wide, above) * 0.85, high, min(wide, above) * 0.85),
                pane,
                eps=eps,
                turn=square,
            )
        )
    if rng.random() < 0.35:  # an arm that holds it to a plate
        s = float(rng.choice([-1, 1]))
        plate = np.array([s * wide * rng.uniform(1.4, 1.9), y * rng.uniform(0.5, 0.8), 0])
        parts.append(blob(plate, (0.05, rng.uniform(0.15, 0.3), 0.1), bars, eps=(0.5, 0.6)))
        bow = np.array([plate[0] * 0.7, y + roof * rng.uniform(0.6, 1.6), 0])
        parts += tube(plate, [bow, np.array([0, y + roof, 0])], thick * 1.2, bars)
    return f"a {bars.name} frame with a {cover.name} roof", parts
