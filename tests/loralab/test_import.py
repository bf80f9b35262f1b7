"""What importing loralab leaves behind."""

import subprocess
import sys

import pytest

IMPORT = """
import gc, sys
if {missing!r}:
    sys.modules[{missing!r}] = None
try:
    import loralab
except ImportError as error:
    print("failed:", error.name)
print("collecting:", gc.isenabled())
"""


@pytest.mark.parametrize(("missing", "told"), [("", ""), ("peft", "failed: peft\n")])
def test_garbage_is_collected_after_an_import_and_after_one_that_failed(missing, told):
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(missing=missing)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{told}collecting: True\n"
