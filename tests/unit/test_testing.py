"""The local server that speaks the Messages API, started from the command line."""

from __future__ import annotations

import json
import socket
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest

from minions import testing


@pytest.mark.parametrize(
    ("script", "words"),
    [(None, "No such file"), ("[", "Expecting value"), ("{}", "a list of replies"), ('["x"]', "each an object")],
)
def test_a_script_that_is_none_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: str | None, words: str
) -> None:
    file = tmp_path / "replies.json"
    if script is not None:
        file.write_text(script)
    monkeypatch.setattr("sys.argv", ["testing", str(file)])
    with pytest.raises(SystemExit) as ended:
        testing.main()
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "replies.json").write_text("[]")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr("sys.argv", ["testing", str(tmp_path / "replies.json"), "--port", port])
        with pytest.raises(SystemExit):
            testing.main()
    assert f"port {port} cannot be used" in capsys.readouterr().err


def test_what_the_script_does_not_know_is_refused_for_good() -> None:
    """Not with an error that is tried again: the task would wait for hours for a script that is complete."""
    with testing.messages_api() as api:
        api.script = [{"if": "boats", **testing.text("Two.")}]
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "ships"}]}).encode()
        request = urllib.request.Request(f"{api.url}/v1/messages", body, {"x-api-key": testing.KEY})
        with pytest.raises(HTTPError, match="400") as refused:
            urllib.request.urlopen(request)
        with refused.value as answer:
            assert "no reply to this request" in answer.read().decode()
