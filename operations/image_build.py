"""`make images`: builds the images that the steps run in, pushes them if asked to, and writes the image lock.

The engine is sent a folder with exactly the files that an image's content digest is made of, so two builds of one
digest hold the same code. An image whose digest and base have not changed is not built again. The index of packages
is that of the environment (PIP_INDEX_URL, UV_DEFAULT_INDEX); it reaches the stages that install and no stage that is
kept.
Standard library only: whoever builds images needs no virtual environment.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from operations import code_version, image_contents
from operations.image_lock import (
    USUAL_BASE,
    LockedImage,
    content_files,
    content_of,
    dockerfile,
    images_of,
    lock_path,
    read_lock,
    steps_of_images,
    write_lock,
)

FROM_ENVIRONMENT = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
MOST_NAMED = 5  # of the packages of an image, in a line


class Engine:
    """The command line of a container engine.

    Args:
        program: docker, or one that takes the same commands.
        base_image: what every image begins with: a Debian with Python 3.11; the Dockerfiles' own when empty.
        build_options: further options of `docker build`.
    """

    def __init__(self, program: str = "docker", base_image: str = "", build_options: Sequence[str] = ()) -> None:
        self.program, self.base_image, self.build_options = program, base_image, list(build_options)

    def build(self, name: str, content: str, tag: str) -> None:
        """Build an image of its content files alone."""
        arguments = [f"VERSION={content}", f"REVISION={revision()}", f"SOURCE={source()}"]
        arguments += [f"BASE_IMAGE={self.base_image}"] if self.base_image else []
        arguments += [name for name in FROM_ENVIRONMENT if os.environ.get(name)]  # no value is shown
        options = [option for argument in arguments for option in ("--build-arg", argument)]
        with context(name) as folder:
            recipe = folder / dockerfile(name).relative_to(code_version.ROOT)
            command = [
                "build",
                "--quiet",
                *self.build_options,
                *options,
                "--file",
                str(recipe),
                "--tag",
                tag,
                str(folder),
            ]
            self._run(command)

    def holds(self, reference: str) -> bool:
        """Whether the engine has an image."""
        command = [self.program, "image", "inspect", reference]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def push(self, tag: str) -> str:
        """Push a tag; returns the repository with the digest that the registry gave."""
        self._run(["push", "--quiet", tag])
        repository = tag.rpartition(":")[0]
        listed = self._run(["image", "inspect", "--format", '{{join .RepoDigests "\\n"}}', tag]).split()
        digests = [digest for digest in listed if digest.startswith(f"{repository}@")]
        if not digests:
            raise OSError(f"{self.program} pushed {tag} and tells no digest of it; push it again.")
        return digests[0]

    def size(self, reference: str) -> int:
        """Bytes of an image, its base included."""
        return int(self._run(["image", "inspect", "--format", "{{.Size}}", reference]))

    def contents(self, reference: str) -> str:
        """What an image holds, as its own Python tells it, without a network."""
        command = ["run", "--rm", "--interactive", "--network", "none", reference, "python", "-"]
        return self._run(command, Path(image_contents.__file__).read_text())

    def _run(self, arguments: list[str], said: str | None = None) -> str:
        try:
            done = subprocess.run([self.program, *arguments], input=said, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise OSError(
                f"There is no '{self.program}' here; install Docker, or name another engine: DOCKER=podman."
            ) from None
        if done.returncode:
            raise OSError(f"`{self.program} {arguments[0]}` failed:\n{done.stdout}{done.stderr}")
        return done.stdout


@contextmanager
def context(name: str) -> Iterator[Path]:
    """A folder with the files that an image is built from."""
    with tempfile.TemporaryDirectory(prefix="rankone-image-") as temporary:
        for path in content_files(name):
            copy = Path(temporary) / path.relative_to(code_version.ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copy.chmod(0o644)
        yield Path(temporary)


def build_images(engine: Engine, names: Sequence[str], lock: Path, registry: str = "", push: bool = False) -> None:
    """Build what has changed and write the lock after every image.

    Raises:
        ValueError: an unknown name, or a push without a registry.
        OSError: the engine failed; what it said is in the message.
    """
    if push and not registry:
        raise ValueError("PUSH=1 needs a registry: REGISTRY=registry.example/team.")
    locked = read_lock(lock) if lock.is_file() else {}
    base = engine.base_image or USUAL_BASE
    for name in names:
        started, content = time.monotonic(), content_of(name)
        repository = f"{registry.rstrip('/')}/{name}" if registry else name
        tag = f"{repository}:{content}{mark_of_base(base)}"
        known = locked.get(name)
        done = (
            known
            and (known.content, known.base_image) == (content, base)
            and known.pushed >= push
            and known.reference.startswith(repository)
        )
        needed = not done or not (push or engine.holds(tag))
        if needed:
            engine.build(name, content, tag)
            locked[name] = LockedImage(engine.push(tag) if push else tag, content, push, base)
            write_lock(locked, lock)
        seconds = time.monotonic() - started
        size = f", {engine.size(tag) / 1e6:,.0f} MB" if engine.holds(tag) else ""
        state = "unchanged" if not needed else "pushed" if push else "built"
        print(f"{name:20} {state} in {seconds:5.1f} s{size}  {locked[name].reference}", flush=True)


def mark_of_base(base_image: str) -> str:
    """The end of a tag, so that images on two bases never share one; nothing for the usual base."""
    return "" if base_image == USUAL_BASE else f"-{hashlib.sha256(base_image.encode()).hexdigest()[:8]}"


def list_contents(engine: Engine, names: Sequence[str], lock: Path, folder: Path) -> None:
    """Write what each locked image holds to `<folder>/<name>.json`, and say what is biggest in it."""
    images = images_of(read_lock(lock), names)
    folder.mkdir(parents=True, exist_ok=True)
    for name, reference in images.items():
        listed = engine.contents(reference)
        (folder / f"{name}.json").write_text(listed + "\n")
        packages = [entry for entry in json.loads(listed)["components"] if "properties" in entry]
        biggest = ", ".join(f"{entry['name']} {_bytes(entry) / 1e6:,.0f} MB" for entry in packages[:MOST_NAMED])
        print(f"{name:20} {engine.size(reference) / 1e6:5,.0f} MB, {len(packages)} packages: {biggest}", flush=True)


def _bytes(entry: dict[str, Any]) -> int:
    return int(entry["properties"][0]["value"])


def revision() -> str:
    """The commit that is checked out, with a mark when files differ from it; empty outside of a repository."""
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def source() -> str:
    """Where the code comes from: the repository's `origin`, without a user in it; or empty."""
    address = _git("remote", "get-url", "origin")
    scheme, mark, place = address.partition("://")
    return f"{scheme}{mark}{place.rpartition('@')[2]}" if mark else ""


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(code_version.ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    existing = sorted(steps_of_images())
    parser = argparse.ArgumentParser(prog="python -m operations.image_build", description="Build the steps' images.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(existing)}; all when none is named")
    parser.add_argument("--registry", default="", help="what every repository begins with: registry.example/team")
    parser.add_argument("--push", action="store_true", help="push, and lock the digests that the registry gives")
    parser.add_argument("--base-image", default="", help="a Debian with Python 3.11 in place of python:3.11-slim")
    parser.add_argument("--engine", default="docker", help="docker, or a program that takes the same commands")
    parser.add_argument("--build-options", default="", help="further options of `docker build`, in one text")
    parser.add_argument("--contents", type=Path, metavar="FOLDER", help="build nothing; list what each image holds")
    given = parser.parse_args(arguments)
    engine = Engine(given.engine, given.base_image, shlex.split(given.build_options))
    try:
        if given.contents:
            list_contents(engine, given.names or existing, lock_path(), given.contents)
        else:
            build_images(engine, given.names or existing, lock_path(), given.registry, given.push)
    except (ValueError, OSError) as error:
        print(f"make images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
