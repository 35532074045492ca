"""Requests that arrive within milliseconds of each other are computed together.

A query alone reads all item vectors; several together read them once.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from iisan.data.sequences import Index
from iisan.service.served import Answer, ServedRun

T = TypeVar("T")


@dataclass(frozen=True)
class Query:
    """A list that is asked for.

    Attributes:
        served: The run, as it was when the request came.
        history: Rows of the items of the history.
        k: Length of the list.
        selection: Arguments of ``ListMaker.select`` as JSON.
        answer: Receives the list.
        arrived: Time of arrival in seconds.
    """

    served: ServedRun
    history: Index
    k: int
    selection: str
    answer: "asyncio.Future[Answer]"
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Computes lists, and whatever else reads runs, in one thread beside the event loop.

    Args:
        wait: Seconds that a query waits for others. A query that waited for a computation to end waits no longer.
        size: Most queries that are computed together.
        observe: Callback that receives the size of every batch.
    """

    def __init__(self, wait: float, size: int, observe: Callable[[int], None]) -> None:
        self._wait, self._size, self._observe = wait, size, observe
        self._queries: asyncio.Queue[Query] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "lists")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to compute queries, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop; queries that wait are cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    @property
    def alive(self) -> bool:
        """Whether queries are computed."""
        return self._task is not None and not self._task.done()

    async def compute(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the thread of the lists."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def list(self, served: ServedRun, history: Index, k: int, selection: str) -> Answer:
        """Return the list of one query, computed together with those of others."""
        answer = asyncio.get_running_loop().create_future()
        await self._queries.put(Query(served, history, k, selection, answer))
        return await answer

    async def _run(self) -> None:
        while True:
            batch = [await self._queries.get()]
            await asyncio.sleep(max(0.0, batch[0].arrived + self._wait - time.monotonic()))
            while len(batch) < self._size and not self._queries.empty():
                batch.append(self._queries.get_nowait())
            batch = [query for query in batch if not query.answer.done()]  # Some gave up.
            self._observe(len(batch))
            for query, found in await self.compute(_answers, batch):
                if query.answer.done():
                    continue
                if isinstance(found, Answer):
                    query.answer.set_result(found)
                else:
                    query.answer.set_exception(found)


def _answers(batch: list[Query]) -> list[tuple[Query, Answer | Exception]]:
    """Compute the queries of each run and selection together; what fails fails for these alone."""
    groups = defaultdict(list)
    for query in batch:
        groups[query.served, query.selection].append(query)
    answers: list[tuple[Query, Answer | Exception]] = []
    for (served, selection), queries in groups.items():
        histories, longest = [query.history for query in queries], max(query.k for query in queries)
        try:
            found = served.lists(histories, longest, selection)
        except Exception as error:
            answers += [(query, error) for query in queries]
        else:
            answers += [(query, each.first(query.k)) for query, each in zip(queries, found, strict=True)]
    return answers
