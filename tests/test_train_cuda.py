"""The training on a GPU, on the CPU: what stays in memory, what the VAE is shown, what goes on by the clock."""

from __future__ import annotations

import json
import queue
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from guidance import POCKET
from guidance.pocket import stream, train, train_cuda, training
from guidance.pocket.data import Shard
from guidance.pocket.model import Denoiser, build_scheduler


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(POCKET / "vae", torch_dtype=torch.float32).requires_grad_(False)


def drawn(objects: int, seed: int) -> Shard:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (objects, 8, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return Shard(images, torch.rand(objects, 8, 4, generator=generator))


@pytest.mark.slow
def test_the_oldest_objects_give_way(vae: AutoencoderKL) -> None:
    """Latents are those that the stream's own encoder gives, each beside its object's known view and pose."""
    held = train_cuda.Resident(5, torch.device("cpu"))
    shards = [drawn(3, seed) for seed in range(2)]
    for shard in shards:
        held.add(shard.images, shard.poses, vae)
    assert held.count == 6
    # (shard, object) of every row: the first one was replaced
    where = [(1, 2), (0, 1), (0, 2), (1, 0), (1, 1)]
    for row, (number, index) in enumerate(where):
        shard = shards[number]
        assert torch.equal(held.known[row], shard.images[index, 0])
        assert torch.equal(held.poses[row], shard.poses[index])
        latents = stream.encode(vae, shard.images[index])
        assert torch.allclose(held.latents[row].float(), latents.float(), atol=2e-2)
    known, latents, condition, poses = held.draw(64, torch.Generator().manual_seed(0))
    for k in range(64):
        row = next(r for r in range(5) if torch.equal(held.known[r], known[k]))
        view = next(v for v in range(8) if torch.equal(held.poses[row, v], poses[k]))
        assert view > 0  # the known view is not guessed
        assert torch.equal(held.latents[row, view].float(), latents[k])
        assert torch.equal(held.latents[row, 0].float(), condition[k])


def test_shards_are_read_as_they_are_drawn_and_their_files_go(tmp_path: Path) -> None:
    futures: list[Future[None]] = []
    for number in (7, 8):
        shard = drawn(1, number)
        stream.save(
            tmp_path / f"shard{number:04d}.safetensors", {"images": shard.images, "poses": shard.poses}
        )
        futures.append(Future())
        futures[-1].set_result(None)
    into: queue.Queue[Shard | Exception] = queue.Queue()
    assert train_cuda.at_hand(into, wait=False) is None
    futures.append(Future())
    futures[-1].set_exception(OSError("disk full"))
    train_cuda.shards(tmp_path, futures, 7, into)
    assert not list(tmp_path.iterdir())
    for number in (7, 8):
        shard = train_cuda.at_hand(into, wait=True)
        assert shard is not None
        assert torch.equal(shard.images, drawn(1, number).images)
        assert torch.equal(shard.poses, drawn(1, number).poses)
    with pytest.raises(OSError, match="disk full"):
        train_cuda.at_hand(into, wait=True)


def test_the_vae_sees_both_kinds_of_pictures_and_white_stays_white() -> None:
    white = torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(train_cuda.mixed(white, white, 40, generator), torch.ones(40, 3, 64, 64))
    black = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    x = train_cuda.mixed(white, black, 40, generator)
    kinds = x.flatten(1)
    assert x.shape == (40, 3, 64, 64)
    assert int((kinds == 1).all(1).sum()) == 40 - int(40 * train_cuda.OTHERS_SHARE)
    assert float(kinds.min()) >= -1


def test_the_other_pictures_are_a_function_of_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_cuda, "OTHERS_DRAWN", 6)
    for folder in ("a", "b"):
        train_cuda.keep_others(tmp_path / folder, 3)
    one, other = (
        train_cuda.load_file(tmp_path / folder / "others0003.safetensors")["images"] for folder in ("a", "b")
    )
    assert one.shape == (6, 3, 64, 64)
    assert one.dtype == torch.uint8
    assert torch.equal(one, other)
    assert train_cuda.files(tmp_path / "a", "others*.safetensors", 1) == [
        tmp_path / "a" / "others0003.safetensors"
    ]


def test_the_learning_rate_follows_the_clock() -> None:
    shares = [train_cuda.share_left(s) for s in (0.0, 0.5, 0.75, 1.0)]
    assert shares == [1.0, 1.0, 0.5, 0.0]


@pytest.mark.slow
def test_its_loss_is_that_of_training_on_a_cpu() -> None:
    """The mean squared error of v; what is known of a sample counts, unless it is dropped."""
    torch.manual_seed(0)
    model, alphas = Denoiser(), build_scheduler().alphas_cumprod
    held = train_cuda.Resident(3, torch.device("cpu"))
    held.known.random_(0, 256)
    held.latents.normal_()
    held.poses.uniform_()
    held.count = 3
    sample = held.draw(6, torch.Generator().manual_seed(1))

    def loss(generator: torch.Generator) -> torch.Tensor:
        return train_cuda.loss_of(model, sample, 1_000_000, 0.5, alphas, generator, train_cuda.DROP)

    found = loss(torch.Generator().manual_seed(2))
    known, latents, condition, poses = sample
    generator = torch.Generator().manual_seed(2)
    t = training.timesteps(1_000_000, 6, generator, train.FOCUS)
    noise = torch.randn(latents.shape, generator=generator)
    keep = (torch.rand(6, generator=generator) >= train_cuda.DROP).float()
    noisy, target = training.noised(latents * 0.5, noise, t, alphas)
    v = model(noisy, t, train.normalise(known), condition, poses, keep)
    assert torch.allclose(found, (v - target).square().mean(), rtol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_call_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train_cuda", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        train_cuda.main()
    assert "guidance.pocket.train`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_later_call_draws_other_objects(tmp_path: Path) -> None:
    assert (
        train_cuda.newest(tmp_path, POCKET) == json.loads((POCKET / "training.json").read_text())["shards"][1]
    )
    stream.save(tmp_path / training.CHECKPOINT, {"run.newest_shard": torch.tensor(1500)})
    assert train_cuda.newest(tmp_path, POCKET) == 1500
