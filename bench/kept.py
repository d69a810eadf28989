"""Runs in processes of their own, whose results are kept, so that an interrupted bench goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console


class Keyed(Protocol):
    """A job that can be pickled, hashed and told from others."""

    def key(self, mark: str) -> str: ...


J = TypeVar("J", bound=Keyed)
Figures = dict[str, Any]  # what a run is kept as, in JSON


def done(
    jobs: Iterable[J],
    work: Callable[[J], Figures],
    workers: int,
    store: Path,
    mark: str,
    told: Callable[[J, Figures], str],
) -> dict[J, Figures]:
    """Every job's result, from the store where it is there. mark: of the weights and the code that decide it; told:
    the line that says how a run ended. Processes have one thread each."""
    console, results = Console(), {}
    known = {}
    if store.exists():
        for line in store.read_text().splitlines():
            entry = json.loads(line)
            known[entry["key"]] = entry["result"]
    wanted = list(dict.fromkeys(jobs))
    missing = [one for one in wanted if one.key(mark) not in known]
    results = {one: known[one.key(mark)] for one in wanted if one.key(mark) in known}
    if missing:
        store.parent.mkdir(parents=True, exist_ok=True)
        os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context) as pool, store.open("a") as file:
            futures = {pool.submit(work, one): one for one in missing}
            for k, future in enumerate(as_completed(futures), start=1):
                one, result = futures[future], future.result()
                results[one] = result
                file.write(json.dumps({"key": one.key(mark), "result": result, "job": repr(one)}) + "\n")
                file.flush()
                console.print(f"{k}/{len(missing)} {told(one, result)}", highlight=False)
    return results


def on_one_thread() -> None:
    """What a job's process does first."""
    import torch

    from gs_propeller.scenes.gaussians.raster.cpu import set_threads

    torch.set_num_threads(1)
    set_threads(1)
