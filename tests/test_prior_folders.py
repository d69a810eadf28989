"""Folders that look like a prior and are none: each is an error that names the part and the remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench import published
from gs_propeller.base.errors import UserError
from guidance.folder import TEXT, ZERO123, missing
from guidance.stable_diffusion import StableDiffusion
from guidance.zero123 import Zero123

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
WEIGHTS |= {"image_encoder": "model", "clip_camera_projection": "diffusion_pytorch_model"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A view prior's and a text prior's, small, in the published layout."""
    place = tmp_path_factory.mktemp("priors")
    return {"view": published.write(place / "view"), "text": published.write_text(place / "text")}


@pytest.fixture
def view(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["view"], tmp_path / "view")


@pytest.fixture
def text(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["text"], tmp_path / "text")


def rewritten(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("gone", ["", "vocab.json", "merges.txt"])
def test_a_tokenizer_without_its_files_is_missing(text: Path, gone: str) -> None:
    """Read anyway, it takes every sentence for the same one."""
    assert missing(text, TEXT.parts) == []
    (text / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    if gone:
        (text / "tokenizer" / gone).unlink()
    else:
        shutil.rmtree(text / "tokenizer")
    assert missing(text, TEXT.parts) == ["tokenizer"]
    with pytest.raises(UserError, match=rf"tokenizer has no {gone or 'vocab.json'}.*text_prior=pocket"):
        StableDiffusion(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("view", "unet"), ("view", "vae"), ("view", "image_encoder"), ("view", "clip_camera_projection"),
        ("text", "unet"), ("text", "text_encoder"),
    ],
)  # fmt: skip
def test_weights_that_a_file_lacks_are_not_made_up(
    folders: dict[str, Path], tmp_path: Path, kind: str, part: str
) -> None:
    place = shutil.copytree(folders[kind], tmp_path / "prior")
    file = place / part / f"{WEIGHTS[part]}.safetensors"
    tensors = load_file(file)
    gone = sorted(tensors)[0]
    save_file({k: v.clone() for k, v in tensors.items() if k != gone}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"{part}: its file lacks the weights [\w.]+\);"):
        (Zero123 if kind == "view" else StableDiffusion)(place)


@pytest.mark.slow
def test_parts_of_other_models_are_named(view: Path, text: Path) -> None:
    assert missing(view, ZERO123.parts) == missing(text, TEXT.parts) == []
    scheduler = text / "scheduler" / "scheduler_config.json"
    rewritten(scheduler, prediction_type="sample")
    with pytest.raises(UserError, match="prediction_type=sample; epsilon and v_prediction are known"):
        StableDiffusion(text)
    rewritten(scheduler, prediction_type="epsilon")
    (text / "response.json").write_text('{"share": [0.1,')
    with pytest.raises(UserError, match=r"response.json is not as bench.response writes it"):
        StableDiffusion(text)
    (text / "response.json").unlink()
    prior = StableDiffusion(text)
    for changed, said in (
        ({"in_channels": 9}, "reads 9 channels where 4 are given"),
        ({"cross_attention_dim": 24}, "attends to tokens of 24 numbers, and the encoder's have"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 80,
            },
            "addition_embed_type=text_time",
        ),
    ):  # fmt: skip
        torch.manual_seed(0)
        type(prior.unet).from_config({**prior.unet.config, **changed}).save_pretrained(text / "unet")
        with pytest.raises(UserError, match=said):
            StableDiffusion(text)
    shutil.rmtree(view / "unet")
    prior.unet.save_pretrained(view / "unet")
    with pytest.raises(UserError, match=r"reads 4 channels where 8 are given.* or prior=pocket"):
        Zero123(view)
