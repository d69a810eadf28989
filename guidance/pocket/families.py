"""The families of objects by name, those of the training stream and those kept from it, and members by seed.

World: y up, front +z; members stand near y = 0 and are not yet normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from guidance.pocket import (
    daily,
    gear,
    laws,
    living,
    machines,
    made,
    monsters,
    people,
    pets,
    props,
    robots,
    scenes,
    shapes,
)
from guidance.pocket.objects import Part, Thing

Family = Callable[[np.random.Generator], tuple[str, list[Part]]]

# A family's number keys its members: new ones go to the end.
FAMILIES: dict[str, Family] = {
    f.__name__: f
    for f in (
        living.sitter, living.quadruped, living.bird, living.figure, made.vehicle, made.house, living.plant,
        made.vessel, made.furniture, shapes.solids, made.rocket, living.beast, shapes.blobs, shapes.revolution,
        shapes.extrusion, made.bottle, made.tool, made.toy, made.aeroplane, living.insect, living.flower,
    )
}  # fmt: skip
# Trained on as well; what is reported on trained families stays what it was.
FURTHER: dict[str, Family] = {
    f.__name__: f
    for f in (
        people.doll, shapes.frame, pets.pet, daily.meal, daily.shoe, daily.bag, robots.robot, gear.gadget,
        gear.instrument, props.prop, machines.machine, monsters.monster,
    )
}  # fmt: skip
UNTRAINED: dict[str, Family] = {
    f.__name__: f for f in (living.fish, made.boat, made.teapot, made.hammer, made.lamp)
}
SCENES: dict[str, Family] = {f.__name__: f for f in (scenes.single, scenes.pair)}  # the text prior's
GROWN = {
    "beast": 0.05,
    "blobs": 0.06,
    "insect": 0.02,
    "fish": 0.03,
    "teapot": 0.03,
    "doll": 0.015,
    "pet": 0.02,
}  # at most, world units


def make(family: str, seed: int) -> Thing:
    """The object of that family and seed, standing on y = 0, not yet normalised."""
    known = FAMILIES | UNTRAINED | SCENES | FURTHER
    if family not in known:
        raise ValueError(f"no family {family!r}; there are {', '.join(known)}")
    number = next(
        first + list(group).index(family)
        for first, group in ((0, FAMILIES), (1000, UNTRAINED), (2000, SCENES), (3000, FURTHER))
        if family in group
    )
    rng = np.random.default_rng([number, seed])
    caption, parts = known[family](rng)
    stretch = np.exp(rng.normal(0, 0.06))  # taller or squatter, the family's proportions kept
    parts = [replace(p, centre=p.centre * [1, stretch, 1], radii=p.radii) for p in parts]
    azimuth, height = rng.uniform(0, 2 * math.pi), rng.uniform(*laws.LIGHT_HEIGHT)
    flat = math.sqrt(1 - height**2)
    light = np.array([flat * math.sin(azimuth), height, flat * math.cos(azimuth)])
    ambient = float(rng.uniform(*laws.AMBIENT))
    blend = GROWN.get(family, 0.0) * float(rng.uniform(0, 1))
    return Thing(family, seed, caption, tuple(parts), light, ambient, blend)
