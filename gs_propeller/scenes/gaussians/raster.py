"""Rendering Gaussians: one call, several backends.

N Gaussians, V views; pixel centres lie at +0.5, so the middle of an image of width W is W / 2.
Backends: "cpu" (ours, compiled by numba), "gsplat" and "inria" (CUDA). All composite as 3DGS does:
EWA splats, 3D covariance projected with the perspective Jacobian, 0.3 px^2 low-pass, alpha between
1/255 and 0.99 (gsplat: 0.999), front to back until less than 1e-4 of the light is left. Near plane
0.01 (inria: its own 0.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gs_propeller.base.camera import Cameras
from gs_propeller.base.errors import UserError
from gs_propeller.scenes.gaussians.raster_cpu import render_cpu
from gs_propeller.scenes.gaussians.raster_cuda import installed, render_gsplat, render_inria
from gs_propeller.scenes.gaussians.state import Gaussians

# Each takes K scenes with V cameras each, and gives K times (image, alpha, depth, radii_px, means2d).
BACKENDS = {"cpu": render_cpu, "gsplat": render_gsplat, "inria": render_inria}


@dataclass(frozen=True)
class Rendered:
    """image [V, 3, H, W]; alpha [V, 1, H, W] = 1 - light left; depth [V, 1, H, W] = sum of w z, so
    depth / alpha is the expected depth; radii_px [V, N] (3 sigma, as a whole number; 0: not seen by that
    view); means2d [V, N, 2] px: after backward, its .grad is the gradient of the loss at the 2D means.
    """

    image: Tensor
    alpha: Tensor
    depth: Tensor
    radii_px: Tensor
    means2d: Tensor


def render(
    gaussians: Gaussians,
    cameras: Cameras,
    size: int | tuple[int, int],
    background: Tensor,
    *,
    backend: str = "auto",
) -> Rendered:
    """Render every view. Differentiable in all fields of the Gaussians, not in cameras or background.

    size: px, one number for a square or (height, width). background: [3] or [V, 3], linear in 0..1.
    backend: "auto" is cpu for CPU tensors and, for CUDA ones, gsplat where installed, else inria.
    Raises UserError for an unknown backend or a missing package, ValueError for wrong shapes.
    """
    return render_slots([gaussians], [cameras], size, [background], backend=backend)[0]


def render_slots(
    scenes: Sequence[Gaussians],
    cameras: Sequence[Cameras],
    size: int | tuple[int, int],
    backgrounds: Sequence[Tensor],
    *,
    backend: str = "auto",
) -> list[Rendered]:
    """`render` of K scenes of any sizes on one device, each from its own V cameras, in one call of the backend.

    On the CPU the bits are those of K calls of `render`. Raises as `render` does, and ValueError where K or V
    differ.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1 px, got {height} x {width}")
    if not len(scenes) == len(cameras) == len(backgrounds) > 0 or len({len(c) for c in cameras}) > 1:
        raise ValueError(
            "as many cameras and backgrounds as scenes are wanted, one at least, and equal views"
        )
    views = len(cameras[0])
    for background in backgrounds:
        if tuple(background.shape) not in ((3,), (views, 3)):
            raise ValueError(f"background must be [3] or [{views}, 3], got {list(background.shape)}")
    if backend == "auto":
        on_cpu = scenes[0].means.device.type == "cpu"
        backend = "cpu" if on_cpu else "gsplat" if installed("gsplat") else "inria"
    if backend not in BACKENDS:
        raise UserError(f"unknown raster backend '{backend}': choose auto, {', '.join(BACKENDS)}")
    place = scenes[0].means.device.type
    if backend == "cpu" and place != "cpu":
        raise UserError(
            f"raster backend 'cpu' needs CPU tensors, these are on {place}: use auto, or device=cpu"
        )
    backdrops = [b.detach().to(scenes[0].means).expand(views, 3) for b in backgrounds]
    return [Rendered(*parts) for parts in BACKENDS[backend](scenes, cameras, (height, width), backdrops)]
