"""Prefetching: results are computed in threads while earlier ones are used."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ahead(function: Callable[[A], B], arguments: Iterable[A], workers: int) -> Generator[B]:
    """``map`` that computes the next results in threads while the caller uses the current one.

    To stop early, close the generator (``contextlib.closing``): if garbage collection closed it in one of its own
    threads, that thread would wait for itself.

    Args:
        function: Function of one argument.
        arguments: Arguments, iterated in the caller's thread.
        workers: Number of threads; with 0, this is plain ``map``.
    """
    if not workers:
        yield from map(function, arguments)
        return
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[B]] = deque()
    try:
        for argument in arguments:
            waiting.append(pool.submit(function, argument))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
