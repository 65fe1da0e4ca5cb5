"""Processes that run a function together, each as one rank of a gloo group."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

PATIENCE = 120  # seconds that a function may take: a rank that waits for another one for ever fails its test


class Ranks:
    """``count`` processes, of one group; they stay, so that each test costs only what it computes."""

    def __init__(self, count: int, folder: Path):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.dts.nn.parallel.cases"])
        self.pipes, self.processes = [], []
        for rank in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, count, str(folder / "group")), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What each rank returns.  Raises AssertionError with the traceback of the first that fails, or does not
        answer: the others may wait for it for ever, so all of them end."""
        for pipe in self.pipes:
            pipe.send((function, args))
        answers: dict[int, Any] = {}
        while len(answers) < len(self.pipes):
            waiting = [rank for rank in range(len(self.pipes)) if rank not in answers]
            ready = wait([self.pipes[rank] for rank in waiting], PATIENCE)
            good, answer = ready[0].recv() if ready else (False, f"ranks {waiting} did not answer")
            if not good:
                self.end()
                raise AssertionError(answer)
            answers[self.pipes.index(ready[0])] = answer
        return [answers[rank] for rank in range(len(self.pipes))]

    def end(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join(10)


def _serve(pipe: Any, rank: int, count: int, group: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=count)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*args)))
        except BaseException:
            pipe.send((False, f"rank {rank}:\n{traceback.format_exc()}"))
