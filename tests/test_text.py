"""Text guidance and VSD against the formulas written out, on random weights in the published layout; the words."""

from __future__ import annotations

import copy
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from bench import published
from gs_propeller.app.config import Config
from gs_propeller.app.guides import Priors, find_priors, load_priors, notes
from gs_propeller.base.camera import relative_cameras
from gs_propeller.base.errors import UserError
from guidance import POCKET_TEXT, find_text_prior
from guidance.folder import TEXT, missing
from guidance.pocket import captions, text_stream
from guidance.pocket.families import make
from guidance.pocket.model import TOKENS
from guidance.pocket.render import surface
from guidance.stable_diffusion import WORDS, Directions, Prompted, StableDiffusion
from guidance.vsd import Kept, Variational
from tests import tiny_prior

pytestmark = pytest.mark.slow  # loads networks or starts processes all along

SCALE = 7.5
AZIMUTHS = torch.tensor([0.3, -1.6, 2.9])
ELEVATIONS = torch.tensor([0.2, 0.1, 1.2])


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_prior.write_text(tmp_path_factory.mktemp("text"), request.param)


@pytest.fixture
def prior(folder: Path) -> StableDiffusion:
    return StableDiffusion(folder)


def _arguments(prior: StableDiffusion) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 3, 16, 16, generator=generator)
    noise = torch.randn(3, *prior.latent_shape, generator=generator)
    return images, relative_cameras(0.1, AZIMUTHS, ELEVATIONS), torch.tensor([20, 500, 980]), noise


def _told(prior: StableDiffusion) -> Prompted:
    return prior.embed("a red cube", "ugly", elevation_rad=0.1)


def test_directions_are_the_objects_own_sides() -> None:
    """Azimuth grows towards +x, and an object that faces +z has +x at its left hand."""
    angles = torch.deg2rad(
        torch.tensor([0.0, 44, 46, 90, 134, 136, 180, -180, -136, -134, -90, -46, -44, 370])
    )
    found = Directions()(angles, torch.zeros(14)).tolist()
    assert found == [0, 0, 1, 1, 1, 3, 3, 3, 3, 2, 2, 2, 0, 0]
    assert Directions()(angles[:2], torch.deg2rad(torch.tensor([59.0, 61.0]))).tolist() == [0, 4]
    assert Directions(front_deg=20)(torch.deg2rad(torch.tensor([15.0])), torch.zeros(1)).tolist() == [1]


def test_each_view_is_told_its_side(prior: StableDiffusion) -> None:
    told, names = _told(prior), Directions().names
    seen = prior.seen(told, relative_cameras(0.1, AZIMUTHS, ELEVATIONS))
    for v, name in enumerate((names[0], names[2], names[4])):
        assert torch.allclose(seen[v], prior.tokens([f"a red cube, {name}"])[0], atol=1e-6)
    assert told.without.shape == (1, tiny_prior.TOKENS, tiny_prior.WIDTH)


def _score(prior: StableDiffusion, noisy: Tensor, t: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(noise seen by the UNet, abar) from the schedule's definition."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)[t].float()
    out = prior.unet(noisy, torch.tensor([t]), tokens).sample
    if prior.scheduler.config.prediction_type == "v_prediction":
        out = abar.sqrt() * out + (1 - abar).sqrt() * noisy
    return out, abar


def _guided(prior: StableDiffusion, noisy: Tensor, t: int, name: str) -> Tensor:
    given, without = prior.tokens([f"a red cube, {name}"]), prior.tokens(["ugly"])
    plain, told = _score(prior, noisy, t, without)[0], _score(prior, noisy, t, given)[0]
    return plain + SCALE * (told - plain)


def _pulled(
    prior: StableDiffusion,
    image: Tensor,
    t: int,
    noise: Tensor,
    other: Tensor | None,
    name: str,
    factor: float = 0.37,
) -> Tensor:
    """Eq. 1 (other None: the noise itself) or Eq. 2 for one view, from the loss whose gradient it is."""
    image = image.clone().requires_grad_(True)
    latents = prior.vae.encode(image * 2 - 1).latent_dist.mean * factor
    with torch.no_grad():
        abar = _score(prior, latents, t, prior.tokens([""]))[1]
        noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
        residual = _guided(prior, noisy, t, name) - (noise if other is None else other)
    ((1 - abar) * residual * latents).sum().backward()
    assert image.grad is not None
    return image.grad


def test_sds_gradient_against_eq_1(prior: StableDiffusion) -> None:
    images, cameras, t, noise = _arguments(prior)
    grad, residual = prior.sds_grad(images, _told(prior), cameras, t, noise, SCALE)
    for v, name in enumerate(("front view", "right side view", "overhead view")):
        one = slice(v, v + 1)
        expected = _pulled(prior, images[one], int(t[v]), noise[one], None, name)
        assert (grad[one] - expected).abs().max() < 5e-5 * expected.abs().max()
    assert bool((residual > 0).all())


@torch.no_grad()
def test_guidance_of_nought_is_told_the_negative_prompt_alone(prior: StableDiffusion) -> None:
    """And the scales between lie on a line."""
    _, cameras, t, noise = _arguments(prior)
    bare, told, guided = (prior.output(noise, _told(prior), cameras, t, scale) for scale in (0.0, 1.0, SCALE))
    assert not torch.allclose(bare, told, atol=1e-3)
    assert torch.allclose(guided, bare + SCALE * (told - bare), atol=1e-4)
    for v in range(len(t)):
        alone = prior.unet(noise[v : v + 1], t[v], prior.tokens(["ugly"])).sample
        assert torch.allclose(bare[v : v + 1], alone, atol=1e-4)


def _picture(prior: StableDiffusion, noisy: Tensor, t: int, score: Tensor) -> Tensor:
    """What a score [1, C, L, L] says noisy latents show."""
    abar = _score(prior, noisy, t, prior.tokens([""]))[1]
    clean = (noisy - (1 - abar).sqrt() * score) / abar.sqrt()
    return (prior.vae.decode(clean / 0.37).sample / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("weighting", ["noise", "clean"])
@torch.no_grad()
def test_sds_gradient_between_pictures(prior: StableDiffusion, weighting: str) -> None:
    images, cameras, t, noise = _arguments(prior)
    grad, residual = prior.sds_grad(images, _told(prior), cameras, t, noise, SCALE, weighting, "pixel")
    for v, name in enumerate(("front view", "right side view", "overhead view")):
        one, level = slice(v, v + 1), int(t[v])
        latents = prior.vae.encode(images[one] * 2 - 1).latent_dist.mean * 0.37
        abar = _score(prior, latents, level, prior.tokens([""]))[1]
        noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise[one]
        weight = 1.0 if weighting == "clean" else float((abar * (1 - abar)).sqrt())
        seen = _picture(prior, noisy, level, _guided(prior, noisy, level, name))
        expected = weight * (images[one] - seen)
        assert (grad[one] - expected).abs().max() < 5e-5 * expected.abs().max()
        assert torch.allclose(residual[v], expected.square().sum() / 2, rtol=1e-4)


def _own(learner: Variational, folder: Path) -> tuple[StableDiffusion, nn.Module]:
    """The learner's score as a model of its own: W + B A in every projection that has a LoRA, and its camera's map."""
    twin, state = StableDiffusion(folder), {}
    for name, a in learner.weights.items():
        if ".lora_A." in name:
            b = learner.weights[name.replace(".lora_A.", ".lora_B.")]
            key = name.removeprefix("unet.").split(".lora_A.")[0] + ".weight"
            state[key] = twin.unet.state_dict()[key] + (b @ a).detach()
    assert len(state) == len(twin.unet.attn_processors) * 4
    twin.unet.load_state_dict(state, strict=False)
    return twin, copy.deepcopy(learner.camera)


def test_vsd_gradient_against_eq_2(prior: StableDiffusion, folder: Path) -> None:
    images, cameras, t, noise = _arguments(prior)
    told, learner = _told(prior), Variational(prior, seed=3, learning_rate=1e-2)
    for _ in range(4):  # before the first, the LoRA changes nothing
        learner.sds_grad(images, told, cameras, t, noise, SCALE)
    (twin, camera), bare = _own(learner, folder), StableDiffusion(folder)
    grad, _ = learner.sds_grad(images, told, cameras, t, noise, SCALE)
    plain, _ = bare.sds_grad(images, told, cameras, t, noise, SCALE)
    assert float((grad - plain).abs().max()) > 0.1 * float(plain.abs().max())
    for v, name in enumerate(("front view", "right side view", "overhead view")):
        one = slice(v, v + 1)
        seen = twin.unet.time_embedding.register_forward_hook(
            lambda _, __, e, one=one: e + camera(cameras[one])
        )
        with torch.no_grad():
            latents = bare.vae.encode(images[one] * 2 - 1).latent_dist.mean * 0.37
            abar = _score(bare, latents, int(t[v]), bare.tokens([""]))[1]
            noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise[one]
            own = _score(twin, noisy, int(t[v]), bare.tokens([f"a red cube, {name}"]))[0]
        seen.remove()
        expected = _pulled(bare, images[one], int(t[v]), noise[one], own, name)
        assert (grad[one] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_vsd_held_by_pictures_adds_the_gradient_between_them(folder: Path) -> None:
    first, second = StableDiffusion(folder), StableDiffusion(folder)
    images, cameras, t, noise = _arguments(first)
    free, held = (Variational(prior, seed=3, learning_rate=1e-2) for prior in (first, second))
    for _ in range(3):
        arguments = cameras, t, noise, SCALE, "clean"
        eq_2, apart = free.sds_grad(images, _told(first), *arguments, "latent")
        both, residual = held.sds_grad(images, _told(second), *arguments, "pixel")
    between, _ = StableDiffusion(folder).sds_grad(images, _told(first), *arguments, "pixel")
    assert (both - (eq_2 + between)).abs().max() < 1e-6 * both.abs().max()
    assert bool((residual > apart).all())


def test_what_a_learner_follows(folder: Path) -> None:
    """Before it has learnt its score is the prior's at guidance 1: between latents nothing pulls, wherever the render
    is; between pictures what pulls is the prior's own, and so is its stiffness."""
    prior, bare = StableDiffusion(folder), StableDiffusion(folder)
    images, cameras, t, noise = _arguments(bare)
    told, learner = _told(bare), Variational(prior, seed=3, learning_rate=0.0)
    for moved in (images, images.flip(3)):
        both = [
            learner.sds_grad(moved, told, cameras, t, noise, 1.0, space=space)[0]
            for space in ("latent", "pixel")
        ]
        expected = bare.sds_grad(moved, told, cameras, t, noise, 1.0, space="pixel")[0]
        assert float(both[0].abs().max()) < 1e-5 * float(expected.abs().max())
        assert float((both[1] - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    for follows in ("abar", "none", "all", "measured"):
        assert not learner.stiffness(t, "noise", "latent", follows).any()
        for name, words in (("stiffness", (t, "noise", "pixel", follows)), ("share", (t, "pixel", follows))):
            assert torch.equal(getattr(learner, name)(*words), getattr(bare, name)(*words))


@pytest.mark.slow
def test_the_learner_learns_and_leaves_the_prior_alone(prior: StableDiffusion) -> None:
    images, cameras, t, noise = _arguments(prior)
    told = _told(prior)
    before, _ = prior.sds_grad(images, told, cameras, t, noise, SCALE)
    learner = Variational(prior, seed=0, learning_rate=1e-2)
    with torch.no_grad():
        latents = prior.encode(images)
    losses = [learner.learn(latents, told, cameras) for _ in range(25)]
    learner.updates = 0  # the same draws again
    again = [learner.learn(latents, told, cameras) for _ in range(25)]
    assert np.mean(again) < 0.97 * np.mean(losses)
    after, _ = prior.sds_grad(images, told, cameras, t, noise, SCALE)
    assert torch.equal(before, after)


def test_a_kept_learner_goes_on(prior: StableDiffusion, tmp_path: Path) -> None:
    images, cameras, t, noise = _arguments(prior)
    told, kept = _told(prior), Kept(tmp_path / "particle0_rank0.safetensors", "mark", 1e6)
    first = Variational(prior, 0, kept=kept)
    for _ in range(3):
        first.sds_grad(images, told, cameras, t, noise, SCALE)
    first.save()
    expected = first.sds_grad(images, told, cameras, t, noise, SCALE)[0]
    second = Variational(prior, 0, kept=kept)
    assert second.updates == 3
    assert torch.equal(second.sds_grad(images, told, cameras, t, noise, SCALE)[0], expected)
    fresh = Variational(prior, 0, kept=Kept(kept.path, "another", 1e6))
    assert fresh.updates == 0


def lora_gradient(folder: Path, dtype: torch.dtype, scale: float | None) -> Tensor:
    """Of one step of learning, all in a row, under a prior whose answers are small: so are its gradients, as a prior of
    full size has them. scale: of the loss, None: the learner's own."""
    prior = StableDiffusion(folder, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    learner = Variational(prior, seed=3)
    with torch.no_grad():
        prior.unet.conv_out.weight.mul_(1e-3)
        for weight in learner.weights.values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    learner.scale = learner.scale if scale is None else scale
    found: list[Tensor] = []
    learner._step = lambda inner=learner._step: (  # type: ignore[method-assign]
        inner(),
        found.extend(weight.grad.flatten() for weight in learner.weights.values() if weight.grad is not None),
    )
    latents = torch.randn(16, *prior.latent_shape, generator=generator)
    learner.learn(latents, _told(prior), torch.randn(16, 4, generator=generator))
    return torch.cat(found)


def test_in_half_precision_the_learner_s_loss_is_scaled(folder: Path) -> None:
    exact = lora_gradient(folder, torch.float32, None)

    def alike(scale: float | None) -> float:
        found = lora_gradient(folder, torch.float16, scale)
        return float(torch.nn.functional.cosine_similarity(found, exact, 0))

    assert alike(None) > 0.9999  # 1.0000
    assert alike(1.0) < 0.95


def test_a_step_of_the_learner_that_overflows_is_none(prior: StableDiffusion, tmp_path: Path) -> None:
    """The next has half the scale, which is kept with the weights."""
    kept = Kept(tmp_path / "particle0_rank0.safetensors", "mark", 1e6)
    learner, latents = Variational(prior, 0, kept=kept), torch.randn(2, *prior.latent_shape)
    learner.scale = 1e39  # over float32's range
    before = [weight.detach().clone() for weight in learner.weights.values()]
    learner.learn(latents, _told(prior), torch.zeros(2, 4))
    now = learner.weights.values()
    assert all(torch.equal(one, other) for one, other in zip(before, now, strict=True))
    assert learner.updates == 1 and learner.scale == 5e38 and not learner.optimiser.state
    learner.scale = 1024.0
    learner.learn(latents, _told(prior), torch.zeros(2, 4))
    assert not all(torch.equal(one, other) for one, other in zip(before, now, strict=True))
    learner.save()
    assert Variational(prior, 0, kept=kept).scale == 1024.0


def test_words_never_seen_are_told(folder: Path, tmp_path: Path) -> None:
    prior = StableDiffusion(folder)
    assert prior.unseen("a purple hippo") == []  # this prior keeps no list
    prior.words = ["a", "purple", "cube"]
    assert prior.unseen("A purple hippo, a HIPPO on a cube!") == ["hippo", "on"]
    with pytest.raises(UserError, match="no prior folder"):
        StableDiffusion(tmp_path / "nowhere")


def test_every_word_of_the_captions_is_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "MEMBERS", 30)
    captions.save_tokenizer(tmp_path / "tokenizer", tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    words = (tmp_path / WORDS).read_text().split()
    assert {"red", "cube", "cylinder", "overhead", "chequered"} <= set(words)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    assert tokenizer.tokenize("hippo")[-1].endswith("</w>") and len(tokenizer.tokenize("hippo")) > 1
    longest = (
        "a two-tone yellow and purple cylinder in front of a two-tone orange and red pyramid, overhead view"
    )
    assert len(tokenizer(longest).input_ids) <= TOKENS


@pytest.mark.slow
def test_a_tokenizer_is_the_same_whenever_it_is_made() -> None:
    """In another process as well, since within one the order of equal counts stays."""
    made = (
        "from guidance.pocket.captions import build_tokenizer; import sys; "
        "sys.stdout.write(build_tokenizer(sys.argv[1:]).backend_tokenizer.to_str())"
    )
    said = "a red cube on blue cylinder chequered stand hand land sand seed need deed zebra"
    words = said.split() + [a + b + c for a in "bdf" for b in "aei" for c in "klm"]  # many counts are equal
    there = subprocess.check_output([sys.executable, "-c", made, *words], text=True)
    assert captions.build_tokenizer(words).backend_tokenizer.to_str() == there


def test_words_that_nobody_taught_have_pieces_and_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions, "MEMBERS", 30)
    monkeypatch.setattr(captions, "called", lambda split: {"pine tree": ["pack/treePine"]})
    captions.save_tokenizer(tmp_path / "tokenizer", tmp_path, with_models=True)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    words = (tmp_path / WORDS).read_text().split()
    assert {"pine", "tree", "cube"} <= set(words) and "guitar" not in words
    assert len(tokenizer.tokenize("guitar")) == 1  # of a noun that models may be called by


def test_scenes_are_what_their_captions_say() -> None:
    seen = set()
    for seed in range(60):
        thing = make("pair", seed)
        low, high = thing.parts
        for relation in ("in front of", "behind", "beside", "under", "on"):
            if f" {relation} " in thing.caption:
                seen.add(relation)
                a, b = (low, high) if relation != "on" else (high, low)  # the first named, the second
                apart = a.centre - b.centre
                if relation in ("on", "under"):
                    assert (apart[1] > 0) == (relation == "on")
                    assert abs(apart[0]) + abs(apart[2]) < 1e-9
                else:
                    axis, way = {"in front of": (2, 1), "behind": (2, -1), "beside": (0, -1)}[relation]
                    assert apart[axis] * way > 0
                break
    assert seen == {"in front of", "behind", "beside", "under", "on"}
    for family in ("pair", "single", "rocket", "vehicle"):
        points = surface(text_stream.spoken(family, 5)).vertices
        assert np.linalg.norm(points[:, [0, 2]], axis=1).max() <= text_stream.REACH + 1e-5
        assert abs(points[:, 1].max() + points[:, 1].min()) < 1e-5


def test_a_sentence_says_what_is_seen() -> None:
    rng = np.random.default_rng(0)
    told = [text_stream.sentence("a orange ball on a grey disc", "back view", rng, 0.1) for _ in range(300)]
    assert 10 < told.count("") < 60
    assert {s.rsplit(", ", 1)[-1] for s in told if "," in s} == {"back view"}
    assert any("sphere" in s for s in told) and any("gray" in s for s in told)
    known = set(captions.vocabulary(["a an orange ball sphere on top of grey gray disc disk back view"]))
    strayed = [s for s in told if set(re.findall("[a-z]+", s)) - known]
    assert 20 < len(strayed) < 65  # 0.9 * STRAYED
    assert all(len(set(re.findall("[a-z]+", s)) - known) == 1 for s in strayed)
    assert all(s.startswith("an orange") for s in told if s and s not in strayed)
    assert math.isclose(sum("view" in s for s in told) / 300, 0.81, abs_tol=0.08)


# --- the published layout ---


def test_full_size_has_the_published_number_of_weights() -> None:
    """Stable Diffusion 2.1's."""
    with torch.device("meta"):
        sizes = {
            part: sum(p.numel() for p in module.parameters())
            for part, module in published.text_networks().items()
        }
    assert sizes == {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}


@pytest.mark.parametrize(
    ("kind", "variant"), [("safetensors", ""), ("safetensors", "fp16"), ("bin", ""), ("bin", "fp16")]
)
def test_published_folders_read_alike_and_obey_eq_1(tmp_path: Path, kind: str, variant: str) -> None:
    place = published.write_text(tmp_path / "stable-diffusion", kind, variant)
    assert missing(place, TEXT.parts) == []
    prior = StableDiffusion(place)
    assert prior.size_px == 64 and prior.levels == 1000 and prior.words == []
    assert prior.unet.config.cross_attention_dim == prior.encoder.config.hidden_size
    generator = torch.Generator().manual_seed(2)
    images, noise = (
        torch.rand(1, 3, 64, 64, generator=generator),
        torch.randn(1, 4, 8, 8, generator=generator),
    )
    codes = relative_cameras(0.1, torch.zeros(1), torch.zeros(1))
    grad, _ = prior.sds_grad(images, _told(prior), codes, torch.tensor([400]), noise, SCALE)
    expected = _pulled(prior, images, 400, noise, None, "front view", 0.18215)
    assert (grad - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_cached_text_prior_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guidance.folder.cached", lambda hub_id: None)
    if POCKET_TEXT.is_dir():
        assert find_text_prior("auto") == find_text_prior("pocket") == str(POCKET_TEXT)
    place = published.write_text(tmp_path / "stable-diffusion")
    monkeypatch.setattr("guidance.folder.cached", lambda hub_id: place if hub_id in TEXT.known else None)
    assert find_text_prior("auto") == str(place)
    priors = load_priors(Config(prompt="a cube"), torch.device("cpu"))
    assert priors.zero123 is None and priors.text is not None and priors.first is priors.text
    (place / "text_encoder" / "config.json").unlink()
    assert missing(place, TEXT.parts) == ["text_encoder"]


def test_a_long_sentence_is_cut_and_never_the_view(folder: Path) -> None:
    for prior in (StableDiffusion(folder), StableDiffusion(POCKET_TEXT)):
        long = " ".join(["a red cube on a blue cylinder,"] * 20)
        for sentence in (long, "x" * 500, "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 200, " " + "x" * 500):
            kept, cut = prior.fitted(sentence, Directions().endings)
            assert 0 < len(kept) < len(sentence) and cut and sentence.endswith(cut)
            assert sentence.startswith(kept)
            told = prior.embed(sentence)
            for ending, given in zip(Directions().endings, told.given, strict=True):
                assert torch.equal(given, prior.tokens([kept + ending])[0])
                ids = prior.tokenizer(kept + ending).input_ids
                assert len(ids) <= prior.length
            assert len({tuple(row.flatten().tolist()) for row in told.given}) == 5
        kept, cut = prior.fitted(long, Directions().endings)
        assert f"{kept} {cut}".replace(",", "") == long.replace(",", "")  # at a word
        longer = long[: len(long) - len(cut) + len(cut.split()[0])]
        assert max(len(prior.tokenizer(longer + e).input_ids) for e in Directions().endings) > prior.length
        assert prior.fitted("a red cube", Directions().endings) == ("a red cube", "")


@pytest.mark.parametrize("prompt", [" ", "\n", "...", "?!", "\x00"])
def test_a_sentence_that_says_nothing_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match="says nothing: it has no letter, digit or emoji"):
        find_priors(Config(prompt=prompt))
    assert find_priors(Config(prompt="\U0001f431", text_prior="pocket"))[1]


def test_words_of_any_script_are_named() -> None:
    prior, russian = StableDiffusion(POCKET_TEXT), "\u043a\u0440\u0430\u0441\u043d\u044b\u0439"
    hindi = "\u0939\u093f\u0928\u094d\u0926\u0940"
    said = prior.unseen(f"A red {russian} {hindi} cube, na\u00efve 3d \N{SNOWMAN}\ufe0f!")
    assert said == [russian, hindi, "na\u00efve", "3d", "\N{SNOWMAN}"]
    lines = notes(Config(prompt=f"a {russian} " + "cube " * 99), None, Priors(None, prior))
    assert russian in lines[0] and "leaves out: cube" in lines[1]
    told = Config(prompt="a cube", negative_prompt=f"a {russian}")
    assert russian in "".join(notes(told, None, Priors(None, prior)))
    told = Config(input="cat.png", negative_prompt="fog")
    assert notes(told, None, Priors(None, None)) == ["negative_prompt is left out: it goes with a prompt"]
