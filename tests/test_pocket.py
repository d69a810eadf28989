"""The pocket prior's objects, their views, the training stream and the training itself."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gs_propeller.base.camera import orbit, relative_cameras
from gs_propeller.base.errors import UserError
from guidance import POCKET, POCKET_TEXT
from guidance.pocket import data, meshes, model, stream, train, train_vae, training, translate
from guidance.pocket.cat import cat, picture
from guidance.pocket.families import FAMILIES, FURTHER, UNTRAINED, make
from guidance.pocket.objects import PALETTE, Part, Thing, euler
from guidance.pocket.render import FILL, FOV_Y_RAD, RADIUS, framed, on_white, surface, views
from guidance.pocket.score import fixed_sample
from guidance.zero123 import Zero123

LIGHT = np.array([0.0, 1.0, 0.0])


@pytest.fixture(autouse=True)
def _procedural_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a folder of models; tests/test_meshes.py is about those."""
    monkeypatch.setenv(meshes.FOLDER_VARIABLE, "nowhere")


def _ball(radius: float = 0.5, at: tuple[float, float, float] = (0, 0, 0), **changes: object) -> Thing:
    colour = np.array([0.8, 0.4, 0.2])
    part = Part(
        np.array(at, float), np.full(3, radius), np.eye(3), (1.0, 1.0), 0.0, colour, 1 - colour, **changes
    )  # type: ignore[arg-type]
    return Thing("ball", 0, "a ball", (part,), LIGHT, 1.0)


def test_a_sphere_covers_what_geometry_says() -> None:
    image = views(_ball(), orbit([0.3], [0.2], RADIUS, FOV_Y_RAD), 128)[0]
    angular = math.asin(0.5 / RADIUS)
    radius_px = math.tan(angular) / math.tan(FOV_Y_RAD / 2) * 64
    area = float(image[3].sum())
    assert abs(area / (math.pi * radius_px**2) - 1) < 0.02  # measured 0.007: the facets lie inside the sphere
    assert torch.allclose(
        image[:3, 64, 64], torch.tensor([0.8, 0.4, 0.2]), atol=1e-5
    )  # ambient 1: no shading


def test_where_things_appear() -> None:
    """+x is right and +y up from azimuth 0; from azimuth 90 degrees, +z is left."""
    front, side = orbit([0.0], [0.0], RADIUS, FOV_Y_RAD), orbit([math.pi / 2], [0.0], RADIUS, FOV_Y_RAD)

    def centre(at: tuple[float, float, float], camera: object) -> tuple[float, float]:
        alpha = views(_ball(0.1, at), camera, 64)[0, 3]  # type: ignore[arg-type]
        rows, cols = torch.nonzero(alpha > 0.5, as_tuple=True)
        return float(cols.float().mean()), float(rows.float().mean())

    assert centre((0.4, 0, 0), front)[0] > 40
    assert centre((0, 0.4, 0), front)[1] < 24
    assert centre((0, 0, 0.4), side)[0] < 24


def test_nearer_surfaces_hide_others() -> None:
    near, far = _ball(0.2, (0, 0, 0.5)), _ball(0.2, (0, 0, -0.5))
    dark = Part(np.zeros(3) + [0, 0, -0.5], np.full(3, 0.2), np.eye(3), (1, 1), 0.0, np.zeros(3), np.zeros(3))
    both = Thing("two", 0, "", (*near.parts, dark), LIGHT, 1.0)
    seen = views(both, orbit([0.0], [0.0], RADIUS, FOV_Y_RAD), 32)[0]
    assert seen[0, 16, 16] > 0.7
    assert far.parts[0].centre[2] < 0


@pytest.mark.parametrize("pattern", range(1, 6))
def test_patterns_show_both_colours(pattern: int) -> None:
    image = views(_ball(0.6, pattern=pattern), orbit([0.0], [0.0], RADIUS, FOV_Y_RAD), 96)[0]
    red = image[0][image[3] > 0.99]
    assert float(red.min()) < 0.4
    assert float(red.max()) > 0.6


@pytest.mark.slow
def test_inside_agrees_with_the_surface() -> None:
    for thing in (cat(), *(make(f, 5) for f in FAMILIES | UNTRAINED | FURTHER)):
        placed = framed(thing, 0.2, 0.1)
        shape = surface(placed)
        points = shape.vertices.astype(np.float64)
        normals = shape.normals.astype(np.float64)
        solid = np.linalg.norm(normals, axis=1) > 0.5
        assert (
            placed.inside(points - 1e-3 * normals)[solid].mean() > 0.97
        )  # poles of sharp cones may poke out
        assert not placed.inside(np.array([[5.0, 5.0, 5.0]]))[0]


def test_the_shipped_picture_is_the_cat() -> None:
    shipped = np.asarray(Image.open(POCKET.parent / "cat.png")).astype(int)
    drawn = (picture().permute(1, 2, 0).numpy() * 255 + 0.5).astype(int)
    assert shipped.shape == (512, 512, 4)
    assert np.mean(np.abs(shipped - drawn) > 1) < 1e-3  # edges may fall the other way on another processor


@pytest.mark.slow
def test_framing_centres_and_fills() -> None:
    for seed, family in enumerate(FAMILIES | UNTRAINED | FURTHER):
        thing = framed(make(family, seed), 0.4, 0.2)
        alpha = views(thing, orbit([0.4], [0.2], RADIUS, FOV_Y_RAD), 256)[0, 3] > 0.5
        rows, cols = torch.nonzero(alpha, as_tuple=True)
        spans = [int(x.max() - x.min() + 1) / 256 for x in (rows, cols)]
        assert abs(max(spans) - FILL) < 0.02
        for x in (rows, cols):
            assert abs(float(x.max() + x.min() + 1) / 2 / 256 - 0.5) < 0.012


def test_objects_are_functions_of_family_and_seed() -> None:
    a, b, other = make("bird", 3), make("bird", 3), make("bird", 4)
    assert all(np.array_equal(p.centre, q.centre) for p, q in zip(a.parts, b.parts, strict=True))
    assert a.caption == b.caption
    assert not np.array_equal(a.parts[0].radii, other.parts[0].radii)
    assert any(word in a.caption for word in PALETTE)
    with pytest.raises(ValueError, match="there are sitter"):
        make("dragon", 0)


@pytest.mark.slow
def test_families_kept_from_training_are_in_no_shard() -> None:
    kinds = [data.kind_of(7, i) for i in range(10 * len(FAMILIES))]
    names = {name for name, is_model in kinds if not is_model}
    assert names == set(FAMILIES) | set(FURTHER)
    assert not names & set(UNTRAINED)
    assert {thing.family for thing, _ in data.held_out(5, families=UNTRAINED)} == set(UNTRAINED)


@pytest.mark.slow
def test_every_family_makes_members_that_differ_and_are_described() -> None:
    for family in FAMILIES | UNTRAINED | FURTHER:
        captions = {make(family, seed).caption for seed in range(6)}
        assert len(captions) > 3
        assert all(any(word in caption for word in PALETTE) for caption in captions)
        for seed in range(60):  # all the branches
            thing = make(family, seed)
            assert all((p.radii > 0).all() and abs(p.taper) < 1.0 for p in thing.parts)
            assert all(np.allclose(p.rotation @ p.rotation.T, np.eye(3)) for p in thing.parts)


def test_parts_grow_into_one_another() -> None:
    """The blended surface is where the smooth depth is nought; between two balls it fills the crease."""
    two = replace(_ball(0.3, (-0.25, 0, 0)), blend=0.08)
    two = replace(two, parts=(*two.parts, *_ball(0.3, (0.25, 0, 0)).parts))
    crease = np.array([[0.0, 0.2, 0.0]])
    assert two.inside(crease)[0]
    assert not replace(two, blend=0.0).inside(crease)[0]
    shape = surface(two)
    depth = two.depth(shape.vertices.astype(np.float64))
    assert depth.min() > -0.003  # none outside; some stay hidden inside the other ball
    shown = depth < 0.003
    assert shown.mean() > 0.8
    x = shape.vertices[:, 0]
    outward = (shape.normals[:, 1:] * shape.vertices[:, 1:]).sum(1)
    assert (outward[shown & (np.abs(x) < 0.2) & (np.abs(x) > 0.1)] > 0).all()


def test_euler_turns_the_named_way() -> None:
    assert np.allclose(euler(yaw=math.pi / 2) @ [0, 0, 1], [1, 0, 0])
    assert np.allclose(euler(pitch=math.pi / 2) @ [0, 1, 0], [0, 0, 1])
    assert np.allclose(euler(roll=math.pi / 2) @ [1, 0, 0], [0, 1, 0])


@pytest.mark.slow
def test_stream_is_reproducible_and_mirrors() -> None:
    one, again = data.shard(3, 2), data.shard(3, 2)
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.poses[:, 0], torch.tensor([[0.0, 0.0, 1.0, 0.0]]).expand(2, 4))
    images, poses = data.mirrored(one.images, one.poses)
    assert torch.equal(images.flip(-1), one.images)
    assert torch.equal(poses[..., 1], -one.poses[..., 1])
    seeds = {thing.seed for thing, _ in data.held_out(12)}
    assert max(seeds) < data.TRAIN_SEED


def test_the_stream_encodes_cameras_as_the_guidance_does() -> None:
    known, target = data.Pose(0.3, 0.1), data.Pose(1.1, -0.2)
    code = relative_cameras(0.1, torch.tensor([0.8]), torch.tensor([-0.2]))[0]
    assert torch.allclose(torch.tensor(data.relative_pose(known, target)), code, atol=1e-6)


@pytest.mark.slow
def test_a_view_of_the_stream_is_the_view_of_its_pose() -> None:
    """Each object's first picture, or its mirror image: both kinds are in the stream."""
    value, turned = data.shard(0, 6), []
    for i in range(6):
        thing, known = data.member(0, i)
        camera = orbit([known.azimuth_rad], [known.elevation_rad], RADIUS, FOV_Y_RAD)
        picture = (on_white(views(thing, camera, 64))[0] * 255 + 0.5).to(torch.uint8)
        turned.append(not torch.equal(value.images[i, 0], picture))
        assert torch.equal(value.images[i, 0], picture.flip(-1) if turned[-1] else picture)
    assert set(turned) == {True, False}


def test_timesteps_start_at_high_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    assert int(training.timesteps(0, 500, generator).min()) >= 699
    late = training.timesteps(100_000, 200_000, generator)
    assert int(late.min()) < 20
    assert int(late.max()) <= 999
    focused = training.timesteps(100_000, 200_000, generator, 0.6) >= 999 * training.FOCUS_FROM
    usual = float((late >= 999 * training.FOCUS_FROM).float().mean())
    assert float(focused.float().mean()) == pytest.approx(0.6 + 0.4 * usual, abs=0.01)


@pytest.mark.slow
def test_training_learns_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of each stage on a small stream, those of the UNet on the same samples, noise and all: their loss
    falls, and a second call goes on from the first."""
    small = data.shard(0, 6)
    monkeypatch.setattr(model, "CHANNELS", (32, 32, 32))
    monkeypatch.setattr(stream, "shard", lambda number, beside: small)
    monkeypatch.setattr(translate, "shard", lambda number, objects: small)
    monkeypatch.setattr(stream, "window", lambda step, first: range(1))
    monkeypatch.setattr(train, "keyed", lambda seed, step: training.keyed(seed, 0))
    monkeypatch.setattr(training, "LOG_EVERY", 5)
    clock = iter(range(10_000))
    monkeypatch.setattr(training.time, "time", lambda: float(next(clock)))
    log = training.Log(tmp_path / "log.jsonl")
    options = training.Options(tmp_path, minutes=0.4, batch=4, lr=4e-3)
    train_vae.train_vae(replace(options, minutes=0.15), POCKET_TEXT, log, batch=2)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["stage"] == "vae"
    assert np.isfinite(lines[-1]["psnr_db"])
    vae = train.vae_of(options)
    assert vae.config.scaling_factor > 0

    train.train_unet(options, vae, log)
    first = int(train.load_file(tmp_path / training.CHECKPOINT)["run.step"])
    monkeypatch.setattr(train, "score", lambda prior, steps: {"objects": 0})
    train.export(options, tmp_path / "before")
    train.train_unet(options, train.vae_of(options), log)
    last = int(train.load_file(tmp_path / training.CHECKPOINT)["run.step"])
    assert last > first > 0

    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "unet"]
    assert losses[-1] < 0.9 * losses[0]
    assert (tmp_path / "training.png").stat().st_size > 1000

    sums = train.export(options, tmp_path / "prior")
    assert Zero123(tmp_path / "prior").size_px == data.SIZE_PX
    record = json.loads((tmp_path / "prior" / "training.json").read_text())
    assert record["sha256"] == sums
    assert record["steps"] == last
    assert record["samples"] == 4 * last

    between = replace(options, start=tmp_path / "before")
    train.export(between, tmp_path / "half", 0.5)
    file = train.FILES["unet"]
    ends = [
        train.load_file(place / file)
        for place in (tmp_path / "before", tmp_path / "prior", tmp_path / "half")
    ]
    key = "conv_out.weight"
    old, new, half = (tensors[key].float() for tensors in ends)
    assert torch.allclose(half, (old + new) / 2, atol=2e-3)
    assert json.loads((tmp_path / "half" / "training.json").read_text())["share"] == 0.5
    with pytest.raises(UserError, match="name its folder"):
        train.export(options, tmp_path / "half", 0.5)

    onward = training.Options(
        tmp_path / "more", minutes=1.0, batch=4, start=tmp_path / "prior", until=last + 1
    )
    train.train_unet(onward, train.vae_of(onward), log)  # another machine, which has the weights alone
    run = {
        k: int(v)
        for k, v in train.load_file(onward.out / training.CHECKPOINT).items()
        if k.startswith("run.")
    }
    assert run["run.step"] == last + 1
    assert run["run.samples"] == 4 * (last + 1)
    started = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [x for x in started if x["stage"] == "start"][-1]["unet_sha256"] == sums[train.FILES["unet"]]


def test_a_step_draws_from_the_newest_shards() -> None:
    assert stream.window(0, 58) == range(58, 58 + stream.SHARDS_FIRST)
    late = stream.window(100_000, 58)
    assert len(late) == stream.SHARDS_KEPT
    assert late.stop == stream.newest_shard(100_000) == stream.newest_shard(100_000 - stream.SHARD_STEPS) + 1


def test_learning_warms_up_and_cools_down() -> None:
    shares = [training.learning_share(step, 1000, 9000) for step in (1000, 1099, 3000, 6500, 9000)]
    assert shares == [0.005, 0.5, 1.0, 0.5, 0.0]


def _keep_few(folder: Path, number: int) -> None:
    """In a process of its own, which has no other use of the stream: shards of three objects."""
    stream.shard = partial(data.shard, objects=3)
    stream.keep_shard(folder, number)


@pytest.mark.slow
def test_shards_drawn_ahead_are_the_stream(tmp_path: Path) -> None:
    ahead = stream.Ahead(partial(_keep_few, tmp_path), 1)
    ahead.need(range(1))
    ahead.drawn[1].result()  # one more than was asked for
    ahead.close()
    for number in range(2):
        kept, few = stream.cached_shard(tmp_path, number), data.shard(number, 3)
        assert torch.equal(kept.images, few.images)
        assert torch.equal(kept.poses, few.poses)


@pytest.mark.slow
def test_a_training_reads_what_its_workers_drew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn_at_once(draw: Callable[[int], None], workers: int) -> stream.Ahead:
        draw(58)
        return stream.Ahead(draw, 0)

    few = data.shard(58, 1)
    monkeypatch.setattr(stream, "shard", lambda number, beside=False: few)
    monkeypatch.setattr(train, "Ahead", drawn_at_once)
    monkeypatch.setattr(train, "descend", lambda *_: None)
    monkeypatch.setattr(train, "plot", lambda *_: None)
    vae = train.AutoencoderKL.from_pretrained(POCKET / "vae", torch_dtype=torch.float32)
    train.train_unet(training.Options(tmp_path, minutes=0.0), vae, training.Log(tmp_path / "log.jsonl"))
    monkeypatch.setattr(stream, "shard", None)  # what is there is not drawn again
    assert torch.equal(stream.encoded_shard(tmp_path, vae, 58).known, few.images[:, 0])
    train.train_unet(training.Options(tmp_path, minutes=0.0), vae, training.Log(tmp_path / "log.jsonl"))
    assert not list(tmp_path.glob("**/shards/*"))


def test_shipped_weights_are_the_recorded_ones() -> None:
    folder, record = POCKET, json.loads((POCKET / "training.json").read_text())
    for name, checksum in record["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 20e6
    lines = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["stage"] == "unet"]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_shipped_weights_draw_the_recorded_sample() -> None:
    record = json.loads((POCKET / "training.json").read_text())
    drawn = fixed_sample(Zero123(POCKET)).flatten()
    assert torch.allclose(
        drawn, torch.tensor(record["fixed_sample"]), atol=0.01
    )  # half precision, 3 decimals


@pytest.mark.slow
def test_shipped_prior_turns_a_held_out_object() -> None:
    """The prior's own novel views are nearer to the truth than a white page."""
    prior, scores = Zero123(POCKET), []
    for thing, pose in data.held_out(3):
        turn = torch.tensor([1.2, math.pi, 4.5])
        lift = torch.full((3,), pose.elevation_rad)
        camera = orbit([pose.azimuth_rad], [pose.elevation_rad], RADIUS, FOV_Y_RAD)
        truth = on_white(views(thing, orbit(turn + pose.azimuth_rad, lift, RADIUS, FOV_Y_RAD), 64))
        noise = torch.randn(3, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
        known = prior.embed(on_white(views(thing, camera, 64)))
        codes = relative_cameras(pose.elevation_rad, turn, lift)
        drawn = prior.refine(torch.zeros(3, 3, 64, 64), known, codes, noise, 1.0, 8, 1.0)
        ours, page = (((x - truth) ** 2).mean() for x in (drawn, torch.ones_like(truth)))
        scores.append(float(10 * torch.log10(page / ours)))
    assert sum(scores) / 3 > 2.0
