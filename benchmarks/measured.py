"""What the benchmarks share: jobs in processes, the peak of torch's allocator, and the file that a result goes into."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile
from tqdm.auto import tqdm

from loralab.pool import Job, processors, run_all
from loralab.record import hardware, now, versions

RESULTS = Path(__file__).parent / "results"


def measure_all(function: Callable[[Job], Any], jobs: Sequence[Job], workers: int | None = None) -> dict[Job, Any]:
    """Call `function` on each job in a process of its own and return the results by job. Raises what it raises."""
    found = {}
    for job, outcome in tqdm(run_all(function, jobs, workers or processors()), total=len(jobs), desc="runs"):
        if isinstance(outcome, Exception):
            raise outcome
        found[job] = outcome
    return found


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
