"""Remote models: the file that lists their servers (peers), checks whether each responds, and their models."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

from minigpt.arena.problems import Problem, clean_name
from minigpt.common.errors import UserError
from minigpt.common.files import file_stamp, write_json
from minigpt.openai_client import ApiClient, ApiFailure, Limits, base_url

MAX_PEER_NAME_CHARS = 40
MAX_PEERS = 64
MAX_CONCURRENT_CHECKS = 16
CHECK_SECONDS = 3.0  # timeout of a request for a peer's list of models
CHECK_WAIT_SECONDS = 3.5  # how long the page waits for checks: the timeout and a little more
FRESH_SECONDS = 5.0  # a peer is not checked again within this time
OFFLINE_CODES = ("unreachable", "broke_off", "too_slow")  # codes of ApiFailure after which a peer counts as offline
SEPARATOR = " @ "  # between a remote model's name and its peer's


@dataclass(frozen=True)
class Peer:
    """An entry of the file. address: as openai_client.base_url takes it; key: the API key, "" for none."""

    name: str
    address: str
    key: str = ""


@dataclass(frozen=True)
class PeerStatus:
    """Result of a check. seconds: response time; models: as ApiClient.models returns them; failure: ApiFailure, None if
    the peer responded; at: time.monotonic() of the check."""

    seconds: float = 0.0
    models: tuple = ()
    failure: ApiFailure | None = None
    at: float = 0.0


def parse_peer(entry):
    """The Peer of one entry (parsed JSON). Raises Problem or ApiFailure, which says what is wrong with it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise Problem("peer_entry")
    name, address, key = entry["name"], entry.get("address"), entry.get("key") or ""
    if clean_name(name, MAX_PEER_NAME_CHARS) != name or not name or "@" in name:
        raise Problem("peer_bad_name", name=clean_name(name), most=MAX_PEER_NAME_CHARS)
    if not isinstance(address, str) or not isinstance(key, str):
        raise Problem("peer_entry")
    base_url(address)
    if not key.isascii() or not (key.isprintable() or not key):
        raise Problem("peer_key")
    return Peer(name, address.strip(), key)


class Peers:
    """The peers of a file, a JSON list of {"name", "address", "key"}. The file may be edited while we run."""

    def __init__(self, path, limits=None):
        self.path, self.limits = Path(path), limits or Limits()
        self.problems = []  # [UserError] of the last reading of the file
        self._peers, self._clients, self._statuses = {}, {}, {}  # each by the peer's name
        self._read_at, self._lock = None, threading.RLock()
        self._checks, self._pool = {}, ThreadPoolExecutor(MAX_CONCURRENT_CHECKS, "peer-check")

    def all(self):
        """[Peer], as the file lists them now, without unusable entries; `problems` says what is wrong with those."""
        with self._lock:
            stamp = file_stamp(self.path)
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
            entries = []
            self.problems = [Problem("peers_file", path=str(self.path), detail=str(error)[:100])]
        for entry in entries[:MAX_PEERS]:
            try:
                peer = parse_peer(entry)
                if peer.name in peers:
                    raise Problem("peer_twice", name=peer.name)
                peers[peer.name] = peer
            except UserError as problem:
                self.problems.append(problem)
        # Forget the connections and statuses of peers that were removed or changed.
        for name in [name for name, peer in self._peers.items() if peers.get(name) != peer]:
            if client := self._clients.pop(name, None):
                client.close()
            self._statuses.pop(name, None)
        self._peers = peers

    def add(self, name, address, key=""):
        """Write a peer into the file; it replaces one of the same name. Raises UserError. A file with errors is not
        changed."""
        with self._lock:
            peers = self._read_all()
            peer = parse_peer({"name": name.strip(), "address": address, "key": key.strip()})
            others = [each for each in peers if each.name != peer.name]
            if len(others) >= MAX_PEERS:
                raise Problem("peers_full", most=MAX_PEERS)
            self._write([*others, peer])

    def remove(self, name):
        """Remove a peer from the file. Raises UserError."""
        with self._lock:
            peers = self._read_all()
            if name not in [peer.name for peer in peers]:
                raise Problem("no_peer", name=clean_name(name))
            self._write([peer for peer in peers if peer.name != name])

    def _read_all(self):
        """[Peer]. Raises the first problem of the file, since writing it would lose the unusable entries."""
        peers = self.all()
        if self.problems:
            raise self.problems[0]
        return peers

    def _write(self, peers):
        entries = [{k: v for k, v in asdict(peer).items() if v or k != "key"} for peer in peers]
        try:
            write_json(self.path, entries)
            os.chmod(self.path, 0o600)  # it contains API keys
        except OSError as error:
            raise Problem("not_written", path=str(self.path), detail=error.strerror) from None
        self._read_at = ()  # equal to no stamp, so that the file is read again

    def client(self, name):
        """The ApiClient of a peer. Raises Problem if there is no such peer."""
        with self._lock:
            peer = next((peer for peer in self.all() if peer.name == name), None)
            if peer is None:
                raise Problem("no_peer", name=clean_name(name))
            if name not in self._clients:
                self._clients[name] = ApiClient(peer.address, peer.key, self.limits)
            return self._clients[name]

    def status(self, name):
        """The PeerStatus of the last check, None before the first."""
        return self._statuses.get(name)

    def record_error(self, name, error):
        """Mark a peer as offline if the error of an answer says so. Its models leave the lists until a check succeeds.

        error: an exception, or None.
        """
        if isinstance(error, ApiFailure) and error.code in OFFLINE_CODES:
            with self._lock:
                if name in self._peers:
                    self._statuses[name] = PeerStatus(failure=error, at=time.monotonic())

    def check(self, seconds=0.0, fresh=FRESH_SECONDS):
        """Check, in parallel, all peers whose last check is older than `fresh` seconds. Waits `seconds` at most.

        Checks that take longer continue in the background; `status` returns their results later.
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
            models = [model for model in models if clean_name(model["id"]) == model["id"]]
            status = PeerStatus(seconds, tuple(models), None, time.monotonic())
        except ApiFailure as failure:
            status = PeerStatus(failure=failure, at=time.monotonic())
        except Problem:  # removed in the meantime
            return
        with self._lock:
            if self._peers.get(peer.name) == peer:
                self._statuses[peer.name] = status

    def close(self):
        """Close all connections. Does not wait for running checks."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()
