"""Forward passes for generation: prefill of whole prompts, then steps of one token for many sequences together."""

import torch

from data_utils import pad_ids
from minigpt.adapters.mixing import AdapterMix
from minigpt.device import to_device
from model import KVCache, PromptPass, StepPass

FIRST_POSITIONS = 256  # positions that a cache begins with
MAX_IDLE_CACHE_BYTES = 2**30  # a larger cache is freed when no sequence is left


def doubled_size(held, needed, limit):
    """`held`, doubled until it is at least `needed`, but at most `limit`."""
    while held < needed:
        held *= 2
    return min(held, limit)


class ModelRunner:
    """Runs a model on n sequences, whose keys and values are the rows 0 … n - 1 of a cache.

    A new sequence takes row n (`prefill`). When one leaves, the last sequence moves into its row (`drop`), so that a
    step always reads the first n rows. max_batch: the most sequences at the same time.

    models: a GPT, or a list of GPTs that share the layers of one base and differ by their adapters. Each sequence is of
    one of them, by its number in the list; a step runs sequences of all of them together.

    A row begins with the keys and values of its model's virtual tokens, if there are any. They are computed once.

    The cache grows with the sequences, since max_batch rows of block_size positions can take far more memory than the
    weights.
    """

    def __init__(self, models, max_batch):
        self.models = models if isinstance(models, list) else [models]
        self.mix = AdapterMix(self.models) if len(self.models) > 1 else None
        self.model = self.mix.model if self.mix else self.models[0]
        self.max_batch = max_batch
        self.n = 0
        self.numbers = []  # of each row, that of its model
        self.virtual = {}  # {number of a model: its `VirtualTokens`, or None}
        weight = self.model.wte.weight
        quantized = not hasattr(self.model.lm_head, "weight")
        # A step reads the whole cache, so a quantized model stores its keys and values in fewer bits too.
        self.dtype = torch.bfloat16 if quantized else weight.dtype
        self.device = weight.device
        self.cache = self.first_cache()
        self.kernels = None  # a `KernelStep` or `StaticStep`, or None where torch runs the steps

    def first_cache(self):
        """The empty `KVCache` that all growth begins with."""
        positions = min(FIRST_POSITIONS, self.model.config.block_size)
        return KVCache(self.model.config, 1, positions, self.device, self.dtype)

    def reserve(self, rows, positions):
        """Double the rows and the positions of the cache until it has at least so many of them."""
        n_layer, held_rows, heads, held_positions, width = self.cache.values.shape
        if rows <= held_rows and positions <= held_positions:
            return
        rows = doubled_size(held_rows, rows, self.max_batch)
        positions = doubled_size(held_positions, positions, self.model.config.block_size)
        held = self.cache.keys, self.cache.values
        # Both are made before one is replaced: where memory runs out meanwhile, the cache is as it was.
        grown = [old.new_zeros(n_layer, rows, heads, positions, width) for old in held]
        for new, old in zip(grown, held, strict=True):
            new[:, : self.n, :, :held_positions] = old[:, : self.n]
        self.cache.keys, self.cache.values = grown

    def virtual_tokens(self, number):
        """The `VirtualTokens` of the model of that number, or None."""
        if number not in self.virtual:
            model = self.models[number]
            self.virtual[number] = None if model.virtual is None else model.virtual(model)
        return self.virtual[number]

    def prefill(self, prompts, numbers=None):
        """Add sequences that begin with `prompts` (lists of ids, none empty); returns logits (len(prompts), V).

        numbers: those of the prompts' models, which must be one model where it has virtual tokens; None: all 0.
        """
        if self.kernels is None or sum(map(len, prompts)) > self.kernels.max_prompt_tokens:
            return self.add_prompts(prompts, numbers, self.prefill_pass)
        start = self.begin_rows(prompts, numbers)
        logits = self.kernels.prefill(prompts, self.n, start, self.cache.keys, self.cache.values)
        self.n += len(prompts)
        return logits

    def prefill_states(self, prompts, numbers=None):
        """As `prefill`, but returns the states (len(prompts), T, C) before the output layer, of all positions."""
        return self.add_prompts(prompts, numbers, self.states_pass)

    def add_prompts(self, prompts, numbers, prompt_pass):
        """Run a pass over prompts and add them to the cache; returns the pass's output."""
        start = self.begin_rows(prompts, numbers)
        lengths = to_device([len(ids) for ids in prompts], self.device)
        numbers = self.numbers[self.n :]
        if self.mix:
            self.mix.choose(numbers)
        idx = to_device(pad_ids(prompts), self.device)
        output, keys, values = prompt_pass(idx, lengths, self.virtual_tokens(numbers[0]))
        rows = slice(self.n, self.n + len(prompts))
        for cached, new in zip((*self.cache.keys, *self.cache.values), (*keys, *values), strict=True):
            cached[rows, :, start : start + idx.shape[1]] = new
        self.n += len(prompts)
        return output

    def begin_rows(self, prompts, numbers):
        """Make room for prompts in the next rows of the cache, and write their virtual tokens there; returns how many
        these are. numbers: as in `prefill`."""
        numbers = numbers or [0] * len(prompts)
        virtual = self.virtual_tokens(numbers[0])
        start = virtual.n if virtual else 0
        self.reserve(self.n + len(prompts), start + max(map(len, prompts)))
        rows = slice(self.n, self.n + len(prompts))
        cache = (*self.cache.keys, *self.cache.values)
        for cached, new in zip(cache, (*virtual.keys, *virtual.values), strict=True) if virtual else ():
            cached[rows, :, :start] = new
        self.numbers[self.n :] = numbers
        return start

    def step(self, ids, positions):
        """Logits (n, V) after one more token per row. ids, positions: lists of n. The next step may overwrite them."""
        end = max(positions) + 1
        self.reserve(self.n, end)
        if self.kernels is not None and self.n <= self.kernels.max_rows:
            return self.kernels.step(ids, positions, self.cache.keys, self.cache.values)
        ids, at = to_device([ids, positions], self.device)
        if self.mix:
            self.mix.choose(self.numbers[: self.n])
        keys, values = (tensor[:, : self.n, :, :end] for tensor in (self.cache.keys, self.cache.values))
        return self.step_pass(ids, at, keys, values)

    def prefill_pass(self, ids, lengths, virtual):
        """(logits (B, V), keys, values) of prompts ids (B, T) with lengths (B,), behind `VirtualTokens` or None; keys,
        values as in `PromptPass`."""
        kv_pass = PromptPass(lengths, virtual)
        return self.model(ids, kv_pass), kv_pass.keys, kv_pass.values

    def states_pass(self, ids, lengths, virtual):
        """As `prefill_pass`, with the states (B, T, C) in place of the logits."""
        kv_pass = PromptPass(lengths, virtual)
        return self.model.hidden(ids, kv_pass), kv_pass.keys, kv_pass.values

    def step_pass(self, ids, at, keys, values):
        """Logits (n, V) after ids (n,) at positions `at` (n,); keys, values as in `StepPass`."""
        return self.model(ids[:, None], StepPass(keys, values, at))

    def drop(self, row, length):
        """Remove a sequence. The last row, of which `length` positions are used, moves into its row."""
        self.n -= 1
        self.numbers[row] = self.numbers[self.n]
        if row != self.n:
            self.cache.move(self.n, row, length)
        if not self.n:
            self.clear()

    def clear(self):
        """Remove all sequences, and free a large cache."""
        self.n = 0
        if self.cache.keys.nbytes + self.cache.values.nbytes > MAX_IDLE_CACHE_BYTES:
            self.cache = self.first_cache()
