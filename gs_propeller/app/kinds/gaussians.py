"""scene=gaussians."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.app.config import Config, Sections
from gs_propeller.app.kinds.kind import PINHOLE, Kind, Silhouettes
from gs_propeller.base.camera import Cameras
from gs_propeller.distil.distillation import Distillation
from gs_propeller.mesh.surface import Mesh, density_of, extract, solid
from gs_propeller.scenes.gaussians import seeding
from gs_propeller.scenes.gaussians.raster import cpu as raster_cpu
from gs_propeller.scenes.gaussians.raster.render import render
from gs_propeller.scenes.gaussians.scene import GaussianScene
from gs_propeller.scenes.gaussians.state import Evaluation, Gaussians, State, start
from gs_propeller.scenes.volume import Volume, corners, distances


def _scene(s: Sections, common: dict[str, Any]) -> Distillation:
    return GaussianScene(
        ball=s.ball,
        adam=s.adam,
        density=s.density,
        regularisers=s.regularisers,
        backend=s.devices.raster,
        **common,
    )


def _views(config: Config, params: Gaussians, cameras: Cameras, size: int) -> tuple[Tensor, Tensor]:
    white = torch.ones(3, device=params.means.device)
    rendered = render(params, cameras, size, white, backend=config.raster)
    return rendered.image, rendered.alpha


def _mesh(config: Config, params: Gaussians, silhouettes: Silhouettes) -> Mesh:
    return extract(params, config.mesh_resolution, config.mesh_faces, silhouettes)


def _volume(config: Config, params: Gaussians, silhouettes: Silhouettes) -> Volume:
    found = density_of(params, config.mesh_resolution, silhouettes, centred=True)
    distance = distances(torch.from_numpy(solid(found.grid, found.level, PINHOLE)), found.level, found.cell)
    colour = seeding.colours(found.gaussians, corners(config.mesh_resolution, found.extent).reshape(-1, 3))
    return Volume(distance, colour.reshape(*distance.shape, 3), found.extent)


def _started(s: Sections, volume: Volume) -> State:
    return seeding.started(volume, s.ball, s.files.seed)


def _again(config: Config, params: Gaussians, s: Sections) -> State:
    rest = (s.ball.sh_degree + 1) ** 2 - 1 - params.sh_rest.shape[1]
    return start(replace(params, sh_rest=F.pad(params.sh_rest, (0, 0, 0, rest))))  # cut where it is less


GAUSSIANS = Kind(
    "Gaussians", Gaussians, Evaluation, State.from_tensors, _scene, _views, _mesh, raster_cpu.warm, _volume, _started,
    _again,
)  # fmt: skip
