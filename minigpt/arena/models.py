"""The checkpoints under a folder, and those of them that are in memory."""

import gc
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minigpt.arena.problems import Problem, printable
from minigpt.checkpoint import BEST, PREVIOUS, load_checkpoint
from minigpt.common.errors import UserError
from minigpt.inference.engine import open_generator
from model import GPT, GPTConfig


@dataclass(frozen=True)
class Checkpoint:
    """A file under the folder. name: its run's folder, and, unless it is the run's best, its own; parameters: as
    nanoGPT counts them; val_loss: nats a token, None where the run has not validated; seconds: when it was saved."""

    name: str
    path: Path
    stage: str
    step: int
    parameters: int
    val_loss: float | None
    seconds: float

    @property
    def key(self):
        """What votes know it by: a later step of the same run is another model."""
        return f"{self.name} (step {self.step})"


def read_about(path, name):
    """The `Checkpoint` of a file; its weights are mapped, not read. Raises UserError without one."""
    stamp = path.stat().st_mtime
    content = load_checkpoint(path, mmap=True)
    try:
        with torch.device("meta"):
            parameters = GPT(GPTConfig(**content["model_args"])).num_params()
        progress = content["progress"]
        losses = progress.get("last_losses")
        loss = progress.get("best_val_loss") if path.name == BEST else losses[1] if losses else None
        loss = loss if loss is not None and loss < float("inf") else None
        if content["stage"] not in ("pretrain", "sft"):
            raise ValueError(f"stage {content['stage']!r}")
        return Checkpoint(name, path, content["stage"], int(progress["step"]), parameters, loss, stamp)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:  # values of a wrong kind
        raise UserError(f"{path} is no checkpoint of this version ({type(error).__name__})") from None


def unique(checkpoints):
    """[Checkpoint] with a number behind a name that another has already."""
    named = {}
    for checkpoint in checkpoints:
        name, count = checkpoint.name, 1
        while name in named:
            count += 1
            name = f"{checkpoint.name}-{count}"
        named[name] = replace(checkpoint, name=name)
    return list(named.values())


class Slot:
    """A checkpoint in memory, or on its way there. users: answers that are being made with it."""

    def __init__(self):
        self.lock, self.checkpoint, self.generator, self.users = threading.Lock(), None, None, 0


class Shelf:
    """Checkpoints under settings.out_root; at most settings.loaded_models in memory, unless more are in use.

    open: as generation.open_generator.
    """

    def __init__(self, settings, open=open_generator):
        self.settings, self._open, self.root = settings, open, Path(settings.out_root)
        self._about = {}  # (path, time, size) to Checkpoint
        self._slots, self._lock = {}, threading.Lock()  # name to Slot, the least recently used first

    def checkpoints(self):
        """([Checkpoint], [UserError]): what is there now, the newest (see checkpoint.newest_checkpoint) first, and
        what is broken."""
        found = {}
        for path in sorted(self.root.rglob("*.pt")):
            if path.name == PREVIOUS:
                continue
            try:
                stat = path.stat()
            except OSError:  # replaced just now
                continue
            known = (path, stat.st_mtime_ns, stat.st_size)
            found[known] = self._about.get(known) or self._read(path)
        # What could not be read is tried again: it may have been for an instant only.
        self._about = {known: each for known, each in found.items() if isinstance(each, Checkpoint)}
        good = unique(self._about.values())
        saved, complete = {}, {each.path.parent for each in good if each.path.name == BEST}
        for each in good:
            saved[each.path.parent] = max(each.seconds, saved.get(each.path.parent, 0))

        def order(each):
            run = each.path.parent
            return run not in complete, -saved[run], each.path.name != BEST, -each.seconds, each.name

        good.sort(key=order)
        return good, [each for each in found.values() if isinstance(each, UserError)]

    def _read(self, path):
        folder = path.parent.relative_to(self.root)
        parts = (*folder.parts, *(() if path.name == BEST else (path.stem,)))
        try:
            # An @ would make it a remote model's name.
            return read_about(path, printable("/".join(parts) or path.stem).replace("@", "_"))
        except (UserError, OSError) as error:
            return UserError(str(error))

    def find(self, name):
        """The Checkpoint of that name. Raises Problem."""
        for checkpoint in self.checkpoints()[0]:
            if checkpoint.name == name:
                return checkpoint
        raise Problem("no_model", name=printable(str(name)))

    def is_loaded(self, name):
        """Whether asking it needs no loading."""
        slot = self._slots.get(name)
        return bool(slot and slot.generator)

    def borrow(self, name):
        """(generator, Checkpoint) of that name, loaded if need be; `give_back` it. Raises Problem or UserError."""
        checkpoint = self.find(name)
        with self._lock:
            slot = self._slots.pop(name, None) or Slot()
            self._slots[name] = slot  # the most recently used is the last
            slot.users += 1
        self._make_room()  # before there is one more
        try:
            with slot.lock:
                if slot.checkpoint != checkpoint and slot.users == 1 and slot.generator:
                    self._unload(slot)  # the run has saved again
                if slot.generator is None:
                    _, _, slot.generator = self._open(str(checkpoint.path), self.settings)
                    slot.checkpoint = checkpoint
                return slot.generator, slot.checkpoint
        except BaseException:
            self.give_back(name)
            raise

    def give_back(self, name):
        """An answer by that checkpoint has ended."""
        with self._lock:
            if slot := self._slots.get(name):
                slot.users -= 1
                if not slot.users and slot.generator is None:
                    del self._slots[name]
        self._make_room()

    def _make_room(self):
        with self._lock:
            idle = [name for name, slot in self._slots.items() if not slot.users]
            beyond = max(0, len(self._slots) - self.settings.loaded_models)
            leaving = [self._slots.pop(name) for name in idle[:beyond]]
        for slot in leaving:
            self._unload(slot)

    def _unload(self, slot):
        slot.generator.close()
        slot.generator = slot.checkpoint = None
        gc.collect()

    def close(self):
        """Unload everything."""
        with self._lock:
            slots, self._slots = list(self._slots.values()), {}
        for slot in slots:
            if slot.generator:
                self._unload(slot)
