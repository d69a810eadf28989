"""The CUDA backends: what our side gives and takes, on stand-ins; on a GPU, the packages themselves against the twin.

The stand-ins have the signatures of gsplat 1.5.3 and of DreamGaussian's fork of diff-gaussian-rasterization and
compute by the slow twin, so they show that conventions are translated rightly, not that the kernels are right.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gs_propeller.app.config import Config
from gs_propeller.app.devices import device_of
from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.base.errors import UserError
from gs_propeller.mesh.raster import rasterize
from gs_propeller.mesh.surface import Mesh
from gs_propeller.scenes.gaussians import state as records
from gs_propeller.scenes.gaussians.raster.cuda import _render_gsplat, _render_inria, installed
from gs_propeller.scenes.gaussians.raster.render import Rendered, render
from gs_propeller.scenes.gaussians.state import Gaussians, neighbour_distance
from tests import raster_twin as twin
from tests.pretended.packages import GaussianRasterizationSettings

FOV = math.radians(49.1)
VIEWS = orbit([0.3, 2.1], [0.2, -0.4], [2.0, 1.7], FOV)
BACKGROUND = torch.tensor([[0.9, 0.4, 0.1], [0.0, 1.0, 0.5]])
ONE_TILE = (16, 16)  # then no backend's list of Gaussians a tile leaves out what another's has
WIDE = (32, 48)


def needs(package: str) -> pytest.MarkDecorator:
    if not torch.cuda.is_available():
        return pytest.mark.skip(reason="needs CUDA")
    return pytest.mark.skipif(not installed(package), reason=f"needs {package}")


def leaves(scene: Gaussians, dtype: torch.dtype, device: str = "cpu") -> Gaussians:
    return scene.map(lambda x: x.detach().to(device, dtype, copy=True).requires_grad_())


def cotangents(size: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=generator) for channels in (3, 1, 1)]


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest entry."""
    first, second = ours.detach().double().cpu(), theirs.detach().double().cpu()
    return float((first - second).abs().max() / second.abs().max())


def compared(
    rendered: Rendered, ours: Gaussians, scene: Gaussians, size: tuple[int, int]
) -> dict[str, float]:
    """How far values, and gradients under random cotangents, are from the twin's in float64."""
    theirs = leaves(scene, torch.float64)
    image, alpha, depth, _, means2d = twin.render(theirs, VIEWS, size, BACKGROUND)
    weights = cotangents(size)
    outputs = [rendered.image, rendered.alpha, rendered.depth]
    torch.autograd.backward(outputs, [w.to(o) for w, o in zip(weights, outputs, strict=True)])
    torch.autograd.backward([image, alpha, depth], [w.double() for w in weights])
    found = {
        "image": apart(rendered.image, image),
        "alpha": apart(rendered.alpha, alpha),
        "depth": apart(rendered.depth, depth),
        "means2d": apart(rendered.means2d, torch.stack(means2d)),
        "means2d.grad": apart(rendered.means2d.grad, torch.stack([m.grad for m in means2d])),
    }
    for (name, mine), (_, reference) in zip(ours.items(), theirs.items(), strict=True):
        if mine.numel():
            found[f"{name}.grad"] = apart(mine.grad, reference.grad)
    return found


# --- stand-ins, on any machine ---


@contextmanager
def projected_to(moved: Any) -> Iterator[None]:
    """The twin with its 2D means replaced: moved(view, means2d) -> means2d."""
    project = twin.project

    def patched(g: Gaussians, cameras: Cameras, view: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
        means2d, *rest = project(g, cameras, view, size)
        return moved(view, means2d), *rest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin, "project", patched)
        yield


def raw(means: Tensor, scales: Tensor, quats: Tensor, opacities: Tensor, harmonics: Tensor) -> Gaussians:
    return Gaussians(means, scales.log(), quats, opacities.logit(), harmonics[:, :1], harmonics[:, 1:])


def gsplat_rasterization(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    width: int, height: int, near_plane: float = 0.01, far_plane: float = 1e10, sh_degree: int | None = None,
    packed: bool = True, backgrounds: Tensor | None = None, render_mode: str = "RGB",
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
    assert (packed, render_mode, near_plane) == (False, "RGB+D", 0.01) and colors.shape[1] == (
        sh_degree + 1
    ) ** 2
    assert Ks.shape == (len(viewmats), 3, 3) and torch.equal(Ks[:, 0, 0], Ks[:, 1, 1])
    assert Ks[0, 0, 2] == width / 2 and Ks[0, 1, 2] == height / 2
    cameras = Cameras(viewmats, 2 * math.atan(height / 2 / float(Ks[0, 1, 1])))
    scene, size = raw(means, scales, quats, opacities, colors), (height, width)
    means2d = torch.stack([twin.project(scene, cameras, v, size)[0] for v in range(len(cameras))])
    with projected_to(lambda view, own: means2d[view]):
        image, alpha, depth, radii, _ = twin.render(scene, cameras, size, backgrounds)
    both = torch.cat([image, depth], 1).permute(0, 2, 3, 1)
    axes = torch.stack([radii, radii / 2], -1).int()
    return both, alpha.permute(0, 2, 3, 1), {"means2d": means2d, "radii": axes}


@dataclass
class Rasterizer:
    raster_settings: GaussianRasterizationSettings

    def __call__(
        self, means3D: Tensor, means2D: Tensor, opacities: Tensor, shs: Tensor, colors_precomp: None, scales: Tensor,
        rotations: Tensor, cov3D_precomp: None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        s = self.raster_settings
        cameras = Cameras(s.viewmatrix.T[None], 2 * math.atan(s.tanfovy))
        size, half = (s.image_height, s.image_width), torch.tensor([s.image_width / 2, s.image_height / 2])
        clip = torch.nn.functional.pad(means3D, (0, 1), value=1.0) @ s.projmatrix
        seen = (clip[:, :2] / clip[:, 3:] + 1) * half.to(clip)
        assert torch.allclose(s.campos.to(clip), cameras.centres[0].to(clip), atol=1e-5)
        scene = raw(means3D, scales, rotations, opacities[:, 0], shs)
        assert apart(seen, twin.project(scene, cameras, 0, size)[0]) < 1e-5
        with projected_to(lambda view, own: own + means2D[:, :2] * half.to(own)):
            image, alpha, depth, radii, _ = twin.render(scene, cameras, size, s.bg[None])
        return image[0], radii[0].int(), depth[0], alpha[0]


STAND_INS: dict[str, Any] = {
    "gsplat": (_render_gsplat, SimpleNamespace(rasterization=gsplat_rasterization)),
    "inria": (
        _render_inria,
        SimpleNamespace(
            GaussianRasterizationSettings=GaussianRasterizationSettings, GaussianRasterizer=Rasterizer
        ),
    ),
}


@pytest.mark.parametrize("backend", STAND_INS)
@pytest.mark.parametrize("sh_degree", [0, 2])
def test_conventions_are_translated(backend: str, sh_degree: int) -> None:
    adapter, package = STAND_INS[backend]
    scene = twin.ball(40, sh_degree, 1, scale=(0.02, 0.2))
    ours = leaves(scene, torch.float32)
    rendered = Rendered(*adapter(package, ours, VIEWS, WIDE, BACKGROUND))
    assert rendered.image.shape == (2, 3, *WIDE) and rendered.depth.shape == rendered.alpha.shape == (
        2,
        1,
        *WIDE,
    )
    assert rendered.radii_px.shape == (2, 40)
    for name, difference in compared(rendered, ours, scene, WIDE).items():
        assert difference < 2e-5, name  # 4e-6, float32 against float64


@pytest.mark.parametrize("backend", STAND_INS)
def test_nothing_is_recorded_without_gradients(backend: str) -> None:
    adapter, package = STAND_INS[backend]
    with torch.no_grad():
        rendered = Rendered(*adapter(package, twin.ball(10, 0, 0), VIEWS, ONE_TILE, BACKGROUND))
    assert not rendered.image.requires_grad and not rendered.means2d.requires_grad


@pytest.mark.slow
def test_no_module_imports_a_cuda_package() -> None:
    code = """
import importlib, pkgutil, sys, gs_propeller, guidance, main_propeller, main2_mesh
for package in (gs_propeller, guidance):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as missing:  # the page's own requirements are others
            assert missing.name in ("gradio", "fastapi", "uvicorn"), missing
importlib.import_module("bench.gpu")
names = ("gsplat", "diff_gaussian_rasterization", "nvdiffrast", "simple_knn")
print([name for name in names if name in sys.modules], len(sys.modules) > 500)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[] True", done.stderr


@pytest.mark.parametrize("backend", ["gsplat", "inria"])
def test_a_missing_backend_says_how_to_install_it(backend: str) -> None:
    if installed({"gsplat": "gsplat", "inria": "diff_gaussian_rasterization"}[backend]):
        pytest.skip("it is installed")
    with pytest.raises(UserError, match=f"raster backend '{backend}' needs the package .*: pip install"):
        render(twin.ball(4, 0, 0), VIEWS, ONE_TILE, BACKGROUND, backend=backend)


def test_the_cpu_backend_refuses_other_tensors() -> None:
    with pytest.raises(UserError, match="these are on meta"):
        render(twin.ball(4, 0, 0).map(lambda x: x.to("meta")), VIEWS, ONE_TILE, BACKGROUND, backend="cpu")


def test_ranks_share_gpus_round_robin_and_make_theirs_the_current_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_current = []
    monkeypatch.setattr("gs_propeller.app.devices.rasteriser", lambda raster: ("gsplat", None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    for rank, index in ((0, 0), (1, 1), (2, 0)):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert device_of(Config()) == made_current[-1] == torch.device("cuda", index)
    assert device_of(Config(device="cpu")) == torch.device("cpu") and len(made_current) == 3


def test_first_scales_by_simple_knn_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    tree = neighbour_distance(points)
    asked = []

    def mean_squares(given: Tensor) -> Tensor:
        asked.append(len(given))
        return (
            torch.cdist(given.double(), given.double())
            .square()
            .topk(4, largest=False)
            .values[:, 1:]
            .mean(1)
            .float()
        )

    monkeypatch.setitem(sys.modules, "simple_knn", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "simple_knn._C", SimpleNamespace(distCUDA2=mean_squares))
    assert torch.equal(neighbour_distance(points), tree) and not asked  # it is for CUDA tensors only
    found = records._neighbours_cuda(points)
    assert found is not None and asked == [50]
    assert torch.allclose(found.sqrt(), tree, rtol=1e-5)


# --- the packages themselves, on a GPU ---

ON_CUDA = [
    pytest.param("gsplat", marks=needs("gsplat")),
    pytest.param("inria", marks=needs("diff_gaussian_rasterization")),
]


@pytest.mark.parametrize("backend", ON_CUDA)
@pytest.mark.parametrize("sh_degree", [0, 3])
def test_kernels_match_the_twin(backend: str, sh_degree: int) -> None:
    """No opacity reaches the clamps, in which they differ. Tolerances are guesses until a GPU has measured them."""
    scene = twin.ball(80, sh_degree, 1, scale=(0.02, 0.2))
    ours = leaves(scene, torch.float32, "cuda")
    rendered = render(ours, VIEWS.to("cuda"), ONE_TILE, BACKGROUND.cuda(), backend=backend)
    for name, difference in compared(rendered, ours, scene, ONE_TILE).items():
        assert difference < 1e-3, name


@pytest.mark.parametrize("backend", ON_CUDA)
def test_kernels_match_over_many_tiles(backend: str) -> None:
    """gsplat's tiles list what 3DGS's leave out beyond three sigma: up to 0.011 of a Gaussian's light there."""
    scene = twin.ball(200, 0, 2, scale=(0.02, 0.1))
    theirs = twin.render(scene.map(Tensor.double), VIEWS, (64, 80), BACKGROUND)[0]
    with torch.no_grad():
        ours = render(
            scene.map(Tensor.cuda), VIEWS.to("cuda"), (64, 80), BACKGROUND.cuda(), backend=backend
        ).image
    assert float((ours.cpu() - theirs).abs().mean()) < 1e-3
    assert float((ours.cpu() - theirs).abs().max()) < 0.05


@needs("nvdiffrast")
def test_mesh_rasterisation_on_a_gpu_is_that_of_rays() -> None:
    import trimesh

    solid = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    mesh = Mesh(torch.tensor(solid.vertices, dtype=torch.float32), torch.tensor(solid.faces).long())
    rays = rasterize(mesh, VIEWS, (96, 128))
    ours = rasterize(Mesh(mesh.vertices.cuda(), mesh.faces.cuda()), VIEWS.to("cuda"), (96, 128))
    same = ours.face_id.cpu() == rays.face_id
    assert float(same.float().mean()) > 0.99  # the rest lies on edges
    inside = same & rays.mask
    assert torch.allclose(ours.depth.cpu()[inside], rays.depth[inside], atol=1e-3)
    assert torch.allclose(ours.barycentric.cpu()[inside], rays.barycentric[inside], atol=1e-2)


@needs("simple_knn")
def test_simple_knn_is_the_tree() -> None:
    points = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(neighbour_distance(points.cuda()).cpu(), neighbour_distance(points), rtol=1e-4)
