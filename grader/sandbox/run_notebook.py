"""Runs a notebook inside the sandbox: `python -I run_notebook.py NOTEBOOK OUTCOME OUTPUT_LIMIT AFTERWARDS`.

The code AFTERWARDS is run in the same kernel when the notebook has ended, or stopped at an error. This script stands alone:
nothing else of the grader can be imported there. Student code can change whatever it writes, so the outcome is a message
for the student and nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

# As in grader/__init__.py: a second that every notebook would pay.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # None: importing it fails

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from traitlets.config import Config

BEGUN = "the first cell begins"  # printed before anything of the student's runs, so it cannot be withheld
SECONDS_AFTERWARDS = 120
QUIET_KERNEL = Config({"KernelManager": {"transport": "ipc", "ip": "/tmp/kernel"}})


class Outcome:
    """The file that says how far the notebook has come, and how it ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cell: int | None = None
        self.ended = False

    def enter(self, cell: Any, cell_index: int) -> None:
        if self.cell is None:
            print(BEGUN, flush=True)
        self.cell = cell_index
        self.write("running")

    def write(self, state: str, what: str = "", lines: str = "") -> None:
        # A short text is enough of each; a student's exception may bring any amount.
        told = {"state": state, "cell": self.cell, "what": what[:2000], "lines": lines[-8000:]}
        replace(self.path, json.dumps(told, ensure_ascii=False))


class Client(NotebookClient):
    """A notebook client that stops a notebook which puts out more than `room` bytes."""

    room: int
    outcome: Outcome

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        content = msg["content"]
        self.room -= len(content["text"]) if msg["msg_type"] == "stream" else len(repr(content))
        if self.room < 0:
            if self.outcome.ended:
                os._exit(0)
            self.outcome.write("too much output")
            os._exit(1)  # the sandbox ends with this process; the client alone would wait for the cell's end
        return super().process_message(msg, cell, cell_index)


def traceback(notebook: Any, cell: int) -> str:
    """Return the kernel's traceback of the error in this cell; nbclient's own text repeats the cell's source."""
    errors = [output for output in notebook.cells[cell].outputs if output.output_type == "error"]
    return "\n".join(map(str, errors[-1].traceback)) if errors else ""


def replace(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8", errors="replace")
    new.replace(path)


def run_afterwards(client: Client, code: str) -> None:
    """Run code in the kernel, if it is still there; nothing that comes of it changes the outcome."""
    client.on_cell_start, client.timeout = lambda cell, cell_index: None, SECONDS_AFTERWARDS
    client.nb.cells.append(nbformat.v4.new_code_cell(code))
    with suppress(Exception):  # the student's code may have done anything to its kernel
        client.execute_cell(client.nb.cells[-1], len(client.nb.cells) - 1)


def main(notebook: Path, outcome: Outcome, room: int, afterwards: str) -> None:
    cells = nbformat.read(notebook, as_version=4)
    client = Client(
        cells,
        kernel_name="python3",
        timeout=None,  # the time of the whole notebook is limited from outside
        shutdown_kernel="immediate",
        store_widget_state=False,
        resources={"metadata": {"path": str(notebook.parent)}},
        on_cell_start=outcome.enter,
        config=QUIET_KERNEL,
    )
    client.room, client.outcome = room, outcome
    try:
        client.execute(cleanup_kc=not afterwards)
    except CellExecutionError as error:
        outcome.write("failed", f"{error.ename}: {error.evalue}", traceback(cells, outcome.cell or 0))
    except DeadKernelError:
        outcome.write("kernel died")
    else:
        outcome.write("finished")
    replace(notebook, nbformat.writes(cells))
    outcome.ended = True
    if afterwards:
        run_afterwards(client, afterwards)  # the kernel ends with this process, and so with the sandbox


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Outcome(Path(sys.argv[2])), int(sys.argv[3]), sys.argv[4])
