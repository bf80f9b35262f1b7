"""Text that others wrote (names, messages, claims), made safe for a page, a terminal, a spreadsheet or a file's name."""

from __future__ import annotations

import hashlib
import re
import textwrap
import unicodedata
from collections.abc import Iterable

ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]")
MAX_TEXT, MAX_NAME, MAX_FILE_NAME = 2000, 80, 100  # characters, characters, bytes
MAX_LISTED, MAX_ITEM = 8, 130  # items, and characters of one
CODE_WIDTH = 100  # characters
MAX_NOTE = 40  # characters of the note on what was left out; no less than that is left out for it
MAX_MARKS = 4  # combining marks on one letter; scripts use up to three, and a tower of them hides other lines
FORMULA_STARTS = "=+-@＝＋－＠﹦﹢﹣﹫⁼⁺⁻₌₊₋"  # with the forms that some spreadsheets take for the plain ones
# Excel starts a new field after a semicolon where that is the list separator, whatever the quotes around it say.
AFTER_SEMICOLON = re.compile(rf"([;；][\s'\"]*)(?=[{re.escape(FORMULA_STARTS)}])")
# Letters that show nothing, in addition to those of Unicode's category for such: fillers of Hangul, an empty pattern of Braille.
BLANK_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
# Letters of Cyrillic and Greek that look like Latin ones, and those.
LOOK_ALIKES = str.maketrans(
    "аеіїјорсухѕԁһӏвкмнтгпАВЕІЈКМНОРСТУХЅԌαειικνορτυχΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeiijopcyxsdhlbkmhtrnabeijkmhopctyxsgaeiikvoptuxabezhikmnoptyx",
)
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)")
PLAIN_NAME = re.compile(r"\w(?:[\w.@+ -]*[\w@+-])?")
RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
HASHED = re.compile(r".*-[0-9a-f]{16}")
FOLDERS = re.compile(r"(?<![\w/:.~])(?:file://)?(?:/|[A-Za-z]:\\)(?:[^\s/\\'\"<>()\[\],;:]+[/\\])+")


def display(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text` without escape codes, control and direction characters, cut to `limit` if it is much longer.

    Line ends stay, tabs become spaces. A byte that was no UTF-8 is shown by its number, so names stay different. What
    was cut once is not cut again.
    """
    text = ESCAPES.sub("", text).replace("\r\n", "\n").replace("\t", "    ")
    left_out = len(text) - limit
    note = f" ... ({left_out:,} more characters)" if left_out > MAX_NOTE else ""
    kept, marks = [], 0
    for letter in text[:limit] if note else text:
        kind = unicodedata.category(letter)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if letter == "\n" or (kind not in ("Cc", "Cf", "Cs", "Zl", "Zp") and marks <= MAX_MARKS):
            kept.append(letter)
        elif kind == "Cs":
            kept.append(f"\\x{ord(letter) - 0xDC00:02x}" if 0xDC80 <= ord(letter) <= 0xDCFF else "\ufffd")
        elif kind in ("Zl", "Zp"):
            kept.append("\n")
    return "".join(kept) + note


def display_line(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text` as `display` does, on one line."""
    return " ".join(display(text, limit).split())


def listed(items: Iterable[object]) -> str:
    """Return the first items on one line, cut where they are long, and how many more there are."""
    texts = list(items)
    shown = ", ".join(display_line(str(one), MAX_ITEM) for one in texts[:MAX_LISTED])
    return shown + (f" and {len(texts) - MAX_LISTED:,} more" if len(texts) > MAX_LISTED else "")


def display_name(text: str) -> str:
    """Return a student's name on one line, or a note where nothing of it can be shown."""
    return display_line(text, MAX_NAME) or "(a name that cannot be shown)"


def without_folders(text: str) -> str:
    """Return `text` with every absolute path cut down to its last part: the grader's own folders are private."""
    return FOLDERS.sub("", text)


def spreadsheet_cell(text: str) -> str:
    """Return `text` on one line, marked as text if it begins as a formula does."""
    text = display_line(text)
    text = AFTER_SEMICOLON.sub(r"\1'", text)
    first = text.lstrip(" '\"\u2018\u2019\u201c\u201d")[:1]
    return f"'{text}" if first and first in FORMULA_STARTS else text


def invisible(text: str) -> str:
    """Return the letters of `text` that show nothing, escaped: a name that has one can look like another."""
    found = (letter for letter in text if letter in BLANK_LETTERS or unicodedata.category(letter) in ("Cf", "Zl", "Zp"))
    return "".join(dict.fromkeys(letter.encode("unicode_escape").decode() for letter in found))


def as_it_looks(text: str) -> str:
    """Return what two texts have in common that look alike: case, accents' form and the script of a letter left out."""
    plain = unicodedata.normalize("NFKC", text).translate(LOOK_ALIKES).casefold()
    return " ".join("".join(letter for letter in plain if not invisible(letter)).split())


def coarse(text: str) -> str:
    """Return `text` with its decimal numbers rounded to two digits.

    What a student is told of the secret pairs must not say which pairs they are, however many adapters are tried.
    """
    return DECIMAL.sub(
        lambda number: f"{float(number[0]):.2g}" if float(number[0]) < 100 else f"{float(number[0]):.0f}", text
    )


def file_name(text: str) -> str:
    """Return a name for a file or folder that leads nowhere else: `text` if it is harmless, else what is left of it and
    a hash. Different texts have different names."""
    plain = (
        PLAIN_NAME.fullmatch(text)
        and len(text.encode("utf-8", "surrogatepass")) <= MAX_FILE_NAME
        and unicodedata.is_normalized("NFC", text)
        and not RESERVED.fullmatch(text)
        and not HASHED.fullmatch(text)
    )
    if plain:
        return text
    rest = re.sub(r"[^A-Za-z0-9]+", "-", display(text, 40)).strip("-")
    return f"{rest or 'student'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def printable(text: str) -> str:
    """Return `text` with what cannot be printed or encoded (control and direction marks, bytes that are not UTF-8) escaped.

    Backslashes are escaped as well, so different texts stay different.
    """
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)


def code_block(text: str, limit: int) -> str:
    """Return at most `limit` characters of `text` as a Markdown code block, in which nothing is rendered.

    nbgrader's pages render Markdown with HTML and formulas in it, and scripts would run in them.
    """
    lines = display(text, limit).splitlines()
    wrapped = (textwrap.wrap(line, CODE_WIDTH, break_on_hyphens=False) or [""] for line in lines)
    return "\n".join(f"    {part}".rstrip() for parts in wrapped for part in parts)
