"""Stand-ins for the CUDA packages: the published call signatures and demands, computed by the project's CPU kernels.

    gsplat                        1.5.3: rasterization
    diff_gaussian_rasterization   DreamGaussian's fork, which returns depth and alpha
    simple_knn                    3DGS's: _C.distCUDA2
    nvdiffrast                    torch: RasterizeCudaContext, rasterize

Where a published kernel would read another place's memory, or another type's, the stand-in raises. They show that what
is asked and what comes back is right, and on the right device; not that the kernels are.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from gs_propeller.base.camera import Cameras
from gs_propeller.mesh import kernels
from gs_propeller.scenes.gaussians.raster.cpu import _Blend, splat
from gs_propeller.scenes.gaussians.state import Gaussians
from tests.pretended.device import off, on, wait

PLACE = "cuda"  # where tensors must lie, and results do
NAMES = ("gsplat", "diff_gaussian_rasterization", "simple_knn", "nvdiffrast")


def _given(
    package: str, dtype: torch.dtype = torch.float32, contiguous: bool = False, **tensors: Tensor | None
) -> None:
    """Raises RuntimeError where the package's kernels could not read one of these."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device.type != PLACE:
            raise RuntimeError(f"{package}: {name} must be a {PLACE} tensor, is on {tensor.device}")
        if tensor.dtype != dtype:
            raise RuntimeError(f"{package}: {name} must be {dtype}, is {tensor.dtype}")
        if contiguous and not tensor.is_contiguous():
            raise RuntimeError(f"{package}: {name} must be contiguous")


def _made(x: Tensor) -> Tensor:
    return on(x) if PLACE == "cuda" else x


def _raw(means: Tensor, scales: Tensor, quats: Tensor, opacities: Tensor, harmonics: Tensor) -> Gaussians:
    return Gaussians(means, scales.log(), quats, opacities.logit(), harmonics[:, :1], harmonics[:, 1:])


# ---- gsplat


def rasterization(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    width: int, height: int, near_plane: float = 0.01, far_plane: float = 1e10, radius_clip: float = 0.0,
    eps2d: float = 0.3, sh_degree: int | None = None, packed: bool = True, tile_size: int = 16,
    backgrounds: Tensor | None = None, render_mode: str = "RGB", sparse_grad: bool = False, absgrad: bool = False,
    rasterize_mode: str = "classic", channel_chunk: int = 32, distributed: bool = False,
    camera_model: str = "pinhole", segmented: bool = False, covars: Tensor | None = None, with_ut: bool = False,
    with_eval3d: bool = False, radial_coeffs: Tensor | None = None, tangential_coeffs: Tensor | None = None,
    thin_prism_coeffs: Tensor | None = None, ftheta_coeffs: Any = None, rolling_shutter: Any = None,
    viewmats_rs: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:  # fmt: skip
    """(colours and depth [V, H, W, 4], alpha [V, H, W, 1], means2d and radii among others)."""
    _given("gsplat", means=means, quats=quats, scales=scales, opacities=opacities, colors=colors,
           viewmats=viewmats, Ks=Ks, backgrounds=backgrounds)  # fmt: skip
    assert backgrounds is not None and sh_degree is not None
    n, views = len(means), len(viewmats)
    assert quats.shape == (n, 4) and scales.shape == (n, 3) and opacities.shape == (n,)
    assert viewmats.shape == (views, 4, 4) and Ks.shape == (views, 3, 3) and backgrounds.shape == (views, 3)
    assert colors.ndim == 3 and len(colors) == n and (sh_degree + 1) ** 2 <= colors.shape[1]
    # what the stand-in can do of it, and all that is asked
    assert not packed and render_mode == "RGB+D" and (near_plane, eps2d, covars) == (0.01, 0.3, None)
    wait("gsplat: the views' inverse")
    wait("gsplat: how many tiles are met")
    focal = float(off(Ks)[0, 1, 1])
    cameras = Cameras(off(viewmats).detach(), 2 * math.atan(height / 2 / focal))
    scene = _raw(*(off(x) for x in (means, scales, quats, opacities, colors)))
    group = (cameras, (height, width), off(backgrounds))
    centres, looks, radii, reach = splat(scene, [group])
    means2d = _made(centres)
    image, alpha, depth = _Blend.apply([group], off(means2d), looks, radii, reach)
    colours = _made(torch.cat([image, depth], 1).permute(0, 2, 3, 1).contiguous())
    both_axes = _made(radii.detach().int()[..., None].repeat(1, 1, 2))
    return colours, _made(alpha.permute(0, 2, 3, 1).contiguous()), {"means2d": means2d, "radii": both_axes}


# ---- diff_gaussian_rasterization


class GaussianRasterizationSettings(NamedTuple):
    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor
    scale_modifier: float
    viewmatrix: Tensor
    projmatrix: Tensor
    sh_degree: int
    campos: Tensor
    prefiltered: bool
    debug: bool


class GaussianRasterizer(nn.Module):
    def __init__(self, raster_settings: GaussianRasterizationSettings) -> None:
        super().__init__()
        self.raster_settings = raster_settings

    def forward(
        self, means3D: Tensor, means2D: Tensor, opacities: Tensor, shs: Tensor | None = None,
        colors_precomp: Tensor | None = None, scales: Tensor | None = None, rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """image [3, H, W], radii [N], depth [1, H, W], alpha [1, H, W]; the screen's gradient comes in NDC."""
        s = self.raster_settings
        assert shs is not None and scales is not None and rotations is not None
        assert colors_precomp is None and cov3D_precomp is None and s.scale_modifier == 1.0
        _given("inria", means3D=means3D, means2D=means2D, opacities=opacities, shs=shs, bg=s.bg, campos=s.campos,
               viewmatrix=s.viewmatrix, projmatrix=s.projmatrix)  # fmt: skip
        _given(
            "inria", contiguous=True, scales=scales, rotations=rotations
        )  # its adjoint reads them as they lie
        wait("inria: how many pairs are rendered")
        size = (s.image_height, s.image_width)
        half = torch.tensor([s.image_width / 2, s.image_height / 2])
        cameras = Cameras(off(s.viewmatrix).T[None].contiguous(), 2 * math.atan(s.tanfovy))
        group = (cameras, size, off(s.bg)[None])
        scene = _raw(off(means3D), off(scales), off(rotations), off(opacities)[:, 0], off(shs))
        centres, looks, radii, reach = splat(scene, [group])
        _same_camera(s, scene.means, centres[0], radii[0] > 0, half)
        centres = centres + off(means2D)[None, :, :2] * half
        image, alpha, depth = _Blend.apply([group], centres, looks, radii, reach)
        return _made(image[0]), _made(radii[0].detach().int()), _made(depth[0]), _made(alpha[0])


def _same_camera(
    s: GaussianRasterizationSettings, means: Tensor, centres: Tensor, seen: Tensor, half: Tensor
) -> None:
    """The view is given three times over; all of them must mean the same."""
    with torch.no_grad():
        clip = nn.functional.pad(means, (0, 1), value=1.0) @ off(s.projmatrix)
        assert torch.allclose(((clip[:, :2] / clip[:, 3:] + 1) * half)[seen], centres[seen], atol=1e-2)
        assert torch.allclose(Cameras(off(s.viewmatrix).T[None], 1.0).centres[0], off(s.campos), atol=1e-4)


# ---- simple_knn


def distCUDA2(points: Tensor) -> Tensor:
    """[N] mean squared distance to the three nearest others."""
    _given("simple_knn", contiguous=True, points=points)
    host = off(points).double()
    return _made(torch.cdist(host, host).square().topk(4, largest=False).values[:, 1:].mean(1).float())


# ---- nvdiffrast


class RasterizeCudaContext:
    def __init__(self, device: Any = None) -> None:
        assert device is None or torch.device(device).type == "cuda"


def rasterize(
    glctx: RasterizeCudaContext,
    pos: Tensor,
    tri: Tensor,
    resolution: tuple[int, int],
    ranges: Tensor | None = None,
    grad_db: bool = True,
) -> tuple[Tensor, Tensor]:
    """(u, v, z/w, triangle + 1) [V, H, W, 4], u and v the weights of the corners 0 and 1, row 0 at y = -1; and their
    derivatives, which nothing here asks for."""
    assert isinstance(glctx, RasterizeCudaContext) and ranges is None
    _given("nvdiffrast", contiguous=True, pos=pos)
    _given("nvdiffrast", torch.int32, contiguous=True, tri=tri)
    assert pos.ndim == 3 and pos.shape[2] == 4
    wait("nvdiffrast: rasterize")
    height, width = resolution
    clip, faces = off(pos).double().detach().numpy(), off(tri).long().numpy()
    # w is the depth: a camera of focal length 1 px sees these points at the same pixels
    seen = clip[..., [0, 1, 3]] * (0.5 * width, 0.5 * height, 1.0)
    found = np.zeros((len(clip), height, width, 4), np.float32)
    for v in range(len(clip)):
        face_id, depth = np.full((height, width), -1, np.int64), np.full((height, width), kernels.NOTHING)
        weights = np.zeros((height, width, 3), np.float32)
        kernels.fill(np.ascontiguousarray(seen[v]), faces, 1.0, face_id, weights, depth)
        hit = face_id >= 0
        z = (clip[v][faces[face_id[hit]], 2] * weights[hit]).sum(-1) / depth[hit]
        found[v, ..., :2], found[v, ..., 3] = weights[..., :2], face_id + 1
        found[v][hit, 2] = z
    return _made(torch.from_numpy(found)), _made(torch.zeros(found.shape))


# ---- importing them


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(members)
    return module


def _modules() -> dict[str, ModuleType]:
    backend = _module(
        "gsplat.cuda._backend", _C=object()
    )  # its kernels, None where they could not be compiled
    cuda = _module("gsplat.cuda", _backend=backend)
    knn, dr = _module("simple_knn._C", distCUDA2=distCUDA2), _module("nvdiffrast.torch")
    dr.__dict__.update(RasterizeCudaContext=RasterizeCudaContext, rasterize=rasterize)
    inria = _module("diff_gaussian_rasterization", GaussianRasterizer=GaussianRasterizer)
    inria.__dict__.update(GaussianRasterizationSettings=GaussianRasterizationSettings)
    tops = (
        _module("gsplat", rasterization=rasterization, cuda=cuda, __version__="1.5.3"),
        _module("simple_knn", _C=knn),
        _module("nvdiffrast", torch=dr),
    )
    return {module.__name__: module for module in (*tops, backend, cuda, knn, dr, inria)}


@contextmanager
def packages(*names: str, place: str = "cuda") -> Iterator[None]:
    """These packages installed, by NAMES, and no other of them. place: "cpu" has them compute for the processor, as no
    published one does: then a run there does the very arithmetic of one on the device."""
    assert set(names) <= set(NAMES), names
    modules: dict[str, Any] = {name: None for name in NAMES if name not in names}  # None: not to be found
    modules |= {name: module for name, module in _modules().items() if name.partition(".")[0] in names}
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        with mock.patch.dict(globals(), PLACE=place):
            yield
    finally:  # only these: what else was imported meanwhile stays
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
