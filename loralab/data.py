"""Where the course's data is: inside an installed package, or in the folder `data/` of a clone."""

import json
from pathlib import Path
from typing import Any

_INSTALLED = Path(__file__).parent / "_data"
_CLONE = Path(__file__).parents[1] / "data"


def data_path(name: str = "") -> Path:
    """Return the absolute path of a file or folder of the course's data, e.g. `data_path("pairs/train.jsonl")`.

    Raises `FileNotFoundError` if the course does not carry it.
    """
    root = _INSTALLED if _INSTALLED.is_dir() else _CLONE
    path = root / name
    if not path.exists():
        raise FileNotFoundError(f"the course carries no data called {name!r} (looked in {root})")
    return path


def stored_results(name: str) -> dict[str, Any]:
    """Return what `benchmarks/<name>.py` has measured and the course carries, e.g. "learn_and_forget"."""
    folder = _INSTALLED / "results" if _INSTALLED.is_dir() else _CLONE.parent / "benchmarks" / "results"
    results: dict[str, Any] = json.loads((folder / f"{name}.json").read_text("utf-8"))
    return results
