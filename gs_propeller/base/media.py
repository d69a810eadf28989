"""Pictures of the result: a turntable film and a contact sheet. F frames, S px along a side, 0..1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gs_propeller.base.errors import UserError
from gs_propeller.base.files import atomic

# What players take a film for that does not say: written and said, greens stay what they are at any size.
BT709 = [
    "-vf",
    "scale=out_color_matrix=bt709",
    "-colorspace",
    "bt709",
    "-color_primaries",
    "bt709",
    "-color_trc",
    "bt709",
]


def _bytes(images: Tensor) -> np.ndarray:
    return (images.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy() * 255 + 0.5).astype(np.uint8)


def turntable(path: str | Path, frames: Tensor, fps: int = 30) -> None:
    """frames [F, 3, H, W] to H.264 that every player shows (yuv420p, even sides). Raises UserError, ValueError."""
    if frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
        raise ValueError(f"frames must be [F, 3, H, W], got {list(frames.shape)}")
    odd = [frames.shape[-1] % 2, frames.shape[-2] % 2]
    if any(odd):
        frames = F.pad(frames, (0, odd[0], 0, odd[1]), value=1.0)
    with atomic(path) as temporary:
        try:
            _encode(temporary, _bytes(frames), fps)
            with temporary.open("rb") as film:  # the table of contents comes last
                whole = b"moov" in film.read(temporary.stat().st_size)
        except OSError:
            whole = False
        if not whole:
            with temporary.open("ab") as file:
                file.write(bytes(1 << 20))  # raises where the disk is full, which ffmpeg says in a page
            raise OSError("ffmpeg ended before the film was whole")


def _encode(path: Path, frames: np.ndarray, fps: int) -> None:
    """Raises OSError in ffmpeg's words, UserError where there is no ffmpeg."""
    import imageio.v2 as imageio

    try:
        with imageio.get_writer(
            path, format="FFMPEG", fps=fps, codec="libx264", quality=8, pixelformat="yuv420p", macro_block_size=2,
            ffmpeg_log_level="quiet", output_params=BT709,
        ) as writer:  # fmt: skip
            for frame in frames:
                writer.append_data(frame)  # type: ignore[attr-defined]
    except (RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no film can be made ({reason}); turntable_frames=0 leaves it out") from error


def contact_sheet(path: str | Path, images: Tensor, columns: int = 4, gap_px: int = 2) -> None:
    """images [F, 3, S, S] in rows of `columns`, a thin grey line between them, to a PNG. Raises UserError."""
    count, _, height, width = images.shape
    rows = -(-count // columns)
    sheet = torch.full((3, rows * (height + gap_px) - gap_px, columns * (width + gap_px) - gap_px), 0.8)
    for i, image in enumerate(images.cpu()):
        top, left = i // columns * (height + gap_px), i % columns * (width + gap_px)
        sheet[:, top : top + height, left : left + width] = image
    with atomic(path) as temporary:
        Image.fromarray(_bytes(sheet[None])[0]).save(temporary)
