"""Read rows of training data from files, folders and the Hub: JSON Lines, JSON, CSV, Parquet, `datasets`."""

from __future__ import annotations

import bz2
import glob
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import first_line
from .formats import is_row
from .pairs import PairsError

if TYPE_CHECKING:
    from datasets import Dataset

OPENERS = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
TABLES = {".csv": ",", ".tsv": "\t"}
BINARY = {".parquet": "parquet", ".arrow": "arrow"}
UNREADABLE = dict.fromkeys((".xlsx", ".xls", ".ods", ".docx", ".pdf"), "save the table as CSV")
UNREADABLE |= dict.fromkeys((".zip", ".7z", ".tar", ".tgz", ".zst"), "unpack it, and give the file or folder in it")

# A place in the data, and the row or what is wrong with it.
Found = tuple[str, Any]


def read_rows(source: str | Path) -> Iterator[Found]:
    """Yield each row with its place (`file:line`, or `file: row 3`); a row that cannot be read is a `PairsError`.

    `source` is a file, a folder that `datasets` can read, or the id of a dataset on the Hub (`owner/name`, or
    `owner/name:split`). Raises `PairsError`, in one line, if nothing can be read at all.
    """
    path = Path(source)
    if path.is_dir():
        return _of_dataset(str(source), _from_folder(path))
    if not path.exists() and _is_hub_id(str(source)):
        name, _, split = str(source).partition(":")
        return _of_dataset(str(source), _load(source, name, wanted=split))
    if not path.is_file():
        raise PairsError(
            f"{source}: no such file; give a file with training data, a folder, or a dataset's id (owner/name)"
        )
    kind = _suffixes(path)[0]
    if kind in TABLES:
        return _from_table(path, TABLES[kind])
    if kind in BINARY:
        return _of_dataset(str(source), _load(path, BINARY[kind], data_files=glob.escape(str(path))))
    if kind in UNREADABLE:
        raise PairsError(f"{path}: {kind} files cannot be read; {UNREADABLE[kind]}")
    return _from_text(path, _text(path))


def _suffixes(path: Path) -> tuple[str, str]:
    """Return the suffix of the format, and that of the compression, if any: `.csv`, `.gz`."""
    last = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), last) if last in OPENERS else (last, "")


def _text(path: Path) -> str:
    raw = path.read_bytes()
    if open_it := OPENERS.get(_suffixes(path)[1]):
        try:
            raw = open_it(raw)
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
            raise PairsError(f"{path}: cannot be decompressed ({error}); compress it again") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = raw[: error.start].count(b"\n") + 1
        raise PairsError(f"{path}:{number}: not UTF-8 (byte {raw[error.start]:#04x}); save the file as UTF-8") from None


def _from_text(path: Path, text: str) -> Iterator[Found]:
    """Read JSON Lines, or one JSON document: an array of rows, or an object that holds one."""
    start = text.lstrip()[:1]
    if start in {"[", "{"} and (rows := _document(text)) is not None:
        return ((f"{path}: row {number}", row) for number, row in enumerate(rows, start=1))
    return _from_lines(path, text)


def _document(text: str) -> list[Any] | None:
    """Return the rows of a JSON document; None if the text is not one, as with JSON Lines."""
    first, _, further = text.lstrip().partition("\n")
    if first.startswith("{") and further.strip() and _is_json(first):
        return None  # a whole object on the first of several lines
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(content, list):
        # One line such as ["Where?", "There."] is JSON Lines with a row that is no object, and reported as such.
        return content if all(isinstance(row, dict) for row in content) or len(content) == 0 else None
    lists = [value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return lists[0] if len(lists) == 1 and not is_row(content) else [content]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _from_lines(path: Path, text: str) -> Iterator[Found]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = PairsError(f"not valid JSON ({error}); each line must be one whole JSON object")
            yield f"{path}:{number}", problem


def _from_table(path: Path, separator: str) -> Iterator[Found]:
    import pandas as pd

    text = _text(path)
    heading = text.partition("\n")[0]
    if separator not in heading and ";" in heading:  # as Excel writes it where numbers have a comma
        separator = ";"
    try:  # as text: an answer such as 007 stays what it is
        table = pd.read_csv(StringIO(text), sep=separator, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' own are of this kind
        raise PairsError(f"{path}: cannot be read as a table: {first_line(error)}") from None
    rows = table.to_dict("records")
    return ((f"{path}: row {number}", row) for number, row in enumerate(rows, start=1))


def _is_hub_id(source: str) -> bool:
    owner, slash, name = source.partition("/")
    return (
        bool(slash and owner and name)
        and "/" not in name
        and not source.startswith((".", "~"))
        and not Path(name).suffix[1:2].isalpha()  # a file's ending; OpenHermes-2.5 has none
    )


def _from_folder(path: Path) -> Dataset:
    from datasets import load_from_disk

    saved = (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()
    if not saved:
        return _load(path, str(path))
    try:
        return _split(load_from_disk(str(path)), str(path), "")
    except (OSError, ValueError) as error:
        raise PairsError(f"{path}: cannot be read by datasets: {first_line(error)}") from None


def _load(source: str | Path, name: str, wanted: str = "", **options: Any) -> Dataset:
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        return _split(load_dataset(name, **options), str(source), wanted)
    except PairsError:
        raise
    except Exception as error:  # datasets raises errors of pyarrow, fsspec, httpx and its own
        raise PairsError(f"{source}: cannot be read by datasets: {first_line(error)}") from None


def _split(found: Any, source: str, wanted: str) -> Dataset:
    """Return the wanted split: the one that was named, `train`, or the only one."""
    if not isinstance(found, dict):
        return found
    name = wanted or ("train" if "train" in found else next(iter(found)) if len(found) == 1 else "")
    if name not in found:
        raise PairsError(f"{source}: it has the splits {', '.join(found)}; name one: {source.partition(':')[0]}:NAME")
    return found[name]


def _of_dataset(source: str, dataset: Dataset) -> Iterator[Found]:
    return ((f"{source}: row {number}", row) for number, row in enumerate(dataset, start=1))
