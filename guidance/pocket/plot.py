"""The training log drawn: `python -m guidance.pocket.plot data/zero123-pocket/training.jsonl curve.png`."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path


def plot(log: Path, image: Path) -> bool:
    """Writes the VAE's PSNR and the UNet's loss against steps, each training as a line of its own. False where
    matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, stage, key, label in (
        (left, "vae", "psnr_db", "VAE, reconstruction dB"),
        (right, "unet", "loss", "UNet, mean squared error of v"),
    ):
        found = [line for line in lines if line["stage"] == stage]
        begins = [k for k in range(len(found)) if not k or found[k]["step"] <= found[k - 1]["step"]]
        for first, last in pairwise([*begins, len(found)]):
            part = found[first:last]  # one training; the next began to count anew
            axes.plot([line["step"] for line in part], [line[key] for line in part], linewidth=1)
        axes.set(xlabel="steps", title=label)
        axes.grid(alpha=0.3)
    losses = sorted(line["loss"] for line in lines if line["stage"] == "unet")
    if losses:
        low, high = losses[len(losses) // 20], losses[int(0.98 * (len(losses) - 1))]
        right.set_ylim(
            low - 0.2 * (high - low), high + 0.1 * (high - low)
        )  # the first steps leave the picture
    figure.savefig(image, dpi=90)
    return True


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    if not plot(Path(sys.argv[1]), Path(sys.argv[2])):
        raise SystemExit("matplotlib is not installed: pip install -r requirements-dev.txt")
