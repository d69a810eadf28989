"""Ranks: one program on several devices, each of which takes its share of the window's drifts.

W ranks in a group, slots: the window's states. Several groups may share the processes of a launch, each with its own
rank 0, taking jobs from one queue. Rank 0 asks and rolls out; the others serve until told to stop. A drift is a
function of (parameters, step) alone, so the result depends neither on the number of ranks (each of as many threads) nor
on who computes which slot nor on when it is asked for: a slot of the next pass may be sent while this one is still
rolled out (`expect`), and a drift is handed on as soon as it is there. What travels, always between rank 0 and one
other, for errors to name:
    to a rank     ASK, slots, numbers of the table  | step and shapes of each slot | parameters, float32, flat
               or ASK, 0, 0: nothing to do, rank 0 lives
               or BEGIN, number of the job, rank 0's note of it
               or STOP, 0, 0
    and back      DONE, numbers of the table, 0     | shapes of each result | results, float32, flat
               or FAILED, bytes, whether a gradient was not finite | the traceback, or what that says, utf-8
Records of tensors travel (`Record`), whatever they are; no lineage does. All goes through the host's memory, by gloo:
pictures and parameters are a few megabytes, and a lost rank then never blocks the others' device. Nothing is pickled,
and every wait of a group ends at the timeout.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gs_propeller.base.errors import RankError
from gs_propeller.solver.dealing import Deal, Group
from gs_propeller.solver.meeting import Lost, lost, of_this_start
from gs_propeller.solver.wire import Record, numbers_in, packed, unpacked

Compute = Callable[
    [Sequence[Any], Sequence[int]], Sequence[Any]
]  # a rank's slots, params and steps -> results
Sent = tuple[dist.Work | None, Tensor]  # a send under way, and the tensor that it still reads

ASK, BEGIN, STOP, DONE, FAILED = range(5)


class Result(Record, Protocol):
    """What comes back: at(state) is the drift that the solver is given, of the state that was asked about."""

    def at(self, state: Any) -> Any: ...


class Ranks:
    """This process among the ranks of its group; alone where no launcher started it. A context manager.

    On rank 0 `begin` says which job comes and `evaluate` is the solver's dear call; leaving the context stops the
    others. On the others `serve` returns when it does. timeout_s: of every wait, so longer than any rank's longest
    computation or loading; also how long the others wait for rank 0's next request. group: ranks in a group, 0: all.
    kinds: the classes of the parameters and of the results, records both. deal_seed, at_once, rollout: how a pass is
    dealt (dealing.py).
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        timeout_s: float = 600.0,
        group: int = 0,
        kinds: tuple[Any, Any] | None = None,
        deal_seed: int | None = None,
        at_once: int = 1,
        rollout: str = "auto",
    ):
        if timeout_s <= 0.0:
            raise ValueError(f"timeout_s must be above 0, got {timeout_s}")
        process, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.processes, self.world = processes, group or processes
        if processes % self.world:
            raise ValueError(f"{processes} ranks do not split into groups of {group}")
        self.first = process // self.world * self.world
        self.parent = os.getppid()  # the launcher
        self.rank = process - self.first
        self.compute: Compute = _no_job
        self.unprepared: Exception | None = None
        self.note = 0
        self.device = torch.device(device)
        self.claimed = 0
        self.kinds, self.deal = kinds, Deal(self.world, rollout, deal_seed, at_once)
        self.store: dist.Store | None = None
        if processes > 1:
            timeout = timedelta(seconds=timeout_s)
            with lost(0):
                store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
                self.store = of_this_start(store, process, processes, timeout_s)
                dist.init_process_group(
                    "gloo", store=self.store, rank=process, world_size=processes, timeout=timeout
                )
                if self.rank == 0:
                    self.store.set(f"leader/{self.first}", f"{os.getpid()}@{socket.gethostname()}")

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Tell the others to stop, and leave. Twice does no harm."""
        if not dist.is_initialized():
            return
        if self.rank == 0:
            with suppress(RankError):
                self._drain()
            for other in range(1, self.world):
                try:
                    dist.send(torch.tensor([STOP, 0, 0]), self.first + other)
                except RuntimeError:
                    continue  # it is gone already
        dist.destroy_process_group()

    def claim(self) -> int:
        """The number of the next job that no group has taken, from 0; on rank 0 of a group."""
        if self.store is not None:
            return int(self.store.add("jobs", 1)) - 1
        self.claimed += 1
        return self.claimed - 1

    def all_done(self, skipped: int) -> int:
        """Jobs skipped by all groups, once every group is done: on the first rank 0; the others' answer is 0.

        A process that ended with an error would have the launcher end all others, so only the first may, and last.
        """
        if self.store is None:
            return skipped
        self.store.add("skipped", skipped)
        self.store.add("done", 1)
        if self.first:
            return 0
        while self.store.add("done", 0) < self.processes // self.world:
            time.sleep(0.1)  # a group that dies takes this process with it: the launcher sees to that
        return int(self.store.add("skipped", 0))

    def begin(self, job: int, compute: Compute, note: int = 0) -> None:
        """What is asked next belongs to this job; compute: rank 0's own share of it; note: what rank 0 found out that
        the others need to prepare it."""
        self._drain()
        self.compute = compute
        for other in range(1, self.world):
            self._send(torch.tensor([BEGIN, job, note]), other)

    def turn_to(self, kinds: tuple[Any, Any], deal_seed: int | None, at_once: int) -> None:
        """What travels for the job that has begun, how it is dealt, and how many slots at once; it has costs of its
        own."""
        self.kinds = kinds
        self.deal.turn_to(deal_seed, at_once)

    def expect(self, state: Any, step: int) -> None:
        """A state and step that the next `evaluate` will hold, in its order: another rank may begin with it now."""
        if self.deal.ahead:
            group = self.deal.one((state, step))
            if self.deal.full(group):
                self._ask(group)

    def evaluate(self, states: Sequence[Any], steps: Sequence[int]) -> Iterator[Any]:
        """Drifts of all slots, in their order, each as soon as it is there; on rank 0 alone. Raises RankError, or what
        compute raises, once no answer is left on the wire."""
        if self.processes > 1 and os.getppid() != self.parent:
            raise RankError("the launcher died; its ranks end too, before another run takes their place")
        wanted = list(zip(states, steps, strict=True))
        if not self.deal.begins(wanted):
            self._drain()  # what was expected is not what is wanted
        self.deal.whole(wanted)
        for group in self.deal.groups:
            self._ask(group)
        for rank in set(range(1, self.world)) - {group.rank for group in self.deal.groups}:
            self._send(torch.tensor([ASK, 0, 0]), rank)  # nothing to do: it shall know that we live
        where = {step: (group, k) for group in self.deal.groups for k, step in enumerate(group.steps)}
        try:
            for state, step in wanted:
                group, k = where[step]
                results = self._results(group)
                if step == group.steps[-1]:
                    self.deal.groups.remove(group)
                begun_s = time.monotonic()
                yield results[k].at(state)
                self.deal.took(rollout_s=time.monotonic() - begun_s)
        except (Exception, GeneratorExit) as error:
            if isinstance(error, Lost):
                self.deal.cleared()  # nothing goes on from here: whoever leaves shall not wait for what never comes
            else:
                self._drain()  # an answer left on the wire would pass for the next one
            raise

    def _results(self, group: Group) -> Sequence[Result]:
        """A group's, computed here or waited for; what this rank has to compute in the same round comes first."""
        if group.results is None and group.rank:
            for own in self.deal.due(group):
                self._results(own)
            group.results = self._collect(group)
        elif group.results is None:
            begun_s = time.monotonic()
            group.results = self.compute(group.params, group.steps)
            self.deal.took(drift_s=(time.monotonic() - begun_s) / len(group.slots))
        return group.results

    def _drain(self) -> None:
        """No answer is under way when this returns, and nothing is asked for."""
        for group in self.deal.cleared():
            if group.rank and group.asked and group.results is None:
                with suppress(FloatingPointError):
                    try:
                        self._collect(group)
                    except Lost:
                        raise
                    except RankError:
                        continue  # its compute failed: that was an answer

    def serve(self, prepare: Callable[[int], Compute]) -> None:
        """Compute what rank 0 asks for, until it says stop. Raises RankError when rank 0 is lost.

        prepare(job) -> compute, rank 0's note of it being in `note`; what it raises goes to rank 0 with the first
        answer. Ctrl-C and TERM are rank 0's to answer: it ends its pass, which needs this rank, and then says stop.
        """
        handlers = {sign: signal.signal(sign, signal.SIG_IGN) for sign in (signal.SIGINT, signal.SIGTERM)}
        served, sending = threading.Event(), list[Sent]()
        threading.Thread(target=self._watch, args=(served,), daemon=True).start()
        try:
            while True:
                command, number, columns = self._recv(torch.empty(3, dtype=torch.int64), 0).tolist()
                if command == STOP:
                    return
                if command == BEGIN:
                    self.note, self.unprepared = columns, None
                    try:
                        self.compute = prepare(number)
                    except Exception as error:
                        self.unprepared = error
                elif number:
                    # no wait for rank 0, which may be rolling out: the next slots are under way
                    sending = [s for s in sending if s[0] is not None and not s[0].is_completed()]
                    sending += self._answer(number, columns)
        finally:
            served.set()
            for sign, handler in handlers.items():
                signal.signal(sign, handler)

    def _watch(self, served: threading.Event) -> None:
        """Ends this process soon after rank 0 has died on the same machine.

        Mostly the wait for its next request fails at once, and says so better; but a connection that breaks at an
        unlucky moment leaves the wait to its timeout, minutes later.
        """
        if self.store is None:
            return
        pid, host = self.store.get(f"leader/{self.first}").decode().split("@", 1)
        while host == socket.gethostname() and not served.wait(1.0):
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                if not served.wait(3.0):
                    print(
                        f"error: rank {self.first} was lost: its process is gone", file=sys.stderr, flush=True
                    )
                    os._exit(3)
            except PermissionError:
                return  # it lives, as somebody else

    def _ask(self, group: Group) -> None:
        """Begin to send a rank its slots, once: no more of them come to this group."""
        if group.asked:
            return
        group.asked = True
        if group.rank:
            table, body = packed(group.params)
            header = torch.tensor([ASK, len(group.slots), len(table) + len(group.slots)])
            messages = [header, torch.cat([torch.tensor(group.steps), table]), body]
            with lost(self.first + group.rank):
                group.sends = [
                    (dist.isend(message, self.first + group.rank), message) for message in messages
                ]

    def _answer(self, slots: int, numbers: int) -> list[Sent]:
        """A rank's side of one request; the sends of its answer."""
        table = self._recv(torch.empty(numbers, dtype=torch.int64), 0)
        steps, shapes = table[:slots].tolist(), table[slots:]
        body = self._recv(torch.empty(numbers_in(shapes)), 0).to(self.device)
        try:
            if (
                self.unprepared is not None
            ):  # before its job's kinds are looked at: they may be another's, or none
                raise self.unprepared
            assert self.kinds is not None
            results = self.compute(unpacked(shapes, body, self.kinds[0]), steps)
            shapes, body = packed(results)
            messages = [torch.tensor([DONE, len(shapes), 0]), shapes, body]
        except Exception as error:  # whatever it is: rank 0 raises it with this traceback, and decides
            broken = isinstance(error, FloatingPointError)  # it says all there is to say
            text = (str(error) if broken else traceback.format_exc()).encode()
            body = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            messages = [torch.tensor([FAILED, len(body), int(broken)]), body]
        with lost(self.first):
            return [(dist.isend(message, self.first), message) for message in messages]

    def _collect(self, group: Group) -> list[Result]:
        """The answer of a rank. Raises Lost when the rank is, else what it reports."""
        rank = group.rank
        assert group.asked and self.kinds is not None
        with lost(self.first + rank):
            for work, _ in group.sends:
                if work is not None:
                    work.wait()
        status, size, broken = self._recv(torch.empty(3, dtype=torch.int64), rank).tolist()
        if status == FAILED:
            text = bytes(self._recv(torch.empty(size, dtype=torch.uint8), rank).tolist()).decode()
            name = f"rank {self.first + rank} of {self.processes}"
            group.results = []
            raise FloatingPointError(f"{name}: {text}") if broken else RankError(f"{name} failed:\n{text}")
        shapes = self._recv(torch.empty(size, dtype=torch.int64), rank)
        body = self._recv(torch.empty(numbers_in(shapes)), rank).to(self.device)
        return unpacked(shapes, body, self.kinds[1])

    def _send(self, message: Tensor, rank: int) -> None:
        with lost(self.first + rank):
            dist.send(message, self.first + rank)

    def _recv(self, into: Tensor, rank: int) -> Tensor:
        with lost(self.first + rank):
            dist.recv(into, self.first + rank)
        return into


def _no_job(params: Sequence[Any], steps: Sequence[int]) -> list[Result]:
    raise RankError("no job has begun")
