"""The one exception for mistakes a user can make and mend."""

from __future__ import annotations

_CONTROLS = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


def one_line(text: str) -> str:
    """The text with its control characters, such as names of files may hold, written out."""
    return text.translate(_CONTROLS)


class UserError(ValueError):
    """Something the user gave cannot be used. The message is one sentence that says what is wrong and the way out.

    Commands print it without a traceback and exit with code 2; in Python it is an ordinary `ValueError`. What it quotes of a
    file or a flag cannot break its line or reach the terminal as a command: control characters are written out (`\\n`).
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(str(message)))


def first_line(error: BaseException, most: int | None = None) -> str:
    """The first line of an error's message, of at most so many characters; the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]
