"""nbgrader: solutions/ is where exercises are edited, exercises/ is generated from it."""

c = get_config()  # noqa: F821 (nbgrader provides it)

c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "exercises"

c.ClearSolutions.code_stub = {"python": "# write your code here\nraise NotImplementedError"}
c.ClearSolutions.text_stub = "*(Write your answer here.)*"
c.GenerateAssignment.force = True

# Seconds a cell, and until its output has come; nbgrader's own 30 and 4 are short for a cell that trains.
c.Execute.timeout = 600
c.Execute.iopub_timeout = 60
