"""Attacks by files: what an intake must refuse before it opens, unpacks or follows anything."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import tempfile
import zipfile
from pathlib import Path

from ..case import CONFIG, EX1, RECORD, RUN, WEIGHTS, Case, Cases, Parts, failed, graded
from ..zips import Entry, filled, stored, write_zip

FILES = Cases()
case = FILES.add
ZIP = f"{EX1}.zip"


class Touch:
    """Unpickled, it leaves a file behind: the proof that a pickle was opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def sprung(parts: Parts) -> bytes:
    """A pickle that makes a folder among the things outside when it is opened."""
    return pickle.dumps({"lora_A": Touch(parts.outside / "a-pickle-was-opened")})


def entries(parts: Parts, owner: str, without: str = "") -> list[Entry]:
    """A sound run as entries of a zip."""
    with tempfile.TemporaryDirectory() as scratch:
        run = parts.run(Path(scratch) / RUN, owner)
        names = [name for name in (WEIGHTS, CONFIG, RECORD) if name != without]
        return [stored(f"{RUN}/{name}", (run / name).read_bytes()) for name in names]


@case("files", "one gigabyte of zeros in a zip of one megabyte", failed(r"unpack|large|bytes|bomb|ratio|times"))
def zip_bomb(folder: Path, parts: Parts) -> None:
    write_zip(folder / ZIP, [*entries(parts, "zip-bomb", WEIGHTS), filled(f"{RUN}/{WEIGHTS}", b"\0", 64)])


@case("files", "a gigabyte again, but the zip says it is 500 bytes", failed(r"zip|says|larger|damaged|ratio|unpack"))
def zip_bomb_that_lies(folder: Path, parts: Parts) -> None:
    lie = filled(f"{RUN}/{RECORD}", b" ", 64, claimed=500)
    write_zip(folder / ZIP, [*entries(parts, "zip-bomb-that-lies", RECORD), lie])


@case(
    "files", "thousands of entries share the same compressed bytes, ten terabytes in all", failed(r"zip|files|entries")
)
def zip_bomb_of_shared_bytes(folder: Path, parts: Parts) -> None:
    first = filled(f"{RUN}/0", b"\0", 16)
    shared = [Entry(f"{RUN}/{i:05}".encode(), first.packed, first.crc, first.size, at=0) for i in range(40_000)]
    write_zip(folder / ZIP, [first, *shared, *entries(parts, "zip-bomb-of-shared-bytes")])


@case("files", "a zip within a zip within a zip, so that limits of the outermost do not see it", failed(r"run|zip"))
def zip_in_a_zip(folder: Path, parts: Parts) -> None:
    path = folder / ZIP
    write_zip(path, [filled(f"{RUN}/{WEIGHTS}", b"\0", 64)])
    for _ in range(3):
        inner = path.read_bytes()
        write_zip(path, [stored(f"{RUN}.zip", inner)])


@case("files", "256 MB of zeros in a tar of one megabyte", failed(r"unpack|large|bytes|times"))
def tar_bomb(folder: Path, parts: Parts) -> None:
    with tarfile.open(folder / f"{EX1}.tar.gz", "w:gz", compresslevel=1) as archive:
        zeros = tarfile.TarInfo(f"{RUN}/{WEIGHTS}")
        zeros.size = 2**28
        with Path("/dev/zero").open("rb") as source:
            archive.addfile(zeros, source)


@case("files", "64 MB of zeros in an entry by LZMA that says it has 500 bytes", failed(r"has not the 500 bytes"))
def zip_bomb_by_lzma(folder: Path, parts: Parts) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x", bytes(2**26))
        info = archive.getinfo("x")
    content = packed.getvalue()[31 : 31 + info.compress_size]  # after the entry's head and its name
    lie = Entry(f"{RUN}/{RECORD}".encode(), content, 0, 500, method=zipfile.ZIP_LZMA)
    write_zip(folder / ZIP, [*entries(parts, "zip-bomb-by-lzma", RECORD), lie])


@case("files", "a tar with a link out of it, through which a later entry is written", failed("is a symlink"))
def symlink_in_a_tar(folder: Path, parts: Parts) -> None:
    with tarfile.open(folder / f"{EX1}.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(parts.outside)
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("out/written-by-a-tar"))


@case("files", "two runs of the right name, one to be checked and one to be scored", failed("are both there"))
def run_in_two_places(folder: Path, parts: Parts) -> None:
    for place in ("one", "other"):
        parts.run(folder / place / RUN, f"run-in-two-places-{place}")


@case("files", "sixty thousand empty files in a zip", failed(r"60,?\d\d\d|files|entries|many"))
def zip_of_many_files(folder: Path, parts: Parts) -> None:
    many = [stored(f"{RUN}/{number}", b"") for number in range(60_000)]
    write_zip(folder / ZIP, [*many, *entries(parts, "zip-of-many-files")])


@case("files", "an entry that lies five hundred folders deep", failed(r"deep|nested|folders|levels"))
def zip_of_great_depth(folder: Path, parts: Parts) -> None:
    write_zip(folder / ZIP, [*entries(parts, "zip-of-great-depth"), stored("a/" * 500 + RECORD, b"{}")])


@case(
    "files", "the same name twice in a zip: one record for the check, another for the score", failed(r"twice|same name")
)
def zip_with_a_name_twice(folder: Path, parts: Parts) -> None:
    sound = entries(parts, "zip-with-a-name-twice")
    write_zip(folder / ZIP, [*sound, stored(f"{RUN}/{RECORD}", b"{}")])


@case("files", "a zip that leaves its folder by parent paths", failed(r"\.\.|outside|path"))
def path_traversal(folder: Path, parts: Parts) -> None:
    up = f"../../../outside/written-by-a-zip/{RECORD}"
    write_zip(folder / ZIP, [*entries(parts, "path-traversal"), stored(up, b"{}")])


@case("files", "parent paths with backslashes, as a Windows program would read them", failed(r"\.\.|\\|outside|path"))
def path_traversal_with_backslashes(folder: Path, parts: Parts) -> None:
    up = rf"..\..\..\outside\written-by-a-zip\{RECORD}"
    write_zip(folder / ZIP, [*entries(parts, "path-traversal-with-backslashes"), stored(up, b"{}")])


@case("files", "a zip with an absolute path", failed(r"absolute|outside|path|begins with"))
def absolute_path(folder: Path, parts: Parts) -> None:
    entry = stored(str(parts.outside / "written-by-a-zip"), b"{}")
    write_zip(folder / ZIP, [*entries(parts, "absolute-path"), entry])


@case("files", "a symlink in a zip, in whose folder later entries would be written", failed(r"link"))
def symlink_in_a_zip(folder: Path, parts: Parts) -> None:
    link = stored("out", str(parts.outside).encode(), mode=0o120777)
    sound = entries(parts, "symlink-in-a-zip")
    write_zip(folder / ZIP, [link, stored("out/written-by-a-zip", b"{}"), *sound])


@case("files", "a zip that asks for a password", failed(r"password|encrypted"))
def zip_with_a_password(folder: Path, parts: Parts) -> None:
    write_zip(folder / ZIP, [stored(f"{RUN}/{RECORD}", b"?" * 100, flags=1)])


@case("files", "half a zip", failed(r"not a zip|damaged|cannot be read|broken|truncated"))
def half_a_zip(folder: Path, parts: Parts) -> None:
    write_zip(folder / ZIP, entries(parts, "half-a-zip"))
    content = (folder / ZIP).read_bytes()
    (folder / ZIP).write_bytes(content[: len(content) // 2])


@case("files", "run.json is a symlink to a file that only the instructor may read", failed(r"link"))
def symlink(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "symlink")
    (run / RECORD).unlink()
    (run / RECORD).symlink_to(parts.outside / "secrets.txt")


@case("files", "the run folder is a symlink to a classmate's", failed(r"link"))
def symlink_to_a_classmate(folder: Path, parts: Parts) -> None:
    (folder / RUN).symlink_to(Path("../..") / "flat" / EX1 / RUN)


@case("files", "the exercise's folder itself is a symlink to things outside", failed(r"link"))
def symlink_as_the_exercise(folder: Path, parts: Parts) -> None:
    folder.rmdir()
    folder.symlink_to(parts.outside, target_is_directory=True)


@case("files", "a symlink to its own parent, so that a walk never ends", failed(r"link"))
def symlink_in_a_circle(folder: Path, parts: Parts) -> None:
    parts.run(folder / RUN, "symlink-in-a-circle")
    (folder / RUN / "again").symlink_to("..", target_is_directory=True)


@case(
    "files", "run.json is a hard link to a file that only the instructor may read", failed(r"link|not .*JSON|run\.json")
)
def hard_link(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "hard-link")
    (run / RECORD).unlink()
    (run / RECORD).hardlink_to(parts.outside / "secrets.txt")


@case(
    "files",
    "run.json is a pipe: whoever reads it waits for ever",
    failed(r"pipe|not a (regular )?file|plain file|special"),
)
def pipe(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "pipe")
    (run / RECORD).unlink()
    os.mkfifo(run / RECORD)


@case("runs", "run.json is a folder", failed(r"no run\.json"))
def folder_as_a_record(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "folder-as-a-record")
    (run / RECORD).unlink()
    (run / RECORD).mkdir()


@case("files", "an adapter of 100 GB that takes no space on the disk", failed(r"bytes|large"))
def sparse_file(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "sparse-file")
    os.truncate(run / WEIGHTS, 100_000_000_000)


@case("files", "a run.json of 100 MB", failed(r"run\.json.*(bytes|large)|(bytes|large).*run\.json"))
def record_of_100_megabytes(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "record-of-100-megabytes")
    os.truncate(run / RECORD, 100_000_000)


@case("files", "ten thousand files beside the run", failed(r"files|many"))
def many_files(folder: Path, parts: Parts) -> None:
    parts.run(folder / RUN, "many-files")
    for number in range(10_000):
        (folder / RUN / str(number)).touch()


@case("files", "folders within folders, two hundred deep", failed(r"deep|nested|folders|levels"))
def great_depth(folder: Path, parts: Parts) -> None:
    parts.run(folder / RUN, "great-depth")
    (folder / "/".join(["a"] * 200)).mkdir(parents=True)


@case("files", "nothing at all", failed(r"empty|nothing|no run|no .*ipynb|neither"))
def nothing(folder: Path, parts: Parts) -> None:
    pass


def _sound(folder: Path, parts: Parts) -> None:
    parts.run(folder / RUN, folder.parent.name)


def _named(name: str, tries: str, student: str | bytes) -> Case:
    """A sound run by a student of that id: the points are real, the id must do no harm."""
    return Case(name, tries, "runs", graded("", 100), _sound, student=student)


FILES += [
    _named("formula", "a student's id that a spreadsheet would run", '=HYPERLINK("http:evil.example","grade")'),
    _named(
        "formula-with-a-minus", "another formula, for spreadsheets that strip the equals sign", "-2+3+cmd|' C calc'!A0"
    ),
    _named("script-in-an-id", "a student's id that a browser would run", "<img src=x onerror=alert(1)>"),
    _named("quote-in-an-id", "a student's id that ends the query", "Robert'); DROP TABLE student;--"),
    _named("template-in-an-id", "a student's id that a template would evaluate", "{{ 7*7 }}{% raw %}"),
    _named("newline-in-an-id", "a student's id that adds a line of its own to a CSV or a log", "eve\nmallory,100"),
    _named(
        "id-that-is-not-utf-8", "a student's id in Latin-1, which neither JSON nor a database can hold", b"m\xfcller"
    ),
    _named("escape-in-an-id", "a student's id that clears the instructor's terminal", "eve\x1b[2J\x1b]0;root\x07"),
]


@case("runs", "file names that are not UTF-8, beside a sound run", graded("", 100))
def names_that_are_not_utf_8(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "names-that-are-not-utf-8")
    for place in (folder, run):
        Path(os.fsdecode(os.fsencode(place) + b"/\xff\xfe caf\xe9.txt")).write_bytes(b"")


@case("runs", "file names with scripts, escapes and newlines, beside a sound run", graded("", 100))
def names_that_a_browser_would_run(folder: Path, parts: Parts) -> None:
    run = parts.run(folder / RUN, "names-that-a-browser-would-run")
    for name in ("<script>alert(1)<", "\x1b[2Jroot", "a\nb", "{{ config }}", "'; DROP TABLE x"):
        (run / name).touch()
