"""The self-checks of the exercises, one module per exercise, one function per task.

Each takes what the task defined, and prints what is right, what is not, and one hint that does not give the answer.
"""
