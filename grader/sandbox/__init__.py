"""Running notebooks that are not trusted."""
