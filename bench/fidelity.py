"""The window against the serial loop: `python -m bench.fidelity [--objects 6] [--seeds 2] [--sweep 1] [--jobs 1]`.

Held-out objects, which the prior never saw, and sentences (bench/hard.py). First the shipped settings: serial, windows
of 8 and 64, and the paper's tail, on all objects and seeds. Then, with --sweep, on a few of them: both things that can
travel, at windows of 8, 16, 32, 64 and all steps, at thresholds that adapt, are fixed, or accept everything, one
evaluation for one update, the paper's loop; and rivals of equal compute: the serial loop with n times the views for as
many steps as the window took passes (data parallel), and classic Picard iteration (Eq. 5) where nothing is cloned,
split or pruned. Then sentences, as shipped and with noise down to t = 0.02. Tables, then one JSON object. Runs that are
done are kept in build/bench (of these weights and options), so an interrupted bench goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.kept import Figures, done, key_of, on_one_thread, weights_of

CLASSIC = "classic"  # of a job's pairs: no option, but the iteration of Eq. 5

SERIAL: dict[str, object] = {"window": 1}
SHIPPED: dict[str, object] = {"window": 8}
WIDE: dict[str, object] = {"window": 64}
COPY: dict[str, object] = {"window": 8, "tail": "copy"}
EVERYTHING: dict[str, object] = {"threshold": 1e9, "ema": 1.0}  # no guess is refused
PASO = "5.1 times on 8 GPUs for GPT-2, tuned data parallel 5.2 (ICML 2026)"  # published, another task: for scale alone

Settings = list[tuple[str, dict[str, object]]]  # name, and what differs from the shipped configuration


@dataclass(frozen=True)
class Job:
    """One run: which held-out object, of the test ones or those to tune on, and what differs from the shipped
    configuration."""

    index: int
    pairs: tuple[tuple[str, object], ...]
    validation: bool = False

    def key(self, mark: str) -> str:
        return key_of(mark, self.index, self.pairs, *["validation"] * self.validation)


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
    pairs = dict(one.pairs)
    classic = bool(pairs.pop(CLASSIC, False))
    return asdict(run(Case(f"{thing.family}-{thing.seed}", thing, pose), pairs, classic))


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
    """Means over the objects and seeds of one setting; differences are to the serial runs of the same ones, with their
    standard errors."""

    name: str
    steps_per_pass: float
    passes: float
    evaluations: float
    last_threshold: float
    novel_db: float
    novel_loss_db: float
    novel_error_db: float
    input_db: float
    input_loss_db: float
    iou: float


def point(name: str, jobs: Sequence[Job], serial: Sequence[Job], results: dict[Job, Figures]) -> Point:
    def mean(field: str, of: Sequence[Job]) -> float:
        return sum(results[one][field] for one in of) / len(of)

    novel, known = mean("novel_psnr_db", jobs), mean("input_psnr_db", jobs)
    gaps = [
        results[s]["novel_psnr_db"] - results[one]["novel_psnr_db"]
        for one, s in zip(jobs, serial, strict=True)
    ]
    middle = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - middle) ** 2 for gap in gaps) / max(len(gaps) - 1, 1) / len(gaps))
    return Point(
        name, sum(results[one]["steps"] for one in jobs) / sum(results[one]["passes"] for one in jobs),
        mean("passes", jobs), mean("evaluations", jobs), mean("last_threshold", jobs), novel, middle, spread, known,
        mean("input_psnr_db", serial) - known, mean("novel_iou", jobs),
    )  # fmt: skip


def sweeps() -> dict[str, Settings]:
    """The settings of each sweep beside the headline's, by name. One update an evaluation, so that T is 300 steps."""
    one: dict[str, object] = {"updates_per_evaluation": 1}
    groups: dict[str, Settings] = {}
    for travels in ("pictures", "gradients"):
        rows: Settings = []
        for window in (8, 16, 32, 64, 300):
            kinds: Settings = [("as shipped", {}), ("all accepted", EVERYTHING)]
            kinds += [(f"e={e:g}", {"threshold": e, "ema": 1.0}) for e in (1e-5, 1e-4)]
            wide = window == 300
            rows += [
                (f"window {window}, {kind}", {**one, "window": window, "travels": travels, **change})
                for kind, change in (kinds[:2] if wide else kinds)
            ]
        groups[travels] = rows
    groups["ways"] = [
        ("a = 0", {**one, "window": 64, "follows": "none"}),
        ("a = 1", {**one, "window": 64, "follows": "all"}),
        ("a = abar", {**one, "window": 64, "follows": "abar"}),
        ("the paper's distance, window 8", {**one, "window": 8, "distance": "paper"}),
        ("the paper's distance, window 64", {**one, "window": 64, "distance": "paper"}),
        ("the paper's tail, window 64", {**one, "window": 64, "tail": "copy"}),
    ]
    return groups


def table_of(title: str, points: Sequence[Point]) -> Table:
    table = Table(title=title)
    for heading in (
        "setting", "passes", "steps a pass", "evaluations", "last e", "novel dB", "lost dB", "IoU", "input dB",
        "lost dB",
    ):  # fmt: skip
        table.add_column(heading)
    for p in points:
        table.add_row(
            p.name, f"{p.passes:.1f}", f"{p.steps_per_pass:.2f}", f"{p.evaluations:.0f}", f"{p.last_threshold:.1e}",
            f"{p.novel_db:.2f}", f"{p.novel_loss_db:+.2f} ± {p.novel_error_db:.2f}", f"{p.iou:.3f}",
            f"{p.input_db:.2f}", f"{p.input_loss_db:+.2f}",
        )  # fmt: skip
    return table


def weights_mark() -> str:
    """Of the options that shape a run and of the prior's weights: results of others are not taken for these."""
    from gs_propeller.app.config import load
    from gs_propeller.app.fingerprint import CLOSING, fingerprint
    from guidance import find_prior

    weights = weights_of(Path(find_prior("pocket")))
    return fingerprint(load(["--config", "configs/image.yaml"])[0], weights, also=CLOSING)


def sentences(seeds: int, jobs: int, console: Console, few: int) -> dict[str, float]:
    """The hard case's table; figures of the shipped settings at windows 8 and 64."""
    from bench import hard

    figures: dict[str, float] = {}
    for title, change in (("sentences", {}), ("sentences, noise down to t = 0.02", hard.HARD)):
        rows = {"serial": SERIAL, "window 8": SHIPPED, "window 64": WIDE}
        if few:
            rows |= {
                "gradients, window 8": {**SHIPPED, "travels": "gradients"},
                "gradients, window 64": {**WIDE, "travels": "gradients"},
                "a = 0, window 64": {**WIDE, "follows": "none"},
                "a = abar, window 64": {**WIDE, "follows": "abar"},
            }
        listed = {
            name: [hard.job(i, seed, change, row) for i in hard.SENTENCES for seed in range(seeds)]
            for name, row in rows.items()
        }
        store = Path("build/bench/hard.jsonl")
        results = done(
            [one for group in listed.values() for one in group],
            hard.work,
            jobs,
            store,
            hard_mark(),
            hard.told,
        )
        table = Table(title=f"{title}: {len(hard.SENTENCES)} x {seeds} seeds")
        for heading in (
            "setting",
            "passes",
            "steps a pass",
            "evaluations",
            "last e",
            "judge",
            "residual dB",
            "to serial dB",
        ):
            table.add_column(heading)
        for name, group in listed.items():
            row = hard.means(group, listed["serial"], results)
            table.add_row(
                name, f"{row['passes']:.1f}", f"{row['steps_per_pass']:.2f}", f"{row['evaluations']:.0f}",
                f"{row['last_threshold']:.1e}", f"{row['judge']:.3f}", f"{row['residual_db']:.2f}",
                f"{row['to_serial_db']:.1f}",
            )  # fmt: skip
            if name in ("serial", "window 8", "window 64"):
                key = ("hard_" if change else "text_") + name.replace("window ", "w")
                figures |= {
                    f"{key}_{k}": round(row[k], 3) for k in ("steps_per_pass", "judge", "residual_db")
                }
        console.print(table)
    return figures


def hard_mark() -> str:
    from bench.text import mark

    return mark()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=6, help="held-out objects of the headline")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sweep", type=int, default=1, help="objects of the sweeps; 0: headline alone")
    parser.add_argument("--text-seeds", type=int, default=1, help="seeds of the sentences; 0: none")
    parser.add_argument("--jobs", type=int, default=2, help="processes, a thread each")
    parser.add_argument(
        "--stage", type=int, default=1, choices=(1, 2), help="2: the texture's window, bench.second"
    )
    given = parser.parse_args()
    if given.stage == 2:
        from bench import second

        return second.main(given.objects, given.seeds)
    store, mark, console = Path("build/bench/fidelity.jsonl"), weights_mark(), Console(width=130)
    pairs = [(i, seed) for i in range(given.objects) for seed in range(given.seeds)]
    shipped = (
        ("serial", SERIAL),
        ("window 8", SHIPPED),
        ("window 64", WIDE),
        ("window 8, paper's tail", COPY),
    )
    listed = {name: [job(i, seed, change) for i, seed in pairs] for name, change in shipped}
    results = finished([one for jobs in listed.values() for one in jobs], given.jobs, store, mark)
    headline = {name: point(name, jobs, listed["serial"], results) for name, jobs in listed.items()}
    console.print(
        table_of(
            f"{given.objects} held-out objects x {given.seeds} seeds, as shipped", list(headline.values())
        )
    )
    text = sentences(given.text_seeds, given.jobs, console, given.sweep) if given.text_seeds else {}
    if given.sweep:
        swept(range(given.sweep), given.jobs, store, mark, console)
    s, w8, w64, copy = headline.values()
    figures = {
        "window": 8, "steps": int(results[listed["serial"][0]]["steps"]), "passes": round(w8.passes, 2),
        "steps_per_pass": round(w8.steps_per_pass, 3), "serial_psnr_db": round(s.novel_db, 3),
        "parallel_psnr_db": round(w8.novel_db, 3), "serial_input_psnr_db": round(s.input_db, 3),
        "parallel_input_psnr_db": round(w8.input_db, 3), "w64_steps_per_pass": round(w64.steps_per_pass, 3),
        "w64_psnr_db": round(w64.novel_db, 3), "w64_input_psnr_db": round(w64.input_db, 3),
        "copy_steps_per_pass": round(copy.steps_per_pass, 3), "copy_psnr_db": round(copy.novel_db, 3),
    }  # fmt: skip
    print(json.dumps(figures | text))


def swept(few: range, workers: int, store: Path, mark: str, console: Console) -> None:
    """The sweeps' tables, and the rivals of equal compute."""
    one: dict[str, object] = {"updates_per_evaluation": 1}
    serial = [job(i, 0, SERIAL, one) for i in few]
    listed = {
        (group, name): [job(i, 0, change) for i in few]
        for group, rows in sweeps().items()
        for name, change in rows
    }
    results = finished([j for jobs in [serial, *listed.values()] for j in jobs], workers, store, mark)
    for group, rows in sweeps().items():
        points = [point(name, listed[group, name], serial, results) for name, _ in rows]
        console.print(
            table_of(
                f"{group}, {len(few)} objects, one seed", [point("serial", serial, serial, results), *points]
            )
        )
    rivals: dict[str, list[Job]] = {}
    for window in (8, 64):
        passes = [
            results[listed["pictures", f"window {window}, as shipped"][k]]["passes"] for k in range(len(few))
        ]
        rivals[f"data parallel, {window} x 4 views, as many steps as window {window} took passes"] = [
            job(i, 0, SERIAL, one, scaled_to(int(p)), {"batch_size": 4 * window})
            for i, p in zip(few, passes, strict=True)
        ]
    found = finished([j for jobs in rivals.values() for j in jobs], workers, store, mark)
    points = [point(name, jobs, serial, results | found) for name, jobs in rivals.items()]
    console.print(table_of("rivals of equal compute", points))
    still: dict[str, object] = {**one, "densify_until": 0}
    alone = [job(i, 0, SERIAL, still) for i in few]
    kinds: Settings = [
        ("this one", {"window": 8, **still}),
        ("classic", {"window": 8, **still, CLASSIC: True}),
    ]
    fixed = {name: [job(i, 0, change) for i in few] for name, change in kinds}
    found = finished([j for jobs in [alone, *fixed.values()] for j in jobs], workers, store, mark)
    points = [point(name, jobs, alone, found) for name, jobs in fixed.items()]
    console.print(table_of("window 8 where dimensions are fixed", points))
    console.print(f"for scale: parallel in time for training loops, published: {PASO}", highlight=False)


def scaled_to(steps: int) -> dict[str, object]:
    """The schedule of 300 steps squeezed into so many; rates stay."""
    share = steps / 300
    return {
        "steps": steps, "position_lr_steps": max(1, round(300 * share)), "densify_from": round(50 * share),
        "densify_until": round(210 * share), "densify_every": max(1, round(50 * share)),
    }  # fmt: skip


if __name__ == "__main__":
    main()
