"""nbgrader: solutions/ is where exercises are edited, exercises/ is generated from it."""

c = get_config()  # noqa: F821 (nbgrader provides it)

c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "exercises"

c.ClearSolutions.code_stub = {"python": "# write your code here\nraise NotImplementedError"}
c.ClearSolutions.text_stub = "*(Write your answer here.)*"
c.GenerateAssignment.force = True
