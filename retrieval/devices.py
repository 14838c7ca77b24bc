"""Which processor a step computes on, and what that processor is good at."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str) -> torch.device:
    """The device of this process; under torchrun each process of a machine takes its own accelerator.

    Args:
        name: "auto" (CUDA where there is one), "cpu" or "cuda".

    Raises:
        ValueError: an unknown name, CUDA where there is none, or more processes than accelerators.
    """
    if name not in DEVICES:
        raise ValueError(f"Unknown device '{name}'; choose one of: {', '.join(DEVICES)}.")
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise ValueError("device is 'cuda' and this machine shows no CUDA device; use device=auto or device=cpu.")
    if name == "cpu" or not found:
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise ValueError(
            f"Process {number} of this machine has no CUDA device: there are {torch.cuda.device_count()}; "
            "start at most that many processes a machine."
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; where it is emulated it is hundreds of times slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or has_bfloat16_tiles())


def has_bfloat16_tiles() -> bool:
    """Whether this CPU multiplies whole tiles of bfloat16 at once (AMX): float32 products gain by being rounded."""
    return bool(torch.cpu._is_amx_tile_supported())


def has_fast_int8() -> bool:
    """Whether this CPU adds up products of int8 in 32 bits at once (AVX-512 VNNI): four times float32, and exact."""
    return bool(torch.cpu._is_vnni_supported())


@contextmanager
def bfloat16_units() -> Iterator[None]:
    """A context in which a CPU's float32 matrix products run on its bfloat16 units.

    Both factors are rounded to bfloat16, products are exact, sums and results are float32. For factors that are
    bfloat16 numbers already only the speed changes.
    """
    units = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = units.fp32_precision
    units.fp32_precision = "bf16"
    try:
        yield
    finally:
        units.fp32_precision = before


@contextmanager
def bfloat16_summed_in_float32() -> Iterator[None]:
    """A context in which CUDA adds up products of bfloat16 in float32 throughout, as a CPU does: the error is known."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which networks compute in bfloat16, where the device does so in hardware; else in float32."""
    if has_fast_bfloat16(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def describe(device: torch.device) -> str:
    """The device in words, for a log: what it is and what it computes in, e.g. "cpu with 2 threads, float32"."""
    threads = torch.get_num_threads()
    cpu = f"cpu with {threads} thread{'s' if threads > 1 else ''}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return f"{name}, {'bfloat16' if has_fast_bfloat16(device) else 'float32'}"


def memory_for_images(device: torch.device) -> int:
    """Bytes that a set of images may take to stay on the device: half of what is free on CUDA, 2 GiB on a CPU.

    On a CPU the images are memory-mapped anyway: a copy saves only the way through the page cache.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return 2 * 2**30
