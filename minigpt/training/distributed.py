"""One run on several devices: torch's process groups, DDP, FSDP2, and states that are whole again in a checkpoint.

Processes are started by torchrun, which tells each its place in the environment. Numbers that the processes
agree on (how many tokens a step keeps, whether to stop) go over the CPU, so that no card has to wait for them.
"""

import gc
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from minigpt.common.errors import UserError


@dataclass
class Processes:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # among those of this machine

    @property
    def is_main(self):
        """Whether this is the one that prints and writes files."""
        return self.rank == 0

    def total(self, *numbers):
        """The numbers, each summed over the processes, as floats."""
        if self.count == 1:
            return [float(n) for n in numbers]
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def from_main(self, value):
        """The main process's value, in every process."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def gather(self, value):
        """List of every process's value, by rank."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def stop(self):
        """Leave the group, all together."""
        if self.count > 1 and dist.is_initialized():
            gc.collect()  # shards that are still there would end the group's threads too late, with an abort
            dist.barrier()
            dist.destroy_process_group()


def start_processes(device_name="auto"):
    """`Processes` by torchrun's environment; of one process where it is not there.

    Raises UserError where the group cannot be formed, or more processes are started than there are cards.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set: start several processes by torchrun"
        )
    processes = Processes(int(os.environ["RANK"]), count, int(os.environ["LOCAL_RANK"]))
    if device_name == "mps" or (device_name == "auto" and torch.backends.mps.is_available()):
        raise UserError("several processes cannot share a run on mps; give --device=cpu, or start one process")
    on_cards = device_name.startswith("cuda") or (device_name == "auto" and torch.cuda.is_available())
    if on_cards and processes.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {processes.local_rank + 1} of this machine has no card of its own: it has "
            f"{torch.cuda.device_count()}; start as many with --nproc_per_node, or give --device=cpu"
        )
    backend = "cpu:gloo,cuda:nccl" if on_cards and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the {count} processes found no way to each other ({str(error).splitlines()[0]})") from None
    return processes


class LossSum(nn.Module):
    """`GPT.loss_sum` as a forward pass, which is what DDP hooks into."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, y, loss_mask):
        return self.model.loss_sum(x, y, loss_mask)


def shard(model, device):
    """Shard a GPT's parameters over all processes (FSDP2), block by block, in place."""
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("loss_sum", "token_losses"):
        register_fsdp_forward_method(model, method)


def averaging_loss(model, processes, device):
    """A callable like `model.loss_sum` whose backward pass leaves the mean of all processes' gradients."""
    if processes.count == 1 or isinstance(model, FSDPModule):
        return model.loss_sum
    return DistributedDataParallel(LossSum(model), device_ids=[device.index] if device.type == "cuda" else None)


def exchange_gradients(model, loss, exchanging):
    """Say whether the next backward pass exchanges gradients; only the last one of a step needs to."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(exchanging)
    elif isinstance(loss, DistributedDataParallel):
        loss.require_backward_grad_sync = exchanging


def full_value(tensor):
    """A scalar tensor as a float; one that is sharded is summed up over the processes first."""
    return float(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)


def local_part(tensor):
    """What this process holds of a tensor: its shard, or all of one that is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_tensors(value, processes):
    """A value with its sharded tensors gathered in the main process's memory, within dicts and lists too.

    Every process must call it; in the others those tensors are None. Only one tensor at a time is whole on a GPU.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if processes.is_main else None
    if isinstance(value, dict):
        return {key: gather_tensors(item, processes) for key, item in value.items()}
    return [gather_tensors(item, processes) for item in value] if isinstance(value, list) else value


def shard_state(state, optimizer):
    """A whole state dict of an optimizer with its tensors sharded as that optimizer's parameters are."""
    params = [p for group in optimizer.param_groups for p in group["params"]]

    def share(p, value):
        if isinstance(p, DTensor) and isinstance(value, torch.Tensor) and value.shape == p.shape:
            return distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)
        return value

    by_param = {i: {key: share(params[i], v) for key, v in values.items()} for i, values in state["state"].items()}
    return {**state, "state": by_param}
