"""What is installed here, what is missing, and the command that mends it."""

from __future__ import annotations

__all__ = ["why_absent", "why_inactive"]


def why_absent(provider: str) -> tuple[str, str]:
    """Why the installed runtime lacks a provider, and what mends it."""
    return f"the installed runtime has no {provider}", "install a runtime that has it"


def why_inactive(provider: str) -> tuple[str, str]:
    """Why a provider that the runtime has did not start, and what mends it."""
    return f"{provider} failed to load", "run `bridge doctor`"
