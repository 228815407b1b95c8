"""A server of files that does wrong what servers and networks do wrong, and a Hugging Face of its own.

`files()` serves on a free port of 127.0.0.1 what its `files` holds, with ETags and ranges as they should be. `faults`
names, for a path, what goes wrong with the requests to come, one each: a method `as_…` of the handler. "good" is none;
the last one stays where `always` has the path.
"""

import hashlib
import json
import random
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

DATA = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(310_000)
DATASET = "/api/datasets/someone/wiki/tree/main/zh"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        about = self.server.about
        about.seen.append((self.path, dict(self.headers), time.monotonic()))
        faults = about.faults.get(self.path, [])
        fault = faults[0] if faults else "good"
        if faults and not (self.path in about.always and len(faults) == 1):
            faults.pop(0)
        try:
            getattr(self, f"as_{fault}")()
        except OSError:  # the client has left
            self.close_connection = True

    def head(self, status, length, **headers):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def whole(self):
        return self.server.about.files[self.path]

    def marks(self):
        """Headers that tell one version from another; none for the paths in `unmarked`."""
        unmarked = self.path in self.server.about.unmarked
        return {} if unmarked else {"ETag": f'"{sha256(self.whole())[:16]}"', "Accept_Ranges": "bytes"}

    def start(self):
        """The byte that is asked for as the first; 0 where the file is no longer the one that is meant."""
        meant = self.headers.get("If-Range")
        asked = self.headers.get("Range", "bytes=0-")
        return 0 if meant and meant != self.marks().get("ETag") else int(asked[6:-1])

    def begin(self, more=0, **headers):
        """The header of an answer that is right, but for `more` bytes promised; returns the bytes to send."""
        data, start = self.whole(), self.start()
        headers = {**self.marks(), **headers}
        if start:
            headers.setdefault("Content_Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.head(206 if start else 200, len(data) - start + more, **headers)
        return data[start:]

    def send(self, data):
        self.wfile.write(data)
        self.wfile.flush()

    def end(self):
        self.close_connection = True

    def as_good(self):
        if self.path not in self.server.about.files:
            return self.as_missing()
        if self.start() >= len(self.whole()) > 0:
            return self.head(416, 0, Content_Range=f"bytes */{len(self.whole())}")
        self.send(self.begin())

    def as_drop(self):
        self.send(self.begin()[:70_000])
        self.end()

    def as_reset(self):
        self.end()

    def as_long_length(self):
        self.send(self.begin(more=100))
        self.end()

    def as_no_range_long(self):
        self.head(200, len(self.whole()) + 100)
        self.send(self.whole())
        self.end()

    def as_short_length(self):
        self.send(self.begin(more=-100))
        self.end()

    def as_no_range(self):
        self.head(200, len(self.whole()), **self.marks())
        self.send(self.whole())

    def as_no_range_drop(self):
        self.head(200, len(self.whole()), **self.marks())
        self.send(self.whole()[:70_000])
        self.end()

    def as_wrong_start(self):
        size = len(self.whole())
        self.head(206, 10, **self.marks(), Content_Range=f"bytes {self.start() + 1}-{self.start() + 10}/{size}")
        self.send(b"x" * 10)

    def as_no_content_range(self):
        self.head(206, 10, **self.marks())
        self.send(b"x" * 10)

    def as_wrong_total(self):
        self.send(self.begin(Content_Range=f"bytes {self.start()}-{len(self.whole()) - 1}/{len(self.whole()) + 5}"))

    def as_busy(self):
        self.head(503, 0, Retry_After="0.3")

    def as_busy_for_hours(self):
        self.head(429, 0, Retry_After="7200")

    def as_error(self):
        self.head(500, 0)

    def as_drop_and_change(self):
        self.as_drop()
        self.server.about.files[self.path] = OTHER[: len(DATA)]

    def as_blind(self):
        """Ranges of whatever is there now, with its ETag, without a look at If-Range."""
        data, start = self.whole(), int(self.headers.get("Range", "bytes=0-")[6:-1])
        said = {"Content_Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.head(206 if start else 200, len(data) - start, **self.marks(), **said)
        self.send(data[start:])

    def as_ever_new(self):
        """Another file at each request, now less and now more than half of it."""
        self.head(200, 1000, ETag=f'"{len(self.server.about.seen)}"')
        self.send(b"x" * (300 if len(self.server.about.seen) % 2 else 600))
        self.end()

    def as_corrupt(self):
        data = self.begin()
        self.send(bytes([data[0] ^ 1]) + data[1:])

    def as_corrupt_half(self):
        data = self.begin()
        self.send(bytes([data[0] ^ 1]) + data[1:70_000])
        self.end()

    def as_stall(self):
        self.send(self.begin()[:70_000])
        self.server.about.over.wait(60)
        self.end()

    def as_silent(self):
        self.server.about.over.wait(60)
        self.end()

    def as_chunked(self, drop=False):
        self.head(200, None, **self.marks(), Transfer_Encoding="chunked")
        pieces = [self.whole()[i : i + 70_000] for i in range(0, len(self.whole()), 70_000)]
        for piece in pieces[: 2 if drop else None]:
            self.send(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if drop:
            return self.end()
        self.send(b"0\r\n\r\n")

    def as_chunked_drop(self):
        self.as_chunked(drop=True)

    def as_gzip(self):
        self.head(200, len(self.whole()), Content_Encoding="gzip")
        self.send(self.whole())

    def as_missing(self):
        self.head(404, 0)

    def as_unauthorized(self):
        self.head(401, 0)

    def as_forbidden(self):
        self.head(403, 0)

    def as_teapot(self):
        self.head(418, 0)

    def as_moved(self):
        self.head(302, 0, Location="/real" + self.path)

    def as_endless_moved(self):
        """A redirect whose own body has no end."""
        self.head(302, None, Location="/real" + self.path)
        while True:
            self.send(b"x" * 65536)

    def as_elsewhere(self):
        self.head(302, 0, Location=self.server.about.elsewhere)

    def as_loop(self):
        self.head(302, 0, Location=self.path)

    def as_html(self):
        page = b"<!doctype html><title>Sign in</title>"
        self.head(200, len(page), Content_Type="text/html")
        self.send(page)


@contextmanager
def files(**contents):
    """A running server: address, files {path: bytes}, faults {path: [name]}, always (paths), seen [(path, headers,
    time)], elsewhere (where "elsewhere" redirects to), over (an Event; ends what hangs)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.about = about = SimpleNamespace(
        server=server,
        address=f"http://127.0.0.1:{server.server_port}", files={f"/{k}": v for k, v in contents.items()}, faults={},
        always=set(), unmarked=set(), seen=[], elsewhere="", over=threading.Event(),
    )  # fmt: skip
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield about
    finally:
        about.over.set()
        server.shutdown()
        server.server_close()


class HubHandler(Handler):
    """Hugging Face's list of a dataset of two files, on two pages, and the files behind a redirect."""

    def as_good(self):
        if self.path.startswith(DATASET):
            return self.as_page()
        if "/resolve/" in self.path:
            return self.head(302, 0, Location=f"{self.server.about.elsewhere}/{self.path.rpartition('/')[2]}")
        super().as_good()

    def as_page(self):
        names = ["b.parquet"] if "cursor" in self.path else ["a.parquet"]
        rows = [{"type": "directory", "path": "zh/more", "size": 0}]
        for name in names:
            data = self.server.about.files[f"/{name}"]
            lfs = {"oid": sha256(data), "size": len(data)}
            rows.append({"type": "file", "path": f"zh/{name}", "size": len(data), "lfs": lfs})
        # As a mirror does that passes on what the original says.
        original = f"https://huggingface.co{DATASET}?cursor=two"
        link = {} if "cursor" in self.path else {"Link": f'<{original}>; rel="next"'}
        body = json.dumps(rows).encode()
        self.head(200, len(body), Content_Type="application/json", **link)
        self.send(body)


@contextmanager
def hub():
    """A running Hugging Face (what `files` gives) of dataset someone/wiki/zh; store: the other host of its files."""
    with files(**{"a.parquet": DATA, "b.parquet": OTHER}) as store, files() as site:
        site.files, site.store = store.files, store
        # Another host by name, as far as a client can see.
        site.elsewhere = store.address.replace("127.0.0.1", "localhost")
        site.server.RequestHandlerClass = HubHandler
        yield site
