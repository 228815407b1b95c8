"""minimind's pretraining (github.com/jingyaogong/minimind), from a clone that the user names, for bench.py train.

Model, tokenizer, data set, learning rate and order of the rows are the clone's own. Its loop stands within a script
that cannot be imported (trainer/train_pretrain.py), so the few lines of its step are written here, with the script's
defaults: float32 on a CPU, autocast to bfloat16 on CUDA, AdamW, an update after ACCUMULATED_BATCHES batches. Nothing is
saved or logged.
"""

import importlib
import itertools
import json
import math
import multiprocessing
import os
import sys
import warnings
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data_utils import load_row_tokenizer, open_rows
from minigpt.common.errors import UserError
from minigpt.common.files import write_json
from minigpt.device import pick_device

MINIMIND_FILES = (
    "model/model_minimind.py",
    "model/tokenizer.json",
    "dataset/lm_dataset.py",
    "trainer/trainer_utils.py",
)
# The defaults of trainer/train_pretrain.py.
BATCH_TEXTS, MAX_TOKENS, ACCUMULATED_BATCHES = 32, 340, 8
LEARNING_RATE, MAX_NORM, EPOCHS, FIRST_SEED = 5e-4, 1.0, 2, 42
LOADER_PROCESSES = 8
START_METHOD = multiprocessing.get_all_start_methods()[0]  # the system's; what is measured runs in a spawned process
CORPUS = "corpus.json"


def check_clone(path, cache):
    """Raise UserError unless `path` is a folder of minimind that can be imported. cache: as in `Clone`."""
    for name in MINIMIND_FILES:
        if not (Path(path) / name).is_file():
            raise UserError(
                f"minimind={path} has no {name}; name the folder of a clone: "
                "git clone https://github.com/jingyaogong/minimind"
            )
    Clone(path, cache)


class Clone:
    """What is imported from a clone of minimind.

    path: its folder; cache: the folder that Hugging Face's datasets may write to. Raises UserError where it cannot be
    imported, as when a package is not installed.
    """

    def __init__(self, path, cache):
        self.path = Path(path).resolve()
        os.environ |= {"HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
        warnings.simplefilter("ignore")  # as its script does
        # Both projects have a module `model`: ours is put aside while theirs is imported. The folder stays on sys.path
        # for the loader's processes, which import the data set's class by its name.
        ours = sys.modules.pop("model", None)
        sys.path.insert(0, str(self.path))
        try:
            model, data, trainer = map(
                importlib.import_module, ("model.model_minimind", "dataset.lm_dataset", "trainer.trainer_utils")
            )
            self.config_class, self.dataset_class = model.MiniMindConfig, data.PretrainDataset
            self.sampler_class, self.init_model = trainer.SkipBatchSampler, trainer.init_model
            self.get_lr, self.set_seed = trainer.get_lr, trainer.setup_seed
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"minimind={path} cannot be imported ({error}); pip install transformers datasets, or check out a "
                "minimind of August 2026"
            ) from None
        finally:
            sys.path.append(sys.path.pop(0))
            sys.modules.pop("model", None)
            if ours:
                sys.modules["model"] = ours

    def open_texts(self, path, tokenizer):
        """The clone's data set of a file of texts, each cut to MAX_TOKENS tokens, padding included."""
        return self.dataset_class(str(path), tokenizer, max_length=MAX_TOKENS)

    def make_model(self, shape, device):
        """(model, tokenizer): a new model of a shape, a dict of `GPTConfig`'s n_layer and n_embd, with its defaults for
        the rest."""
        config = self.config_class(hidden_size=shape["n_embd"], num_hidden_layers=shape["n_layer"])
        return self.init_model(config, "none", tokenizer_path=str(self.path / "model"), device=device)


def prepare_minimind_texts(rows_folder, folder, clone_path, shape):
    """Write the texts of our rows for a clone of minimind: train.jsonl, val.jsonl, and CORPUS, which names the clone.

    rows_folder: of data/prepare.py; a text is what a row holds. shape: as in `Clone.make_model`. CORPUS counts the
    tokens and characters of the training texts as the clone's data set cuts them.
    """
    folder = Path(folder)
    folder.mkdir()
    for part in ("train", "val"):
        rows, meta = open_rows(rows_folder, part)
        tokenizer = load_row_tokenizer(rows_folder, meta)
        with open(folder / f"{part}.jsonl", "w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({"text": tokenizer.decode(row.tolist())}, ensure_ascii=False) + "\n")
    clone = Clone(clone_path, folder / "cache")
    _, tokenizer = clone.make_model(shape, "cpu")
    tokens = characters = 0
    for ids, targets in clone.open_texts(folder / "train.jsonl", tokenizer):
        kept = ids[targets >= 0]
        tokens += len(kept)
        characters += len(tokenizer.decode(kept.tolist(), skip_special_tokens=True))
    counts = {"tokens": tokens, "characters": characters}
    write_json(folder / CORPUS, {"clone": str(clone_path), "parts": {"train": counts}})


class Minimind:
    """minimind's training on the texts of a folder of `prepare_minimind_texts`. shape: as in `Clone.make_model`."""

    def __init__(self, folder, shape, device):
        self.folder, self.device = Path(folder), pick_device(device)
        self.meta = json.loads((self.folder / CORPUS).read_text(encoding="utf-8"))
        self.clone = Clone(self.meta["clone"], self.folder / "cache")
        self.clone.set_seed(FIRST_SEED)
        self.model, self.tokenizer = self.clone.make_model(shape, self.device)
        self.texts = self.clone.open_texts(self.folder / "train.jsonl", self.tokenizer)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")
        self.batches, self.accumulated = self.draw_batches(), 0

    def draw_batches(self):
        """Yield (ids, targets, learning rate, whether to update the weights behind it) without end. After EPOCHS epochs
        the learning rate stays."""
        workers = {"num_workers": LOADER_PROCESSES, "multiprocessing_context": START_METHOD} if LOADER_PROCESSES else {}
        on_gpu = self.device.type == "cuda"
        for epoch in itertools.count():
            self.clone.set_seed(FIRST_SEED + epoch)
            order = torch.randperm(len(self.texts)).tolist()
            sampler = self.clone.sampler_class(order, BATCH_TEXTS)
            loader = DataLoader(self.texts, batch_sampler=sampler, pin_memory=on_gpu, **workers)
            for i, (ids, targets) in enumerate(loader, start=1):
                done = min(epoch * len(loader) + i, EPOCHS * len(loader))
                rate = self.clone.get_lr(done, EPOCHS * len(loader), LEARNING_RATE)
                yield ids, targets, rate, i % ACCUMULATED_BATCHES == 0 or i == len(loader)

    def step(self):
        """One batch, and an update where it is due; returns (tokens without PAD, 0.0: operations are not counted)."""
        ids, targets, rate, is_update = next(self.batches)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.autocast:
            result = self.model(ids.to(self.device), labels=targets.to(self.device))
            loss = (result.loss + result.aux_loss) / ACCUMULATED_BATCHES
        loss.backward()
        self.accumulated += 1
        if is_update:
            self.update()
        return int((targets >= 0).sum()), 0.0

    def update(self):
        """Update the weights by the gradients of the batches since the last update."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.accumulated = 0

    @torch.no_grad()
    def bits_per_char(self):
        """Bits per character of the validation texts. Texts longer than those it is trained on are split into such.

        Gradients that no update has used yet are used first, as by the script at the end of an epoch.
        """
        if self.accumulated:
            self.update()
        self.model.eval()
        nats, characters, most = 0.0, 0, MAX_TOKENS - 2  # it is trained on texts between two special tokens
        with open(self.folder / "val.jsonl", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        for text in texts:
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            characters += len(text)
            for first in range(0, len(ids), most):
                part = torch.tensor([self.tokenizer.bos_token_id, *ids[first : first + most]], device=self.device)
                logits = self.model(part[None]).logits[0, :-1].float()
                nats += F.cross_entropy(logits, part[1:], reduction="sum").item()
        self.model.train()
        return nats / math.log(2) / characters
