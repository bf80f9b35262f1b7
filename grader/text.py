"""Text that others wrote (names, messages, claims), made fit for a page, a terminal, a spreadsheet or a file's name."""

from __future__ import annotations

import hashlib
import re
import unicodedata

ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-_]")
MAX_TEXT, MAX_NAME, MAX_FILE_NAME = 2000, 80, 100  # characters, characters, bytes
MAX_MARKS = 4  # combining marks on one letter; scripts use up to three, and a tower of them hides other lines
FORMULA_STARTS = frozenset("=+-@")
# Excel reads a field anew after a semicolon where that is the list separator, whatever the quotes around it say.
AFTER_SEMICOLON = re.compile(r"(;[\s'\"]*)(?=[=+\-@])")
PLAIN_NAME = re.compile(r"\w(?:[\w.@+ -]*[\w@+-])?")
RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
HASHED = re.compile(r".*-[0-9a-f]{16}")
FOLDERS = re.compile(r"(?<![\w/:.~])(?:file://)?(?:/|[A-Za-z]:\\)(?:[^\s/\\'\"<>()\[\],;:]+[/\\])+")


def shown(text: str, limit: int = MAX_TEXT) -> str:
    """`text` as it may be shown: without escape codes, control and direction characters, and not longer than `limit`.

    Line ends stay, tabs become spaces. A byte that was no UTF-8 is shown by its number, so names stay different.
    """
    left_out = max(0, len(text) - limit)
    text = ESCAPES.sub("", text[:limit]).replace("\r\n", "\n").replace("\t", "    ")
    kept, marks = [], 0
    for letter in text:
        kind = unicodedata.category(letter)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if letter == "\n" or (kind not in ("Cc", "Cf", "Cs", "Zl", "Zp") and marks <= MAX_MARKS):
            kept.append(letter)
        elif kind == "Cs":
            kept.append(f"\\x{ord(letter) - 0xDC00:02x}" if 0xDC80 <= ord(letter) <= 0xDCFF else "\ufffd")
        elif kind in ("Zl", "Zp"):
            kept.append("\n")
    return "".join(kept) + (f" ... ({left_out:,} more characters)" if left_out else "")


def line(text: str, limit: int = MAX_TEXT) -> str:
    """`text` as it may be shown, on one line."""
    return " ".join(shown(text, limit).split())


def name(text: str) -> str:
    """A student's name on one line; one that would show as nothing is said to be so."""
    return line(text, MAX_NAME) or "(a name that cannot be shown)"


def without_folders(text: str) -> str:
    """`text` with every absolute path cut down to its last part: where the grader keeps things is its own matter."""
    return FOLDERS.sub("", text)


def in_spreadsheet(text: str) -> str:
    """`text` on one line, and as text even if it begins as a formula does."""
    text = line(text)
    text = AFTER_SEMICOLON.sub(r"\1'", text)
    first = unicodedata.normalize("NFKC", text.lstrip(" '\"\u2018\u2019\u201c\u201d")[:1])
    return f"'{text}" if first in FORMULA_STARTS else text


def file_name(text: str) -> str:
    """A name for a file or folder that leads nowhere else: `text` where that is harmless, else what is left of it and
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
    rest = re.sub(r"[^A-Za-z0-9]+", "-", shown(text, 40)).strip("-")
    return f"{rest or 'student'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
