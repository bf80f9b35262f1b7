"""Packing a submission: the notebook and what it trained, in one zip that a learning platform accepts."""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from .errors import LoralabError
from .files import write_whole
from .record import ADAPTER_FILE, RUN_FILES

MAX_BYTES = 25_000_000


def pack(exercise: str, runs: str | Path, names: Sequence[str], notebook: str | Path | None = None) -> Path:
    """Zip the run folders `names` in `runs`, and the notebook, into `<runs>/<exercise>.zip`, and return its path.

    Of each run three files are taken: the adapter (safetensors), its config and `run.json`. Adapters that would make the
    zip larger than 25 MB are stored in 16 bits. The notebook that this runs in is found by itself in Jupyter, VS Code and
    Colab; elsewhere give its path. Raises `LoralabError` with one line if a run is incomplete, there is no notebook at the
    path given, or the zip is too large; then nothing is written.
    """
    runs = Path(runs)
    for name in names:
        for file in RUN_FILES:
            if not (runs / name / file).is_file():
                raise LoralabError(f"{runs / name} has no {file}: run the cells that train {name!r}, then pack again")
    files = {f"{name}/{file}": (runs / name / file).read_bytes() for name in names for file in RUN_FILES}
    if sum(map(len, files.values())) > MAX_BYTES:
        files |= {name: _in_16_bits(runs / name) for name in files if name.endswith(ADAPTER_FILE)}
    found = _notebook(notebook)
    if found is not None:
        files[f"{exercise}.ipynb"] = found
    packed = _zipped(files)
    if len(packed) > MAX_BYTES:
        raise LoralabError(
            f"the submission would have {len(packed):,} bytes, more than {MAX_BYTES:,}; is the notebook full of pictures?"
        )
    path = write_whole(runs / f"{exercise}.zip", packed)
    print(f"{path}: {len(names)} runs{', the notebook' if found else ''}, {len(packed):,} bytes")
    if found is None:
        print("The notebook was not found from here: save it, and hand it in beside the zip.")
    return path


def _zipped(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _in_16_bits(path: Path) -> bytes:
    return save({name: tensor.half() for name, tensor in load_file(path).items()}, metadata={"format": "pt"})


def _notebook(path: str | Path | None) -> bytes | None:
    """Return the notebook as last saved (in Colab: as on the screen), or None if this is not run in one."""
    if path is not None and not (Path(path).suffix == ".ipynb" and Path(path).is_file()):
        raise LoralabError(
            f"{path} is no notebook: give the path of your .ipynb file, from the folder that this runs in"
        )
    if "google.colab" in sys.modules:
        return json.dumps(_from_colab()).encode()
    for candidate in (path, os.environ.get("JPY_SESSION_NAME"), _from_vscode()):
        if candidate and Path(candidate).suffix == ".ipynb" and Path(candidate).is_file():
            return Path(candidate).read_bytes()
    return None


def _from_colab() -> dict[str, Any]:
    from google.colab import _message  # the only way to a notebook that lies on a drive and not on the machine

    notebook: dict[str, Any] = _message.blocking_request("get_ipynb", timeout_sec=30)["ipynb"]
    return notebook


def _from_vscode() -> str | None:
    from IPython import get_ipython

    shell = get_ipython()
    return None if shell is None else shell.user_ns.get("__vsc_ipynb_file__")
