"""Training when another program wants the processor too: how long idle threads spin before they sleep.

    python -m benchmarks.spinning [--seconds 8] [--counts default 1000 10000 30000]

Threads of libgomp, which torch computes with, spin at the end of every operation until the slowest has come. Alone on
the machine that saves waking them; beside another program they hold the cores that it, and they, need. For each value
of GOMP_SPINCOUNT the four-layer network trains alone, then in two processes at once: images a second, of each.
"""

import argparse
import os
import subprocess
import sys
import time

BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--counts", nargs="+", default=["default", "1000", "10000", "30000"])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(images_per_second(options.seconds))
        return
    print(f"{'GOMP_SPINCOUNT':<16}{'alone':>10}{'two at once':>20}   images/s")
    for count in options.counts:
        alone, both = at_once(1, count, options.seconds), at_once(2, count, options.seconds)
        print(f"{count:<16}{alone[0]:>10,.0f}{f'{both[0]:,.0f} and {both[1]:,.0f}':>20}", flush=True)


def at_once(processes: int, count: str, seconds: float) -> list[float]:
    """Images a second of each of so many processes."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if count != "default":
        environment["GOMP_SPINCOUNT"] = count
    command = [sys.executable, "-m", "benchmarks.spinning", "--worker", f"--seconds={seconds}"]
    workers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return [float(worker.communicate()[0]) for worker in workers]


def images_per_second(seconds: float) -> float:
    import torch

    from retrieval.devices import autocast
    from retrieval.models import ModelConfig, build_network

    network, device = build_network(ModelConfig()), torch.device("cpu")
    images = torch.rand(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step() -> None:
        with autocast(device):
            outputs = network(images)
        optimiser.zero_grad()
        outputs.float().square().mean().backward()
        optimiser.step()

    for _ in range(5):  # they warm up
        step()
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps * BATCH / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
