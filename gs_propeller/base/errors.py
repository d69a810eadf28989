"""What ends a run and is no fault of the program's: errors that the commands say in a line."""


class UserError(ValueError):
    """Bad input: one clear line that names the thing and the remedy; the program exits with code 2."""


class RankError(RuntimeError):
    """A rank failed, died or kept silent; the message says which, and holds its traceback if it sent one."""


class Interrupted(Exception):
    """Ctrl-C or TERM: the checkpoint is written."""


def unwritten(path: object, error: Exception) -> UserError:
    """What to say of a file that could not be written."""
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"cannot write {path}: {reason}; free some space or choose another outdir=")
