"""A builtin tool for the tests of the test kit."""

from typing import Any

from minions import results


def do(arguments: dict[str, Any], context: Any) -> Any:
    """Fail until an attempt, sleep, wait for a signal, or answer."""
    match arguments["do"]:
        case "fail" if context.attempt < arguments["until"]:
            raise RuntimeError("The harbour is closed.")
        case "sleep":
            return results.sleep(arguments["seconds"])
        case "wait":
            return results.wait_for_signal("tide")
    return {"attempt": context.attempt}
