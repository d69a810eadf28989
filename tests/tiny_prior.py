"""Folders with random weights in the published layouts, other sizes than the pocket priors'."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from guidance.zero123 import CameraProjection

WIDTH, CHANNELS, LATENT = 24, 3, 8  # the picture side is 16: one halving
TOKENS = 40


def write(folder: Path, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    _diffusion(folder, 2 * CHANNELS, prediction_type, seed)
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=12,
            patch_size=6, projection_dim=WIDTH,
        )
    ).save_pretrained(folder / "image_encoder")  # fmt: skip
    CameraProjection(WIDTH, 4).save_pretrained(folder / "clip_camera_projection")
    (folder / "feature_extractor").mkdir()
    values = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


def write_text(folder: Path, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """A Stable Diffusion folder: its pieces of words are single letters."""
    _diffusion(folder, CHANNELS, prediction_type, seed)
    letters = [chr(c) for c in range(33, 127)]
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(pieces), hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=TOKENS, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    ).save_pretrained(folder / "text_encoder")  # fmt: skip
    (folder / "tokenizer").mkdir()
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "unk_token": "<|endoftext|>"}
    for name, content in (
        ("vocab.json", json.dumps({piece: k for k, piece in enumerate(pieces)})),
        ("merges.txt", "#version: 0.2\n"),
        ("tokenizer_config.json", json.dumps(settings)),
    ):
        (folder / "tokenizer" / name).write_text(content)
    return folder


def _diffusion(folder: Path, channels: int, prediction_type: str, seed: int) -> None:
    """UNet, VAE and noise levels; channels: that the UNet reads."""
    torch.manual_seed(seed)
    UNet2DConditionModel(
        sample_size=LATENT, in_channels=channels, out_channels=CHANNELS, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), cross_attention_dim=WIDTH, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=CHANNELS, sample_size=2 * LATENT, layers_per_block=1,
        norm_num_groups=4, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.37,
    ).save_pretrained(folder / "vae")  # fmt: skip
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
