"""The window against the serial loop: `python -m bench.fidelity [--objects 6] [--seeds 2] [--sweep 2] [--jobs 2]`.

Held-out objects, which the prior never saw. First the shipped settings at window 8, and the paper's tail, on all
objects and seeds; then, on a few objects, the front that the threshold draws (steps a pass against dB) for both
tails and distances, windows of other sizes, and the ablations of the paper's Figure 5: window, gamma from a
threshold that starts at a hundredth of the default, batch size. A plot, tables, and one JSON object. Runs that are
done are kept in build/bench (of these weights and options), so an interrupted bench goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.kept import Figures, done, on_one_thread

DEFAULT_E = 5e-4
SERIAL: dict[str, object] = {"window": 1}
SHIPPED: dict[str, object] = {"window": 8}
COPY: dict[str, object] = {"window": 8, "tail": "copy"}

Settings = list[tuple[str, dict[str, object]]]  # name, and what differs from the shipped configuration


@dataclass(frozen=True)
class Job:
    """One run: which held-out object, of the test ones or those to tune on, and what differs from the shipped
    configuration."""

    index: int
    pairs: tuple[tuple[str, object], ...]
    validation: bool = False

    def key(self, mark: str) -> str:
        which = [mark, self.index, self.pairs] + ["validation"] * self.validation
        return hashlib.sha256(json.dumps(which).encode()).hexdigest()[:24]


def job(index: int, seed: int, *changes: dict[str, object], validation: bool = False) -> Job:
    pairs: dict[str, object] = {"seed": seed}
    for change in changes:
        pairs |= change
    return Job(index, tuple(sorted(pairs.items())), validation)


def work(one: Job) -> dict[str, object]:
    """A run in a process of its own, on one thread."""
    from bench.solving import run
    from bench.truth import Case
    from guidance.pocket.data import TEST_SEED, VALIDATION_SEED, held_out

    on_one_thread()
    thing, pose = held_out(one.index + 1, VALIDATION_SEED if one.validation else TEST_SEED)[-1]
    return asdict(run(Case(f"{thing.family}-{thing.seed}", thing, pose), dict(one.pairs)))


def told(one: Job, result: Figures) -> str:
    return (
        f"object {one.index} {dict(one.pairs)}: {result['passes']} passes, {result['novel_psnr_db']:.2f} dB, "
        f"input {result['input_psnr_db']:.2f} dB, {result['seconds']:.0f} s"
    )


def finished(jobs: Iterable[Job], workers: int, store: Path, mark: str) -> dict[Job, Figures]:
    """Every job's result, from the store where it is there."""
    return done(jobs, work, workers, store, mark, told)


@dataclass(frozen=True)
class Point:
    """Means over the objects and seeds of one setting; differences are to the serial run of the same ones."""

    name: str
    steps_per_pass: float
    passes: float
    novel_db: float
    novel_loss_db: float
    input_db: float
    input_loss_db: float
    iou: float


def point(name: str, jobs: Sequence[Job], serial: Sequence[Job], results: dict[Job, Figures]) -> Point:
    def mean(field: str, of: Sequence[Job]) -> float:
        return sum(results[one][field] for one in of) / len(of)

    novel, known = mean("novel_psnr_db", jobs), mean("input_psnr_db", jobs)
    return Point(
        name,
        sum(results[one]["steps"] for one in jobs) / sum(results[one]["passes"] for one in jobs),
        mean("passes", jobs),
        novel,
        mean("novel_psnr_db", serial) - novel,
        known,
        mean("input_psnr_db", serial) - known,
        mean("novel_iou", jobs),
    )


def sweeps() -> dict[str, Settings]:
    """The settings of each sweep beside the headline's, by name; a batch size is compared with its own serial run."""
    fixed: dict[str, object] = {"window": 8, "ema": 1.0}
    front: Settings = [
        (f"{tail} e={e:g}", {**fixed, "tail": tail, "threshold": e})
        for tail in ("momentum", "copy")
        for e in (2e-5, 1e-4, 5e-4, 2e-3)
    ]
    scaled: Settings = [
        (f"scaled e={e:g}", {**fixed, "distance": "scaled", "threshold": e}) for e in (0.5, 1.0, 2.0, 4.0)
    ]
    windows: Settings = [
        (f"{tail} window {p}", {"window": p, "tail": tail})
        for tail in ("momentum", "copy")
        for p in (2, 4, 16)
    ]
    gamma: Settings = [
        (f"gamma {g:g}", {"window": 8, "ema": g, "threshold": DEFAULT_E / 100})
        for g in (0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    batch: Settings = [(f"batch {b}", {"window": 8, "batch_size": b}) for b in (1, 2, 8)]
    return {"front": front + scaled, "windows": windows, "gamma": gamma, "batch": batch}


def table_of(title: str, points: Sequence[Point]) -> Table:
    table = Table(title=title)
    for heading in ("setting", "passes", "steps a pass", "novel dB", "lost dB", "IoU", "input dB", "lost dB"):
        table.add_column(heading)
    for p in points:
        table.add_row(
            p.name, f"{p.passes:.1f}", f"{p.steps_per_pass:.2f}", f"{p.novel_db:.2f}", f"{p.novel_loss_db:+.2f}",
            f"{p.iou:.3f}", f"{p.input_db:.2f}", f"{p.input_loss_db:+.2f}",
        )  # fmt: skip
    return table


def plot(path: Path, groups: dict[str, list[Point]]) -> None:
    """Steps a pass against dB lost, novel views on the left and the input view on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharex=True)
    for ax, field, title in zip(
        axes, ("novel_loss_db", "input_loss_db"), ("novel views", "input view"), strict=True
    ):
        for name, points in groups.items():
            ordered = sorted(points, key=lambda p: p.steps_per_pass)
            xs, ys = [p.steps_per_pass for p in ordered], [getattr(p, field) for p in ordered]
            ax.plot(
                xs,
                ys,
                "*" if len(points) == 1 else "o-",
                label=name,
                markersize=11 if len(points) == 1 else 5,
            )
        ax.axhline(0.0, color="grey", linewidth=0.8)
        ax.set_xlabel("steps a pass, window 8")
        ax.set_ylabel("dB below the serial run")
        ax.set_title(title)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def weights_mark() -> str:
    """Of the options that shape a run and of the prior's weights: results of others are not taken for these."""
    from gs_propeller.app.config import load
    from gs_propeller.app.fingerprint import fingerprint
    from guidance import find_prior

    weights = Path(find_prior("pocket")) / "unet" / "diffusion_pytorch_model.safetensors"
    return fingerprint(load(["--config", "configs/image.yaml"])[0], weights.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=6, help="held-out objects of the headline")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sweep", type=int, default=2, help="objects of the sweeps; 0: headline alone")
    parser.add_argument("--jobs", type=int, default=2, help="processes, a thread each")
    parser.add_argument("--plot", type=Path, default=Path("build/bench/fidelity.png"))
    parser.add_argument(
        "--stage", type=int, default=1, choices=(1, 2), help="2: the texture's window, bench.second"
    )
    given = parser.parse_args()
    if given.stage == 2:
        from bench import second

        return second.main(given.objects, given.seeds)
    store, mark, console = Path("build/bench/fidelity.jsonl"), weights_mark(), Console(width=110)

    pairs = [(i, seed) for i in range(given.objects) for seed in range(given.seeds)]
    listed = {name: [job(i, seed, change) for i, seed in pairs]
              for name, change in (("serial", SERIAL), ("shipped", SHIPPED), ("copy", COPY))}  # fmt: skip
    wanted = [one for jobs in listed.values() for one in jobs]
    few = range(given.sweep)
    groups = sweeps() if given.sweep else {}
    serial_few = [job(i, 0, SERIAL) for i in few]
    swept = {
        (group, name): [job(i, 0, change) for i in few]
        for group, rows in groups.items()
        for name, change in rows
    }
    rivals = {key: [job(i, 0, SERIAL, {"batch_size": change["batch_size"]}) for i in few]
              for group, rows in groups.items() for name, change in rows
              if "batch_size" in change for key in [(group, name)]}  # fmt: skip
    wanted += [one for jobs in [*swept.values(), *rivals.values()] for one in jobs]
    results = finished(wanted, given.jobs, store, mark)

    headline = {name: point(name, jobs, listed["serial"], results) for name, jobs in listed.items()}
    title = f"{given.objects} held-out objects x {given.seeds} seeds, window 8"
    console.print(table_of(title, list(headline.values())))
    drawn: dict[str, list[Point]] = {}
    for group, rows in groups.items():
        points = [
            point(name, swept[group, name], rivals.get((group, name), serial_few), results)
            for name, _ in rows
        ]
        console.print(table_of(f"{group}, {given.sweep} objects, one seed", points))
        if group == "front":
            for p in points:
                drawn.setdefault(f"{p.name.split()[0]}, fixed e", []).append(p)
        if group == "gamma":
            drawn["gamma from e / 100"] = points
    drawn["shipped"] = [headline["shipped"]]
    drawn["paper's tail"] = [headline["copy"]]
    given.plot.parent.mkdir(parents=True, exist_ok=True)
    plot(given.plot, drawn)
    shipped, copy = headline["shipped"], headline["copy"]
    print(
        json.dumps(
            {
                "window": 8,
                "steps": int(results[listed["serial"][0]]["steps"]),
                "passes": round(shipped.passes, 2),
                "steps_per_pass": round(shipped.steps_per_pass, 3),
                "serial_psnr_db": round(headline["serial"].novel_db, 3),
                "parallel_psnr_db": round(shipped.novel_db, 3),
                "copy_steps_per_pass": round(copy.steps_per_pass, 3),
                "copy_psnr_db": round(copy.novel_db, 3),
                "serial_input_psnr_db": round(headline["serial"].input_db, 3),
                "parallel_input_psnr_db": round(shipped.input_db, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
