"""What a process gains that keeps the memory it frees, as every step does: CPU time, page faults, peak.

    python -m benchmarks.freed_memory [--images 1024] [--batch-size 256]

SqueezeNet (random weights, three depths, pooled by GeM) embeds images at 128 and 64 px and the four-layer network
at 32 px, then the four-layer network trains; each in a process of its own on one thread, once with memory handed back
to the system and mapped anew, as glibc does by itself with what is larger than 32 MiB, and once kept.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from components.freed_memory import keep_freed_memory
from retrieval.devices import autocast
from retrieval.models import ModelConfig, build_network

GIVEN_BACK, KEPT = "given back", "kept"
FOUR_LAYER = ModelConfig()
SQUEEZENET = replace(
    FOUR_LAYER, architecture="squeezenet1_0", dimension=0, pooling="gem", head="none", depths=(1, 2, 3)
)
WORK = {
    "SqueezeNet embeds at 128 px": replace(SQUEEZENET, network_size=128),
    "SqueezeNet embeds at 64 px": replace(SQUEEZENET, network_size=64),
    "four_layer embeds at 32 px": FOUR_LAYER,
    "four_layer trains at 32 px": FOUR_LAYER,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--alone", nargs=2, metavar=("WORK", "MEMORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        work, memory = options.alone
        print(json.dumps(measure(work, memory == KEPT, options.images, options.batch_size)))
        return
    print(f"{'':30}{'memory':<12}{'CPU s':>8}{'of it system':>14}{'page faults':>13}{'peak, MiB':>11}")
    for work in WORK:
        for memory in (GIVEN_BACK, KEPT):
            found = in_its_own_process(work, memory, options)
            row = f"{found['cpu']:>8.2f}{found['system']:>14.2f}{found['faults']:>13,}{found['peak']:>11,.0f}"
            print(f"{work:30}{memory:<12}{row}", flush=True)


def in_its_own_process(work: str, memory: str, options: argparse.Namespace) -> dict[str, float]:
    """What `measure` found there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-m", "benchmarks.freed_memory", f"--images={options.images}"]
    command += [f"--batch-size={options.batch_size}", "--alone", work, memory]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(work: str, kept: bool, images: int, batch_size: int) -> dict[str, float]:
    """CPU seconds of a pass over random images, the first pass left aside, and the peak of the process in MiB."""
    if kept and not keep_freed_memory():
        raise SystemExit("Memory is not kept: this needs glibc.")
    torch.set_num_threads(1)
    one_batch = training(WORK[work], batch_size) if "trains" in work else embedding(WORK[work], batch_size)
    batches = -(-images // batch_size)
    for _ in range(batches):
        one_batch()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    for _ in range(batches):
        one_batch()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "cpu": time.process_time() - started,
        "system": after.ru_stime - before.ru_stime,
        "faults": after.ru_minflt - before.ru_minflt,
        "peak": after.ru_maxrss / 1024,
    }


def embedding(config: ModelConfig, batch_size: int) -> Callable[[], None]:
    """Embeds a batch."""
    network = build_network(config).to(memory_format=torch.channels_last).eval()
    images = torch.rand(batch_size, 3, 32, 32)

    def one_batch() -> None:
        with torch.inference_mode():
            network(images)

    return one_batch


def training(config: ModelConfig, batch_size: int) -> Callable[[], None]:
    """Trains by a batch."""
    network = build_network(config).to(memory_format=torch.channels_last)
    images = torch.rand(batch_size, 3, 32, 32).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)

    def one_batch() -> None:
        with autocast(torch.device("cpu")):
            outputs = network(images)
        optimiser.zero_grad()
        outputs.float().square().mean().backward()
        optimiser.step()

    return one_batch


if __name__ == "__main__":
    main()
