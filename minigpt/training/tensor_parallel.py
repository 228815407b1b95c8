"""Tensor parallelism (Shoeybi et al. 2019, "Megatron-LM"), by torch.distributed.tensor.parallel.

The parts of a group share the matrices of the blocks. c_attn and c_fc are divided by rows: a part computes the queries,
keys and values of its own heads, and its own slice of the MLP. c_proj is divided by columns, and the parts' outputs are
summed. So the states (B, T, C) are exchanged four times a layer and micro-batch: after each c_proj in the forward
pass, before c_attn and c_fc in the backward pass. Embeddings, norms and output layer are whole in every part. The rows
of the output layer's product are shared out, since it is the largest of a small model.

Dropout is drawn alike in all parts of a group, which the states need. So heads of different parts drop the same places.
"""

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

from minigpt.common.errors import UserError
from minigpt.training.distributed import check_nccl, local_part
from minigpt.training.divided import DividedModel

OF_LOCAL_HEADS = ("attn.q_norm.weight", "attn.k_norm.weight")  # each part applies these to its own heads only


class TensorParallel(DividedModel):
    """The model of a `TrainingRun`, whose matrices are divided over the processes of a group.

    Raises UserError where heads or the MLP's width cannot be divided by their number, and for GPUs without NCCL.
    """

    def __init__(self, run):
        super().__init__(run)
        check_nccl("tensor_parallel", run.device)
        config, parts = run.model.config, self.processes.parts
        for name in ("n_head", "n_kv_head", "n_inner"):
            if getattr(config, name) % parts:
                raise UserError(
                    f"{name} ({getattr(config, name)}) must be a multiple of tensor_parallel ({parts}), "
                    "so that each part has as many"
                )
        self.mesh = self.processes.mesh["model"]
        self.group = self.mesh.get_group()

        # Order the rows so that those of a part are consecutive. Every process has the same weights, so it takes its
        # share of them without communication.
        self.orders = row_orders(run.model, parts)  # by a parameter's name
        with torch.no_grad():
            for name, order in self.orders.items():
                p = run.model.get_parameter(name)
                p.copy_(p[order])
        for block in run.model.h:
            block.attn.heads = [n // parts for n in block.attn.heads]
            plan = {
                "attn.c_attn": ColwiseParallel(), "attn.c_proj": RowwiseParallel(),
                "mlp.c_fc": ColwiseParallel(), "mlp.c_proj": RowwiseParallel(),
            }  # fmt: skip
            parallelize_module(block, self.mesh, plan, src_data_rank=None)
        for p in run.model.parameters():  # the shards are there already
            if not isinstance(p, DTensor):
                p.data = p.data.to(run.device)
        self.plain_output_loss, run.model.output_loss = run.model.output_loss, self.output_loss

    def output_loss(self, states, weight, targets, n):
        """Arguments and result as of `OutputLoss`. Each part computes its share of the rows.

        The gradient of the weight is the sum of the parts', and `exchange_gradients` makes the mean of them, as of
        other whole parameters. So they are made larger by the number of parts.
        """
        if n is not None:
            targets = F.pad(targets[:n], (0, len(targets) - n), value=-1)
        parts, missing = self.processes.parts, -len(targets) % self.processes.parts
        if missing:
            states, targets = F.pad(states, (0, 0, 0, missing)), F.pad(targets, (0, missing), value=-1)
        own = targets.chunk(parts)[self.processes.part]
        return SumOverParts.apply(self.plain_output_loss(RowsOfPart.apply(states, self), weight, own, None), self)

    def is_whole(self, p):
        """Whether every part holds all of a parameter."""
        return not isinstance(p, DTensor) or all(placement.is_replicate() for placement in p.placements)

    def counts(self, p):
        return self.processes.part == 0 or not self.is_whole(p)

    def exchange_gradients(self):
        super().exchange_gradients()
        whole = [p for p in self.run.parameters() if p.grad is not None and self.is_whole(p)]
        gradients = [local_part(p.grad) for p in whole]
        for work in [dist.all_reduce(gradient, group=self.group, async_op=True) for gradient in gradients]:
            work.wait()
        # Parts have equal gradients, up to rounding, of what they all compute.
        summed = {id(p) for name, p in self.run.model.named_parameters() if name.endswith(OF_LOCAL_HEADS)}
        equal = [gradient for p, gradient in zip(whole, gradients, strict=True) if id(p) not in summed]
        torch._foreach_div_(equal, self.processes.parts)

    def full_weights(self):
        weights = super().full_weights()
        for name, order in self.orders.items():
            if weights[name] is not None:  # in the main process
                weights[name] = weights[name][order.argsort()]
        return weights

    def full_optimizer_states(self):
        states = zip(self.run.optimizers, super().full_optimizer_states(), strict=True)
        return [self.with_rows_moved(*pair, torch.argsort) for pair in states]

    def own_optimizer_states(self, states):
        states = zip(self.run.optimizers, states, strict=True)
        return [self.with_rows_moved(*pair, lambda order: order) for pair in states]

    def with_rows_moved(self, optimizer, state, index_of):
        """An optimizer's state dict with the rows of divided matrices in another order: index_of(order of a matrix)."""
        names = {id(p): name for name, p in self.run.model.named_parameters()}
        params = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        moved = dict(state["state"])
        for i, values in moved.items():
            if params[i] in self.orders:
                index = index_of(self.orders[params[i]])
                moved[i] = {key: v[index] if v is not None and v.dim() else v for key, v in values.items()}
        return {**state, "state": moved}


def row_orders(model, parts):
    """{name of a GPT's parameter: order of its rows (rows,)} in which the rows of each part are consecutive.

    c_attn's rows are the heads of queries, then of keys, then of values; SwiGLU's c_fc has the gate before what it
    lets through. A part has its share of each.
    """
    orders, config = {}, model.config
    heads = [n * config.head_dim for n in (config.n_head, config.n_kv_head, config.n_kv_head)]
    sizes = {"attn.c_attn": heads} | ({} if config.is_gpt2 else {"mlp.c_fc": [config.n_inner] * 2})
    for name, p in model.named_parameters():
        for matrix, rows in sizes.items():
            if f".{matrix}." in name:
                by_part = [piece.view(parts, -1) for piece in torch.arange(len(p)).split(rows)]
                orders[name] = torch.cat(by_part, dim=1).flatten()
    return orders


class RowsOfPart(torch.autograd.Function):
    """The share of this part in rows (N, C), N a multiple of the number of parts. All parts have equal rows, and get
    the gradient of all of them."""

    @staticmethod
    def forward(ctx, rows, parallel):
        """The share (N / parts, C). parallel: a `TensorParallel`."""
        ctx.parallel = parallel
        return rows.chunk(parallel.processes.parts)[parallel.processes.part].clone()

    @staticmethod
    def backward(ctx, grad):
        parts = ctx.parallel.processes.parts
        grads = grad.new_empty(parts * len(grad), *grad.shape[1:])
        dist.all_gather_single(grads, grad.contiguous(), group=ctx.parallel.group)
        return grads.div_(parts), None  # `SumOverParts` has multiplied them


class SumOverParts(torch.autograd.Function):
    """The sum of the parts' losses; the gradient of each is multiplied by the number of parts."""

    @staticmethod
    def forward(ctx, loss, parallel):
        """The sum, a scalar, of all parts' `loss`. parallel: a `TensorParallel`."""
        ctx.parts, total = parallel.processes.parts, loss.clone()
        dist.all_reduce(total, group=parallel.group)
        return total

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.parts, None
