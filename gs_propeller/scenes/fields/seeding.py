"""Fields that start from another scene."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gs_propeller.scenes.fields.march import Look, composed, ground
from gs_propeller.scenes.fields.settings import FieldSettings
from gs_propeller.scenes.fields.state import FieldState, Grids, first_state
from gs_propeller.scenes.volume import Volume, regridded

SOLID, CLEAR = 25.0, -5.0  # raw densities well inside and well outside; DreamFusion's mesh is at 25
SLOPE = 20.0  # of the raw density, per cell of distance
PALE = 0.02  # a seed's colours keep so far from black and white that they can learn


@torch.no_grad()
def held(grid: Tensor, field: FieldSettings, look: Look, channels: int) -> FieldState:
    """The state of step 0 that holds `grid` [R, R, R, C], at its finest corners, first density or distance included;
    further channels are 0."""
    first = first_state(field.grid_cells, field.grid_levels, channels=channels)
    finest = torch.zeros_like(first.params.levels[-1])
    finest[..., : grid.shape[-1]] = grid
    finest[..., 0] -= ground(finest, look)
    params = Grids((*first.params.levels[:-1], finest))
    return FieldState(params, first.exp_avg, first.exp_avg_sq, 0)


@torch.no_grad()
def again(
    grids: Grids, was: Look, field: FieldSettings, look: Look, plain: Callable[[Tensor], Tensor]
) -> FieldState:
    """Grids of the same kind to start from, on the settings' own; plain(grid): what other corners are told of one."""
    now = held(
        regridded(plain(composed(grids, was)), was.extent, field.grid_cells, field.grid_extent), field, look,
        grids.levels[0].shape[-1],
    )  # fmt: skip
    same = [level.shape for level in now.params.levels] == [
        level.shape for level in grids.levels
    ] and was == look
    return FieldState(grids, now.exp_avg, now.exp_avg_sq, 0) if same else now


@torch.no_grad()
def started(volume: Volume, field: FieldSettings, look: Look, channels: int) -> FieldState:
    """From a volume: distances as they are, or densities that rise across its surface."""
    there = volume.on(field.grid_cells, field.grid_extent)
    raw = there.distance if look.sdf else (-SLOPE * there.distance / field.cell).clamp(CLEAR, SOLID)
    colour = there.colour.clamp(PALE, 1 - PALE).logit()
    return held(torch.cat([raw[..., None], colour], -1), field, look, channels)
