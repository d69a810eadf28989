"""One setting of the loop changed at a time: `python -m bench.ablation [--jobs 1] [key=value ...]`.

On validation objects, which neither the prior nor the other benches use; serial runs of the shipped image
configuration, changed by the pairs given. Prints a table and one JSON object. Finished runs are kept in
build/bench (of these weights and options), so an interrupted bench goes on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.fidelity import SERIAL, Settings, finished, job, point, weights_mark

OBJECTS = (2, 5, 11, 17)  # bird, house, beast, toy
CHOICES: Settings = [
    ("guidance 2", {"guidance_scale": 2.0}),
    ("guidance 3", {"guidance_scale": 3.0}),
    ("guidance 5", {"guidance_scale": 5.0}),
    ("t_min 0.02 (DreamGaussian)", {"t_min": 0.02}),
    ("t_min 0.4", {"t_min": 0.4}),
    ("t_min 0.8", {"t_min": 0.8}),
    ("t drawn uniformly", {"anneal_t": False}),
    ("every level as hard (sds_weight=clean)", {"sds_weight": "clean"}),
    ("the same, a third of the weight", {"sds_weight": "clean", "lambda_sds": 0.3}),
    ("batch 2", {"batch_size": 2}),
    ("batch 8", {"batch_size": 8}),
    ("render at 128 px", {"render_size": 128}),
    ("reference at 256 px", {"reference_size": 256}),
    ("half the backdrops black", {"invert_background": 0.5}),
    ("opacity regulariser 30", {"lambda_opacity": 30.0}),
    ("scale regulariser 1000", {"lambda_scale": 1000.0}),
    ("colour weight 3000", {"lambda_rgb": 3000.0, "lambda_mask": 300.0}),
    ("colour weight 1000", {"lambda_rgb": 1000.0, "lambda_mask": 100.0}),
    ("3000 Gaussians at first", {"num_points": 3000}),
    ("elevations to 20 deg", {"min_elevation": -20.0, "max_elevation": 20.0}),
    ("200 steps", {"steps": 200, "densify_until": 140, "position_lr_steps": 200}),
    ("500 steps", {"steps": 500, "densify_until": 350, "position_lr_steps": 500}),
]


def parsed(pairs: list[str]) -> dict[str, object]:
    """key=value pairs with JSON values, words where JSON has none."""
    result: dict[str, object] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        try:
            result[key] = json.loads(text)
        except json.JSONDecodeError:
            result[key] = text
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes, a thread each")
    parser.add_argument("--only", nargs="*", help="choices whose names contain one of these; default: all")
    parser.add_argument("pairs", nargs="*", help="key=value, of every run")
    parser.add_argument("--stage", type=int, default=1, choices=(1, 2), help="2: the texture's, bench.second")
    given = parser.parse_args()
    if given.stage == 2:
        from bench import second

        return second.ablation()
    always = {**SERIAL, **parsed(given.pairs)}
    chosen = [c for c in CHOICES if given.only is None or any(word in c[0] for word in given.only)]
    listed = {
        name: [job(i, 0, always, change, validation=True) for i in OBJECTS]
        for name, change in [("shipped", {}), *chosen]
    }
    results = finished(
        [one for jobs in listed.values() for one in jobs],
        given.jobs,
        Path("build/bench/ablation.jsonl"),
        weights_mark(),
    )
    points = [point(name, jobs, listed["shipped"], results) for name, jobs in listed.items()]
    table = Table(title=f"{len(OBJECTS)} validation objects, one seed, serial")
    for heading in ("choice", "novel dB", "gained", "IoU", "input dB", "gained"):
        table.add_column(heading)
    for p in points:
        table.add_row(
            p.name, f"{p.novel_db:.2f}", f"{-p.novel_loss_db:+.2f}", f"{p.iou:.3f}", f"{p.input_db:.2f}",
            f"{-p.input_loss_db:+.2f}",
        )  # fmt: skip
    Console(width=110).print(table)
    print(json.dumps({p.name: [round(p.novel_db, 3), round(p.iou, 4), round(p.input_db, 3)] for p in points}))


if __name__ == "__main__":
    main()
