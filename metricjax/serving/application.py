"""The routes of the server and their answers.

GET  /                 the page
POST /search           a picture to its neighbours
GET  /search?image=I   an image of the gallery to its neighbours
GET  /samples          some images of the gallery
GET  /classes?like=T   names of classes
GET  /images/I         a small picture of an image
GET  /healthz          whether it runs, and how busy it is
GET  /report.html, /explorer.html   what the run has left behind
"""

import asyncio
import dataclasses
import functools
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from metricjax.reports import serving
from metricjax.serving.batches import RequestBatcher
from metricjax.serving.catalog import Catalog, Filter
from metricjax.serving.guard import Guard
from metricjax.serving.refusals import Refused
from metricjax.serving.searching import Answer, Question
from metricjax.serving.uploads import Decoder, Receiver

MAX_TOP = 100
_DEFAULT_TOP = 12
_SAMPLES = 24
_CLASSES = 20
# Pages that a run leaves behind, by what they are called.
PAGES = {"explorer.html": "Explorer", "report.html": "Report"}
# They are files of their own, with a policy inside; this is what both may need.
_PAGES_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; frame-ancestors 'none'"
)


@dataclasses.dataclass(frozen=True)
class Service:
    """What the routes use.

    Attributes:
      title: what is searched.
      catalog: its images.
      batches: answers `searching.Question`s.
      decoder: files to pictures as questions hold them.
      receiver: reads what is sent.
      pages: files that the run has left behind, by name.
      threads: that decode.
      start: what tells one start of the server from another.
    """

    title: str
    catalog: Catalog
    batches: RequestBatcher
    decoder: Decoder
    receiver: Receiver
    pages: Mapping[str, Path]
    threads: ThreadPoolExecutor
    start: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))

    async def in_thread(self, function: Callable, *arguments) -> Any:
        """What a function returns that would hold up the others."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, function, *arguments)

    async def page(self, request: Request) -> Response:
        """The page, with a policy that names what stands in it."""
        return HTMLResponse(
            self._page.text, headers={"Content-Security-Policy": self._page.policy}
        )

    @functools.cached_property
    def _page(self) -> serving.Page:
        catalog = self.catalog
        return serving.render(
            title=self.title,
            images=len(catalog),
            classes=catalog.split.num_classes if catalog.has_classes else 0,
            categories=list(catalog.split.category_names),
            threshold=catalog.threshold and catalog.threshold.similarity,
            links={name: PAGES[name] for name in self.pages},
            max_bytes=self.receiver.limits.picture,
        )

    @functools.cached_property
    def _threshold(self) -> dict[str, float] | None:
        threshold = self.catalog.threshold
        return threshold and dataclasses.asdict(threshold)

    async def search(self, request: Request) -> Response:
        """An image of the gallery to its neighbours."""
        began = time.perf_counter()
        given = request.query_params
        image = self.catalog.check(_whole(given.get("image"), "image", 0, None))
        question = self._question(
            given.get("top"), given.getlist("class"), given.getlist("category")
        )
        with self.batches.coming():
            asked = self.batches.ask(dataclasses.replace(question, image=image))
        answer = await _answered(asked)
        return self._reply(began, question, answer, self.catalog.entry(image))

    async def search_by_picture(self, request: Request) -> Response:
        """A picture that is sent to its neighbours."""
        began = time.perf_counter()
        async with self.receiver.picture(request) as (content, fields):
            given = request.query_params

            def values(name: str) -> list[str]:
                return fields.get(name) or given.getlist(name)

            top = (values("top") or [None])[0]
            question = self._question(top, values("class"), values("category"))
            with self.batches.coming():
                picture = await self.in_thread(self.decoder, content)
                asked = self.batches.ask(dataclasses.replace(question, picture=picture))
        return self._reply(began, question, await _answered(asked))

    def _question(
        self, top: str | None, classes: list[str], categories: list[str]
    ) -> Question:
        among = self._filter(classes, categories)
        return Question(_whole(top or str(_DEFAULT_TOP), "top", 1, MAX_TOP), among)

    def _filter(self, classes: list[str], categories: list[str]) -> Filter:
        """Names that are given empty are not given."""
        return self.catalog.filter(
            [name for name in classes if name], [name for name in categories if name]
        )

    def _reply(
        self,
        began: float,
        question: Question,
        answer: Answer,
        query: dict | None = None,
    ) -> Response:
        catalog = self.catalog
        found = zip(answer.images, answer.similarities, strict=True)
        return JSONResponse(
            {
                "query": query,
                "neighbours": [catalog.neighbor(*one) for one in found],
                "searched": int(catalog.mask(question.among).sum()),
                "threshold": self._threshold,
                "milliseconds": round(1e3 * (time.perf_counter() - began), 1),
            }
        )

    async def samples(self, request: Request) -> Response:
        """Some images of the gallery, others for another seed."""
        given = request.query_params
        seed = _whole(given.get("seed") or "0", "seed", 0, 2**31)
        among = self._filter(given.getlist("class"), given.getlist("category"))
        rows = self.catalog.samples(seed, _SAMPLES, among)
        return JSONResponse({"images": [self.catalog.entry(row) for row in rows]})

    async def classes(self, request: Request) -> Response:
        """Names of classes that contain a text."""
        like = request.query_params.get("like", "")[:100]
        return JSONResponse({"classes": self.catalog.classes_like(like, _CLASSES)})

    async def image(self, request: Request) -> Response:
        """A small picture of an image."""
        number = _whole(request.path_params["image"], "The image", 0, None)
        image = self.catalog.check(number)
        # Of this start of the server: the next one may search something else.
        tag = {"ETag": f'"{self.start}-{image}"', "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == tag["ETag"]:
            return Response(status_code=304, headers=tag)
        made = await self.in_thread(self.catalog.thumbnail, image)
        return Response(made.content, media_type=f"image/{made.kind}", headers=tag)

    async def run_page(self, request: Request) -> Response:
        """A page that the run has left behind."""
        path = self.pages[request.url.path.removeprefix("/")]
        try:
            content = await self.in_thread(path.read_bytes)
        except OSError as error:
            raise Refused(404, f"{path.name} is not there any more.") from error
        return HTMLResponse(content, headers={"Content-Security-Policy": _PAGES_POLICY})

    async def health(self, request: Request) -> Response:
        """Whether it runs, and how busy it is."""
        sizes = self.batches.sizes
        answered = sum(size * count for size, count in dict(sizes).items())
        return JSONResponse(
            {
                "status": "ok",
                "images": len(self.catalog),
                "waiting": self.batches.waiting,
                "answered": answered,
                "batches": sum(sizes.values()),
                "largest_batch": max(sizes, default=0),
            }
        )


def application(service: Service, hosts: tuple[str, ...] | None) -> Starlette:
    """The server's application.

    Args:
      service: what it is made of; closed when the application ends.
      hosts: names by which it may be called, see `guard.Guard`.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette):
        yield
        await asyncio.to_thread(service.batches.close)
        service.threads.shutdown()

    routes = [
        Route("/", service.page),
        Route("/search", service.search, methods=["GET"]),
        Route("/search", service.search_by_picture, methods=["POST"]),
        Route("/samples", service.samples),
        Route("/classes", service.classes),
        Route("/images/{image}", service.image),
        Route("/healthz", service.health),
        *(Route(f"/{name}", service.run_page) for name in service.pages),
    ]
    handlers = {Refused: _refused, HTTPException: _http, Exception: _fault}
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers=handlers,
        lifespan=lifespan,
    )


async def _answered(asked) -> Answer:
    answer = await asyncio.wrap_future(asked)
    if isinstance(answer, Refused):
        raise answer
    return answer


def _whole(text: str | None, name: str, least: int, most: int | None) -> int:
    """A whole number that a client has sent."""
    bounds = f"{least} or more" if most is None else f"{least} to {most}"
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > 10:
        raise Refused(
            400,
            f"{name} is {(text or '')[:80]!r}: it must be a whole number, {bounds}.",
        )
    number = int(text)
    if number < least or (most is not None and number > most):
        raise Refused(400, f"{name} is {number}: it must be {bounds}.")
    return number


def _refused(request: Request, error: Refused) -> Response:
    return JSONResponse({"error": error.sentence}, error.status, headers=error.headers)


def _http(request: Request, error: HTTPException) -> Response:
    known = "/, /search, /samples, /classes, /images/NUMBER and /healthz"
    sentences = {
        404: f"There is nothing at {request.url.path[:80]!r}: there are {known}.",
        405: f"{request.url.path[:80]} does not take {request.method[:20]}.",
    }
    sentence = sentences.get(error.status_code, str(error.detail))
    return JSONResponse({"error": sentence}, error.status_code, headers=error.headers)


def _fault(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "The server has failed; its log says how."}, 500)
