"""What the benchmarks share: runs in processes, finished runs, the peak of torch's allocator, and the files of results."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm

from loralab.files import write_whole
from loralab.pool import Job, allowed_threads, run_all
from loralab.provenance import describe
from loralab.record import hardware, now, versions

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
KEPT = ROOT / "build"


def measure_all(function: Callable[[Job], Any], jobs: Sequence[Job], workers: int | None = None) -> dict[Job, Any]:
    """Call `function` on each job in a process of its own and return the results by job. Raises what it raises."""
    found = {}
    for job, outcome in tqdm(run_all(function, jobs, workers or allowed_threads()), total=len(jobs), desc="runs"):
        if isinstance(outcome, Exception):
            raise outcome
        found[job] = outcome
    return found


def kept(measure: Callable[[Job], Any]) -> Callable[[Job], Any]:
    """Decorate `measure` to keep its results in `build/`, so that an interrupted measurement resumes.

    A result is reused only for an equal job (by its `repr`), measured by the same code, data and versions.
    """
    source = Path(inspect.getfile(measure))

    @wraps(measure)
    def resumed(job: Job) -> Any:
        key = describe("loralab.training").encode() + source.read_bytes() + repr(job).encode()
        file = KEPT / source.stem / f"{hashlib.sha256(key).hexdigest()[:16]}.json"
        if not file.exists():
            write_whole(file, json.dumps(measure(job)))
        return json.loads(file.read_text("utf-8"))

    return resumed


def in_a_process(module: str, *arguments: str, **environment: str) -> Any:
    """Run `python -m module` with these arguments; return the JSON in the last line of its output.

    `environment` adds variables. Raises `RuntimeError` with the end of its errors if it fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join([module, *arguments])} failed:\n{done.stderr[-2000:].strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_allocated(work: Callable[[], object]) -> int:
    """Return the largest number of bytes that torch's allocator had handed out at one time during `work`, on a CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def save(name: str, result: dict[str, Any]) -> None:
    """Write `result` to `benchmarks/results/<name>.json`, with the hardware, the versions and the time."""
    about = {"hardware": hardware(), "versions": versions(), "measured": now()}
    (RESULTS / f"{name}.json").write_text(json.dumps(result | about, indent=1) + "\n", "utf-8")
