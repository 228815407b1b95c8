"""Forward passes for generation: prefill of whole prompts, then steps of one token for many sequences together."""

import torch

from data_utils import pad_ids
from minigpt.adapters.mixing import AdapterMix
from minigpt.common.errors import first_line
from model import KVCache, PromptPass, StepPass

COMPILE_OPTIONS = {
    "max_autotune": True,
    "max_autotune_gemm_backends": "ATEN,CPP",  # times torch's matrix products and the compiler's own
}
COMPILE_CONFIG = {
    "freezing": True,  # weights become constants, stored in the layout that the products read fastest
    "autotune_num_choices_displayed": 0,
    "max_autotune_report_choices_stats": False,
}
MAX_COMPILED_MODELS = 64  # per process
PASS_KINDS = ("one", "several", "prompt")  # a step of one row, a step of several rows, prefill of a single prompt
TRACED_ROWS = 8
TRACED_POSITIONS = 48  # neither 1 nor block_size: the compiler treats such sizes as constants

FIRST_POSITIONS = 256  # positions that a cache begins with
MAX_IDLE_CACHE_BYTES = 2**30  # a larger cache is freed when no sequence is left

MIN_COMPILED_PARAMS = 10e6  # the steps of smaller models take a millisecond or two without compiling


def should_compile_steps(setting, model):
    """(bool, why): whether a server should compile a model's steps, which takes minutes on a CPU.

    setting: "on", "off" or "auto".
    """
    if setting != "auto":
        return setting == "on", "as set"
    if model.wte.weight.device.type != "cpu":
        return False, "not measured on a GPU; --compile=on"
    if model.num_params() < MIN_COMPILED_PARAMS:
        return False, "the model is small"
    from torch._inductor.cpp_builder import get_cpp_compiler  # this import takes seconds
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return False, "no C++ compiler is there"
    return True, "the default for a model of this size"


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
        self.compiled = {}  # {kind of pass: compiled function}

    def new_cache(self, rows, positions):
        """An empty `KVCache`, with one position to spare: compiled steps are compiled again for whole tensors."""
        return KVCache(self.model.config, rows, positions + 1, self.device, self.dtype)

    def first_cache(self):
        """The empty `KVCache` that all growth begins with."""
        return self.new_cache(1, min(FIRST_POSITIONS, self.model.config.block_size))

    def reserve(self, rows, positions):
        """Double the rows and the positions of the cache until it has at least so many of them."""
        # If memory runs out while the cache grows, its last tensor has the old size, and the next call goes on.
        held_rows, heads, held_positions, width = self.cache.values[-1].shape
        if rows <= held_rows and positions < held_positions:
            return
        rows = doubled_size(held_rows, rows, self.max_batch)
        positions = doubled_size(held_positions - 1, positions, self.model.config.block_size) + 1
        for tensors in (self.cache.keys, self.cache.values):
            for layer, old in enumerate(tensors):  # one after the other, so that only one is in memory twice
                tensors[layer] = old.new_zeros(rows, heads, positions, width)
                tensors[layer][: self.n, :, :held_positions] = old[: self.n, :, :held_positions]

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
        return self.add_prompts(prompts, numbers, self.prefill_pass, "prompt")

    def prefill_states(self, prompts, numbers=None):
        """As `prefill`, but returns the states (len(prompts), T, C) before the output layer, of all positions."""
        return self.add_prompts(prompts, numbers, self.states_pass, None)

    def add_prompts(self, prompts, numbers, prompt_pass, compiled_kind):
        """Run a pass over prompts and add them to the cache; returns the pass's output."""
        lengths = [len(ids) for ids in prompts]
        numbers = numbers or [0] * len(prompts)
        virtual = self.virtual_tokens(numbers[0])
        start = virtual.n if virtual else 0
        end = start + max(lengths)
        self.reserve(self.n + len(prompts), end)

        idx = pad_ids(prompts)

        # Only the pass of a single prompt of several tokens is ever compiled.
        kind = compiled_kind if idx.numel() == max(lengths) > 1 else None
        lengths_tensor = torch.tensor(lengths, device=self.device)
        if self.mix:
            self.mix.choose(numbers)
        output, keys, values = self.run(kind, prompt_pass, idx.to(self.device), lengths_tensor, virtual)

        # Write their keys and values into the next rows of the cache, behind those of the virtual tokens.
        rows = slice(self.n, self.n + len(prompts))
        cache = (*self.cache.keys, *self.cache.values)
        for cached, new in zip(cache, (*keys, *values), strict=True):
            cached[rows, :, start:end] = new
        for cached, new in zip(cache, (*virtual.keys, *virtual.values), strict=True) if virtual else ():
            cached[rows, :, :start] = new
        self.numbers[self.n :] = numbers
        self.n += len(prompts)
        return output

    def step(self, ids, positions):
        """Logits (n, V) after one more token per row. ids, positions: lists of n."""
        ids, at = torch.tensor([ids, positions]).to(self.device)
        end = max(positions) + 1
        self.reserve(self.n, end)
        keys = [k[: self.n, :, :end] for k in self.cache.keys]
        values = [v[: self.n, :, :end] for v in self.cache.values]
        if self.mix:
            self.mix.choose(self.numbers[: self.n])
        return self.run("several" if self.n > 1 else "one", self.step_pass, ids, at, keys, values)

    def run(self, kind, uncompiled, *inputs):
        """Call the compiled function of a kind of pass if there is one, else `uncompiled`."""
        if kind in self.compiled:
            try:
                return self.compiled[kind](*inputs)
            except Exception as error:  # compiled code fails in many ways; the uncompiled pass overwrites its cache
                del self.compiled[kind]
                print(f"note: going on without compiling ({first_line(error)})")
        return uncompiled(*inputs)

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
        if sum(tensor.nbytes for tensor in (*self.cache.keys, *self.cache.values)) > MAX_IDLE_CACHE_BYTES:
            self.cache = self.first_cache()

    @torch.no_grad()
    def compile(self, kind):
        """Compile the pass of a kind (one of PASS_KINDS), which is used from then on. Takes up to minutes."""
        end = min(TRACED_POSITIONS, self.model.config.block_size - 1 - self.model.n_virtual)
        limit = torch._dynamo.config.patch(recompile_limit=MAX_COMPILED_MODELS * len(PASS_KINDS))
        with torch._inductor.config.patch(COMPILE_CONFIG), limit:
            if kind == "prompt":
                self.compiled[kind] = self.compile_prefill(end)
            else:
                self.compiled[kind] = self.compile_step(TRACED_ROWS if kind == "several" else 1, end)

    def compile_prefill(self, end):
        """The compiled pass of one prompt of any length above 1; `end`: the length that it is traced with."""
        ids = torch.zeros(1, end, dtype=torch.long, device=self.device)
        torch._dynamo.mark_dynamic(ids, 1)
        compiled = torch.compile(self.prefill_pass, options=COMPILE_OPTIONS)
        compiled(ids, torch.full((1,), end, device=self.device), self.virtual_tokens(0))
        return compiled

    def compile_step(self, rows, end):
        """The compiled step of one row (rows 1) or of any number above 1; `end`: positions in the traced cache."""
        cache = self.new_cache(rows, end)
        ids = torch.zeros(rows, dtype=torch.long, device=self.device)
        at = torch.full_like(ids, end - 1)
        keys, values = ([k[:, :, :end] for k in tensors] for tensors in (cache.keys, cache.values))
        for tensor in (*keys, *values):
            torch._dynamo.mark_dynamic(tensor, 2)
        for tensor in (*keys, *values, ids, at) if rows > 1 else ():
            torch._dynamo.mark_dynamic(tensor, 0)
        compiled = torch.compile(self.step_pass, options=COMPILE_OPTIONS)
        compiled(ids, at, keys, values)
        return compiled
