"""The version of a step's code: a digest of every file that the step can reach, and of the packages it is pinned to.

It is the tag of the step's image, so that a cache sees a change of code, and sees it only where it matters.
"""

import ast
import functools
import hashlib
import platform
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("components", "retrieval")
REQUIREMENTS = ROOT / "requirements" / "rankone.txt"


def step_version(step: str) -> str:
    """Twelve hexadecimal digits that change with a step's code, a module that it imports, or a pinned package."""
    digest = hashlib.sha256(platform.python_version().encode())
    for path in [*sorted(step_files(step)), REQUIREMENTS]:
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def step_files(step: str) -> set[Path]:
    """The files of our own that a step runs by: what it imports, and the program that starts it."""
    return reachable_files("components.__main__") | reachable_files(f"components.{step}.step")


def reachable_files(module: str) -> set[Path]:
    """The files of our own that a module imports, directly or not, with the templates that lie beside them."""
    waiting, modules = [module], set[str]()
    while waiting:
        name = waiting.pop()
        if name not in modules and (path := _file_of(name)):
            modules.add(name)
            waiting += imported_modules(path.read_text())
    files = {path for name in modules if (path := _file_of(name))}
    return {beside for path in files for beside in path.parent.glob(f"{path.stem}.*") if beside.is_file()}


@functools.cache
def imported_modules(source: str) -> tuple[str, ...]:
    """Names of the modules of our own rooms that a source text imports, anywhere in it."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(name for name in found if name.partition(".")[0] in ROOMS)


def _file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None
