"""A field to a closed triangle mesh: marching cubes of its density, or of the distance itself.

R points along a side of the cube that the field fills; what lies outside is nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.errors import UserError
from gs_propeller.mesh.surface import Array, Mesh, fitting, meshed
from gs_propeller.scenes.fields.march import Look, composed
from gs_propeller.scenes.fields.state import Grids

LEVELS = (2.0, 4.0, 8.0, 16.0, 32.0)  # densities per world unit tried; DreamFusion's mesh is at 25
TYPICAL = 8.0  # that which is taken where no silhouettes judge


@torch.no_grad()
def extract_field(
    grids: Grids,
    look: Look,
    resolution: int = 128,
    faces: int = 10_000,
    silhouettes: Callable[[Mesh], float] | None = None,
) -> Mesh:
    """A watertight mesh of about `faces` faces; never empty. silhouettes(mesh): how well a mesh fits the renders'
    alphas, higher is better: a density has no surface of its own. Raises UserError where the field is not finite."""
    cell, low = 2 * look.extent / (resolution - 1), np.full(3, -look.extent)
    if look.sdf:
        raw = _raw(grids, look, resolution)
        return meshed((1 - raw).clamp_min(0).numpy(), 1.0, cell, low, faces)
    grid, level = density_of_field(grids, look, resolution, silhouettes)
    return meshed(grid, level, cell, low, faces)


@torch.no_grad()
def density_of_field(
    grids: Grids, look: Look, resolution: int, silhouettes: Callable[[Mesh], float] | None = None
) -> tuple[Array, float]:
    """(density [R, R, R], the level that fits). Raises UserError where the field is not finite."""
    grid = F.softplus(_raw(grids, look, resolution)).numpy()
    cell, low = 2 * look.extent / (resolution - 1), np.full(3, -look.extent)
    return grid, fitting(grid, LEVELS, TYPICAL, cell, low, silhouettes)


def _raw(grids: Grids, look: Look, resolution: int) -> Tensor:
    """[R, R, R] of the first channel."""
    raw = composed(grids.map(lambda x: x.detach().cpu()), look)[None, None, ..., 0]
    if not bool(raw.isfinite().all()):
        raise UserError(
            "there is nothing to make a mesh of: the field is not finite; run again with resume=false"
        )
    return F.interpolate(raw, [resolution] * 3, mode="trilinear", align_corners=True)[0, 0]
