"""The family of people, of which a view from the front says little. Results as in living.py.

World: y up, front +z; members stand near y = 0, not yet normalised.
"""

from __future__ import annotations

import math

import numpy as np

from guidance.pocket.objects import (
    BLACK,
    BOX,
    CONE,
    CYLINDER,
    SOLID,
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

SKIN = np.array([[0.98, 0.87, 0.78], [0.90, 0.70, 0.55], [0.72, 0.50, 0.36], [0.42, 0.27, 0.18]])
CLOTH = (0.3, 1.0)  # exponents of what hangs: round, with an edge above and below


def doll(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """A person, big-headed or slender: hair, hat or ears, dress, trousers or robe, limbs in any pose, things held."""
    skin, top, below = _skin(rng), paint(rng, plain=0.7), paint(rng, plain=0.8)
    slender = rng.uniform(0, 1) ** 1.5
    head = 0.30 - 0.16 * slender + rng.uniform(-0.02, 0.02)
    torso, leg = 0.20 + 0.10 * slender * rng.uniform(0.7, 1.2), rng.uniform(0.15, 0.24) + 0.22 * slender
    wide = rng.uniform(0.13, 0.21)
    deep = wide * rng.uniform(0.65, 0.95)
    boxy = (0.25, 0.3) if rng.random() < 0.2 else (0.7, 1.0)
    hips = 2 * leg
    neck = hips + 2 * torso
    skull = np.array([rng.normal(0, 0.02), neck + head * rng.uniform(0.75, 0.95), rng.uniform(-0.02, 0.06)])
    parts = [
        blob((0, hips + torso, 0), (wide, torso * 1.08, deep), top, eps=boxy, taper=rng.uniform(-0.2, 0.25))
    ]
    dressed = str(rng.choice(["dress", "trousers", "robe", "shorts"], p=[0.35, 0.35, 0.12, 0.18]))
    parts += _legs(rng, leg, wide, deep, skin, below, bare=dressed in ("dress", "shorts"))
    if dressed in ("dress", "robe"):
        parts += _skirt(
            rng, top if rng.random() < 0.7 else below, hips, torso, wide, deep, long=dressed == "robe"
        )
    elif dressed == "shorts":
        parts.append(blob((0, hips - leg * 0.15, 0), (wide * 1.05, leg * 0.4, deep * 1.1), below, eps=CLOTH))
    parts += _arms(rng, np.array([wide, neck - torso * 0.25, 0]), torso + leg * 0.9, skin, top)
    turn = euler(yaw=float(rng.normal(0, 0.2)), roll=float(rng.normal(0, 0.08)))
    parts += _head(rng, skull, head, turn, skin, boxy)
    parts += _behind(rng, hips, neck, wide, deep)
    return f"a {top.name} {dressed if dressed != 'shorts' else 'shirt'} on a figure", parts


def _skin(rng: np.random.Generator) -> Paint:
    """A person's in two of three draws, else any colour."""
    if rng.random() < 0.33:
        return paint(rng, plain=1.0)
    share = rng.uniform(0, len(SKIN) - 1)
    low = min(int(share), len(SKIN) - 2)
    colour = SKIN[low] + (share - low) * (SKIN[low + 1] - SKIN[low]) + rng.normal(0, 0.02, 3)
    colour = np.clip(colour, 0.02, 0.98)
    return Paint("bare", colour, colour, SOLID)


def _legs(
    rng: np.random.Generator, leg: float, wide: float, deep: float, skin: Paint, cloth: Paint, bare: bool
) -> list[Part]:
    """Two legs with shoes, standing, apart or walking."""
    thick, apart, stride = wide * rng.uniform(0.25, 0.42), rng.uniform(0, 0.35), rng.uniform(-0.5, 0.5)
    shoe = paint(rng, plain=1.0) if rng.random() < 0.7 else BLACK
    sock = skin if rng.random() < 0.6 else (WHITE if rng.random() < 0.5 else paint(rng, plain=0.6))
    walks = rng.random() < 0.35
    parts: list[Part] = []
    for s in (-1, 1):
        hip = np.array([s * wide * 0.5, 2 * leg, 0])
        foot = np.array([s * (wide * 0.5 + apart * leg), thick * 0.5, s * stride * leg if walks else 0.0])
        knee = (hip + foot) / 2 + [0, 0, rng.uniform(0, 0.06)]
        parts += tube(hip, [knee], thick * 1.1, skin if bare else cloth)
        parts += tube(knee, [foot], thick * 0.95, sock if bare else cloth)
        size = (thick * 1.15, thick * rng.uniform(0.6, 1.4), thick * rng.uniform(1.4, 2.0))
        parts.append(blob(foot + [0, 0, thick * 0.5], size, shoe, eps=(0.7, 1)))
    return parts


def _skirt(
    rng: np.random.Generator, cloth: Paint, hips: float, torso: float, wide: float, deep: float, long: bool
) -> list[Part]:
    """What hangs from the waist, wider below, with a hem in three of five draws."""
    waist = hips + torso * rng.uniform(0.2, 0.9)
    end = rng.uniform(0.02, 0.1) if long else hips * rng.uniform(0.25, 0.75)
    half, flare = (waist - end) / 2, rng.uniform(0.15, 0.55)
    middle = wide * 1.05 / (1 - flare)  # as wide as the waist above
    size = (middle, half, middle * max(deep / wide, rng.uniform(0.7, 1.0)))
    parts = [blob((0, end + half, 0), size, cloth, eps=CLOTH, taper=-flare)]
    if rng.random() < 0.6:
        hem, share = paint(rng, plain=0.8), rng.uniform(0.08, 0.25)
        low = 1 + flare * (1 - share)
        at = (0, end + half * share, 0)
        parts.append(
            blob(
                at,
                (size[0] * low * 1.02, half * share * 1.1, size[2] * low * 1.02),
                hem,
                eps=CLOTH,
                taper=-0.06,
            )
        )
    if rng.random() < 0.3:
        parts.append(
            blob((0, waist, 0), (wide * 1.1, 0.03, deep * 1.15), paint(rng, plain=1.0), eps=CYLINDER)
        )
    return parts


def _arms(rng: np.random.Generator, shoulder: Array, length: float, skin: Paint, sleeve: Paint) -> list[Part]:
    """Two arms, hanging to lifted, mostly alike, and what the hands hold."""
    thick, parts = shoulder[0] * rng.uniform(0.25, 0.4), []
    covered, holds = rng.random(), rng.random() < 0.3
    pose = None
    for s in (-1, 1):
        if pose is None or rng.random() < 0.35:  # lift, radians from hanging; forward; bend at the elbow
            pose = (
                rng.uniform(0.1, 2.8),
                rng.normal(0.1, 0.35),
                rng.uniform(-0.3, 1.2) if rng.random() < 0.6 else 0.0,
            )
        lift, forward, bend = pose
        start = shoulder * [s * 0.95, 1, 1]
        elbow = start + length * 0.5 * _aim(s, lift, forward)
        hand = elbow + length * 0.45 * _aim(s, lift + bend, forward + 0.3 * bend)
        parts += tube(start, [elbow], thick * 1.1, sleeve if covered < 0.85 else skin)
        parts += tube(elbow, [hand], thick, sleeve if covered < 0.5 else skin)
        size = thick * rng.uniform(1.1, 1.5)
        parts.append(blob(hand, (size, size, size), skin))
        if holds and s == 1:
            parts += _held(rng, hand)
    return parts


def _aim(side: int, lift: float, forward: float) -> Array:
    """The unit vector of a limb on that side, lifted outwards from hanging, then turned to the front."""
    out = math.sin(lift)
    return np.array([side * out * math.cos(forward), -math.cos(lift), out * math.sin(forward)])


def _held(rng: np.random.Generator, hand: Array) -> list[Part]:
    """A stick, blade, ball, shield, bag or sign in that hand."""
    stuff, kind = paint(rng, plain=0.7), int(rng.integers(5))
    if kind == 0:
        turn = euler(roll=float(rng.normal(0, 0.4)), pitch=float(rng.uniform(-0.3, 1.5)))
        half = rng.uniform(0.2, 0.5)
        return [blob(hand + turn @ np.array([0, half * 0.5, 0]), (0.025, half, 0.03), stuff, turn=turn)]
    if kind == 1:
        size = rng.uniform(0.08, 0.15)
        return [blob(hand + [0, 0, size], (size, size, size), stuff)]
    if kind == 2:
        size = rng.uniform(0.13, 0.22)
        return [blob(hand + [0, 0, 0.06], (size, size * rng.uniform(1, 1.4), 0.03), stuff, eps=(0.6, 0.6))]
    if kind == 3:
        size = rng.uniform(0.08, 0.14)
        return [blob(hand - [0, size * 1.3, 0], (size, size, size * 0.7), stuff, eps=(0.4, 0.4))]
    turn = euler(roll=float(rng.normal(0, 0.3)))
    board = blob(hand + turn @ np.array([0, 0.3, 0]), (0.16, 0.1, 0.02), stuff, eps=BOX, turn=turn)
    return [blob(hand + turn @ np.array([0, 0.1, 0]), (0.02, 0.25, 0.02), stuff, turn=turn), board]


def _head(
    rng: np.random.Generator, at: Array, size: float, turn: Array, skin: Paint, boxy: tuple[float, float]
) -> list[Part]:
    """The skull with its face, hair and what is worn on it, turned as given."""
    hair = paint(rng, plain=0.9)
    radii = np.array([rng.uniform(0.9, 1.05), rng.uniform(0.9, 1.05), rng.uniform(0.85, 1.0)]) * size
    parts = [blob(np.zeros(3), radii, skin, eps=boxy)]
    parts += _face(rng, radii)
    cut = str(
        rng.choice(
            ["none", "short", "bob", "long", "tails", "bun", "spikes"],
            p=[0.15, 0.2, 0.15, 0.2, 0.12, 0.08, 0.1],
        )
    )
    if cut != "none":
        parts += _hair(rng, cut, radii, hair, boxy)
    worn = str(
        rng.choice(["none", "hat", "ears", "horns", "helmet", "hood"], p=[0.5, 0.16, 0.16, 0.06, 0.06, 0.06])
    )
    parts += _worn(rng, worn, radii, hair)
    return turned(parts, turn, at)


def _face(rng: np.random.Generator, r: Array) -> list[Part]:
    """Eyes, plain or white with an iris, sometimes a nose, a mouth, a beard; r [3] the skull's radii."""
    y, apart, size = (
        rng.uniform(-0.15, 0.2) * r[1],
        rng.uniform(0.28, 0.45) * r[0],
        rng.uniform(0.08, 0.22) * r[0],
    )
    z = r[2] * math.sqrt(max(1 - (y / r[1]) ** 2 - (apart / r[0]) ** 2, 0.2))
    parts: list[Part] = []
    if rng.random() < 0.5:
        parts += eyes(y, z * 0.97, apart, size)
    else:
        iris = paint(rng, plain=1.0)
        for s in (-1, 1):
            parts.append(blob((s * apart, y, z * 0.95), (size, size * 1.25, size * 0.6), WHITE))
            parts.append(
                blob((s * apart, y, z * 0.95 + size * 0.3), (size * 0.7, size * 0.9, size * 0.45), iris)
            )
            parts.append(
                blob((s * apart, y, z * 0.95 + size * 0.5), (size * 0.35, size * 0.5, size * 0.35), BLACK)
            )
    if rng.random() < 0.4:
        parts.append(blob((0, y - 0.25 * r[1], r[2] * 0.97), np.full(3, 0.08) * r[0], named("pink")))
    if rng.random() < 0.5:
        colour = named("red") if rng.random() < 0.6 else BLACK
        parts.append(blob((0, y - 0.5 * r[1], r[2] * 0.78), (0.2 * r[0], 0.05 * r[1], 0.1 * r[2]), colour))
    if rng.random() < 0.12:
        beard = paint(rng, plain=1.0)
        parts.append(
            blob(
                (0, -0.65 * r[1], r[2] * 0.45), (r[0] * 0.7, r[1] * rng.uniform(0.4, 0.9), r[2] * 0.6), beard
            )
        )
    return parts


def _hair(rng: np.random.Generator, cut: str, r: Array, hair: Paint, boxy: tuple[float, float]) -> list[Part]:
    """A cap over the crown and the back of the head, and what falls or stands from it."""
    lift, back = rng.uniform(0.12, 0.25), rng.uniform(0.12, 0.3)
    parts = [blob((0, lift * r[1], -back * r[2]), r * [1.12, 1.05, 1.05], hair, eps=boxy)]
    if rng.random() < 0.6:  # a fringe
        parts.append(blob((0, 0.6 * r[1], 0.5 * r[2]), (0.8 * r[0], 0.3 * r[1], 0.5 * r[2]), hair))
    if cut == "bob":
        parts.append(blob((0, -0.15 * r[1], -0.3 * r[2]), r * [1.15, 0.95, 0.85], hair, eps=(0.6, 1)))
    elif cut == "long":
        half = rng.uniform(0.8, 1.8) * r[1]
        parts.append(
            blob(
                (0, 0.4 * r[1] - half, -0.55 * r[2]),
                (r[0] * rng.uniform(0.8, 1.1), half, r[2] * 0.5),
                hair,
                eps=(0.6, 1),
            )
        )
    elif cut == "tails":
        drop = rng.uniform(0.5, 1.6) * r[1]
        for s in (-1, 1):
            out = np.array([s * r[0] * 1.3, r[1] * rng.uniform(0.0, 0.4), -0.2 * r[2]])
            parts += tube(
                np.array([s * r[0] * 0.8, r[1] * 0.4, -0.2 * r[2]]),
                [out, out - [0, drop, 0]],
                r[0] * 0.3,
                hair,
            )
    elif cut == "bun":
        size = rng.uniform(0.3, 0.5) * r[0]
        spots = [0.0] if rng.random() < 0.5 else [-0.7, 0.7]
        for x in spots:
            parts.append(blob((x * r[0], r[1] * 1.0, -0.3 * r[2]), (size, size, size), hair))
    elif cut == "spikes":
        for _ in range(int(rng.integers(5, 10))):
            way = rng.normal(0, 1, 3) + [0, 0.8, -0.4]
            way /= np.linalg.norm(way)
            pitch, yaw = math.acos(way[1]), math.atan2(way[0], way[2])
            parts.append(
                blob(way * r * 1.15, r * [0.3, 0.45, 0.3], hair, eps=CONE, taper=-0.9, turn=euler(yaw, pitch))
            )
    return parts


def _worn(rng: np.random.Generator, worn: str, r: Array, hair: Paint) -> list[Part]:
    """A hat, ears, horns, a helmet or a hood; r [3] the skull's radii."""
    stuff = hair if worn == "ears" and rng.random() < 0.6 else paint(rng, plain=0.8)
    if worn == "hat":
        brim, high = rng.uniform(1.1, 1.7), rng.uniform(0.3, 0.9)
        cover = blob(
            (0, (0.6 + high) * r[1], 0),
            r * [0.95, high, 0.95],
            stuff,
            eps=CYLINDER,
            taper=-rng.uniform(0, 0.9),
        )
        return [blob((0, 0.6 * r[1], 0), r * [brim, 0.07, brim], stuff, eps=CYLINDER), cover]
    if worn in ("ears", "horns"):
        size, apart = rng.uniform(0.25, 0.5), rng.uniform(0.45, 0.75)
        tall, eps, taper = size * rng.uniform(1, 2.2), CONE, -0.9
        if worn == "ears" and rng.random() < 0.35:
            eps, taper = (1.0, 1.0), 0.0
        parts = []
        for s in (-1, 1):
            at = (s * apart * r[0], (0.8 + 0.5 * tall) * r[1], 0)
            radii, turn = r * [size, tall, size * 0.6], euler(roll=-s * rng.uniform(0.1, 0.6))
            parts.append(blob(at, radii, stuff, eps=eps, taper=taper, turn=turn))
        return parts
    if worn == "helmet":
        return [blob((0, 0.3 * r[1], -0.05 * r[2]), r * [1.12, 0.9, 1.1], stuff, eps=(0.7, 1))]
    if worn == "hood":
        return [
            blob((0, 0.1 * r[1], -0.25 * r[2]), r * [1.2, 1.2, 1.05], stuff),
            blob((0, 1.0 * r[1], -0.5 * r[2]), r * 0.5, stuff),
        ]
    return []


def _behind(rng: np.random.Generator, hips: float, neck: float, wide: float, deep: float) -> list[Part]:
    """A cape, a pack, wings or a tail, in a third of the draws."""
    stuff, kind = paint(rng, plain=0.8), int(rng.integers(12))
    if kind == 0:
        half = (neck - hips * rng.uniform(0.2, 0.8)) / 2
        return [
            blob((0, neck - half, -deep * 1.2), (wide * 1.5, half, 0.03), stuff, eps=(0.4, 0.6), taper=-0.3)
        ]
    if kind == 1:
        size = wide * rng.uniform(0.7, 1.1)
        return [
            blob(
                (0, (neck + hips) / 2, -deep - size * 0.5),
                (size, size * 1.2, size * 0.7),
                stuff,
                eps=(0.4, 0.5),
            )
        ]
    if kind == 2:
        reach = rng.uniform(0.2, 0.4)
        return [
            blob(
                (s * reach * 0.9, neck, -deep * 1.2),
                (reach * 0.8, reach * 0.45, 0.025),
                stuff,
                turn=euler(roll=s * 0.5, yaw=s * 0.3),
            )
            for s in (-1, 1)
        ]
    if kind == 3:
        start = np.array([0, hips, -deep])
        middle = start + [rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.1), -0.2]
        return tube(
            start, [middle, middle + [rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.35), -0.1]], 0.04, stuff
        )
    return []
