"""A local host that serves one file, honestly or with one fault."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from SegMoTELib.zoo.catalogue import Entry

CONTENT = np.random.default_rng(3).bytes(3_000_000)
CUT = 1_000_000  # bytes before a fault


class Handler(BaseHTTPRequestHandler):
    """Serves ``CONTENT``; ``server.fault`` says how it goes wrong, ``server.asked`` what was asked."""

    def log_message(self, *_):
        """Stay silent."""

    def do_HEAD(self):
        self.send_response(302)
        if self.server.announced:
            self.send_header("X-Linked-ETag", f'"{self.server.announced}"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        fault, content = self.server.fault, CONTENT
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and fault != "cannot resume" else 0
        self.server.asked.append(start)
        self.server.paths.append(self.path)
        if fault in ("page", "page in disguise"):
            content = b"\n<!DOCTYPE html><html>please log in</html>"
        if fault == "page after a mark":
            content = b"\xef\xbb\xbf<!-- portal -->" + bytes(len(CONTENT) - 18)
        if fault == "nothing":
            content = b""
        if fault == "leads astray":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "other bytes":
            content = bytes(len(CONTENT))
        if fault == "missing":
            self.send_error(404)
            return
        if fault == "proxy wants a password":
            self.send_error(407)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Type", "text/html" if fault == "page" else "application/octet-stream")
        length = len(content) - start + {"announces less": -5, "announces more": 5}.get(fault, 0)
        if fault != "announces nothing":
            self.send_header("Content-Length", str(length))
        self.end_headers()
        end = len(content)
        if fault == "always cut" or (fault in ("cut once", "cannot resume") and len(self.server.asked) == 1):
            end = start + CUT if fault != "always cut" else start + (CUT if start == 0 else 0)
        try:
            for at in range(start, end, 1 << 16):
                self.wfile.write(content[at:min(at + (1 << 16), end)])
                if fault == "slow":
                    time.sleep(0.02)
                if fault == "stalls" and at >= CUT:
                    self.server.stopped.wait(5)
                    return
        except OSError:
            pass
        self.close_connection = True


@pytest.fixture
def host(monkeypatch):
    """The server; set ``fault`` before fetching."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.fault, server.asked, server.paths, server.announced = "", [], [], ""
    server.stopped = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def entry(host):
    """A model that the server has."""
    return Entry("test-model", "Test model", "tiny", "test.pth", f"http://127.0.0.1:{host.server_port}/test.pth",
                 len(CONTENT), "sha256:" + hashlib.sha256(CONTENT).hexdigest(), "Apache-2.0",
                 "https://example.org/licence", True, "any", "nothing")
