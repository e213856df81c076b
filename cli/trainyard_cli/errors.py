"""The one exception that a command raises for a person."""


class CLIError(Exception):
    """A failure as a sentence: what is wrong, where, what to do. Shown without a traceback; the exit code is 1."""
