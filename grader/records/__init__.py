"""What is kept: the ledger of verdicts, nbgrader's gradebook, the notebooks that it shows."""
