"""The elevation that a picture was taken from: the one under which views of the object all round agree.

A Zero-1-to-3 is told where a view stands from the picture's camera, so its views are the same whatever the elevation;
where they stand in the world is not. For each elevation that may be, the silhouettes are intersected, the visual hull
(Laurentini 1994) is looked at from where they would have been taken, and the elevation counts whose hull lost least.
V views with the picture's, S their side in pixels, G the hull's side in cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.camera import orbit, relative_cameras

CANDIDATES_DEG = tuple(range(-15, 46, 5))
# Where silhouettes agree as well from anywhere, as those of a ball or a post do, it is what most pictures have.
USUAL_DEG, USUALNESS = 5.0, 0.04  # the share that the loss grows by at 10 degrees from there
AROUND, LIFTS_DEG = 12, (0.0, 25.0, -25.0)  # views all round, at these heights from the picture's in turn
GRID, SIDE, DEPTHS = 24, 24, 28  # cells of the hull and pixels of its views along a side, samples of a ray
SOLID_DARKNESS = 0.12  # darkness of a pixel that is wholly the object

# camera codes [V, 4] -> the object from there, [V, 3, S, S] over white
Views = Callable[[Tensor], Tensor]


def estimated_deg(silhouette: Tensor, views: Views, radius: float, fov_y_rad: float) -> int:
    """Whole degrees above the horizon. silhouette [1, S, S] in 0..1: the picture's; radius: the cameras' distance from
    the object, world units."""
    azimuths, lifts = standing()
    seen = views(relative_cameras(0.0, azimuths, lifts)).cpu().float()
    found = ((1 - seen).amax(1, keepdim=True) / SOLID_DARKNESS).clamp(0, 1)
    sides = (SIDE * 2, SIDE * 2)
    silhouettes = torch.cat([F.interpolate(x, sides, mode="area") for x in (silhouette[None].cpu(), found)])
    losses = torch.tensor([lost(silhouettes, math.radians(e), radius, fov_y_rad) for e in CANDIDATES_DEG])
    return round(least(losses))


def standing() -> tuple[Tensor, Tensor]:
    """Azimuths and elevations [AROUND] of the views, radians, from the picture's."""
    azimuths = torch.arange(AROUND) * (2 * math.pi / AROUND)
    return azimuths, torch.tensor(LIFTS_DEG).deg2rad().repeat(AROUND // len(LIFTS_DEG))


def lost(silhouettes: Tensor, elevation_rad: float, radius: float, fov_y_rad: float) -> float:
    """Mean share of the silhouettes [V, 1, S, S], the picture's before those of `standing`, that their hull does not
    cover, if the picture was taken from that elevation."""
    azimuths, lifts = standing()
    turns, heights = (torch.cat([torch.zeros(1), x]) for x in (azimuths, lifts))
    w2c = orbit(turns, elevation_rad + heights, radius, fov_y_rad).w2c
    rotation, shift, half = w2c[:, :3, :3], w2c[:, :3, 3], math.tan(fov_y_rad / 2)
    reach = 1.04 * radius * half  # half the hull's side: what is seen at the object's distance, and more
    seen = _cells(reach) @ rotation.transpose(1, 2) + shift[:, None]
    inside = F.grid_sample(silhouettes, (seen[..., :2] / seen[..., 2:] / half)[:, None], align_corners=False)
    hull = inside.amin(0).reshape(1, 1, GRID, GRID, GRID)  # by x, y, z
    steps = torch.linspace(radius - 1.1 * reach, radius + 1.1 * reach, DEPTHS)
    points = _rays(half)[None, :, None] * steps[:, None]  # of each pixel and depth, before the camera
    world = (points - shift[:, None, None]) @ rotation[:, None]
    along = F.grid_sample(hull, (world / reach).flip(-1).reshape(1, -1, 1, DEPTHS, 3), align_corners=False)
    covered = along.reshape(len(w2c), -1, DEPTHS).amax(2)
    given = F.interpolate(silhouettes, (SIDE, SIDE), mode="area").flatten(1)
    return float(((given - covered).clamp_min(0).sum(1) / given.sum(1).clamp_min(1)).mean())


def least(losses: Tensor) -> float:
    """Degrees at which the losses of the candidates are least, usual elevations before others; between candidates by a
    parabola."""
    candidates = torch.tensor(CANDIDATES_DEG, dtype=losses.dtype)
    unusual = USUALNESS * ((candidates - USUAL_DEG) / 10).square()
    weighed = losses + unusual * losses.min().clamp_min(0.02)
    k = int(weighed.argmin().clamp(1, len(candidates) - 2))
    before, here, after = weighed[k - 1 : k + 2].tolist()
    bend = before + after - 2 * here
    off = (before - after) / (2 * bend) if bend > 0 else 0.0
    return float(candidates[k]) + (CANDIDATES_DEG[1] - CANDIDATES_DEG[0]) * max(-1.0, min(1.0, off))


def _cells(reach: float) -> Tensor:
    """[G^3, 3] the cells' centres."""
    line = ((torch.arange(GRID) + 0.5) / GRID * 2 - 1) * reach
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).reshape(-1, 3)


def _rays(half: float) -> Tensor:
    """[SIDE^2, 3] one for each pixel, a unit long in depth; half: the tangent of half the field of view."""
    line = ((torch.arange(SIDE) + 0.5) / SIDE * 2 - 1) * half
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)
