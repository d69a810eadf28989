"""What makes two runs the same: the options that shape the result, the priors' names and the input's bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gs_propeller.app.config import DEFAULT, SECTION_OF, Config
from guidance import POCKET, POCKET_TEXT, find_prior, find_text_prior

SECOND_STAGE = (
    "refine_steps",
    "refine_batch",
    "refine_guidance",
    "refine_text_guidance",
    "refine_denoise",
    "refine_updates_per_evaluation",
    "lambda_known",
    "refine_threshold",
    "texture_lr",
    "refine_strength_max",
    "refine_strength_min",
    "refine_texels",
    "train_geo",
    "geo_lr",
    "lambda_smooth",
    "lambda_normal",
)
# What may change between a run and its continuation without another result being asked for.
FREE = frozenset(
    [
        "resume",
        "outdir",
        "ranks",
        "group",
        "threads",
        "raster",
        "timeout_s",
        "device",
        "window",
        "checkpoint_every_s",
        "batch_slots",
        "rollout_device",
        "compile",
        "attention_slicing",
        "nonfinite",
        "turntable_frames",
        "turntable_size",
        "fps",
        "compressed",
        "mesh",
        "mesh_resolution",
        "mesh_faces",
        "texture_size",
        "bake_views",
        "bake_size",
        *SECOND_STAGE,
    ]
)


# Sections that shape one kind of scene alone; of Gaussians not even the kind is named, as before there were others.
KIND_OF = {"ball": "gaussians", "adam": "gaussians", "density": "gaussians", "regularisers": "gaussians"}
KIND_OF |= {"field": "field", "sdf": "sdf", "shaping": "field"}

GIVEN = "the picture or mesh"  # what a mark calls the input's bytes


def given_bytes(config: Config) -> bytes:
    """The input picture's; none for a prompt alone, which is an option."""
    return Path(config.input).read_bytes() if config.input else b""


def _meant(folder: str, shipped: Path) -> str:
    return "pocket" if folder == str(shipped) else folder


def _shapes(option: str, value: Any, scene: str) -> bool:
    """Whether an option says anything of that kind of scene; an sdf has a field's grids too. The picture's cut-out is
    named where it is not left to itself, as before it could be corrected."""
    if SECTION_OF[option] == "cut":
        return bool(value != getattr(DEFAULT, option))
    if option == "scene":
        return scene != "gaussians"
    kind = KIND_OF.get(SECTION_OF[option], scene)
    return kind == scene or (kind == "field" and scene == "sdf")


def fingerprint(config: Config, picture: bytes, also: Iterable[str] = ()) -> str:
    """Every option that shapes the scene, those named, and a hash of the input's bytes, as JSON: two of them say
    what differs.

    A prior of auto counts as what it means on this machine today: a run does not go on under another one.
    """
    priors = {
        "prior": _meant(find_prior(config.prior), POCKET) if config.input else "",
        "text_prior": _meant(find_text_prior(config.text_prior), POCKET_TEXT) if config.prompt else "",
    }
    shaping = {
        key: value
        for key, value in config.flat().items()
        if key not in FREE.difference(also)
        and key not in ("input", "name")
        and _shapes(key, value, config.scene)
    } | priors
    return json.dumps(shaping | {GIVEN: hashlib.sha256(picture).hexdigest()[:16]}, sort_keys=True)
