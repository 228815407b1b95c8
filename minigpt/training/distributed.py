"""Training on several devices: process groups, DDP, FSDP2, and gathering and sharding of states for checkpoints.

torchrun starts the processes and sets their ranks in the environment. Numbers that the processes agree on (the targets
of a step, whether to stop) are exchanged between CPUs, so that no GPU has to wait for them.
"""

import functools
import gc
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from minigpt.common.errors import UserError, first_line


@dataclass
class Processes:
    """The place of this process in a run, and collective operations. All processes must call the same operations.

    count groups of processes share the rows of a step (data parallelism), and this process is in the one of number
    rank. The processes of a group have the same rows. There are parts of them: each holds a part of the model (tensor
    or pipeline parallelism), and this one the part of number part. mesh: a `DeviceMesh` of the dimensions "data" and
    "model", of sizes count and parts; None where parts is 1.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # among the processes of this machine
    part: int = 0
    parts: int = 1
    mesh: DeviceMesh | None = None

    @property
    def world_rank(self):
        """The number of this process among all, as torchrun counts."""
        return self.rank * self.parts + self.part

    @property
    def world_count(self):
        """Number of all processes of the run."""
        return self.count * self.parts

    @property
    def is_main(self):
        """Whether this process prints and writes files."""
        return self.world_rank == 0

    def total(self, *numbers):
        """List of the numbers, each summed over the groups of processes, as floats. Processes of a group must pass the
        same numbers, but for truth values: the sum of one is above 0 if it is true in any process."""
        if self.world_count == 1:
            return [float(n) for n in numbers]
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return (sums / self.parts).tolist()

    def from_main(self, value):
        """The value that the main process passes; returned in every process."""
        if self.world_count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def gather(self, value):
        """List of the values of all processes, by their world_rank."""
        values = [value] * self.world_count
        if self.world_count > 1:
            dist.all_gather_object(values, value)
        return values

    def stop(self):
        """Leave the process group."""
        if self.world_count > 1 and dist.is_initialized():
            gc.collect()  # shards that are freed after the group abort the process
            dist.barrier()
            dist.destroy_process_group()


def start_processes(device_name="auto", parts=1):
    """Join the process group that torchrun's environment describes; returns `Processes`, of one process without it.

    parts: processes that the model is divided over. Raises UserError where the group cannot be formed, where there are
    more processes than GPUs, or where parts does not divide their number.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count % parts:
        raise UserError(
            f"a model in {parts} parts needs {parts} processes, or a multiple of them, and here "
            f"{'is 1' if count == 1 else f'are {count}'}; start them with "
            f"torchrun --standalone --nproc_per_node={parts} train.py …"
        )
    if count == 1:
        return Processes()

    # Check the environment and the devices.
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} is not set: start several processes by torchrun"
        )
    rank, part = divmod(int(os.environ["RANK"]), parts)
    processes = Processes(rank, count // parts, int(os.environ["LOCAL_RANK"]), part, parts)
    if device_name == "mps" or (device_name == "auto" and torch.backends.mps.is_available()):
        raise UserError("several processes cannot share a run on mps; give --device=cpu, or start one process")
    on_gpus = device_name.startswith("cuda") or (device_name == "auto" and torch.cuda.is_available())
    if on_gpus and processes.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {processes.local_rank + 1} of this machine has no GPU of its own: the machine has "
            f"{torch.cuda.device_count()}; start as many with --nproc_per_node, or give --device=cpu"
        )

    # Connect to the other processes.
    backend = "cpu:gloo,cuda:nccl" if on_gpus and dist.is_nccl_available() else "gloo"
    try:
        # Where torchrun starts the processes again, the addresses of those that have ended are still in its store.
        store, number, _ = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the {count} processes could not connect to each other ({first_line(error)})") from None
    if parts > 1:
        shape, names = (processes.count, parts), ("data", "model")
        processes.mesh = dist.init_device_mesh("cuda" if on_gpus else "cpu", shape, mesh_dim_names=names)
    return processes


class LossSum(nn.Module):
    """Computes an objective's loss in `forward`, which DDP requires."""

    def __init__(self, model, objective):
        super().__init__()
        self.model, self.objective = model, objective
        self.module = objective.module

    def forward(self, *batch):
        return self.objective.loss(self.model, *batch)


def shard(model, device):
    """Shard a GPT's parameters over all processes (FSDP2), block by block, in place. Raises UserError for GPUs without
    NCCL."""
    check_nccl("fsdp", device)
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("loss_sum", "token_losses"):
        register_fsdp_forward_method(model, method)


def check_nccl(name, device):
    """Raise UserError where a setting `name` that divides the model is used on GPUs without NCCL. gloo has no such
    exchange of GPU tensors."""
    if device.type == "cuda" and not dist.is_nccl_available():
        raise UserError(f"{name} needs NCCL between GPUs, which torch has on Linux only; leave it out")


def averaging_loss(model, objective, processes, device):
    """An objective's loss of a micro-batch's tensors. After its backward pass, gradients are averaged over the
    processes, except those of a divided model."""
    if processes.count == 1 or processes.parts > 1 or isinstance(model, FSDPModule):
        return functools.partial(objective.loss, model)
    devices = [device.index] if device.type == "cuda" else None
    # The only buffers are weights of a base in 4 bits, which stay the same (they are sent once, at the start).
    # Gradients lie in the buffers of the exchange: a copy of them would take as much memory as the weights.
    return DistributedDataParallel(
        LossSum(model, objective), device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True
    )


def exchange_gradients(model, loss, exchanging):
    """Set whether the next backward pass exchanges gradients. Only the last one of a step needs to.

    loss: the function from `averaging_loss`.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(exchanging)
    elif isinstance(loss, DistributedDataParallel):
        loss.require_backward_grad_sync = exchanging


def full_values(*numbers):
    """Scalar tensors as floats; sharded ones are summed over the processes first. A float is returned as it is.

    Tensors of one device are read together, so that the CPU waits for a GPU once.
    """
    whole = [number.full_tensor() if isinstance(number, DTensor) else number for number in numbers]
    if all(isinstance(number, torch.Tensor) and number.device == whole[0].device for number in whole):
        return torch.stack(whole).tolist()
    return [float(number) for number in whole]


def local_part(tensor):
    """This process's shard of a tensor; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_tensors(value, processes):
    """Gather the sharded tensors of a value (tensor, or nested dicts and lists) on the CPU of the main process.

    Every process must call this; in the other processes those tensors become None. Only one complete tensor at a time
    is on a GPU. Returns a copy of the value.
    """
    if isinstance(value, DTensor):
        full = value.full_tensor()
        return full.cpu() if processes.is_main else None
    if isinstance(value, dict):
        return {key: gather_tensors(item, processes) for key, item in value.items()}
    return [gather_tensors(item, processes) for item in value] if isinstance(value, list) else value


def shard_state(state, optimizer):
    """Shard the tensors of a gathered optimizer state dict like the parameters of `optimizer`; returns a new dict."""
    params = [p for group in optimizer.param_groups for p in group["params"]]

    def shard_like(p, value):
        if isinstance(p, DTensor) and isinstance(value, torch.Tensor) and value.shape == p.shape:
            return distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)
        return value

    by_param = {i: {key: shard_like(params[i], v) for key, v in values.items()} for i, values in state["state"].items()}
    return {**state, "state": by_param}
