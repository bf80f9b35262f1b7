"""The exercise grader: runs a notebook, recomputes its verdict from the saved adapter, and reports it."""
