"""The commands behind the numbers: every one starts, and those that train do so on a few made-up images."""

import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import squeezenet1_0

ROOT = Path(__file__).parent.parent.parent
COMMANDS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())
WITH_A_PEER_OF_ITS_OWN = {"peers_oml"}  # read by another interpreter, which has open-metric-learning


UNCHECKED = """
import runpy, sys
import torchvision.datasets.cifar as cifar
cifar.check_integrity = lambda *_: True  # the made-up files have other checksums than the official ones
sys.argv[:] = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def benchmark(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", UNCHECKED, f"benchmarks.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.fixture(scope="session")
def cifar100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the official CIFAR-100 with few images: 16 and 4 of each class, of a colour of its own."""
    folder, random = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    (folder / "cifar-100-python").mkdir()
    colours = random.integers(40, 216, (100, 3, 1))
    for split, each in (("train", 16), ("test", 4)):
        labels = np.tile(np.arange(100), each)
        pixels = np.clip(colours[labels] + random.integers(-40, 40, (len(labels), 3, 1024)), 0, 255)
        content = {
            "data": pixels.reshape(len(labels), 3072).astype(np.uint8),
            "fine_labels": labels.tolist(),
            "coarse_labels": (labels // 5).tolist(),
            "filenames": [f"{split}_{number}.png" for number in range(len(labels))],
        }
        (folder / "cifar-100-python" / split).write_bytes(pickle.dumps(content))
    names = {"fine_label_names": [f"fine{n}" for n in range(100)]}
    names["coarse_label_names"] = [f"coarse{n}" for n in range(20)]
    (folder / "cifar-100-python" / "meta").write_bytes(pickle.dumps(names))
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of SqueezeNet that know nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "squeezenet1_0.pth"
    torch.save(squeezenet1_0(weights=None).state_dict(), path)
    return path


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in WITH_A_PEER_OF_ITS_OWN])
def test_every_command_says_what_it_does(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)  # a module that another one imported
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert ended.value.code == 0
    assert f"benchmarks.{name}" in capsys.readouterr().out.replace("benchmarks/", "benchmarks.")


def numbers(done: subprocess.CompletedProcess[str], row: str) -> list[str]:
    """The cells behind the name of the row of a table."""
    assert done.returncode == 0, done.stderr
    found = re.search(rf"^\|? *{row}(?: \(.*\))?(?:  +| \| )(.*)$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    return found[1].replace("|", " ").split()


def test_ways_to_draw_the_network_are_compared(cifar100: Path, weights: Path) -> None:
    options = [
        "--images=800",
        "--co-clusters=20",
        "--epochs=1",
        "--metric-epochs=1",
        "--seeds",
        "0",
        "--teacher-size=32",
    ]
    done = benchmark(
        "adjusting", f"--location={cifar100}", f"--weights={weights}", *options, "--ways", "none", "centres"
    )
    assert 0 <= float(numbers(done, "none")[0]) <= 100
    assert 0 <= float(numbers(done, "centres")[0]) <= 100


def test_forms_of_the_network_are_compared(cifar100: Path) -> None:
    options = ["--images=1000", "--validation=500", "--epochs=1", "--variants", "narrow"]
    assert 0 < float(numbers(benchmark("network", f"--location={cifar100}", *options), "narrow")[0]) <= 1


def test_augmentations_are_compared(cifar100: Path) -> None:
    options = ["--images=1000", "--validation=500", "--epochs=1", "--seeds=1", "--names=shift"]
    whole, _, halved, _ = numbers(benchmark("augmentation", f"--location={cifar100}", *options), "shift")
    assert all(0 < float(number.rstrip("%")) <= 100 for number in (whole, halved))


def test_losses_are_compared_and_one_that_diverges_is_told() -> None:
    options = ["--epochs=1", "--seeds=1", "--image-size=16", "--images-per-class=30", "--losses", "contrastive"]
    assert 0 < float(numbers(benchmark("choices", "losses", *options), "contrastive")[0]) <= 100
    lost = benchmark("choices", "losses", *options, "--learning-rate=1e30")
    assert "counted as 0, for trial: the loss is nan" in lost.stdout


def test_neighbours_are_compared_with_those_of_faiss() -> None:
    done = benchmark("neighbours", "--images=2000", "--dimension=32", "--runs=1")
    assert done.returncode == 0, done.stderr
    assert "equal neighbours   2,000 of 2,000" in done.stdout


def test_co_clusters_are_compared_with_those_of_scikit_learn() -> None:
    done = benchmark("co_clustering", "--images=1000", "--dimensions=64", "--clusters=10")
    assert float(numbers(done, "purity")[0]) > 0.5
