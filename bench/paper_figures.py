"""The paper's Figures 5 and 6 here: `python -m bench.paper_figures --figure 5|6 [--systems a,b] [--objects 2]`.

Figure 5, by sentences: each system of bench.paper with one choice changed at a time, against its serial run: the window
beside 8 devices, gamma from a threshold of a hundredth, the batch. Speed-up as bench.paper models it; relative quality
is the serial runs' FID over the parallel ones', above 1 where parallel is better. Figure 6, by pictures of held-out
objects (--cat: of data/cat.png, whose truth is known too): Zero-1-to-3 on a radiance field and on Gaussians, serial and
at window 8, novel views against the truth. Prints a table, then one JSON object. Finished runs are kept in build/bench.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import paper
from bench.kept import Figures, done, key_of, on_one_thread
from gs_propeller.app.config import Config, load, updated
from gs_propeller.app.fingerprint import CLOSING, fingerprint

GAMMAS = (0.2, 0.4, 0.6, 0.8, 1.0)  # what the paper calls the adaptivity; the option is `ema`
WIDTHS = (2, 4, 7, 8, 16, 32)
BATCHES = (2, 8)
TOO_STRICT = 4.0e-6  # a hundredth of the shipped threshold
PICTURED = {"zero123_nerf": "zero123_nerf", "dreamgaussian": "image"}  # configurations
# Whose seconds of a step on an A100 are taken: the paper gives none for pictures.
STEP_LIKE = {"zero123_nerf": "dreamfusion", "dreamgaussian": "dreamgaussian"}


def choices(batch: int) -> dict[str, tuple[dict[str, object], dict[str, object]]]:
    """By name: what changes in the parallel run, and in the serial one that it is held against."""
    found: dict[str, tuple[dict[str, object], dict[str, object]]] = {
        f"window {n}": ({"window": n}, {}) for n in WIDTHS
    }
    found |= {f"gamma {g:g}": ({"ema": g, "threshold": TOO_STRICT}, {}) for g in GAMMAS}
    found |= {f"batch {n}": ({"batch_size": n}, {"batch_size": n}) for n in BATCHES if n != batch}
    return found


def figure_5(systems: Sequence[str], sentences: int, workers: int) -> dict[str, dict[str, list[float]]]:
    """{system: {choice: [speed-up, relative quality, steps a pass]}}"""

    def jobs(system: str, way: str, change: dict[str, object]) -> list[paper.Job]:
        pairs = tuple(sorted(change.items()))
        return [paper.Job(k, system, way, pairs=pairs) for k in range(sentences)]

    wanted = {
        (system, name): (jobs(system, "parallel", mine), jobs(system, "serial", other))
        for system in systems
        for name, (mine, other) in choices(
            paper.configured(paper.Job(0, system, "serial"), "").batch_size
        ).items()
    }
    flat = [one for pair in wanted.values() for listed in pair for one in listed]
    results = done(
        flat, paper.work, workers, paper.STORE / "done.jsonl", paper.mark(), paper.told, paper.whole
    )
    real = paper.truths(range(sentences), False)
    found: dict[str, dict[str, list[float]]] = {system: {} for system in systems}
    for (system, name), (mine, other) in wanted.items():
        row = paper.row_of(system, {"serial": other, "parallel": mine}, results, real)
        quality = round(row["fid"] / row["parallel_fid"], 3)
        found[system][name] = [row["modelled_speedup_at_8"], quality, row["steps_per_pass"]]
    return found


@dataclass(frozen=True)
class Picture:
    """A held-out object, by its place after the cat, by one system, serial or parallel."""

    index: int
    system: str
    way: str
    pairs: tuple[tuple[str, object], ...] = ()

    def key(self, mark: str) -> str:
        base, _ = load(["--config", f"configs/{PICTURED[self.system]}.yaml"])
        shaped = fingerprint(updated(base, dict(self.pairs)), b"", also=CLOSING)
        return key_of(mark, self.index, self.system, self.way, shaped, self.pairs)


def work(one: Picture) -> Figures:
    """A run in a process of its own, on one thread, and its views against the truth."""
    from bench.solving import in_stages, scored
    from bench.truth import cases
    from bench.whole import asset_config
    from guidance.pocket.data import TEST_SEED

    on_one_thread()
    case = cases(one.index, TEST_SEED)[-1]
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"{key}={value}" for key, value in {"window": paper.WINDOWS[one.way], **dict(one.pairs)}.items()
        ]
        config: Config = asset_config(case, Path(folder), words, f"configs/{PICTURED[one.system]}.yaml")
        runs = in_stages(config)
    setup, solved = runs[-1]
    novel, iou, known = scored(case, setup.config, solved.state)
    return {"stages": paper.told_of(runs), "novel_psnr_db": novel, "novel_iou": iou, "input_psnr_db": known}


def told(one: Picture, result: Figures) -> str:
    passes = sum(stage["passes"] for stage in result["stages"])
    return f"{one.system}, {one.way}, object {one.index}: {passes} passes, {result['novel_psnr_db']:.2f} dB"


def mark() -> str:
    from bench.fidelity import weights_mark

    return weights_mark()


def figure_6(
    objects: Sequence[int], workers: int, pairs: tuple[tuple[str, object], ...] = ()
) -> dict[str, dict[str, float]]:
    """{system: figures}"""
    listed = {
        system: {way: [Picture(k, system, way, pairs) for k in objects] for way in paper.WINDOWS}
        for system in PICTURED
    }
    flat = [one for ways in listed.values() for jobs in ways.values() for one in jobs]
    results = done(flat, work, workers, paper.STORE / "pictures.jsonl", mark(), told)
    rows: dict[str, dict[str, float]] = {}
    for system, ways in listed.items():
        row = {
            f"{'' if way == 'serial' else 'parallel_'}{key}": round(
                sum(results[one][key] for one in jobs) / len(jobs), 3
            )
            for way, jobs in ways.items()
            for key in ("novel_psnr_db", "novel_iou", "input_psnr_db")
        }
        stages = [stage for one in ways["parallel"] for stage in results[one]["stages"]]
        row["steps_per_pass"] = round(sum(s["steps"] for s in stages) / sum(s["passes"] for s in stages), 3)
        speed = paper.modelled([results[one] for one in ways["parallel"]], STEP_LIKE[system])
        rows[system] = row | {"modelled_speedup_at_8": round(speed, 3)}
    return rows


def main(words: Sequence[str] | None = None) -> None:
    from bench.ablation import parsed

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--figure", type=int, choices=(5, 6), required=True)
    parser.add_argument("--systems", default=",".join(paper.SYSTEMS), help="of Figure 5, with commas between")
    parser.add_argument("--objects", type=int, default=2, help="sentences or pictures")
    parser.add_argument("--cat", action="store_true", help="Figure 6 of data/cat.png alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes, a thread each; 0: this one")
    parser.add_argument("pairs", nargs="*", help="key=value, of every run of Figure 6")
    given = parser.parse_args(words)
    if given.figure == 5:
        found = figure_5(paper.named(given.systems, parser), given.objects, given.jobs)
        table = Table(title=f"Figure 5, {given.objects} sentences: speed-up, relative quality, steps a pass")
        for heading in ("choice", *found):
            table.add_column(heading)
        for name in dict.fromkeys(name for rows in found.values() for name in rows):
            cells = [" / ".join(f"{x:.2f}" for x in rows.get(name, ())) for rows in found.values()]
            table.add_row(name, *cells)
        Console(width=160).print(table)
        print(json.dumps(found))
        return
    which = [0] if given.cat else list(range(1, given.objects + 1))
    pairs = parsed(given.pairs)
    if "window" in pairs:
        parser.error(f"window= is what tells the two ways apart: {paper.WINDOWS}")
    rows = figure_6(which, given.jobs, tuple(sorted(pairs.items())))
    paper.show(f"Figure 6, {'the cat' if given.cat else f'{len(which)} pictures'}", rows)


if __name__ == "__main__":
    main()
