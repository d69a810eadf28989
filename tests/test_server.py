"""The server: what is refused and how, the line of orders, and twenty requests at once that leave nothing behind."""

from __future__ import annotations

import gc
import json
import os
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import trimesh
from PIL import Image

pytest.importorskip("fastapi", reason="fastapi is missing: pip install -r requirements-app.txt")
pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install -r requirements-app.txt")

from gs_propeller.app.events import Event, Note
from gs_propeller.base.errors import UserError
from gs_propeller.studio import serve
from gs_propeller.studio.queue import PICTURE, PREFIX, Full, Queue
from gs_propeller.studio.server import Limits
from tests.served import asked, form, serving

CAT = (Path(__file__).parent.parent / "data" / "cat.png").read_bytes()
SMALL = [
    "steps=3", "num_points=100", "batch_size=1", "reference_size=32", "mesh_resolution=24", "mesh_faces=200",
    "texture_size=64", "bake_views=4", "bake_size=64", "turntable_size=32", "elevation=0", "closing_updates=0",
    "threads=1", "device=cpu", "prior=pocket", "text_prior=pocket",
]  # fmt: skip


class Maker:
    """Stands for the program: takes its time, in passes, and gives back what it was asked for."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.asked: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def __call__(self, options: Mapping[str, Any], folder: Path, listen: Callable[[Event], None]) -> bytes:
        self.asked.append(dict(options))
        while not self.go.wait(0.01):
            listen(Note("a pass"))
        listen(Note("the last pass"))
        if self.error:
            raise self.error
        picture = folder / PICTURE
        return picture.read_bytes() if picture.exists() else str(options["prompt"]).encode()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place of each test's own, where nobody else leaves anything."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def queue(maker: Maker) -> Queue:
    return Queue(maker, waiting=2, limit_s=30.0)


@pytest.fixture
def server(queue: Queue) -> Iterator[str]:
    with serving(queue, Limits(picture_bytes=100_000, pixels=300_000)) as url:
        yield url
    assert left_over() == []


def left_over() -> list[str]:
    """Folders of orders and uploads; threads."""
    kept = Path(tempfile.gettempdir()).glob("propeller-*")
    folders = [p.name for p in kept if p.name.startswith((PREFIX, "propeller-upload-"))]
    return folders + [t.name for t in threading.enumerate() if t.name.startswith(("propeller", "server"))]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "not within 30 s"
        time.sleep(0.01)


def result(url: str, order: str) -> tuple[list[str], bytes]:
    """(the notes in its header, the asset)."""
    with urllib.request.urlopen(f"{url}/result/{order}", timeout=60) as answer:
        return json.loads(answer.headers["Propeller-Notes"]), answer.read()


# --- one request


def test_a_picture_or_a_sentence_goes_to_the_maker(server: str, maker: Maker) -> None:
    assert asked(f"{server}/generate", {"image": CAT, "seed": 3, "elevation": -5.5}) == (200, CAT)
    assert asked(f"{server}/generate", {"prompt": "a red cube"}) == (200, b"a red cube")
    assert maker.asked == [{"seed": 3, "elevation": -5.5}, {"prompt": "a red cube"}]


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({}, 422, "give image=, a picture's file, or prompt=, a sentence"),
        ({"prompt": "  "}, 422, "give image=, a picture's file, or prompt=, a sentence"),
        ({"image": b"no picture"}, 422, "picture is not a picture that can be read: PNG, JPEG, "),
        ({"image": "/etc/passwd"}, 422, "image: "),
        ({"prompt": "a", "input": "/etc/passwd"}, 422, "input is no option; there are image, prompt, "),
        ({"prompt": "a", "outdir": "/tmp"}, 422, "outdir is no option; there are image, "),
        ({"prompt": "a", "elevation": 95}, 422, "elevation: Input should be 'auto'; elevation: Input should be less "),
        ({"prompt": "a", "steps": "many"}, 422, "steps: Input should be a valid integer"),
        ({"prompt": "a", "steps": 10**6}, 422, "steps: Input should be less than or equal to 2000"),
        ({"image": bytes(150_000)}, 413, "the picture has 150000 bytes; at most 100000 are taken"),
        ({"image": bytes(900_000)}, 413, " bytes; at most 164000 are taken"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(
    fields: dict[str, Any], code: int, said: str, server: str, maker: Maker
) -> None:
    answered, body = asked(f"{server}/generate", fields)
    assert answered == code
    assert (
        said in body["detail"]
        and len(body["detail"].splitlines()) == 1
        and tempfile.gettempdir() not in body["detail"]
    )
    assert maker.asked == []


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(server: str) -> None:
    wide = BytesIO()
    Image.new("1", (6000, 60)).save(wide, "PNG")
    code, body = asked(f"{server}/generate", {"image": wide.getvalue()})
    assert (code, body["detail"]) == (413, "the picture has 6000 x 60 px; at most 0.3 million are taken")


def test_foreign_pages_and_foreign_names_are_refused(server: str) -> None:
    wish = {"prompt": "a red cube"}
    code, body = asked(f"{server}/generate", wish, Origin="https://example.org")
    assert (code, body["detail"]) == (403, "pages of other sites may not ask")
    assert asked(f"{server}/generate", wish, Origin=server) == (200, b"a red cube")
    assert asked(f"{server}/generate", wish, Host="example.org")[0] == 400


def test_a_body_of_unknown_length_is_refused(server: str) -> None:
    with socket.create_connection(("127.0.0.1", int(server.rsplit(":", 1)[1])), 30) as line:
        line.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 411")


def test_the_openapi_page_names_every_route_and_option(server: str) -> None:
    _, about = asked(f"{server}/openapi.json")
    assert sorted(about["paths"]) == ["/generate", "/result/{id}", "/send", "/status/{id}"]
    options = json.dumps(about["components"]["schemas"])
    assert [
        name for name in ("image", "prompt", "seed", "steps", "texture_size") if f'"{name}"' not in options
    ] == []
    assert asked(f"{server}/")[0] == 200


# --- the line


def test_an_order_is_followed_from_sending_to_its_result(server: str, maker: Maker) -> None:
    maker.go.clear()
    code, first = asked(f"{server}/send", {"prompt": "first"})
    assert code == 202
    until(lambda: asked(f"{server}/status/{first['id']}")[1]["state"] == "working")
    _, second = asked(f"{server}/send", {"prompt": "second"})
    assert (second["state"], second["ahead"]) == ("waiting", 1)
    assert asked(f"{server}/result/{second['id']}") == (409, {"detail": "the order is waiting"})
    maker.go.set()
    until(lambda: asked(f"{server}/status/{second['id']}")[1]["state"] == "done")
    assert asked(f"{server}/status/{second['id']}")[1]["notes"] == ["the last pass"]
    assert result(server, second["id"]) == (["the last pass"], b"second")
    assert asked(f"{server}/result/{second['id']}", method="DELETE")[0] == 204
    code, body = asked(f"{server}/result/{second['id']}")
    assert code == 404 and body["detail"].startswith(f"there is no order {second['id']}, or no more")


def test_a_full_line_is_said(server: str, maker: Maker) -> None:
    maker.go.clear()
    _, first = asked(f"{server}/send", {"prompt": "a"})
    until(lambda: asked(f"{server}/status/{first['id']}")[1]["state"] == "working")
    assert [asked(f"{server}/send", {"prompt": "a"})[0] for _ in range(2)] == [202, 202]
    code, body = asked(f"{server}/send", {"prompt": "a"})
    assert (code, body["detail"]) == (503, "2 orders are waiting, and no more may; try again later")


@pytest.mark.parametrize("waiting", [False, True])
def test_an_order_is_given_up(waiting: bool, server: str, maker: Maker) -> None:
    maker.go.clear()
    ids = [asked(f"{server}/send", {"image": CAT})[1]["id"] for _ in range(2)]
    until(lambda: asked(f"{server}/status/{ids[0]}")[1]["state"] == "working")
    chosen = ids[waiting]
    assert asked(f"{server}/result/{chosen}", method="DELETE")[0] == 204
    until(lambda: asked(f"{server}/status/{chosen}")[1]["state"] == "cancelled")
    assert asked(f"{server}/result/{chosen}") == (410, {"detail": "the order is cancelled"})
    maker.go.set()
    until(lambda: asked(f"{server}/status/{ids[not waiting]}")[1]["state"] == "done")


def test_a_client_that_hangs_up_gives_its_order_up(server: str, maker: Maker, queue: Queue) -> None:
    maker.go.clear()
    hang_up(server, lambda: bool(maker.asked))
    until(lambda: all(order.state == "cancelled" for order in [*queue._orders.values()]))


def hang_up(server: str, when: Callable[[], bool]) -> None:
    body, kind = form({"image": CAT})
    with socket.create_connection(("127.0.0.1", int(server.rsplit(":", 1)[1])), 30) as line:
        about = f"Host: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
        line.sendall(f"POST /generate HTTP/1.1\r\n{about}\r\n\r\n".encode() + body)
        until(when)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("the picture is empty"), 422, "the picture is empty"),
        (ZeroDivisionError("by nothing\nat all"), 500, "ZeroDivisionError: by nothing"),
    ],
)
def test_what_fails_is_said_and_the_next_is_served(
    error: Exception, code: int, said: str, server: str, maker: Maker
) -> None:
    maker.error = error
    assert asked(f"{server}/generate", {"prompt": "a"}) == (code, {"detail": said})
    maker.error = None
    assert asked(f"{server}/generate", {"prompt": "a"}) == (200, b"a")


def test_an_order_that_takes_too_long_is_ended(maker: Maker) -> None:
    maker.go.clear()
    with serving(Queue(maker, limit_s=0.05)) as url:
        code, body = asked(f"{url}/generate", {"prompt": "a"})
    assert (code, body["detail"]) == (504, "not done in 0.05 s, at step 0 of 0; ask for fewer steps")
    assert left_over() == []


def test_results_are_kept_for_a_while_and_not_all(maker: Maker) -> None:
    with Queue(maker, waiting=9, kept=2) as queue:
        orders = []
        for k in range(4):
            orders.append(queue.submit({"prompt": f"{k}"}))
            assert orders[-1].ended.wait(30)
        until(lambda: [queue.find(order.id) is not None for order in orders] == [False, False, True, True])
        queue.keep_s = 0.0
        assert queue.find(orders[3].id) is None
    with pytest.raises(Full):
        queue.submit({"prompt": "late"})
    assert left_over() == []


def test_a_server_that_closes_ends_every_order(maker: Maker, queue: Queue) -> None:
    maker.go.clear()
    with serving(queue) as url:
        for _ in range(2):
            asked(f"{url}/send", {"image": CAT})
        until(lambda: bool(maker.asked))
    assert [order.state for order in queue._orders.values()] == ["cancelled", "cancelled"]
    assert left_over() == []


# --- the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stepps=3"], "unknown option 'stepps'; did you mean steps?"),
        (["input=/etc/passwd"], "input= is each order's own"),
        (["outdir=/tmp"], "outdir= is each order's own"),
    ],
)
def test_bad_options_of_the_command_are_said(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve.main(words) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_it_listens_on_this_machine_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr("uvicorn.run", lambda app, **settings: ran.append(settings))
    assert serve.main(["steps=3"]) == 0
    assert ran[0]["host"] == "127.0.0.1"
    assert tuple(capsys.readouterr()) == (
        "assets at http://127.0.0.1:8017/generate, how at /docs; Ctrl-C ends it\n", "",
    )  # fmt: skip
    assert serve.main(["--host", "::1"]) == 0
    assert "http://[::1]:8017/generate" in capsys.readouterr().out
    for wrong in (["--port", "99999"], ["--host", "nowhere.invalid"]):
        assert serve.main(wrong) == 2 and capsys.readouterr().err.startswith("error: ")
    assert serve.main(["--host", "0.0.0.0"]) == 0
    assert capsys.readouterr().err.startswith("note: whoever reaches 0.0.0.0")


# --- twenty at once


def resident_mb() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


@pytest.mark.slow
def test_what_a_run_has_to_say_reaches_whoever_ordered_it() -> None:
    """A word that nobody taught the prior, in letters that no header has."""
    with serving(Queue(serve.maker(SMALL))) as url:
        _, order = asked(f"{url}/send", {"prompt": "a red zörp"})
        until(lambda: asked(f"{url}/status/{order['id']}")[1]["state"] not in ("waiting", "working"))
        said = asked(f"{url}/status/{order['id']}")[1]
        assert result(url, order["id"])[0] == said["notes"]
    assert said["state"] == "done" and any("zörp" in line for line in said["notes"]), said


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc/self/statm to read memory from")
def test_twenty_requests_from_four_clients_leave_nothing_behind() -> None:
    """Seventeen assets, one of no picture, one of 60 MB, one hung up upon."""
    with serving(Queue(serve.maker(SMALL))) as url:
        assert asked(f"{url}/generate", {"image": CAT})[0] == 200  # what is loaded once is loaded now
        before_mb = resident_mb()

        def one(k: int) -> tuple[int, Any]:
            if k == 19:
                hang_up(url, lambda: True)
                return 0, None
            broken = {5: b"GIF89a, but no more", 6: bytes(60_000_000)}
            return asked(
                f"{url}/generate", {"image": broken[k]} if k in broken else {"image": CAT, "seed": k}
            )

        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(one, range(20)))
        grown_mb = resident_mb() - before_mb
    assert [code for code, _ in answers] == [200] * 5 + [422, 413] + [200] * 12 + [0]
    assert answers[5][1]["detail"].startswith("picture is not a picture that can be read")
    assert answers[6][1]["detail"].endswith("bytes; at most 20064000 are taken")
    assets = [body for code, body in answers if code == 200]
    meshes = [trimesh.load(BytesIO(body), "glb", force="mesh") for body in assets]
    assert len(meshes) == 17 and all(mesh.visual.material.baseColorTexture is not None for mesh in meshes)
    assert left_over() == []
    assert grown_mb < 120, grown_mb  # 41
