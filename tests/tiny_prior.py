"""A Zero-1-to-3 folder with random weights in the published layout, other sizes than the pocket prior's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from guidance.zero123 import CameraProjection

WIDTH, CHANNELS, LATENT = 24, 3, 8  # the picture side is 16: one halving


def write(folder: Path, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    torch.manual_seed(seed)
    UNet2DConditionModel(
        sample_size=LATENT, in_channels=2 * CHANNELS, out_channels=CHANNELS, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), cross_attention_dim=WIDTH, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=CHANNELS, sample_size=2 * LATENT, layers_per_block=1,
        norm_num_groups=4, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.37,
    ).save_pretrained(folder / "vae")  # fmt: skip
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=12,
            patch_size=6, projection_dim=WIDTH,
        )
    ).save_pretrained(folder / "image_encoder")  # fmt: skip
    CameraProjection(WIDTH, 4).save_pretrained(folder / "clip_camera_projection")
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction_type,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    (folder / "feature_extractor").mkdir()
    values = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(values))
    return folder
