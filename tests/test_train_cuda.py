"""The training on a GPU, on the CPU: what stays in memory, what the VAE is shown, what goes on by the clock."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import AutoencoderKL

from guidance import POCKET, POCKET_TEXT
from guidance.pocket import (
    captions,
    clock,
    stream,
    text_stream,
    train,
    train_cuda,
    train_text,
    train_text_cuda,
    training,
)
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
    held = train_cuda.resident(5, torch.device("cpu"))
    shards = [drawn(3, seed) for seed in range(2)]
    for shard in shards:
        latents = clock.encoded(vae, shard.images, torch.device("cpu"))
        held.add(known=shard.images[:, 0], latents=latents, poses=shard.poses)
    assert held.count == 6
    rows = held.rows
    # (shard, object) of every row: the first one was replaced
    where = [(1, 2), (0, 1), (0, 2), (1, 0), (1, 1)]
    for row, (number, index) in enumerate(where):
        shard = shards[number]
        assert torch.equal(rows["known"][row], shard.images[index, 0])
        assert torch.equal(rows["poses"][row], shard.poses[index])
        latents = stream.encode(vae, shard.images[index])
        assert torch.allclose(
            rows["latents"][row].float(), latents.float(), atol=0.1
        )  # one of them may be in bf16
    known, latents, condition, poses = train_cuda.draw(held, 64, torch.Generator().manual_seed(0))
    for k in range(64):
        row = next(r for r in range(5) if torch.equal(rows["known"][r], known[k]))
        view = next(v for v in range(8) if torch.equal(rows["poses"][row, v], poses[k]))
        assert view > 0  # the known view is not guessed
        assert torch.equal(rows["latents"][row, view].float(), latents[k])
        assert torch.equal(rows["latents"][row, 0].float(), condition[k])


def test_shards_are_read_as_they_are_drawn_and_their_files_go(tmp_path: Path) -> None:
    futures: list[Future[None]] = [Future() for _ in range(3)]
    arrivals = clock.Arrivals(tmp_path, futures, 7)
    assert arrivals.take(wait=False) is None
    for future, number in zip(futures, (7, 8), strict=False):
        shard = drawn(1, number)
        stream.save(
            tmp_path / f"shard{number:04d}.safetensors", {"images": shard.images, "poses": shard.poses}
        )
        future.set_result(None)
    futures[-1].set_exception(OSError("disk full"))
    for number in (7, 8):
        shard = arrivals.take(wait=True)
        assert shard is not None
        assert torch.equal(shard["images"], drawn(1, number).images)
        assert torch.equal(shard["poses"], drawn(1, number).poses)
        assert arrivals.next == number + 1
    with pytest.raises(OSError, match="disk full"):
        arrivals.take(wait=True)
    assert not list(tmp_path.iterdir())


def test_it_ends_by_the_clock_and_says_where_it_stands(tmp_path: Path) -> None:
    """One number learnt from shards that arrive: the checkpoint knows the samples and the shard to go on with."""
    options = training.Options(tmp_path, 1.0, batch=3, lr=0.1)
    model, average = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    futures: list[Future[None]] = [Future(), Future()]
    stream.save(tmp_path / "shard0004.safetensors", {"rows": torch.full((6, 1), 2.0)})
    futures[0].set_result(None)
    seen: list[int] = []

    def add(shard: clock.Tensors) -> int:
        seen.append(len(shard["rows"]))
        return sum(seen)

    def next_loss() -> torch.Tensor:
        assert seen  # not before there is something to draw from
        model.zero_grad()
        loss = (model.weight - 2.0).square().sum()
        loss.backward()
        return loss.detach()

    log, run = training.Log(tmp_path / "log.jsonl"), training.Run(10, 30, 10)
    arrivals = clock.Arrivals(tmp_path, futures, 4)
    clock.descend(options, time.time() + 0.5, model, average, optimiser, run, arrivals, add, next_loss, log)
    assert seen == [6]
    found = training.resumed(options, model, average, optimiser, log)
    assert found is not None
    assert found.newest_shard == 5
    assert found.step > 10
    assert found.samples == 30 + 3 * (found.step - 10)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
        ),
    ],
)
def test_a_step_in_one_launch_is_the_step(device: str, tmp_path: Path) -> None:
    """Losses and gradients of several samples, one after another, are those of autograd."""
    torch.manual_seed(0)
    model, log = torch.nn.Linear(3, 1).to(device), training.Log(tmp_path / "log.jsonl")

    def loss(sample: clock.Sample) -> torch.Tensor:
        return (model(sample[0]) - sample[1]).square().mean()

    samples = [(torch.randn(5, 3, device=device), torch.randn(5, 1, device=device)) for _ in range(3)]
    replay = clock.Replay(model, loss, samples[0], log)
    assert (replay.graph is not None) == (device == "cuda")
    for sample in samples:
        found = replay(sample)
        wanted = loss(sample)
        grads = torch.autograd.grad(wanted, list(model.parameters()))
        assert torch.allclose(found, wanted)
        for p, grad in zip(model.parameters(), grads, strict=True):
            assert p.grad is not None
            assert torch.allclose(p.grad, grad)


def test_a_unet_that_cannot_be_compiled_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    unet, log = torch.nn.Linear(1, 1), training.Log(tmp_path / "log.jsonl")
    plain = unet.forward
    clock.compiled(unet, unet, lambda: unet(torch.ones(1)).sum(), log)
    assert unet.forward == plain
    assert json.loads(log.path.read_text())["failed"] == "RuntimeError: no compiler"


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
    shares = [clock.share_left(s) for s in (0.0, 0.5, 0.75, 1.0)]
    assert shares == [1.0, 1.0, 0.5, 0.0]


@pytest.mark.slow
def test_its_loss_is_that_of_training_on_a_cpu() -> None:
    """The mean squared error of v; what is known of a sample counts, unless it is dropped."""
    torch.manual_seed(0)
    model, alphas = Denoiser(), build_scheduler().alphas_cumprod
    held = train_cuda.resident(3, torch.device("cpu"))
    held.rows["known"].random_(0, 256)
    held.rows["latents"].normal_()
    held.rows["poses"].uniform_()
    held.count = 3
    sample = train_cuda.draw(held, 6, torch.Generator().manual_seed(1))

    def loss(generator: torch.Generator) -> torch.Tensor:
        return train_cuda.loss_of(
            model, sample, 1_000_000, 0.5, alphas, generator, train_cuda.DROP, guessed=0
        )

    found = loss(torch.Generator().manual_seed(2))
    known, latents, condition, poses = sample
    generator = torch.Generator().manual_seed(2)
    t = training.timesteps(1_000_000, 6, generator, train.FOCUS)
    noise = torch.randn(latents.shape, generator=generator)
    keep = (torch.rand(6, generator=generator) >= train_cuda.DROP).float()
    noisy, target = training.noised(latents * 0.5, noise, t, alphas)
    with training.autocast(torch.device("cpu")):
        v = model(noisy, t, train.normalise(known), condition, poses, keep)
    assert torch.allclose(found, (v.float() - target).square().mean(), rtol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("module", "instead"), [(train_cuda, "train"), (train_text_cuda, "train_text")])
def test_without_a_gpu_it_says_what_to_call_instead(
    module: ModuleType,
    instead: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["train_cuda", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    assert f"guidance.pocket.{instead}`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_later_call_draws_other_objects(tmp_path: Path) -> None:
    assert (
        train_cuda.newest(tmp_path, POCKET) == json.loads((POCKET / "training.json").read_text())["shards"][1]
    )
    stream.save(tmp_path / training.CHECKPOINT, {"run.newest_shard": torch.tensor(1500)})
    assert train_cuda.newest(tmp_path, POCKET) == 1500
    assert train_cuda.newest(tmp_path / "none") == stream.newest_shard(0)


@pytest.mark.slow
def test_the_text_priors_stream_says_each_view_in_several_wordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures and pieces of one object stay together; a share of the sentences is the empty one."""
    monkeypatch.setattr(captions, "MEMBERS", 20)
    tokenizer = train_text.tokenizer_of(tmp_path, models=False)
    monkeypatch.setattr(
        train_text_cuda, "drawn", lambda number, models: text_stream.drawn(number, 3, models=models)
    )
    train_text_cuda.keep_told(tmp_path, False, 2)
    shard = stream.load_file(tmp_path / "shards" / "shard0002.safetensors")
    images, where, _ = text_stream.drawn(2, 3)
    assert torch.equal(shard["images"], images)
    names = text_stream.Directions()
    for i in range(3):
        nouns = set(text_stream.told(2, i)[1].split())
        for v in range(text_stream.VIEWS):
            view = names.names[int(names(where[i, v, :1], where[i, v, 1:])[0])]
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in shard["ids"][i, v]]
            assert len(texts) == train_text_cuda.WORDINGS
            for text in texts:
                assert view in text or "view" not in text
                assert nouns & set(text.split())
    vae = AutoencoderKL.from_pretrained(POCKET_TEXT / "vae", torch_dtype=torch.float32).requires_grad_(False)
    held = train_text_cuda.resident(3, torch.device("cpu"), vae)
    held.add(latents=clock.encoded(vae, images, torch.device("cpu")), ids=shard["ids"])
    empty = train_text.pieces(tokenizer, [""])
    latents, ids = train_text_cuda.draw(held, 400, torch.Generator().manual_seed(0), empty)
    bare = (ids == empty).all(1)
    assert 0.04 < float(bare.float().mean()) < 0.2
    for k in torch.nonzero(~bare)[:20, 0].tolist():
        row, view = next(
            (r, v)
            for r in range(3)
            for v in range(8)
            if torch.equal(held.rows["latents"][r, v].float(), latents[k])
        )
        assert (shard["ids"][row, view].long() == ids[k]).all(1).any()


def test_words_that_the_weights_know_keep_their_rows() -> None:
    old, new = (captions.build_tokenizer(words) for words in (["red", "cube"], ["red", "cube", "pirate"]))
    known = torch.arange(len(old)).float()[:, None]
    fresh = torch.full((len(new), 1), -1.0)
    rows = train_text.carried(known, old, new, fresh)
    before, after = old.get_vocab(), new.get_vocab()
    for word in ("red</w>", "cube</w>"):
        assert float(rows[after[word]]) == before[word]
    assert float(rows[after["pirate</w>"]]) == -1
