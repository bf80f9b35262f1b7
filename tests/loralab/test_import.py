"""What importing loralab leaves behind."""

import subprocess
import sys
from types import ModuleType

import pytest

import loralab

IMPORT = """
import gc, sys
if {missing!r}:
    sys.modules[{missing!r}] = None
try:
    from loralab import train
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


def test_the_command_line_lists_its_commands_without_torch():
    code = "import sys; import loralab.cli; print(*{'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_every_public_name_can_be_imported():
    assert len(loralab.__all__) > 30
    assert [name for name in loralab.__all__ if isinstance(getattr(loralab, name), ModuleType)] == []
