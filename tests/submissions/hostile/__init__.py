"""Hand-ins that must earn nothing by what they try, and harm nothing."""

from __future__ import annotations

from . import code, files, notebooks, runs

HOSTILE = [*files.FILES, *runs.RUNS, *notebooks.NOTEBOOKS, *code.CODE]
