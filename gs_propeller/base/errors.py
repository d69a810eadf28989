"""The one error that a user is meant to read."""


class UserError(ValueError):
    """Bad input: one clear line that names the thing and the remedy; the program exits with code 2."""
