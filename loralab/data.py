"""Where the course's data is: inside an installed package, or in the folder `data/` of a clone."""

from pathlib import Path

_INSTALLED = Path(__file__).parent / "_data"
_CLONE = Path(__file__).parents[1] / "data"


def data_path(name: str = "") -> Path:
    """The absolute path of a file or folder of the course's data, e.g. `data_path("pairs/train.jsonl")`.

    Raises `FileNotFoundError` if the course does not carry it.
    """
    root = _INSTALLED if _INSTALLED.is_dir() else _CLONE
    path = root / name
    if not path.exists():
        raise FileNotFoundError(f"the course carries no data called {name!r} (looked in {root})")
    return path
