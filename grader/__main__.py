"""`python -m grader`."""

if __name__ == "__main__":  # the processes that run notebooks import this file too, and need nothing of it
    from .cli import app

    app()
