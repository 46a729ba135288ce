"""The control socket: a daemon's verbs for other processes, and `ModelManager`, which speaks to it."""

from forgellm.control.client import ModelManager

__all__ = ["ModelManager"]
