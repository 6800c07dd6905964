"""Threads that each compute on one core of a CPU. torch's own threads wait for each other after each operation; if
operations are small, this takes longer than the work."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def is_cpu(device: torch.device) -> bool:
    """Whether the device is a CPU: threads can share its work, and reading a number from a tensor costs nothing."""
    return device.type == "cpu"


@contextmanager
def one_core() -> Iterator[None]:
    """Compute in one thread, because the last digits of sums depend on the number of threads."""
    threads = torch.get_num_threads()
    try:
        if threads > 1:  # in a thread of `mapped`, which has one, setting it would change later threads
            torch.set_num_threads(1)
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def mapped(function: Callable[[T], R], things: Iterable[T]) -> list[R]:
    """function(thing) for each thing, in as many threads as torch may use; each result is computed on one core."""
    n_threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    if n_threads == 1:
        return [function(thing) for thing in things]
    dtype, autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")

    def in_thread(thing: T) -> R:
        # Each thread has modes of its own.
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", dtype, autocast):
            return function(thing)

    return list(_pool(n_threads).map(in_thread, things))


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Threads in which torch uses one core each. They are kept: making them changes the number for other threads."""
    pool, all_here = ThreadPoolExecutor(n_threads), Barrier(n_threads)

    def take_one_core(_: int) -> None:
        torch.get_num_threads()  # on its first use of torch, a thread takes the common number
        torch.set_num_threads(1)
        all_here.wait()

    list(pool.map(take_one_core, range(n_threads)))
    torch.set_num_threads(n_threads)
    return pool


# A forked process inherits the pool, but none of its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)
