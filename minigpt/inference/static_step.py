"""Steps of generation on a GPU: replayed CUDA graphs.

A step of one token is a few hundred small operations. To launch one takes the CPU longer than the GPU takes to compute
it. A CUDA graph launches them all at once. It reads and writes the same memory at each replay, so the step has a shape
of the cache's: all positions that the cache has room for, of which a mask hides the later ones, and a number of rows
that is a power of two.
"""

import torch

from minigpt.common.errors import first_line
from minigpt.device import to_device
from model import StepPass

WARM_UP_STEPS = 3  # before a graph is captured, as torch's documentation has it: libraries prepare themselves


class StaticStep:
    """Steps of a GPT over a KV cache that stays where it is; in the place of a `KernelStep`.

    captures: whether steps are captured as CUDA graphs. Without it, or where capturing fails, the same operations are
    launched one by one. int8 weights are converted within the products only in compiled code, so there the step is
    compiled by torch.compile, once for each shape.
    """

    max_prompt_tokens = 0  # prompts are for torch's operators
    max_rows = 1 << 30

    def __init__(self, model, captures=True, compiles=False):
        self.model, self.captures = model, captures
        self.compute = torch.compile(self.logits, dynamic=False) if compiles else self.logits
        self.device = model.wte.weight.device
        self.graphs, self.pool = {}, None  # {rows: (graph, its input, its output)}, and the memory that they share
        self.cache = None  # addresses and shape of the keys and values that the graphs read

    def compile(self):
        """Nothing: a graph is captured at the first step of its shape."""

    def step(self, ids, positions, keys, values):
        """As `KernelStep.step`."""
        n = len(ids)
        rows = min(1 << (n - 1).bit_length(), keys.shape[1])
        # Rows of the cache that no sequence has compute something that nobody reads, at position 0.
        inputs = to_device([row + [0] * (rows - n) for row in (list(ids), list(positions))], self.device)
        if not self.captures:
            return self.compute(inputs, keys, values)[:n]
        cache = keys.data_ptr(), values.data_ptr(), keys.shape
        if cache != self.cache:  # it has grown
            self.graphs, self.pool, self.cache = {}, None, cache
        if rows not in self.graphs:
            try:
                with torch.cuda.device(self.device):  # a thread begins with the first GPU
                    self.graphs[rows] = self.capture(inputs, keys, values)
            except Exception as error:  # drivers and compilers fail in many ways
                self.captures, self.compute, self.graphs = False, self.logits, {}
                print(f"note: steps are not captured as CUDA graphs ({first_line(error)})")
                return self.compute(inputs, keys, values)[:n]
        graph, static_inputs, logits = self.graphs[rows]
        static_inputs.copy_(inputs)
        graph.replay()
        return logits[:n]

    def logits(self, inputs, keys, values):
        """Logits (rows, V) after ids and positions, inputs (2, rows), of the first rows of a cache: keys, values
        (L, batch, n_kv_head, positions, D)."""
        ids, at = inputs
        own = (tensor[:, : len(ids)] for tensor in (keys, values))
        return self.model(ids[:, None], StepPass(*own, at, ends_at_last=False))

    def capture(self, inputs, keys, values):
        """(graph, its input, its output) of a step. The steps that warm up compute the step's own inputs, so that they
        write what it writes."""
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self.compute(inputs, keys, values)
        current.wait_stream(stream)
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph, static_inputs = torch.cuda.CUDAGraph(), inputs.clone()
        # Another thread may use the GPU meanwhile: another model's, or one that copies a batch.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            logits = self.compute(static_inputs, keys, values)
        return graph, static_inputs, logits
