"""Gaussians that start from another scene, and the colours that they hand to one."""

from __future__ import annotations

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.errors import UserError
from gs_propeller.base.randomness import keyed_generator
from gs_propeller.scenes.gaussians.settings import BallSettings
from gs_propeller.scenes.gaussians.state import SH_C0, Gaussians, State, neighbour_distance, start
from gs_propeller.scenes.volume import Volume

OPACITY = 0.8
WIDTH = 0.5  # of one, against the distance to its neighbours
NEAREST = 4  # Gaussians that say a place's colour
SEEN = 0.05  # opacity from which one has a say


def colours(gaussians: Gaussians, points: Tensor) -> Tensor:
    """[K, 3] in 0..1 at points [K, 3]: of the nearest Gaussians, by opacity and inverse square distance."""
    opacities = gaussians.logit_opacities.detach().sigmoid()
    kept = opacities >= min(SEEN, float(opacities.max()))
    opacities, own = opacities[kept], (0.5 + SH_C0 * gaussians.sh_dc.detach()[kept, 0]).clamp(0, 1)
    tree = cKDTree(gaussians.means.detach()[kept].numpy())
    found = tree.query(points.numpy(), min(NEAREST, len(own)), workers=torch.get_num_threads())
    distance, index = (torch.from_numpy(x.reshape(len(points), -1)) for x in found)
    weight = opacities[index] / (distance.float().square() + 1e-8)
    return (own[index] * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)


def started(volume: Volume, ball: BallSettings, seed: int) -> State:
    """Round Gaussians scattered over a volume's surface, with its colours. Raises UserError where it has none."""
    volume = _closed(volume)
    cell, generator = volume.cell, keyed_generator(seed, 0, "scattered")
    middle = sum(
        volume.distance[x : x - 1 or None, y : y - 1 or None, z : z - 1 or None]
        for x in (0, 1) for y in (0, 1) for z in (0, 1)
    ) / 8  # fmt: skip
    cells = torch.nonzero(middle.abs() < cell)  # type: ignore[union-attr]
    if not len(cells):
        raise UserError("the run that init= names has no surface to start from")
    chosen = cells[torch.randint(len(cells), (ball.num_points,), generator=generator)]
    points = (chosen + torch.rand(ball.num_points, 3, generator=generator)) * cell - volume.extent
    spacing = WIDTH * neighbour_distance(points)
    for _ in range(2):  # under the surface by as much as they are wide, along the distance's slope
        steps = cell * 0.5 * torch.eye(3)
        slope = torch.stack([volume.at(points + s)[0] - volume.at(points - s)[0] for s in steps], 1) / cell
        away = (volume.at(points)[0] + spacing)[:, None]
        points = points - away.clamp(-cell, cell) * slope / slope.square().sum(1, keepdim=True).clamp_min(0.1)
    own = (volume.at(points)[1][:, None] - 0.5) / SH_C0
    quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(ball.num_points, 1)
    opacities = torch.full((ball.num_points,), OPACITY).logit()
    rest = torch.zeros(ball.num_points, (ball.sh_degree + 1) ** 2 - 1, 3)
    return start(Gaussians(points, spacing.log()[:, None].repeat(1, 3), quats, opacities, own, rest))


def _closed(volume: Volume) -> Volume:
    """With a layer of nothing round it, so that what its cube cuts has a surface there."""
    distance = F.pad(volume.distance, (1,) * 6, value=volume.cell)
    colour = F.pad(volume.colour.permute(3, 0, 1, 2)[None], (1,) * 6, mode="replicate")[0].permute(1, 2, 3, 0)
    return Volume(distance, colour, volume.extent + volume.cell)
