"""Checkpoints: atomic writing, self-contained content, one-line errors, and finding the newest."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from tiny import random_ids, tiny_model, tiny_tokenizer

from minigpt.checkpoint import load_checkpoint, load_model, newest_checkpoint, newest_intact, save_checkpoint
from minigpt.common.errors import UserError
from minigpt.settings.parse import load_settings
from minigpt.settings.stages import TrainSettings
from minigpt.tokenizer import load_tokenizer

PROGRESS = {"step": 7, "rows_drawn": 70, "tokens": 700, "best_val_loss": 1.5}


def save(path, seed=0, tokenizer=None, step=7, architecture="gpt2", **state):
    """Write a tiny checkpoint; returns its model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = tiny_model(seed, architecture=architecture)
    about = TrainSettings(n_layer=2), "sft", tokenizer or tiny_tokenizer(), {**PROGRESS, "step": step}
    save_checkpoint(path, model.state_dict(), model.config, *about, **state)
    return model


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path, architecture):
    moments = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}}, "param_groups": [{"lr": 0.1}]}
    random = torch.get_rng_state()
    model = save(tmp_path / "last.pt", architecture=architecture, optimizers=[moments], random=random)
    content = load_checkpoint(tmp_path / "last.pt")
    assert (content["stage"], content["progress"]) == ("sft", PROGRESS)
    assert content["settings"] == TrainSettings(n_layer=2).to_dict() and content["settings"]["n_layer"] == 2
    assert torch.equal(content["random"], random)
    assert torch.equal(content["optimizers"][0]["state"][0]["exp_avg"], moments["state"][0]["exp_avg"])
    loaded, _ = load_model(content)
    assert loaded.config == model.config
    assert not loaded.training
    assert (loaded.wte.weight is loaded.lm_head.weight) == model.config.tied
    for (name, p), q in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert torch.equal(loaded(random_ids(2, 9)), model(random_ids(2, 9)))
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_checkpoint_contains_only_the_settings_of_train_and_no_secret(tmp_path):
    """A settings file that several scripts share may contain the server's key and the arena's password."""
    file = tmp_path / "shared.py"
    file.write_text('api_key = "sk-secret"\nauth = "me:secret"\nlearning_rate = 0.5\n', encoding="utf-8")
    settings = load_settings(TrainSettings, [str(file)])
    model = tiny_model()
    save_checkpoint(tmp_path / "ckpt.pt", model.state_dict(), model.config, settings, "sft", tiny_tokenizer(), PROGRESS)
    kept = load_checkpoint(tmp_path / "ckpt.pt")["settings"]
    assert kept["learning_rate"] == 0.5
    assert set(kept) == set(TrainSettings().to_dict())
    assert not {"api_key", "auth"} & set(kept) and b"secret" not in (tmp_path / "ckpt.pt").read_bytes()


def test_a_checkpoint_with_a_trained_tokenizer_needs_no_other_file(tmp_path):
    table = tmp_path / "data" / "tokenizer.tiktoken"
    table.parent.mkdir()
    table.write_bytes(tiny_tokenizer().vocabulary)
    ours = load_tokenizer(str(table))
    save(tmp_path / "run" / "ckpt.pt", tokenizer=ours)
    table.unlink()
    os.replace(tmp_path / "run" / "ckpt.pt", tmp_path / "elsewhere.pt")
    _, tokenizer = load_model(load_checkpoint(tmp_path / "elsewhere.pt"))
    assert (tokenizer.name, tokenizer.sha256) == ("tokenizer.tiktoken", ours.sha256)
    assert tokenizer.special_ids() == ours.special_ids()
    assert tokenizer.encode("有河的镇") == ours.encode("有河的镇")


def test_a_checkpoint_with_gpt2s_tokenizer_does_not_contain_it(tmp_path):
    gpt2 = load_tokenizer()
    save(tmp_path / "ckpt.pt", tokenizer=gpt2)
    content = load_checkpoint(tmp_path / "ckpt.pt")
    assert content["tokenizer"] == {"name": "gpt2", "sha256": gpt2.sha256, "table": None}
    assert load_model(content)[1].encode("有河的镇") == gpt2.encode("有河的镇")


def test_the_tied_weight_is_stored_once(tmp_path):
    model = save(tmp_path / "ckpt.pt")
    weights = sum(p.numel() * 4 for p in model.parameters())
    assert weights < (tmp_path / "ckpt.pt").stat().st_size < weights + model.wte.weight.numel() * 4


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_a_user_error(tmp_path, share):
    path = tmp_path / "ckpt.pt"
    save(path)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(UserError, match=r"ckpt\.pt is truncated, or is no checkpoint") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


OTHER_FILES = {
    "a text": "第一镇\n".encode(),
    "a log": b"step 1\nstep 2\n",
    "a csv": b"question,answer\n",
    "a name": b"GPT\n",
    "a json": b'{"step": 1}\n',
    "a zip": b"PK\x03\x04" + b"\0" * 30,
    "GPT-2's tokenizer": b"IQ== 0\nIg== 1\n",
    "some bytes": bytes(range(0x47, 0x80)),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_another_kind_of_file_is_a_user_error(tmp_path, name):
    path = tmp_path / "ckpt.pt"
    path.write_bytes(OTHER_FILES[name])
    with pytest.raises(UserError, match=r"ckpt\.pt.* no checkpoint") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [{"model": {}, "stage": "sft"}, [1, 2], torch.zeros(3)], ids=["dict", "list", "tensor"]
)
def test_another_programs_checkpoint_is_a_user_error_that_says_what_it_lacks(tmp_path, content):
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=r"ckpt\.pt is not a MiniGPT checkpoint.*model_args.*tokenizer"):
        load_checkpoint(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))])
def test_a_checkpoint_that_contains_code_is_refused_and_the_code_not_run(tmp_path, write):
    write({"model": Payload(tmp_path / "ran"), "model_args": {}}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=r"ckpt\.pt"):
        load_checkpoint(tmp_path / "ckpt.pt")
    assert not (tmp_path / "ran").exists()


def test_a_missing_checkpoint_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"ckpt\.pt is not there"):
        load_checkpoint(tmp_path / "ckpt.pt")


def test_the_folder_of_a_run_is_a_user_error_that_names_its_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"name a checkpoint: .*ckpt\.pt"):
        load_checkpoint(tmp_path)


def fails_half_written(error):
    def torch_save(content, file):
        file.write(b"half of a checkpoint")
        raise error

    return torch_save


def fails(error):
    def call(*arguments, **named):
        raise error

    return call


FAILURES = {
    "a full disk, as torch says it": (torch, "save", fails_half_written(RuntimeError("unexpected pos 64")), UserError),
    "a full disk": (torch, "save", fails_half_written(OSError(28, "No space left on device")), UserError),
    "a file in use": (os, "replace", fails(PermissionError(13, "in use")), UserError),
    "Ctrl-C": (torch, "save", fails_half_written(KeyboardInterrupt()), KeyboardInterrupt),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_save_that_fails_leaves_the_older_file_as_it_was(tmp_path, monkeypatch, name):
    module, function, failing, shown = FAILURES[name]
    path = tmp_path / "last.pt"
    save(path)
    before = path.read_bytes()
    monkeypatch.setattr(module, function, failing)
    with pytest.raises(shown):
        save(path, seed=1)
    monkeypatch.undo()
    assert path.read_bytes() == before
    if shown is UserError:
        assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    save(path, seed=1)  # files that the failed save left do not disturb the next one
    assert torch.equal(load_model(load_checkpoint(path))[0].wte.weight, tiny_model(1).wte.weight)


def test_a_save_that_fails_for_the_first_time_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", fails_half_written(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"ckpt\.pt could not be written.*No space left"):
        save(tmp_path / "ckpt.pt")
    assert list(tmp_path.iterdir()) == []


def touch(path, age):
    """An empty file, saved `age` hours ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (1_700_000_000 - 3600 * age,) * 2)


def test_the_newest_checkpoint_is_the_best_one_of_the_run_saved_last(tmp_path):
    touch(tmp_path / "old" / "ckpt.pt", age=5)
    touch(tmp_path / "old" / "last.pt", age=4)
    touch(tmp_path / "new" / "deep" / "ckpt.pt", age=6)
    touch(tmp_path / "new" / "deep" / "last.pt", age=3)
    touch(tmp_path / "new" / "deep" / "step_000500.pt", age=3)
    assert newest_checkpoint(tmp_path) == tmp_path / "new" / "deep" / "ckpt.pt"
    touch(tmp_path / "old" / "ckpt.pt", age=2)
    touch(tmp_path / "begun" / "last.pt.partial", age=0)
    touch(tmp_path / "others" / "weights.pt", age=0)
    assert newest_checkpoint(tmp_path) == tmp_path / "old" / "ckpt.pt"
    touch(tmp_path / "begun" / "last.pt", age=1)
    assert newest_checkpoint(tmp_path) == tmp_path / "old" / "ckpt.pt"


def test_a_run_started_by_mistake_is_not_the_newest(tmp_path):
    """It has saved a last.pt at step 0; the earlier run is in old/ within its folder."""
    touch(tmp_path / "run" / "last.pt", age=1)
    touch(tmp_path / "begun" / "last.pt", age=2)
    assert newest_checkpoint(tmp_path) == tmp_path / "run" / "last.pt"  # where there is nothing else
    touch(tmp_path / "run" / "old" / "ckpt.pt", age=6)
    touch(tmp_path / "run" / "old" / "last.pt", age=5)
    assert newest_checkpoint(tmp_path) == tmp_path / "run" / "old" / "ckpt.pt"
    touch(tmp_path / "run" / "ckpt.pt", age=0)
    assert newest_checkpoint(tmp_path) == tmp_path / "run" / "ckpt.pt"


def test_without_any_checkpoint_the_error_names_the_command_to_train(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"no checkpoint under .*python train\.py"):
            newest_checkpoint(root)


def test_resuming_loads_the_last_intact_checkpoint(tmp_path, capsys):
    save(tmp_path / "last.prev.pt", step=1)
    save(tmp_path / "last.pt", step=2)
    assert newest_intact(tmp_path)["progress"]["step"] == 2
    os.truncate(tmp_path / "last.pt", 1000)
    assert newest_intact(tmp_path)["progress"]["step"] == 1
    assert "last.pt is truncated" in capsys.readouterr().out
    (tmp_path / "last.pt").unlink()
    assert newest_intact(tmp_path)["progress"]["step"] == 1


UNREADABLE = {
    "Permission denied": PermissionError(13, "Permission denied"),
    "Input/output error": OSError(5, "Input/output error"),
    "not enough memory": MemoryError(),
    "not enough memory (torch)": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B"),
}


@pytest.mark.parametrize("reason", UNREADABLE)
def test_a_checkpoint_that_the_system_cannot_read_is_not_called_damaged(tmp_path, monkeypatch, reason):
    """And resuming does not silently continue from the older one."""
    for name in ("last.pt", "last.prev.pt"):
        save(tmp_path / name)
    load = torch.load
    withheld = fails(UNREADABLE[reason])
    monkeypatch.setattr(torch, "load", lambda path, **o: (withheld if path.name == "last.pt" else load)(path, **o))
    for read in (lambda: load_checkpoint(tmp_path / "last.pt"), lambda: newest_intact(tmp_path)):
        with pytest.raises(UserError, match=f"last.pt cannot be read .{reason.split(' (')[0]}.$"):
            read()


def test_a_folder_that_the_system_cannot_read_is_a_user_error(monkeypatch):
    monkeypatch.setattr(Path, "is_file", fails(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match=r"ckpt\.pt cannot be read .Permission denied"):
        load_checkpoint("run/ckpt.pt")


def test_resuming_without_an_intact_checkpoint_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"last\.pt is not there"):
        newest_intact(tmp_path)
    for name in ("last.pt", "last.prev.pt"):
        save(tmp_path / name)
        os.truncate(tmp_path / name, 1000)
        with pytest.raises(UserError, match=f"{name} is truncated"):
            newest_intact(tmp_path)
