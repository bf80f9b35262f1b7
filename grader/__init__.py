"""The exercise grader: runs notebooks, recomputes verdicts from the saved adapters, and reports them.

Its packages, in the order in which a submission travels:

- `submission`: find it, read it within bounds, rebuild its notebook
- `sandbox`: run the notebook
- `evaluation`: measure what it trained, and check that against reference runs
- `records`: keep the verdict, in the ledger and in nbgrader's gradebook
- `reports`: show it to the instructor and to the student

Above them are `pipeline`, which goes this way, `term` (what comes from a learning platform and goes back to it, deadlines,
regrades, the audit), and `cli`; below them what all share: `verdict`, `exercises`, `errors`, `console`, and `text` for
what others wrote. Imports run down only.
"""

import sys

# jsonschema, which nbformat needs, would build a grammar of web addresses for a second; no notebook is checked for one.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # None: importing it fails
