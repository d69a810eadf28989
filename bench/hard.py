"""The hard case of the window: sentences, where what the prior sees decides what it says, down to little noise.

Runs of configs/text.yaml. Three measures of an asset: `judge`, the share of its views that the shipped retrieval model
matches with its own sentence among all of bench.text; `residual_db`, PSNR between its views and the prior's clean
pictures of them at the noise level of RESIDUAL_LEVEL (a blurred asset is far from them, whatever the judge says); and
`to_serial_db`, PSNR between its views and those of the serial run of the same sentence and seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.kept import Figures, key_of, on_one_thread
from bench.text import mark

RESIDUAL_LEVEL = 0.3  # share of all noise levels
VIEWS = 24
VIEWS_FOLDER = Path("build/bench/hard")
SENTENCES = (0, 11, 5, 6)  # of bench.text's: a cube on a cylinder, a chair, a cat, a house
HARD: dict[str, object] = {"t_min": 0.02}  # as far down as DreamGaussian


@dataclass(frozen=True)
class Job:
    """A sentence of bench.text, by its place there, and what differs from the shipped configuration."""

    index: int
    pairs: tuple[tuple[str, object], ...]

    def key(self, mark: str) -> str:
        return key_of("hard", mark, self.index, self.pairs)


def job(index: int, seed: int, *changes: dict[str, object]) -> Job:
    pairs: dict[str, object] = {"seed": seed}
    for change in changes:
        pairs |= change
    return Job(index, tuple(sorted(pairs.items())))


def work(one: Job) -> Figures:
    """A run in a process of its own, on one thread; its views are kept beside the figures."""
    from bench.retrieval import load_judge
    from bench.solving import prepared, solving
    from bench.text import ELEVATION_DEG, PROMPTS
    from gs_propeller.app.asset import Viewer
    from gs_propeller.app.config import load, updated
    from gs_propeller.base.camera import relative_cameras
    from gs_propeller.base.randomness import keyed_generator
    from guidance.diffusion import resized

    on_one_thread()
    with tempfile.TemporaryDirectory() as folder:
        base, _ = load(["--config", "configs/text.yaml"])
        given = {"prompt": PROMPTS[one.index], "device": "cpu", "outdir": folder, "text_prior": "pocket"}
        setup = prepared(updated(base, given | dict(one.pairs)))
        solved = solving(setup)
    viewer, guide = Viewer(solved.state.params, setup.config), setup.scene.guides[0]
    turns = torch.arange(VIEWS) * (2 * torch.pi / VIEWS)
    cameras = viewer.cameras(turns.rad2deg().tolist(), [ELEVATION_DEG] * VIEWS)
    views = viewer.views(cameras, 128)[0].clamp(0, 1)
    small, prior = viewer.views(cameras, guide.prior.size_px)[0].clamp(0, 1), guide.prior
    views_s = setup.config.sections.views
    codes = relative_cameras(views_s.elevation_rad, turns, torch.full_like(turns, ELEVATION_DEG).deg2rad())
    t = torch.full((VIEWS,), round(RESIDUAL_LEVEL * (prior.levels - 1)))
    noise = torch.randn(VIEWS, *prior.latent_shape, generator=keyed_generator(0, 0, "residual"))
    with torch.no_grad():
        alpha, sigma = prior.alpha_sigma(t)  # type: ignore[attr-defined]
        noisy = alpha * prior.encode(small).float() + sigma * noise  # type: ignore[attr-defined]
        told = guide.conditioning, codes, t, guide.guidance_scale
        clean = resized(prior.decode(prior.predict(noisy, *told)[1]), small.shape[-1], "bilinear")  # type: ignore[attr-defined]
    VIEWS_FOLDER.mkdir(parents=True, exist_ok=True)
    torch.save(views.half(), VIEWS_FOLDER / f"{one.key(mark())}.pt")
    right = load_judge().chosen(views, list(PROMPTS)) == one.index
    return {
        "steps": setup.settings.steps, "passes": solved.window.passes, "evaluations": solved.window.evaluations,
        "seconds": solved.seconds, "last_threshold": solved.window.threshold, "judge": float(right.float().mean()),
        "residual_db": psnr_db(small, clean),
    }  # fmt: skip


def psnr_db(images: torch.Tensor, truth: torch.Tensor) -> float:
    return float(-10 * torch.log10((images.float() - truth.float()).square().mean((1, 2, 3))).mean())


def to_serial_db(one: Job, serial: Job) -> float:
    """Between the views of two runs; infinite where they are the same."""
    mine, other = (torch.load(VIEWS_FOLDER / f"{x.key(mark())}.pt") for x in (one, serial))
    return psnr_db(mine, other)


def told(one: Job, result: Figures) -> str:
    return (
        f"sentence {one.index} {dict(one.pairs)}: {result['passes']} passes, judge {result['judge']:.2f}, "
        f"residual {result['residual_db']:.2f} dB, {result['seconds']:.0f} s"
    )


def means(jobs: Sequence[Job], serial: Sequence[Job], results: dict[Job, Figures]) -> dict[str, float]:
    """Of one setting over its sentences and seeds."""
    found = [results[one] for one in jobs]
    row = {key: sum(f[key] for f in found) / len(found) for key in found[0]}
    row["steps_per_pass"] = sum(f["steps"] for f in found) / sum(f["passes"] for f in found)
    gaps = [to_serial_db(a, b) for a, b in zip(jobs, serial, strict=True) if a != b]
    row["to_serial_db"] = sum(gaps) / len(gaps) if gaps else float("inf")
    return row
