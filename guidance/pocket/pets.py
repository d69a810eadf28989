"""The family of pets, toys and statues of animals, of which a view from the front says little. Results as in living.py.

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
    Array,
    Paint,
    Part,
    blob,
    euler,
    eyes,
    named,
    paint,
    tube,
    turned,
)


def pet(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """An animal that sits upright, lies, stands or is a plush toy, its head turned, its tail free to any side."""
    fur, other = paint(rng, plain=0.45), paint(rng, plain=0.9)
    face = fur if rng.random() < 0.65 else paint(rng, plain=0.8)
    pose = str(rng.choice(["sits", "lies", "stands", "plush"], p=[0.45, 0.15, 0.2, 0.2]))
    head = rng.uniform(0.2, 0.36)
    body, neck, rear = _body(rng, pose, fur, other)
    skull = neck + np.array([rng.normal(0, 0.03), head * rng.uniform(0.5, 1.0), rng.uniform(-0.02, 0.12)])
    parts = body
    if skull[1] - neck[1] > 0.75 * head:
        parts += tube(neck - [0, 0.05, 0], [skull], head * rng.uniform(0.4, 0.65), fur)
    if rng.random() < 0.2:  # a collar or scarf
        high = rng.uniform(0.02, 0.06)
        ring = head * rng.uniform(0.6, 0.85)
        parts.append(blob(neck, (ring, high, ring), paint(rng, plain=0.7), eps=CYLINDER))
    parts += _head(rng, skull, head, face, other)
    if rng.random() < 0.85:
        parts += _tail(rng, rear, 2 * neck[1], fur, other)
    what = {"sits": "sitting", "lies": "lying", "stands": "standing", "plush": "plush"}[pose]
    return f"a {what} {fur.name} pet", parts


def _body(rng: np.random.Generator, pose: str, fur: Paint, other: Paint) -> tuple[list[Part], Array, Array]:
    """The trunk with its limbs, where the neck stands [3] and where a tail begins [3]."""
    sock = other if rng.random() < 0.4 else fur
    paw = rng.uniform(0.06, 0.11)
    if pose == "sits":
        return _sitting(rng, fur, other, sock, paw)
    if pose == "plush":
        return _plush(rng, fur, other, sock)
    wide, high, long = rng.uniform(0.15, 0.26), rng.uniform(0.15, 0.26), rng.uniform(0.32, 0.55)
    leg = rng.uniform(0.12, 0.32) if pose == "stands" else 0.0
    centre = np.array([0, 2 * leg + high * 0.95, 0])
    eps = (rng.uniform(0.7, 1.0), 1.0)
    parts = [blob(centre, (wide, high, long), fur, eps=eps)]
    for s in (-1, 1):
        for end in (-1, 1):
            if pose == "stands":
                hip = centre + [s * wide * 0.65, -high * 0.4, end * long * 0.7]
                foot = np.array([hip[0], paw * 0.6, hip[2] + rng.normal(0, 0.05)])
                parts += tube(hip, [foot], paw * rng.uniform(0.8, 1.0), fur)
            else:
                foot = np.array([s * wide * 0.8, paw * 0.6, end * long * 0.75 + 0.1])
                if end < 0:
                    parts.append(
                        blob((s * wide * 0.85, high * 0.6, -long * 0.45), (0.11, high * 0.65, 0.2), fur)
                    )
            parts.append(blob(foot + [0, 0, paw * 0.3], (paw, paw * 0.6, paw * rng.uniform(1.1, 1.8)), sock))
    if rng.random() < 0.3:
        parts.append(
            blob(centre - [0, high * 0.25, -long * 0.1], (wide * 0.9, high * 0.85, long * 0.92), other)
        )
    return parts, centre + [0, high * 0.6, long * 0.75], centre + [0, high * 0.4, -long * 0.93]


def _sitting(
    rng: np.random.Generator, fur: Paint, other: Paint, sock: Paint, paw: float
) -> tuple[list[Part], Array, Array]:
    """Upright on its haunches; a statue's body, without limbs, in two of five draws."""
    wide, high = rng.uniform(0.17, 0.34), rng.uniform(0.3, 0.5)
    deep = wide * rng.uniform(0.7, 1.2)
    flat = rng.uniform(0.25, 1.0)  # 1 egg-shaped, small cut off below and above
    lean, narrow = rng.uniform(-0.15, 0.2), rng.uniform(0.1, 0.5)
    turn = euler(pitch=lean)
    parts = [blob((0, high * 0.97, 0), (wide, high, deep), fur, eps=(flat, 1.0), taper=-narrow, turn=turn)]
    neck = np.array([0, high * 0.97, 0]) + turn @ np.array([0, high * 0.85, 0])
    if rng.random() < 0.6:
        apart, front = wide * rng.uniform(0.3, 0.6), deep * rng.uniform(0.7, 1.15)
        haunch = rng.uniform(0.35, 0.55)
        for s in (-1, 1):
            top = np.array([s * apart * 1.1, high * rng.uniform(0.9, 1.3), deep * 0.4])
            foot = np.array([s * apart, paw * 0.6, front])
            parts += tube(top, [foot], paw * rng.uniform(0.8, 1.1), fur)
            parts.append(blob(foot + [0, 0, paw * 0.4], (paw, paw * 0.6, paw * rng.uniform(1.1, 1.7)), sock))
            parts.append(
                blob(
                    (s * wide * 0.85, high * haunch * 0.9, deep * 0.1),
                    (wide * 0.4, high * haunch, deep * 0.75),
                    fur,
                )
            )
            hind = np.array([s * wide * 0.95, paw * 0.5, deep * rng.uniform(0.5, 0.9)])
            parts.append(blob(hind, (paw, paw * 0.5, paw * 1.7), sock))
    if rng.random() < 0.4:  # a bib
        share = rng.uniform(0.3, 0.6)
        at = (0, high * rng.uniform(1.0, 1.35), deep * 0.45)
        parts.append(blob(at, (wide * share, high * share, deep * 0.5), other, turn=turn))
    return parts, neck, np.array([0, rng.uniform(0.06, 0.2), -deep * 0.85])


def _plush(
    rng: np.random.Generator, fur: Paint, other: Paint, sock: Paint
) -> tuple[list[Part], Array, Array]:
    """A stuffed toy on its seat: legs to the front with soles, arms hanging to lifted, often another belly."""
    wide, high = rng.uniform(0.2, 0.32), rng.uniform(0.24, 0.36)
    deep = wide * rng.uniform(0.75, 1.0)
    limb = wide * rng.uniform(0.3, 0.45)
    parts = [blob((0, high * 0.95, 0), (wide, high, deep), fur, taper=-rng.uniform(0, 0.3))]
    if rng.random() < 0.5:
        parts.append(blob((0, high * 0.9, deep * 0.35), (wide * 0.65, high * 0.7, deep * 0.75), other))
    open_, lift = rng.uniform(0.1, 0.8), rng.uniform(0.2, 2.2)
    for s in (-1, 1):
        hip = np.array([s * wide * 0.7, limb, 0.05])
        way = np.array([s * math.sin(open_), 0, math.cos(open_)])
        foot = hip + way * rng.uniform(0.25, 0.4)
        parts += tube(hip, [foot], limb, fur)
        parts.append(blob(foot, (limb * 1.1, limb * 1.3, limb), fur, turn=euler(yaw=s * open_)))
        sole = foot + way * limb * 0.7
        parts.append(blob(sole, (limb * 0.8, limb, limb * 0.4), sock, turn=euler(yaw=s * open_)))
        shoulder = np.array([s * wide * 0.75, high * 1.5, 0])
        hand = shoulder + rng.uniform(0.22, 0.36) * np.array(
            [s * math.sin(lift), -math.cos(lift), rng.uniform(0.1, 0.7)]
        )
        parts += tube(shoulder, [hand], limb * 0.85, fur)
        parts.append(blob(hand, np.full(3, limb), sock if rng.random() < 0.5 else fur))
    return parts, np.array([0, high * 1.75, 0]), np.array([0, high * 0.4, -deep * 0.95])


def _head(rng: np.random.Generator, at: Array, size: float, face: Paint, other: Paint) -> list[Part]:
    """The skull with muzzle, eyes, ears, turned to a side and tilted."""
    r = np.array([rng.uniform(0.9, 1.2), rng.uniform(0.8, 1.0), rng.uniform(0.85, 1.05)]) * size
    parts = [blob(np.zeros(3), r, face, eps=(rng.uniform(0.75, 1.0), 1.0))]
    parts += _snout(rng, r, face, other)
    y, apart = rng.uniform(0.0, 0.3) * r[1], rng.uniform(0.32, 0.5) * r[0]
    z = r[2] * math.sqrt(max(1 - (y / r[1]) ** 2 - (apart / r[0]) ** 2, 0.2))
    look, eye = rng.random(), rng.uniform(0.1, 0.22) * r[0]
    if look < 0.45:
        parts += eyes(y, z * 0.97, apart, eye)
    elif look < 0.75:
        iris = paint(rng, plain=1.0)
        for s in (-1, 1):
            parts.append(blob((s * apart, y, z * 0.95), (eye, eye * 1.1, eye * 0.6), iris))
            parts.append(
                blob((s * apart, y, z * 0.95 + eye * 0.35), (eye * 0.4, eye * 0.8, eye * 0.4), BLACK)
            )
    else:  # closed
        for s in (-1, 1):
            parts.append(
                blob(
                    (s * apart, y, z * 0.98),
                    (eye * 1.3, eye * 0.25, eye * 0.4),
                    BLACK,
                    turn=euler(roll=s * 0.3),
                )
            )
    parts += _ears(rng, r, face, other)
    turn = euler(float(rng.normal(0, 0.35)), float(rng.normal(0, 0.12)), float(rng.normal(0, 0.1)))
    return turned(parts, turn, at)


def _snout(rng: np.random.Generator, r: Array, face: Paint, other: Paint) -> list[Part]:
    """Two cheeks or a muzzle, flat to long, a nose, sometimes a mouth; r [3] the skull's radii."""
    long = rng.uniform(0.2, 1.0) ** 1.5
    fur = other if rng.random() < 0.5 else face
    nose = named(str(rng.choice(["black", "pink", "brown"])))
    y, z = -rng.uniform(0.2, 0.4) * r[1], r[2] * (0.7 + 0.3 * long)
    wide = rng.uniform(0.25, 0.45)
    if rng.random() < 0.4:
        parts = [
            blob((s * wide * 0.6 * r[0], y, z * 0.98), r * [wide * 0.75, wide * 0.6, 0.3], fur)
            for s in (-1, 1)
        ]
    else:
        parts = [blob((0, y, z), r * [wide, wide * 0.75, 0.25 + 0.5 * long], fur)]
    tip = z + r[2] * (0.22 + 0.5 * long)
    small = rng.uniform(0.08, 0.15)
    parts.append(blob((0, y + 0.12 * r[1], tip), r * [small, small * 0.75, small * 0.7], nose))
    if rng.random() < 0.4:
        parts.append(blob((0, y - wide * 0.55 * r[1], z + r[2] * 0.15), r * [0.2, 0.04, 0.25], BLACK))
    return parts


def _ears(rng: np.random.Generator, r: Array, face: Paint, other: Paint) -> list[Part]:
    """Pointed, round, long or hanging, often of another colour within."""
    kind = str(rng.choice(["pointed", "round", "long", "hanging"], p=[0.4, 0.25, 0.15, 0.2]))
    size, apart = rng.uniform(0.25, 0.5), rng.uniform(0.5, 0.8)
    outer = face if rng.random() < 0.75 else other
    inner = named("pink") if rng.random() < 0.5 else other
    within = rng.random() < 0.6
    eps, taper, tall, thin = (1.0, 1.0), 0.0, size, 0.45
    if kind == "pointed":
        eps, taper, tall = CONE, -0.95, size * rng.uniform(1.0, 1.6)
    elif kind == "long":
        tall, size = size * rng.uniform(2.0, 3.2), size * 0.7
    elif kind == "hanging":
        tall, size, thin = size * rng.uniform(1.2, 2.0), size * 0.6, 0.9
    parts = []
    for s in (-1, 1):
        if kind == "hanging":
            at, turn = np.array([s * 1.0, 0.5 - tall * 0.7, 0.0]), euler(roll=s * rng.uniform(0.0, 0.4))
        else:
            lean = rng.uniform(0.05, 0.5)
            at = np.array([s * apart, math.sqrt(1 - apart**2) + tall * 0.6, 0.0])
            turn = euler(roll=-s * lean)
        radii = r * [size, tall, size * thin]
        parts.append(blob(at * r, radii, outer, eps=eps, taper=taper, turn=turn))
        if within and kind != "hanging":
            ahead = np.array([0, -0.1 * tall * r[1], radii[2] * 0.45])
            parts.append(
                blob(at * r + ahead, radii * [0.65, 0.7, 0.75], inner, eps=eps, taper=taper, turn=turn)
            )
    return parts


def _tail(rng: np.random.Generator, start: Array, height: float, fur: Paint, other: Paint) -> list[Part]:
    """Lifted beside or behind, lying round the body, or a tuft; its end often swollen or of another colour."""
    kind, s = rng.random(), float(rng.choice([-1, 1]))
    own = fur if rng.random() < 0.6 else paint(rng, plain=0.4)
    thick = rng.uniform(0.03, 0.07)
    if kind < 0.15:
        size = rng.uniform(0.06, 0.12)
        return [blob(start, (size, size, size), own if rng.random() < 0.5 else WHITE)]
    if kind < 0.7:  # lifted: out by an angle, up by another, swinging on
        out, up = rng.uniform(-1.9, 1.9), rng.uniform(0.2, 1.3)
        bow, length = rng.normal(0, 0.5), height * rng.uniform(0.3, 0.8)
        points, here = [], start
        for k in range(int(rng.integers(2, 4))):
            lift = up + bow * k
            way = np.array([math.sin(out) * math.cos(lift), math.sin(lift), -math.cos(out) * math.cos(lift)])
            if k == 0 and abs(out) > 0.8:  # past the body's side first
                way = np.array([math.sin(out), 0.1, -0.35])
            here = here + way * length * (0.45 if k == 0 else 0.5)
            points.append(here)
    else:  # round the body on the ground
        reach = rng.uniform(0.3, 0.5)
        points = [
            np.array([s * reach * 0.8, thick, start[2] - 0.02]),
            np.array([s * reach, thick, start[2] * 0.2 + 0.1]),
        ]
        if rng.random() < 0.6:
            points.append(np.array([s * reach * 0.6, thick, 0.4]))
    parts = tube(start, points, thick, own)
    if rng.random() < 0.5:
        size = thick * rng.uniform(1.0, 2.2)
        tip = other if rng.random() < 0.6 else paint(rng, plain=1.0)
        parts.append(blob(points[-1], (size, size * rng.uniform(0.9, 1.6), size), tip))
    return parts
