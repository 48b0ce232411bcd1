"""Errors a user can act on.

- OnwardError
  - SettingError        a setting, flag or run file is wrong
  - DataError           the data cannot be used as they are
  - PlacementError      plan, placement and number of ranks do not fit together
  - FileError           a run folder or model file cannot be read or written
  - DivergedError       a loss is no longer finite
  - PeerLostError       the connection to another rank is lost

Each also inherits from the builtin that fits, so that code which catches builtins keeps working.
The command prints the message alone and exits with status 2.
"""


class Stopped(BaseException):
    """The process was asked to end, by Ctrl-C or a signal; `args` holds its number."""


class OnwardError(Exception):
    """Something the user can put right; the message says what and how."""


class OnwardWarning(UserWarning):
    """Something that works, and is probably not what was meant."""


class SettingError(OnwardError, ValueError):
    """A setting is unknown, has the wrong type, or does not fit the others."""


class DataError(OnwardError, ValueError):
    """The data are missing, damaged, or cannot be learned from."""


class PlacementError(OnwardError, ValueError):
    """A placement cannot run this plan on this number of ranks."""


class FileError(OnwardError, OSError):
    """A file or folder cannot be read, written, or understood."""


class PeerLostError(OnwardError, ConnectionError):
    """Another rank has ended, or cannot be reached any more."""


class DivergedError(OnwardError, ArithmeticError):
    """Training left the finite numbers."""
