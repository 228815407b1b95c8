"""Puts load on a server: clients that ask at the same time. Measures when each piece of text arrives, and how long
after its start a server is at full speed."""

import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from minigpt.common.errors import UserError
from minigpt.common.files import PROJECT

MODEL = "run/last"  # the server's name for run/last.pt
START_SECONDS, COMPILE_SECONDS = 120, 300
STARTING_TOKENS, STARTING_CLIENTS = 20, (1, 8)  # of the requests that a server is asked until it is at full speed
FULL_SPEED_SHARE, FULL_SPEED_SECONDS = 0.9, 120  # of a warm server's rate; after which the wait for it ends
WARM_REQUESTS = 5


class ServedModel:
    """Context manager: server.py as a process on a free port.

    address: its http:// address; started: time.perf_counter() at the process's start. flags: of server.py;
    environment: further environment variables.
    """

    def __init__(self, ckpt, *flags, environment=()):
        self.environment = dict(environment)
        script = str(PROJECT / "server.py")
        self.command = [sys.executable, script, f"--ckpt={ckpt}", "--port=0", "--compile=on", *flags]
        self.lines, self.changed = [], threading.Condition()

    def __enter__(self):
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "MINIGPT_API_KEY": "", **self.environment}
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
            env=environment,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()
        try:
            line = self.wait_for_line("http://127.0.0.1:", START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        self.address = "http://127.0.0.1:" + line.split("http://127.0.0.1:")[1].split("/")[0].split()[0]
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self):
        for line in itertools.chain(self.process.stdout, ["the server ended"]):
            with self.changed:
                self.lines.append(line.rstrip())
                self.changed.notify_all()

    def wait_for_line(self, words, seconds):
        """Wait for the first line that the server prints with these words; returns it.

        Raises UserError where the server ends, compiling fails, or `seconds` have passed.
        """

        def find_line():
            ends = (words, "not compiled", "the server ended")
            return next((line for line in self.lines if any(end in line for end in ends)), None)

        with self.changed:
            line = self.changed.wait_for(find_line, seconds)
        if line is None or words not in line:
            raise UserError(f"server.py did not say {words!r} within {seconds} s: {' / '.join(self.lines[-3:])}")
        return line

    def wait_until_compiled(self):
        """Wait until the server has compiled its steps in the background. Raises UserError where that fails."""
        self.wait_for_line("steps are compiled", COMPILE_SECONDS)


def load_server(address, prompts, clients, requests, n_new, fields=None):
    """Figures, a dict, of clients that ask at the same time, each one prompt again and again.

    prompts: lists of ids; clients: their number; requests: of each client, one after the other; n_new: tokens of an
    answer; fields: further ones of each request, a dict.
    tokens_per_second: of all clients together; first_50, first_99: seconds until the first piece of text, median and
    99th percentile; between_50, between_99: seconds between two pieces. Raises UserError.
    """

    def ask_repeatedly(i):
        return [stream_completion(address, prompts[i % len(prompts)], n_new, fields) for _ in range(requests)]

    started = time.perf_counter()
    try:
        with ThreadPoolExecutor(clients) as pool:
            answers = list(itertools.chain.from_iterable(pool.map(ask_repeatedly, range(clients))))
    except Exception as error:  # of any kind: without this client the figures would be wrong
        raise UserError(f"a client of {address} failed: {error!r}") from None
    figures = {"tokens_per_second": sum(n_tokens for _, n_tokens in answers) / (time.perf_counter() - started)}
    firsts = sorted(times[1] - times[0] for times, _ in answers)
    betweens = sorted(b - a for times, _ in answers for a, b in itertools.pairwise(times[1:]))
    for name, values in (("first", firsts), ("between", betweens)):
        for percent in (50, 99):
            figures[f"{name}_{percent}"] = values[min(len(values) - 1, len(values) * percent // 100)]
    return figures


def stream_completion(address, prompt, n_new, fields=None):
    """([time of the request, times of the pieces of text], number of tokens) of a streamed completion."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
    body = {"model": MODEL, "prompt": prompt, "max_tokens": n_new, "temperature": 0, "stream": True}
    body |= {"stream_options": {"include_usage": True}} | (fields or {})
    times, n_tokens = [time.perf_counter()], 0
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise ValueError(f"status {response.status}: {response.read()[:200]!r}")
    for line in response:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if event["choices"] and event["choices"][0]["text"]:
                times.append(time.perf_counter())
            if event.get("usage"):
                n_tokens = event["usage"]["completion_tokens"]
    connection.close()
    if len(times) < 2:
        raise ValueError(f"no text came for the prompt {prompt[:8]}…")
    return times, n_tokens


def starting_rates(address, prompts):
    """{number of clients: tokens a second} of short requests to a server, one of each client."""
    return {
        clients: load_server(address, prompts, clients, 1, STARTING_TOKENS)["tokens_per_second"]
        for clients in STARTING_CLIENTS
    }


def seconds_to_full_speed(ckpt, flags, prompts, warm, environment):
    """{number of clients: seconds} from the start of a server's process until it is at full speed.

    It is asked again and again, until it has FULL_SPEED_SHARE of the rate of a server that has long been running.
    None: not within FULL_SPEED_SECONDS. ckpt, flags, environment: as in `ServedModel`; warm: address of the other
    server, with the same checkpoint and flags.
    """
    load_server(warm, prompts, 1, 1, STARTING_TOKENS)  # not counted: it has been idle
    rates = [starting_rates(warm, prompts) for _ in range(WARM_REQUESTS)]
    full = {clients: statistics.median(each[clients] for each in rates) for clients in STARTING_CLIENTS}
    found = dict.fromkeys(STARTING_CLIENTS)
    with ServedModel(ckpt, *flags, environment=environment) as server:
        while None in found.values() and time.perf_counter() - server.started < FULL_SPEED_SECONDS:
            for clients, rate in starting_rates(server.address, prompts).items():
                if found[clients] is None and rate >= FULL_SPEED_SHARE * full[clients]:
                    found[clients] = time.perf_counter() - server.started
    return found
