"""Slow twin of the rasteriser: dense torch in the dtype of its input, gradients by autograd.

Every pixel of a tile against every Gaussian, written from 3DGS's definition with matrices, and
sharing no code with the kernels. Used by the tests (float64) and by the bench.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gs_propeller.base.camera import Cameras
from gs_propeller.scenes.gaussians.state import Gaussians

TILE = 16


def harmonics(direction: Tensor) -> Tensor:
    """[..., 16] real spherical harmonics of unit directions [..., 3], 3DGS's order and signs."""
    x, y, z = direction.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),
            -0.4886025119029199 * y,
            0.4886025119029199 * z,
            -0.4886025119029199 * x,
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * z * z - x * x - y * y),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (x * x - y * y),
            -0.5900435899266435 * y * (3 * x * x - y * y),
            2.890611442640554 * x * y * z,
            -0.4570457994644658 * y * (4 * z * z - x * x - y * y),
            0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y),
            -0.4570457994644658 * x * (4 * z * z - x * x - y * y),
            1.445305721320277 * z * (x * x - y * y),
            -0.5900435899266435 * x * (x * x - 3 * y * y),
        ],
        -1,
    )


def rotations(quats: Tensor) -> Tensor:
    """[N, 3, 3] from quaternions wxyz: R v = v + 2 u x (u x v + w v), column by column."""
    q = quats / quats.norm(dim=1, keepdim=True)
    w, u = q[:, :1], q[:, 1:]
    columns = []
    for axis in torch.eye(3, dtype=q.dtype):
        v = axis.expand_as(u)
        columns.append(v + 2 * torch.linalg.cross(u, torch.linalg.cross(u, v) + w * v))
    return torch.stack(columns, -1)


def project(
    gaussians: Gaussians, cameras: Cameras, view: int, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One view: means2d [N, 2], covariances [N, 2, 2], depths [N], radii [N] (0: not seen)."""
    height, width = size
    focal = cameras.focal_px(height)
    w2c = cameras.w2c[view].to(gaussians.means)
    point = gaussians.means @ w2c[:3, :3].T + w2c[:3, 3]
    depth = point[:, 2]
    good = depth > 0.01
    z = torch.where(good, depth, 1.0)
    means2d = focal * point[:, :2] / z[:, None] + torch.tensor([width / 2, height / 2]).to(z)
    limits = [1.3 * width / 2 / focal, 1.3 * height / 2 / focal]
    slopes = [(point[:, i] / z).clamp(-limit, limit) for i, limit in enumerate(limits)]
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [
            torch.stack([focal / z, zero, -focal * slopes[0] / z], -1),
            torch.stack([zero, focal / z, -focal * slopes[1] / z], -1),
        ],
        1,
    )
    shape = rotations(gaussians.quats) * gaussians.log_scales.exp()[:, None, :]
    sigma = shape @ shape.transpose(1, 2)
    to_screen = jacobian @ w2c[:3, :3]
    cov = to_screen @ sigma @ to_screen.transpose(1, 2) + 0.3 * torch.eye(2).to(z)
    with torch.no_grad():
        mid, det = 0.5 * (cov[:, 0, 0] + cov[:, 1, 1]), torch.linalg.det(cov)
        radii = (3 * (mid + (mid * mid - det).clamp(min=0.1).sqrt()).sqrt()).ceil()
        x, y = means2d.unbind(-1)
        inside = (x + radii > 0) & (x - radii < width) & (y + radii > 0) & (y - radii < height)
        radii = torch.where(good & inside, radii, 0.0)
    return means2d, cov, depth, radii


def colours(gaussians: Gaussians, cameras: Cameras, view: int) -> Tensor:
    """[N, 3], at least 0."""
    w2c = cameras.w2c[view].to(gaussians.means)
    centre = -w2c[:3, :3].T @ w2c[:3, 3]
    direction = gaussians.means - centre
    basis = harmonics(direction / direction.norm(dim=1, keepdim=True))
    coefficients = torch.cat([gaussians.sh_dc, gaussians.sh_rest], 1)
    return (0.5 + torch.einsum("nk,nkc->nc", basis[:, : coefficients.shape[1]], coefficients)).clamp(min=0)


def _blend_tile(
    pixels: Tensor, means2d: Tensor, conics: Tensor, opacity: Tensor, looks: Tensor
) -> tuple[Tensor, Tensor]:
    """pixels [P, 2] against Gaussians in depth order: sum of w * looks [P, C], light left [P]."""
    offset = pixels[:, None] - means2d
    power = -0.5 * torch.einsum("pni,nij,pnj->pn", offset, conics, offset)
    alpha = (opacity * power.exp()).clamp(max=0.99)
    alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
    after = torch.cumprod(1 - alpha.detach(), 1)
    alpha = torch.where(after >= 1e-4, alpha, 0.0)  # `after` only falls: the first below stops the pixel
    after = torch.cumprod(1 - alpha, 1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    return (before * alpha) @ looks, after[:, -1]


def render(
    gaussians: Gaussians, cameras: Cameras, size: tuple[int, int], background: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """image, alpha, depth, radii [V, N] and, for each view, means2d [N, 2] with its gradient kept."""
    height, width = size
    images, radii_all, means_all = [], [], []
    opacities = gaussians.logit_opacities.sigmoid()
    for view in range(len(cameras)):
        means2d, cov, depth, radii = project(gaussians, cameras, view, size)
        if means2d.requires_grad:
            means2d.retain_grad()
        looks = torch.cat([colours(gaussians, cameras, view), depth[:, None]], 1)
        conics = torch.linalg.inv(cov)
        backdrop = background.expand(len(cameras), 3)[view].to(depth)
        canvas = torch.zeros(height, width, 5).to(depth)
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                # 3DGS's tile list: the square of that radius around the mean touches the tile.
                low = ((means2d.detach() - radii[:, None]) / TILE).floor() * TILE
                high = ((means2d.detach() + radii[:, None]) / TILE).ceil() * TILE
                touches = (radii > 0) & (low[:, 0] <= left) & (high[:, 0] > left)
                touches &= (low[:, 1] <= top) & (high[:, 1] > top)
                ids = touches.nonzero()[:, 0]
                ids = ids[torch.sort(depth.detach()[ids], stable=True).indices]
                bottom, right = min(top + TILE, height), min(left + TILE, width)
                y, x = torch.meshgrid(torch.arange(top, bottom), torch.arange(left, right), indexing="ij")
                pixels = torch.stack([x, y], -1).reshape(-1, 2).to(depth) + 0.5
                light = torch.ones(len(pixels)).to(depth)
                summed = torch.zeros(len(pixels), 4).to(depth)
                if len(ids):
                    summed, light = _blend_tile(pixels, means2d[ids], conics[ids], opacities[ids], looks[ids])
                image = summed[:, :3] + light[:, None] * backdrop
                tile = torch.cat([image, 1 - light[:, None], summed[:, 3:]], 1)
                canvas[top:bottom, left:right] = tile.reshape(bottom - top, right - left, 5)
        images.append(canvas.permute(2, 0, 1))
        radii_all.append(radii)
        means_all.append(means2d)
    image, alpha, depth_image = torch.stack(images).split([3, 1, 1], 1)
    return image, alpha, depth_image, torch.stack(radii_all), means_all


def ball(n: int, sh_degree: int, seed: int, *, scale: tuple[float, float] = (0.02, 0.04)) -> Gaussians:
    """A realistic scene: n Gaussians in a ball of radius 0.5, scales within the range, mixed opacities."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n, 3, generator=generator)
    radius = 0.5 * torch.rand(n, 1, generator=generator) ** (1 / 3)
    low, high = math.log(scale[0]), math.log(scale[1])
    return Gaussians(
        means=normal / normal.norm(dim=1, keepdim=True) * radius,
        log_scales=low + (high - low) * torch.rand(n, 3, generator=generator),
        quats=torch.randn(n, 4, generator=generator),
        logit_opacities=torch.randn(n, generator=generator) - 1.0,
        sh_dc=torch.randn(n, 1, 3, generator=generator),
        sh_rest=0.2 * torch.randn(n, (sh_degree + 1) ** 2 - 1, 3, generator=generator),
    )
