"""The exercise grader: runs a notebook, recomputes its verdict from the saved adapter, and reports it."""

import sys

# jsonschema, which nbformat needs, would build a grammar of web addresses for a second; no notebook is checked for one.
sys.modules.setdefault("rfc3987_syntax", None)
