"""A file server with the faults that servers and networks have, and a Hugging Face Hub with one dataset.

`files()` serves its `files` on a free port of 127.0.0.1, with ETags and ranges. `faults` names, for a path, what goes
wrong with the next requests, one fault each: a method `as_…` of the handler. The last one stays for paths in `always`.
"""

import hashlib
import json
import random
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

DATA = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(310_000)
DATASET = "/api/datasets/someone/wiki"
HALF = 131_072  # bytes of DATA that a broken connection brings: two chunks of the downloader


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        about, path = self.server.about, self.path.partition("?")[0]
        about.seen.append((path, dict(self.headers)))
        faults = about.faults.get(path, [])
        fault = faults[0] if faults else "good"
        if faults and not (path in about.always and len(faults) == 1):
            faults.pop(0)
        try:
            getattr(self, f"as_{fault}")()
        except OSError:  # the client has left
            self.close_connection = True

    def head(self, status, length, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def begin(self):
        """Send the header of a correct response; returns the bytes of its body."""
        data = self.server.about.files[self.path]
        etag = f'"{sha256(data)[:16]}"'
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        if self.headers.get("If-Range", etag) != etag:
            start = 0
        said = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.head(206 if start else 200, len(data) - start, ETag=etag, **said)
        return data[start:]

    def as_good(self):
        if self.path not in self.server.about.files:
            self.head(404, 0)
        else:
            self.wfile.write(self.begin())

    def as_drop(self):
        self.wfile.write(self.begin()[:HALF])
        self.close_connection = True

    def as_stall(self):
        self.wfile.write(self.begin()[:HALF])
        self.server.about.over.wait(60)
        self.close_connection = True

    def as_drop_and_change(self):
        self.as_drop()
        self.server.about.files[self.path] = OTHER[: len(DATA)]

    def as_no_range(self):
        data = self.server.about.files[self.path]
        self.head(200, len(data))
        self.wfile.write(data)

    def as_wrong_start(self):
        self.head(206, 10, Content_Range=f"bytes 7-16/{len(DATA)}")
        self.wfile.write(b"x" * 10)

    def as_corrupt(self):
        data = self.begin()
        self.wfile.write(bytes([data[0] ^ 1]) + data[1:])

    def as_busy(self):
        self.head(503, 0, Retry_After="7")

    def as_error(self):
        self.head(500, 0)

    def as_unauthorized(self):
        self.head(401, 0)

    def as_loop(self):
        self.head(302, 0, Location=self.path)

    def as_html(self):
        page = b"<!doctype html><title>Sign in</title>"
        self.head(200, len(page), Content_Type="text/html")
        self.wfile.write(page)


@contextmanager
def files(**contents):
    """A running server: address, files {path: bytes}, faults {path: [name]}, always (paths), seen [(path, headers)],
    over (an Event that ends stalled responses)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.about = about = SimpleNamespace(
        server=server, address=f"http://127.0.0.1:{server.server_port}",
        files={f"/{name}": data for name, data in contents.items()},
        faults={}, always=set(), seen=[], over=threading.Event(),
    )  # fmt: skip
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield about
    finally:
        about.over.set()
        server.shutdown()
        server.server_close()


class HubHandler(Handler):
    """The hub's description of dataset someone/wiki, and redirects to the host that stores its files."""

    def as_good(self):
        if self.path.startswith(DATASET):
            return self.describe()
        self.head(302, 0, Location=f"{self.server.about.elsewhere}/{self.path.rpartition('/')[2]}")

    def describe(self):
        siblings = [{"rfilename": name, "size": 3} for name in ("README.md", "zh/.hidden", "zh/more/c.parquet")]
        for path, data in self.server.about.store.files.items():
            lfs = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
            siblings.append({"rfilename": f"zh{path}", "size": len(data), "lfs": lfs})
        body = json.dumps({"id": "someone/wiki", "sha": "0" * 40, "siblings": siblings}).encode()
        self.head(200, len(body), Content_Type="application/json")
        self.wfile.write(body)


@contextmanager
def hub():
    """A running hub (what `files` gives) with a.parquet and b.parquet in someone/wiki/zh; store: the other host."""
    with files(**{"a.parquet": DATA, "b.parquet": OTHER}) as store, files() as site:
        site.store = store
        site.elsewhere = store.address.replace("127.0.0.1", "localhost")  # another host to a client
        site.server.RequestHandlerClass = HubHandler
        yield site
