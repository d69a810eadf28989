"""Marching tetrahedra (Doi & Koide 1991; Shen et al. 2021, DMTet): a grid's distances to triangles, differentiable.

R = n + 1 corners along a side of a cube of half side `extent`; N = R^3 corners, F faces, Nv vertices. Every cell is
split into the six tetrahedra that share its diagonal (Freudenthal 1942; Kuhn): corner 0, then a step along each axis
in one of six orders. So neighbouring cells meet in whole triangles, and an edge goes from a corner to one of the seven
others of a cell, which numbers the edges without a search. grid [R, R, R, 7]: at each corner the distance f, below 0
inside, three raw colours, three raw shifts. A corner stands at its place plus BEND cells tanh(shift); the surface
crosses an edge where f is 0 on the straight line between its ends. Which edges and triangles there are is a function
of the signs alone; places and colours are differentiable in f, shifts and colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gs_propeller.mesh.rows import rows
from gs_propeller.scenes.tetrahedra import kernels

BEND = (
    1 / 6
)  # cells that a corner moves at most along each axis: edges then stay diagonally dominant, so nothing folds
WALL = 0.01  # cells: the least distance on the cube's border, so that the surface is closed
PAIRS = tuple(combinations(range(4), 2))  # a tetrahedron's edges


@dataclass(frozen=True)
class Surface:
    """vertices [Nv, 3], colours [Nv, 3] raw, faces [F, 3] int64, counter-clockwise from outside."""

    vertices: Tensor
    colours: Tensor
    faces: Tensor


@lru_cache(maxsize=1)
def kuhn() -> tuple[Tensor, Tensor]:
    """(corners [6, 4, 3] of the tetrahedra in a unit cell, along their paths; odd [6]: whether one is mirrored)."""
    corners, odd = [], []
    for order in permutations(range(3)):
        path = [[0, 0, 0]]
        for axis in order:
            path.append([x + (k == axis) for k, x in enumerate(path[-1])])
        corners.append(path)
        odd.append(sum(order[a] > order[b] for a, b in combinations(range(3), 2)) % 2 == 1)
    return torch.tensor(corners), torch.tensor(odd)


@lru_cache(maxsize=1)
def cases() -> Tensor:
    """[16, 2, 3]: by which corners are inside (bit k for corner k), the edges (of PAIRS) that a tetrahedron's triangles
    join, outward where it is not mirrored; -1 for none."""
    table = torch.full((16, 2, 3), -1)
    for code in range(1, 15):
        inside = [k for k in range(4) if code >> k & 1]
        outside = [k for k in range(4) if k not in inside]

        def edge(a: int, b: int) -> int:
            return PAIRS.index((min(a, b), max(a, b)))

        if len(inside) == 2:
            (a, b), (c, d) = inside, outside
            ring = [edge(a, c), edge(a, d), edge(b, d), edge(b, c)]
            triangles = [[ring[0], ring[1], ring[2]], [ring[0], ring[2], ring[3]]]
            even = _even((a, b, c, d))
        else:
            (one,), three = (inside, outside) if len(inside) == 1 else (outside, inside)
            triangles = [[edge(one, k) for k in three]]
            even = _even((one, *three)) == (len(inside) == 1)
        for k, triangle in enumerate(triangles):
            table[code, k] = torch.tensor(triangle if even else triangle[::-1])
    return table


def _even(order: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in combinations(order, 2)) % 2 == 0


def marched(grid: Tensor, extent: float) -> Surface:
    """The surface of grid [R, R, R, 7], closed; differentiable in it. No face where no sign changes."""
    side = grid.shape[0]
    cell = 2 * extent / (side - 1)
    f = walled(grid[..., 0], cell)
    edges, faces = connected(f.detach() < 0)
    ends, many = edges.T.reshape(-1), len(edges)  # the starts, then the other ends
    distance, raw = rows(f.reshape(-1, 1), ends), rows(grid.reshape(-1, grid.shape[-1]), ends)
    place = _place(ends, side, cell, extent, raw[:, 4:])
    share = distance[:many] / (distance[:many] - distance[many:])
    vertices, colours = (x[:many] + share * (x[many:] - x[:many]) for x in (place, raw[:, 1:4]))
    return Surface(vertices, colours, faces)


def _place(corner: Tensor, side: int, cell: float, extent: float, shift: Tensor) -> Tensor:
    """[K, 3] world units, of corners by number [K] and their raw shifts [K, 3]."""
    at = torch.stack([corner // side**2, corner // side % side, corner % side], 1)
    return at.to(shift) * cell - extent + BEND * cell * shift.tanh()


def walled(f: Tensor, cell: float) -> Tensor:
    """f [R, R, R] with the cube's border outside."""
    inner = torch.zeros_like(f, dtype=torch.bool)
    inner[1:-1, 1:-1, 1:-1] = True
    return torch.where(inner, f, f.clamp_min(WALL * cell))


def connected(inside: Tensor) -> tuple[Tensor, Tensor]:
    """(edges [Nv, 2]: the corners, by number, that each vertex lies between; faces [F, 3]) of inside [R, R, R] bool."""
    if inside.device.type != "cpu":
        return connected_torch(inside)
    signs, count = inside.contiguous().numpy(), 0
    faces = np.empty((0, 3), np.int64)
    for _ in range(2):  # counted, then written
        count = kernels.triangles(signs, *_tables(), faces)  # type: ignore[call-arg]
        faces = np.empty((count, 3), np.int64) if not len(faces) else faces
    found, place = np.empty(3 * count, np.int64), np.zeros(8 * inside.numel(), np.int32)
    found = found[: kernels.renumber(faces, place, found)]
    return _ends(torch.from_numpy(found), len(inside)), torch.from_numpy(faces)


@lru_cache(maxsize=1)
def _tables() -> tuple[Any, ...]:
    corners, odd = kuhn()
    paths = (corners * torch.tensor([4, 2, 1])).sum(-1)
    return paths.numpy(), odd.numpy(), cases().numpy(), np.array(PAIRS)


def connected_torch(inside: Tensor) -> tuple[Tensor, Tensor]:
    """The same by torch's operations."""
    side, device = inside.shape[0], inside.device
    eight = [
        inside[x : side - 1 + x, y : side - 1 + y, z : side - 1 + z]
        for x in (0, 1)
        for y in (0, 1)
        for z in (0, 1)
    ]
    most = torch.stack(eight)
    cells = torch.nonzero(most.any(0) & ~most.all(0))  # [K, 3]: the surface goes through them
    corners, odd = (x.to(device) for x in kuhn())
    weights = torch.tensor([side * side, side, 1], device=device)
    number = ((cells[:, None, None] + corners) * weights).sum(-1).reshape(-1, 4)  # [6 K, 4]
    bits = torch.tensor([1, 2, 4, 8], device=device)
    code = (inside.reshape(-1)[number] * bits).sum(1)
    triangles = cases().to(device)[code]  # [6 K, 2, 3]
    tetrahedron, which = torch.nonzero(triangles[..., 0] >= 0, as_tuple=True)
    pair = torch.tensor(PAIRS, device=device)[triangles[tetrahedron, which]]  # [F, 3, 2]
    paths = (corners * torch.tensor([4, 2, 1], device=device)).sum(-1).repeat(len(cells), 1)
    start, way = (x[tetrahedron][:, None].expand(-1, 3, -1).gather(2, pair) for x in (number, paths))
    keys = 8 * start[..., 0] + (way[..., 0] ^ way[..., 1])
    mirrored = odd.repeat(len(cells))[tetrahedron][:, None]
    found, faces = torch.unique(torch.where(mirrored, keys.flip(1), keys), return_inverse=True)
    return _ends(found, side), faces


def straightened(grid: Tensor) -> Tensor:
    """grid [R, R, R, 7] -> [R, R, R, 4]: distances, to first order, and colours of the same surface on corners that
    stand at their own places."""
    slopes = torch.stack(torch.gradient(grid[..., 0]), -1)  # a cell for unit
    moved = (slopes * BEND * grid[..., 4:].tanh()).sum(-1, keepdim=True)
    return torch.cat([grid[..., :1] - moved, grid[..., 1:4]], -1)


def _ends(edges: Tensor, side: int) -> Tensor:
    """[Nv, 2] corners of edges by number."""
    start, way = edges // 8, edges % 8
    return torch.stack([start, start + (way // 4) * side**2 + (way // 2 % 2) * side + way % 2], 1)
