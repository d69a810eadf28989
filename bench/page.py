"""Sheets of several runs as one picture, a row each: `python -m bench.page runs/A runs/B ... --to docs/fields.png`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

SIDE = 160  # of a view, pixels
GAP_PX = 2  # between the views of a sheet


def row(run: Path, side: int = SIDE) -> Image.Image:
    """The eight views of a run's contact sheet, side by side."""
    sheet = Image.open(run / f"{run.name}_sheet.png").convert("RGB")
    width, height = (sheet.width + GAP_PX) // 4, (sheet.height + GAP_PX) // 2
    strip = Image.new("RGB", (8 * side, side), "white")
    for k in range(8):
        left, top = k % 4 * width, k // 4 * height
        view = sheet.crop((left, top, left + width - GAP_PX, top + height - GAP_PX))
        strip.paste(view.resize((side, side), Image.Resampling.LANCZOS), (k * side, 0))
    return strip


def stacked(strips: Sequence[Image.Image], to: Path) -> None:
    """Pictures of one width, from above to below, as one."""
    page = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)))
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    to.parent.mkdir(parents=True, exist_ok=True)
    page.save(to, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--to", type=Path, default=Path("build/bench/page.png"))
    given = parser.parse_args()
    stacked([row(run) for run in given.runs], given.to)


if __name__ == "__main__":
    main()
