"""What can go wrong while a graph is optimised."""

from __future__ import annotations

__all__ = ["PassError"]


class PassError(Exception):
    """A pass cannot do what was asked of it.

    Args:
        message: What happened, with the user's values.
        hint: What mends it.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        hint = "" if self.hint is None else f"\n\nhint: {self.hint}"
        return f"{self.message}{hint}\ndocs/errors#{type(self).__name__.lower()}"
