"""Losses on pictures: draws depend on the step alone, pulls against the sums written out, the known view."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from gs_propeller.base.camera import relative_cameras
from gs_propeller.base.errors import UserError
from gs_propeller.distil.draw import camera_deg, camera_of, draw, known_camera, levels_of, where
from gs_propeller.distil.known import Known
from gs_propeller.distil.pull import LEAST, Guide, Pull, pulls
from gs_propeller.distil.settings import KnownSettings, LevelSettings, PullSettings, ViewSettings
from gs_propeller.distil.symmetry import Variant, variant_of, variants
from gs_propeller.solver.wire import packed, unpacked
from tests.toy_prior import COLOUR, Wavy

VIEWS = ViewSettings(elevation=math.degrees(0.1), batch_size=3, min_elevation=-20.0, max_elevation=25.0)
LEVELS = LevelSettings(t_min=0.1, t_max=0.9)
PRIOR = Wavy()


def test_draws_depend_on_seed_and_step_alone() -> None:
    one, again, other = (draw(step, 10, VIEWS, LEVELS, [PRIOR], 4) for step in (5, 5, 6))
    for field in ("azimuths", "elevations", "codes", "backdrop"):
        assert torch.equal(getattr(one, field), getattr(again, field))
    assert torch.equal(one.t[0], again.t[0]) and torch.equal(one.noise[0], again.noise[0])
    assert not torch.equal(one.noise[0], other.noise[0])
    assert not torch.equal(one.azimuths, draw(5, 10, VIEWS, LEVELS, [PRIOR], 5).azimuths)
    two = draw(5, 10, VIEWS, LEVELS, [PRIOR, PRIOR], 4)  # a second prior changes nothing of the first's
    assert torch.equal(two.noise[0], one.noise[0]) and not torch.equal(two.noise[1], one.noise[0])
    assert torch.equal(one.codes, relative_cameras(VIEWS.elevation_rad, one.azimuths, one.elevations))


def test_where_is_the_draw_s_own() -> None:
    for step in range(4):
        drawn = draw(step, 10, VIEWS, LEVELS, [PRIOR], 1)
        expected = drawn.azimuths, drawn.elevations, drawn.backdrop
        assert all(torch.equal(a, b) for a, b in zip(where(step, VIEWS, 1), expected, strict=True))


def test_variants_are_the_draw_s_own() -> None:
    plain = variant_of(3, 50, VIEWS, 1)
    assert not plain.mirror.any() and not plain.hue.any()
    always = variant_of(3, 50, replace(VIEWS, mirror=1.0, hue=1.0), 1)
    assert always.mirror.all() and bool(((always.hue > 0) & (always.hue < 3)).all())
    asked = replace(VIEWS, mirror=0.5, hue=2 / 3)
    many = [variant_of(step, 8, asked, 1) for step in range(60)]
    rows = Variant.joined(many, torch.device("cpu")).rows
    assert all(60 < int((rows == k).sum()) < 100 for k in range(6))  # of 480, evenly
    assert torch.equal(many[5].rows, variant_of(5, 8, asked, 1).rows) and not torch.equal(
        many[5].rows, many[6].rows
    )
    one, other = (draw(2, 10, views, LEVELS, [PRIOR], 1) for views in (VIEWS, asked))
    assert torch.equal(other.variant.rows, variant_of(2, 3, asked, 1).rows) and torch.equal(
        one.noise[0], other.noise[0]
    )
    assert torch.equal(one.codes, other.codes)  # they are the world's: another prior has no variants


def test_variants_are_undone() -> None:
    picture = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    every = variants(picture)
    assert torch.equal(every[0], picture) and torch.equal(every[1], picture.flip(-1))
    assert torch.equal(every[2], picture[[2, 0, 1]]) and torch.equal(every[5], picture[[1, 2, 0]].flip(-1))
    asked = variant_of(0, 64, replace(VIEWS, mirror=0.5, hue=2 / 3), 0)
    shown = asked.applied(picture.expand(64, -1, -1, -1))
    assert torch.equal(shown, every[asked.rows])
    assert torch.equal(asked.undone(shown), picture.expand(64, -1, -1, -1))


def test_draws_stay_in_their_ranges() -> None:
    low, high = (0.1 + math.radians(x) for x in (-20.0, 25.0))
    free = replace(LEVELS, anneal_t=False)
    for step in range(10):
        azimuths, elevations, backdrop = where(step, VIEWS, 0)
        assert bool(((elevations >= low - 1e-6) & (elevations <= high + 1e-6)).all())
        sectors = ((azimuths - azimuths[0]) / (2 * math.pi / 3)).round() % 3
        assert len(sectors.unique()) >= 2
        assert bool((backdrop == 1).all())
        assert bool((where(step, replace(VIEWS, invert_background=1.0), 0)[2] == 0).all())
        t = levels_of(step, 10, 50, free, 100, 0)
        assert bool(((t >= 10) & (t <= 90)).all()) and len(t.unique()) > 10
    half = torch.cat([where(s, replace(VIEWS, invert_background=0.5), 0)[2][:, 0] for s in range(40)])
    assert 0.3 < float(half.mean()) < 0.7
    annealed = [int(levels_of(step, 10, 1, LEVELS, 100, 0)) for step in range(10)]
    assert all(abs(t - (90 - 8 * step)) <= 1 for step, t in enumerate(annealed))  # rounded down from a float
    steep = replace(VIEWS, elevation=80.0, min_elevation=80.0, max_elevation=90.0)
    assert float(where(0, steep, 0)[1].max()) == pytest.approx(1.5)


def test_cameras_by_degrees_and_radians() -> None:
    degrees = camera_deg(VIEWS, [0.0, 90.0], [VIEWS.elevation, -10.0])
    radians = camera_of(VIEWS, [0.0, math.pi / 2], [VIEWS.elevation_rad, math.radians(-10.0)])
    assert torch.allclose(degrees.w2c, radians.w2c, atol=1e-6)
    assert torch.allclose(degrees.w2c[:1], known_camera(VIEWS).w2c, atol=1e-6)


class Steered(Wavy):
    """Guided away from grey."""

    def sds_grad(
        self, images: torch.Tensor, conditioning: Any, *told: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().sds_grad(images, 0.5 + told[3] * (conditioning - 0.5), *told)


def _images(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, 3, 12, 12, generator=generator) for _ in range(count)]


def test_pulls_against_the_sums_written_out() -> None:
    """Two priors, three slots in one call: each view of each slot alone."""
    guides = [Guide(PRIOR, COLOUR, 1.0, 0.7), Guide(PRIOR, 1 - COLOUR, 2.0, 0.3)]
    settings = PullSettings(lambda_sds=1.5, follows="abar")
    draws = [draw(step, 10, VIEWS, LEVELS, [PRIOR, PRIOR], 2) for step in (1, 4, 9)]
    for images, one, pull in zip(_images(3), draws, pulls(_images(3), draws, guides, settings), strict=True):
        assert torch.equal(pull.seen, images)
        residual = 0.0
        for v in range(3):
            row, kappa = torch.zeros(3, 12, 12), 0.0
            for k, guide in enumerate(guides):
                here = slice(v, v + 1)
                grad, miss = PRIOR.sds_grad(
                    images[here], guide.conditioning, one.codes[here], one.t[k][here], one.noise[k][here], 1.0
                )
                row += 1.5 / 3 * guide.weight * grad[0]
                kappa += 1.5 / 3 * guide.weight * float(one.t[k][v]) / 100
                residual += 1.5 / 3 * guide.weight * float(miss)
            assert float((pull.pull[v] - row).abs().max()) < 5e-7  # 1.2e-7
            assert float(pull.kappa[v]) == pytest.approx(kappa, rel=1e-6)
            assert float(pull.share[v]) == pytest.approx(1 - min(float(t[v]) for t in one.t) / 100, rel=1e-6)
        assert float(pull.losses) == pytest.approx(residual, rel=1e-6)
        assert pull.losses.shape == (1,)


def test_low_noise_keeps_a_share_of_what_no_sentence_asks_for() -> None:
    """Views below the level lose the rest of the pull of a guidance of 0, others nothing, in one call of both."""
    steered = Steered()
    guide = Guide(steered, COLOUR, 3.0, 0.7, csd_below=0.5, csd_rest=0.3)
    draws = [draw(step, 10, VIEWS, LEVELS, [steered], 2) for step in (1, 9)]
    assert float(draws[0].t[0].min()) >= 50 > float(draws[1].t[0].max())
    settings = PullSettings(lambda_sds=1.5, follows="abar")
    high, low = pulls(_images(2), draws, [guide], settings)
    whole = pulls(_images(2), draws, [Guide(steered, COLOUR, 3.0, 0.7)], settings)
    bare = pulls(_images(2), draws, [Guide(steered, COLOUR, 0.0, 0.7)], settings)
    assert torch.equal(high.pull, whole[0].pull) and torch.equal(high.kappa, whole[0].kappa)
    assert torch.allclose(low.pull, whole[1].pull - 0.7 * bare[1].pull, atol=1e-6)
    assert torch.allclose(low.kappa, 0.3 * whole[1].kappa)
    assert torch.equal(low.losses, whole[1].losses) and not torch.allclose(low.pull, whole[1].pull)
    (alone,) = pulls(_images(2)[1:], draws[1:], [guide], settings)
    assert all(torch.equal(a, b) for a, b in zip(alone, low, strict=True))
    (kept,) = pulls(_images(1), draws[1:], [replace(guide, csd_rest=1.0)], settings)
    (plain,) = pulls(_images(1), draws[1:], [Guide(steered, COLOUR, 3.0, 0.7)], settings)
    assert torch.equal(kept.pull, plain.pull)


def test_a_pull_at_its_own_pictures_is_the_pull_to_the_bit() -> None:
    one = draw(3, 10, VIEWS, LEVELS, [PRIOR], 2)
    images, other = _images(2)
    for follows in ("abar", "none", "all"):
        (pull,) = pulls([images], [one], [Guide(PRIOR, COLOUR, 1.0)], PullSettings(follows=follows))
        assert torch.equal(pull.here(images), pull.pull)
        expected = pull.pull + pull.kappa.reshape(3, 1, 1, 1) * (other - images)
        assert torch.equal(pull.here(other), expected)
        assert torch.equal(pull.here(other), pull.pull) == (follows == "all")
        assert pull.at(object()) is pull


def test_mismatch_is_zero_only_at_the_same_pictures() -> None:
    """Whatever the share: what is measured as nothing may still be a little."""
    (images,) = _images(1)
    for share in (0.0, 1.0):
        for value in (0.5, 1e-30):
            images[2, 1, 5, 5] = value
            pull = _pull(images, torch.full((3,), share))
            assert pull.mismatch(images.clone()) == 0.0
            nearest = images.clone()
            nearest[2, 1, 5, 5] = torch.nextafter(images[2, 1, 5, 5], torch.tensor(1.0))
            assert pull.mismatch(nearest) > 0.0
        assert math.isnan(_pull(images, torch.full((3,), share)).mismatch(images * math.nan))


def test_mismatch_is_what_comes_through() -> None:
    images, other = _images(2)
    shares = torch.tensor([0.0, 0.5, 1.0])
    expected = sum(
        max(float(a), LEAST) ** 2 * float((x.double() - y.double()).square().mean()) / 3
        for a, x, y in zip(shares, images, other, strict=True)
    )
    assert _pull(images, shares).mismatch(other) == pytest.approx(expected, rel=1e-9)


def _pull(images: torch.Tensor, share: torch.Tensor) -> Pull:
    return Pull(images, images, torch.ones(3), share, torch.zeros(1))


def test_pulls_travel() -> None:
    found = [Pull(x, x + 1, x[:, 0, 0, 0], x[:, 0, 1, 1], x[:1, 0, 0, 0]) for x in _images(3)]
    again = unpacked(*packed(found), Pull)
    for one, other in zip(found, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parts(), other.parts(), strict=True))


def test_known_view_losses_written_out() -> None:
    rgb, mask = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(1)), torch.zeros(1, 40, 40)
    mask[:, 10:30] = 1.0
    known = Known.of(rgb, mask, 20)
    assert known.image.shape == (1, 3, 20, 20) and known.mask.shape == (1, 1, 20, 20)
    assert float(known.mask.mean()) == pytest.approx(0.5, abs=1e-3)
    image, alpha = torch.full((1, 3, 20, 20), 0.25), torch.full((1, 1, 20, 20), 0.75)
    losses = known.losses(image, alpha, 0.4, KnownSettings(lambda_rgb=50.0, lambda_mask=7.0))
    assert list(losses) == ["rgb", "mask"]
    assert float(losses["rgb"]) == pytest.approx(
        50 * 0.4 * float(((image - known.image) ** 2).mean()), rel=1e-6
    )
    assert float(losses["mask"]) == pytest.approx(
        7 * 0.4 * float(((alpha - known.mask) ** 2).mean()), rel=1e-6
    )


def test_settings_refuse() -> None:
    with pytest.raises(UserError, match="min_elevation=5 is above max_elevation=3"):
        ViewSettings(min_elevation=5, max_elevation=3)
    with pytest.raises(UserError, match=r"t_min=0\.9 is above t_max=0\.5"):
        LevelSettings(t_min=0.9, t_max=0.5)
    with pytest.raises(UserError, match="follows=half is not one of measured, abar, none, all"):
        PullSettings(follows="half")
