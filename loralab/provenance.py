"""What a result comes from: hashes of code and data, and the versions beside them."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

from .data import data_path
from .record import versions

CODE = (".py", ".json", ".jinja", ".j2")  # files of a package that decide what its functions do
DATA = ("base", "broken", "configs", "desk", "pairs")  # what a wheel carries of data/; a clone has more of it


@cache
def describe(module: str) -> str:
    """Return what two machines must have in common to share the functions of `module`: Python, packages, code and data.

    The sources count, not only their version: between two releases the code changes, too. A clone and a wheel of the
    same commit have the same description, and so have a torch for CPUs and one for GPUs.
    """
    parts = [f"Python {'.'.join(platform.python_version_tuple()[:2])}"]
    for package in dict.fromkeys(["loralab", module.partition(".")[0]]):
        label = f"loralab {version('loralab')}" if package == "loralab" else package
        parts.append(f"{label} ({_code_digest(package)[:8]})")
    data = {f"{name}/{inner}": path for name in DATA for inner, path in files_below(data_path(name)).items()}
    parts.append(f"data ({digest(data)[:8]})")
    parts += [f"{name} {number.partition('+')[0]}" for name, number in versions().items() if name != "python"]
    return ", ".join(parts)


def files_below(folder: Path, suffixes: Iterable[str] = ()) -> dict[str, Path]:
    """Return the files below `folder` (with these suffixes, if any are given) by their paths in it, with `/`.

    Hidden files and caches are left out, and the data that a wheel carries inside the package: it is no part of the code.
    """
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        inner.as_posix(): path
        for inner, path in found.items()
        if not any(part.startswith(".") or part in ("_data", "__pycache__") for part in inner.parts)
        and (not suffixes or path.suffix in suffixes)
    }


def digest(files: dict[str, Path]) -> str:
    """Return the SHA-256 of these files by name, in an order that is the same on every system."""
    whole = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes().replace(b"\r\n", b"\n")  # line ends differ between systems
        whole.update(f"{name}\n{len(content)}\n".encode())
        whole.update(content)
    return whole.hexdigest()


def _code_digest(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None:
        return "missing"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = {name: path for folder in folders for name, path in files_below(folder, CODE).items()}
    if not found and spec.origin:  # a module of one file
        found = {Path(spec.origin).name: Path(spec.origin)}
    return digest(found) if found else "missing"
