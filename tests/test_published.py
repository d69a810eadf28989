"""Folders in the layout of the published weights: found, read in every form that they come in, and obeyed."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor

from bench import published
from gs_propeller.app.config import Config, load
from gs_propeller.app.first_stage import checked
from gs_propeller.base.camera import orbit, relative_cameras
from gs_propeller.base.errors import UserError
from guidance import POCKET, find_prior, find_text_prior, folder
from guidance.zero123 import Zero123
from tests.test_zero123 import slow_sds

pytestmark = pytest.mark.slow  # loads networks or starts processes all along

STABLE = "stable-zero123"
SCALE = 5.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write(tmp_path_factory.mktemp("published") / "zero123-xl")


def gradient(prior: Zero123, elevation_rad: float = 0.2) -> tuple[Tensor, Tensor]:
    """One SDS gradient [2, 3, S, S], and the same by the formula, view after view."""
    generator = torch.Generator().manual_seed(4)
    side = prior.size_px
    picture, *images = torch.rand(3, 1, 3, side, side, generator=generator)
    cameras = relative_cameras(elevation_rad, torch.tensor([0.4, -2.0]), torch.tensor([0.5, -0.3]))
    noise, t = torch.randn(2, *prior.latent_shape, generator=generator), torch.tensor([40, 700])
    known = prior.embed(picture, elevation_rad)
    fast, _ = prior.sds_grad(torch.cat(images), known, cameras, t, noise, SCALE)
    codes = cameras.clone()
    if prior.stable:
        codes[:, 3] = math.pi / 2 - elevation_rad
    one = [slice(v, v + 1) for v in range(2)]
    slow = [
        slow_sds(
            prior, images[v], known.seen[:, 0], codes[one[v]], int(t[v]), noise[one[v]], known.latents, SCALE
        )
        for v in range(2)
    ]
    return fast, torch.cat(slow)


def apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())


def assert_alike(first: Zero123, second: Zero123) -> None:
    """The same weights, bit for bit; products may round by where a file's bytes happen to be aligned."""
    for part in ("unet", "vae", "encoder", "projection"):
        one, other = (getattr(prior, part).state_dict() for prior in (first, second))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), part
    assert apart(gradient(first)[0], gradient(second)[0]) < 1e-5  # 3e-6


# --- reading ---


def test_the_layout_has_the_published_relations(place: Path) -> None:
    prior = Zero123(place)
    width = prior.unet.config.cross_attention_dim
    assert width == prior.encoder.config.projection_dim == prior.projection.config.embedding_dim
    assert prior.projection.proj.weight.shape == (width, width + 4)
    assert prior.unet.config.in_channels == 2 * prior.vae.config.latent_channels == 8
    assert prior.size_px == 8 * prior.unet.config.sample_size == prior.vae.config.sample_size
    assert prior.levels == 1000 and not prior.stable


def test_full_size_has_the_published_number_of_weights() -> None:
    """zero123-xl's: SD 1's 859.5 M and 4 more input channels; VAE and ViT-L/14 with its projection."""
    with torch.device("meta"):
        sizes = {
            part: sum(p.numel() for p in module.parameters()) for part, module in published.networks().items()
        }
    assert sizes["unet"] == 859_520_964 + 4 * 320 * 9
    assert sizes["vae"] == 83_653_863
    assert sizes["image_encoder"] == 303_966_208
    assert sizes["clip_camera_projection"] == 768 * 772 + 768


def test_memory_of_a_view_is_what_the_documents_say() -> None:
    """MiB that the encoder of full size keeps of one for its gradient, in half precision, beside the weights."""
    with torch.device("meta"):
        vae = published.networks()["vae"].half().requires_grad_(False)
    weights = {p.untyped_storage()._cdata for p in vae.parameters()}
    for side, expected in ((256, 385), (512, 1586)):
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        picture = torch.rand(1, 3, side, side, device="meta").requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            vae.encode((picture * 2 - 1).half()).latent_dist.mode()
        held = sum(x.untyped_storage().nbytes() for key, x in kept.items() if key not in weights)
        assert round(held / 2**20) == expected
    assert "(385 and\n1586 MiB)" in Path("docs/troubleshooting.md").read_text()


def test_one_gradient_against_the_formula(place: Path) -> None:
    fast, slow = gradient(Zero123(place))
    assert apart(fast, slow) < 1e-4


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", ["", "fp16"])
def test_every_form_of_the_weights_reads_alike(place: Path, tmp_path: Path, kind: str, variant: str) -> None:
    """Names of 2023 in the VAE's attention too; the code that the folder brings is never run."""
    other = published.write(tmp_path / "prior", kind, variant, old_names=kind == "bin")
    assert_alike(Zero123(other), Zero123(place))
    assert "zero123" not in sys.modules


def test_shards_are_read(place: Path, tmp_path: Path) -> None:
    other = shutil.copytree(place, tmp_path / "prior")
    prior = Zero123(place)
    (other / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    prior.unet.save_pretrained(other / "unet", max_shard_size="400KB")
    shards = sorted((other / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert_alike(Zero123(other), prior)
    shards[0].unlink()
    assert folder.missing(other) == ["unet"]


def test_half_precision_takes_the_half_files_and_float32_the_others(place: Path, tmp_path: Path) -> None:
    both = shutil.copytree(place, tmp_path / "prior")
    half = published.write(tmp_path / "half", variant="fp16", dtype=torch.float16, seed=1)
    for file in half.glob("*/*.fp16.safetensors"):
        shutil.copy(file, both / file.parent.name / file.name)
    weight = "conv_in.weight"
    stored = load_file(half / "unet" / "diffusion_pytorch_model.fp16.safetensors")[weight]
    assert torch.equal(Zero123(both, dtype=torch.float16).unet.state_dict()[weight], stored)
    assert torch.equal(Zero123(both).unet.state_dict()[weight], Zero123(place).unet.state_dict()[weight])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_points_the_same_way(place: Path, dtype: torch.dtype) -> None:
    full, _ = gradient(Zero123(place))
    prior = Zero123(place, dtype=dtype)
    images = torch.rand(1, 3, 64, 64)
    known = prior.embed(images)
    assert known.latents.dtype == dtype
    half = _alone(prior)
    assert torch.nn.functional.cosine_similarity(half.flatten(), full.flatten(), 0) > 0.99


def _alone(prior: Zero123) -> Tensor:
    """gradient() without the formula, which is float32 only."""
    generator = torch.Generator().manual_seed(4)
    picture, *images = torch.rand(3, 1, 3, 64, 64, generator=generator)
    cameras = relative_cameras(0.2, torch.tensor([0.4, -2.0]), torch.tensor([0.5, -0.3]))
    noise, t = torch.randn(2, *prior.latent_shape, generator=generator), torch.tensor([40, 700])
    return prior.sds_grad(torch.cat(images), prior.embed(picture, 0.2), cameras, t, noise, SCALE)[0]


def test_slices_of_attention_change_nothing_but_memory(place: Path) -> None:
    prior = Zero123(place)
    whole = _alone(prior)
    prior.tune(attention_slicing="on")
    assert apart(_alone(prior), whole) < 1e-4


@pytest.mark.parametrize(
    ("mebibytes", "whole", "option", "sliced"),
    [
        (4000, False, "auto", False),  # torch's own attention never holds the matrix
        (4000, True, "auto", True),
        (9000, True, "auto", False),
        (4000, True, "off", False),
        (9000, False, "on", True),
    ],
)
def test_slices_never_replace_torch_s_own_attention_unasked(
    place: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: int, whole: bool, option: str, sliced: bool
) -> None:
    """whole: attention is one that holds its matrix whole."""
    prior = Zero123(place)
    if whole:
        prior.unet.set_attn_processor(AttnProcessor())
    prior.device = torch.device("cuda")
    about = SimpleNamespace(total_memory=mebibytes * 2**20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    before = {type(processor) for processor in prior.unet.attn_processors.values()}
    prior.tune(attention_slicing=option)
    after = {type(processor) for processor in prior.unet.attn_processors.values()}
    assert after == ({SlicedAttnProcessor} if sliced else before)


class Evil:
    """Unpickling it runs a command: what a .bin of a stranger may do."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("part", folder.ZERO123.parts)
def test_a_pickle_that_runs_something_is_refused_unrun(place: Path, tmp_path: Path, part: str) -> None:
    other, ran = shutil.copytree(place, tmp_path / "prior"), tmp_path / "ran"
    (good,) = (other / part).glob("*.safetensors")
    name = "pytorch_model.bin" if part == "image_encoder" else "diffusion_pytorch_model.bin"
    torch.save({**load_file(good), "more": Evil(ran)}, other / part / name)
    Zero123(other)  # safetensors first: the .bin is not even opened
    good.unlink()
    with pytest.raises(UserError, match=part):
        Zero123(other)
    assert not ran.exists()


def test_one_set_of_weights_is_chosen_for_download() -> None:
    names = [
        "README.md", "model_index.json", "zero123.py", "unet/config.json", "clip_camera_projection/zero123.py",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.bin", "tokenizer/merges.txt",
        "image_encoder/model-00001-of-00002.safetensors", "image_encoder/model-00002-of-00002.safetensors",
        "image_encoder/pytorch_model.bin", "v1.ckpt",
    ]  # fmt: skip
    settings = ["model_index.json", "unet/config.json", "tokenizer/merges.txt"]
    shards = [
        "image_encoder/model-00001-of-00002.safetensors",
        "image_encoder/model-00002-of-00002.safetensors",
    ]
    assert folder.chosen(names, half=True) == [
        *settings, "unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.bin", *shards,
    ]  # fmt: skip
    assert folder.chosen(names, half=False) == [
        *settings, "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin", *shards,
    ]  # fmt: skip


# --- finding ---


def in_cache(cache: Path, hub_id: str, source: Path) -> Path:
    """A folder put where the hub's client would have put it."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(source, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    return repository / "snapshots" / "0123abcd"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(folder, "_reachable", lambda hub_id: pytest.fail("the hub was asked"))
    return tmp_path / "hub"


def test_auto_takes_whole_published_weights_from_the_cache(place: Path, cache: Path) -> None:
    said: list[str] = []
    assert find_prior("auto", said.append) == str(POCKET)
    assert "the pocket prior" in said.pop()
    second = in_cache(cache, folder.ZERO123.known[1], place)
    assert find_prior("auto") == str(second)
    assert find_prior("pocket") == str(POCKET)
    assert Zero123(folder.ZERO123.known[1]).stable and Zero123(second).stable
    first = in_cache(cache, folder.ZERO123.known[0], place)
    assert find_prior("auto", said.append) == str(first)
    assert "zero123-xl-diffusers, from the cache; configs/zero123_xl.yaml" in said.pop()
    assert not Zero123(folder.ZERO123.known[0]).stable
    (first / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert find_prior("auto") == str(second)
    with pytest.raises(UserError, match=f"hf download {folder.ZERO123.known[0]}.*prior=pocket"):
        Zero123(folder.ZERO123.known[0])


def test_the_hub_is_asked_only_where_there_is_a_gpu(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def reachable(hub_id: str) -> bool:
        asked.append(hub_id)
        return len(asked) > 1

    monkeypatch.setattr(folder, "_reachable", reachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_prior("auto") == str(POCKET) and not asked
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(folder, "fetched", lambda hub_id, half=True: cache / hub_id)
    assert find_prior("auto") == str(POCKET) and len(asked) == 1
    assert (
        find_prior("auto") == str(cache / folder.ZERO123.known[0]) and asked == [folder.ZERO123.known[0]] * 2
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert find_prior("auto") == str(POCKET) and len(asked) == 2
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_prior("auto") == str(POCKET) and len(asked) == 2


def test_a_hub_id_is_fetched_once_whoever_asks(
    place: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that no launcher of ours started: the first fetches, the others find it. Threads stand for them."""
    hub_id, fetched = "some/prior", list[bool]()

    def fetch(name: str, half: bool = True) -> Path:
        assert name == hub_id
        fetched.append(half)
        time.sleep(0.3)
        return in_cache(cache, name, place)

    monkeypatch.setattr(folder, "fetched", fetch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found: list[Path] = []
    ranks = [
        threading.Thread(target=lambda: found.append(folder.local_folder(hub_id, True))) for _ in range(3)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert fetched == [True] and len(found) == 3 and len({path.resolve() for path in found}) == 1


def test_the_launcher_fetches_before_ranks_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        "gs_propeller.app.guides.local_folder", lambda source, half: asked.append((source, half))
    )
    words = ["input=data/cat.png", "prompt=a cat", "prior=some/prior", "text_prior=other/prior", "ranks=2"]
    checked(load(["--config", "configs/image.yaml", *words, "device=cpu"])[0])
    assert asked == [("some/prior", False), ("other/prior", False)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    checked(load(["--config", "configs/image.yaml", *words, "device=cuda"])[0])
    assert asked[2:] == [("some/prior", True), ("other/prior", True)]


def test_stable_diffusion_is_where_it_moved_to(cache: Path, tmp_path: Path) -> None:
    """The hub's copy first, in auto and in the configuration; the old id still counts where a cache has it."""
    moved, old = folder.TEXT.known
    assert moved == load(["--config", "configs/stable_diffusion.yaml"])[0].text_prior
    assert moved.startswith("sd2-community/") and old == moved.replace("sd2-community", "stabilityai")
    text = published.write_text(tmp_path / "stable-diffusion")
    for hub_id in (old, moved):
        kept = in_cache(cache, hub_id, text)
        assert find_text_prior("auto") == str(kept)


@pytest.mark.slow
def test_cache_and_offline_variables_are_honoured(place: Path, tmp_path: Path) -> None:
    expected = in_cache(tmp_path / "home" / "hub", folder.ZERO123.known[0], place)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    code = "from guidance import find_prior, folder; print(find_prior('auto'), folder.offline())"
    for variables, printed in (
        ({"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}, f"{expected} True"),
        ({"HF_HUB_CACHE": str(tmp_path / "home" / "hub")}, f"{expected} False"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment | variables
        )
        assert done.stdout.strip() == printed, done.stderr


# --- cameras ---


def test_stable_zero123_is_told_where_the_input_stood(place: Path, tmp_path: Path) -> None:
    stable = Zero123(shutil.copytree(place, tmp_path / STABLE))
    fast, slow = gradient(stable)
    assert apart(fast, slow) < 1e-4
    plain = gradient(Zero123(place))[0]
    assert apart(fast, plain) > 1e-3
    assert torch.equal(gradient(Zero123(place, camera_code="stable"))[0], fast)
    assert torch.equal(gradient(Zero123(tmp_path / STABLE, camera_code="relative"))[0], plain)


@pytest.mark.parametrize(
    "name, said, stable",
    [
        ("stable-zero123-diffusers", "", True),
        ("Stable_Zero123", "", True),
        ("zero123-xl", "", False),
        ("stable/zero123-xl", "", False),
        ("anything", '{"camera_code": "stable"}', True),
        ("stable-zero123", '{"camera_code": "relative"}', False),
    ],
)
def test_stable_zero123_is_recognised(tmp_path: Path, name: str, said: str, stable: bool) -> None:
    from guidance.zero123 import is_stable

    (tmp_path / name / "clip_camera_projection").mkdir(parents=True)
    if said:
        (tmp_path / name / "clip_camera_projection" / "config.json").write_text(said)
    assert is_stable(tmp_path / name) == stable


def test_what_the_published_weights_take_for_granted_of_cameras() -> None:
    """A view 30 degrees above an input at 10, a quarter turn towards the object's left: polar angle shrinks by 20
    degrees, sin of the azimuth 1; the radius is the same; the picture spans 49.1 degrees."""
    code = relative_cameras(math.radians(10), torch.tensor([math.pi / 2]), torch.tensor([math.radians(30)]))[
        0
    ]
    assert code.tolist() == pytest.approx([-math.radians(20), 1.0, 0.0, 0.0], abs=1e-6)
    camera = orbit([math.pi / 2], [math.radians(30)], 2.0, math.radians(Config().fov_y_deg))
    x, y, z = camera.centres[0].tolist()
    assert x > 0 and y > 0 and abs(z) < 1e-6  # the front faces +z, so +x is seen by going counter-clockwise
    assert Config().fov_y_deg == 49.1
    assert camera.focal_px(256) == pytest.approx(128 / math.tan(math.radians(49.1 / 2)))
    assert Config().radius == 2.0


@pytest.mark.parametrize("config", ["image", "zero123_xl"])
def test_the_whole_program_from_a_folder_of_that_layout(
    place: Path,
    tmp_path: Path,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the configuration for published weights a step that overflows is skipped, counted and said."""
    from main_propeller import main

    sds_grad, calls = Zero123.sds_grad, list[int]()

    def overflowing(*told: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        grad, residual = sds_grad(*told)
        return grad * (math.nan if len(calls) == 2 else 1.0), residual

    if config == "zero123_xl":
        monkeypatch.setattr(Zero123, "sds_grad", overflowing)

    words = [
        "--config", f"configs/{config}.yaml", "input=data/cat.png", f"prior={place}", f"outdir={tmp_path}", "steps=4",
        "batch_size=1", "num_points=100", "reference_size=32", "render_size=32", "mesh_resolution=24", "mesh_faces=200",
        "texture_size=64", "bake_views=4", "bake_size=64", "turntable_frames=0", "turntable_size=32", "ranks=1",
        "device=cpu",
    ]  # fmt: skip
    assert main(words) == 0
    skips = [line for line in capsys.readouterr().err.splitlines() if "were skipped" in line]
    assert [line[:22] for line in skips] == (["note: 1 of 4 evaluatio"] if config == "zero123_xl" else [])
    assert (tmp_path / "cat" / "cat.glb").stat().st_size > 1000


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    code = (
        "import time\ntime.sleep = lambda seconds: None\n"  # between its tries
        "from guidance import folder\ntry:\n    folder.local_folder('some/prior', half=True)\n"
        "except folder.UserError as error:\n    print(error)\nprint(folder._reachable('some/prior'))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    said, reachable = done.stdout.splitlines()
    assert "'some/prior' cannot be fetched" in said and "`hf download some/prior`" in said
    assert reachable == "False"
