"""Verdicts for people: pages, tables and files. Nothing here decides one."""
