"""Rendering Gaussians: one call, several backends.

N Gaussians, V views; pixel centres lie at +0.5, so the middle of an image of width W is W / 2.
Backends: "cpu" (ours, compiled by numba), "gsplat" and "inria" (CUDA). All composite as 3DGS does:
EWA splats, 3D covariance projected with the perspective Jacobian, 0.3 px^2 low-pass, alpha between
1/255 and 0.99 (gsplat: 0.999), front to back until less than 1e-4 of the light is left. Near plane
0.01 (inria: its own 0.2). "cpu" takes CUDA tensors through the host's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gs_propeller.base.camera import Cameras
from gs_propeller.base.errors import UserError
from gs_propeller.scenes.gaussians.raster.cpu import Group, Images, render_cpu
from gs_propeller.scenes.gaussians.raster.cuda import render_gsplat, render_inria
from gs_propeller.scenes.gaussians.raster.ready import rasteriser
from gs_propeller.scenes.gaussians.state import Gaussians, StepStats

# Each takes a scene and groups of views, and gives for every group image, alpha, depth, radii_px and means2d.
BACKENDS = {"cpu": render_cpu, "gsplat": render_gsplat, "inria": render_inria}
Size = int | tuple[int, int]  # px, one number for a square or (height, width)


@dataclass(frozen=True)
class Rendered:
    """image [V, 3, H, W]; alpha [V, 1, H, W] = 1 - light left; depth [V, 1, H, W] = sum of w z, so
    depth / alpha is the expected depth; radii_px [V, N] (3 sigma, as a whole number; 0: not seen by that
    view); means2d [V, N, 2] px: after backward, its .grad is the gradient of the loss at the 2D means. means2d lies
    where it was drawn, all others with the Gaussians.
    """

    image: Tensor
    alpha: Tensor
    depth: Tensor
    radii_px: Tensor
    means2d: Tensor


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    size: Size,
    background: Tensor,
    *,
    backend: str = "auto",
) -> Rendered:
    """Render every view. Differentiable in all fields of the Gaussians, not in cameras or background.

    size: px, one number for a square or (height, width). background: [3] or [V, 3], linear in 0..1.
    backend: "auto" is cpu for CPU tensors and, for CUDA ones, gsplat where it works, else inria, else cpu.
    Raises UserError for an unknown backend or a missing package, ValueError for wrong shapes.
    """
    return render_groups(gaussians, [(cameras, size, background)], backend=backend)[0]


def render_groups(
    gaussians: Gaussians, groups: Sequence[tuple[Cameras, Size, Tensor]], *, backend: str = "auto"
) -> list[Rendered]:
    """`render` of groups of views, each its cameras, size and background, in one call and with one gradient.

    On the CPU the pictures' bits are those of `render`, group by group; Gaussians are projected once for all views, and
    gradients summed over the views in their order. Raises as `render` does.
    """
    checked = [_group(gaussians, *group) for group in groups]
    place = _place(gaussians)
    if backend == "auto":
        backend = rasteriser("auto")[0] if place == "cuda" else "cpu"
    if backend not in BACKENDS:
        raise UserError(f"unknown raster backend '{backend}': choose auto, {', '.join(BACKENDS)}")
    draw = BACKENDS[backend]
    if backend == "cpu" and place != "cpu":
        if place != "cuda":
            raise UserError(f"raster backend 'cpu' needs CPU or CUDA tensors, these are on {place}")
        draw = through_host
    return [Rendered(*parts) for parts in draw(gaussians, checked)] if checked else []


def _place(gaussians: Gaussians) -> str:
    return gaussians.means.device.type


def through_host(gaussians: Gaussians, groups: Sequence[Group]) -> list[Images]:
    """render_cpu of Gaussians that lie elsewhere; pictures and gradients go back there."""
    device = gaussians.means.device
    host = [(cameras.to("cpu"), size, background.cpu()) for cameras, size, background in groups]
    found = render_cpu(gaussians.map(lambda x: x.cpu()), host)
    return [
        (image.to(device), alpha.to(device), depth.to(device), radii.to(device), means2d)
        for image, alpha, depth, radii, means2d in found
    ]


def _group(gaussians: Gaussians, cameras: Cameras, size: Size, background: Tensor) -> Group:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1 px, got {height} x {width}")
    views = len(cameras)
    if tuple(background.shape) not in ((3,), (views, 3)):
        raise ValueError(f"background must be [3] or [{views}, 3], got {list(background.shape)}")
    return cameras, (height, width), background.detach().to(gaussians.means).expand(views, 3)


def gathered(like: Gaussians, *renders: Rendered) -> StepStats:
    """Densification's statistics over all views of a step, where DreamPropeller's release keeps the last view's; after
    backward."""
    found: StepStats | None = None
    for view in renders:
        height, width = view.image.shape[-2:]
        visible = view.radii_px > 0
        if view.means2d.grad is None:
            pull = torch.zeros_like(like.logit_opacities)
        else:
            x, y = view.means2d.grad.to(visible.device).unbind(2)
            pull = (torch.hypot(x * (width / 2), y * (height / 2)) * visible).sum(0)
        radii = view.radii_px.to(pull.dtype).amax(0) / max(height, width)
        stats = StepStats(pull, visible.sum(0, dtype=pull.dtype), radii)
        found = stats if found is None else found.joined(stats)
    return StepStats.zeros(like) if found is None else found
