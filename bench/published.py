"""Folders with random weights in the published layouts: for benches without the weights, and, small, for tests.

Zero-1-to-3's is that of zero123-xl and stable-zero123 in diffusers format: Stable Diffusion 1's UNet with 8 input
channels at a 32 x 32 latent, its VAE, CLIP ViT-L/14's image tower projected to the 768 numbers of the UNet's cross
attention, and `clip_camera_projection`, a linear map of those and the camera's 4, whose class is a file of the folder.
The text prior's is that of Stable Diffusion 2.1 base: a UNet at 64 x 64 latents that attends to 1024 numbers a token,
OpenCLIP ViT-H's text tower without its last layer, a tokenizer in two files, and noise levels written for PNDM.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from guidance.zero123 import CameraProjection

MODEL_INDEX = {
    "_class_name": "Zero123Pipeline",
    "clip_camera_projection": ["zero123", "CLIPCameraProjection"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
TEXT_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
TOKENS = 77
# What a repository brings along and nobody here runs.
OWN_CODE = "raise RuntimeError('code of the folder was run')\n"
PREPROCESSOR = {
    "crop_size": {"height": 224, "width": 224},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": 224},
}
OLD_NAMES = {
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "to_out.0": "proj_attn",
}  # of a VAE's attention, to 2023


def unet(small: bool = False) -> UNet2DConditionModel:
    """860 M weights; small: 20 times narrower, on 8 x 8 latents."""
    return UNet2DConditionModel(
        sample_size=8 if small else 32, in_channels=8, out_channels=4, layers_per_block=2,
        block_out_channels=(16, 32, 64, 64) if small else (320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=48 if small else 768, attention_head_dim=8, norm_num_groups=8 if small else 32,
    )  # fmt: skip


def vae(small: bool = False) -> AutoencoderKL:
    """84 M weights, 8 pixels to a latent."""
    return AutoencoderKL(
        sample_size=64 if small else 256, latent_channels=4, layers_per_block=2, scaling_factor=0.18215,
        block_out_channels=(8, 16, 32, 32) if small else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=8 if small else 32,
    )  # fmt: skip


def image_encoder(small: bool = False) -> CLIPVisionModelWithProjection:
    """304 M weights."""
    if small:
        config = CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=16,
                                  image_size=56, patch_size=14, projection_dim=48)  # fmt: skip
    else:
        config = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, patch_size=14,
                                  num_attention_heads=16, image_size=224, projection_dim=768)  # fmt: skip
    return CLIPVisionModelWithProjection(config)


def networks(small: bool = False) -> dict[str, Any]:
    """Every network by its part's name, weights random."""
    return {
        "unet": unet(small),
        "vae": vae(small),
        "image_encoder": image_encoder(small),
        "clip_camera_projection": CameraProjection(48 if small else 768),
    }


def text_unet(small: bool = False) -> UNet2DConditionModel:
    """866 M weights; small: 20 times narrower, on 8 x 8 latents."""
    return UNet2DConditionModel(
        sample_size=8 if small else 64, in_channels=4, out_channels=4, layers_per_block=2, use_linear_projection=True,
        block_out_channels=(16, 32, 64, 64) if small else (320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=64 if small else 1024, attention_head_dim=(1, 2, 4, 4) if small else (5, 10, 20, 20),
        norm_num_groups=8 if small else 32,
    )  # fmt: skip


def text_encoder(small: bool = False, vocabulary: int = 49_408) -> CLIPTextModel:
    """340 M weights."""
    width, layers = (64, 2) if small else (1024, 23)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=width // 64, max_position_embeddings=TOKENS, hidden_act="gelu", bos_token_id=0,
            eos_token_id=2, pad_token_id=1,
        )
    )  # fmt: skip


def text_networks(small: bool = False, vocabulary: int = 49_408) -> dict[str, Any]:
    """Every network of the text prior by its part's name, weights random."""
    return {"unet": text_unet(small), "vae": vae(small), "text_encoder": text_encoder(small, vocabulary)}


def write_text(
    folder: Path,
    kind: str = "safetensors",
    variant: str = "",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """A whole small folder of the text prior; its tokenizer knows single letters alone."""
    torch.manual_seed(seed)
    letters = [chr(c) for c in range(33, 127)]
    pieces = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    for part, module in text_networks(True, len(pieces)).items():
        module.to(dtype).save_pretrained(folder / part)
        _weights(folder / part, module.state_dict(), kind, variant)
    ends = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "!",
    }
    (folder / "tokenizer").mkdir()
    for name, content in (
        ("vocab.json", json.dumps({piece: k for k, piece in enumerate(pieces)})),
        ("merges.txt", "#version: 0.2\n"),
        ("special_tokens_map.json", json.dumps(ends)),
        (
            "tokenizer_config.json",
            json.dumps(ends | {"model_max_length": TOKENS, "tokenizer_class": "CLIPTokenizer"}),
        ),
    ):
        (folder / "tokenizer" / name).write_text(content)
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, set_alpha_to_one=False,
        steps_offset=1, prediction_type="epsilon",
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    return _indexed(folder, TEXT_INDEX)


def write(
    folder: Path,
    kind: str = "safetensors",
    variant: str = "",
    dtype: torch.dtype = torch.float32,
    small: bool = True,
    old_names: bool = False,
    seed: int = 0,
) -> Path:
    """A whole folder; kind: safetensors or bin; variant: "fp16" or none; old_names: the VAE's, before 2023."""
    torch.manual_seed(seed)
    for part, module in networks(small).items():
        module.to(dtype).save_pretrained(folder / part)
        tensors = module.state_dict()
        if old_names and part == "vae":
            tensors = {_old(name): tensor for name, tensor in tensors.items()}
        _weights(folder / part, tensors, kind, variant)
    config = folder / "clip_camera_projection" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "CLIPCameraProjection"}))
    (folder / "clip_camera_projection" / "zero123.py").write_text(OWN_CODE)
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="epsilon",
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    return _indexed(folder, MODEL_INDEX)


def _indexed(folder: Path, index: dict[str, Any]) -> Path:
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _weights(part: Path, tensors: dict[str, Tensor], kind: str, variant: str) -> None:
    """The part's weights anew, under the name that the layout gives them."""
    (saved,) = part.glob("*.safetensors")
    stem = saved.stem if kind == "safetensors" else saved.stem.replace("model", "pytorch_model")
    stem = "diffusion_pytorch_model" if "diffusion" in stem else stem
    saved.unlink()
    path = part / f"{stem}{'.' * bool(variant)}{variant}.{kind}"
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def _old(name: str) -> str:
    for new, old in OLD_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name
