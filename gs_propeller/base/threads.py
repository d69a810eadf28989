"""Threads of the compiled kernels: plain Python threads that run the same code on different parts.

A kernel releases the interpreter's lock and takes (part, parts) last. Numba's own `parallel=True` lost: its thread
pools are unsafe either after a fork (omp) or when entered from two threads (workqueue), and it would be a second
compilation whose bits need not be the first's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_threads: int | None = None
_pool: tuple[int, ThreadPoolExecutor] | None = None


def set_threads(threads: int | None) -> None:
    """Threads that kernels use, at least 1; None: as many as torch."""
    global _threads
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    _threads = threads


def get_threads() -> int:
    return torch.get_num_threads() if _threads is None else _threads


def _forget_pool() -> None:
    """A forked child inherits the pool but not its threads."""
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)


def run(kernel: Callable[..., None], *args: Any) -> None:
    """kernel(*args, part, parts) for every part; one thread starts no pool."""
    global _pool
    parts = get_threads()
    if parts == 1:
        kernel(*args, 0, 1)
        return
    if _pool is None or _pool[0] != parts:
        _pool = (parts, ThreadPoolExecutor(parts - 1, thread_name_prefix="kernels"))
    others = [_pool[1].submit(kernel, *args, part, parts) for part in range(1, parts)]
    kernel(*args, 0, parts)
    for other in others:
        other.result()
