"""Zero-1-to-3 guidance against the formulas written out, on random weights in the published layout."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gs_propeller.app.asset import Logged, problem, scene_of, travellers
from gs_propeller.app.config import Config
from gs_propeller.app.guides import Priors
from gs_propeller.base.camera import relative_cameras
from gs_propeller.base.errors import UserError
from gs_propeller.distil.draw import draw
from gs_propeller.distil.pull import Guide, Pull, pulls
from gs_propeller.distil.settings import LevelSettings, PullSettings, ViewSettings
from gs_propeller.distil.symmetry import variants
from gs_propeller.pictures.picture import load_picture
from gs_propeller.solver.picard import solve
from gs_propeller.solver.ranks import Ranks
from guidance import POCKET, find_prior
from guidance.zero123 import Zero123
from tests import tiny_prior, toy_prior

SCALE = 3.0


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def prior(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Zero123:
    return Zero123(tiny_prior.write(tmp_path_factory.mktemp("prior"), request.param))


def _arguments(prior: Zero123, views: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(views, 3, 16, 16, generator=generator)
    cameras = relative_cameras(
        0.1, torch.tensor([0.3, -2.0, 1.0])[:views], torch.tensor([0.2, 0.0, -0.4])[:views]
    )
    noise = torch.randn(views, *prior.latent_shape, generator=generator)
    return images, cameras, torch.tensor([20, 500, 980])[:views], noise


def test_sizes_are_read_from_the_folder(prior: Zero123) -> None:
    assert prior.latent_shape == (tiny_prior.CHANNELS, tiny_prior.LATENT, tiny_prior.LATENT)
    assert prior.size_px == 16
    assert prior.levels == 1000
    known = prior.embed(torch.rand(1, 3, 30, 30))
    assert known.seen.shape == (1, 1, tiny_prior.WIDTH)
    assert known.latents.shape == (1, tiny_prior.CHANNELS, 8, 8)


def test_embed_normalises_as_the_folder_says(prior: Zero123) -> None:
    image = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    mean, std = (
        torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1),
        torch.tensor([0.2, 0.3, 0.25]).view(1, 3, 1, 1),
    )
    with torch.no_grad():
        expected = prior.encoder(pixel_values=(image - mean) / std).image_embeds
    assert torch.equal(prior.embed(image).seen[:, 0], expected)


def slow_sds(
    prior: Zero123,
    image: Tensor,
    known: Tensor,
    camera: Tensor,
    t: int,
    noise: Tensor,
    reference: Tensor,
    scale: float = SCALE,
) -> Tensor:
    """Paper Eq. 1 for one view, from the loss whose gradient it is: w <eps_hat - eps, latents>."""
    image = image.clone().requires_grad_(True)
    latents = prior.vae.encode(image * 2 - 1).latent_dist.mean * prior.vae.config.scaling_factor
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)[t].float()
    noisy = abar.sqrt() * latents.detach() + (1 - abar).sqrt() * noise
    with torch.no_grad():
        token = prior.projection.proj(torch.cat([known, camera], 1))[:, None]
        outputs = []
        for kept in (1.0, 0.0):
            stacked = torch.cat([noisy, reference * kept], 1)
            out = prior.unet(stacked, torch.tensor([t]), token * kept).sample
            if prior.scheduler.config.prediction_type == "v_prediction":
                out = abar.sqrt() * out + (1 - abar).sqrt() * noisy
            outputs.append(out)
    guided = outputs[1] + scale * (outputs[0] - outputs[1])
    ((1 - abar) * (guided - noise) * latents).sum().backward()
    assert image.grad is not None
    return image.grad


def test_sds_gradient_against_the_formula(prior: Zero123) -> None:
    images, cameras, t, noise = _arguments(prior)
    known = prior.embed(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2)))
    grad, residual = prior.sds_grad(images, known, cameras, t, noise, SCALE)
    for v in range(3):
        one = slice(v, v + 1)
        expected = slow_sds(
            prior, images[one], known.seen[:, 0], cameras[one], int(t[v]), noise[one], known.latents
        )
        worst = (grad[one] - expected).abs().max() / expected.abs().max()
        assert worst < 2e-5  # measured 4e-6: batches of three and one are summed differently
    assert residual.shape == (3,)
    assert bool((residual > 0).all())


def test_clean_weighting_is_the_same_residual_at_every_level(prior: Zero123) -> None:
    images, cameras, t, noise = _arguments(prior)
    known = prior.embed(images[:1])
    plain, clean = (prior.sds_grad(images, known, cameras, t, noise, SCALE, w)[0] for w in ("noise", "clean"))
    abar = prior.alphas[t].view(3, 1, 1, 1)
    worst = (plain - (abar * (1 - abar)).sqrt() * clean).abs().max() / plain.abs().max()
    assert worst < 1e-4  # float32, and the smallest alpha is divided by


def test_guidance_of_one_needs_no_unconditional_call(prior: Zero123) -> None:
    images, cameras, t, _noise = _arguments(prior)
    known = prior.embed(images[:1])
    noisy = prior.encode(images).detach()
    alone = prior.predict(noisy, known, cameras, t, 1.0)[0]
    without, given = (prior.predict(noisy, known, cameras, t, s)[0] for s in (0.0, 2.0))
    assert torch.allclose(alone, (without + given) / 2, atol=2e-5)


def test_noise_and_clean_agree(prior: Zero123) -> None:
    images, cameras, t, _noise = _arguments(prior)
    noisy = prior.encode(images).detach()
    predicted, clean = prior.predict(noisy, prior.embed(images[:1]), cameras, t, SCALE)
    abar = prior.alphas[t].view(3, 1, 1, 1)
    assert torch.allclose(abar.sqrt() * clean + (1 - abar).sqrt() * predicted, noisy, atol=2e-4)


@pytest.mark.slow
def test_refine_keeps_more_of_the_picture_at_less_strength(prior: Zero123) -> None:
    images, cameras, _, noise = _arguments(prior)
    known = prior.embed(images[:1])
    through = prior.decode(prior.encode(images))
    errors = [
        (prior.refine(images, known, cameras, noise, strength, 4, 1.0) - through).square().mean()
        for strength in (0.02, 0.9)
    ]
    assert errors[0] < errors[1]
    assert torch.equal(
        prior.refine(images, known, cameras, noise, 1.0, 3),
        prior.refine(1 - images, known, cameras, noise, 1.0, 3),
    )
    with pytest.raises(ValueError, match="strength"):
        prior.refine(images, known, cameras, noise, 0.0)


def test_camera_code_signs() -> None:
    """Polar angle grows downwards, azimuth counter-clockwise from above (towards +x from +z)."""
    code = relative_cameras(
        math.radians(10), torch.tensor([math.pi / 2]), torch.deg2rad(torch.tensor([40.0]))
    )[0]
    assert torch.allclose(code, torch.tensor([math.radians(-30), 1.0, 0.0, 0.0]), atol=1e-6)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    folder = tiny_prior.write(tmp_path / "prior")
    shutil.rmtree(folder / "vae")
    with pytest.raises(UserError, match="cannot be loaded"):
        Zero123(folder)
    with pytest.raises(UserError, match="no/such-prior"):
        Zero123("no/such-prior")
    with pytest.raises(UserError, match="no prior folder"):
        Zero123(tmp_path / "nowhere")


def test_clip_values_where_the_folder_has_none(tmp_path: Path) -> None:
    folder = tiny_prior.write(tmp_path / "prior")
    shutil.rmtree(folder / "feature_extractor")
    assert abs(float(Zero123(folder).mean[0, 0, 0, 0]) - 0.48145466) < 1e-6


def _gradient_and_state(prior: Zero123) -> dict[str, Tensor]:
    """One SDS gradient of the cat, and all that a short run over two densifications ends in."""
    config = Config(steps=5, window=2, num_points=60, batch_size=1, densify_from=1, densify_every=2,
                    densify_until=5, reference_size=32, threshold=1.0)  # fmt: skip
    task = scene_of(config, load_picture("data/cat.png"), Priors(prior, None))
    first = task.first()
    (pull,) = task.compute([first.params], [0])
    with Ranks(kinds=travellers(config)) as ranks:
        ranks.begin(0, task.compute)
        window = solve(problem(task, ranks, Logged()), config.sections.solver, first)
    return window.states[0].tensors() | {"gradient": pull.parts()[0]}


@pytest.mark.slow
def test_the_pocket_prior_is_found_and_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_prior("auto") == str(POCKET)
    assert find_prior("a/b") == "a/b"
    moved = shutil.copytree(POCKET, tmp_path / "elsewhere")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    priors = [Zero123(p) for p in (POCKET, moved)]
    here, there = (prior.embed(image) for prior in priors)
    assert torch.equal(here.seen, there.seen)
    assert torch.equal(here.latents, there.latents)
    first, second = (_gradient_and_state(prior) for prior in priors)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    monkeypatch.setattr("guidance.folder.POCKET", tmp_path / "nothing")
    with pytest.raises(UserError, match="restore data"):
        find_prior("")


@pytest.mark.parametrize("travels", ["pictures", "gradients"])
def test_slots_batched_into_one_call(prior: Zero123, travels: str) -> None:
    """Five scenes, one render and one UNet call, against one by one: products of other shapes round otherwise."""
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    guides = (Guide(prior, prior.embed(picture), 2.0),)
    alone = replace(toy_prior.scene(updates=40, travels=travels), guides=guides)
    params = [alone.first().params.map(lambda x, slot=slot: x[: 20 - slot]) for slot in range(5)]
    one_by_one, at_once = (
        replace(alone, batch_slots=slots).compute(params, range(5, 10)) for slots in (1, 5)
    )
    for found, twin in zip(at_once, one_by_one, strict=True):
        for ours, theirs in zip(found.parts(), twin.parts(), strict=True):
            assert float((ours - theirs).abs().max()) < 2e-5 * float(
                theirs.abs().max().clamp_min(1e-9)
            )  # 4e-6
    assert isinstance(at_once[0], Pull) == (travels == "pictures")


def test_views_in_variants(prior: Zero123) -> None:
    """Each view is what the prior, told of the picture's variant, makes of the render's from the side that is then the
    same, put back."""
    picture = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(7))
    every = Guide(prior, prior.embed(variants(picture)), SCALE, variants=True)
    views = ViewSettings(elevation=6.0, batch_size=8, mirror=0.5, hue=2 / 3)
    settings = PullSettings(sds_space="pixel")
    drawn = draw(1, 10, views, LevelSettings(), [prior], 0)
    variant = drawn.variant
    assert len(variant.rows.unique()) > 3
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(8))
    (found,) = pulls([images], [drawn], [every], settings)
    assert torch.equal(found.seen, images)
    for v in range(8):
        told = picture.roll(int(variant.hue[v]), 0)
        render, azimuth = images[v : v + 1].roll(int(variant.hue[v]), 1), drawn.azimuths[v : v + 1]
        if variant.mirror[v]:
            told, render, azimuth = told.flip(-1), render.flip(-1), -azimuth
        code = relative_cameras(views.elevation_rad, azimuth, drawn.elevations[v : v + 1])
        grad, _ = prior.sds_grad(
            render, prior.embed(told[None]), code, drawn.t[0][v : v + 1], drawn.noise[0][v : v + 1], SCALE,
            space="pixel",
        )  # fmt: skip
        grad = grad.roll(-int(variant.hue[v]), 1)
        expected = grad.flip(-1) if variant.mirror[v] else grad
        assert torch.allclose(found.pull[v], expected[0] / 8, atol=1e-6, rtol=1e-4)
    (plain,) = pulls([images], [drawn], [Guide(prior, prior.embed(picture[None]), SCALE)], settings)
    same = variant.rows == 0
    assert torch.allclose(found.pull[same], plain.pull[same], atol=1e-6, rtol=1e-4)
    assert not torch.allclose(found.pull[~same], plain.pull[~same], atol=1e-6, rtol=0.01)
    assert torch.equal(found.kappa, plain.kappa)


def slope(prior: Zero123, weighting: str, level: int) -> float:
    """What stays of a render's change in the gradient between pictures, by differences along a smooth random change d
    of eight of them: <d, P(R + d) - P(R - d)> / 2 <d, d>."""
    generator = torch.Generator().manual_seed(3)
    told = prior.embed(torch.rand(1, 3, 16, 16, generator=generator))
    images = 0.3 + 0.4 * torch.rand(8, 3, 16, 16, generator=generator)
    grain = torch.randn(8, 3, 2, 2, generator=generator)
    d = 0.02 * torch.nn.functional.interpolate(grain, (16, 16), mode="bicubic")
    cameras = relative_cameras(0.1, torch.linspace(-2, 2, 8), torch.zeros(8))
    t, noise = torch.full((8,), level), torch.randn(8, *prior.latent_shape, generator=generator)
    high, low = (
        prior.sds_grad(images + sign * d, told, cameras, t, noise, 1.0, weighting, "pixel")[0]
        for sign in (1, -1)
    )
    return float(((high - low) * d).sum() / (2 * d.square().sum()))


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["noise", "clean"])
@pytest.mark.parametrize("level", [100, 600, 950])
def test_stiffness_in_pictures_against_differences(prior: Zero123, weighting: str, level: int) -> None:
    """w (1 - a): with a as the differences have it, the slope."""
    alpha, sigma = (float(x) for x in prior.alpha_sigma(torch.tensor([level])))
    weight = 1.0 if weighting == "clean" else sigma * alpha
    t = torch.tensor([level])
    found = slope(prior, weighting, level)
    came_through = 1 - found / weight
    prior.response = [came_through] * 5
    try:
        assert float(prior.stiffness(t, weighting, "pixel", "measured")) == pytest.approx(found, rel=1e-3)
        assert float(prior.share(t, "pixel", "measured")) == pytest.approx(came_through, abs=1e-6)
    finally:
        prior.response = []
    assert float(prior.stiffness(t, weighting, "pixel", "none")) == pytest.approx(weight, rel=1e-6)
    assert float(prior.stiffness(t, weighting, "pixel", "all")) == 0.0
    for follows in ("abar", "measured"):  # nothing measured: abar
        stays = float(prior.stiffness(t, weighting, "pixel", follows))
        assert stays == pytest.approx(weight * (1 - alpha**2), rel=1e-5)


def test_between_latents_a_change_is_taken_to_come_through(prior: Zero123) -> None:
    """What comes back through an encoder hardly knows of it: a small part of a picture's own weight."""
    t = torch.tensor([100, 600, 950])
    for follows in ("measured", "abar", "none", "all"):
        assert prior.share(t, "latent", follows).tolist() == [1.0, 1.0, 1.0]
        assert prior.stiffness(t, "noise", "latent", follows).tolist() == [0.0, 0.0, 0.0]


def test_measured_shares_are_interpolated_over_the_levels(prior: Zero123) -> None:
    prior.response = [0.9, 0.5, 0.1]
    try:
        t = torch.tensor([0, 333, 500, 999])
        shares = prior.share(t, "pixel", "measured").tolist()
    finally:
        prior.response = []
    expected = [0.9 - 0.8 * x / 999 for x in t.tolist()]
    assert shares == pytest.approx(expected, abs=1e-6)
