"""scene=field, sdf and tetrahedra: grids, seen in three ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gs_propeller.app.config import Config, Sections
from gs_propeller.app.kinds.kind import PINHOLE, Kind, Silhouettes
from gs_propeller.base.camera import Cameras
from gs_propeller.distil.distillation import Distillation, View
from gs_propeller.mesh.field_surface import density_of_field, extract_field
from gs_propeller.mesh.surface import Mesh, solid
from gs_propeller.scenes.fields import march, seeding
from gs_propeller.scenes.fields.march import composed
from gs_propeller.scenes.fields.scene import FieldScene, look_of
from gs_propeller.scenes.fields.state import CHANNELS, FieldState, Grids, Slope
from gs_propeller.scenes.tetrahedra import scene as tetrahedra
from gs_propeller.scenes.tetrahedra.extract import extract_tets
from gs_propeller.scenes.tetrahedra.march import straightened
from gs_propeller.scenes.tetrahedra.scene import TetScene
from gs_propeller.scenes.volume import Volume, distances, light

DARK = 0.3  # of the light is gone: there a field is handed on as solid, though its density is below the surface's


def _last_look(s: Sections) -> march.Look:
    return look_of(s.field, s.sdf, s.scene.scene, 1.0)


def _field(s: Sections, common: dict[str, Any]) -> Distillation:
    return FieldScene(field=s.field, sdf=s.sdf, shaping=s.shaping, **common)


def _tetrahedra(s: Sections, common: dict[str, Any]) -> Distillation:
    return TetScene(field=s.field, sdf=s.sdf, shaping=s.shaping, tets=s.tets, **common)


def _views(render: Callable[..., Sequence[View]]) -> Any:
    """The kind's views, by its renderer."""

    def views(config: Config, params: Grids, cameras: Cameras, size: int) -> tuple[Tensor, Tensor]:
        white = torch.ones(3, device=params.device)
        (view,) = render(params, _last_look(config.sections), [(cameras, size, white)])
        return view.image, view.alpha

    return views


def _field_mesh(config: Config, params: Grids, silhouettes: Silhouettes) -> Mesh:
    look = _last_look(config.sections)
    return extract_field(params, look, config.mesh_resolution, config.mesh_faces, silhouettes)


def _tet_mesh(config: Config, params: Grids, silhouettes: Silhouettes) -> Mesh:
    return extract_tets(params, _last_look(config.sections), config.mesh_faces)


def _plain(grid: Tensor) -> Tensor:
    """Without the corners' shifts, where there are any."""
    return straightened(grid) if grid.shape[-1] == tetrahedra.CHANNELS else grid


def _volume(config: Config, params: Grids, silhouettes: Silhouettes) -> Volume:
    look = _last_look(config.sections)
    grid = composed(params, look)
    if look.sdf:
        grid = _plain(grid)
        distance = grid[..., 0].contiguous()
    else:
        cell = 2 * look.extent / params.cells
        density, level = density_of_field(params, look, params.cells + 1, silhouettes)
        lowest, highest = (config.elevation + x for x in (config.min_elevation, config.max_elevation))
        dark = 1 - light(torch.from_numpy(density), cell, lowest, highest)
        inside = np.maximum(density / level, dark.numpy() / DARK)
        distance = distances(torch.from_numpy(solid(inside, 1.0, PINHOLE)), 1.0, cell)
    return Volume(distance, grid[..., 1:4].sigmoid(), look.extent)


def _started(channels: int) -> Any:
    return lambda s, volume: seeding.started(volume, s.field, _last_look(s), channels)


def _again(config: Config, params: Grids, s: Sections) -> FieldState:
    return seeding.again(params, _last_look(config.sections), s.field, _last_look(s), _plain)


FIELDS = Kind(
    "grid numbers", Grids, Slope, FieldState.from_tensors, _field, _views(march.render), _field_mesh, march.warm,
    _volume, _started(CHANNELS), _again,
)  # fmt: skip
TETRAHEDRA = FIELDS._replace(
    scene=_tetrahedra,
    views=_views(tetrahedra.render),
    mesh=_tet_mesh,
    warm=tetrahedra.warm,
    started=_started(tetrahedra.CHANNELS),
)
