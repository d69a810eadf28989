"""Which triangle a pixel sees: compiled kernels on a CPU, nvdiffrast on CUDA, the same answer.

V views, H x W pixels, pixel centres at +0.5 as in raster.py, so both line up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.base.errors import UserError
from gs_propeller.mesh import kernels
from gs_propeller.mesh.surface import Mesh
from gs_propeller.scenes.gaussians.raster.cuda import INSTALL, installed
from gs_propeller.scenes.gaussians.raster.ready import attempted


@dataclass(frozen=True)
class Hits:
    """face_id [V, H, W] int64, -1 where nothing is hit; barycentric [V, H, W, 3]; depth [V, H, W] camera z, 0 there."""

    face_id: Tensor
    barycentric: Tensor
    depth: Tensor

    @property
    def mask(self) -> Tensor:
        """[V, H, W] bool."""
        return self.face_id >= 0


def rasterize(mesh: Mesh, cameras: Cameras, size: int | tuple[int, int]) -> Hits:
    """The nearest triangle at every pixel centre. size: px, one number or (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    if mesh.vertices.is_cuda:
        return _rasterize_cuda(mesh, cameras, height, width)
    shape = (len(cameras), height, width)
    seen = seen_by(mesh.vertices, cameras)
    face_id, barycentric = np.full(shape, -1, np.int64), np.zeros((*shape, 3), np.float32)
    depth = np.full(shape, kernels.NOTHING)
    for v in range(len(cameras)):
        where = cameras.focal_px(height), face_id[v], barycentric[v], depth[v]
        kernels.fill(seen[v], mesh.faces.numpy(), *where)
    depth[face_id < 0] = 0.0
    return Hits(*(torch.from_numpy(x) for x in (face_id, barycentric, depth.astype(np.float32))))


def seen_by(vertices: Tensor, cameras: Cameras) -> np.ndarray:
    """[V, Nv, 3] float64 in the cameras' axes, of vertices in the host's memory."""
    seen = np.empty((len(cameras), len(vertices), 3))
    kernels.project(vertices.detach().contiguous().numpy(), cameras.w2c.double().numpy(), seen)
    return seen


def mesh_device(device: torch.device) -> torch.device:
    """Where a mesh is drawn that belongs to a prior on `device`: there, if it is CUDA and nvdiffrast works, else in the
    host's memory."""
    there = device.type == "cuda" and mesh_trouble(device) is None
    return device if there else torch.device("cpu")


def mesh_trouble(device: torch.device) -> str | None:
    """What keeps nvdiffrast from drawing on a GPU, one line with the remedy; None where it does."""
    if not installed("nvdiffrast"):
        return f"drawing meshes on a GPU needs the package nvdiffrast: {INSTALL['nvdiffrast']}"
    return tried(device)


@cache
def tried(device: torch.device) -> str | None:
    """The same, by a triangle; once a process."""
    return attempted("drawing meshes on a GPU by nvdiffrast", "nvdiffrast", lambda: draw_triangle(device))


def draw_triangle(device: torch.device | str) -> None:
    """Raises what the package does, and RuntimeError where the picture is another than the CPU's."""
    mesh = Mesh(torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]), torch.tensor([[0, 1, 2]]))
    cameras = orbit([0.0], [0.0], 2.0, 0.857)
    there = _rasterize_cuda(Mesh(mesh.vertices.to(device), mesh.faces.to(device)), cameras.to(device), 16, 16)
    if not torch.equal(there.mask.cpu(), rasterize(mesh, cameras, 16).mask):
        raise RuntimeError("it draws a triangle otherwise than the CPU")


@cache
def _context(device: str) -> Any:
    """nvdiffrast's buffers, which it keeps and grows: one set for each device of this process."""
    import nvdiffrast.torch as dr

    return dr.RasterizeCudaContext(device=device)


def _rasterize_cuda(mesh: Mesh, cameras: Cameras, height: int, width: int) -> Hits:
    if not installed("nvdiffrast"):
        raise UserError(
            f"mesh rasterisation on CUDA needs nvdiffrast: {INSTALL['nvdiffrast']}, or device=cpu"
        )
    import nvdiffrast.torch as dr

    focal, near, far = cameras.focal_px(height), 0.01, 100.0
    projection = torch.zeros(4, 4, device=mesh.vertices.device)
    projection[0, 0], projection[1, 1] = 2 * focal / width, 2 * focal / height
    projection[2, 2], projection[2, 3] = (far + near) / (far - near), -2 * far * near / (far - near)
    projection[3, 2] = 1.0
    w2c = cameras.w2c.to(mesh.vertices.device)
    points = torch.cat([mesh.vertices, torch.ones_like(mesh.vertices[:, :1])], 1)
    seen = points @ w2c.transpose(1, 2)
    faces = mesh.faces.int()
    context = _context(str(mesh.vertices.device))
    out, _ = dr.rasterize(context, (seen @ projection.T).contiguous(), faces, (height, width))
    face_id = out[..., 3].long() - 1
    hit = face_id >= 0
    barycentric = torch.stack([out[..., 0], out[..., 1], 1 - out[..., 0] - out[..., 1]], -1) * hit[..., None]
    corners = torch.stack([z[mesh.faces[face_id.clamp(min=0)[v]]] for v, z in enumerate(seen[..., 2])])
    return Hits(face_id, barycentric, (corners * barycentric).sum(-1))
