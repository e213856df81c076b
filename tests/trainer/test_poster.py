"""A connection that is kept, against real servers that keep it, drop it, or say nothing."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from trainyard_trainer.poster import Poster


class Server:
    """Speaks HTTP/1.1; after each answer it hangs up without a word while `rude` is set."""

    def __init__(self) -> None:
        self.rude = False
        self.connections = 0
        self.bodies: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def do_POST(self) -> None:
                outer.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(429 if outer.bodies[-1] == b"too soon" else 200)
                self.send_header("Retry-After", "2")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")
                self.close_connection = outer.rude

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1/reports"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()


def test_many_posts_share_one_connection(server: Server) -> None:
    poster = Poster(server.url, None, 10)
    replies = [poster.post(body, {}, 100) for body in (b"1", b"too soon", b"3")]
    assert [reply.status for reply in replies] == [200, 429, 200]
    assert replies[1].headers.get("retry-after") == "2"
    assert server.bodies == [b"1", b"too soon", b"3"]
    assert server.connections == 1


def test_a_connection_that_the_server_gave_up_is_made_anew_and_nothing_arrives_twice(server: Server) -> None:
    poster = Poster(server.url, None, 10)
    server.rude = True
    assert [poster.post(body, {}, 100).status for body in (b"1", b"2", b"3")] == [200] * 3
    assert server.bodies == [b"1", b"2", b"3"]
    assert server.connections == 3


def test_a_body_that_is_not_read_to_its_end_ends_the_connection(server: Server) -> None:
    poster = Poster(server.url, None, 10)
    assert poster.post(b"1", {}, 1).body == b"{"
    assert poster.post(b"2", {}, 100).body == b"{}"
    assert server.connections == 2


def test_who_does_not_answer_in_time_or_no_http_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(TimeoutError):
            Poster(url, None, 0.05).post(b"1", {}, 100)
        poster = Poster(url, None, 10)
        silent.accept()[0].close()

        def babble() -> None:
            connection, _ = silent.accept()
            connection.recv(1000)
            connection.sendall(b"who is there?\r\n\r\n")
            connection.close()

        threading.Thread(target=babble, daemon=True).start()
        with pytest.raises(OSError, match="no HTTP"):
            poster.post(b"1", {}, 100)
    with pytest.raises(OSError, match="refused"):
        Poster(url, None, 1).post(b"1", {}, 100)
