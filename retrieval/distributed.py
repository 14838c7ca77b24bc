"""Several processes that train one network: who is first, who does what share, and how batches and gradients meet.

Started by torchrun, every process runs the same step. In one process everything here is the identity.
"""

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def setup(device: torch.device | None = None) -> None:
    """Join the other processes that torchrun started: NCCL for a CUDA device, gloo for a CPU. Alone, does nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    on_cuda = device is not None and device.type == "cuda"
    dist.init_process_group("nccl" if on_cuda else "gloo", device_id=device if on_cuda else None)
    atexit.register(close)


def close() -> None:
    """Leave the group of processes; without one, does nothing."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that logs and writes."""
    return rank() == 0


def say(line: str) -> None:
    """Print a line once, not in every process."""
    if is_first():
        print(line, flush=True)


def as_the_first_says(value: bool, device: torch.device) -> bool:
    """The value that the first process has; all must ask, and wait for one another. `device` is where they train."""
    if world_size() == 1:
        return value
    told = torch.tensor([value], dtype=torch.uint8, device=device)
    dist.broadcast(told, src=0)
    return bool(told.item())


def own_share(batches: Tensor) -> Tensor:
    """The columns of this process: (steps, b) -> (steps, b / processes); laid side by side by rank they are the whole.

    Raises:
        ValueError: the batch cannot be shared out equally.
    """
    batch_size = batches.shape[1]
    if batch_size % world_size():
        raise ValueError(
            f"A batch of {batch_size} images cannot be shared equally among {world_size()} processes; "
            "make classes_per_batch * images_per_class a multiple of their number."
        )
    return batches.chunk(world_size(), dim=1)[rank()]


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """The batch of all processes in the order of their ranks, (b, ...) -> (b * processes, ...); gradients flow back.

    Every process computes the loss of the whole batch. Gradients are summed over the processes on the way back and
    averaged over them by DistributedDataParallel: what remains is the gradient of one process on the whole batch.
    """
    return _Gather.apply(tensor) if world_size() > 1 else tensor


def gather(tensor: Tensor) -> Tensor:
    """The tensors of all processes in the order of their ranks, without gradient: (b, ...) -> (b * processes, ...)."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        context.rows = len(tensor)
        return gather(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous()
        dist.all_reduce(summed)
        return summed[rank() * context.rows : (rank() + 1) * context.rows]


def share_network(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with its gradients averaged over the processes; its weights begin as those of the first one.

    On CUDA batch norm takes its statistics over the whole batch (SyncBatchNorm). On a CPU, where that does not exist,
    each process normalises by its own share and the running statistics are those of the first process: a network with
    batch norm then trains a little differently than in one process; without batch norm it trains the same.
    """
    if world_size() == 1:
        return network
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def same_everywhere(module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first one."""
    if world_size() > 1:
        with torch.no_grad():
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor, src=0)


def average_gradients(module: nn.Module) -> None:
    """Average the gradients of an objective's own parameters (proxies, a softmax layer) over the processes.

    Every process has the gradient of the whole batch there already: the mean is the same and keeps them from drifting.
    """
    if world_size() > 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()
