"""The rasteriser against its dense twin, its promises (same bits, bounded memory), its refusals."""

import math
import multiprocessing
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gs_propeller.base import threads as kernel_threads
from gs_propeller.base.camera import Cameras, orbit
from gs_propeller.base.errors import UserError
from gs_propeller.scenes.gaussians.raster import cpu as raster_cpu
from gs_propeller.scenes.gaussians.raster import cuda as raster_cuda
from gs_propeller.scenes.gaussians.raster.render import Rendered, render, render_groups
from gs_propeller.scenes.gaussians.state import Gaussians
from tests import raster_twin as twin

FOV = math.radians(49.1)
SIZE = (40, 56)  # not square, not whole tiles
VIEWS = orbit([0.3, 2.1], [0.2, -0.4], [2.0, 1.5], FOV)
# Two to three times the worst measured, which stands beside.
IMAGE_TOLERANCE = 2e-6  # 7.3e-7
ALPHA_TOLERANCE = 2e-6  # 6.4e-7
DEPTH_TOLERANCE = 4e-6  # 1.3e-6
MEANS2D_TOLERANCE = 1e-7  # 4.5e-8, of the largest entry
GRADIENT_TOLERANCE = 5e-6  # 1.6e-6, of the field's largest entry
SUM_TOLERANCE = 3e-7  # 1.2e-7
FINITE_TOLERANCE = 4e-8  # 1.3e-8
PEAK_BYTES = 1_200_000  # 550,000; without a bound 4,800,000
BACKGROUND = torch.tensor([[0.9, 0.4, 0.1], [0.0, 1.0, 0.5]])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    raster_cpu.set_threads(1)
    yield
    raster_cpu.set_threads(None)


def hard_scene(sh_degree: int, seed: int) -> Gaussians:
    """Small and screen-filling, opaque to clamping, behind a camera, and beyond the Jacobian's clamp."""
    scene = twin.ball(80, sh_degree, seed, scale=(0.02, 0.3))
    means, log_scales = scene.means.clone(), scene.log_scales.clone()
    means[:8] *= 5
    log_scales[4:8] += 1.0
    means[8] = 1.5 * VIEWS.centres[0]
    return replace(
        scene,
        means=means,
        log_scales=log_scales,
        quats=1.7 * scene.quats,
        logit_opacities=2.0 * scene.logit_opacities + 2.5,
    )


def leaves(scene: Gaussians, dtype: torch.dtype = torch.float32) -> Gaussians:
    return scene.map(lambda tensor: tensor.detach().to(dtype).clone().requires_grad_())


def cotangents(seed: int, views: int = 2, size: tuple[int, int] = SIZE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(views, channels, *size, generator=generator) for channels in (3, 1, 1)]


def backward(rendered: Rendered, seed: int) -> None:
    views, _, *size = rendered.image.shape
    torch.autograd.backward(
        [rendered.image, rendered.alpha, rendered.depth], cotangents(seed, views, (size[0], size[1]))
    )


def everything(
    scene: Gaussians, cameras: Cameras, seed: int = 0, size: tuple[int, int] = SIZE
) -> list[Tensor]:
    """All outputs and all gradients."""
    inputs = leaves(scene)
    rendered = render(inputs, cameras, size, BACKGROUND[0])
    backward(rendered, seed)
    outputs = [rendered.image, rendered.alpha, rendered.depth, rendered.radii_px, rendered.means2d]
    return [*outputs, rendered.means2d.grad, *(tensor.grad for _, tensor in inputs.items())]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


# --- against the twin ---


@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients_match_the_twin(sh_degree: int, seed: int) -> None:
    scene = hard_scene(sh_degree, seed)
    ours, theirs = leaves(scene), leaves(scene, torch.float64)
    rendered = render(ours, VIEWS, SIZE, BACKGROUND)
    image, alpha, depth, radii, means2d = twin.render(theirs, VIEWS, SIZE, BACKGROUND)

    assert float(alpha.detach().max()) > 1 - 2e-3  # some pixels come close to the end of their light
    assert torch.equal(rendered.radii_px.double(), radii)
    assert (rendered.image - image).abs().max() < IMAGE_TOLERANCE
    assert (rendered.alpha - alpha).abs().max() < ALPHA_TOLERANCE
    assert (rendered.depth - depth).abs().max() < DEPTH_TOLERANCE
    seen = radii > 0
    assert relative(rendered.means2d[seen], torch.stack(means2d)[seen]) < MEANS2D_TOLERANCE

    backward(rendered, seed)
    torch.autograd.backward([image, alpha, depth], [cotangent.double() for cotangent in cotangents(seed)])
    for (name, mine), (_, reference) in zip(ours.items(), theirs.items(), strict=True):
        if mine.numel():
            assert relative(mine.grad, reference.grad) < GRADIENT_TOLERANCE, name
    assert relative(rendered.means2d.grad, torch.stack([mean.grad for mean in means2d])) < GRADIENT_TOLERANCE


def test_the_hard_scene_reaches_every_branch() -> None:
    scene = hard_scene(0, 0)
    _, cov, depth, radii = twin.project(scene, VIEWS, 0, SIZE)
    point = scene.means @ VIEWS.w2c[0, :3, :3].T + VIEWS.w2c[0, :3, 3]
    slope = (point[:, 0] / point[:, 2]).abs()
    limit = 1.3 * 0.5 * SIZE[1] / VIEWS.focal_px(SIZE[0])
    assert ((slope > limit) & (radii > 0)).any(), "seen beyond the clamp"
    assert (depth < 0.01).any(), "behind the camera"
    assert (scene.logit_opacities.sigmoid() > 0.99).any(), "alpha clamped"
    assert (radii > 40).any() and (radii[radii > 0] < 8).any(), "large and small"
    assert torch.linalg.det(cov).min() > 0


def test_the_twin_agrees_with_finite_differences() -> None:
    scene = leaves(twin.ball(6, 3, 5, scale=(0.1, 0.3)), torch.float64)
    weights = [cotangent.double() for cotangent in cotangents(5)]

    def loss(candidate: Gaussians) -> Tensor:
        outputs = twin.render(candidate, VIEWS, SIZE, BACKGROUND)[:3]
        return sum(((a * b).sum() for a, b in zip(outputs, weights, strict=True)), torch.zeros(()))

    loss(scene).backward()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in scene.items():
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        step = 1e-6 * direction
        with torch.no_grad():
            above = loss(replace(scene, **{name: tensor + step}))
            below = loss(replace(scene, **{name: tensor - step}))
        slope = float((above - below) / 2e-6)
        assert slope == pytest.approx(float((tensor.grad * direction).sum()), rel=FINITE_TOLERANCE), name


def test_harmonics_are_orthonormal() -> None:
    z, z_weight = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
    phi = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    ring = (1 - z * z).sqrt()[:, None]
    nodes = torch.stack([ring * phi.cos(), ring * phi.sin(), z[:, None].expand(8, 16)], -1).reshape(-1, 3)
    weights = (z_weight[:, None] * (2 * math.pi / 16)).expand(8, 16).reshape(-1, 1)
    basis = twin.harmonics(nodes)
    assert torch.allclose(basis.T @ (weights * basis), torch.eye(16, dtype=torch.float64), atol=1e-12)


def test_a_loss_on_the_2d_means_reaches_the_means() -> None:
    scene = twin.ball(20, 0, 3)
    ours, theirs = leaves(scene), leaves(scene, torch.float64)
    (render(ours, VIEWS, SIZE, BACKGROUND).means2d ** 2).sum().backward()
    sum((mean**2).sum() for mean in twin.render(theirs, VIEWS, SIZE, BACKGROUND)[4]).backward()
    assert relative(ours.means.grad, theirs.means.grad) < MEANS2D_TOLERANCE


# --- promises ---


def test_the_same_bits_on_any_number_of_threads() -> None:
    scene = hard_scene(3, 2)
    one = everything(scene, VIEWS)
    for threads in (2, 3):
        raster_cpu.set_threads(threads)
        assert same(one, everything(scene, VIEWS)), threads


def test_views_together_equal_views_one_by_one() -> None:
    scene = hard_scene(2, 3)
    together = render(scene, VIEWS, SIZE, BACKGROUND)
    for v in range(2):
        alone = render(scene, VIEWS[v : v + 1], SIZE, BACKGROUND[v])
        for name in ("image", "alpha", "depth", "radii_px", "means2d"):
            assert torch.equal(getattr(together, name)[v], getattr(alone, name)[0]), name


def test_groups_equal_renders_one_by_one() -> None:
    """Of different sizes, backgrounds and numbers of views: the same pictures, and the gradients' sum."""
    scene, camera = hard_scene(1, 5), orbit([1.0], [0.1], 2.2, FOV)
    asked = [(VIEWS, SIZE, BACKGROUND), (camera, 33, BACKGROUND[0]), (VIEWS, 16, BACKGROUND[1])]
    ours, apart = leaves(scene), leaves(scene)
    together = render_groups(ours, asked)
    alone = [render(apart, *group) for group in asked]
    for one, other in zip(together, alone, strict=True):
        for name in ("image", "alpha", "depth", "radii_px", "means2d"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    for views in (together, alone):  # no loss on the last group, none on the second's depth and image
        picture = cotangents(1)[0]
        ((views[0].image * picture).sum() + views[0].depth.sum() + views[1].alpha.square().sum()).backward()
    for one, other in zip(together[:2], alone[:2], strict=True):
        assert torch.equal(one.means2d.grad, other.means2d.grad)
    assert together[2].means2d.grad is None or not together[2].means2d.grad.any()
    for (name, mine), (_, reference) in zip(ours.items(), apart.items(), strict=True):
        assert relative(mine.grad, reference.grad) < SUM_TOLERANCE, name


def test_no_groups_are_no_pictures() -> None:
    assert render_groups(twin.ball(3, 0, 0), []) == []


def test_a_small_budget_changes_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = replace(hard_scene(1, 4), log_scales=hard_scene(1, 4).log_scales + 1.5)
    plenty = everything(scene, VIEWS)
    for budget in (1, 2000, 20000):
        monkeypatch.setattr(raster_cpu, "BUDGET_BYTES", budget)
        assert same(plenty, everything(scene, VIEWS)), budget
    raster_cpu.set_threads(2)
    assert same(plenty, everything(scene, VIEWS))


@pytest.mark.slow
def test_memory_has_a_bound_when_everything_covers_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    faint = torch.full((2000,), -5.4)  # alpha 0.0045: seen, and the light lasts far down every list
    scene = replace(twin.ball(2000, 0, 6, scale=(1.0, 2.0)), logit_opacities=faint)
    monkeypatch.setattr(raster_cpu, "BUDGET_BYTES", 200_000)
    camera = orbit([0.0], [0.0], 2.0, FOV)
    everything(scene, camera, size=(128, 128))
    tracemalloc.start()
    everything(scene, camera, size=(128, 128))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Lists take 0.2 MB of it; the rest goes with pixels and Gaussians.
    assert peak < PEAK_BYTES


def test_hidden_splats_are_exact_zeros_in_the_gradient() -> None:
    """A wall of opaque splats stops every pixel: what is behind it gets no gradient at all."""
    wall, behind = twin.ball(40, 0, 7, scale=(2.0, 2.1)), twin.ball(5, 0, 8)
    scene = Gaussians(*(torch.cat(pair) for pair in zip(*(_fields(s) for s in (wall, behind)), strict=True)))
    means, logits = 0.02 * scene.means, torch.full((45,), 5.0)
    means[40:, 2] -= 0.5
    inputs = leaves(replace(scene, means=means, logit_opacities=logits))
    rendered = render(inputs, orbit([0.0], [0.0], 2.0, FOV), SIZE, BACKGROUND[0])
    backward(rendered, 0)
    assert rendered.alpha.min() > 0.98
    assert (rendered.radii_px[0, 40:] > 0).all()
    for name, tensor in inputs.items():
        if tensor.numel():
            assert (tensor.grad[40:] == 0).all(), name
            assert name == "logit_opacities" or (tensor.grad[:40] != 0).any(), name


def _fields(scene: Gaussians) -> list[Tensor]:
    return [tensor for _, tensor in scene.items()]


def _child(queue: multiprocessing.Queue) -> None:
    queue.put(float(render(twin.ball(50, 0, 9), VIEWS, SIZE, BACKGROUND).image.sum()))


def test_a_forked_child_renders_after_its_parent_used_threads() -> None:
    raster_cpu.set_threads(2)
    expected = float(render(twin.ball(50, 0, 9), VIEWS, SIZE, BACKGROUND).image.sum())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join(60)


def test_one_thread_starts_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_threads, "_pool", None)
    raster_cpu.warm()
    assert kernel_threads._pool is None


def test_threads_default_to_those_of_torch() -> None:
    raster_cpu.set_threads(None)
    assert raster_cpu.get_threads() == torch.get_num_threads()
    raster_cpu.set_threads(3)
    assert raster_cpu.get_threads() == 3
    with pytest.raises(ValueError, match="at least 1, got 0"):
        raster_cpu.set_threads(0)


# --- degenerate scenes ---


def test_one_gaussian_by_hand() -> None:
    """Isotropic, at the origin, seen from the front: alpha and depth at the middle pixel are closed forms."""
    scene = Gaussians(
        means=torch.zeros(1, 3),
        log_scales=torch.full((1, 3), math.log(0.1)),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        logit_opacities=torch.tensor([0.0]),
        sh_dc=torch.full((1, 1, 3), 0.25 / 0.28209479177387814),
        sh_rest=torch.zeros(1, 0, 3),
    )
    camera = orbit([0.0], [0.0], 2.0, FOV)
    rendered = render(scene, camera, 33, torch.zeros(3))
    focal = camera.focal_px(33)
    variance = (focal * 0.1 / 2.0) ** 2 + 0.3
    assert torch.equal(rendered.means2d, torch.tensor([[[16.5, 16.5]]]))
    for row, col in ((16, 16), (16, 18), (13, 15)):
        alpha = 0.5 * math.exp(-0.5 * ((row - 16) ** 2 + (col - 16) ** 2) / variance)
        assert float(rendered.alpha[0, 0, row, col]) == pytest.approx(alpha, rel=3e-6)
        assert float(rendered.depth[0, 0, row, col]) == pytest.approx(2.0 * alpha, rel=3e-6)
        assert float(rendered.image[0, 1, row, col]) == pytest.approx(0.75 * alpha, rel=3e-6)
    assert float(rendered.radii_px) == math.ceil(3 * math.sqrt(variance + math.sqrt(0.1)))


def test_no_gaussians_is_background() -> None:
    scene = leaves(twin.ball(0, 1, 0))
    rendered = render(scene, VIEWS, SIZE, BACKGROUND)
    assert torch.equal(rendered.image, BACKGROUND[:, :, None, None].expand(2, 3, *SIZE))
    assert not rendered.alpha.any() and not rendered.depth.any()
    assert rendered.radii_px.shape == (2, 0) and rendered.means2d.shape == (2, 0, 2)
    backward(rendered, 0)
    assert scene.means.grad.shape == (0, 3)


@pytest.mark.parametrize("case", ["behind", "transparent", "aside"])
def test_unseen_gaussians_leave_background_and_zero_gradients(case: str) -> None:
    scene = twin.ball(30, 3, 1)
    camera = orbit([0.0], [0.0], 2.0, FOV)
    if case == "behind":
        scene = replace(scene, means=scene.means + torch.tensor([0.0, 0.0, 4.0]))
    elif case == "aside":
        scene = replace(scene, means=scene.means + torch.tensor([40.0, 0.0, 0.0]))
    else:
        scene = replace(scene, logit_opacities=torch.full((30,), -40.0))
    inputs = leaves(scene)
    rendered = render(inputs, camera, SIZE, BACKGROUND[0])
    assert torch.equal(rendered.image, BACKGROUND[0, None, :, None, None].expand(1, 3, *SIZE))
    assert bool((rendered.radii_px > 0).any()) == (case == "transparent")
    backward(rendered, 0)
    for name, tensor in inputs.items():
        assert not tensor.grad.any(), name


@pytest.mark.parametrize("log_scale", [-200.0, -20.0, 6.0, 40.0, 300.0, 900.0])
def test_extreme_scales_stay_finite(log_scale: float) -> None:
    scene = twin.ball(10, 1, 2)
    log_scales = scene.log_scales.clone()
    log_scales[:5, :2] = log_scale
    log_scales[5:, 2] = log_scale
    quats = scene.quats.clone()
    quats[0] = 0.0
    for tensor in everything(replace(scene, log_scales=log_scales, quats=quats), VIEWS):
        assert torch.isfinite(tensor).all()


def test_huge_gaussian_covers_the_screen_evenly() -> None:
    scene = twin.ball(1, 0, 0, scale=(50.0, 50.0))
    rendered = render(scene, orbit([0.0], [0.0], 2.0, FOV), SIZE, torch.zeros(3))
    opacity = float(scene.logit_opacities.sigmoid())
    assert torch.allclose(rendered.alpha, torch.full_like(rendered.alpha, opacity), rtol=1e-3)


def test_equal_depths_are_ordered_by_row() -> None:
    scene = twin.ball(2, 0, 0, scale=(0.5, 0.5))
    scene = replace(scene, means=torch.zeros(2, 3), logit_opacities=torch.full((2,), math.log(9.0)))
    front = render(scene, orbit([0.0], [0.0], 2.0, FOV), 17, torch.zeros(3)).image[0, :, 8, 8]
    colour = (0.5 + 0.28209479177387814 * scene.sh_dc[:, 0]).clamp(min=0)
    assert torch.allclose(front, 0.9 * colour[0] + 0.09 * colour[1], atol=1e-6)


def test_without_gradients_nothing_is_recorded() -> None:
    with torch.no_grad():
        rendered = render(leaves(twin.ball(5, 0, 0)), VIEWS, SIZE, BACKGROUND)
    assert not rendered.image.requires_grad and not rendered.means2d.requires_grad


def test_parameters_changed_in_place_before_backward_are_noticed() -> None:
    scene = leaves(twin.ball(5, 0, 0))
    rendered = render(scene, VIEWS, SIZE, BACKGROUND)
    with torch.no_grad():
        scene.means.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rendered.image.sum().backward()


# --- refusals ---


def test_refusals_name_the_thing_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster_cuda, "installed", lambda package: False)  # whatever this machine has
    scene = twin.ball(3, 0, 0)
    with pytest.raises(UserError, match=r"unknown raster backend 'gspalt': choose auto, cpu, gsplat, inria"):
        render(scene, VIEWS, SIZE, BACKGROUND, backend="gspalt")
    with pytest.raises(UserError, match=r"diff_gaussian_rasterization: pip install .* git\+https"):
        render(scene, VIEWS, SIZE, BACKGROUND, backend="inria")
    with pytest.raises(UserError, match=r"requirements-cuda\.txt"):
        render(scene, VIEWS, SIZE, BACKGROUND, backend="gsplat")
    with pytest.raises(ValueError, match=r"background must be \[3\] or \[2, 3\], got \[4\]"):
        render(scene, VIEWS, SIZE, torch.zeros(4))
    with pytest.raises(ValueError, match="at least 1 px, got 0 x 5"):
        render(scene, VIEWS, (0, 5), BACKGROUND)


def test_too_many_gaussians_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster_cpu, "MAX_GAUSSIANS", 2)
    with pytest.raises(ValueError, match="at most 2 Gaussians, got 3"):
        render(twin.ball(3, 0, 0), VIEWS, SIZE, BACKGROUND)
