"""What one kind of scene hands to another that starts from it: signed distances and colours on a grid of corners.

R corners along a side of a cube round the origin, axes x, y, z.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor
from torch.nn import functional as F

NEAR = 1.5  # cells from the surface within which a distance is read off the slope of what was given
SOFT = 0.7  # cells: distances counted in voxels have steps


@dataclass(frozen=True)
class Volume:
    """distance [R, R, R] world units, below 0 inside; colour [R, R, R, 3] in 0..1; extent: half the cube's side."""

    distance: Tensor
    colour: Tensor
    extent: float

    @property
    def cell(self) -> float:
        return 2 * self.extent / (len(self.distance) - 1)

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(distance [K], colour [K, 3]) at points [K, 3], world units, trilinear; outside as on the border."""
        both = torch.cat([self.distance[..., None], self.colour], -1)
        found = sampled(both, points / self.extent)
        return found[:, 0], found[:, 1:]

    def on(self, cells: int, extent: float) -> Volume:
        """The same on another grid."""
        found = regridded(torch.cat([self.distance[..., None], self.colour], -1), self.extent, cells, extent)
        return Volume(found[..., 0].contiguous(), found[..., 1:].contiguous(), extent)


def regridded(grid: Tensor, extent: float, cells: int, other: float) -> Tensor:
    """grid [R, R, R, C] of half side `extent` at the corners of one of `cells` cells and half side `other`."""
    if len(grid) == cells + 1 and extent == other:
        return grid
    points = corners(cells + 1, other).to(grid) / extent
    return sampled(grid, points.reshape(-1, 3)).reshape(cells + 1, cells + 1, cells + 1, -1)


def corners(side: int, extent: float) -> Tensor:
    """[R, R, R, 3] world units."""
    axis = torch.linspace(-extent, extent, side)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)


def sampled(grid: Tensor, points: Tensor) -> Tensor:
    """[K, C] of grid [R, R, R, C] at points [K, 3] in -1..1, trilinear; outside as on the border."""
    table = grid.permute(3, 0, 1, 2)[None]
    at = points.flip(1)[None, None, None].to(grid)  # the last axis comes first
    return F.grid_sample(table, at, padding_mode="border", align_corners=True)[0, :, 0, 0].T


def light(density: Tensor, cell: float, lowest_deg: float, highest_deg: float) -> Tensor:
    """[R, R, R]: the most light that reaches a corner from outside along one of the straight ways to its neighbours
    that come from these elevations, the level ones always, by density [R, R, R] per world unit. What is dark no view
    sees into, however thin the density there is: space carving, softly."""
    depth = density.double().clamp_min(0) * cell
    ways = [
        way
        for way in itertools.product((-1, 0, 1), repeat=3)
        if any(way)
        and (
            way[1] == 0
            or lowest_deg <= math.degrees(math.atan2(-way[1], math.hypot(way[0], way[2]))) <= highest_deg
        )
    ]
    return torch.stack([_light_along(depth, way) for way in ways]).amax(0).to(density.dtype)


def _light_along(depth: Tensor, way: tuple[int, ...]) -> Tensor:
    """[R, R, R] from where the way, a step of -1, 0 or 1 along each axis, comes from; depth [R, R, R] for a cell."""
    ahead = next(axis for axis in range(3) if way[axis])
    turned = depth.movedim(ahead, 0) * math.sqrt(sum(map(abs, way)))
    turned = turned.flip(0) if way[ahead] < 0 else turned
    down, right = (way[axis] for axis in range(3) if axis != ahead)
    left, found = torch.ones_like(turned[0]), torch.empty_like(turned)
    for i, slab in enumerate(turned):
        padded = F.pad(left, (1, 1, 1, 1), value=1.0)
        left = padded[1 - down : len(left) + 1 - down, 1 - right : len(left) + 1 - right]
        found[i] = left * (-0.5 * slab).exp()
        left = left * (-slab).exp()
    return (found.flip(0) if way[ahead] < 0 else found).movedim(0, ahead)


def distances(density: Tensor, level: float, cell: float) -> Tensor:
    """[R, R, R] from the surface where density [R, R, R] is `level`, below 0 where it is above; world units."""
    d = density.double().numpy()
    inside = d > level
    if not inside.any():
        return torch.full(d.shape, cell * len(d))
    within = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1, 1:-1]  # outside the cube is nothing
    apart = distance_transform_edt(~inside) - within
    apart -= 0.5 * np.sign(apart)  # counted from a voxel of the other side; the surface lies half way
    slope = np.sqrt(sum(np.square(g) for g in np.gradient(d)))
    near = (level - d) / np.maximum(slope, 1e-9)
    close = np.abs(apart) < NEAR
    apart[close] = np.clip(near[close], -NEAR, NEAR)
    return torch.from_numpy(gaussian_filter(apart, SOFT) * cell).float()
