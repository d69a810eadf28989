"""Starts this machine's ranks: one process for each device, and its share of the cores."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

import torch

from gs_propeller.solver.ranks import RankError


def under_launcher() -> bool:
    """Whether torchrun, or `launch`, started this process as one of its ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(argv: Sequence[str], ranks: int, threads: int = 0, grace_s: int = 60) -> int:
    """Run `python *argv` as so many local ranks, wait for all, return the exit code for this process.

    threads: CPU threads of each rank, 0: its share of the cores. grace_s: how long ranks may take to write
    a checkpoint after Ctrl-C or a TERM, which go on to each of them once. Raises RankError when a rank dies; what
    rank 0 has to say otherwise it says on its own.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Compiled kernels size their thread pools when they are imported, so it must stand in the environment.
    share = str(threads or core_share(ranks))
    os.environ |= {"OMP_NUM_THREADS": share, "NUMBA_NUM_THREADS": share}
    # Loopback by name: gloo would look up the host's name, which containers often cannot resolve.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=grace_s,
    )
    logging.disable(logging.ERROR)  # the launcher's own tables; one line from us says it better
    try:
        elastic_launch(config, sys.executable)(*argv)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        # TERM is how the launcher ends the others once one has failed; that is nobody's own death
        killed = [rank for rank in codes if codes[rank] < 0 and codes[rank] != -signal.SIGTERM]
        if killed or 0 not in codes:  # rank 0, if it ended too, ended for that
            rank = min(killed or codes)
            raise RankError(f"rank {rank} of {ranks} died: {_ending(codes[rank])}") from None
        return codes[0] if codes[0] >= 0 else 128 - codes[0]
    except SignalException as error:
        return 128 + error.sigval
    finally:
        logging.disable(logging.NOTSET)
    return 0


def _ending(exitcode: int) -> str:
    if exitcode == -9:
        return "killed (signal 9), most often for want of memory; try fewer ranks"
    return f"signal {-exitcode}" if exitcode < 0 else f"exit code {exitcode}"


def core_share(ranks: int) -> int:
    """Cores that this process may use, over the ranks on this machine; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // ranks)


def share_cores(ranks: int, threads: int = 0) -> int:
    """Keep this process to its share of the cores, or to so many threads; returns how many."""
    import numba

    share = threads or core_share(ranks)
    # This order: numba's pool, as it starts, sets OpenMP's count, which is torch's too.
    numba.set_num_threads(min(share, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    torch.set_num_threads(share)
    return share
