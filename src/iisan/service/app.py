"""The service: routes over served runs."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

from fastapi import Depends, FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BeforeValidator
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp

from iisan.errors import ConfigError, DataError, EncoderError, IisanError, MissingExtraError, RunError, StoreError
from iisan.names import IMAGE
from iisan.serve.items import remove_items
from iisan.service import schemas
from iisan.service.adding import add
from iisan.service.batching import Batcher
from iisan.service.guard import FAULT, LIMITS, Guard, Limits, Refused
from iisan.service.metrics import Metrics
from iisan.service.registry import Registry
from iisan.service.schemas import MAX_ID, MAX_K
from iisan.service.served import ServedRun

T = TypeVar("T")

log = logging.getLogger("iisan.service")

#: Seconds between looks at the folders of the runs.
_FOLLOW = 1.0
_PAGE = files("iisan.service") / "page"
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

#: Paths are as they were sent, see ``Guard``, so that an id may contain a slash.
ItemId = Annotated[str, BeforeValidator(unquote), InPath(min_length=1, max_length=MAX_ID)]
RunName = Annotated[
    str | None, Query(max_length=MAX_ID, description="Name of a served run; by default the first.")
]
Many = Annotated[int, Query(ge=1, le=MAX_K)]
#: The token is checked by ``Guard`` before a body is read; this describes it.
_TOKEN = [Depends(HTTPBearer(auto_error=False))]


def _problems(descriptions: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Describe errors for the OpenAPI description, by status."""
    return {status: {"model": schemas.Problem, "description": text} for status, text in descriptions.items()}


_PROBLEMS = _problems(
    {
        400: "Foreign host, or an unreadable request.",
        403: "Foreign origin.",
        404: "Unknown item, run or page.",
        408: "The body took too long.",
        413: "The body is too large.",
        422: "Something in the request cannot be used.",
        503: "Too many requests at once, or a list took too long.",
    }
)
#: Further ones of requests that change items.
_CHANGES = _problems(
    {
        401: "No token, or another one.",
        409: "The run has the item, or cannot be changed.",
        429: "Too many changes wait.",
    }
)
#: What is said of requests that FastAPI refuses.
_REFUSED = {
    400: ("a body that cannot be read", "a JSON object"),
    404: ("a path that does not exist", "one of the interface"),
    405: ("a method that the path does not have", "one that it has"),
}
#: Most characters of a request that an answer quotes.
_QUOTED = 60


def create_app(
    served: Sequence[ServedRun],
    *,
    token: str | None = None,
    hosts: tuple[str, ...] = (),
    limits: Limits = LIMITS,
) -> ASGIApp:
    """Return the service of some runs.

    Args:
        served: The runs, the first of which is the default.
        token: Token that ``POST`` and ``DELETE /items`` need; without one they are refused.
        hosts: Host names under which the service may be called, beside those of this machine; ``*`` for any.
        limits: Limits of requests.
    """
    metrics = Metrics()
    registry = Registry(served, metrics)
    # Lists with limits go down the ranking, as far as it takes; other requests do not wait for them.
    batcher, slower = (Batcher(limits.batch_seconds, limits.batch, metrics.batches.observe) for _ in range(2))
    changing, waiting = asyncio.Lock(), [0]

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for each in (batcher, slower):
            each.start()
        following = asyncio.create_task(registry.follow(_FOLLOW))
        yield
        following.cancel()
        for each in (batcher, slower):
            await each.stop()

    app = FastAPIOffline(
        redoc_url=None,
        redirect_slashes=False,
        title="iisan",
        description="Recommendations of finished runs. The page is at [/](/).",
        lifespan=lifespan,
        responses=_PROBLEMS,
    )

    @contextlib.contextmanager
    def answering(status: int, *errors: type[IisanError]) -> Iterator[None]:
        """Answer errors with a status of their own."""
        try:
            yield
        except errors as error:
            if isinstance(error, Refused):
                raise
            raise Refused(status, error.got, error.expected, error.cure) from None

    def found_run(name: str | None) -> ServedRun:
        with answering(404, DataError):
            return registry.get(name)

    def found_row(run: ServedRun, item: str) -> int:
        with answering(404, DataError):
            return run.row(item)

    async def in_time(work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(limits.seconds):
                return await work
        except TimeoutError:
            got, expected = "an answer that takes too long", f"one within {limits.seconds:g} s"
            raise Refused(503, got, expected, "try again later", {"retry-after": "1"}) from None

    @contextlib.asynccontextmanager
    async def changing_run(name: str | None) -> AsyncIterator[ServedRun]:
        """Let one request at a time change the items of a run, as it is now, and few wait."""
        run = found_run(name)
        if waiting[0] >= limits.adding:
            got, expected = "too many changes of items at once", f"at most {limits.adding}"
            raise Refused(429, got, expected, "try again in some seconds", {"retry-after": "5"})
        waiting[0] += 1
        try:
            async with changing:
                with answering(409, RunError, StoreError, EncoderError, ConfigError, MissingExtraError):
                    yield await registry.refresh(run.name)
                await registry.refresh(run.name)
        except OSError as error:
            log.exception("change failed")
            got, expected = f"the run '{run.name}' cannot be written ({error.strerror})", "a folder with room"
            raise Refused(409, got, expected, "see the log of the service") from None
        finally:
            waiting[0] -= 1

    @app.get("/runs", response_model=schemas.Runs)
    async def runs() -> Any:
        """List the served runs."""
        return JSONResponse({"runs": [run.facts for run in registry], "adding": token is not None})

    @app.post("/recommend", response_model=schemas.Recommendations)
    async def recommend(request: schemas.RecommendRequest) -> Any:
        """List the best next items for a history or a user."""
        run = found_run(request.run)
        history, unknown = await history_of(run, request)
        limited = request.max_per is not None or request.near_duplicates is not None
        lists = slower if limited else batcher
        answer = await in_time(lists.list(run, history, request.k, request.selection()))
        run.check_some(answer)
        items = run.scored(answer)
        if request.terms:
            terms = await in_time(batcher.compute(run.terms, history, answer.rows))
            items = [{**each, "terms": found} for each, found in zip(items, terms, strict=True)]
        note = f"{len(unknown):,} of the history left out, as the run does not know them" if unknown else None
        return JSONResponse({"run": run.name, "items": items, "unknown": unknown, "note": note})

    async def history_of(run: ServedRun, request: schemas.HistoryRequest) -> Any:
        if request.user is None:
            return run.history(request.history, None)
        return await in_time(batcher.compute(run.history, None, request.user))

    @app.post("/explain", response_model=schemas.Reasons)
    async def explain(request: schemas.ExplainRequest) -> Any:
        """Explain the score of an item for a history or a user."""
        run = found_run(request.run)
        history, unknown = await history_of(run, request)
        found = await in_time(batcher.compute(run.explain, history, run.row(request.item)))
        return JSONResponse({**found, "unknown": unknown})

    @app.get("/items", response_model=schemas.Found)
    async def search(
        search: Annotated[str, Query(max_length=MAX_ID, description="Words of the text, or an id.")] = "",
        limit: Many = 24,
        run: RunName = None,
    ) -> Any:
        """Find items by their text; without words, those with the most interactions."""
        found, total = await in_time(batcher.compute(found_run(run).search, search, limit))
        return JSONResponse({"items": found, "total": total})

    @app.get("/items/{item_id}/similar", response_model=schemas.Similar)
    async def similar(
        item_id: ItemId,
        by: Annotated[str, Query(max_length=MAX_ID, description="model, anchor, or a modality.")] = "",
        k: Many = 10,
        run: RunName = None,
    ) -> Any:
        """List the most similar items; by default by what the run is able to compare first."""
        chosen = found_run(run)
        row = found_row(chosen, item_id)
        found = await in_time(batcher.compute(chosen.similar, row, k, by or chosen.similar_by[0]))
        return JSONResponse({"run": chosen.name, "items": found})

    @app.get("/items/{item_id}/image", response_class=Response, responses={200: {"content": {"image/*": {}}}})
    async def image(item_id: ItemId, run: RunName = None) -> Response:
        """Return the image of an item of the catalogue."""
        chosen = found_run(run)
        row = found_row(chosen, item_id)
        with answering(404, DataError):
            content, media = await asyncio.to_thread(chosen.image, row)
        return Response(content, media_type=media, headers={"cache-control": "private, max-age=3600"})

    @app.get("/items/{item_id}", response_model=schemas.ItemDetails)
    async def item(item_id: ItemId, run: RunName = None) -> Any:
        """Describe an item."""
        chosen = found_run(run)
        return JSONResponse(await in_time(batcher.compute(chosen.details, found_row(chosen, item_id))))

    @app.post("/items", response_model=schemas.Added, responses=_CHANGES, dependencies=_TOKEN)
    async def add_items(request: schemas.AddRequest) -> Any:
        """Add items to a run, which lists them at once; needs the token."""
        async with changing_run(request.run) as run:
            known = [each.item_id for each in request.items if each.item_id in run.rows]
            if known and not request.update:
                raise Refused(409, f"item '{known[0]}' of the run", "new ones", 'pass "update": true to change it')
            if IMAGE not in run.similar_by and any(each.image for each in request.items):
                got = f"an image for the run '{run.name}'"
                raise DataError(got, "a run that reads images", "leave the image out")
            found = await asyncio.to_thread(add, run.run.folder, request.items, run.moved, limits.pixels)
        return schemas.Added(
            added=found.added, updated=found.updated, outside=found.outside or {}, seconds=found.seconds
        )

    @app.delete("/items/{item_id}", response_model=schemas.Removed, responses=_CHANGES, dependencies=_TOKEN)
    async def remove_item(item_id: ItemId, run: RunName = None) -> Any:
        """Remove an item from all lists; needs the token."""
        async with changing_run(run) as chosen:
            found_row(chosen, item_id)
            found = await asyncio.to_thread(remove_items, chosen.run.folder, [item_id])
        return schemas.Removed(removed=found.removed)

    @app.get("/health", response_model=schemas.Status)
    async def health() -> Any:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready", response_model=schemas.Status)
    async def ready() -> Any:
        """Whether lists are computed."""
        if not (batcher.alive and slower.alive):
            raise Refused(503, "a service that computes no lists", "one that runs", "see its log, start it again")
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Metrics for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _page_file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        return _page_file(name)

    @app.exception_handler(IisanError)
    async def bad_input(_: Request, error: IisanError) -> JSONResponse:
        status, headers = (error.status, error.headers) if isinstance(error, Refused) else (422, {})
        sentence = str(error)
        for run in registry:
            sentence = run.without_folders(sentence)
        return JSONResponse({"detail": sentence}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def bad_request(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": _sentence(error)}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        got, expected = _REFUSED.get(error.status_code, (f"a request that fails ({error.detail})", "another one"))
        return JSONResponse(
            {"detail": str(DataError(got, expected, "see /docs"))}, error.status_code, error.headers
        )

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(FAULT)}, FAULT.status)

    given = (f"[{host}]" if host.count(":") > 1 else host for host in map(str.lower, hosts))
    names = tuple(dict.fromkeys(("localhost", "127.0.0.1", "[::1]", *given)))
    return Guard(app, names, token, limits, metrics)


def _page_file(name: str) -> Response:
    """Return a file of the page; its names are known, so that no path of a request is opened."""
    known = {path.name: path for path in _PAGE.iterdir() if path.is_file()} if _PAGE.is_dir() else {}
    if name not in known:
        raise Refused(404, f"the page has no file '{name}'", "one of its own", "open /")
    media = _MEDIA.get(Path(name).suffix, "application/octet-stream")
    return Response(known[name].read_bytes(), media_type=media, headers={"cache-control": "no-cache"})


def _sentence(error: RequestValidationError) -> str:
    """Put the first of pydantic's errors into a sentence."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return str(DataError("a body that is not JSON", "a JSON object", "see /docs"))
    if isinstance(first.get("input"), bytes):
        return str(DataError("a body of another type", "JSON", "send content-type: application/json"))
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "the body"
    # Names of fields come from the request, too, with any characters.
    where = where[:_QUOTED].encode("ascii", "backslashreplace").decode()
    given = first.get("input")
    shown = "" if given is None or isinstance(given, dict | list) else f" = {str(given)[:_QUOTED]!r}"
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return str(DataError(where + shown, expected.replace(" should have ", " with "), "see /docs"))
