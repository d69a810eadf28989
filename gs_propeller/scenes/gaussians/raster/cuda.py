"""Rendering on CUDA by public packages, imported when first used: gsplat, diff-gaussian-rasterization.

Both are optional (requirements-cuda.txt). N Gaussians, V views.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from gs_propeller.base.camera import Cameras
from gs_propeller.base.errors import UserError
from gs_propeller.scenes.gaussians.raster.cpu import Group, Images
from gs_propeller.scenes.gaussians.state import Gaussians

_NEAR, _FAR = 0.01, 100.0  # world units
PACKAGES = {
    "gsplat": "gsplat",
    "inria": "diff_gaussian_rasterization",
}  # by backend, in the order of preference
PIP = "pip install --no-build-isolation"  # they are built against the torch that is there
INSTALL = {  # by the name that is imported; requirements-cuda.txt says more
    "gsplat": f"{PIP} -r requirements-cuda.txt",
    "diff_gaussian_rasterization": f"{PIP} git+https://github.com/ashawkey/diff-gaussian-rasterization",
    "nvdiffrast": f"{PIP} git+https://github.com/NVlabs/nvdiffrast",
}
NO_TOOLKIT = (
    "raster backend 'gsplat' finds no CUDA toolkit (nvcc) to compile its kernels with: install one and set CUDA_HOME "
    "to it; docs/troubleshooting.md, 'The first hour on a GPU', has it by pip alone"
)


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def has_kernels() -> bool:
    """Whether gsplat has its compiled part; it is compiled here if it can be, for minutes. Raises what that raises."""
    return getattr(importlib.import_module("gsplat.cuda._backend"), "_C", None) is not None


def _load(package: str, backend: str, device: torch.device) -> ModuleType:
    if not installed(package):
        raise UserError(f"raster backend '{backend}' needs the package {package}: {INSTALL[package]}")
    if device.type != "cuda":
        raise UserError(f"raster backend '{backend}' needs CUDA tensors, these are on {device.type}: use cpu")
    if package == "gsplat" and not has_kernels():
        raise UserError(NO_TOOLKIT)
    return importlib.import_module(package)


def render_gsplat(gaussians: Gaussians, groups: Sequence[Group]) -> list[Images]:
    """All views of a group in one batch, group after group. Radii are gsplat's own, the larger of its half axes."""
    gsplat = _load("gsplat", "gsplat", gaussians.means.device)
    return [  # pragma: no cover - needs CUDA
        _render_gsplat(gsplat, gaussians, cameras, size, background) for cameras, size, background in groups
    ]


def _render_gsplat(
    gsplat: ModuleType, gaussians: Gaussians, cameras: Cameras, size: tuple[int, int], background: Tensor
) -> Images:  # pragma: no cover - needs CUDA
    height, width = size
    focal = cameras.focal_px(height)
    intrinsics = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    image, alpha, info = gsplat.rasterization(
        means=gaussians.means,
        quats=gaussians.quats,
        scales=gaussians.log_scales.exp(),
        opacities=gaussians.logit_opacities.sigmoid(),
        colors=torch.cat([gaussians.sh_dc, gaussians.sh_rest], 1),
        viewmats=cameras.w2c.to(gaussians.means),
        Ks=intrinsics.to(gaussians.means).expand(len(cameras), 3, 3).contiguous(),
        width=width,
        height=height,
        near_plane=_NEAR,
        sh_degree=gaussians.sh_degree,
        packed=False,
        backgrounds=background.contiguous(),
        render_mode="RGB+D",  # D accumulates w z; ED would divide by alpha
    )
    means2d, radii = info["means2d"], info["radii"]
    if means2d.requires_grad:
        means2d.retain_grad()
    if radii.ndim == 3:  # one radius an axis since gsplat 1.5
        radii = radii.amax(-1)
    image, depth = image.permute(0, 3, 1, 2).split([3, 1], 1)
    return image, alpha.permute(0, 3, 1, 2), depth, radii.to(means2d.dtype), means2d


def render_inria(gaussians: Gaussians, groups: Sequence[Group]) -> list[Images]:
    """View after view, by DreamGaussian's fork of the rasteriser, which returns depth and alpha too."""
    package = _load("diff_gaussian_rasterization", "inria", gaussians.means.device)
    return [  # pragma: no cover - needs CUDA
        _render_inria(package, gaussians, cameras, size, background) for cameras, size, background in groups
    ]


def _render_inria(
    package: ModuleType, gaussians: Gaussians, cameras: Cameras, size: tuple[int, int], background: Tensor
) -> Images:  # pragma: no cover - needs CUDA
    height, width = size
    tan_y = math.tan(0.5 * cameras.fov_y_rad)
    tan_x = tan_y * width / height
    w2c = cameras.w2c.to(gaussians.means)
    clip = w2c.new_zeros(4, 4)  # 3DGS's projection matrix: w = z, depth from 0 to 1
    clip[0, 0], clip[1, 1], clip[3, 2] = 1.0 / tan_x, 1.0 / tan_y, 1.0
    clip[2, 2], clip[2, 3] = _FAR / (_FAR - _NEAR), -_FAR * _NEAR / (_FAR - _NEAR)
    with torch.no_grad():
        homogeneous = functional.pad(gaussians.means, (0, 1), value=1.0)
        ndc = homogeneous @ (clip @ w2c).transpose(1, 2)  # [V, N, 4]
        half_size = w2c.new_tensor([0.5 * width, 0.5 * height])
        means2d = (ndc[..., :2] / ndc[..., 3:] + 1.0) * half_size
    wants_grad = any(tensor.requires_grad for _, tensor in gaussians.items())
    means2d.requires_grad_(wants_grad and torch.is_grad_enabled())

    scales, quats = gaussians.log_scales.exp(), functional.normalize(gaussians.quats, dim=1)
    opacities = gaussians.logit_opacities.sigmoid()[:, None]
    harmonics = torch.cat([gaussians.sh_dc, gaussians.sh_rest], 1).contiguous()
    views = []
    for v, centre in enumerate(cameras.centres.to(w2c)):
        settings = package.GaussianRasterizationSettings(
            image_height=height,
            image_width=width,
            tanfovx=tan_x,
            tanfovy=tan_y,
            bg=background[v].contiguous(),
            scale_modifier=1.0,
            viewmatrix=w2c[v].T.contiguous(),
            projmatrix=(clip @ w2c[v]).T.contiguous(),
            sh_degree=gaussians.sh_degree,
            campos=centre,
            prefiltered=False,
            debug=False,
        )
        # The package gives its screen gradient in NDC; a zero that depends on the pixel means converts it.
        screen = functional.pad((means2d[v] - means2d[v].detach()) / half_size, (0, 1))
        image, radii, depth, alpha = package.GaussianRasterizer(raster_settings=settings)(
            means3D=gaussians.means,
            means2D=screen,
            shs=harmonics,
            colors_precomp=None,
            opacities=opacities,
            scales=scales,
            rotations=quats,
            cov3D_precomp=None,
        )
        views.append((image, alpha, depth, radii.to(means2d.dtype)))
    image, alpha, depth, radii = (torch.stack(parts) for parts in zip(*views, strict=True))
    return image, alpha, depth, radii, means2d
