"""Sentences to assets, judged by retrieval: `python -m bench.text [--prompts 30] [--jobs 1] [--only sds vsd]`.

SDS and VSD, each serial and at window 8, shipped settings (configs/text.yaml). The paper's protocol: 120 views round an
asset at 12 degrees elevation; R-Precision is the share of them for which a judge picks the asset's own sentence out of
all. The judge is a small retrieval model trained apart (bench/retrieval.py), and CLIP B/32 beside it where its weights
are in the cache. Prints a table and ends with one JSON object. Finished runs are kept in build/bench with their views,
so that another judge needs no run, and a page of these for each method.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from bench.kept import Figures, done, key_of, on_one_thread, weights_of
from bench.truth import save_png
from guidance.pocket.stream import save

if TYPE_CHECKING:
    from bench.retrieval import Judge

PROMPTS = (
    "a red cube on a blue cylinder",
    "a green cone on a yellow cube",
    "a purple ball beside a wooden cube",
    "a golden pyramid",
    "a striped black and white pillar",
    "a sitting orange cat",
    "a yellow house with a red roof",
    "a blue car with a white cabin",
    "a white rocket with a red tip",
    "a toy man with a green shirt and brown trousers",
    "a tree with a green crown",
    "a teal chair with brown legs",
    "a pink egg on a grey disc",
    "a silver ball on a red brick",
    "a black cylinder in front of an orange cube",
    "a dotted yellow and purple ball",
    "a chequered red and white cube",
    "a brown disc under a blue cone",
    "a standing black dog",
    "a yellow bird with blue wings",
    "a purple table with white legs",
    "a green bottle with a red cap",
    "a grey aeroplane with red wings",
    "a red flower in a blue pot",
    "a white snowman with a red scarf",
    "a pink star",
    "a blue heart",
    "an orange letter T",
    "a striped red and yellow bee with white wings",
    "a teal vase with golden rings",
)
# Things that the models' captions name (guidance/pocket/model_captions.py), for a text prior that has learnt them.
NOUN_PROMPTS = (
    "a chair",
    "a green cactus",
    "a burger",
    "a red apple",
    "a police car",
    "a yellow taxi",
    "a sailing boat",
    "a wooden barrel",
    "a treasure chest",
    "a sword",
    "a round shield",
    "a pumpkin",
    "a pine tree",
    "a palm tree",
    "a red mushroom",
    "a guitar",
    "a piano",
    "a bookcase",
    "a bed",
    "a bathtub",
    "a toilet",
    "a street light",
    "a windmill",
    "a castle",
    "a skull",
    "a knight",
    "a fish",
    "a cow",
    "a donut",
    "an ice cream cone",
)
METHODS: dict[str, dict[str, object]] = {
    "sds": {"loss": "sds", "window": 1},
    "sds_parallel": {"loss": "sds", "window": 8},
    "vsd": {"loss": "vsd", "window": 1},
    "vsd_parallel": {"loss": "vsd", "window": 8},
}
VIEWS, ELEVATION_DEG = 120, 12.0
CLIP = "openai/clip-vit-base-patch32"
SHEETS = Path("build/bench/text")


@dataclass(frozen=True)
class Job:
    """One prompt by one method, what else differs from the shipped configuration, and its rivals for the judges."""

    prompt: str
    method: str
    pairs: tuple[tuple[str, object], ...] = ()
    among: tuple[str, ...] = PROMPTS  # what the judges choose from

    def key(self, mark: str) -> str:
        asked = [self.among] if self.among != PROMPTS else []
        return key_of(mark, self.prompt, self.method, self.pairs, *asked)


def mark(judged: bool = True) -> str:
    """Of the weights and the settings that decide a run and, where it is judged, its score."""
    from bench.retrieval import POCKET_JUDGE
    from gs_propeller.app.config import load
    from gs_propeller.app.fingerprint import fingerprint
    from guidance import POCKET_TEXT

    folders = (POCKET_TEXT, POCKET_JUDGE) if judged else (POCKET_TEXT,)
    sums = [weights_of(folder).hex() for folder in folders]
    shipped = fingerprint(load(["--config", "configs/text.yaml"])[0], b"")
    return hashlib.sha256(json.dumps([sums, PROMPTS, shipped]).encode()).hexdigest()


def work(one: Job) -> Figures:
    """A run in a process of its own, on one thread: passes, and what the judges say of its views."""
    on_one_thread()
    result, views = shown(one)
    for judge_name, judge in judges().items():
        right = judge.chosen(views, list(one.among)) == one.among.index(one.prompt)
        result[judge_name] = float(right.float().mean())
    return result


def shown(one: Job) -> tuple[Figures, Tensor]:
    """A run's figures and its views [V, 3, 128, 128], which are kept: another judge needs no run of it."""
    path = SHEETS / f"{replace(one, among=PROMPTS).key(mark(judged=False))}.safetensors"
    if path.exists():
        kept = load_file(path)
        figures: Figures = {name: kept[name].item() for name in ("steps", "passes", "seconds")}
        return figures, kept["views"].float() / 255
    figures, views = solved(one)
    SHEETS.mkdir(parents=True, exist_ok=True)
    save_png(str(strip(one)), torch.cat(list(views[:: VIEWS // 4]), 2))
    fine = (views * 255 + 0.5).to(torch.uint8)
    save(path, {"views": fine} | {name: torch.tensor(value) for name, value in figures.items()})
    return figures, fine.float() / 255


def solved(one: Job) -> tuple[Figures, Tensor]:
    from bench.solving import prepared, solving
    from gs_propeller.app.asset import Viewer
    from gs_propeller.app.config import load, updated

    with tempfile.TemporaryDirectory() as folder:
        base, _ = load(["--config", "configs/text.yaml"])
        pairs = {
            "prompt": one.prompt,
            "text_prior": "pocket",
            "device": "cpu",
            "outdir": folder,
            **METHODS[one.method],
            **dict(one.pairs),
        }
        config = updated(base, pairs)
        setup = prepared(config)
        finished = solving(setup)
    viewer = Viewer(finished.state.params, config)
    turns = [360.0 * k / VIEWS for k in range(VIEWS)]
    views = viewer.views(viewer.cameras(turns, [ELEVATION_DEG] * VIEWS), 128)[0].clamp(0, 1)
    figures: Figures = {
        "steps": setup.settings.steps, "passes": finished.window.passes, "seconds": finished.seconds
    }  # fmt: skip
    return figures, views


def judges() -> dict[str, Judge]:
    """By name: the shipped one, and CLIP B/32 where its weights are in the cache."""
    from bench.retrieval import load_judge
    from guidance.folder import cached

    found = {"r_precision": load_judge()}
    clip = cached(CLIP)
    return found | ({"clip_r_precision": load_judge(clip)} if clip is not None else {})


def strip(one: Job) -> Path:
    """Where an asset's four sides are kept."""
    name = f"{one.prompt.replace(' ', '-')}-{one.method}{'-'.join(f'{k}{v}' for k, v in one.pairs)}"
    return SHEETS / f"{name}.png"


def page(jobs: Sequence[Job], path: Path, columns: int = 3, side: int = 96) -> None:
    """Four sides of each asset under its sentence; nothing where a kept run's picture has gone."""
    from PIL import Image, ImageDraw, ImageFont

    caption, gap, font = 18, 10, ImageFont.load_default(13)
    width, height = 4 * side + gap, side + caption + gap
    sheet = Image.new("RGB", (columns * width, -(-len(jobs) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for k, one in enumerate(jobs):
        x, y = k % columns * width, k // columns * height
        pen.text((x + 4, y), one.prompt, "black", font)
        if strip(one).exists():
            sheet.paste(Image.open(strip(one)).resize((4 * side, side)), (x, y + caption))
    sheet.save(path)


def told(one: Job, result: Figures) -> str:
    return (
        f"{one.method}: {one.prompt}: {result['passes']} passes, {result['r_precision']:.0%} of the views, "
        f"{result['seconds']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="of each list, from the first")
    parser.add_argument("--nouns", action="store_true", help="the thirty nouns too, judged among all sixty")
    parser.add_argument("--jobs", type=int, default=1, help="processes, a thread each")
    parser.add_argument("--only", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("pairs", nargs="*", help="key=value, of every run")
    given = parser.parse_args()
    from bench.ablation import parsed

    pairs = tuple(sorted(parsed(given.pairs).items()))
    among = PROMPTS + NOUN_PROMPTS if given.nouns else PROMPTS
    chosen = PROMPTS[: given.prompts] + (NOUN_PROMPTS[: given.prompts] if given.nouns else ())
    listed = {m: [Job(prompt, m, pairs, among) for prompt in chosen] for m in given.only}
    jobs = [one for group in zip(*listed.values(), strict=True) for one in group]
    results = done(jobs, work, given.jobs, Path("build/bench/text.jsonl"), mark(), told)
    table = Table(title=f"{len(chosen)} prompts, {VIEWS} views each, chance {1 / len(among):.3f}")
    measures = [key for key in next(iter(results.values())) if key.endswith("r_precision")]
    for heading in ("method", *measures, "prompts whose most views are right", "passes", "steps a pass", "s"):
        table.add_column(heading)
    figures: dict[str, float] = {"prompts": len(chosen), "chance": round(1 / len(among), 4)}
    for method, group in listed.items():
        page(group, SHEETS.with_name(f"text_{method}.png"))
        found = [results[one] for one in group]
        means = {key: sum(f[key] for f in found) / len(found) for key in found[0]}
        most = sum(f["r_precision"] > 0.5 for f in found)
        per_pass = sum(f["steps"] for f in found) / sum(f["passes"] for f in found)
        table.add_row(
            method, *(f"{means[key]:.3f}" for key in measures), f"{most}", f"{means['passes']:.1f}", f"{per_pass:.2f}",
            f"{means['seconds']:.0f}",
        )  # fmt: skip
        for prefix, kind in (("", PROMPTS), ("nouns_", NOUN_PROMPTS)):
            rows = [f for one, f in zip(group, found, strict=True) if one.prompt in kind]
            figures |= {
                f"{method}_{prefix}{key}": round(sum(f[key] for f in rows) / len(rows), 4)
                for key in (measures if rows else ())
            }
        if method.endswith("parallel"):
            figures[f"steps_per_pass_{method.split('_')[0]}"] = round(per_pass, 3)
    Console(width=120).print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
