"""What keeps the daemon from starting."""

from __future__ import annotations


class StartError(Exception):
    """Raised when the daemon cannot start here. The text names the thing and says what to do."""
