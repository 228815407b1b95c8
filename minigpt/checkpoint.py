"""Self-contained checkpoints: written atomically, loaded without executing code, found by age.

A checkpoint is a dict of plain values and tensors:
  model          state dict                  model_args   fields of GPTConfig
  settings       the settings of train.py    stage        "pretrain", "mlm", "sft" or "task"
  tokenizer      {"name", "sha256", "table": the tokenizer's `vocabulary` (bytes), or None for GPT-2's}
  progress       {"step", "epoch", "batch", "tokens", "best_val_loss", …}
  optimizers, scaler, random, precision      what resuming a run needs; in last.pt only
  launch         the start by torchrun that wrote it, where that restarts processes; in last.pt only
  task           of stage "task": {"kind", "labels"}
An adapter's checkpoint has the trained parameters alone in "model", and no table in "tokenizer". It also has:
  adapter        fields of `Adapting`        base         {"path", "sha256": of the base's weights}
"""

import errno
import hashlib
from dataclasses import asdict
from pathlib import Path

import torch

from minigpt.adapters.attach import attach_adapter, put_adapter_state
from minigpt.adapters.mixing import share_layers
from minigpt.adapters.peft_format import read_peft, read_peft_config
from minigpt.common.errors import UserError
from minigpt.common.files import write_atomic
from minigpt.formats.adoption import is_model_folder, is_peft_folder, read_model_folder
from minigpt.settings.stages import Adapting
from minigpt.tokenizer import load_tokenizer, load_vocabulary
from model import GPT, GPTConfig

# Of the stages whose models generate no text: what these models are for.
USES_OF_STAGE = {
    "task": "it labels texts: ask it with sample.py, server.py (/classify, /tag) or the arena, and measure it with "
    "evaluations-tasks.py",
    "mlm": "it finds masked tokens: fine-tune it on a task's rows, or let sample.py fill each [MASK] of a text",
    "reward": "it rewards answers: ask it with sample.py (question ## answer), or train by it with --reward_model=",
}
BEST, LAST, PREVIOUS = "ckpt.pt", "last.pt", "last.prev.pt"


def save_checkpoint(path, weights, config, settings, stage, tokenizer, progress, previous=None, **state):
    """Write a checkpoint to `path`, atomically: a crash or a full disk leaves an older file as it was.

    weights: state dict of a GPT; config: its GPTConfig; previous: the name that an older file of this path is moved to
    once the new one is written; state: further entries (task, adapter, base; optimizers, random, …).
    Raises UserError where the file cannot be written.
    """
    content = {
        "model": weights,
        "model_args": asdict(config),
        "settings": settings.to_dict(),  # only those of train.py: a settings file may also contain a key or a password
        "stage": stage,
        "tokenizer": {
            "name": tokenizer.name,
            "sha256": tokenizer.sha256,
            "table": None if tokenizer.is_gpt2 or "base" in state else tokenizer.vocabulary,
        },
        "progress": progress,
        **state,
    }
    path = Path(path)
    try:
        write_atomic(path, lambda file: torch.save(content, file), keep=previous)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError for a full disk
        raise UserError(f"{path} could not be written ({error}); the older file is as it was") from None


class InvalidCheckpointError(UserError):
    """The checkpoint is missing, damaged, or not one of ours. An older one may be loaded instead."""


def system_reason(error):
    """Why the system could not read an intact file (no permission, no memory …), from an exception of torch.load.

    None if the exception has another cause, that is, if the file is damaged.
    """
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch raises RuntimeError for it
        return "not enough memory"
    # EINVAL comes from seeking by the wrong offsets of a truncated file.
    return error.strerror if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL) else None


def load_checkpoint(path, mmap=False):
    """A checkpoint's dict, on the CPU. path: a checkpoint, or a Hugging Face folder of a model or of an adapter, which
    is read as one.

    mmap: for what needs no weights: they are mapped into memory instead of read, and left out of a folder's dict.
    Raises InvalidCheckpointError where the file is missing, truncated or not one of ours. Raises another UserError
    where the system cannot read it; the file itself may be intact then.
    """
    if is_peft_folder(path):
        return read_peft_folder(path, with_weights=not mmap)
    if is_model_folder(path):
        return read_model_folder(path, with_weights=not mmap)
    try:
        if Path(path).is_dir():
            raise InvalidCheckpointError(
                f"{path} is a folder without config.json, no model of Hugging Face's; of a run, name a checkpoint: "
                f"{Path(path) / BEST}"
            )
        if not Path(path).is_file():
            raise InvalidCheckpointError(f"checkpoint {path} is not there; train one first, or name another")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UserError:
        raise
    except Exception as error:  # unpickling other bytes raises errors of any type
        if reason := system_reason(error):
            raise UserError(f"checkpoint {path} cannot be read ({reason})") from None
        raise InvalidCheckpointError(
            f"checkpoint {path} is truncated, or is no checkpoint; take another, such as {PREVIOUS}"
        ) from None
    required = {"model", "model_args", "tokenizer", "stage", "progress"}
    missing = required - set(content if isinstance(content, dict) else ())
    if missing:
        raise InvalidCheckpointError(f"{path} is not a MiniGPT checkpoint: it has no {', '.join(sorted(missing))}")
    return content


def read_peft_folder(folder, with_weights=True):
    """A folder of peft's as an adapter's dict. Its base is where base_model_name_or_path in adapter_config.json says: a
    Hugging Face folder on this machine, or a checkpoint.

    with_weights: False leaves the weights out, as in `read_model_folder`. Raises UserError.
    """
    path = read_peft_config(folder).get("base_model_name_or_path") or ""
    try:
        found = load_checkpoint(path, mmap=not with_weights)
    except InvalidCheckpointError as error:
        raise UserError(f"base_model_name_or_path in {folder} does not name a base on this machine: {error}") from None
    content = {
        "model": {},
        "model_args": found["model_args"],
        "settings": {"init_from": path, "data_dir": ""},
        "stage": found["stage"],
        "tokenizer": {**found["tokenizer"], "table": None},
        "progress": {"step": 0},
        "adapter": {},
        "base": {"path": path, "sha256": ""},
    }
    if with_weights:
        config, state = read_peft(folder, build_model(found["model_args"], found["model"]))
        content["model"] = {name: tensor.detach() for name, tensor in state.items()}
        content["adapter"] = asdict(config)
        content["base"]["sha256"] = weights_hash(found)
    return content


def load_model(content, device="cpu", base=""):
    """(GPT in eval mode on `device`, Tokenizer) from a checkpoint's dict, which needs no other file.

    An adapter's needs its base, from which it gets the weights: at the path `base`; "": where it was in training.
    Raises UserError where the base is missing or another.
    """
    (model,), tokenizer = load_models([content], device, base)
    return model, tokenizer


def load_models(contents, device="cpu", base=""):
    """([GPT in eval mode on `device`], Tokenizer) from the dicts of a base, of adapters on it, or of both.

    The GPTs share the layers of the base, which is in memory once. base, errors: as in `load_model`.
    """
    found = next((each for each in contents if "adapter" not in each), None) or load_base(contents[0]["base"], base)
    whole, tokenizer = build_model(contents[0]["model_args"], found["model"]).to(device), load_own_tokenizer(found)
    models = []
    for content in contents:
        model = share_layers(whole) if len(contents) > 1 else whole
        if "adapter" in content:
            attach_adapter(model, Adapting(**content["adapter"]), tokenizer)
            put_adapter_state(model, content["model"])
        models.append(model.to(device).eval())
    return models, tokenizer


def group_by_base(contents):
    """[[place in `contents`]]: checkpoints' dicts that `load_models` may load together, in groups; each is in one."""
    has_adapters = any("adapter" in content for content in contents)
    groups = {}
    for place, content in enumerate(contents):
        key = place
        has_own_layers = content.get("adapter", {}).get("quantize", "none") != "none" or "task" in content
        if has_adapters and not has_own_layers:
            weights = content["base"]["sha256"] if "base" in content else weights_hash(content)
            key = weights, str(GPTConfig(**content["model_args"]))
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def build_model(model_args, weights):
    """A GPT of fields of GPTConfig and a state dict, whose tensors become the model's: a model of gigabytes is in
    memory once. A task's output layer that the weights lack begins at random."""
    with torch.device("meta"):
        model = GPT(GPTConfig(**model_args))
    if model.config.n_labels and len(weights["lm_head.weight"]) != model.config.n_labels:
        weights = {**weights, "lm_head.weight": new_output_layer(model.config)}
    model.load_state_dict(weights, assign=True)
    if model.config.tied:
        model.lm_head.weight = model.wte.weight
    return model


def new_output_layer(config):
    """The weights (n_labels, C) that a task's output layer begins with."""
    return torch.randn(config.n_labels, config.n_embd) * 0.02


def load_own_tokenizer(content):
    """The Tokenizer that a checkpoint's dict contains."""
    about = content["tokenizer"]
    return load_tokenizer() if about["table"] is None else load_vocabulary(about["name"], about["table"])


def weights_hash(content):
    """sha256 of the weights of a checkpoint's dict, by which an adapter recognizes its base."""
    digest = hashlib.sha256()
    for name, tensor in sorted(content["model"].items()):
        if name != "lm_head.weight" or not content["model_args"].get("tied", True):
            digest.update(name.encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_base(about, path=""):
    """The checkpoint's dict of an adapter's base; about: the adapter's {"path", "sha256"}; path: as in `load_model`.
    Raises UserError."""
    path = path or about["path"]
    try:
        found = load_checkpoint(path)
    except InvalidCheckpointError as error:
        raise UserError(f"the adapter's base cannot be loaded: {error}; say where it is with --base=") from None
    if "adapter" in found or weights_hash(found) != about["sha256"]:
        raise UserError(
            f"{path} is not the base that the adapter was trained on ({about['path']} with sha256 "
            f"{about['sha256'][:8]}…), or not as it was then; say where that is with --base="
        )
    return found


def stage_of(content):
    """The stage of a checkpoint's dict; "reward" of a reward model, whose checkpoint is of stage "task"."""
    is_reward = content.get("task", {}).get("kind") == "reward"
    return "reward" if is_reward else content["stage"]


def check_generates(stage, owner):
    """Raise UserError for a stage whose models generate no text. stage: as from `stage_of`; owner: the model, as the
    message names it."""
    if stage in USES_OF_STAGE:
        raise UserError(f"{owner} is of stage {stage} and generates no text; {USES_OF_STAGE[stage]}")


def newest_checkpoint(root="out"):
    """Path of the best checkpoint of the run under `root` that was saved last. Raises UserError if there is none.

    A run without a best checkpoint is only taken if no run has one. It may have been started by mistake, and then the
    earlier run is in the folder old/ within its own.
    """
    runs = {}  # {folder: {name: time of saving}}
    for path in Path(root).rglob("*.pt"):
        if path.name in (BEST, LAST):
            runs.setdefault(path.parent, {})[path.name] = path.stat().st_mtime
    if not runs:
        raise UserError(f"no checkpoint under {root}; train one first: python train.py config/train_config.py")
    run = max(runs, key=lambda run: (BEST in runs[run], max(runs[run].values())))
    return run / (BEST if BEST in runs[run] else LAST)


def model_names(paths):
    """Unique names for checkpoints: the folder of the run, followed by the name of the file unless it is ckpt.pt; of a
    Hugging Face folder its own name."""
    pairs = [
        ("", path.resolve().name)
        if is_model_folder(path)
        else (path.absolute().parent.name, "" if path.stem == "ckpt" else path.stem)
        for path in map(Path, paths)
    ]
    return number_equal_names(["/".join(filter(None, pair)) for pair in pairs])


def number_equal_names(names):
    """The names, made unique: -2, -3 … is appended to one that is taken."""
    unique = []
    for wanted in names:
        name, count = wanted, 1
        while name in unique:
            count += 1
            name = f"{wanted}-{count}"
        unique.append(name)
    return unique


def only_checkpoint(settings):
    """The checkpoint that the settings of a script name; "" if they name none. Raises UserError for several."""
    if len(settings.ckpt) > 1:
        raise UserError(f"{settings.SCRIPT} takes one model, but ckpt names {len(settings.ckpt)}")
    return settings.ckpt[0] if settings.ckpt else ""


def open_model(ckpt, out_root, device, base=""):
    """(path, checkpoint's dict, model, tokenizer) of a checkpoint; ckpt "": the newest under out_root; base: as in
    `load_model`."""
    path = ckpt or newest_checkpoint(out_root)
    content = load_checkpoint(path)
    return path, content, *load_model(content, device, base)


def newest_intact(run, mmap=False):
    """The dict of a run's last.pt or, where that is damaged or missing, of last.prev.pt.

    mmap: as in `load_checkpoint`. Raises UserError where neither can be loaded, and where the system cannot read
    last.pt: that file may be intact, so last.prev.pt is not loaded instead.
    """
    last, previous = Path(run) / LAST, Path(run) / PREVIOUS
    try:
        return load_checkpoint(last, mmap)
    except InvalidCheckpointError as error:
        if not previous.exists():
            raise
        print(f"{error}\ncontinuing from {previous}")
        return load_checkpoint(previous, mmap)
