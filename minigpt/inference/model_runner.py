"""A model's forward passes for generation: whole prompts at once, then one token a step for many rows together."""

import torch

from minigpt.common.errors import first_line
from model import KVCache, PromptPass, StepPass

COMPILE_OPTIONS = {
    "max_autotune": True,
    "max_autotune_gemm_backends": "ATEN,CPP",  # the compiler's own products beside torch's, timed
}
COMPILE_CONFIG = {
    "freezing": True,  # weights become constants, packed for the products
    "autotune_num_choices_displayed": 0,
    "max_autotune_report_choices_stats": False,
}
MAX_COMPILED_MODELS = 64  # that one process may compile
KINDS = ("one", "several", "prompt")  # a step of one row, of several; a prompt alone
TRACED_ROWS = 8
TRACED_POSITIONS = 48  # any number above 1 and below the block's: those are special to the compiler

WORTH_COMPILING = 10e6  # parameters: a smaller model's steps take a millisecond or two as they are


def should_compile_steps(setting, model):
    """(bool, why): whether a model that serves should have its steps compiled, which takes minutes of a CPU."""
    if setting != "auto":
        return setting == "on", "as set"
    if model.wte.weight.device.type != "cpu":
        return False, "not measured on a card; --compile=on"
    config = model.config
    if 12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd < WORTH_COMPILING:
        return False, "the model is small"
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes seconds, which other scripts need not wait
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return False, "no C++ compiler is there"
    return True, "the default for a model of this size"


class ModelRunner:
    """The rows 0 … n - 1 of sequences that are being generated, as the model sees them.

    A sequence takes the row behind the last one (`prefill`); when one leaves, the last takes its place (`drop`), so
    that a step is always over a prefix of the cache.
    """

    def __init__(self, model, max_batch):
        self.model, self.max_batch, self.n = model, max_batch, 0
        weight = model.wte.weight
        quantized = not hasattr(model.lm_head, "weight")
        # A step reads the whole cache, so a model whose weights are rounded keeps its keys and values as short.
        self.dtype = torch.bfloat16 if quantized else weight.dtype
        self.device = weight.device
        self.cache = self.new_cache(1)
        self.compiled = {}  # kind of pass to compiled code

    def new_cache(self, rows):
        return KVCache(self.model.config, rows, self.model.config.block_size, self.device, self.dtype)

    def reserve(self, rows):
        """Make the cache hold so many rows: it grows by doubling, since a full one takes gigabytes."""
        held = len(self.cache.keys[0])
        if rows > held:
            new = self.new_cache(min(self.max_batch, max(rows, 2 * held)))
            for old, tensor in zip((*self.cache.keys, *self.cache.values), (*new.keys, *new.values), strict=True):
                tensor[: self.n] = old[: self.n]
            self.cache = new

    def prefill(self, prompts):
        """Logits (len(prompts), V) after prompts (lists of ids, none empty), which take the next rows."""
        self.reserve(self.n + len(prompts))
        lengths = [len(ids) for ids in prompts]
        idx = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        for row, ids in zip(idx, prompts, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        kind = "prompt" if idx.numel() == max(lengths) > 1 else None
        at = torch.tensor(lengths, device=self.device)
        logits, keys, values = self.run(kind, self.prompt, idx.to(self.device), at)
        rows = slice(self.n, self.n + len(prompts))
        for cached, new in zip((*self.cache.keys, *self.cache.values), (*keys, *values), strict=True):
            cached[rows, :, : max(lengths)] = new
        self.n += len(prompts)
        return logits

    def step(self, ids, positions):
        """Logits (n, V) after one more id for each row, at its position; both are lists of n."""
        ids, at = torch.tensor([ids, positions]).to(self.device)
        end = max(positions) + 1
        keys = [k[: self.n, :, :end] for k in self.cache.keys]
        values = [v[: self.n, :, :end] for v in self.cache.values]
        return self.run("several" if self.n > 1 else "one", self.forward, ids, at, keys, values)

    def run(self, kind, plain, *tensors):
        """What `plain` gives, by its compiled code where that is there for the kind of pass."""
        if kind in self.compiled:
            try:
                return self.compiled[kind](*tensors)
            except Exception as error:  # compiled code fails in many ways, and what it wrote is written again
                del self.compiled[kind]
                print(f"note: going on without compiling ({first_line(error)})")
        return plain(*tensors)

    def prompt(self, ids, lengths):
        """(logits (B, V), keys, values) after prompts ids (B, T) of lengths (B,), as `PromptPass` has them."""
        past = PromptPass(lengths)
        return self.model(ids, past), past.keys, past.values

    def forward(self, ids, at, keys, values):
        """Logits (n, V) after ids (n,) at positions (n,); keys, values: a layer's (n, n_head, end, head_dim)."""
        return self.model(ids[:, None], StepPass(keys, values, at))

    def drop(self, row, length):
        """Free a row; the last one, of so many positions, takes its number."""
        self.n -= 1
        if row != self.n:
            self.cache.move(self.n, row, length)

    @torch.no_grad()
    def compile(self, kind):
        """Compile the pass of a kind (one of KINDS); from then on it is used."""
        end = min(TRACED_POSITIONS, self.model.config.block_size - 1)
        limit = torch._dynamo.config.patch(recompile_limit=MAX_COMPILED_MODELS * len(KINDS))
        with torch._inductor.config.patch(COMPILE_CONFIG), limit:
            if kind == "prompt":
                self.compiled[kind] = self.traced_prompt(end)
            else:
                self.compiled[kind] = self.traced_step(TRACED_ROWS if kind == "several" else 1, end)

    def traced_prompt(self, end):
        """The compiled pass of one prompt of any length above 1."""
        ids = torch.zeros(1, end, dtype=torch.long, device=self.device)
        torch._dynamo.mark_dynamic(ids, 1)
        compiled = torch.compile(self.prompt, options=COMPILE_OPTIONS)
        compiled(ids, torch.full((1,), end, device=self.device))
        return compiled

    def traced_step(self, rows, end):
        """The compiled step of one row, or of any number above 1."""
        cache = self.new_cache(rows)
        ids = torch.zeros(rows, dtype=torch.long, device=self.device)
        at = torch.full_like(ids, end - 1)
        keys, values = ([k[:, :, :end] for k in tensors] for tensors in (cache.keys, cache.values))
        for tensor in (*keys, *values):
            torch._dynamo.mark_dynamic(tensor, 2)
        for tensor in (*keys, *values, ids, at) if rows > 1 else ():
            torch._dynamo.mark_dynamic(tensor, 0)
        compiled = torch.compile(self.forward, options=COMPILE_OPTIONS)
        compiled(ids, at, keys, values)
        return compiled
