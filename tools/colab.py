"""Run chapters as Colab does: a clean environment with Colab's packages, only the notebook, the course from git.

The environment holds what Colab has installed, an old torchao that peft refuses to work beside, and a module
`google.colab`, by which the bootstrap cell knows where it is. That cell then installs the course from its own
address; git is told to take this repository's current commit for that address.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import nbformat
import typer

from tools.notebooks import ROOT, cell, chapters

# Colab's own versions (googlecolab/backend-info, pip-freeze.gpu.txt of August 2026), but for torch: Colab's is a CUDA build.
PREINSTALLED = {
    "torch": "2.13.0",
    "numpy": "2.1.3",
    "transformers": "5.15.0",
    "peft": "0.20.0",
    "accelerate": "1.14.0",
    "nbclient": "0.10.4",
    "ipykernel": None,
}
KEPT = ("torch", "numpy")
OLD_TORCHAO = "0.10.0"
COURSE = re.compile(r"git\+(https://github\.com/[\w.-]+/[\w.-]+)@([\w.-]+)")


def run(*words: str | Path, **options) -> str:
    """Run a command and return what it prints. Raises `RuntimeError` with its last lines if it fails."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).strip().splitlines()[-12:]))
    return done.stdout


class Machine:
    """A stand-in for a Colab machine, in `folder`."""

    def __init__(self, folder: Path, python: str, versions: dict[str, str | None]) -> None:
        self.folder, self.bin = folder, folder / "env" / "bin"
        run(python, "-m", "venv", folder / "env")
        wanted = [name if version is None else f"{name}=={version}" for name, version in versions.items()]
        run(self.bin / "pip", "install", "--quiet", *wanted)
        self.packages = Path(
            run(self.bin / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        )
        colab = self.packages / "google" / "colab"
        colab.mkdir(parents=True)
        (colab / "__init__.py").touch()
        (self.packages / "colab.pth").write_text("import google.colab\n")  # in Colab it is there before the first cell
        self.before = self.versions()

    def versions(self) -> dict[str, str]:
        """Return the installed packages and their versions."""
        lines = run(self.bin / "pip", "list", "--format=freeze").splitlines()
        return dict(line.split("==") for line in lines if "==" in line)

    def reset(self) -> None:
        """As a new machine is: without the course, and with an old torchao."""
        run(self.bin / "pip", "uninstall", "--yes", "--quiet", "loralab")
        info = self.packages / f"torchao-{OLD_TORCHAO}.dist-info"
        for folder in (info, self.packages / "torchao"):
            folder.mkdir(exist_ok=True)
        (self.packages / "torchao" / "__init__.py").write_text(f'__version__ = "{OLD_TORCHAO}"\n')
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torchao\nVersion: {OLD_TORCHAO}\n")
        (info / "INSTALLER").write_text("pip\n")
        files = ["torchao/__init__.py", *(f"{info.name}/{name}" for name in ("METADATA", "INSTALLER", "RECORD"))]
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))

    def execute(self, notebook: Path, commit: Path) -> None:
        """Run a notebook from an empty folder, with an empty home. Raises `RuntimeError` with its last lines."""
        place, home = self.folder / "content", self.folder / "home"
        for folder in (place, home):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        shutil.copy(notebook, place)
        address, _ = _course(notebook)
        settings = {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{commit.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": address,
        }
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        run(self.bin / "jupyter-execute", notebook.name, cwd=place, env=settings | pip)

    def complaints(self) -> list[str]:
        """Return what a notebook should not have done to the machine, and what it should have."""
        after = self.versions()
        found = [
            f"{name} {self.before[name]} became {after.get(name)}"
            for name in KEPT
            if after.get(name) != self.before[name]
        ]
        if "torchao" in after:
            found.append("the old torchao is still there")
        where = run(self.bin / "python", "-c", "import loralab; print(loralab.__file__)", cwd=self.folder).strip()
        if not Path(where).is_relative_to(self.packages):
            found.append("loralab was not imported from where it was installed")
        return found


def frozen(path: Path) -> dict[str, str | None]:
    """Return the preinstalled packages at the versions of a `pip freeze`, without local labels such as `+cu128`."""
    lines = (line.partition("==") for line in path.read_text("utf-8").splitlines())
    listed = {name.strip().lower(): version.strip().partition("+")[0] for name, sign, version in lines if sign}
    return PREINSTALLED | {name: listed[name] for name in PREINSTALLED if name in listed}


def _course(notebook: Path) -> tuple[str, str]:
    """Return the address and the ref from which a notebook installs the course."""
    found = COURSE.search(cell(nbformat.read(notebook, as_version=4), "bootstrap").source)
    if found is None:
        raise typer.BadParameter(f"{notebook.name}: its bootstrap cell installs no course; run make generate")
    return found[1], found[2]


def _commit(folder: Path, ref: str) -> Path:
    """Return a bare clone of this repository in which `ref` is the current commit."""
    bare = folder / "course.git"
    run("git", "clone", "--quiet", "--bare", ROOT, bare)
    run("git", "-C", bare, "update-ref", f"refs/heads/{ref}", "HEAD")
    return bare


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Chapters by the start of their name (default: all).")
    ] = None,
    python: Annotated[str, typer.Option(help="The Python to make the environment with.")] = sys.executable,
    freeze: Annotated[Path | None, typer.Option(help="Colab's own `pip freeze`, whose versions to take.")] = None,
) -> None:
    """Run chapters as Colab does, from the last commit; exit status 1 if one fails."""
    chosen = [path for path in chapters() if not names or path.name.startswith(tuple(names))]
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        machine = Machine(Path(scratch), python, frozen(freeze) if freeze else PREINSTALLED)
        print(
            f"environment: {time.perf_counter() - started:.0f} s, " + run(machine.bin / "python", "--version").strip()
        )
        for path in chosen:
            started = time.perf_counter()
            machine.reset()
            commit = _commit(Path(tempfile.mkdtemp(dir=scratch)), _course(path)[1])
            try:
                machine.execute(path, commit)
                said = "; ".join(machine.complaints())
            except RuntimeError as error:
                said = str(error)
            failed += bool(said)
            print(f"{path.stem}: {said or 'ok'} ({time.perf_counter() - started:.0f} s)", flush=True)
    raise typer.Exit(int(failed > 0))


if __name__ == "__main__":
    typer.run(main)
