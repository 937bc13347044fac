"""The client against our server, and against one that refuses."""

import asyncio
import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

import numpy as np
import pytest

from gpulet.client import (
    AsyncClient,
    BadInput,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unreachable,
)
from servers import fleet, save_model, serve

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    save_model(folder / "models", "echo")
    with serve(fleet(folder, {"echo": (2000, 10)}, repository=folder / "models")) as server:
        yield f"127.0.0.1:{server.port}"


@contextmanager
def scripted(*answers):
    """A server that gives these (status, headers, body), the last of them for good; yields its URL and the paths asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(self.path)
            status, headers, body = answers[min(len(asked), len(answers)) - 1]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": len(body)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815 (http.server looks for that name)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


BUSY = (429, {"Retry-After": "0"}, b'{"error": "queue full"}')
DONE = (200, {}, b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1]}]}')


def test_arrays_go_in_and_out(url):
    with Client(url) as client:
        found = client.infer("echo", {"x": ROWS}, deadline_s=2, request_id="1", priority=1)
        assert (found["y"] == ROWS).all()
        assert (client.infer("echo", ROWS.T.copy().T, outputs=["y"], version="1")["y"] == ROWS).all()
        assert client.infer("echo", ROWS.astype(">f4"))["y"].tolist() == ROWS.tolist()


def test_the_awaited_client_answers_many_at_once(url):
    async def ask():
        async with AsyncClient(url) as client:
            found = await asyncio.gather(*[client.infer("echo", ROWS + n, deadline_s=2) for n in range(20)])
            assert [answer["y"].tolist() for answer in found] == [(ROWS + n).tolist() for n in range(20)]
            assert await client.is_ready("echo")
            assert await client.models() == ("echo",)
            with pytest.raises(NotFound, match="nobody"):
                await client.metadata("nobody")
            with pytest.raises(DeadlineExceeded):
                await client.infer("echo", {"x": ROWS}, deadline_s=1e-6)

    asyncio.run(ask())


def test_what_a_server_says_of_itself(url):
    with Client(url) as client:
        assert client.is_live()
        assert client.is_ready()
        assert client.is_ready("echo")
        assert not client.is_ready("nobody")
        assert client.models() == ("echo",)
        assert client.metadata("echo", "1")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]


def test_what_cannot_be_answered_says_why(url):
    with Client(url) as client:
        with pytest.raises(NotFound, match="nobody"):
            client.infer("nobody", {"x": ROWS})
        with pytest.raises(NotFound, match="version 1"):
            client.infer("echo", {"x": ROWS}, version="2")
        with pytest.raises(InvalidRequest, match="FP32"):
            client.infer("echo", {"x": ROWS.astype(np.float64)})
        with pytest.raises(BadInput, match="complex"):
            client.infer("echo", {"x": ROWS.astype(complex)})


def test_a_deadline_that_the_server_cannot_keep_is_told_as_such(url):
    with Client(url) as client:
        client.is_live()  # a connection is there: the server has the time, and refuses as late or expired
        with pytest.raises(DeadlineExceeded, match=r"not served|no answer"):
            client.infer("echo", {"x": ROWS}, deadline_s=0.0005)
        with pytest.raises(DeadlineExceeded):
            client.infer("echo", {"x": ROWS}, deadline_s=0)
        assert (client.infer("echo", {"x": ROWS})["y"] == ROWS).all()


@pytest.mark.parametrize("is_awaited", [False, True])
def test_a_refused_request_is_sent_again_as_often_as_asked(is_awaited):
    def infer(url, retries):
        options = {"retries": retries, "random": Random(1)}
        if not is_awaited:
            with Client(url, **options) as client:
                return client.infer("m", {"x": ROWS})

        async def ask():
            async with AsyncClient(url, **options) as client:
                return await client.infer("m", {"x": ROWS})

        return asyncio.run(ask())

    with scripted(BUSY, BUSY, DONE) as (url, asked):
        assert infer(url, 2)["y"].tolist() == [1]
        assert asked == ["/v2/models/m/infer"] * 3
    with scripted(BUSY) as (url, asked):
        with pytest.raises(Overloaded, match="queue full"):
            infer(url, 1)
        assert len(asked) == 2


def test_a_retry_that_would_come_too_late_is_not_waited_for():
    with scripted((503, {"Retry-After": "30"}, b'{"error": "stopped"}')) as (url, asked), Client(url) as client:
        with pytest.raises(DeadlineExceeded, match="stopped") as caught:
            client.infer("m", {"x": ROWS}, deadline_s=5)
        assert caught.value.status == 503
        with pytest.raises(DeadlineExceeded, match="stopped"):  # asked what its input is called
            client.infer("m", ROWS, deadline_s=5)
        assert asked == ["/v2/models/m/infer", "/v2/models/m"]


@pytest.mark.parametrize("is_awaited", [False, True])
def test_models_are_listed_loaded_and_unloaded_as_triton_does_it(is_awaited):
    async def awaited(url):
        async with AsyncClient(url) as client:
            listed = await client.index()
            await client.load("a b")
            await client.unload("a b")
            return listed, await client.statistics("a b", "1")

    def blocking(url):
        with Client(url) as client:
            listed = client.index()
            client.load("a b")
            client.unload("a b")
            return listed, client.statistics("a b", "1")

    empty = (200, {}, b"")
    with scripted((200, {}, b'[{"name": "a b"}]'), empty, empty, (200, {}, b'{"model_stats": []}')) as (url, asked):
        assert (asyncio.run(awaited(url)) if is_awaited else blocking(url)) == ([{"name": "a b"}], [])
    model = "models/a%20b"
    assert asked == [
        "/v2/repository/index",
        f"/v2/repository/{model}/load",
        f"/v2/repository/{model}/unload",
        f"/v2/{model}/versions/1/stats",
    ]


def test_a_token_goes_with_every_call_and_an_answer_that_trickles_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as server:
        is_over = threading.Event()

        def trickle():
            peer, _ = server.accept()
            with peer:
                head = peer.recv(65536).lower()
                assert b"authorization: bearer secret" in head
                assert b"accept-encoding: identity" in head
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                with suppress(OSError):
                    while not is_over.wait(0.02):
                        peer.sendall(b" ")

        thread = threading.Thread(target=trickle)
        thread.start()
        url = f"127.0.0.1:{server.getsockname()[1]}"
        with Client(url, token="secret") as client, pytest.raises(DeadlineExceeded):  # noqa: S106 (nobody's)
            client.infer("m", {"x": ROWS}, deadline_s=0.2)
        is_over.set()
        thread.join()


def test_an_error_that_stays_is_sent_once():
    with scripted((500, {}, b'{"error": "internal error"}')) as (url, asked), Client(url) as client:
        with pytest.raises(Exception, match="internal error"):
            client.infer("m", {"x": ROWS})
        assert len(asked) == 1


def test_a_server_that_is_not_there_is_named_so():
    with scripted(DONE) as (url, _):
        pass
    with Client(url, retries=1, random=Random(1)) as client, pytest.raises(Unreachable):
        client.is_live()
    with Client(url, retries=1, random=Random(1)) as client, pytest.raises(Unreachable):
        client.infer("m", {"x": ROWS})
