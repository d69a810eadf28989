"""Options of the program itself: what goes in and where it goes, the machine, the priors, pictures of the result."""

from __future__ import annotations

from dataclasses import dataclass

from gs_propeller.base.errors import UserError
from gs_propeller.base.names import clean
from gs_propeller.base.options import Section, option


@dataclass(frozen=True)
class FileSettings(Section):
    """Input and output."""

    # fmt: off
    input: str = option(
        "", "picture to turn into an asset: PNG, JPEG, WebP, BMP or TIFF, with or without alpha; or a folder or "
        "pattern (*.png) of them", path=True)
    prompt: str = option("", "sentence to turn into an asset")
    negative_prompt: str = option("", "what the asset should not look like")
    name: str = option("", "of the run and its files; from the input's file name or the prompt where empty")
    outdir: str = option("runs", "folder that the run's folder goes into", path=True)
    resume: bool = option(True, "go on from the run folder's checkpoint; false starts anew")
    seed: int = option(0, "of every random number", "", 0, 2**31 - 1)
    checkpoint_every_s: float = option(30.0, "time between checkpoints", "s", 0)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name and ("/" in self.name or "\\" in self.name or not clean(self.name)):
            raise UserError(
                f"name={self.name} cannot be a folder's name; outdir= says which folder it goes into"
            )


@dataclass(frozen=True)
class PlanSettings(Section):
    """From coarse to fine."""

    # fmt: off
    init: str = option(
        "", "run folder whose asset this one starts from, such as runs/NAME, of whatever kind of scene", path=True)
    stages: str = option(
        "", "runs that this one is made of, each with options of its own and from the one before: "
        "[{scene: field, steps: 300}, {scene: tetrahedra, render_size: 128}]")
    changes: str = option(
        "", "options of views, noise levels and losses from an update on: {600: {render_size: 128, batch_size: 2}}")
    # fmt: on


@dataclass(frozen=True)
class CutSettings(Section):
    """How the object is found in the picture."""

    # fmt: off
    cutout: str = option(
        "auto", "auto searches for the object where transparency shows none, search always, keep never: what is not "
        "transparent is the object", choices=("auto", "search", "keep"))
    cutout_box: str = option(
        "", "left,top,right,bottom of the object, shares of the picture's sides (0.1,0.2,0.9,1); outside is background")
    cutout_threshold: float = option(
        1.0, "how unlike the background the object is taken to be, against the usual; less keeps more", "", 0.1, 10)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        self.box()

    def box(self) -> tuple[float, float, float, float] | None:
        """(left, top, right, bottom) in 0..1. Raises UserError."""
        if not self.cutout_box:
            return None
        try:
            left, top, right, bottom = (float(x) for x in self.cutout_box.split(","))
            if 0 <= left < right <= 1 and 0 <= top < bottom <= 1:
                return left, top, right, bottom
        except ValueError:
            pass  # said below
        raise UserError(
            f"cutout_box={self.cutout_box} is not left,top,right,bottom between 0 and 1, such as 0.1,0.2,0.9,1"
        )


@dataclass(frozen=True)
class DeviceSettings(Section):
    """The machine."""

    # fmt: off
    device: str = option(
        "auto", "auto takes CUDA where there is one and, for Gaussians, a rasteriser works on it; mps has the prior on "
        "an Apple GPU, untested, and the CPU draws", choices=("auto", "cpu", "cuda", "mps"))
    ranks: int = option(0, "processes, a device each; 0: every visible GPU, or one on a CPU", "", 0, 1024)
    group: int = option(0, "ranks to a picture, of many pictures; 0: as even as it goes", "", 0, 1024)
    rollout_device: str = option(
        "auto", "what rank 0 does: shared takes drifts as the others do, own rolls out alone (the paper), auto takes "
        "the faster by what both have cost; with vsd it is shared", choices=("auto", "shared", "own"))
    threads: int = option(0, "CPU threads of a rank; 0: its share of the cores", "", 0, 1024)
    raster: str = option(
        "auto", "splatting backend; cpu takes CUDA tensors through the host",
        choices=("auto", "cpu", "gsplat", "inria"))
    timeout_s: float = option(600.0, "longest wait for another rank", "s", 1, 1e6)
    batch_slots: int = option(
        0, "slots of a rank in one render and one UNet call; 0: on CUDA as many as its memory holds, on a CPU 1", "",
        0, 1024)
    compile: bool = option(False, "torch.compile: minutes at the start, then faster steps")
    attention_slicing: str = option(
        "auto", "less memory, slower; auto: on GPUs of less than 8 GiB where attention is not torch's own",
        choices=("auto", "on", "off"))
    precision: str = option(
        "auto", "of the prior; auto: float16 on CUDA, float32 on a CPU",
        choices=("auto", "float32", "float16", "bfloat16"))
    # fmt: on


@dataclass(frozen=True)
class PriorSettings(Section):
    """Which priors, and what they are told."""

    # fmt: off
    prior: str = option(
        "auto", "Zero-1-to-3 folder in diffusers format or hub id; pocket: the shipped one; auto: published weights "
        "that the cache has whole, or with a GPU the hub, else pocket", path=True)
    text_prior: str = option("auto", "the same for prompt=: a Stable Diffusion folder or hub id", path=True)
    camera_code: str = option(
        "auto", "how the prior is told of cameras: stable is Stable-Zero123's, relative all others'; auto: by the "
        "folder", choices=("auto", "relative", "stable"))
    loss: str = option(
        "sds", "score distillation: sds, or vsd, whose LoRA of each prior learns the renders beside the asset",
        choices=("sds", "vsd"))
    lora_rank: int = option(4, "of the LoRA of loss=vsd", "", 1, 256)
    lora_lr: float = option(1e-3, "its learning rate", "", 0)
    guidance_scale: float = option(
        1.0, "classifier-free guidance, at 1 none, which takes one pass of the network; DreamGaussian: 5 with "
        "zero123-xl", "", 0, 1000)
    text_guidance_scale: float = option(
        5.0, "the same of the text prior; DreamGaussian: 100 with Stable Diffusion", "", 0, 1000)
    csd_below: float = option(
        0.0, "noise level, share of all, below which a text prior pulls by what the sentence changes (classifier score "
        "distillation): what it does to any picture fades blurred renders; 0: nowhere; not with vsd", "", 0, 1)
    csd_rest: float = option(0.3, "share of the rest of the pull that is kept there", "", 0, 1)
    lambda_zero123: float = option(1.0, "weight of the picture's prior in score distillation", "", 0)
    lambda_sd: float = option(1.0, "of the text prior in it", "", 0)
    front_deg: float = option(90.0, "of azimuths that are called front view, and as many back view", "deg", 1, 179)
    overhead_deg: float = option(60.0, "elevation from which a view is called overhead", "deg", -90, 90)
    # fmt: on


@dataclass(frozen=True)
class MediaSettings(Section):
    """Pictures and copies of the result."""

    # fmt: off
    turntable_frames: int = option(60, "of the turntable; 0: none", "frames", 0, 10_000)
    turntable_size: int = option(256, "side of the turntable and the contact sheet's views", "px", 16, 2048)
    fps: int = option(30, "of the turntable", "frames/s", 1, 240)
    snapshots: int = option(0, "states on the way that are kept, evenly spread, for the viewer's slider", "", 0, 10_000)
    compressed: str = option(
        "none", "splat beside the .ply, a tenth of its size: .spz by gsply, .sog by splat-transform, where installed",
        choices=("none", "spz", "sog"))
    # fmt: on
