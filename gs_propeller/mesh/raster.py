"""Which triangle a pixel sees: rays by embree on a CPU, nvdiffrast on CUDA, the same answer.

V views, H x W pixels, pixel centres at +0.5 as in raster.py, so both line up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gs_propeller.base.camera import Cameras
from gs_propeller.base.errors import UserError
from gs_propeller.mesh.surface import Mesh
from gs_propeller.scenes.gaussians.raster_cuda import INSTALL


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
    from embreex import rtcore_scene
    from embreex.mesh_construction import TriangleMesh

    scene = rtcore_scene.EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(mesh.vertices.numpy()[mesh.faces.numpy()], dtype=np.float32))
    focal = cameras.focal_px(height)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rays = torch.stack([(x - width / 2) / focal, (y - height / 2) / focal, torch.ones_like(x)], -1).reshape(
        -1, 3
    )
    found = []
    for w2c, centre in zip(cameras.w2c, cameras.centres, strict=True):
        directions = np.ascontiguousarray((rays @ w2c[:3, :3]).numpy(), dtype=np.float32)
        origins = np.ascontiguousarray(np.broadcast_to(centre.numpy(), directions.shape), dtype=np.float32)
        found.append(scene.run(origins, directions, output=True))
    shape = (len(cameras), height, width)
    face_id = torch.from_numpy(np.stack([f["primID"] for f in found]).astype(np.int64)).reshape(shape)
    u, v = (
        torch.from_numpy(np.stack([f[k] for f in found]).astype(np.float32)).reshape(shape)
        for k in ("u", "v")
    )
    hit = face_id >= 0
    barycentric = torch.stack([1 - u - v, u, v], -1) * hit[..., None]
    # Directions have z = 1 in the camera's axes, so a ray's length along them is camera z.
    depth = torch.from_numpy(np.stack([f["tfar"] for f in found]).astype(np.float32)).reshape(shape)
    return Hits(torch.where(hit, face_id, -1), barycentric, torch.where(hit, depth, torch.zeros_like(depth)))


@cache
def _context(device: str) -> Any:  # pragma: no cover - needs CUDA
    """nvdiffrast's buffers, which it keeps and grows: one set for each device of this process."""
    import nvdiffrast.torch as dr

    return dr.RasterizeCudaContext(device=device)


def _rasterize_cuda(
    mesh: Mesh, cameras: Cameras, height: int, width: int
) -> Hits:  # pragma: no cover - needs CUDA
    try:
        import nvdiffrast.torch as dr
    except ImportError as error:
        raise UserError(
            f"mesh rasterisation on CUDA needs nvdiffrast: {INSTALL['nvdiffrast']}, or device=cpu"
        ) from error
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
