"""What makes two runs the same: the options that shape the result, the priors' names and the input's bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gs_propeller.app.config import DEFAULT, SECTION_OF, Config, load
from gs_propeller.base.errors import UserError
from gs_propeller.base.files import load_meta, load_tensors
from gs_propeller.solver.checkpoint import FILE
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
    "recolour",
)
CLOSING = ("closing_updates", "recolour")  # shape the splat of a run, not the run
FILES = (
    "mesh_resolution",
    "mesh_faces",
    "texture_size",
    "bake_views",
    "bake_size",
    "turntable_frames",
    "turntable_size",
    "fps",
    "compressed",
    *CLOSING,
)  # shape what is written of a run's last state
# What may change between a run and its continuation without another result being asked for.
FREE = frozenset(
    [
        "resume",
        "outdir",
        "init",
        "stages",
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
        "snapshots",
        "mesh",
        *FILES,
        *SECOND_STAGE,
    ]
)


# Sections that shape some kinds of scene alone.
KINDS_OF: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("ball", "adam", "density", "regularisers"), ("gaussians",)
)
KINDS_OF |= {"field": ("field", "sdf", "tetrahedra"), "sdf": ("sdf",), "shaping": ("field", "sdf")}
KINDS_OF |= {"tets": ("tetrahedra",)}

# What there was not always: named only where it is not as it was before, so that older runs and their marks stay good.
LATER = frozenset(
    [
        "scene",
        "lr_share",
        "lambda_haze",
        "csd_below",
        "csd_rest",
        "mirror",
        "hue",
        *CLOSING,
        *(name for name, at in SECTION_OF.items() if at in ("cut", "plan")),
    ]
)

# What says where the input's object is in the second stage's known view: a mesh fits one picture by one of each.
PLACING = ("elevation", "radius", "fov_y_deg", "cutout", "cutout_box", "cutout_threshold")
SAME = 2e-3  # elevations that ranks tell each other are rounded to a thousandth of a degree

GIVEN = "the picture or mesh"  # what a mark calls the input's bytes


def given_bytes(config: Config) -> bytes:
    """The input picture's, none for a prompt alone, which is an option; and what tells the asset to start from."""
    return (Path(config.input).read_bytes() if config.input else b"") + seed_sum(config)


def seed_sum(config: Config) -> bytes:
    """Of the parameters that the run of `init` has come to; none without one, or before it is there."""
    file = Path(config.init) / FILE
    if not config.init or not file.is_file():
        return b""
    sums = hashlib.sha256()
    for name, tensor in sorted(load_tensors(file)[0].items()):
        if name.startswith("0/params"):
            sums.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return sums.digest()


def _meant(folder: str, shipped: Path) -> str:
    """A prior as marks name it: the shipped one by its weights, which other versions have others of."""
    if folder != str(shipped):
        return folder
    try:
        sums = json.loads((shipped / "training.json").read_text())["sha256"]
        return f"pocket {sums['unet/diffusion_pytorch_model.safetensors'][:8]}"
    except (OSError, ValueError, KeyError):
        return "pocket"


def _shapes(option: str, value: Any, scene: str) -> bool:
    """Whether an option says anything of that kind of scene."""
    seen = scene in KINDS_OF.get(SECTION_OF[option], (scene,))
    return seen and (option not in LATER or bool(value != getattr(DEFAULT, option)))


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
    return json.dumps(shaping | {GIVEN: _sum(picture)}, sort_keys=True)


def _sum(given: bytes) -> str:
    return hashlib.sha256(given).hexdigest()[:16]


def of_another_picture(config: Config) -> bool:
    """Whether the run in the configuration's folder was made of another picture, or of none. One that started from
    another run's asset cannot be told, nor one without a checkpoint."""
    try:
        made = json.loads(load_meta(config.run_folder / FILE)["fingerprint"])
    except (UserError, ValueError, KeyError):
        return False
    own = options_of(config)
    if own is None or own.init:
        return False
    return not own.input or bool(made.get(GIVEN) != _sum(Path(config.input).read_bytes()))


def placed_otherwise(config: Config) -> list[str]:
    """Options that say where the picture's object is, and which the run in the configuration's folder had otherwise."""
    own, found = options_of(config), []
    for name in PLACING if own is not None and own.input else ():
        was, here = getattr(own, name), getattr(config, name)
        if was != here and (isinstance(was, str) or isinstance(here, str) or abs(was - here) > SAME):
            found.append(f"{name}={was} (here {here})")
    return found


def gone_on_since(config: Config, mesh: Path) -> int:
    """The step that the run in the configuration's folder has come to, where it began or went on after its mesh was
    written and has not ended; else 0."""
    kept, own = config.run_folder / FILE, options_of(config)
    if own is None or own.stages or not (kept.is_file() and mesh.is_file()):
        return 0
    try:
        done = load_meta(kept)["start"] * own.updates_per_evaluation
    except (UserError, ValueError, KeyError):
        return 0
    together_s = 1  # files of one run that were copied together
    later = kept.stat().st_mtime > mesh.stat().st_mtime + together_s
    return done if later and done < own.steps else 0


def options_of(config: Config) -> Config | None:
    """The options of the run in the configuration's folder; None without one, or where a version had others."""
    options = config.run_folder / "config.yaml"
    try:
        return load(["--config", str(options)])[0] if options.is_file() else None
    except (UserError, ValueError, KeyError):
        return None
