"""From a run folder to checks: everything is measured anew."""
