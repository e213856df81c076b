"""What the supervisors of several nodes tell each other: that all of them begin again, with a batch in smaller parts. No torch.

When a rank runs out of GPU memory, all ranks lose each other, and none of them can say any more what is to follow. Their supervisors
live on. That of node 0 listens on the port after the rendezvous's; each of the others keeps a connection to it. A line at a time:

    node 1                 this is node 1
    smaller 2              to node 0: a process of mine had no memory; all should begin again, for the second time
    again 2                from node 0: its processes are gone; begin again, for the second time

Node 0 ends its own processes before it says `again`, so that a new rank never finds the old rendezvous. It says so only to a gang that
is whole; without that, and for a pod that cannot reach node 0, the attempt ends as its ranks did.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from trainyard_api.run import RunSpec

from trainyard_trainer.place import node_rank
from trainyard_trainer.records import StopFlag

PATIENCE = 45.0
"""Seconds for word of the others; they end their own processes first, which takes up to `processes.GRACE_SECONDS`."""
PAUSE_SECONDS = 0.2
CONNECT_SECONDS = 5.0
LONGEST_LINE = 64


class Gang:
    """One node's end. Nothing here raises: what cannot be told is as if there was no gang."""

    def __init__(self, node: int, nodes: int, host: str, port: int, patience: float = PATIENCE) -> None:
        self._node, self._nodes, self._address, self._patience = node, nodes, (host, port), patience
        self._changed = threading.Condition()
        self._told = 0
        """The highest round that was asked for (node 0), or begun (the others)."""
        self._wanted = 0
        """The highest round that this node asked for."""
        self._lines: dict[int, socket.socket] = {}
        self._broken = self._closed = False
        self._round, self._call_off = 0, lambda: None
        self._server: socket.socket | None = None
        if node == 0:
            with suppress(OSError):
                self._server = _listening(port)
        threading.Thread(target=self._accept if node == 0 else self._connect, daemon=True).start()

    @classmethod
    def of(cls, spec: RunSpec, environment: dict[str, str]) -> Gang | None:
        """None on a single node."""
        if spec.nodes == 1 or spec.rendezvous is None:
            return None
        return cls(node_rank(spec, environment), spec.nodes, spec.rendezvous.host, spec.rendezvous.port + 1)

    def begin(self, number: int, call_off: Callable[[], None]) -> None:
        """A round of the processes begins, 0 first. `call_off` is called, in a thread, when the others are about to begin the next."""
        with self._changed:
            self._round, self._call_off = number, call_off
            late = self._told > number
        if late:
            call_off()

    def begun(self, number: int) -> bool:
        """Whether some node has called for this round."""
        with self._changed:
            return self._told >= number

    def ask(self, number: int) -> None:
        """A process of this node had no memory: this round should begin."""
        with self._changed:
            self._wanted = number
            if self._node == 0:
                self._told = max(self._told, number)
        if self._node > 0:
            self._send(f"smaller {number}")

    def settled(self, number: int, stop: StopFlag) -> bool:
        """Once this node's processes are gone: whether all nodes begin this round now. Waits for word of the others."""
        until = time.monotonic() + self._patience
        with self._changed:
            while not (self._whole() and self._told >= number):
                if self._broken or stop() or time.monotonic() > until:
                    return False
                self._changed.wait(PAUSE_SECONDS)
        if self._node == 0:
            self._send(f"again {number}")
        return True

    def close(self) -> None:
        """The others see that this node is gone."""
        with self._changed:
            self._closed = True
            lines = [*self._lines.values(), *([self._server] if self._server else [])]
            self._changed.notify_all()
        for line in lines:
            # A thread that reads holds the descriptor: closing alone would not wake it, nor tell the other side.
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def _whole(self) -> bool:
        return not self._broken and len(self._lines) == (self._nodes - 1 if self._node == 0 else 1)

    def _hear(self, number: int) -> None:
        with self._changed:
            self._told = max(self._told, number)
            call_off = self._call_off if self._told > self._round else lambda: None
            self._changed.notify_all()
        call_off()

    def _send(self, text: str) -> None:
        with self._changed:
            lines = list(self._lines.values())
        for line in lines:
            with suppress(OSError):
                line.sendall(f"{text}\n".encode())

    def _accept(self) -> None:
        while self._server is not None:
            try:
                line, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._read, args=(line,), daemon=True).start()

    def _connect(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
            # Until node 0's name resolves and its pod runs.
            with suppress(OSError):
                line = socket.create_connection(self._address, CONNECT_SECONDS)
                line.settimeout(None)
                line.sendall(f"node {self._node}\n".encode())
                self._join(0, line)
                if self._wanted:
                    self._send(f"smaller {self._wanted}")
                self._read(line, 0)
                return
            with self._changed:
                self._changed.wait(PAUSE_SECONDS)

    def _join(self, node: int, line: socket.socket) -> None:
        with suppress(OSError):
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with self._changed:
            self._lines[node] = line
            self._changed.notify_all()

    def _read(self, line: socket.socket, node: int | None = None) -> None:
        """Until the other side is gone. `node` None: it has yet to say which one it is."""
        with suppress(OSError, ValueError), line.makefile("rb") as lines:
            while text := lines.readline(LONGEST_LINE):
                word, number = text.decode("ascii").split()
                if word == "node" and node is None and self._node == 0 and 0 < int(number) < self._nodes:
                    node = int(number)
                    self._join(node, line)
                elif node is not None and word == ("smaller" if self._node == 0 else "again"):
                    self._hear(int(number))
                else:
                    break
        line.close()
        if node is None:
            return
        with self._changed:
            if self._lines.get(node) is line:
                del self._lines[node]
                # A training of a gang of which one is gone is over.
                self._broken = True
            self._changed.notify_all()


def _listening(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
