"""minimind's training as a way of bench.py train: from a clone, which here is a tiny one that the test writes."""

import itertools
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from corpora import byte_tokenizer
from tiny import write_rows

import model
from minigpt.bench import minimind, training
from minigpt.common.errors import UserError
from minigpt.settings.stages import BenchSettings

# Names and calls are minimind's. A text is its characters' code points, modulo 60; 60, 61, 62: start, end, padding.
FAKE_CLONE = {
    "model/__init__.py": "",
    "model/tokenizer.json": "{}",
    "model/model_minimind.py": """
from types import SimpleNamespace
import torch

class MiniMindConfig:
    def __init__(self, hidden_size, num_hidden_layers):
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers

class MiniMindForCausalLM(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = torch.nn.Embedding(63, config.hidden_size)
        self.head = torch.nn.Linear(config.hidden_size, 63)

    def forward(self, input_ids, labels=None):
        logits, loss = self.head(self.embedding(input_ids)), None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(logits=logits, loss=loss, aux_loss=torch.zeros(()))
""",
    "dataset/lm_dataset.py": """
import json
import torch

class PretrainDataset(torch.utils.data.Dataset):
    def __init__(self, data_path, tokenizer, max_length):
        self.texts = [json.loads(line)["text"] for line in open(data_path, encoding="utf-8")]
        self.tokenizer, self.length = tokenizer, max_length

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        ids = [60, *self.tokenizer(self.texts[i], add_special_tokens=False).input_ids[: self.length - 2], 61]
        padding = self.length - len(ids)
        return torch.tensor(ids + [62] * padding), torch.tensor(ids + [-100] * padding)
""",
    "trainer/trainer_utils.py": """
from types import SimpleNamespace
import torch
from model.model_minimind import MiniMindForCausalLM

class Tokenizer:
    bos_token_id = 60

    def __call__(self, text, add_special_tokens):
        return SimpleNamespace(input_ids=[ord(character) % 60 for character in text])

    def decode(self, ids, skip_special_tokens):
        return "x" * sum(i < 60 for i in ids)

def init_model(config, from_weight, tokenizer_path, device):
    assert from_weight == "none"
    return MiniMindForCausalLM(config).to(device), Tokenizer()

def get_lr(current_step, total_steps, lr):
    return lr * (2 - current_step / total_steps)

def setup_seed(seed):
    torch.manual_seed(seed)

class SkipBatchSampler:
    def __init__(self, sampler, batch_size):
        self.batches = [sampler[first : first + batch_size] for first in range(0, len(sampler), batch_size)]

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)
""",
}
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 8}
TEXTS = ["abc" * (1 + i % 7) for i in range(20)]  # 3 to 21 characters


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The folder of a tiny clone. What is imported from it is forgotten after the test."""
    for name, text in FAKE_CLONE.items():
        (tmp_path / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / name).write_text(text, encoding="utf-8")
    for name in ("HF_DATASETS_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield tmp_path / "clone"
    for name in set(sys.modules) - known:
        if name.split(".")[0] in ("model", "dataset", "trainer"):
            del sys.modules[name]


@pytest.fixture
def texts(tmp_path, clone, monkeypatch):
    """The folder of TEXTS, taken from rows, whose tokens are cut at 12; an epoch has 3 batches, of which 2 make an
    update."""
    for name, value in {"MAX_TOKENS": 12, "BATCH_TEXTS": 8, "ACCUMULATED_BATCHES": 2, "LOADER_PROCESSES": 0}.items():
        monkeypatch.setattr(minimind, name, value)
    tokenizer = byte_tokenizer()
    rows = [tokenizer.encode(text) for text in TEXTS]
    write_rows(tmp_path / "rows", {"train": rows, "val": rows[:7]}, 32, tokenizer=tokenizer)
    minimind.prepare_minimind_texts(tmp_path / "rows", tmp_path / "texts", clone, SHAPE)
    return tmp_path / "texts"


def test_the_texts_are_those_of_our_rows_and_the_counts_those_of_what_is_trained_on(texts):
    for part, expected in (("train", TEXTS), ("val", TEXTS[:7])):
        lines = (texts / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["text"] for line in lines] == expected
    kept = sum(min(10, len(text)) for text in TEXTS)
    counts = json.loads((texts / minimind.CORPUS).read_text(encoding="utf-8"))["parts"]["train"]
    assert counts == {"tokens": kept + 2 * len(TEXTS), "characters": kept}


def test_weights_change_by_updates_of_several_batches_at_minimind_s_rates(texts):
    side = minimind.Minimind(texts, SHAPE, "cpu")
    assert sys.modules["model"] is model  # of the project, not of the clone
    before, changed, rates, tokens = side.model.head.weight.detach().clone(), [], [], []
    for _ in range(9):
        tokens.append(side.step()[0])
        rates.append(side.optimizer.param_groups[0]["lr"] / minimind.LEARNING_RATE)
        changed.append(not torch.equal(side.model.head.weight, before))
        before = side.model.head.weight.detach().clone()
    assert changed == [False, True, True] * 3  # the last batch of an epoch updates, too
    assert rates == pytest.approx([2 - min(i, 6) / 6 for i in range(1, 10)])
    assert sum(tokens[:3]) == sum(tokens[3:6]) == side.meta["parts"]["train"]["tokens"]


def test_validation_uses_what_is_accumulated_and_counts_every_character(texts):
    side = minimind.Minimind(texts, SHAPE, "cpu")
    torch.nn.init.zeros_(side.model.head.weight)
    torch.nn.init.zeros_(side.model.head.bias)
    assert side.bits_per_char() == pytest.approx(torch.tensor(63.0).log2().item())
    side.step()
    assert side.bits_per_char() < 5.97 and side.accumulated == 0


@pytest.fixture
def clock(monkeypatch):
    """Time in which every look at the clock takes a second."""
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    monkeypatch.setattr(training, "SIZES", {training.SMALL: SHAPE})


def test_speed_and_quality_are_measured_as_of_the_other_ways(texts, clock):
    figures = training.measure_speed("minimind", texts, training.SMALL, "cpu", 5)
    assert figures["tokens_per_second"] > figures["characters_per_second"] > 0
    ((seconds, before),) = training.measure_quality("minimind", texts, training.SMALL, "cpu", 2)
    ((_, after),) = training.measure_quality("minimind", texts, training.SMALL, "cpu", 60)
    assert after < before < 8 and seconds == 2


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("dataset/lm_dataset.py", None, r"clone has no dataset/lm_dataset.py.*git clone"),
        ("dataset/lm_dataset.py", "import no_such_package", "'no_such_package'.*pip install"),
        ("trainer/trainer_utils.py", "", "SkipBatchSampler"),
    ],
)
def test_what_is_no_clone_or_lacks_a_package_is_refused_before_anything_is_prepared(
    clone, monkeypatch, name, text, said
):
    (clone / name).unlink() if text is None else (clone / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(training, "call_in_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(training, "prepare_benchmark_rows", lambda *arguments: pytest.fail("prepared"))
    with pytest.raises(UserError, match=said):
        training.bench_training(BenchSettings(minimind=str(clone)))
    assert sys.modules["model"] is model
