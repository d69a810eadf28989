"""The kinds of scene that `scene=` chooses among, as the program needs them: what travels, what is solved, seen and
meshed.

V views, S their side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gs_propeller.app.config import Config, Sections
from gs_propeller.base.camera import Cameras
from gs_propeller.distil.distillation import Distillation
from gs_propeller.mesh.field_surface import extract_field
from gs_propeller.mesh.surface import Mesh, extract
from gs_propeller.scenes.fields import march
from gs_propeller.scenes.fields.scene import FieldScene, look_of
from gs_propeller.scenes.fields.state import FieldState, Grids, Slope
from gs_propeller.scenes.gaussians.raster import cpu as raster_cpu
from gs_propeller.scenes.gaussians.raster.render import render
from gs_propeller.scenes.gaussians.scene import GaussianScene
from gs_propeller.scenes.gaussians.state import Evaluation, Gaussians, State


class Kind(NamedTuple):
    """size: what the number that a log calls N counts. params, gradients: the classes of what travels. read: a state
    from a checkpoint's tensors. scene(sections, the fields that all kinds share). views(config, params, cameras,
    size) -> (image [V, 3, S, S] over white, alpha [V, 1, S, S]). mesh(config, params on the CPU, silhouettes). warm:
    compiles the CPU's kernels."""

    size: str
    params: Any
    gradients: Any
    read: Callable[[dict[str, Tensor]], Any]
    scene: Callable[[Sections, dict[str, Any]], Distillation]
    views: Callable[[Config, Any, Cameras, int], tuple[Tensor, Tensor]]
    mesh: Callable[[Config, Any, Callable[[Mesh], float]], Mesh]
    warm: Callable[[], None]


def kind_of(config: Config) -> Kind:
    return GAUSSIANS if config.scene == "gaussians" else FIELDS


def _of_gaussians(s: Sections, common: dict[str, Any]) -> Distillation:
    return GaussianScene(
        ball=s.ball,
        adam=s.adam,
        density=s.density,
        regularisers=s.regularisers,
        backend=s.devices.raster,
        **common,
    )


def _gaussian_views(config: Config, params: Gaussians, cameras: Cameras, size: int) -> tuple[Tensor, Tensor]:
    white = torch.ones(3, device=params.means.device)
    rendered = render(params, cameras, size, white, backend=config.raster)
    return rendered.image, rendered.alpha


def _gaussian_mesh(config: Config, params: Gaussians, silhouettes: Callable[[Mesh], float]) -> Mesh:
    return extract(params, config.mesh_resolution, config.mesh_faces, silhouettes)


def _of_fields(s: Sections, common: dict[str, Any]) -> Distillation:
    return FieldScene(field=s.field, sdf=s.sdf, shaping=s.shaping, **common)


def _last_look(config: Config) -> march.Look:
    s = config.sections
    return look_of(s.field, s.sdf, config.scene, 1.0)


def _field_views(config: Config, params: Grids, cameras: Cameras, size: int) -> tuple[Tensor, Tensor]:
    white = torch.ones(3, device=params.device)
    (view,) = march.render(params, _last_look(config), [(cameras, size, white)])
    return view.image, view.alpha


def _field_mesh(config: Config, params: Grids, silhouettes: Callable[[Mesh], float]) -> Mesh:
    return extract_field(params, _last_look(config), config.mesh_resolution, config.mesh_faces, silhouettes)


GAUSSIANS = Kind(
    "Gaussians", Gaussians, Evaluation, State.from_tensors, _of_gaussians, _gaussian_views, _gaussian_mesh,
    raster_cpu.warm,
)  # fmt: skip
FIELDS = Kind(
    "numbers in grids", Grids, Slope, FieldState.from_tensors, _of_fields, _field_views, _field_mesh, march.warm
)  # fmt: skip
