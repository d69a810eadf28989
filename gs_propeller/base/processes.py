"""Processes that work for another one."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess


def pool_of(workers: int) -> ProcessPoolExecutor:
    """Spawned workers, which end with this process however it ends."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, spawn, initializer=end_with_parent)


def end_with_parent() -> None:
    """From now on this process ends as soon as the one that started it is gone, killed for instance, whatever it works
    at; else it would work on for nobody. Does nothing in a process that multiprocessing has not started."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
