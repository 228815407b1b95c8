"""Steps of generation on a GPU: replayed CUDA graphs.

A step of one token is a few hundred small operations. To launch one takes the CPU longer than the GPU takes to compute
it. A CUDA graph launches them all at once. It reads and writes the same memory at each replay, so a step has one of a
few shapes: numbers of rows and of positions that are powers of two. A mask hides the positions after each row's own.
"""

import threading

import torch
from torch import library

from minigpt.common.errors import first_line
from minigpt.device import is_out_of_memory, to_device
from model import KVCache, StepPass

WARM_UP_STEPS = 3  # before a graph is captured, as torch's documentation has it: libraries prepare themselves
MIN_POSITIONS = 256  # of a step: fewer would save little of what is read beside the weights
MAX_COMPILED_SHAPES = 64  # of all models together
ONE_CAPTURE_AT_A_TIME = threading.Lock()  # torch captures one graph at a time, and waits for the whole GPU before
RUNNING = threading.local()  # RUNNING.kv_pass: the `StepPass` that the compiled code of this thread attends by


@library.custom_op("minigpt::step_attention", mutates_args=())
def step_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int) -> torch.Tensor:
    """`StepPass.attend` of the pass that runs, as an operator that the compiler does not look into."""
    return RUNNING.kv_pass.attend(layer, q, k, v).contiguous()


@step_attention.register_fake
def _(q, k, v, layer):
    return q.new_empty(q.shape)


class OpaqueStepPass(StepPass):
    """A `StepPass` for code that is compiled. The cache, whose shape changes as it grows, is no part of that code."""

    def __init__(self, at):
        self.at = at

    def attend(self, layer, q, k, v):
        return step_attention(q, k, v, layer)


class StaticStep:
    """Steps of a GPT over a KV cache that stays where it is; in the place of a `KernelStep`.

    captures: whether steps are captured as CUDA graphs. Without it, or where capturing fails, the same operations are
    launched one by one. compiles: whether torch.compile compiles them first, once for each number of rows: int8 weights
    are converted within the products only in compiled code. max_batch: the most rows of a step.
    row_counts: the numbers of rows that `compile` compiles, all that steps have.
    """

    max_prompt_tokens = 0  # prompts are for torch's operators
    max_rows = 1 << 30

    def __init__(self, model, captures=True, compiles=False, max_batch=1):
        self.model, self.captures = model, captures
        self.row_counts = sorted({min(next_power(n), max_batch) for n in range(1, max_batch + 1)})
        self.compiled = torch.compile(self.opaque_logits, dynamic=False) if compiles else None
        self.device = model.wte.weight.device
        self.graphs = {}  # {(rows, positions): (graph, its input, its output)}
        self.pool = self.stream = None  # the memory that the graphs share, and the stream that they are captured on
        self.cache = None  # addresses and shape of the keys and values that the graphs read

    @torch.no_grad()  # as steps are: the compiler's code for gradients is another
    def compile(self):
        """Compile what is to be compiled, for each number of rows, on a cache that nobody reads: a step of the engine
        would have all its requests wait for it. A graph is captured at the first step of its shape."""
        if self.compiled is None:
            return
        config, weight = self.model.config, self.model.wte.weight
        end = min(MIN_POSITIONS, config.block_size)
        for rows in self.row_counts:
            with torch.cuda.device(self.device):  # a thread begins with the first GPU
                cache = KVCache(config, rows, end, self.device, weight.dtype)
                self.logits(to_device([[0] * rows] * 2, self.device), cache.keys, cache.values, end)

    def step(self, ids, positions, keys, values):
        """As `KernelStep.step`."""
        n = len(ids)
        rows = min(next_power(n), keys.shape[1])
        end = min(next_power(max(MIN_POSITIONS, max(positions) + 1)), keys.shape[3])
        # Rows of the cache that no sequence has compute something that nobody reads, at position 0.
        inputs = to_device([row + [0] * (rows - n) for row in (list(ids), list(positions))], self.device)
        if not self.captures:
            return self.logits(inputs, keys, values, end)[:n]
        cache = keys.data_ptr(), values.data_ptr(), keys.shape
        if cache != self.cache:  # it has grown
            self.graphs, self.pool, self.cache = {}, None, cache
        if (rows, end) not in self.graphs and not self.can_capture(rows, end, inputs, keys, values):
            return self.logits(inputs, keys, values, end)[:n]
        graph, static_inputs, logits = self.graphs[rows, end]
        static_inputs.copy_(inputs)
        graph.replay()
        return logits[:n]

    def can_capture(self, rows, end, inputs, keys, values):
        """Capture the graph of a shape; returns whether that worked. No graph is captured any more after a failure, and
        a line says why."""
        try:
            with ONE_CAPTURE_AT_A_TIME, torch.cuda.device(self.device):  # a thread begins with the first GPU
                self.graphs[rows, end] = self.capture(inputs, keys, values, end)
            return True
        except Exception as error:  # drivers fail in many ways
            self.captures, self.graphs, self.pool = False, {}, None
            why = "the GPU's memory is too small for them" if is_out_of_memory(error) else first_line(error)
            print(f"note: steps are not captured as CUDA graphs ({why}); going on without")
            return False

    def logits(self, inputs, keys, values, end):
        """Logits (rows, V) after ids and positions, inputs (2, rows), of the first rows of a cache and its positions
        before `end`: keys, values (L, batch, n_kv_head, positions, D)."""
        ids, at = inputs
        kv_pass = StepPass(*(tensor[:, : len(ids), :, :end] for tensor in (keys, values)), at, ends_at_last=False)
        if self.compiled is not None:
            RUNNING.kv_pass = kv_pass
            try:
                with torch._dynamo.config.patch(recompile_limit=MAX_COMPILED_SHAPES):
                    return self.compiled(inputs)
            except Exception as error:  # compilers fail in many ways
                if is_out_of_memory(error) or is_capturing():
                    raise
                self.compiled = None
                print(f"note: steps are not compiled ({first_line(error)}); going on without")
            finally:
                del RUNNING.kv_pass
        return self.model(ids[:, None], kv_pass)

    def opaque_logits(self, inputs):
        """`logits`, over the cache of RUNNING."""
        ids, at = inputs
        return self.model(ids[:, None], OpaqueStepPass(at))

    def capture(self, inputs, keys, values, end):
        """(graph, its input, its output) of a step. The steps that warm up compute the step's own inputs, so that they
        write what it writes."""
        current = torch.cuda.current_stream()
        self.stream = self.stream or torch.cuda.Stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):  # around the capture too, which leaves its stream in place where it fails
            for _ in range(WARM_UP_STEPS):
                self.logits(inputs, keys, values, end)
            graph, static_inputs = torch.cuda.CUDAGraph(), inputs.clone()
            current.wait_stream(self.stream)
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            # Another thread may use the GPU meanwhile: another model's, or one that copies a batch.
            options = {"pool": self.pool, "stream": self.stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(graph, **options):
                logits = self.logits(static_inputs, keys, values, end)
        return graph, static_inputs, logits


def is_capturing():
    """Whether the present stream is captured as a graph, within which nothing can be computed again."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def next_power(n):
    """The smallest power of two that is at least n, above 0."""
    return 1 << (n - 1).bit_length()
