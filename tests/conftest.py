import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch loads: see benchmarks/spinning.py
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; a number asked for is kept when it is crowded
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the programs that tests stop by Ctrl-C inherit this

LONG = ("test_run.py", "test_docs.py")  # they take minutes: begun last, they would keep one processor waiting


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files first; all others keep their order."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One embedded store for all tests: making one takes seconds."""
    return tmp_path_factory.mktemp("rankone home")


@pytest.fixture
def mlflow_home(mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded store, and nothing in the environment that leads elsewhere."""
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_RUN_ID",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_REGISTRY_URI",
        "RANKONE_PIPELINE_RUN",
        "RANKONE_PIPELINE_TASK",
        "RANKONE_CHECKPOINTS",
        "RANKONE_TRACKING_SOCKET",
        "RANKONE_CODE_VERSION",
        "RANK",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANKONE_HOME", str(mlflow_folder))
    return mlflow_folder


@pytest.fixture
def refuse_folders(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Folders of some names cannot be listed from then on; in truth nothing is forbidden to root, whom tests run as."""
    original = os.scandir

    def refuse(*names: str, code: int = errno.EACCES) -> None:
        def scandir(path):
            if not isinstance(path, int) and Path(path).name in names:  # shutil lists by number
                raise OSError(code, os.strerror(code), os.fspath(path))
            return original(path)

        monkeypatch.setattr(os, "scandir", scandir)

    return refuse


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a store with one bucket, empty and called "bucket"; the environment leads there."""
    import boto3
    import moto

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with moto.mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        yield client
        client.close()
