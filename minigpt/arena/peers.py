"""Remote models: the file that lists them, whether each answers and how fast, and their models."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from minigpt.arena.problems import Problem, printable
from minigpt.common.errors import UserError
from minigpt.common.files import write_json
from minigpt.openai_client import ApiClient, ApiFailure, Limits, base_url

NAME_CHARS = 40
MOST_PEERS = 64
CHECK_SECONDS = 3.0  # that a peer has to list its models
FRESH_SECONDS = 5.0  # within which a peer is not asked again
GONE = ("unreachable", "broke_off", "too_slow")  # codes of ApiFailure
SEPARATOR = " @ "  # between a remote model and its peer


@dataclass(frozen=True)
class Peer:
    """An entry of the file. address: as api_client.base_url takes it; key: "" for none."""

    name: str
    address: str
    key: str = ""


@dataclass(frozen=True)
class Status:
    """What a check found. seconds: that the answer took; models: as ApiClient.models gives them; failure: ApiFailure,
    None where it answers; at: time.monotonic()."""

    seconds: float = 0.0
    models: tuple = ()
    failure: ApiFailure | None = None
    at: float = 0.0


def peer_of(entry):
    """The Peer of one entry (parsed JSON). Raises Problem or ApiFailure that says what is wrong with it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise Problem("peer_entry")
    name, address, key = entry["name"], entry.get("address"), entry.get("key") or ""
    if printable(name, NAME_CHARS) != name or not name or "@" in name:
        raise Problem("peer_bad_name", name=printable(name), most=NAME_CHARS)
    if not isinstance(address, str) or not isinstance(key, str):
        raise Problem("peer_entry")
    base_url(address)
    if not key.isascii() or not (key.isprintable() or not key):
        raise Problem("peer_key")
    return Peer(name, address.strip(), key)


class Peers:
    """The peers of a file (a JSON list of {"name", "address", "key"}), which may be edited while we run."""

    def __init__(self, path, limits=None):
        self.path, self.limits = Path(path), limits or Limits()
        self.problems = []  # of the file, when it was read last
        self._peers, self._clients, self._statuses = {}, {}, {}
        self._read_at, self._lock = None, threading.RLock()
        self._checks, self._pool = {}, ThreadPoolExecutor(16, "peer-check")

    def all(self):
        """[Peer], as the file lists them now; entries that cannot be used are in `problems` and cost no other."""
        with self._lock:
            try:
                stat = self.path.stat()
                stamp = (stat.st_mtime_ns, stat.st_size)
            except OSError:
                stamp = None
            if stamp != self._read_at:
                self._read(stamp)
            return list(self._peers.values())

    def _read(self, stamp):
        self._read_at, self.problems, peers = stamp, [], {}
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8-sig")) if stamp else []
            if not isinstance(entries, list):
                raise ValueError("not a list")
        except (OSError, ValueError, RecursionError) as error:
            entries, self.problems = [], [Problem("peers_file", path=str(self.path), detail=str(error)[:100])]
        for entry in entries[:MOST_PEERS]:
            try:
                peer = peer_of(entry)
                if peer.name in peers:
                    raise Problem("peer_twice", name=peer.name)
                peers[peer.name] = peer
            except UserError as problem:
                self.problems.append(problem)
        for name in [name for name, peer in self._peers.items() if peers.get(name) != peer]:
            if client := self._clients.pop(name, None):
                client.close()
            self._statuses.pop(name, None)
        self._peers = peers

    def add(self, name, address, key=""):
        """Write a peer into the file, in the place of one of that name. Raises UserError; a file that cannot be read is
        left as it is."""
        with self._lock:
            peers = self._readable()
            peer = peer_of({"name": name.strip(), "address": address, "key": key.strip()})
            others = [each for each in peers if each.name != peer.name]
            if len(others) >= MOST_PEERS:
                raise Problem("peers_full", most=MOST_PEERS)
            self._write([*others, peer])

    def remove(self, name):
        """Take a peer out of the file. Raises UserError."""
        with self._lock:
            peers = self._readable()
            if name not in [peer.name for peer in peers]:
                raise Problem("no_peer", name=printable(name))
            self._write([peer for peer in peers if peer.name != name])

    def _readable(self):
        """All peers. Raises the first problem: what was not understood would be lost by writing."""
        peers = self.all()
        if self.problems:
            raise self.problems[0]
        return peers

    def _write(self, peers):
        entries = [{k: v for k, v in asdict(peer).items() if v or k != "key"} for peer in peers]
        try:
            write_json(self.path, entries)
            os.chmod(self.path, 0o600)  # it has keys in it
        except OSError as error:
            raise Problem("not_written", path=str(self.path), detail=error.strerror) from None
        self._read_at = ()  # read again

    def client(self, name):
        """The ApiClient of a peer. Raises Problem where there is none."""
        with self._lock:
            peer = next((peer for peer in self.all() if peer.name == name), None)
            if peer is None:
                raise Problem("no_peer", name=printable(name))
            if name not in self._clients:
                self._clients[name] = ApiClient(peer.address, peer.key, self.limits)
            return self._clients[name]

    def status(self, name):
        """The Status of the last check, None before the first."""
        return self._statuses.get(name)

    def learn(self, name, error):
        """What an answer that a peer gave or failed to give tells of it: who is gone is not asked again until a check
        finds it back."""
        if isinstance(error, ApiFailure) and error.code in GONE:
            with self._lock:
                if name in self._peers:
                    self._statuses[name] = Status(failure=error, at=time.monotonic())

    def check(self, seconds=0.0, fresh=FRESH_SECONDS):
        """Ask all peers, at the same time, that were not asked within `fresh` seconds; wait `seconds` at most.

        Who has not answered by then does so later: `status` knows.
        """
        with self._lock:
            now = time.monotonic()
            for peer in self.all():
                status, running = self._statuses.get(peer.name), self._checks.get(peer.name)
                if (running is None or running.done()) and (status is None or now - status.at > fresh):
                    self._checks[peer.name] = self._pool.submit(self._check, peer)
            checks = list(self._checks.values())
        wait(checks, seconds)

    def _check(self, peer):
        try:
            models, seconds = self.client(peer.name).models(CHECK_SECONDS)
            models = [model for model in models if printable(model["id"]) == model["id"]]
            status = Status(seconds, tuple(models), None, time.monotonic())
        except ApiFailure as failure:
            status = Status(failure=failure, at=time.monotonic())
        except Problem:  # removed meanwhile
            return
        with self._lock:
            if self._peers.get(peer.name) == peer:
                self._statuses[peer.name] = status

    def close(self):
        """Wait for nothing that is still being asked."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()
