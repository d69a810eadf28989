"""The configuration: one flat, frozen, checked record; YAML holds differences, key=value overrides both.

Angles are degrees here and nowhere else. 0 or "" means "decide for me" where the remark says so.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gs_propeller.base.errors import UserError
from gs_propeller.base.names import clean

SECTIONS = (
    "input and output",
    "devices",
    "prior",
    "losses",
    "window",
    "Gaussians",
    "mesh and texture",
    "pictures of the result",
)

PATHS = ("input", "outdir", "mesh", "prior", "text_prior")  # options that are paths, or may be
HERE = next((p for p in Path(__file__).resolve().parents if (p / "configs").is_dir()), Path())  # this project


def _option(
    default: Any, section: int, remark: str, unit: str = "", low: float | None = None, high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    extra = {
        "section": SECTIONS[section],
        "help": remark,
        "unit": unit,
        "low": low,
        "high": high,
        "choices": choices,
    }
    return field(default=default, metadata=extra)


@dataclass(frozen=True)
class Config:
    """Every option. Raises UserError for a value out of range or not among the choices.

    Defaults suit two CPU cores and the pocket prior; what DreamGaussian or the paper use stands in the remark.
    """

    input: str = _option(
        "",
        0,
        "picture to turn into an asset: PNG, JPEG or WebP, with or without alpha; or a folder or pattern "
        "(*.png) of them",
        "",
    )
    prompt: str = _option("", 0, "sentence to turn into an asset")
    negative_prompt: str = _option("", 0, "what the asset should not look like")
    elevation: float = _option(
        0.0, 0, "of the camera that took the picture, above the horizon", "deg", -80, 80
    )
    name: str = _option(
        "", 0, "of the run and its files; from the input's file name or the prompt where empty"
    )
    outdir: str = _option("runs", 0, "folder that the run's folder goes into")
    resume: bool = _option(True, 0, "go on from the run folder's checkpoint; false starts anew")
    seed: int = _option(0, 0, "of every random number", "", 0, 2**31 - 1)

    device: str = _option(
        "auto", 1, "auto takes CUDA where there is one", "", choices=("auto", "cpu", "cuda")
    )
    ranks: int = _option(0, 1, "processes, a device each; 0: every visible GPU, or one on a CPU", "", 0, 1024)
    group: int = _option(0, 1, "ranks to a picture, of many pictures; 0: as even as it goes", "", 0, 1024)
    threads: int = _option(0, 1, "CPU threads of a rank; 0: its share of the cores", "", 0, 1024)
    raster: str = _option("auto", 1, "splatting backend", "", choices=("auto", "cpu", "gsplat", "inria"))
    timeout_s: float = _option(600.0, 1, "longest wait for another rank", "s", 1, 1e6)

    prior: str = _option(
        "auto", 2, "Zero-1-to-3 folder in diffusers format or hub id; pocket: the shipped one; auto: published weights "
        "that the cache has whole, or with a GPU the hub, else pocket"
    )  # fmt: skip
    text_prior: str = _option("auto", 2, "the same for prompt=: a Stable Diffusion folder or hub id")
    camera_code: str = _option("auto", 2, "how the prior is told of cameras: stable is Stable-Zero123's, relative all "
                               "others'; auto: by the folder", "", choices=("auto", "relative", "stable"))  # fmt: skip
    compile: bool = _option(False, 2, "torch.compile: minutes at the start, then faster steps")
    attention_slicing: str = _option("auto", 2, "less memory, slower; auto: on GPUs of less than 8 GiB", "",
                                     choices=("auto", "on", "off"))  # fmt: skip
    precision: str = _option("auto", 2, "of the prior; auto: float16 on CUDA, float32 on a CPU", "",
                             choices=("auto", "float32", "float16", "bfloat16"))  # fmt: skip
    loss: str = _option("sds", 2, "score distillation: sds, or vsd, whose LoRA of each prior learns the renders beside "
                        "the asset", "", choices=("sds", "vsd"))  # fmt: skip
    lora_rank: int = _option(4, 2, "of the LoRA of loss=vsd", "", 1, 256)
    lora_lr: float = _option(1e-3, 2, "its learning rate", "", 0)
    guidance_scale: float = _option(
        2.0, 2, "classifier-free guidance; DreamGaussian: 5 with zero123-xl", "", 0, 1000
    )
    text_guidance_scale: float = _option(
        5.0, 2, "the same of the text prior; DreamGaussian: 100 with Stable Diffusion", "", 0, 1000
    )
    front_deg: float = _option(
        90.0, 2, "of azimuths that are called front view, and as many back view", "deg", 1, 179
    )
    overhead_deg: float = _option(60.0, 2, "elevation from which a view is called overhead", "deg", -90, 90)
    sds_weight: str = _option("noise", 2, "of the noise levels: noise has sigma^2, DreamGaussian's; clean pulls as "
                              "hard at every level", "", choices=("noise", "clean"))  # fmt: skip
    sds_space: str = _option("latent", 2, "where renders meet what the prior makes of them: latents (DreamGaussian) or "
                             "pictures, which keeps a small VAE's colours true; with vsd, pictures beside latents", "",
                             choices=("latent", "pixel"))  # fmt: skip
    t_min: float = _option(
        0.6,
        2,
        "lowest noise level, share of all; DreamGaussian: 0.02. The pocket prior is best at high noise",
        "",
        0,
        1,
    )
    t_max: float = _option(0.98, 2, "highest noise level, share of all", "", 0, 1)
    anneal_t: bool = _option(True, 2, "go down from t_max to t_min over the steps; false draws uniformly")
    batch_size: int = _option(
        4, 2, "novel views a step; the paper: 16, four times dearer on a CPU", "views", 1, 256
    )
    render_size: int = _option(0, 2, "of novel views; 0: the prior's own side", "px", 0, 2048)
    min_elevation: float = _option(-30.0, 2, "of novel views, from the input's", "deg", -90, 90)
    max_elevation: float = _option(30.0, 2, "of novel views, from the input's", "deg", -90, 90)
    radius: float = _option(2.0, 2, "camera distance", "world units", 0.5, 100)
    fov_y_deg: float = _option(49.1, 2, "vertical field of view", "deg", 5, 150)
    invert_background: float = _option(0.0, 2, "probability of a black backdrop; DreamGaussian: 0.5. The pocket prior "
                                       "has seen white only", "", 0, 1)  # fmt: skip

    lambda_sds: float = _option(1.0, 3, "weight of score distillation", "", 0)
    lambda_zero123: float = _option(1.0, 3, "of the picture's prior in it", "", 0)
    lambda_sd: float = _option(1.0, 3, "of the text prior in it", "", 0)
    lambda_rgb: float = _option(10000.0, 3, "of the input view's colour, as DreamGaussian", "", 0)
    lambda_mask: float = _option(1000.0, 3, "of the input view's mask, as DreamGaussian", "", 0)
    lambda_opacity: float = _option(0.0, 3, "of half-transparency, mean o (1 - o)", "", 0)
    lambda_scale: float = _option(0.0, 3, "of large Gaussians, mean squared scale", "", 0)
    reference_size: int = _option(128, 3, "side at which the input view is fitted", "px", 16, 1024)

    steps: int = _option(
        300,
        4,
        "T, optimisation steps; DreamGaussian: 500. The pocket prior gains nothing past 300",
        "",
        1,
        1_000_000,
    )
    window: int = _option(
        0, 4, "P, steps evaluated at once; 0: as many as ranks, 1: the serial loop", "", 0, 1024
    )
    threshold: float = _option(5e-4, 4, "e, first fixed-point threshold (paper, Tables 3 and 4)", "", 0)
    ema: float = _option(0.9, 4, "gamma, of the adaptive threshold; 1 keeps it", "", 0, 1)
    aggregate: str = _option(
        "mean", 4, "M, of the window's errors; the paper: median", "", choices=("median", "mean")
    )
    tail: str = _option(
        "momentum", 4, "what fills the window's end; copy is the paper's", "", choices=("momentum", "copy")
    )
    distance: str = _option("paper", 4, "d of a guess: paper is the mean squared difference; scaled is the worst "
                            "field's rms, weighed by atol and rtol (threshold near 1)", "",
                            choices=("paper", "scaled"))  # fmt: skip
    atol: float = _option(0.01, 4, "of distance=scaled: what counts as 1 of a parameter near 0", "", 1e-9)
    rtol: float = _option(0.01, 4, "of distance=scaled: and the share of a large one", "", 0)
    batch_slots: int = _option(
        0, 4, "slots of a rank in one render and one UNet call; 0: all on CUDA, 1 on a CPU", "", 0, 1024
    )
    nonfinite: str = _option(
        "stop",
        4,
        "what a gradient that is not finite does; skip takes zero instead",
        "",
        choices=("stop", "skip"),
    )
    checkpoint_every_s: float = _option(30.0, 4, "time between checkpoints", "s", 0)

    num_points: int = _option(1500, 5, "Gaussians at the start; DreamGaussian: 5000", "", 4, 10_000_000)
    init_radius: float = _option(0.5, 5, "of the ball that they fill", "world units", 0.01, 10)
    sh_degree: int = _option(0, 5, "of the colours' spherical harmonics", "", 0, 3)
    position_lr_init: float = _option(0.001, 5, "learning rate of means at first, times 10", "", 0)
    position_lr_final: float = _option(0.00002, 5, "and after position_lr_steps", "", 0)
    position_lr_steps: int = _option(300, 5, "steps from the first to the last", "", 1)
    feature_lr: float = _option(0.01, 5, "of colours", "", 0)
    opacity_lr: float = _option(0.05, 5, "of opacities", "", 0)
    scaling_lr: float = _option(0.005, 5, "of log-scales", "", 0)
    rotation_lr: float = _option(0.005, 5, "of quaternions", "", 0)
    densify_from: int = _option(50, 5, "first densification", "step", 0)
    densify_until: int = _option(210, 5, "last densification", "step", 0)
    densify_every: int = _option(50, 5, "between densifications; DreamGaussian: 100", "steps", 1)
    densify_grad_threshold: float = _option(
        0.5, 5, "2D gradient from which a Gaussian is cloned or split", "", 0
    )
    opacity_reset_every: int = _option(700, 5, "between opacity resets", "steps", 1)
    min_opacity: float = _option(0.01, 5, "below it a Gaussian is pruned", "", 0.0001, 0.9)
    max_gaussians: int = _option(8000, 5, "bound on their number", "", 16, 100_000_000)

    mesh_resolution: int = _option(128, 6, "of the density grid", "voxels", 16, 512)
    mesh_faces: int = _option(10_000, 6, "after decimation", "faces", 100, 10_000_000)
    texture_size: int = _option(1024, 6, "side of the texture", "px", 64, 8192)
    bake_views: int = _option(32, 6, "that the texture is baked from", "views", 4, 512)
    bake_size: int = _option(256, 6, "side of those views", "px", 64, 2048)
    mesh: str = _option("", 6, "mesh to refine; empty: the first stage's", "")
    refine_steps: int = _option(
        60, 6, "of texture refinement (main2_mesh.py); DreamGaussian: 50", "steps", 1, 100_000
    )
    refine_batch: int = _option(4, 6, "views a refinement step", "views", 1, 256)
    texture_lr: float = _option(0.005, 6, "learning rate of the texture, at first; DreamGaussian: 0.2", "", 0)
    refine_guidance: float = _option(1.0, 6, "guidance scale of refinement; DreamGaussian: 5", "", 0, 1000)
    refine_text_guidance: float = _option(3.0, 6, "the same of the text prior", "", 0, 1000)
    refine_strength_max: float = _option(0.95, 6, "noise strength of the first refinement step", "", 0.01, 1)
    refine_strength_min: float = _option(0.4, 6, "noise strength of the last", "", 0.01, 1)
    refine_denoise: int = _option(
        20, 6, "denoising steps from noise alone; a strength takes its share", "steps", 1, 1000
    )
    refine_texels: int = _option(
        64, 6, "side of the offset that all views learn: about what the prior resolves", "px", 16, 8192
    )
    train_geo: bool = _option(True, 6, "refinement moves the mesh's vertices too; DreamGaussian: false")
    geo_lr: float = _option(5e-4, 6, "of the vertices, at first; DreamGaussian: 0.0001", "world units", 0)
    lambda_smooth: float = _option(100.0, 6, "weight of vertex offsets' differences along edges", "", 0)
    lambda_normal: float = _option(0.01, 6, "weight of folds between neighbouring faces", "", 0)
    refine_threshold: float = _option(
        1e-5, 6, "e, first fixed-point threshold of refinement, squared colour", "", 0
    )

    turntable_frames: int = _option(60, 7, "of the turntable; 0: none", "frames", 0, 10_000)
    turntable_size: int = _option(
        256, 7, "side of the turntable and the contact sheet's views", "px", 16, 2048
    )
    fps: int = _option(30, 7, "of the turntable", "frames/s", 1, 240)

    def __post_init__(self) -> None:
        for name in PATHS:  # a shell leaves the ~ of input=~/photo.jpg alone
            object.__setattr__(self, name, os.path.expanduser(getattr(self, name)))
        if self.name and (re.search(r"[/\\]", self.name) or not clean(self.name)):
            raise UserError(f"name={self.name} cannot be a folder's name; outdir= says which folder it goes into")
        for f in fields(self):
            value, meta = getattr(self, f.name), f.metadata
            _check_range(f.name, value, meta["low"], meta["high"], meta["unit"])
            if meta["choices"] and value not in meta["choices"]:
                raise UserError(f"{f.name}={value} is not one of {', '.join(meta['choices'])}")
        for low, high in (
            ("t_min", "t_max"),
            ("min_elevation", "max_elevation"),
            ("refine_strength_min", "refine_strength_max"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise UserError(f"{low}={getattr(self, low)} is above {high}={getattr(self, high)}")
        for name in ("position_lr_init", "position_lr_final", "densify_grad_threshold"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0")

    @property
    def run_name(self) -> str:
        """The run's name: given, or from the input's stem, or from the prompt's first words."""
        if self.name:
            return clean(self.name)
        return clean(Path(self.input).stem if self.input else self.prompt) or "asset"

    @property
    def run_folder(self) -> Path:
        return Path(self.outdir) / self.run_name


@dataclass(frozen=True)
class Flags:
    """What the command line asks for besides options."""

    dry_run: bool = False
    help: bool = False


def load(argv: Sequence[str]) -> tuple[Config, Flags]:
    """The configuration that the arguments describe: `--config FILE [key=value ...] [--dry-run] [--help]`.

    Raises UserError: no --config, no such file, an unknown key (with the nearest one), a wrong type or value.
    """
    path, pairs, dry_run = "", [], False
    words = list(argv)
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            return Config(), Flags(help=True)
        if word == "--dry-run":
            dry_run = True
        elif word == "--config":
            if not words:
                raise UserError("--config needs a file, such as configs/image.yaml")
            path = words.pop(0)
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
        elif "=" in word and not word.startswith("-"):
            pairs.append(word.split("=", 1))
        else:
            raise UserError(f"'{word}' is not an option; {_meant(word, pairs)}")
    if not path:
        raise UserError("say which configuration: --config configs/image.yaml input=PICTURE")
    if not Path(path).is_file() and (HERE / path).is_file():
        path = str(HERE / path)  # from any working folder
    config = updated(Config(), _read_yaml(path), f" (in {path})")
    return updated(config, dict(pairs)), Flags(dry_run)


def _meant(word: str, pairs: list[list[str]]) -> str:
    """What to do about a word that stands alone."""
    texts = {f.name for f in fields(Config) if isinstance(f.default, str) and not f.metadata["choices"]}
    if pairs and pairs[-1][0] in texts and not word.startswith("-"):
        key, value = pairs[-1]
        return f'a value with spaces wants quotes: {key}="{value} {word} ..."'
    return "options look like key=value, see --help"


def updated(config: Config, values: dict[str, Any], where: str = "") -> Config:
    """The configuration with these values; text is parsed to the option's type. Raises UserError."""
    known = {f.name: f for f in fields(Config)}
    parsed = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else "; --help lists all options"
            raise UserError(f"unknown option '{key}'{where}{hint}")
        parsed[key] = _typed(key, value, type(known[key].default), where)
    return replace(config, **parsed)


def to_yaml(config: Config) -> str:
    """Every option with its value."""
    return OmegaConf.to_yaml(OmegaConf.create({f.name: getattr(config, f.name) for f in fields(config)}))


def help_text() -> list[tuple[str, str, str, str, str]]:
    """(section, option, default, unit, remark) for each option."""
    rows = []
    for f in fields(Config):
        remark = f.metadata["help"]
        if f.metadata["choices"]:
            remark += f" ({' | '.join(f.metadata['choices'])})"
        default = str(f.default).lower() if isinstance(f.default, bool) else str(f.default)
        rows.append((f.metadata["section"], f.name, default or '""', f.metadata["unit"], remark))
    return rows


def _read_yaml(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(
            file.name, [p.name for p in file.parent.glob("*.yaml")] if file.parent.is_dir() else [], 1
        )
        hint = (
            f"; did you mean {file.parent / near[0]}?"
            if near
            else "; there are configs/image.yaml and configs/text.yaml"
        )
        raise UserError(f"no configuration file {path}{hint}")
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(file))
    except (OmegaConfBaseException, OSError, ValueError, YAMLError) as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} must hold key: value lines")
    return {str(k): v for k, v in loaded.items()}


def _typed(key: str, value: Any, kind: type, where: str) -> Any:
    """value as the option's type; command-line text is taken literally where a text is wanted."""
    if kind is str:
        return "" if value is None else str(value)
    text = str(value).strip()
    if kind is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
    elif not isinstance(value, bool):
        try:
            number = float(text)
            if kind is float:
                return number
            if number == int(number):
                return int(number)
        except (ValueError, OverflowError):
            pass  # said below, in the user's words
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
    raise UserError(f"{key}={value}{where}: {wanted} is wanted")


def _check_range(name: str, value: Any, low: float | None, high: float | None, unit: str) -> None:
    if isinstance(value, float) and value != value:
        raise UserError(f"{name} must be a number, not nan")
    unit = f" {unit}" if unit else ""
    if low is not None and value < low:
        raise UserError(f"{name}={value} is below its least value, {low:g}{unit}")
    if high is not None and value > high:
        raise UserError(f"{name}={value} is above its largest value, {high:g}{unit}")
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise UserError(f"{name} must be finite")
