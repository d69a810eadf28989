"""The text prior's training stream: objects by seed, in the middle of the picture, seen from all round, with captions.

B objects in a shard, V views of each, C latent channels, L latent side, S picture side in pixels, K samples of a batch.
A shard is a pure function of its number, so a stream resumes by counting. With `models` three of four objects are
training models whose names have a noun (model_captions.py), rare nouns oftener than they come among the models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from gs_propeller.base.camera import orbit
from guidance.pocket.captions import SPOKEN, articled, said, strayed
from guidance.pocket.data import SIZE_PX, TRAIN_SEED
from guidance.pocket.families import make
from guidance.pocket.meshes import TRAIN, lit, read, varied
from guidance.pocket.model_captions import called, caption
from guidance.pocket.objects import Thing
from guidance.pocket.render import FOV_Y_RAD, RADIUS, AnyShown, Shown, on_white, outline, views
from guidance.pocket.stream import encode, save
from guidance.stable_diffusion import Directions

OBJECTS, VIEWS = 256, 8
REACH = 0.68  # world units from the middle to the farthest side, level or upwards: about three quarters of the picture
NAMELESS = 0.1  # share of the samples whose view is not said
STRAYED = 0.15  # share of the samples that hold a word which means nothing
# A family a slot, by turns: scenes as often as all others together.
SLOTS = [*SPOKEN, *["pair"] * (len(SPOKEN) - 5), *["single"] * 5]


def centred(thing: AnyShown) -> AnyShown:
    """Moved and scaled so that it fits the picture from every side, its middle in the world's."""
    points = outline(thing)
    low, high = points.min(0), points.max(0)
    middle = (low + high) / 2
    around = np.linalg.norm((points - middle)[:, [0, 2]], axis=1).max()
    scale = REACH / max(float(around), float(high[1] - low[1]) / 2)
    return thing.moved(scale, -scale * middle)


def spoken(family: str, seed: int) -> Thing:
    """The centred object of that family and seed."""
    return centred(make(family, seed))


def member(number: int, index: int) -> tuple[str, int]:
    """Family and seed of object `index` of shard `number`."""
    seed = TRAIN_SEED + number * OBJECTS + index
    return SLOTS[seed % len(SLOTS)], seed


def told(number: int, index: int, models: bool = False) -> tuple[Shown, str]:
    """Object `index` of shard `number`, centred, and its caption."""
    family, seed = member(number, index)
    if models:
        if seed % 4 and called(TRAIN):
            return model_told(seed)
        family = SLOTS[seed // 4 % len(SLOTS)]
    thing = make(family, seed)
    return centred(thing), thing.caption


def model_told(seed: int, bent: float = 0.0) -> tuple[Shown, str]:
    """A centred training model, a share `bent` of them out of shape, and its caption: half recoloured and called by
    their colours, half as they are, of which half are called by their noun alone. Of a noun's models, as often as the
    root of their number."""
    rng, nouns = np.random.default_rng([seed, 83]), called(TRAIN)
    weights = np.sqrt([len(models) for models in nouns.values()])
    name = list(nouns)[int(rng.choice(len(nouns), p=weights / weights.sum()))]
    mesh = read(nouns[name][int(rng.integers(len(nouns[name])))])
    other = varied(mesh, rng, textured=0.0, bent=bent)
    natural, bare = rng.random(2) < 0.5
    mesh = lit(replace(other, colours=mesh.colours) if natural else other, rng)
    return centred(mesh), f"a {name}" if natural and bare else caption(mesh) or ""


def angles(rng: np.random.Generator) -> tuple[float, float]:
    """(azimuth, elevation) of a view, radians: any side, mostly near level, one in eight from above."""
    high = rng.random() < 0.125
    degrees = rng.uniform(50, 85) if high else rng.uniform(-20, 50)
    return float(rng.uniform(-math.pi, math.pi)), math.radians(degrees)


@dataclass(frozen=True)
class Described:
    """latents [B, V, C, L, L], not scaled; angles [B, V, 2], azimuth and elevation in radians; captions [B]."""

    latents: Tensor
    angles: Tensor
    captions: list[str]


def drawn(number: int, objects: int = OBJECTS, models: bool = False) -> tuple[Tensor, Tensor, list[str]]:
    """(images [B, V, 3, S, S] uint8 over white, angles [B, V, 2], captions [B]) of shard `number`."""
    images = torch.empty(objects, VIEWS, 3, SIZE_PX, SIZE_PX, dtype=torch.uint8)
    where, captions = torch.empty(objects, VIEWS, 2), []
    for i in range(objects):
        thing, caption = told(number, i, models)
        captions.append(caption)
        rng = np.random.default_rng([member(number, i)[1], 79])
        where[i] = torch.tensor([angles(rng) for _ in range(VIEWS)])
        cameras = orbit(where[i, :, 0], where[i, :, 1], RADIUS, FOV_Y_RAD)
        images[i] = (on_white(views(thing, cameras, SIZE_PX)) * 255 + 0.5).to(torch.uint8)
    return images, where, captions


def keep_drawn(folder: Path, number: int, models: bool = False) -> Path:
    """The file of shard `number`'s pictures, drawn once and kept in the folder until their latents are there."""
    path = folder / "shards" / f"shard{number:04d}.safetensors"
    if not path.exists() and not latents_file(folder, number).exists():
        images, where, captions = drawn(number, models=models)
        save(path, {"images": images, "angles": where, "captions": written(captions)})
    return path


def latents_file(folder: Path, number: int) -> Path:
    return folder / "latents" / f"shard{number:04d}.safetensors"


def described(folder: Path, vae: AutoencoderKL, number: int, models: bool = False) -> Described:
    """Shard `number` with its latents, made once and kept in the folder."""
    path = latents_file(folder, number)
    if not path.exists():
        pictures = keep_drawn(folder, number, models)
        tensors = load_file(pictures)
        images = tensors["images"]
        latents = encode(vae, images.flatten(0, 1)).unflatten(0, images.shape[:2])
        save(path, {"latents": latents} | {k: tensors[k] for k in ("angles", "captions")})
        pictures.unlink()
    tensors = load_file(path)
    captions = bytes(tensors["captions"].tolist()).decode().split("\n")
    return Described(tensors["latents"], tensors["angles"], captions)


def written(captions: list[str]) -> Tensor:
    """[bytes] uint8: they stay with the pictures that they are of, whatever a later call draws."""
    return torch.tensor(list("\n".join(captions).encode()), dtype=torch.uint8)


def draw(
    pool: dict[int, Described], size: int, generator: torch.Generator, drop: float
) -> tuple[Tensor, list[str]]:
    """(latents [K, C, L, L], sentences [K]); a share `drop` of the sentences is empty."""
    keys = sorted(pool)
    chosen = torch.randint(len(keys), (size,), generator=generator)
    rows = torch.randint(len(pool[keys[0]].captions), (size,), generator=generator)
    seen = torch.randint(pool[keys[0]].latents.shape[1], (size,), generator=generator)
    rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
    picks = [(pool[keys[int(k)]], int(r), int(v)) for k, r, v in zip(chosen, rows, seen, strict=True)]
    where = torch.stack([d.angles[r, v] for d, r, v in picks])
    names = Directions()
    which = names(where[:, 0], where[:, 1]).tolist()
    sentences = [
        sentence(d.captions[r], names.names[w], rng, drop) for (d, r, _), w in zip(picks, which, strict=True)
    ]
    return torch.stack([d.latents[r, v] for d, r, v in picks]).float(), sentences


def sentence(caption: str, view: str, rng: np.random.Generator, drop: float) -> str:
    """One wording of a caption from one side, as the prior is told it; empty for a share `drop` of them."""
    if rng.random() < drop:
        return ""
    words = said(caption, rng) if rng.random() < 0.6 else articled(caption)
    if rng.random() < STRAYED:
        words = strayed(words, rng)
    return words if rng.random() < NAMELESS else f"{words}, {view}"
