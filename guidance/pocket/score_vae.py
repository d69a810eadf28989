"""What a prior's latents keep of a picture, and whether pulling at them moves colours the right way.

M pictures over white in 0..1 at the VAE's own size S.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def kept(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """[M, 3, S, S] there and back through the latents' means."""
    parts = images.split(32)
    return torch.cat(
        [(vae.decode(vae.encode(x * 2 - 1).latent_dist.mode()).sample / 2 + 0.5).clamp(0, 1) for x in parts]
    )


def kept_db(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean over the pictures of the PSNR of what comes back."""
    error = (kept(vae, images) - images).square().mean((1, 2, 3)).clamp_min(1e-10)
    return float((-10 * error.log10()).mean())


def colour_error(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean over the pictures of how far their mean colour over what is not white has moved, 0..1."""
    shown = ((1 - images).amax(1, keepdim=True) > 0.06).float()
    means = [(x * shown).sum((2, 3)) / shown.sum((2, 3)).clamp_min(1) for x in (kept(vae, images), images)]
    return float((means[0] - means[1]).norm(dim=1).mean())


def pull_cosine(vae: AutoencoderKL, images: Tensor, others: Tensor) -> Tensor:
    """[M]: cosine of one step's change of `images`, towards the latents of `others` through the encoder, with the
    change towards `others` themselves."""
    x = (images * 2 - 1).requires_grad_(True)
    with torch.no_grad():
        wanted = vae.encode(others * 2 - 1).latent_dist.mode()
    loss = F.mse_loss(vae.encode(x).latent_dist.mode(), wanted, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x)
    return F.cosine_similarity(-gradient.flatten(1), (others - images).flatten(1))
