"""How much memory of a GPU a training run takes, by arithmetic, and the sizes of its passes by that.

A step's rows, loss and gradients are the same in one pass as in several, but small passes leave a GPU idle. So passes
are merged as far as the memory allows.
"""

import functools

import torch

from minigpt.device import DTYPES, dtype_by_device, free_memory, usable_memory
from minigpt.training.optim import MAX_STACKED_NUMBERS
from model import max_logit_rows

# Of a GPU's memory, what passes are merged for: the rest is lost between blocks of the allocator, and RESERVED_BYTES
# are CUDA's own and other programs'. Where those have more, it is the share of what they leave.
USABLE_SHARE, RESERVED_BYTES = 0.9, 0.8 * 2**30
FLOAT32_BYTES = 4


def layer_bytes(config, item):
    """Bytes a token that a block of a `GPTConfig` keeps for the backward pass, not compiled. item: bytes of a number in
    matrix products. A test holds it against what autograd keeps."""
    C, queries, keys = config.n_embd, config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    # Inputs of the norms in float32; inputs of the products, queries, keys, values, and what is between the MLP's.
    kept = 2 * FLOAT32_BYTES * C + item * (2 * C + 2 * queries + 2 * keys)
    if config.is_gpt2:
        return kept + 2 * item * config.n_inner
    kept += 2 * FLOAT32_BYTES * C + item * (queries + keys) + 4 * item * config.n_inner  # RMSNorm, rotation, SwiGLU
    return kept + (6 * (queries + keys) if config.architecture == "qwen3" else 0)  # norms of queries and keys


def state_bytes(model, optimizer):
    """Bytes of a GPT's weights, and of the gradients and the state of an optimizer, muon or adamw."""
    total = sum(p.nbytes for p in model.parameters())
    for name, p in model.named_parameters():
        if p.requires_grad:
            by_muon = optimizer == "muon" and p.dim() == 2 and name.startswith("h.")
            total += (2 if by_muon else 3) * p.nbytes
    return total


def predicted_peak_bytes(model, tokens, dtype=torch.bfloat16, optimizer="muon", memory=24 * 2**30):
    """Bytes that a training step of a GPT takes at most, with passes of `tokens` tokens, padding counted.

    model: may be on the meta device; dtype: of matrix products; memory: of the GPU in bytes, by which the chunks of the
    logits are chosen. An upper bound by arithmetic: compiled code keeps less. CUDA's own memory is not counted.
    """
    config, item, output = model.config, dtype.itemsize, model.lm_head.weight
    by_muon = sum(p.numel() for p in model.h.parameters() if p.dim() == 2) if optimizer == "muon" else 0
    casts = 0 if dtype == torch.float32 else item * (output.numel() + sum(p.numel() for p in model.h.parameters()))
    rows = min(tokens, max_logit_rows(memory, len(output) * item))
    # Logits, and in plain code twice in float32; two gradients of the output layer before they are added up.
    loss = rows * len(output) * (item + 2 * FLOAT32_BYTES) + 2 * output.numel() * FLOAT32_BYTES
    # The blocks' own, as much again for the gradients within one block, and what the norm and the loss keep.
    per_token = (config.n_layer + 1) * layer_bytes(config, item) + 8 * FLOAT32_BYTES * config.n_embd
    # Muon's work has the gradients' memory for itself when that of the activations is free again.
    muon = min(by_muon, MAX_STACKED_NUMBERS) * (2 * FLOAT32_BYTES + 4 * item)
    return state_bytes(model, optimizer) + max(casts + loss + tokens * per_token, muon)


def merge_factor(batch_tokens, passes, processes, fits):
    """How many passes of batch_tokens tokens become one: the largest divisor of `passes` with fits(tokens of a pass).

    passes: of a step, of all processes, whose number goes on to divide them. 1 where it does not.
    """
    factors = [m for m in range(passes, 0, -1) if passes % m == 0 and passes // m % processes == 0]
    return next((m for m in factors if fits(m * batch_tokens)), 1)


def may_merge(settings, device):
    """Whether the passes of a run with these settings on this device may be merged."""
    if not settings.merge_batches or device.type != "cuda" or not settings.batch_tokens:
        return False
    if settings.tensor_parallel * settings.pipeline_parallel > 1 or settings.replay_share:
        return False  # a pipeline needs its passes; rows of pretraining are a large pass already
    plain = settings.method == "full" and settings.quantize == "none" and settings.optimizer in ("muon", "adamw")
    return plain and settings.objective in ("causal", "mlm") and settings.gradient_accumulation_steps > 1


def merge_passes(run):
    """Merge the passes of a `TrainingRun` that has a model and has taken no step, as far as its GPU's memory allows.

    Returns how many became one. All processes must call this; the smallest GPU decides.
    """
    settings, count = run.settings, run.processes.count
    if not may_merge(settings, run.device):
        return 1
    memory, passes, tokens = usable_memory(run.device), settings.gradient_accumulation_steps, settings.batch_tokens
    name = settings.dtype if settings.dtype != "auto" else (dtype_by_device(run.device) or ("float32",))[0]
    predict = functools.partial(
        predicted_peak_bytes, run.model, dtype=DTYPES[name], optimizer=settings.optimizer, memory=memory
    )
    there = min(memory, free_memory(run.device))
    room = min(USABLE_SHARE * memory - RESERVED_BYTES, USABLE_SHARE * there)
    factor = min(run.processes.gather(merge_factor(tokens, passes, count, lambda n: predict(n) <= room)))
    if factor > 1:
        settings.batch_tokens, settings.gradient_accumulation_steps = factor * tokens, passes // factor
        run.data.resize_batches(settings)
        run.say(
            f"passes of {factor * tokens:,} tokens, {passes // factor} a step, in the place of {passes} of {tokens:,}: "
            f"{there / 2**30:.1f} GB of GPU memory are there, {predict(factor * tokens) / 2**30:.1f} are needed at "
            "most (--merge_batches=False leaves them as they are)"
        )
    return factor
