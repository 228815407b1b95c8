"""A generator that needs no model, and a server process for tests. Run as a script, this file is that server.

The fake answers with the characters of the prompt, one per token, again and again, until max_new_tokens. Words in the
prompt change this: "slow" waits 50 ms before each token, "slowly" 300 ms, "never" makes no token, "fail" raises after
two tokens, and "full stop" ends after the prompt's characters. (`obeys=False`: these words have no effect.)
"""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from minigpt.common.errors import UserError
from minigpt.common.streams import TextStream


class FakeStream(TextStream):
    """As inference.engine.Stream; its text is the characters of its prompt."""

    def __init__(self, prompt, params, obeys=True, block_size=512):
        self.text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        super().__init__(max(1, len(self.text)))
        self.prompt = [ord(c) for c in self.text]
        self.logprobs, self.prompt_logprobs, self.embedding = [], [], None
        self.orders = self.text if obeys else ""
        self.params, self.cancelled, self.prompt_cut = params, False, self.prompt_tokens > block_size

    def cancel(self):
        self.cancelled = True

    def step(self):
        """Make one token; returns whether the stream has ended."""
        if self.cancelled:
            return self.ended("cancelled")
        if "never" in self.orders:
            return False
        if self.params.prompt_logprobs is not None:
            self.prompt_logprobs = [fake_logprob(token_id, i) for i, token_id in enumerate(self.prompt)]
        if self.params.embedding:
            self.embedding = [len(self.text) / 1000, 0.6, -0.8]
        if self.params.max_new_tokens < 1:
            return self.ended("length")
        if "fail" in self.orders and self.completion_tokens == 2:
            return self.ended("error", RuntimeError("as ordered"))
        if "full stop" in self.orders and self.completion_tokens == len(self.text):
            return self.ended("stop")
        self.first_token = self.first_token or time.perf_counter()
        token = self.text[self.completion_tokens % len(self.text)] if self.text else "。"
        if self.params.logprobs is not None:
            self.logprobs.append(fake_logprob(ord(token), self.completion_tokens))
        self.put(token)
        self.completion_tokens += 1
        return self.completion_tokens >= self.params.max_new_tokens and self.ended("length")

    def ended(self, *how):
        self.finish(*how)
        return True


def fake_logprob(token_id, i):
    """As inference.logprobs.TokenLogprob, of the i-th token."""
    return SimpleNamespace(token_id=token_id, logprob=-0.25, top=[(65, -0.25), (66, -2.0)], start=i)


class FakeTokenizer:
    """As tokenizer.Tokenizer; a character is a token."""

    name, n_vocab, eot_id, pad_id = "fake", 1000, 3, 4
    special_texts = MappingProxyType({3: "<|endoftext|>", 4: "<|pad|>"})

    def encode(self, text):
        return [ord(c) for c in text]

    encode_marked = encode

    def token_bytes(self, token_id):
        return b"" if token_id in self.special_texts else chr(token_id).encode(errors="ignore")

    def decode(self, ids):
        return b"".join(map(self.token_bytes, ids)).decode()


class FakeGenerator:
    """As inference.engine.TextGenerator. Its thread makes one token for each running stream in turn."""

    def __init__(self, stage="sft", max_batch=32, obeys=True):
        self.stage, self.max_batch, self.obeys, self.about = stage, max_batch, obeys, "a fake"
        self.tokenizer = FakeTokenizer()
        self.model, self.block_size = SimpleNamespace(config=SimpleNamespace(n_embd=3)), 512
        self.rows, self.queue, self.seen = [], [], []
        threading.Thread(target=self._run, daemon=True).start()

    def prompt_ids(self, prompt):
        text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
        return [ord(c) for c in text]

    def submit(self, prompt, params):
        stream = FakeStream(prompt, params, self.obeys)
        if params.needs_whole_prompt and stream.prompt_cut:
            raise UserError(f"a prompt of {stream.prompt_tokens} tokens does not fit into the model's 512; shorten it")
        self.seen.append(params)
        self.queue.append(stream)
        return stream

    def should_compile(self, setting):
        return False

    running = property(lambda self: len(self.rows))
    waiting = property(lambda self: len(self.queue))

    def close(self, grace=0.0):
        for stream in [*self.queue, *self.rows]:
            stream.cancel()

    def _run(self):
        while True:
            while self.queue and len(self.rows) < self.max_batch:
                self.rows.append(self.queue.pop(0))
            orders = "".join(stream.orders for stream in self.rows)
            time.sleep(0.3 if "slowly" in orders else 0.05 if "slow" in orders else 0.0005)
            self.rows = [stream for stream in self.rows if not stream.step()]


class Server:
    """A running server process. lines: its output before it was ready; key: sent with every request, "" for none."""

    def __init__(self, process, key):
        self.process, self.lines, self.key = process, [], key
        while "stops" not in (line := process.stdout.readline()):
            assert line, "".join(self.lines)
            self.lines.append(line)
        self.port = int(re.search(r"http://127\.0\.0\.1:(\d+)", "".join(self.lines))[1])
        # Read the later output too, because the process would block on a full pipe.
        self._later, self._reader = [], threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = f"http://127.0.0.1:{self.port}"

    def _read(self):
        self._later.extend(self.process.stdout)

    def ended(self, seconds=60):
        """(exit code, output since it was ready) of a process that ends by itself within `seconds`."""
        self.process.wait(seconds)
        self._reader.join(seconds)
        return self.process.returncode, "".join(self._later)

    @property
    def authorization(self):
        """The header's value, None without a key. http.client encodes it as latin-1."""
        return f"Bearer {self.key}".encode().decode("latin-1") if self.key else None

    def ask(self, method, path, body=None, headers=None, timeout=30):
        """(status, headers, bytes). A body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": self.authorization, **(headers or {})}
        try:
            connection.request(method, path, body, {k: v for k, v in headers.items() if v is not None})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def post(self, path, timeout=30, **fields):
        """(status, parsed answer) of a POST with these fields as JSON."""
        status, _, body = self.ask("POST", path, fields, timeout=timeout)
        return status, json.loads(body)

    def open(self, path, **fields):
        """A socket that has sent a POST and read nothing."""
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n"
        head += f"Authorization: {self.authorization}\r\n" if self.key else ""
        return self.send(head.encode() + b"\r\n" + body)

    def send(self, data):
        """A socket that has sent raw bytes."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        sock.sendall(data)
        return sock

    def health(self):
        return json.loads(self.ask("GET", "/health")[2])

    def wait_until(self, seconds=30, **health):
        """Wait until /health has these values. Fails after `seconds`."""
        started = time.monotonic()
        while any(self.health()[key] != value for key, value in health.items()):
            assert time.monotonic() - started < seconds, f"{self.health()}, not {health}"
            time.sleep(0.02)

    def memory(self):
        """Resident memory of the process, in bytes (Linux only)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def stop(self):
        """Stop it with SIGTERM, as a service manager does; returns (exit code, output since it was ready)."""
        self.process.terminate()
        return self.ended()


def serving(script, *flags, key=""):
    """Context manager: a `Server` on a free port. script: this file for the fake, or server.py."""
    return started(script, "--port=0", "--compile=off", *flags, key=key)


@contextmanager
def started(script, *flags, key="", cwd=ROOT, **environment):
    """Context manager: a script as `Server`, from its line that Ctrl-C stops it; killed at the end."""
    command = [sys.executable, str(script), *flags]
    environment = {
        **os.environ,
        "PYTHONIOENCODING": "utf-8",
        "OMP_NUM_THREADS": "1",
        "MINIGPT_API_KEY": key,
        **environment,
    }
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", env=environment
    )
    try:
        yield Server(process, key)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


class FakeClassifier:
    """As inference.classify.Classifier: even numbers of characters are 双, odd ones 单; each 河 is tagged B-地.

    Texts of more than 512 characters are cut. "slow" in a text waits 50 ms.
    """

    stage, about, running, waiting, labels = "task", "a fake", 0, 0, ["双", "单"]
    tokenizer, block_size = FakeTokenizer(), 512

    def __init__(self, kind="classify"):
        self.kind = kind

    def classify(self, texts, progress=lambda n: None):
        found = []
        for text in texts:
            length = len("".join(text))
            time.sleep(0.05 * ("slow" in text))
            progress(1)
            probabilities = {"双": 0.25, "单": 0.75} if length % 2 else {"双": 1.0, "单": 0.0}
            label = max(probabilities, key=probabilities.get)
            found.append(SimpleNamespace(label=label, probabilities=probabilities, tokens=length, cut=length > 512))
        return found

    def tag(self, texts, progress=lambda n: None):
        found = []
        for text in texts:
            progress(1)
            places = [i for i, character in enumerate(text) if character == "河"]
            entities = [{"type": "地", "start": i, "end": i + 1, "text": "河"} for i in places]
            tags = ["B-地" if character == "河" else "O" for character in text]
            found.append(SimpleNamespace(entities=entities, tags=tags, tokens=len(text), cut=len(text) > 512))
        return found

    def close(self, grace=0.0):
        pass


def open_fakes(ckpts, settings):
    """As inference.classify.open_served.

    A path with "base" in it gives a pretrained model; a folder classify, pair or tag, a model with such a task's head;
    others give an SFT model.
    """
    return [(ckpt or "out/fake/ckpt.pt", {}, make_fake(ckpt, settings)) for ckpt in ckpts]


def make_fake(ckpt, settings):
    """The fake model of a path."""
    kind = Path(ckpt).parent.name
    if kind in ("classify", "pair", "tag"):
        return FakeClassifier(kind)
    return FakeGenerator("pretrain" if "base" in ckpt else "sft", settings.max_batch)


if __name__ == "__main__":
    import server
    from minigpt.common.cli import run_script
    from minigpt.serving import listener as listening

    listening.RECEIVE_SECONDS = 2
    run_script(lambda: server.main(open_fakes))
