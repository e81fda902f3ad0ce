"""A builtin tool: writes a letter to a folder, at most once."""

import json
from typing import Any


def write_to_outbox(arguments: dict[str, Any], context: Any) -> dict[str, Any]:
    """Writes `{"to", "text"}` to the data folder.

    The file's name is the call's idempotency key: a call that is repeated after a crash finds its own file.
    """
    folder = context.data_dir / "outbox"
    folder.mkdir(parents=True, exist_ok=True)
    letter = folder / f"{context.idempotency_key}.json"
    already = letter.exists()
    if not already:
        letter.write_text(json.dumps(arguments))
    return {"file": letter.name, "already_there": already}
