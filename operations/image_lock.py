"""The image lock: which image each step runs in, by digest where it was pushed and by the digest of its content else.

`make images` writes it (operations/image_build.py); `rankone compile` and `rankone run --runner docker` read it, so
that nobody runs a tag that somebody else can move. An image that was built from other code than lies here is refused.
"""

import ast
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from operations import code_version

PLACE = "RANKONE_IMAGE_LOCK"  # variable that names another file, e.g. one a registry
WHOLE_LIBRARY = "rankone-registry"  # promote copies all of retrieval/ into the model that it registers
BUILD = "make images"
USUAL_BASE = "python:3.11-slim"  # of every Dockerfile, where BASE_IMAGE names no other
BY_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class LockedImage:
    """One image that was built.

    Attributes:
        reference: what to run: repository@sha256:... where it was pushed, else repository:content.
        content: digest of the Dockerfile, the requirements and the code that it was built from.
        pushed: whether a registry holds it.
        base_image: what it begins with, by the name that was given; an older lock has no such entry: the usual one.
    """

    reference: str
    content: str
    pushed: bool
    base_image: str = USUAL_BASE


def images_of(lock: Mapping[str, LockedImage], names: Collection[str] | None = None) -> dict[str, str]:
    """What to run for each image, by its name.

    Args:
        lock: from `read_lock`.
        names: the images that are wanted; all that steps name when None.

    Raises:
        ValueError: the lock lacks an image, or has one that was built from other code than lies here.
    """
    wanted = sorted(steps_of_images() if names is None else names)
    for name in wanted:
        if name not in lock:
            raise ValueError(f"The image lock has no {name}; `{BUILD}` builds what is missing and locks it.")
        content = content_of(name)
        if lock[name].content != content:
            raise ValueError(
                f"{name} is locked at {lock[name].reference}, which was built from the content {lock[name].content}; "
                f"the code, requirements and Dockerfile here are {content}. `{BUILD}` builds it anew."
            )
    return {name: lock[name].reference for name in wanted}


def not_pushed(images: Mapping[str, str]) -> list[str]:
    """Names of the images that no registry holds: their reference is no digest, so a cluster cannot run them."""
    return sorted(name for name, reference in images.items() if not BY_DIGEST.fullmatch(reference))


def lock_path() -> Path:
    """Where the lock lies: RANKONE_IMAGE_LOCK, or `build/images.json` beside the code."""
    named = os.environ.get(PLACE)
    return Path(named) if named else code_version.ROOT / "build" / "images.json"


def read_lock(path: Path) -> dict[str, LockedImage]:
    """The locked images by name.

    Raises:
        FileNotFoundError: there is no lock; says how one is made.
        ValueError: the file is no lock.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no image lock {path}; `{BUILD}` builds the images and writes it "
            "(`REGISTRY=registry.example/team PUSH=1` for a cluster)."
        )
    try:
        return {name: LockedImage(**entry) for name, entry in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no image lock ({error}); remove it and call `{BUILD}`.") from None


def write_lock(lock: Mapping[str, LockedImage], path: Path) -> None:
    """Write the lock, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {name: dataclasses.asdict(image) for name, image in lock.items()}
    aside = path.with_suffix(".writing")
    aside.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n")
    aside.rename(path)


def steps_of_images() -> dict[str, list[str]]:
    """The steps that run in each image, by the image's name, read from `components/*/component.py` without KFP."""
    found: dict[str, list[str]] = {}
    for path in sorted((code_version.ROOT / "components").glob("*/component.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "container_component":
                image = next(word.value for word in node.keywords if word.arg == "image")
                found.setdefault(ast.literal_eval(image), []).append(path.parent.name)
    return found


def content_of(name: str) -> str:
    """Twelve hexadecimal digits that change with whatever an image is built from: its tag."""
    digest = hashlib.sha256()
    for path in content_files(name):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(code_version.ROOT).as_posix()} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()[:12]


def content_files(name: str) -> list[Path]:
    """The files that an image is built from: its Dockerfile, the requirements that this copies, the code of its steps.

    Raises:
        ValueError: no step runs in an image of this name.
    """
    root, steps = code_version.ROOT, steps_of_images()
    if name not in steps:
        raise ValueError(f"No step runs in an image '{name}'; these exist: {', '.join(sorted(steps))}.")
    recipe = dockerfile(name)
    files = {recipe, *(root / "requirements" / file for file in copied_requirements(recipe.read_text()))}
    for step in steps[name]:
        files |= code_version.step_files(step)
    if name == WHOLE_LIBRARY:
        files |= {path for path in (root / "retrieval").iterdir() if path.is_file()}
    return sorted(files | set(_packages(files)))


def dockerfile(name: str) -> Path:
    """The Dockerfile of an image: `rankone-data` is built by `images/data.Dockerfile`."""
    return code_version.ROOT / "images" / f"{name.removeprefix('rankone-')}.Dockerfile"


def copied_requirements(text: str) -> list[str]:
    """Names of the requirement files that a Dockerfile copies."""
    return re.findall(r"^COPY requirements/(\S+)", text, flags=re.MULTILINE)


def _packages(files: Collection[Path]) -> Iterator[Path]:
    """The `__init__.py` of every package that the files lie in."""
    for path in files:
        if path.suffix == ".py":
            for parent in path.parents:
                if (parent / "__init__.py").is_file():
                    yield parent / "__init__.py"
