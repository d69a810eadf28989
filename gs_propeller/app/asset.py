"""An asset in the making: the problem that a picture poses, its solution, and what is made of it.

N Gaussians, V views. This is where the configuration meets the parts; none of them reads it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.app.config import Config
from gs_propeller.app.guides import Priors, guides
from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.base.picture import Picture
from gs_propeller.distil.losses import Distillation, Schedule, total
from gs_propeller.mesh.raster import rasterize
from gs_propeller.mesh.surface import Mesh, extract
from gs_propeller.mesh.texture import Reference, Textured, bake
from gs_propeller.scenes.gaussians.adam import AdamSettings
from gs_propeller.scenes.gaussians.density import (
    DensifySettings,
    coast,
    distance,
    reindex,
    scaled_distance,
    update,
)
from gs_propeller.scenes.gaussians.raster import render
from gs_propeller.scenes.gaussians.state import Drift, Gaussians, State, init_ball
from gs_propeller.solver.picard import Problem, Report, Settings
from gs_propeller.solver.ranks import Ranks


def schedule(config: Config) -> Schedule:
    """What a step looks like; degrees become radians here."""
    return Schedule(
        steps=config.steps,
        batch_size=config.batch_size,
        sds_weight=config.sds_weight,
        sds_space=config.sds_space,
        t_min=config.t_min,
        t_max=config.t_max,
        anneal_t=config.anneal_t,
        lambda_sds=config.lambda_sds,
        lambda_rgb=config.lambda_rgb,
        lambda_mask=config.lambda_mask,
        lambda_opacity=config.lambda_opacity,
        lambda_scale=config.lambda_scale,
        elevation_rad=math.radians(config.elevation),
        min_elevation_rad=math.radians(config.min_elevation),
        max_elevation_rad=math.radians(config.max_elevation),
        radius=config.radius,
        fov_y_rad=math.radians(config.fov_y_deg),
        reference_size=config.reference_size,
        render_size=config.render_size,
        invert_background=config.invert_background,
    )


def distillation(config: Config, picture: Picture | None, priors: Priors) -> Distillation:
    """The drift of this picture or prompt under these priors; the same on every rank."""
    device = priors.first.device
    size = (config.reference_size, config.reference_size)
    reference, mask = (
        F.interpolate(x[None].to(device), size, mode="bilinear", antialias=True, align_corners=False).clamp(
            0, 1
        )
        if x is not None
        else None
        for x in ((picture.rgb, picture.mask) if picture is not None else (None, None))
    )
    # Slot by slot a CPU loses nothing, and the bits do not depend on who computes a slot.
    at_once = config.batch_slots or (1 if device.type == "cpu" else config.window or 1)
    return Distillation(
        guides(config, picture, priors),
        reference,
        mask,
        schedule(config),
        config.seed,
        config.raster,
        at_once,
        config.nonfinite == "skip",
    )


def adam_settings(config: Config) -> AdamSettings:
    return AdamSettings(
        position_lr_init=config.position_lr_init,
        position_lr_final=config.position_lr_final,
        position_lr_steps=config.position_lr_steps,
        feature_lr=config.feature_lr,
        opacity_lr=config.opacity_lr,
        scaling_lr=config.scaling_lr,
        rotation_lr=config.rotation_lr,
    )


def densify_settings(config: Config) -> DensifySettings:
    return DensifySettings(
        start=config.densify_from,
        end=config.densify_until,
        every=config.densify_every,
        reset_every=config.opacity_reset_every,
        grad_threshold=config.densify_grad_threshold,
        min_opacity=config.min_opacity,
        max_gaussians=config.max_gaussians,
    )


class CheapLosses:
    """Losses of the cheap parts last rolled out, [L] by step, until the log has them."""

    def __init__(self) -> None:
        self.by_step: dict[int, Tensor] = {}

    def logged(self, report: Report[Any]) -> list[Tensor]:
        """The dear and the cheap losses of each accepted step; older ones are forgotten."""
        rows = [
            torch.cat([drift.losses, self.by_step[report.start + k].to(drift.losses)])
            for k, drift in enumerate(report.drifts)
        ]
        self.by_step = {k: v for k, v in self.by_step.items() if k >= report.start + report.accepted}
        return rows


class RollOut:
    """The cheap part of a step at its exact place: the known view's gradient, Adam, density control."""

    def __init__(self, config: Config, task: Distillation) -> None:
        self.task = task
        self.adam, self.density, self.seed = adam_settings(config), densify_settings(config), config.seed
        self.losses = CheapLosses()

    def __call__(self, state: State, drift: Drift) -> State:
        cheap = self.task.known(state.params, state.step)
        self.losses.by_step[state.step] = cheap.losses
        return update(state, total(reindex(drift, state), cheap), self.adam, self.density, self.seed)

    def coast(self, state: State) -> State:
        return coast(state, self.adam, self.density, self.seed)


def problem(config: Config, ranks: Ranks, roll_out: RollOut) -> Problem[State, Drift]:
    """The four functions that the solver integrates; the dear one runs on all ranks."""
    seed = config.seed
    measure = {
        "paper": lambda new, old: distance(new, old, seed),
        "scaled": lambda new, old: scaled_distance(new, old, seed, config.atol, config.rtol),
    }[config.distance]
    return Problem(ranks.evaluate, roll_out, measure, roll_out.coast)


def solver_settings(config: Config, world: int, second: bool = False) -> Settings:
    """A window of 0 is one slot for each rank: n devices, n steps at once (the paper: n - 1). second: stage 2's."""
    return Settings(
        steps=config.refine_steps if second else config.steps,
        window=config.window or world,
        threshold=config.refine_threshold if second else config.threshold,
        ema=config.ema,
        aggregate=config.aggregate,
        tail=config.tail,
    )


def first_state(config: Config, device: torch.device | str) -> State:
    return init_ball(config.num_points, config.init_radius, config.sh_degree, config.seed, device)


def orbit_camera(config: Config, azimuths_deg: Sequence[float], elevations_deg: Sequence[float]) -> Cameras:
    """V cameras at the configuration's distance; azimuth 0 is the input view's, elevations are absolute."""
    azimuths, elevations = (
        torch.tensor(list(angles), dtype=torch.float64).deg2rad() for angles in (azimuths_deg, elevations_deg)
    )
    return orbit(azimuths, elevations, config.radius, math.radians(config.fov_y_deg))


def reference_of(config: Config, picture: Picture | None) -> Reference | None:
    """The input picture, if there is one, with the camera that took it."""
    if picture is None:
        return None
    return Reference(picture.rgb[None], picture.mask[None], orbit_camera(config, [0.0], [config.elevation]))


@dataclass(frozen=True)
class Viewer:
    """Renders a solution from where its configuration puts the cameras."""

    gaussians: Gaussians
    config: Config

    def cameras(self, azimuths_deg: Sequence[float], elevations_deg: Sequence[float]) -> Cameras:
        """V cameras; azimuth 0 is the input view's, elevations are absolute."""
        return orbit_camera(self.config, azimuths_deg, elevations_deg).to(self.gaussians.means.device)

    @torch.no_grad()
    def views(self, cameras: Cameras, size: int) -> tuple[Tensor, Tensor]:
        """(image [V, 3, S, S] over white, alpha [V, 1, S, S])."""
        white = torch.ones(3, device=self.gaussians.means.device)
        rendered = render(self.gaussians, cameras, size, white, backend=self.config.raster)
        return rendered.image, rendered.alpha

    def turntable(self, frames: int, size: int) -> Tensor:
        """[F, 3, S, S]: once round at the input's elevation, starting from its view."""
        azimuths = [360.0 * k / frames for k in range(frames)]
        return self.views(self.cameras(azimuths, [self.config.elevation] * frames), size)[0].clamp(0, 1).cpu()


def orbit_angles(count: int) -> tuple[list[float], list[float]]:
    """(azimuths, elevations) [V] degrees that see all sides: a spiral over three heights."""
    return [360.0 * k / count for k in range(count)], [(0.0, 30.0, -30.0, 65.0)[k % 4] for k in range(count)]


def textured_mesh(viewer: Viewer, picture: Picture | None) -> Textured:
    """Mesh and texture of a solution: the density threshold that fits the renders, colours from all round."""
    config = viewer.config
    gaussians = Gaussians(*(tensor.detach().cpu() for _, tensor in viewer.gaussians.items()))
    judged = orbit_camera(config, [0, 60, 120, 180, 240, 300, 0, 90], [config.elevation] * 6 + [60, -40])
    alphas = viewer.views(judged.to(viewer.gaussians.means.device), 96)[1][:, 0].cpu() > 0.5

    def silhouettes(mesh: Mesh) -> float:
        seen = rasterize(mesh, judged, 96).mask
        return float((seen & alphas).sum() / (seen | alphas).sum().clamp_min(1))

    mesh = extract(gaussians, config.mesh_resolution, config.mesh_faces, silhouettes)

    def render_views(cameras: Cameras, size: int) -> tuple[Tensor, Tensor]:
        image, alpha = viewer.views(cameras.to(viewer.gaussians.means.device), size)
        return image.cpu(), alpha.cpu()

    cameras = orbit_camera(config, *orbit_angles(config.bake_views))
    reference = reference_of(config, picture)
    return bake(mesh, render_views, cameras, config.texture_size, config.bake_size, reference)
