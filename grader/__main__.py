"""`python -m grader`."""

if __name__ == "__main__":  # the processes that run notebooks import this file too, and need nothing of it
    import sys

    if sys.argv[1:2] in (["grade"], ["regrade"]):
        from .ahead import load_ahead

        load_ahead()
    from .cli import app

    app()
