"""The names that tests know the local Messages API by."""

from minions.testing import KEY, MessagesApi, error, text, tool_use
from minions.testing import messages_api as serving

__all__ = ["KEY", "MessagesApi", "error", "serving", "text", "tool_use"]
