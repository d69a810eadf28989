"""What a prior's training hands on: another VAE's latents, a wider VAE's beginning, branches that cool down."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gs_propeller.base.errors import UserError
from guidance.pocket import (
    model,
    muon,
    score_vae,
    train,
    train_cuda,
    train_text,
    train_text_cuda,
    train_vae,
    training,
    translate,
)
from guidance.pocket.model import build_scheduler, build_unet, build_vae


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior's folder whose VAE has four channels."""
    folder = tmp_path_factory.mktemp("narrow")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model, "LATENTS", 4)
        build_vae().save_pretrained(folder / "vae")
    return folder


@pytest.mark.slow
def test_a_unet_speaks_the_new_latents_as_it_did_the_old() -> None:
    """Where the new latents are a linear map of the old, the carried UNet's answer is that map of the old one's."""
    torch.manual_seed(0)
    up, ratio = torch.randn(6, 4), 1.3
    few = torch.randn(20, 4, 8, 8)

    def mapped(latents: torch.Tensor) -> torch.Tensor:
        return torch.einsum("dc,mchw->mdhw", up, latents)

    old, new = build_unet(8, 4), build_unet(12, 6)
    new.load_state_dict(translate.carried(old.state_dict(), few, mapped(few), ratio))
    noisy, known, tokens = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.randn(2, 1, 128)
    t = torch.tensor([300, 900])
    with torch.no_grad():
        before = old(torch.cat([noisy, known], 1), t, tokens).sample
        after = new(torch.cat([mapped(noisy), mapped(known) * ratio], 1), t, tokens).sample
    assert torch.allclose(after, mapped(before), atol=1e-4)  # measured 6e-6


def test_the_linear_map_is_the_least_squares_one() -> None:
    a, b = torch.randn(3, 4, 5, 5), torch.randn(3, 2, 5, 5)
    flat = [x.movedim(1, -1).reshape(-1, x.shape[1]).double().numpy() for x in (a, b)]
    slow = np.linalg.lstsq(flat[0], flat[1], rcond=None)[0].T
    assert np.allclose(translate.fitted(a, b).numpy(), slow, atol=1e-5)


@pytest.mark.slow
def test_a_wider_vae_begins_with_the_old_latents(narrow: Path) -> None:
    new, old = train_vae.begun(narrow)
    few, many = old.config.latent_channels, new.config.latent_channels
    assert many > few
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        latents, known = (vae.encode(x).latent_dist.mode() for vae in (new, old))
        assert torch.allclose(latents[:, :few], known, atol=1e-5)
        bare = latents.clone()
        bare[:, few:] = 0
        back = new.decode(bare).sample
        assert torch.allclose(back, old.decode(known).sample, atol=1e-4)


@pytest.mark.slow
def test_evening_out_changes_no_picture(narrow: Path) -> None:
    """The free channels get mean 0 and their deviation under the scale, and decode to what they did."""
    new, old = train_vae.begun(narrow)
    renders = (torch.rand(16, 3, 64, 64) * 255).to(torch.uint8)
    x = renders.float() / 127.5 - 1
    few, scale = old.config.latent_channels, old.config.scaling_factor
    with torch.no_grad():
        before = new.encode(x).latent_dist
        picture = new.decode(before.mode()).sample
        train_vae.even_out(new, renders, few, scale)
        after = new.encode(x).latent_dist
        assert torch.allclose(new.decode(after.mode()).sample, picture, atol=1e-4)
        assert torch.equal(after.mean[:, :few], before.mean[:, :few])
        free = after.mean[:, few:] * scale
        assert torch.allclose(free.mean((0, 2, 3)), torch.zeros(len(free[0])), atol=1e-3)
        assert torch.allclose(free.std((0, 2, 3)), torch.full((len(free[0]),), train_vae.DETAIL), atol=1e-3)
        ratio = after.std[:, few:] / before.std[:, few:]  # the noise is scaled with its channel
        assert torch.allclose(ratio, ratio[:1, :, :1, :1].expand_as(ratio), rtol=1e-3)
    assert new.config.scaling_factor == scale


def test_orthogonal_steps_move_every_direction_alike() -> None:
    torch.manual_seed(0)
    for shape in ((24, 216), (64, 24)):
        values = torch.linalg.svdvals(muon.orthogonal(torch.randn(shape)))
        assert 0.6 < float(values.min()) <= float(values.max()) < 1.25  # five rounds end near one


class Small(nn.Module):
    """Two alike matrices, a convolution, a table and a bias: every kind that Muon tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.first, self.second = (nn.Linear(4, 4, bias=False) for _ in range(2))
        self.embedding = nn.Embedding(5, 4)

    def forward(self) -> torch.Tensor:
        x = self.conv(torch.linspace(-1, 1, 27).reshape(1, 3, 3, 3)).flatten(1)
        return (self.second(self.first(x)) + self.embedding(torch.tensor([2]))).square().sum()


def test_muon_steps_matrices_alike_and_the_rest_as_adam_does() -> None:
    torch.manual_seed(0)
    model = Small()
    twin = copy.deepcopy(model)
    ours = muon.Muon(model, 0.01)
    others = [twin.conv.bias, twin.embedding.weight]
    adam = torch.optim.AdamW(others, lr=0.01, betas=(0.9, 0.99), weight_decay=0.01)
    speeds = {name: torch.zeros(len(p), p[0].numel()) for name, p in twin.named_parameters()}
    for _ in range(3):
        for made in (model, twin):
            made.zero_grad()
            made().backward()
        ours.step()
        adam.step()
        with torch.no_grad():
            for name in ("conv.weight", "first.weight", "second.weight"):
                p = twin.get_parameter(name)
                assert p.grad is not None
                grad = p.grad.flatten(1)
                speeds[name] += (1 - muon.MOMENTUM) * (grad - speeds[name])
                way = muon.orthogonal(grad + muon.MOMENTUM * (speeds[name] - grad)).reshape(p.shape)
                size = muon.MATCHED * max(len(p), p[0].numel()) ** 0.5
                p.copy_(p * (1 - 0.01 * 0.01) - 0.01 * size * way)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-6)


def test_a_training_goes_on_with_its_optimisers_moments(tmp_path: Path) -> None:
    """Stopped and resumed it ends where one without a pause does."""

    def steps(model: Small, optimiser: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            training.update(model, average, optimiser, model(), 0.01, 0.5)

    torch.manual_seed(0)
    whole, average, options = Small(), Small(), training.Options(tmp_path, 1.0)
    parted, log = copy.deepcopy(whole), training.Log(tmp_path / "log.jsonl")
    steps(whole, muon.Muon(whole, 0.01), 4)
    optimiser = muon.Muon(parted, 0.01)
    steps(parted, optimiser, 2)
    training.store(options, training.Run(2, 2), parted, average, optimiser)
    later = Small()
    optimiser = muon.Muon(later, 0.01)
    assert training.resumed(options, later, average, optimiser, log) == training.Run(2, 2)
    steps(later, optimiser, 2)
    for p, q in zip(whole.parameters(), later.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_vae_is_trained_on_every_kind_of_picture() -> None:
    renders = torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8)
    pictures = train_vae.pictures(renders, np.random.default_rng(0), 60)
    assert pictures.shape == (60, 3, 64, 64)
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1
    flat = pictures.std((2, 3)).amax(1) < 1e-6
    assert 0 < int(flat.sum()) < 12
    again = train_vae.pictures(renders, np.random.default_rng(0), 60)
    assert torch.equal(pictures, again)


def test_recolouring_a_picture_leaves_white_white() -> None:
    image = np.ones((4, 4, 3), np.float32)
    assert np.allclose(train_vae._recoloured(image, np.random.default_rng(0)), 1.0)


class _Linear(nn.Module):
    """A VAE whose latents are the pixels themselves, or a fixed mixing of them."""

    def __init__(self, mixing: torch.Tensor) -> None:
        super().__init__()
        self.mixing = mixing

    def encode(self, x: torch.Tensor) -> object:
        latents = torch.einsum("dc,mchw->mdhw", self.mixing, x)
        return type("Out", (), {"latent_dist": type("Dist", (), {"mode": staticmethod(lambda: latents)})()})()

    def decode(self, z: torch.Tensor) -> object:
        return type("Out", (), {"sample": torch.einsum("cd,mdhw->mchw", torch.linalg.pinv(self.mixing), z)})()


def test_the_pull_through_an_encoder_is_measured() -> None:
    """Along the difference itself where latents are pixels, at right angles where they do not hold it."""
    a, b = torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8)
    whole, blind = _Linear(torch.eye(3)), _Linear(torch.tensor([[1.0, 0.0, 0.0]]))
    assert torch.allclose(score_vae.pull_cosine(whole, a, b), torch.ones(3), atol=1e-5)  # type: ignore[arg-type]
    b[:, 0] = a[:, 0]
    assert float(score_vae.pull_cosine(blind, a, b).abs().max()) < 1e-5  # type: ignore[arg-type]
    assert score_vae.kept_db(whole, a) > 60  # type: ignore[arg-type]
    assert score_vae.colour_error(whole, a) < 1e-5  # type: ignore[arg-type]


def test_a_branch_cools_down_beside_its_run(tmp_path: Path) -> None:
    """It ends `cooling` steps on, its rate falling to nought, and the run's own folder is as it was."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    average = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    options = training.Options(tmp_path / "run", minutes=1.0, batch=2)
    log = training.Log(options.out / "log.jsonl")
    log.write(stage="start", step=0)
    data, rates = torch.randn(2, 3), []

    def loss_of(step: int) -> torch.Tensor:
        rates.append(optimiser.param_groups[0]["lr"])
        return model(data).square().mean()

    first = training.Options(options.out, minutes=1.0, batch=2, until=6)
    training.descend(first, model, average, optimiser, training.Run(), loss_of, log)
    kept = (options.out / training.CHECKPOINT).read_bytes()
    cooled = training.Options(tmp_path / "cooled", minutes=1.0, batch=2)
    training.branched(options.out, cooled.out, 5)
    run = training.resumed(cooled, model, average, optimiser, training.Log(cooled.out / "log.jsonl"))
    assert run is not None
    assert (run.step, run.until, run.cooling, run.samples) == (6, 11, 5, 12)
    rates.clear()
    training.descend(cooled, model, average, optimiser, run, loss_of, log)
    assert len(rates) == 5
    shares = [training.learning_share(step, -300, 11, 5) for step in range(6, 11)]
    assert shares == sorted(shares, reverse=True)
    assert (options.out / training.CHECKPOINT).read_bytes() == kept
    training.branched(options.out, cooled.out, 9)  # a second call goes on with the first's branch
    assert int(training.load_file(cooled.out / training.CHECKPOINT)["run.until"]) == 11


def test_averaging_reaches_back_over_a_share_of_the_run() -> None:
    assert training.averaging_steps(0, 0) == 1.0
    assert training.averaging_steps(3000, 0) == 101.0
    assert training.averaging_steps(22_600, 22_500) == 11.0  # a new run forgets what it began with
    assert training.averaging_steps(90_000, 0, cooling=300) == 31.0


def test_without_a_vae_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train_vae"):
        train.vae_of(training.Options(tmp_path, minutes=1.0))


def test_the_built_networks_fit_together() -> None:
    vae, unet = build_vae(), build_unet()
    channels = vae.config.latent_channels
    assert (unet.config.in_channels, unet.config.out_channels) == (2 * channels, channels)
    assert json.loads(vae.to_json_string())["sample_size"] == 64


class Knowing(nn.Module):
    """A denoiser that knows the picture and is wrong by `fault` where there is nothing but noise; asked keeps the noisy
    latents that it was given, and at which timesteps."""

    def __init__(self, clean: Tensor, fault: float) -> None:
        super().__init__()
        self.clean, self.fault, self.alphas = clean, fault, build_scheduler().alphas_cumprod
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, noisy: Tensor, t: Tensor, known: Tensor, *told: Tensor) -> Tensor:
        self.asked.append((noisy.clone(), t.clone()))
        clean = self.clean[:: len(self.clean) // len(t)]  # of all samples, or of the guessed ones
        alpha, sigma = (x[t].sqrt()[:, None, None, None] for x in (self.alphas, 1 - self.alphas))
        wrong = self.fault * (t == len(self.alphas) - 1)[:, None, None, None]
        return (alpha * noisy - (clean + wrong)) / sigma


@pytest.mark.parametrize("fault", [0.0, 3.0])
def test_a_training_leads_the_models_own_guesses_to_the_truth(fault: float) -> None:
    """What the model said wrongly from noise alone is under the noise of some samples, and v leads from there to the
    truth: who knows that has no loss."""
    clean, generator = torch.randn(64, 16, 4, 4), torch.Generator().manual_seed(0)
    knowing = Knowing(clean, fault)
    sample = torch.zeros(64, 3, 8, 8, dtype=torch.uint8), clean, clean, torch.zeros(64, 4)
    loss = train.loss_of(knowing, sample, 100_000, 1.0, knowing.alphas, generator, drop=0.0, guessed=2)
    (_, first), (noisy, t) = knowing.asked
    assert first.unique().tolist() == [999]
    low, high = training.GUESSED_LEVELS
    assert low * 999 - 1 < t[::2].min() < t[::2].max() < high * 999 + 1
    alpha, sigma = (x[t].sqrt()[:, None, None, None] for x in (knowing.alphas, 1 - knowing.alphas))
    under = (noisy - alpha * clean) / sigma  # the noise, and what is wrong below it
    off = under.mean((1, 2, 3)) - fault * (alpha / sigma)[:, 0, 0, 0] * (torch.arange(64) % 2 == 0)
    assert off.abs().max() < 5 / 16  # five deviations of the mean of 256 normal numbers
    beginners = t[1::2] == 999  # of the others, who are asked from noise alone as well
    assert float(loss) == pytest.approx(fault**2 * float(beginners.sum()) / 64, abs=1e-3)


def test_a_new_model_has_no_guesses_to_learn_from() -> None:
    clean = torch.randn(4, 16, 4, 4)
    knowing = Knowing(clean, 0.0)
    sample = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), clean, clean, torch.zeros(4, 4)
    train.loss_of(knowing, sample, 0, 1.0, knowing.alphas, torch.Generator().manual_seed(0))
    assert len(knowing.asked) == 1
    train.loss_of(knowing, sample, train.GUESSED_FROM, 1.0, knowing.alphas, torch.Generator().manual_seed(0))
    assert len(knowing.asked) == 3  # the guesses, and then all


@pytest.mark.parametrize(
    ("program", "given", "said"),
    [
        (train_vae, ["--export", "x"], "unrecognized arguments: --export x"),
        (train_vae, ["--batch", "8"], "unrecognized arguments: --batch 8"),
        (train_cuda, ["--export", "x"], "unrecognized arguments: --export x"),
        (train_text_cuda, ["--until", "9"], "unrecognized arguments: --until 9"),
        (train, ["--start", "nowhere"], "nowhere is no trained prior's folder: it has no training.json"),
        (train, ["--branch", "nowhere"], "nowhere is no training's folder: it has no unet.safetensors"),
        (train, [], "make one, `python -m guidance.pocket.train_vae"),
        (train, ["--export", "x"], "is no training's folder: it has no unet.safetensors"),
        (train_text, ["--export", "x"], "is no training's folder: it has no unet.safetensors"),
    ],
)  # fmt: skip
def test_what_a_training_cannot_do_is_said_in_a_line(
    program: ModuleType, given: list[str], said: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "--out", "run", *given])
    monkeypatch.setattr(program, "tokenizer_of", lambda *_: None, raising=False)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2 and said in capsys.readouterr().err.replace("\n", "")


def test_a_training_that_has_nothing_to_do_says_so(tmp_path: Path) -> None:
    options = training.Options(tmp_path, minutes=1.0, until=2000)
    begins, log = training.Run(step=12900, first_step=12900), training.Log(tmp_path / "log.jsonl")
    layer = nn.Linear(1, 1)
    rest = begins, lambda step: torch.zeros(()), log
    with pytest.raises(UserError, match="the last step is to be 2000, and the run begins at 12900"):
        training.descend(options, layer, layer, torch.optim.AdamW(layer.parameters()), *rest)
