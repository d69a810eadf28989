"""Coloured meshes beside the procedural objects: read from a folder of models, recoloured, textured, lit.

M points, F faces, T texture side in pixels. World: y up, front +z, as objects.py. The folder is not part of the
project: POCKET_MODELS names it, ../shared/data/models where that is not set; its README says what an .npz holds. Where
it is missing there are no meshes, and the training stream is made of the procedural families alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guidance.pocket import laws
from guidance.pocket.objects import Array
from guidance.pocket.textures import texture

FOLDER_VARIABLE = "POCKET_MODELS"
BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data" / "models"
TRAIN, VALIDATION, TEST = "train", "validation", "test"
# Packs whose objects have no front (food, plants, rocks, weapons, small things): these are turned any way.
FRONTLESS = frozenset(
    f"quaternius_{name}"
    for name in (
        "crops_pack", "medieval_weapons_pack", "modular_sci_fi_guns_pack", "nature_pack", "rpg_items_pack",
        "sci-fi_guns", "simple_nature_pack", "survival_pack",
    )
) | {"kaykit_restaurant_bits", "kaykit_prototype_bits", "kenney_graveyard_kit"}  # fmt: skip
NO_TEXTURE = np.ones((1, 1, 3), np.float32)


@dataclass(frozen=True)
class ColouredMesh:
    """One model, and the light it is seen under.

    key: pack/name; points [M, 3] world units; faces [F, 3], outward; colours [F, 3, 3] of each face's corners in 0..1;
    light, ambient as in Thing. texture [T, T, 3] multiplies the faces' mean colours where it is larger than a pixel,
    mapped from each face's main side, `repeats` of it to a unit of `laid` [M, 3], the points as they were at first.
    """

    key: str
    seed: int
    caption: str
    points: Array
    faces: NDArray[np.int64]
    colours: Array
    light: Array
    ambient: float
    texture: NDArray[np.float32] = field(default_factory=lambda: NO_TEXTURE)
    repeats: float = 0.5
    laid: Array | None = None

    @property
    def family(self) -> str:
        return self.key.split("/")[0]

    def moved(self, scale: float, offset: Array) -> ColouredMesh:
        """Scaled about the origin, then shifted by offset [3]; a texture goes with it."""
        laid = self.points if self.laid is None else self.laid
        return replace(self, points=self.points * scale + offset, laid=laid)


def models_folder() -> Path | None:
    """The folder of models, None where there is none."""
    folder = Path(os.environ.get(FOLDER_VARIABLE, BESIDE))
    return folder if any(folder.glob("*.npz")) else None


@lru_cache(maxsize=1)
def _packs(folder: Path) -> dict[str, dict[str, NDArray[np.generic]]]:
    """Every pack's arrays by its name, decompressed."""
    files = sorted([*folder.glob("*.npz"), *folder.glob("*/*.npz")], key=lambda path: path.stem)
    packs = {}
    for file in files:
        with np.load(file) as arrays:
            packs[file.stem] = {name: arrays[name] for name in arrays.files}
    return packs


def keys(split: str, folder: Path | None = None) -> tuple[str, ...]:
    """pack/name of every model of a split, in the order of packs and of names in them; none without a folder."""
    place = folder or models_folder()
    return () if place is None else _keys(split, place)


@lru_cache(maxsize=8)
def _keys(split: str, folder: Path) -> tuple[str, ...]:
    return tuple(
        f"{pack}/{name}"
        for pack, arrays in _packs(folder).items()
        for name, kind in zip(arrays["names"], arrays["split"], strict=True)
        if kind == split
    )


def say_if_missing(instead: str) -> None:
    """One line where there are no models to train on: where they were looked for, and what happens instead."""
    if not keys(TRAIN):
        print(f"no models in {BESIDE} ({FOLDER_VARIABLE} names another folder): {instead}")


def read(key: str, folder: Path | None = None) -> ColouredMesh:
    """The model as it is in the folder, half in light from above the front. Raises KeyError where there is none."""
    place = folder or models_folder()
    if place is None:
        raise KeyError(f"{key}: there is no folder of models; {FOLDER_VARIABLE} names one")
    pack, name = key.split("/", 1)
    arrays = _packs(place)[pack]
    i = list(arrays["names"]).index(name)
    points = slice(*arrays["vertex_start"][i : i + 2])
    faces = slice(*arrays["face_start"][i : i + 2])
    return ColouredMesh(
        key, 0, name, arrays["vertices"][points].astype(np.float64), arrays["faces"][faces].astype(np.int64),
        arrays["colors"][faces].astype(np.float64) / 255, np.array([0.0, 0.6, 0.8]), 0.7,
    )  # fmt: skip


def lit(mesh: ColouredMesh, rng: np.random.Generator) -> ColouredMesh:
    """Under a light from anywhere above, as the procedural objects are."""
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(*laws.LIGHT_HEIGHT)
    flat = np.sqrt(1 - height**2)
    light = np.array([flat * np.sin(azimuth), height, flat * np.cos(azimuth)])
    return replace(mesh, light=light, ambient=float(rng.uniform(*laws.AMBIENT)))


def varied(
    mesh: ColouredMesh, rng: np.random.Generator, textured: float = laws.TEXTURED, bent: float | None = None
) -> ColouredMesh:
    """Another of the model's kind: stretched a little, a share bent out of shape (None: DEFORMED), turned where it has
    no front, recoloured, a share textured."""
    points = mesh.points * np.exp(rng.normal(0, laws.STRETCH, 3))
    if rng.random() < (laws.DEFORMED if bent is None else bent):
        points = deformed(points, rng)
    if mesh.family in FRONTLESS:
        turn = rng.uniform(0, 2 * np.pi)
        c, s = np.cos(turn), np.sin(turn)
        points = points @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    mesh = replace(mesh, points=points, colours=recoloured(mesh.colours, rng))
    if rng.random() < textured:
        plain = rng.random() < 0.5  # the texture's own colours, else the model's under its light and dark
        image = texture(rng, grey=not plain)
        colours = np.ones_like(mesh.colours) if plain else mesh.colours
        mesh = replace(mesh, texture=image, repeats=float(rng.uniform(0.35, 1.0)), colours=colours)
    return mesh


def deformed(points: Array, rng: np.random.Generator) -> Array:
    """[M, 3] with other proportions: tapered along one axis, sheared and bent sideways with height, twisted about y, so
    that a few models become many shapes."""
    low, high = points.min(0), points.max(0)
    middle, reach = (low + high) / 2, float((high - low).max()) / 2 + 1e-9
    u = (points - middle) / reach
    axis = int(rng.integers(3))
    width = 1 + np.clip(rng.normal(0, laws.TAPER), -laws.TAPER_MOST, laws.TAPER_MOST) * u[:, axis]
    u = np.where(np.arange(3) == axis, u, u * width[:, None])
    height = u[:, 1]
    turn = rng.normal(0, laws.TWIST) * height
    c, s = np.cos(turn), np.sin(turn)
    x, z = c * u[:, 0] + s * u[:, 2], c * u[:, 2] - s * u[:, 0]
    x = x + rng.normal(0, laws.SHEAR) * height + rng.normal(0, laws.CURVE) * height**2
    z = z + rng.normal(0, laws.SHEAR) * height + rng.normal(0, laws.CURVE) * height**2
    return middle + reach * np.stack([x, height, z], 1)


def joined(mesh: ColouredMesh, other: ColouredMesh, rng: np.random.Generator) -> ColouredMesh:
    """One object of two models: the other, smaller, on top of the first, beside it or before it, touching. Seen under
    the first one's light; the other has no texture."""
    low, high = mesh.points.min(0), mesh.points.max(0)
    theirs = other.points * (
        rng.uniform(*laws.JOINED_SIZE) * (high - low).max() / np.ptp(other.points, axis=0).max()
    )
    side = (np.array([0, 1, 0]), np.array([1, 0, 0]), np.array([-1, 0, 0]), np.array([0, 0, 1]))[
        rng.integers(4)
    ]
    near, far = theirs.min(0), theirs.max(0)
    resting = np.array([(low + high)[0] / 2, low[1], (low + high)[2] / 2])
    standing = np.array([(near + far)[0] / 2, near[1], (near + far)[2] / 2])
    gap = np.where(side > 0, high - near, low - far) + side * -laws.OVERLAP * (high - low).max()
    shift = np.where(side != 0, gap, resting - standing)
    points = np.concatenate([mesh.points, theirs + shift])
    return replace(
        mesh, points=points, faces=np.concatenate([mesh.faces, other.faces + len(mesh.points)]),
        colours=np.concatenate([mesh.colours, other.colours]), texture=NO_TEXTURE, laid=None,
    )  # fmt: skip


def recoloured(colours: Array, rng: np.random.Generator) -> Array:
    """[..., 3] in 0..1: as they are in two of five draws, else hues turned, lights and darks moved, or all tinted."""
    kind = rng.random()
    if kind < laws.KEPT:
        return colours
    result = colours
    if kind < laws.HUES_UNTIL:
        result = _hue_turned(result, float(rng.uniform(0, 2 * np.pi)))
    if kind > laws.POWER_FROM:
        result = np.clip(result, 0, 1) ** float(np.exp(rng.normal(0, laws.POWER)))
    if kind > laws.TINT_FROM:
        share = rng.uniform(*laws.TINT_SHARE)
        result = (1 - share) * result + share * rng.uniform(*laws.TINT, 3)
    return np.clip(result, 0.0, 1.0)


def _hue_turned(colours: Array, angle: float) -> Array:
    """Turned about the grey axis."""
    c, s = np.cos(angle), np.sin(angle) / np.sqrt(3.0)
    a, b, d = (1 + 2 * c) / 3, (1 - c) / 3 - s, (1 - c) / 3 + s
    return colours @ np.array([[a, b, d], [d, a, b], [b, d, a]]).T
