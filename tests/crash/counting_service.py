"""A service outside, of the tests' own process: it does what it is asked to, and counts.

One connection carries one question and one answer, each a line of JSON. The service can hold an answer back, before or
after it has done what it was asked to, so that a process is killed during its call.
"""

import asyncio
import json
import socket
import socketserver
import threading
from collections import Counter

WITHIN_S = 60


class CountingService:
    """What was asked, by whom, and what was done. A context manager.

    Attributes:
        calls: the keys of all calls that arrived, in their order.
        performed: (key, text) of what was done.
        looks: the keys that were asked about.
        polls: what producers said with each poll: the state that they were given.
        messages: what a poll is answered with.
        hold: "before" or "after": hold back the answer to a call, and do it after that or before. "look": hold back
            what is asked about. "": answer at once.
        knows: whether it can tell what was done; otherwise it says that it cannot.
        refuses: answers calls with "I did not".
        reached: it holds something back.
    """

    def __init__(self):
        self.calls = []
        self.performed = []
        self.looks = []
        self.polls = []
        self.messages = []
        self.hold = ""
        self.knows = True
        self.refuses = False
        self.reached = threading.Event()
        self._goes_on = threading.Event()
        self._lock = threading.Lock()
        service = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                answer = service._answer(json.loads(self.rfile.readline()))
                try:
                    self.wfile.write(f"{json.dumps(answer)}\n".encode())
                except OSError:
                    assert service._goes_on.is_set(), "only who was held for long is not waited for"

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 50

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.go_on()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def go_on(self):
        """Hold nothing back any more."""
        self.hold = ""
        self._goes_on.set()

    def counts(self):
        """How often each key was performed."""
        return Counter(key for key, _ in self.performed)

    def texts(self):
        """How often each text was sent."""
        return Counter(text for _, text in self.performed)

    def _answer(self, asked):
        match asked["do"]:
            case "perform":
                return self._perform(asked["key"], asked["text"])
            case "look":
                with self._lock:
                    self.looks.append(asked["key"])
                self._hold_back("look")
                return self._look(asked["key"])
            case "poll":
                with self._lock:
                    self.polls.append(asked["state"])
                    return {"messages": list(self.messages)}
        raise AssertionError(asked)

    def _perform(self, key, text):
        with self._lock:
            self.calls.append(key)
        if self.refuses:
            return {"refused": "not today"}
        held_since = self.hold
        self._hold_back("before")
        if held_since == "before":
            return {"refused": "the one who asked has died"}
        with self._lock:
            self.performed.append((key, text))
            number = len(self.performed)
        self._hold_back("after")
        return {"number": number}

    def _look(self, key):
        if not self.knows:
            return {"unsure": "come back later"}
        with self._lock:
            numbers = [number for number, (one, _) in enumerate(self.performed, 1) if one == key]
        return {"number": numbers[0]} if numbers else {}

    def _hold_back(self, where):
        if self.hold == where:
            self.reached.set()
            self._goes_on.wait(WITHIN_S)


def ask(port, **question):
    """Ask the service, and wait for its answer."""
    with socket.create_connection(("127.0.0.1", port), WITHIN_S) as connection, connection.makefile("rw") as lines:
        lines.write(f"{json.dumps(question)}\n")
        lines.flush()
        return json.loads(lines.readline())


async def ask_async(port, **question):
    """Ask the service, as an event loop does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{json.dumps(question)}\n".encode())
        return json.loads(await reader.readline())
    finally:
        writer.close()
