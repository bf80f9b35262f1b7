"""The class that the grader is tried on: honest hand-ins that must get full points, and hostile ones that must not.

`python -m tests.submissions --out FOLDER` writes all of them as an instructor would find them.
"""
