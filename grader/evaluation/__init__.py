"""From a run folder to checks: the grader measures everything itself."""
