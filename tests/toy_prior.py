"""A prior in closed form, and a scene of few Gaussians under it that clone, split, die and are reset."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gs_propeller.distil.known import Known
from gs_propeller.distil.pull import Guide
from gs_propeller.distil.settings import (
    KnownSettings,
    LevelSettings,
    PullSettings,
    SceneSettings,
    ViewSettings,
)
from gs_propeller.scenes.gaussians.scene import GaussianScene
from gs_propeller.scenes.gaussians.settings import (
    AdamSettings,
    BallSettings,
    DensifySettings,
    RegulariserSettings,
)

UPDATES = 22
COLOUR = torch.tensor([0.9, 0.1, 0.2]).view(1, 3, 1, 1)


class Wavy:
    """Its clean picture is its colour, moved by the render (the more, the lower the noise), the camera and the noise.

    A picture at a time, by operations that round alike in any batch.
    """

    levels, size_px, latent_shape = 100, 12, (2, 3, 3)

    def clean(self, images: Tensor, conditioning: Any, cameras: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        share = (1 - t / self.levels)[:, None, None, None]
        moved = 2.0 * (images.roll(1, 3) - 0.5)
        told = 0.1 * cameras[:, 1:2, None, None] + 0.05 * noise[:, :1, :1, :1]
        return conditioning + share * moved / (1 + moved.abs()) + told

    def sds_grad(
        self,
        images: Tensor,
        conditioning: Any,
        cameras: Tensor,
        t: Tensor,
        noise: Tensor,
        guidance_scale: float,
        weighting: str = "noise",
        space: str = "latent",
    ) -> tuple[Tensor, Tensor]:
        images = images.detach()
        error = images - self.clean(images, conditioning, cameras, t, noise)
        return error, 0.5 * error.square().sum((1, 2, 3))

    def share(self, t: Tensor, space: str, follows: str) -> Tensor:
        share = 1 - t / self.levels
        return {"none": torch.zeros_like(share), "all": torch.ones_like(share)}.get(follows, share)

    def stiffness(self, t: Tensor, weighting: str, space: str, follows: str) -> Tensor:
        return 1 - self.share(t, space, follows)


ASKED: dict[str, Any] = {
    "batch_size": 2, "min_elevation": -20.0, "max_elevation": 25.0, "elevation": 6.0, "t_min": 0.1, "t_max": 0.9,
    "lambda_sds": 1.0, "lambda_rgb": 40.0, "lambda_mask": 20.0, "lambda_opacity": 0.1, "lambda_scale": 0.1,
    "lambda_haze": 0.2, "reference_size": 16, "num_points": 20, "position_lr_steps": UPDATES, "opacity_lr": 0.3,
    "densify_from": 3, "densify_until": 20, "densify_every": 4, "densify_grad_threshold": 0.4, "split_scale": 0.35,
    "max_scale": 0.9, "opacity_reset_every": 9, "min_opacity": 0.03, "max_gaussians": 60,
}  # fmt: skip
SHARED = ("views", "levels", "pull", "knowing", "settings")  # by all kinds of scenes
SECTIONS = {
    "views": ViewSettings,
    "levels": LevelSettings,
    "pull": PullSettings,
    "knowing": KnownSettings,
    "ball": BallSettings,
    "adam": AdamSettings,
    "density": DensifySettings,
    "regularisers": RegulariserSettings,
    "settings": SceneSettings,
}  # fmt: skip


def known(size: int = 16) -> Known:
    """A picture of noise whose object is a box."""
    generator = torch.Generator().manual_seed(0)
    picture = Known(torch.rand(1, 3, size, size, generator=generator), torch.zeros(1, 1, size, size))
    picture.mask[..., 3:13, 4:11] = 1.0
    return picture


def scene(updates: int = UPDATES, seed: int = 4, **options: Any) -> GaussianScene:
    """The scene with these options, by their own names."""
    asked = ASKED | options
    sections = {
        name: kind(**{key: value for key, value in asked.items() if key in kind.__dataclass_fields__})
        for name, kind in SECTIONS.items()
    }
    unknown = set(asked) - {key for kind in SECTIONS.values() for key in kind.__dataclass_fields__}
    assert not unknown, unknown
    return GaussianScene((Guide(Wavy(), COLOUR, 1.0),), known(), updates, seed, **sections)


def two_guides(made: GaussianScene) -> GaussianScene:
    """Under a second prior too, with another colour and weight."""
    return replace(made, guides=(*made.guides, Guide(Wavy(), 1 - COLOUR, 2.0, 0.3)))
