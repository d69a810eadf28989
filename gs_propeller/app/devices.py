"""Which device, number type and how many processes a configuration means on this machine."""

from __future__ import annotations

import os

import torch

from gs_propeller.app.config import Config
from gs_propeller.app.events import Say
from gs_propeller.app.log import said_if_long, say_note
from gs_propeller.app.plan import stages_of
from gs_propeller.base.errors import UserError
from gs_propeller.scenes.gaussians.raster.ready import rasteriser, try_apart

COMPILING = "compiling the GPU rasteriser's kernels, once on this machine: some minutes"


def device_of(config: Config, splats: bool = True, say: Say = say_note) -> torch.device:
    """This rank's device, the prior's, made the current one if it is a GPU. splats: it is for a run of the first stage,
    so that auto, if Gaussians are drawn in it, takes CUDA only where a rasteriser works; that it does not is said.
    Raises UserError."""
    cuda = torch.cuda.is_available()
    if config.device == "mps":  # written, but never run on such a machine
        if not torch.backends.mps.is_available():
            raise UserError("device=mps, but torch sees no Apple GPU; use device=auto")
        return torch.device("mps")
    if config.device == "cuda" and not cuda:
        raise UserError("device=cuda, but torch sees no CUDA device; use device=auto")
    if config.device == "cpu" or not cuda:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(
        device
    )  # some packages launch their kernels on the current one, wherever the tensors are
    if not _rasterises(config, splats):
        return device
    with said_if_long(COMPILING, say, 5.0):
        trouble = rasteriser(config.raster)[1]
    if trouble is None:
        return device
    _asked_for(config, trouble)
    if config.device == "auto":
        say(
            f"on the CPU, though there is a GPU: {trouble}; or device=cuda raster=cpu, for the prior alone on it"
        )
        return torch.device("cpu")
    say(f"the CPU draws the Gaussians: {trouble}")
    return device


def scene_device(prior: torch.device) -> torch.device:
    """Where the scene lies: with its prior, but on the CPU where that is on an Apple GPU, which nothing draws on."""
    return torch.device("cpu") if prior.type == "mps" else prior


def precision_of(config: Config, device: torch.device) -> torch.dtype:
    """The prior's."""
    if config.precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[config.precision]


def rank_count(config: Config, splats: bool = True) -> int:
    """Ranks that the plain command starts. splats: as in device_of."""
    if config.ranks or not _cuda_wanted(config):
        return int(config.ranks) or 1
    gpus = torch.cuda.device_count()
    if gpus > 1 and config.device == config.raster == "auto" and _rasterises(config, splats):
        before_ranks(config)
        return 1 if rasteriser("auto")[1] is not None else gpus
    return gpus


def before_ranks(config: Config, splats: bool = True) -> None:
    """What ranks would else do all at once, done before they start: the rasteriser is compiled and tried.
    Raises UserError."""
    if _cuda_wanted(config) and _rasterises(config, splats):
        with said_if_long(COMPILING, say_note, 5.0):
            try_apart(config.raster)
        _asked_for(config, rasteriser(config.raster)[1])


def _rasterises(config: Config, splats: bool) -> bool:
    """Whether the run draws Gaussians at any stage; what draws fields, distances and tetrahedra is no rasteriser of
    theirs. splats: as in device_of."""
    return splats and any(stage.scene == "gaussians" for stage in stages_of(config))


def _cuda_wanted(config: Config) -> bool:
    return config.device not in ("cpu", "mps") and torch.cuda.is_available()


def _asked_for(config: Config, trouble: str | None) -> None:
    """Raises UserError where the rasteriser that does not work is the one that was named."""
    if trouble is not None and config.raster != "auto":
        raise UserError(f"{trouble}; or raster=cpu")


def half_of(config: Config) -> bool:
    """Whether the prior will be in half precision, before there is a device."""
    device = "cuda" if _cuda_wanted(config) else "cpu"
    return precision_of(config, torch.device(device)) != torch.float32


def group_size(config: Config, ranks: int, pictures: int) -> int:
    """Ranks that work on one picture together. Raises UserError where groups of the asked size do not come out even."""
    if config.group:
        if ranks % config.group:
            raise UserError(f"group={config.group} does not divide the {ranks} ranks")
        return config.group
    # as many as there are for each picture, rounded down to what divides the ranks
    wanted = max(1, ranks // pictures)
    return next(size for size in range(wanted, 0, -1) if ranks % size == 0)
