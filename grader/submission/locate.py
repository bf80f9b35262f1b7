"""Which of a submission's files are the notebook and the runs, wherever they are and however they are named.

A file that stands where `loralab.pack` puts it counts before all others. One that stands elsewhere, or under a similar
name, counts if it is the only one: then there is no doubt which is meant.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from loralab.record import RUN_FILES

from ..errors import BadSubmission
from ..exercises import Exercise
from .archive import is_archive
from .files import File, Parts, label, show_path

NOTEBOOK = ".ipynb"
Slot = tuple[str, ...]  # a path as `loralab.pack` would have named it


@dataclass(frozen=True)
class Located:
    """What was found among `files`; the runs are in the folders `homes`, everything is in `around`.

    What two files could be is found out, and may raise `BadSubmission`, only when it is asked for.
    """

    exercise: Exercise
    files: Sequence[File]
    around: Parts
    homes: dict[str, Parts]

    @property
    def notebook(self) -> File | None:
        """The notebook that has the exercise's name."""
        named = [file for file in self._notebooks() if file.path[-1] == self._name]
        at_their_place = [file for file in named if _place(file.path, self.exercise, self.around) == (self._name,)]
        return _only(at_their_place or named)

    @property
    def renamed(self) -> File | None:
        """The notebook whose name holds the exercise's, as in `kim_ex1_first_adapter (1).ipynb`."""
        if any(file.path[-1] == self._name for file in self.files):
            return None
        return _only([file for file in self._notebooks() if _plain(self.exercise.id) in _plain(file.path[-1])])

    @property
    def lone(self) -> File | None:
        """The notebook, of any name, that is the only one."""
        notebooks = self._notebooks()
        return notebooks[0] if len(notebooks) == 1 else None

    @property
    def archive(self) -> File | None:
        """The zip that holds the submission. A tar, or a zip in an unusual place, is it only if there is no notebook."""
        archives = [file for file in self.files if is_archive(file.path[-1])]
        zips = [file for file in archives if file.path[-1].lower().endswith(".zip")]
        belong = [file for file in zips if file.path[len(self.around) : -1] in {(), ("runs",)}]
        return _only(belong or ([] if self.notebook or self.renamed else archives))

    @property
    def runs(self) -> dict[Slot, File]:
        """The files of the runs, by run and name."""
        names = {home: run for run, home in self.homes.items()}
        of_runs = ((names.get(file.path[:-1], ""), file) for file in self.files)
        return {(run, file.path[-1]): file for run, file in of_runs if run and file.path[-1] in RUN_FILES}

    def unexpected(self, taken: Iterable[File]) -> set[str]:
        """Return the paths of all files but those `taken`, as they would be in the packed zip."""
        known = {file.path for file in taken}
        return {"/".join(map(label, self._slot(file.path))) for file in self.files if file.path not in known}

    @property
    def _name(self) -> str:
        return f"{self.exercise.id}{NOTEBOOK}"

    def _notebooks(self) -> list[File]:
        names = ((file, file.path[-1].lower()) for file in self.files)
        return [file for file, name in names if name.endswith(NOTEBOOK) and not name.endswith("-checkpoint.ipynb")]

    def _slot(self, path: Parts) -> Slot:
        for run, home in self.homes.items():
            if path[: len(home)] == home and len(path) > len(home):
                return (run, *path[len(home) :])
        inner = path[len(self.around) :]
        return inner[1:] if len(inner) > 2 and inner[0] == "runs" else inner


def locate(files: Sequence[File], exercise: Exercise) -> Located:
    """Find the runs. Raises `BadSubmission` where two folders could be meant; the message names both."""
    around = _around_everything(files, exercise)
    return Located(exercise, files, around, _find_homes(files, exercise, around))


def _around_everything(files: Sequence[File], exercise: Exercise) -> Parts:
    """Return the folders around everything, from the outermost on, up to a run's own folder."""
    folders = sorted(file.path[:-1] for file in files)
    ours = {"runs", *(run.name for run in exercise.runs)}
    outermost = zip(folders[0], folders[-1], strict=False) if folders else ()
    return tuple(one for one, _ in takewhile(lambda names: names[0] == names[1] not in ours, outermost))


def _place(path: Parts, exercise: Exercise, around: Parts) -> Parts:
    """Return the path without the folders around everything, the exercise's folder, and `runs/`."""
    for folder in (*around, exercise.id, "runs"):
        path = path[1:] if len(path) > 1 and path[0] == folder else path
    return path


def _find_homes(files: Sequence[File], exercise: Exercise, around: Parts) -> dict[str, Parts]:
    """Return the folder of each run."""
    contents: dict[Parts, set[str]] = defaultdict(set)
    for file in files:
        contents[file.path[:-1]].add(file.path[-1])
    homes: dict[str, Parts] = {}
    for run in exercise.runs:
        named = [folder for folder in contents if folder[-1:] == (run.name,)]
        at_their_place = [folder for folder in named if _place(folder, exercise, around) == (run.name,)]
        if found := _only_folder(at_their_place or named):
            homes[run.name] = found
    of_runs = [folder for folder, names in contents.items() if folder and names & set(RUN_FILES)]
    for name in [run.name for run in exercise.runs if run.name not in homes]:
        if found := _only_folder([folder for folder in of_runs if _plain(folder[-1]) == _plain(name)]):
            homes[name] = found
    if len(exercise.runs) == 1 and not homes:  # any complete run must be the one
        complete = [folder for folder, names in contents.items() if names >= set(RUN_FILES)]
        if len(complete) == 1:
            homes[exercise.runs[0].name] = complete[0]
    return homes


def _plain(name: str) -> str:
    """Return a name without what people and file managers change: case, hyphens, spaces and underscores."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", name).casefold())


def _only(found: Sequence[File]) -> File | None:
    path = _only_folder([file.path for file in found])
    return found[0] if path is not None else None


def _only_folder(found: Sequence[Parts]) -> Parts | None:
    """Return the one path. Raises `BadSubmission` if there are several."""
    if len(found) > 1:  # a browser puts a number to the later one, and a learning platform to another
        first, second = sorted(found)[:2]
        raise BadSubmission(
            f"{show_path(first) or 'the folder'} and {show_path(second)} are both there: keep the one to be graded"
        )
    return found[0] if found else None
