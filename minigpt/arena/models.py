"""The checkpoints (and Hugging Face folders) under a folder, and a cache of those that are loaded."""

import gc
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minigpt.arena.problems import Problem, clean_name
from minigpt.checkpoint import BEST, PREVIOUS, load_checkpoint, number_equal_names
from minigpt.common.errors import UserError
from minigpt.common.files import file_stamp
from minigpt.formats.adoption import CONFIG_FILE, is_model_folder
from minigpt.inference.classify import open_labeller_or_generator
from model import GPT, GPTConfig

KNOWN_STAGES = ("pretrain", "sft", "task", "mlm")


@dataclass(frozen=True)
class CheckpointInfo:
    """What the lists show of a checkpoint.

    name: its run's folder, and its own name unless it is the run's best; path: the file, or a Hugging Face folder;
    parameters: counted as in nanoGPT; val_loss: nats per token, None before the first validation; seconds: modification
    time of the file; task: kind of the task of a model with a head, "" of others; is_adapter: it has the trained
    parameters alone, not its base's; started_from: path of the checkpoint or folder that its training started from, ""
    for none or if it does not say.
    """

    name: str
    path: Path
    stage: str
    step: int
    parameters: int
    val_loss: float | None
    seconds: float
    task: str = ""
    is_adapter: bool = False
    started_from: str = ""

    @property
    def key(self):
        """Its name in votes. A later step of the same run counts as another model."""
        return f"{self.name} (step {self.step})"


def read_checkpoint_info(path, name):
    """The `CheckpointInfo` of a file or a Hugging Face folder, whose weights are not read. Raises UserError if it has
    none.

    An adapter's base is not read either: where it is missing, only the adapter's own parameters are counted.
    """
    modified = path.stat().st_mtime
    content = load_checkpoint(path, mmap=True)
    try:
        with torch.device("meta"):
            parameters = GPT(GPTConfig(**content["model_args"])).num_params()
        if "base" in content and not Path(content["base"]["path"]).exists():
            parameters = sum(tensor.numel() for tensor in content["model"].values())
        progress = content["progress"]
        losses = progress.get("last_losses")
        loss = progress.get("best_val_loss") if path.name == BEST else losses[1] if losses else None
        loss = loss if loss is not None and loss < float("inf") else None
        if content["stage"] not in KNOWN_STAGES:
            raise ValueError(f"stage {content['stage']!r}")
        about = content["stage"], int(progress["step"]), parameters, loss, modified
        task = content["task"]["kind"] if content["stage"] == "task" else ""
        return CheckpointInfo(name, path, *about, task, "adapter" in content, origin_of(content))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:  # entries of a wrong type
        raise UserError(f"{path} is no checkpoint of this version ({type(error).__name__})") from None


def origin_of(content):
    """The path that a checkpoint's training started from: an adapter's base, else the setting init_from; "" if it
    started from nothing, or was resumed by a version that did not keep the path."""
    path = content["base"]["path"] if "base" in content else content["settings"].get("init_from", "scratch")
    return "" if path in ("scratch", "resume") else str(path)


class CacheSlot:
    """A checkpoint that is loaded or being loaded. users: answers that are being generated with it."""

    def __init__(self):
        self.lock, self.checkpoint, self.generator, self.users = threading.Lock(), None, None, 0


class ModelCache:
    """The checkpoints under settings.out_root. At most settings.loaded_models of them stay loaded, unless more are in
    use; the least recently used one is unloaded first.

    open: as inference.classify.open_labeller_or_generator.
    """

    def __init__(self, settings, open=open_labeller_or_generator):
        self.settings, self._open, self.root = settings, open, Path(settings.out_root)
        self._infos = {}  # (path, stamp of the file): CheckpointInfo
        self._slots, self._lock = {}, threading.Lock()  # name: CacheSlot, the least recently used first

    def checkpoints(self):
        """([CheckpointInfo], [UserError]): the checkpoints now, in the order of checkpoint.newest_checkpoint, and the
        errors of the broken ones."""
        found = {}
        folders = [config.parent for config in self.root.rglob(CONFIG_FILE)]
        for path in sorted([*self.root.rglob("*.pt"), *folders]):
            stamp = file_stamp(path / CONFIG_FILE if path in folders else path)
            if path.name == PREVIOUS or stamp is None:  # None: replaced since it was listed
                continue
            known = (path, stamp)
            found[known] = self._infos.get(known) or self._read_info(path)
        # Only successes are remembered: an error may have been temporary.
        self._infos = {known: each for known, each in found.items() if isinstance(each, CheckpointInfo)}
        names = number_equal_names([each.name for each in self._infos.values()])
        infos = [replace(each, name=name) for each, name in zip(self._infos.values(), names, strict=True)]
        complete = {each.path.parent for each in infos if each.path.name == BEST}
        saved = {}
        for each in infos:
            saved[each.path.parent] = max(each.seconds, saved.get(each.path.parent, 0))

        def order(each):
            run = each.path.parent
            return run not in complete, -saved[run], each.path.name != BEST, -each.seconds, each.name

        return sorted(infos, key=order), [each for each in found.values() if isinstance(each, UserError)]

    def _read_info(self, path):
        folder = path.parent.relative_to(self.root)
        own = path.name if is_model_folder(path) else path.stem
        parts = (*folder.parts, *(() if path.name == BEST else (own,)))
        try:
            # "@" separates a remote model's name from its peer's.
            return read_checkpoint_info(path, clean_name("/".join(parts) or own).replace("@", "_"))
        except (UserError, OSError) as error:
            return UserError(str(error))

    def is_loaded(self, name):
        """Whether the checkpoint is loaded."""
        slot = self._slots.get(name)
        return bool(slot and slot.generator)

    def acquire(self, name):
        """(generator, CheckpointInfo) of that name, loaded if necessary. The caller must `release` it.

        Raises Problem or UserError.
        """
        checkpoint = next((each for each in self.checkpoints()[0] if each.name == name), None)
        if checkpoint is None:
            raise Problem("no_model", name=clean_name(str(name)))
        with self._lock:
            slot = self._slots.pop(name, None) or CacheSlot()
            self._slots[name] = slot  # the most recently used is the last
            slot.users += 1
        self._evict()  # before one more is loaded
        try:
            with slot.lock:
                if slot.checkpoint != checkpoint and slot.users == 1 and slot.generator:
                    self._unload(slot)  # the run has saved a newer version
                if slot.generator is None:
                    _, _, slot.generator = self._open(str(checkpoint.path), self.settings)
                    slot.checkpoint = checkpoint
                return slot.generator, slot.checkpoint
        except BaseException:
            self.release(name)
            raise

    def release(self, name):
        """End one use of the checkpoint."""
        with self._lock:
            if slot := self._slots.get(name):
                slot.users -= 1
                if not slot.users and slot.generator is None:
                    del self._slots[name]
        self._evict()

    def _evict(self):
        with self._lock:
            idle = [name for name, slot in self._slots.items() if not slot.users]
            excess = max(0, len(self._slots) - self.settings.loaded_models)
            evicted = [self._slots.pop(name) for name in idle[:excess]]
        for slot in evicted:
            self._unload(slot)

    def _unload(self, slot):
        slot.generator.close()
        slot.generator = slot.checkpoint = None
        gc.collect()

    def close(self):
        """Unload all checkpoints."""
        with self._lock:
            slots, self._slots = list(self._slots.values()), {}
        for slot in slots:
            if slot.generator:
                self._unload(slot)
