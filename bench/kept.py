"""Runs in processes of their own, whose results are kept, so that an interrupted bench goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console

from gs_propeller.base.processes import pool_of


class Keyed(Protocol):
    """A job that can be pickled, hashed and told from others."""

    def key(self, mark: str) -> str: ...


def key_of(*said: object) -> str:
    """What tells a job from others, of whatever JSON holds."""
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]


def weights_of(folder: Path) -> bytes:
    """Of every network of a prior's folder, and of what was measured on them."""
    files = [*sorted(folder.rglob("*.safetensors")), *sorted(folder.glob("response.json"))]
    return hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files)).digest()


J = TypeVar("J", bound=Keyed)
Figures = dict[str, Any]  # what a run is kept as, in JSON


def done(
    jobs: Iterable[J],
    work: Callable[[J], Figures],
    workers: int,
    store: Path,
    mark: str,
    told: Callable[[J, Figures], str],
    whole: Callable[[J], bool] = lambda one: True,
) -> dict[J, Figures]:
    """Every job's result, from the store where it is there. mark: of the weights and options that decide it; told:
    the line that says how a run ended; whole: whether the files that a kept run left beside its result are still there,
    without which it is made again. workers: processes, of one thread each; 0: this one."""
    console, known = Console(), {}
    if store.exists():
        for line in store.read_text().splitlines():
            entry = json.loads(line)
            known[entry["key"]] = entry["result"]
    keys = {one: one.key(mark) for one in jobs}
    results = {one: known[key] for one, key in keys.items() if key in known and whole(one)}
    missing = [one for one in keys if one not in results]
    if missing:
        store.parent.mkdir(parents=True, exist_ok=True)
        with store.open("a") as file:
            for k, (one, result) in enumerate(_worked(missing, work, workers), start=1):
                results[one] = result
                file.write(json.dumps({"key": keys[one], "result": result, "job": repr(one)}) + "\n")
                file.flush()
                console.print(f"{k}/{len(missing)} {told(one, result)}", highlight=False)
    return results


def _worked(jobs: list[J], work: Callable[[J], Figures], workers: int) -> Iterator[tuple[J, Figures]]:
    """Each as soon as it is done."""
    if not workers:
        yield from ((one, work(one)) for one in jobs)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with pool_of(workers) as pool:
        futures = {pool.submit(work, one): one for one in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


def on_one_thread() -> None:
    """What a job's process does first."""
    import torch

    from gs_propeller.scenes.gaussians.raster.cpu import set_threads

    torch.set_num_threads(1)
    set_threads(1)
