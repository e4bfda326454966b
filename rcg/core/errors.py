"""The one exception for mistakes a user can make and mend."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one sentence that says what is wrong and the way out.

    Commands print it without a traceback and exit with code 2; in Python it is an ordinary `ValueError`.
    """
