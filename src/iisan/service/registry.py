"""The served runs, and how they follow their folders: added items, a new index, another run in the same place."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from iisan.errors import DataError, IisanError
from iisan.service.metrics import Metrics
from iisan.service.served import ServedRun, State

log = logging.getLogger("iisan.service")

#: Seconds for which the files of another training have to stay as they are before they are opened.
_SETTLED = 1.0


class Registry:
    """Served runs by name. A request keeps the state of the run that it began with.

    Args:
        served: The runs, the first of which is the default.
        metrics: Metrics of the service.
    """

    def __init__(self, served: Sequence[ServedRun], metrics: Metrics) -> None:
        self._served = {each.name: each for each in served}
        self._refused: dict[str, State] = {}
        self._looked_at: dict[str, tuple[Any, float]] = {}
        self._metrics = metrics
        self._lock = asyncio.Lock()
        for each in served:
            metrics.items.labels(each.name).set(each.run.num_offered)

    def __iter__(self) -> Iterator[ServedRun]:
        return iter(list(self._served.values()))

    def get(self, name: str | None) -> ServedRun:
        """Return a run, by default the first.

        Raises:
            DataError: There is no run of that name.
        """
        if name is None:
            return next(iter(self._served.values()))
        if name not in self._served:
            raise DataError(f"unknown run '{name}'", f"one of {', '.join(self._served)}", "see GET /runs")
        return self._served[name]

    async def refresh(self, name: str) -> ServedRun:
        """Serve the state of a run's folder, if it is another one; one that cannot be opened is only logged."""
        async with self._lock:
            before = self._served[name]
            state = await asyncio.to_thread(State.of, before.folder)
            if state in (before.state, self._refused.get(name)) or not self._settled(name, state.trained):
                return before
            try:
                after = await asyncio.to_thread(ServedRun, name, before.folder, before.moved)
            except Exception as error:  # Whatever is wrong with the folder, the service goes on with what it has.
                self._refused[name] = state
                fields = {"run": name, "reason": str(error)}
                log.error(
                    "run not taken over", extra={"fields": fields}, exc_info=not isinstance(error, IisanError)
                )
                return before
            self._served[name] = after
            self._metrics.items.labels(name).set(after.run.num_offered)
            self._metrics.swaps.labels(name).inc()
            log.info("run taken over", extra={"fields": {"run": name, "items": after.run.num_offered}})
            return after

    def _settled(self, name: str, trained: Any) -> bool:
        """Whether the files of a training are those being served, or stay as they are for a while.

        A folder that is copied holds files of two runs in between.
        """
        if trained == self._served[name].state.trained:
            return True
        known, since = self._looked_at.get(name, (None, 0.0))
        if trained != known:
            self._looked_at[name] = trained, time.monotonic()
            return False
        return time.monotonic() - since >= _SETTLED

    async def follow(self, seconds: float) -> None:
        """Look for newer states again and again."""
        while True:
            await asyncio.sleep(seconds)
            for name in list(self._served):
                await self.refresh(name)
