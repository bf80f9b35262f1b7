"""A grade sheet of another system: some cells are filled, and every other byte stays as it is."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import GraderError

DELIMITERS = ",;\t"
BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass
class Sheet:
    """The rows of a sheet as they stand in the file: each cell with its quotes, each row with its line end."""

    mark: bytes
    encoding: str
    delimiter: str
    rows: list[list[str]]
    ends: list[str]

    @classmethod
    def read(cls, path: Path, columns: Sequence[str]) -> Sheet:
        """Read the file, whose first row must have these columns. Raises `GraderError`.

        What is not UTF-8 or UTF-16 is taken byte by byte: its own cells stay, and only ASCII is written into it.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise GraderError(f"{path}: cannot be read ({error.strerror}): name the file that was downloaded") from None
        mark, encoding = next((one for one in BYTE_ORDER_MARKS if content.startswith(one[0])), (b"", "utf-8"))
        try:
            text = content[len(mark) :].decode(encoding)
        except UnicodeDecodeError:
            encoding = "latin-1"
            text = content[len(mark) :].decode(encoding)
        sheets = [cls(mark, encoding, delimiter, *split_cells(text, delimiter)) for delimiter in DELIMITERS]
        best = max(sheets, key=lambda sheet: len(set(columns) & set(sheet.row(0))))
        if missing := [column for column in columns if column not in best.row(0)]:
            raise GraderError(
                f"{path}: has no column {', '.join(map(repr, missing))}: download it again, with the platform in English"
            )
        return best

    def row(self, number: int) -> list[str]:
        """Return the texts of a row's cells; none if there is no such row."""
        return [_text(cell) for cell in self.rows[number]] if number < len(self.rows) else []

    def whole_rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows below the header that have a cell for each column: their numbers and texts."""
        rows = ((number, self.row(number)) for number in range(1, len(self.rows)))
        return (one for one in rows if len(one[1]) == len(self.rows[0]))

    def put(self, number: int, column: int, text: str) -> None:
        """Write a text into a cell; the same text leaves it as it is."""
        if _text(self.rows[number][column]) == text:
            return
        if self.encoding == "latin-1":
            text = text.encode("ascii", "replace").decode()
        quoted = any(letter in text for letter in f'"{self.delimiter}\r\n') or text != text.strip()
        self.rows[number][column] = '"' + text.replace('"', '""') + '"' if quoted else text

    def content(self) -> bytes:
        """Return the bytes of the whole file."""
        lines = (self.delimiter.join(row) + end for row, end in zip(self.rows, self.ends, strict=True))
        return self.mark + "".join(lines).encode(self.encoding)


def split_cells(text: str, delimiter: str) -> tuple[list[list[str]], list[str]]:
    """Return the cells of each row and the end of each line, all as they stand."""
    cell = re.compile(rf'((?:"(?:[^"]|"")*")|[^{delimiter}\r\n]*)({delimiter}|\r\n|\n|\r|\Z)')
    rows: list[list[str]] = []
    ends: list[str] = []
    row: list[str] = []
    at = 0
    while at < len(text) or row:
        found = cell.match(text, at)
        assert found is not None  # an unquoted cell ends at the next delimiter or line end
        at = found.end()
        row.append(found[1])
        if found[2] != delimiter:
            rows.append(row)
            ends.append(found[2])
            row = []
    return rows, ends


def _text(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell
