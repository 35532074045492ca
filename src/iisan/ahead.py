"""Work that is done while the results before it are used."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ahead(function: Callable[[A], B], arguments: Iterable[A], workers: int) -> Generator[B]:
    """``map`` whose next results are computed in threads while the latest is used.

    Whoever stops early must close it, by ``contextlib.closing``: left to the garbage collection, which runs in any
    thread, its threads might be told to wait for themselves.

    Args:
        function: is called once with each argument.
        arguments: are taken in the caller's thread.
        workers: threads; without any it is ``map``.
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
