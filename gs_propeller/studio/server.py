"""Assets over HTTP: a picture or a sentence in, a .glb out. What a request may say is a list, and no path is on it.

POST /generate answers with the .glb; POST /send with an id for GET /status/ID and GET /result/ID, and DELETE /result/ID
gives it up. A client of /generate that hangs up gives its order up too. The page of all this is /docs.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from gs_propeller.base.errors import UserError
from gs_propeller.pictures.photo import size_of
from gs_propeller.studio.queue import Full, Order, Queue

GLB = "model/gltf-binary"
LOOK_S = 0.1  # between two looks whether the client is still there
DRAIN_S, DRAIN_TIMES = (
    10.0,
    8,
)  # of a body that is too large: so much is read, and thrown away, for the answer's sake
NOTES = "Propeller-Notes"  # header of an asset: Status.notes, a JSON list in ASCII
BLAMED = {"input": 422, "time": 504, "program": 500}


@dataclass(frozen=True)
class Limits:
    """Of one request: bytes and pixels of its picture, bytes of all around it; which hosts' names it may ask for."""

    picture_bytes: int = 20_000_000
    pixels: int = 40_000_000
    around_bytes: int = 64_000
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost")


class Wish(BaseModel):
    """What a request says, as a form; nothing else is taken."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[UploadFile | None, File()] = None
    prompt: str | None = Field(None, max_length=1000, description="a sentence, beside a picture or alone")
    negative_prompt: str | None = Field(None, max_length=1000, description="what it should not look like")
    elevation: Literal["auto"] | Annotated[float, Field(ge=-80, le=80)] | None = Field(
        None,
        description="the picture's, degrees; auto: estimated, which is what is done where nothing is said",
    )
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    steps: int | None = Field(None, ge=1, le=2000)
    mesh_faces: int | None = Field(None, ge=100, le=200_000)
    texture_size: int | None = Field(None, ge=64, le=2048, description="px")

    def options(self) -> dict[str, Any]:
        return self.model_dump(exclude={"image"}, exclude_none=True)


class Status(BaseModel):
    """state: waiting, working, done, failed or cancelled. ahead: orders before it. step: done, of steps. notes: what
    whoever ordered should know: the elevation by estimate, words that nobody taught the prior."""

    id: str
    state: str
    ahead: int
    step: int
    steps: int
    notes: list[str]
    error: str


def build(queue: Queue, limits: Limits = Limits()) -> FastAPI:
    """The application; the queue is at work while it runs."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        with queue:
            yield

    app = FastAPI(title="Propeller", description=__doc__, lifespan=life)
    app.add_middleware(Gate, most=limits.picture_bytes + limits.around_bytes)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(limits.hosts))

    @app.exception_handler(RequestValidationError)
    async def said(_: Request, error: RequestValidationError) -> JSONResponse:
        """One line, as everywhere."""
        return JSONResponse({"detail": "; ".join(_line(one) for one in error.errors())}, 422)

    async def ordered(wish: Wish) -> Order:
        if wish.image is None and not (wish.prompt or "").strip():
            raise HTTPException(422, "give image=, a picture's file, or prompt=, a sentence")
        with tempfile.TemporaryDirectory(prefix="propeller-upload-") as folder:
            picture = None
            if wish.image is not None:
                picture = Path(folder) / "picture"
                await _taken(wish.image, picture, limits)
            try:
                return queue.submit(wish.options(), picture)
            except Full as error:
                raise HTTPException(503, str(error), {"Retry-After": "30"}) from error

    def found(id: str) -> Order:
        order = queue.find(id)
        if order is None:
            raise HTTPException(
                404, f"there is no order {id}, or no more: results are kept {queue.keep_s:g} s"
            )
        return order

    @app.get("/", include_in_schema=False)
    async def page() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.post("/generate", response_class=Response, responses={200: {"content": {GLB: {}}}})
    async def generate(wish: Annotated[Wish, Form()], request: Request) -> Response:
        """The asset, once it is made."""
        order = await ordered(wish)
        try:
            while not order.ended.is_set():
                if await request.is_disconnected():
                    raise HTTPException(499, "the client hung up")
                await asyncio.sleep(LOOK_S)
            return _glb(order)
        finally:
            queue.cancel(order)  # not ended: given up; ended: nobody can ask for it again

    @app.post("/send", status_code=202)
    async def send(wish: Annotated[Wish, Form()]) -> Status:
        """Takes an order, and answers at once."""
        return _status(queue, await ordered(wish))

    @app.get("/status/{id}")
    async def status(id: str) -> Status:
        """How far it is."""
        return _status(queue, found(id))

    @app.get("/result/{id}", response_class=Response, responses={200: {"content": {GLB: {}}}})
    async def result(id: str) -> Response:
        """The asset."""
        return _glb(found(id))

    @app.delete("/result/{id}", status_code=204, response_class=Response)
    async def give_up(id: str) -> Response:
        """Ends the order, or forgets its result."""
        queue.cancel(found(id))
        return Response(status_code=204)

    return app


def _status(queue: Queue, order: Order) -> Status:
    return Status(
        id=order.id, state=order.state, ahead=queue.ahead(order), step=order.step, steps=order.steps,
        notes=[*order.notes], error=order.error,
    )  # fmt: skip


def _glb(order: Order) -> Response:
    if order.state == "done":
        about = {"Content-Disposition": 'attachment; filename="asset.glb"', NOTES: json.dumps(order.notes)}
        return Response(order.glb, media_type=GLB, headers=about)
    if order.state == "failed":
        raise HTTPException(BLAMED[order.blame], order.error)
    raise HTTPException(410 if order.state == "cancelled" else 409, f"the order is {order.state}")


async def _taken(image: UploadFile, file: Path, limits: Limits) -> None:
    """The upload as a file, looked at as far as its header says."""
    if image.size is not None and image.size > limits.picture_bytes:
        raise HTTPException(
            413, f"the picture has {image.size} bytes; at most {limits.picture_bytes} are taken"
        )
    file.write_bytes(await image.read())
    try:
        width, height = await run_in_threadpool(size_of, file)
    except UserError as error:
        raise HTTPException(422, str(error).replace(f"{file.parent}/", "")) from error
    if width * height > limits.pixels:
        raise HTTPException(
            413, f"the picture has {width} x {height} px; at most {limits.pixels / 1e6:g} million are taken"
        )


def _line(error: Any) -> str:
    name = next(
        (str(part) for part in error["loc"] if part != "body"), "the request"
    )  # deeper: which type it is not
    if error["type"] == "extra_forbidden":
        return f"{name} is no option; there are {', '.join(Wish.model_fields)}"
    return f"{name}: {error['msg']}"


class Gate:
    """Refuses, before anything is read, bodies that are too large or do not say how large they are, and requests that
    another site's page makes."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        origin, host = headers.get(b"origin"), headers.get(b"host", "")
        if origin is not None and urlsplit(origin).netloc != host:
            return await _refused(403, "pages of other sites may not ask")(scope, receive, send)
        if scope["method"] == "POST":
            length = headers.get(b"content-length", "")
            if not length.isdecimal():
                return await _refused(411, "say Content-Length")(scope, receive, send)
            if int(length) > self.most:
                if int(length) <= DRAIN_TIMES * self.most:
                    await _drained(receive)
                return await _refused(413, f"{length} bytes; at most {self.most} are taken")(
                    scope, receive, send
                )
        await self.app(scope, receive, send)


def _refused(code: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, code, {"Connection": "close"})


async def _drained(receive: Receive) -> None:
    """A client that is still sending would see its connection break, not the answer."""
    try:
        async with asyncio.timeout(DRAIN_S):
            while (await receive()).get("more_body", False):
                pass
    except TimeoutError:
        return
