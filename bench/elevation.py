"""The elevation that a run finds out: `python -m bench.elevation [--objects 8] [--models 8] [key=value ...]`.

Pictures of held-out objects and of models of the test split, each from an elevation drawn evenly from -5 to 30 degrees
that no run is told; and from those of the other benches, of which two in five are level. Mean error in degrees, beside
that of taking 0 for all and of the constant that would have been best, which nobody knows beforehand. Then, for as many
of each as asked for, the asset by the true elevation, by the estimate and by 0, at 16 novel views whose cameras are the
truth's: a tilted asset scores as it looks. Prints a table and one JSON object. Finished runs are kept in build/bench.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from bench.kept import Figures
from bench.truth import (
    SCORE_PX,
    Case,
    asset_cameras,
    cases,
    mask_iou,
    model_cases,
    novel_angles,
    over_white,
    psnr_db,
)
from bench.whole import arguments, asset_config, measured
from gs_propeller.app.config import load
from gs_propeller.app.elevation import estimated
from gs_propeller.app.guides import load_priors, picture_of
from gs_propeller.base.options import AUTO
from guidance.pocket.data import TEST_SEED, VALIDATION_SEED
from guidance.pocket.render import fitted, outline
from main_propeller import make_asset

LOWEST_DEG, HIGHEST_DEG = -5.0, 30.0  # as far as the pocket prior's own known views reach, and a little more
OBJECTS, MODELS = 60, 128  # pictures of each that an elevation is found for


def lifted(case: Case) -> Case:
    """The object seen from an elevation of its own, framed anew."""
    rng = np.random.default_rng(list(case.name.encode()))
    pose = replace(case.pose, elevation_rad=math.radians(rng.uniform(LOWEST_DEG, HIGHEST_DEG)))
    scale, offset = fitted(outline(case.thing), pose.azimuth_rad, pose.elevation_rad)
    return Case(case.name, case.thing.moved(scale, offset), pose)


def score(case: Case, folder: Path, pairs: list[str], config_path: str) -> tuple[Figures, Tensor]:
    """One object's measures by the three elevations, and a contact sheet [3, H, W]: truth, and the three."""
    case = lifted(case)
    azimuths, elevations = novel_angles(case.pose)
    rgba = case.truth(azimuths, elevations)
    truth = over_white(rgba)
    rows = [truth]
    config = asset_config(case, folder, pairs, config_path)
    figures: Figures = {"true_deg": config.elevation}
    for name, told in (("true", config.elevation), ("auto", AUTO), ("level", 0.0)):
        asset = make_asset(config.but(elevation=told, name=f"{case.name}-{name}"), quiet=True)
        image, alpha = asset.viewer.views(asset_cameras(azimuths, elevations), SCORE_PX)
        figures[f"{name}_psnr_db"] = psnr_db(image, truth)
        figures[f"{name}_iou"] = mask_iou(alpha, rgba[:, 3:])
        if name == "auto":
            figures["auto_deg"] = asset.viewer.config.elevation
        rows.append(image)
    return figures, torch.cat([torch.cat(list(x[:16:2]), 2) for x in rows], 1)


def errors(validation: bool, config_path: str, pairs: list[str]) -> dict[str, Figures]:
    """Mean errors in degrees, of the estimate, of 0 and of the best constant, by kind of picture."""
    seed = VALIDATION_SEED if validation else TEST_SEED
    config, _ = load(["--config", config_path, "prior=pocket", *pairs, "input=unread.png"])
    prior, found = load_priors(config, torch.device("cpu")).zero123, {}
    assert prior is not None
    kinds = {"objects": cases(OBJECTS, seed)[1:], "models": model_cases(MODELS, validation)}
    with tempfile.TemporaryDirectory() as folder:
        for kind, known in kinds.items():
            for drawn in ("evenly", "as posed") if known else ():
                shown = [lifted(case) if drawn == "evenly" else case for case in known]
                truth, guessed = [], []
                for case in track(shown, f"{kind}, {drawn}", transient=True):
                    given = config.but(**case.given(Path(folder)))
                    picture = picture_of(given)
                    assert picture is not None
                    truth.append(given.elevation)
                    guessed.append(estimated(given, picture, prior))
                found[f"{kind}, {drawn}"] = wrong(np.array(truth), np.array(guessed))
    return found


def wrong(truth: np.ndarray, guessed: np.ndarray) -> Figures:
    """Mean and median absolute errors of elevations [N], degrees."""
    off = np.abs(guessed - truth)
    return {
        "pictures": len(truth),
        "auto_deg": round(float(off.mean()), 2),
        "auto_median_deg": round(float(np.median(off)), 2),
        "level_deg": round(float(np.abs(truth).mean()), 2),
        "constant_deg": round(float(np.abs(truth - np.median(truth)).mean()), 2),
    }


def main() -> None:
    parser = arguments(__doc__, "elevation", 8)
    parser.set_defaults(models=8)
    given = parser.parse_args()
    console = Console(width=120)
    result: Figures = {"degrees": errors(given.validation, given.config, given.pairs)}
    console.print(result["degrees"])
    for kind, rows in zip(("objects", "models"), measured("elevation", score, given, cat=False), strict=True):
        if rows:
            console.print(tabled(kind, rows))
            means = {
                key: sum(row[key] for row in rows.values()) / len(rows) for key in next(iter(rows.values()))
            }
            result[kind] = {"count": len(rows)} | {
                k: round(v, 3) for k, v in means.items() if "_deg" not in k
            }
    print(json.dumps(result))


def tabled(kind: str, rows: dict[str, Figures]) -> Table:
    table = Table(title=f"{len(rows)} {kind}, 16 novel views at {SCORE_PX} px: dB / IoU by elevation")
    for heading in ("", "true, deg", "estimate, deg", "true", "estimate", "0"):
        table.add_column(heading)
    for name, row in rows.items():
        cells = [f"{row[f'{k}_psnr_db']:.2f} / {row[f'{k}_iou']:.3f}" for k in ("true", "auto", "level")]
        table.add_row(name, f"{row['true_deg']:.1f}", f"{row['auto_deg']:.0f}", *cells)
    return table


if __name__ == "__main__":
    main()
