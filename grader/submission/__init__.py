"""Submissions: found, read within bounds, rebuilt, compared; nothing of them is trusted."""
