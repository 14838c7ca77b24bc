"""What an image holds, as a CycloneDX list: every Python and Debian package with its version and size.

Standard library only: `make sbom` sends this file to the image's own Python, without a network.
"""

import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

DEBIAN_STATUS = Path("/var/lib/dpkg/status")


def python_packages() -> list[tuple[str, str, int]]:
    """Name, version and bytes of every installed distribution, compiled modules included."""
    return [
        (found.name, found.version, sum(_bytes(Path(str(file.locate()))) for file in found.files or []))
        for found in importlib.metadata.distributions()
    ]


def debian_packages(status: Path = DEBIAN_STATUS) -> list[tuple[str, str, int]]:
    """Name, version and bytes of every Debian package; none where the image is no Debian."""
    entries = status.read_text(errors="replace").split("\n\n") if status.is_file() else []
    fields = [dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line[1:]) for entry in entries]
    return [
        (entry["Package"], entry["Version"], int(entry.get("Installed-Size", "0")) * 1024)
        for entry in fields
        if entry.get("Status", "").endswith(" installed")
    ]


def bill_of_materials() -> dict[str, Any]:
    """The list, biggest first."""
    found = [_component("pypi", *package) for package in python_packages()]
    found += [_component("deb", *package) for package in debian_packages()]
    found.sort(key=lambda component: (-int(component["properties"][0]["value"]), component["purl"]))
    interpreter = {"type": "platform", "name": "python", "version": platform.python_version()}
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "components": [interpreter, *found]}


def _component(kind: str, name: str, version: str, size: int) -> dict[str, Any]:
    namespace = "debian/" if kind == "deb" else ""
    purl = f"pkg:{kind}/{namespace}{name.lower()}@{version}"
    bytes_on_disk = {"name": "rankone:bytes", "value": str(size)}
    return {"type": "library", "name": name, "version": version, "purl": purl, "properties": [bytes_on_disk]}


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


if __name__ == "__main__":
    json.dump(bill_of_materials(), sys.stdout, indent=1)
