"""An HTTP server of a few lines that stands in for the intake: what it answers is the test's."""

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, Mapping[str, str], bytes], tuple[int, str]]
"""Of path, headers and body of a POST: the status and the text. Called by the thread of each connection."""


def serve(answer: Answer) -> ThreadingHTTPServer:
    """A server on a free port; whoever asked for it shuts it down."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            code, text = answer(self.path, self.headers, body)
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


def intake_url(server: ThreadingHTTPServer) -> str:
    """Where a trainer would send its reports."""
    return f"http://127.0.0.1:{server.server_port}/v1/reports"
