"""Whole assets of objects and models that nothing was tuned on, each in a process of its own, its figures and its sheet
kept in build/bench, so that an interrupted bench goes on: what bench.asset and bench.mesh share."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from bench.fidelity import weights_mark
from bench.kept import Figures, done, key_of, on_one_thread
from bench.page import stacked
from bench.truth import Case, cases, model_cases, save_png
from gs_propeller.app.config import Config, load, updated
from gs_propeller.app.fingerprint import CLOSING, SECOND_STAGE, fingerprint
from guidance.pocket.data import TEST_SEED, VALIDATION_SEED

STORE = Path("build/bench/whole")
# What shapes what is measured, and not the run.
SHOWN = (
    *CLOSING, "mesh_resolution", "mesh_faces", "texture_size", "bake_views", "bake_size", *SECOND_STAGE,
)  # fmt: skip

# (case, folder for the run, key=value, configuration) -> (figures, contact sheet [3, H, W])
Score = Callable[[Case, Path, list[str], str], tuple[Figures, Tensor]]


@dataclass(frozen=True)
class One:
    """The index-th of the cat and held-out objects, or of `among` models, for which bench, by which settings."""

    bench: str
    index: int
    among: int
    validation: bool
    config: str
    pairs: tuple[str, ...]

    def case(self) -> Case:
        if self.among:
            return model_cases(self.among, self.validation)[self.index]
        return cases(self.index, VALIDATION_SEED if self.validation else TEST_SEED)[-1]

    def key(self, mark: str) -> str:
        config, _ = load(["--config", self.config, *self.pairs])
        said = self.bench, self.index, self.among, self.validation, self.pairs
        return key_of(mark, *said, fingerprint(config, b"", also=SHOWN))


def asset_config(case: Case, folder: Path, pairs: list[str], config_path: str) -> Config:
    """The configuration of one object's run in `folder`, its input picture drawn there."""
    config, _ = load(["--config", config_path, "prior=pocket", *pairs])
    given = {**case.given(folder), "outdir": str(folder), "resume": False, "turntable_frames": 0}
    return updated(config, given)


def arguments(doc: str | None, bench: str, objects: int) -> argparse.ArgumentParser:
    """What both benches can be asked."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=objects, help="held-out objects")
    parser.add_argument("--models", type=int, default=12, help="models of the test split")
    parser.add_argument("--config", default="configs/image.yaml")
    parser.add_argument(
        "--validation", action="store_true", help="objects to tune on, apart from the test ones"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes, a thread each; 0: this one")
    parser.add_argument(
        "--sheet", type=Path, default=Path(f"build/bench/{bench}.png"), help="contact sheet to write"
    )
    parser.add_argument("pairs", nargs="*", help="key=value")
    return parser


def measured(
    bench: str, score: Score, given: argparse.Namespace, cat: bool
) -> tuple[dict[str, Figures], dict[str, Figures]]:
    """Figures by name of the objects, the cat before them where it is asked for, and of the models; writes the sheet of
    all. Raises SystemExit for what is no configuration."""
    settings = given.validation, given.config, tuple(given.pairs)
    objects = [One(bench, k, 0, *settings) for k in range(0 if cat else 1, given.objects + 1)]
    among = len(model_cases(given.models, given.validation))
    models = [One(bench, k, among, *settings) for k in range(among)]
    mark, jobs = weights_mark(), [*objects, *models]
    sheets = {one: sheet_of(one, mark) for one in jobs}
    results = done(
        jobs,
        partial(work, score, mark),
        given.jobs,
        STORE / "done.jsonl",
        mark,
        told,
        lambda one: sheets[one].exists(),
    )
    stacked([Image.open(sheet).convert("RGB") for sheet in sheets.values()], given.sheet)
    return by_name(results, objects), by_name(results, models)


def by_name(results: dict[One, Figures], listed: list[One]) -> dict[str, Figures]:
    return {results[one]["name"]: dict(results[one]["figures"]) for one in listed}


def work(score: Score, mark: str, one: One) -> Figures:
    """An object's figures, in a process of its own, on one thread; its sheet is kept."""
    on_one_thread()
    case = one.case()
    with tempfile.TemporaryDirectory() as folder:
        figures, sheet = score(case, Path(folder), [*one.pairs, "threads=1"], one.config)
    STORE.mkdir(parents=True, exist_ok=True)
    save_png(str(sheet_of(one, mark)), sheet)
    return {"name": case.name, "figures": figures}


def sheet_of(one: One, mark: str) -> Path:
    return STORE / f"{one.key(mark)}.png"


def told(one: One, result: Figures) -> str:
    return f"{result['name']}: " + ", ".join(
        f"{key} {value:.3f}" for key, value in result["figures"].items() if "@" not in key
    )
