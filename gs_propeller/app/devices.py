"""Which device, number type and how many processes a configuration means on this machine."""

from __future__ import annotations

import os

import torch

from gs_propeller.app.config import Config
from gs_propeller.base.errors import UserError


def device_of(config: Config) -> torch.device:
    """This rank's device, made the current one if it is a GPU. Raises UserError."""
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise UserError("device=cuda, but torch sees no CUDA device; use device=auto")
    if config.device == "cpu" or not cuda:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.cuda.set_device(
        device
    )  # some packages launch their kernels on the current one, wherever the tensors are
    return device


def precision_of(config: Config, device: torch.device) -> torch.dtype:
    """The prior's."""
    if config.precision == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[config.precision]


def rank_count(config: Config) -> int:
    """Ranks that the plain command starts."""
    on_cuda = config.device != "cpu" and torch.cuda.is_available()
    return config.ranks or (torch.cuda.device_count() if on_cuda else 1)


def group_size(config: Config, ranks: int, pictures: int) -> int:
    """Ranks that work on one picture together. Raises UserError where groups of the asked size do not come out even."""
    if config.group:
        if ranks % config.group:
            raise UserError(f"group={config.group} does not divide the {ranks} ranks")
        return config.group
    # as many as there are for each picture, rounded down to what divides the ranks
    wanted = max(1, ranks // pictures)
    return next(size for size in range(wanted, 0, -1) if ranks % size == 0)
