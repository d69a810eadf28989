"""What a step looks like: where its novel views stand and how much noise the priors see, a function of its number.

V novel views, C latent channels, L latent side. Steps count from 0 to T - 1. Azimuths are relative to the input view,
which stands at azimuth 0 and its own elevation. Options are in degrees, everything else in radians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gs_propeller.base.camera import Cameras, orbit, relative_cameras
from gs_propeller.base.randomness import keyed_generator
from gs_propeller.distil.settings import LevelSettings, ViewSettings
from gs_propeller.distil.symmetry import Variant, variant_of

STEEPEST_RAD = 1.5  # straight up or down has no azimuth


def camera_of(
    views: ViewSettings, azimuths_rad: Tensor | Sequence[float], elevations_rad: Tensor | Sequence[float]
) -> Cameras:
    """V cameras at the options' distance; elevations are absolute."""
    azimuths, elevations = torch.as_tensor(azimuths_rad), torch.as_tensor(elevations_rad)
    return orbit(azimuths, elevations, views.radius, views.fov_y_rad)


def camera_deg(
    views: ViewSettings, azimuths_deg: Sequence[float], elevations_deg: Sequence[float]
) -> Cameras:
    """The same by degrees; azimuth 0 is the input view's."""
    azimuths, elevations = (
        torch.tensor(list(x), dtype=torch.float64).deg2rad() for x in (azimuths_deg, elevations_deg)
    )
    return orbit(azimuths, elevations, views.radius, views.fov_y_rad)


def known_camera(views: ViewSettings) -> Cameras:
    """The one that took the input picture."""
    return orbit([0.0], [views.elevation_rad], views.radius, views.fov_y_rad)


class Noised(Protocol):
    """What a draw needs of a prior."""

    @property
    def levels(self) -> int: ...

    @property
    def latent_shape(self) -> tuple[int, int, int]: ...


@dataclass(frozen=True)
class Draw:
    """The random choices of one step: azimuths, elevations [V] radians, absolute; codes [V, 4], the cameras as
    priors are told them; backdrop [V, 3]; variant: how the picture's prior sees each view; and for each prior,
    t [V] and noise [V, C, L, L]."""

    azimuths: Tensor
    elevations: Tensor
    codes: Tensor
    backdrop: Tensor
    variant: Variant
    t: tuple[Tensor, ...]
    noise: tuple[Tensor, ...]


def where(step: int, views: ViewSettings, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(azimuths, elevations [V], backdrop [V, 3]) of a step's novel views: what its roll-out needs of the draw."""
    count, generator = views.batch_size, keyed_generator(seed, step, "views")
    # Stratified over the circle: V views of one step never look at the same side by chance.
    azimuths = (torch.arange(count) + torch.rand(count, generator=generator)) * (2 * math.pi / count)
    azimuths = azimuths + torch.rand(1, generator=generator) * 2 * math.pi
    low, high = views.novel_elevations_rad
    elevations = views.elevation_rad + low + (high - low) * torch.rand(count, generator=generator)
    dark = torch.rand(count, generator=generator) < views.invert_background
    return (
        azimuths,
        elevations.clamp(-STEEPEST_RAD, STEEPEST_RAD),
        (~dark).float()[:, None].expand(count, 3),
    )


def levels_of(step: int, steps: int, count: int, settings: LevelSettings, levels: int, seed: int) -> Tensor:
    """Timesteps [count] of a step of T, in 0 .. levels - 1."""
    if settings.anneal_t:
        share = torch.full((count,), settings.t_max + (settings.t_min - settings.t_max) * step / steps)
    else:
        uniform = torch.rand(count, generator=keyed_generator(seed, step, "t"))
        share = settings.t_min + (settings.t_max - settings.t_min) * uniform
    return (share * levels).long().clamp(0, levels - 1)


def draw(
    step: int, steps: int, views: ViewSettings, levels: LevelSettings, priors: Sequence[Noised], seed: int
) -> Draw:
    """The choices of `step` of T, a function of (seed, step) alone ("eliminating stochasticity", App. C)."""
    azimuths, elevations, backdrop = where(step, views, seed)
    count = views.batch_size
    t = tuple(levels_of(step, steps, count, levels, prior.levels, seed) for prior in priors)
    noise = tuple(
        torch.randn(
            count, *prior.latent_shape, generator=keyed_generator(seed, step, f"noise{k}" if k else "noise")
        )
        for k, prior in enumerate(priors)
    )
    codes = relative_cameras(views.elevation_rad, azimuths, elevations)
    return Draw(azimuths, elevations, codes, backdrop, variant_of(step, count, views, seed), t, noise)
