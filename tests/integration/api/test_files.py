"""Files over HTTP, in the client and in the command."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, text

from minions import Client, errors
from orchestrator.retention.files import prune_files
from shared.settings import Settings, get_settings
from tests.conftest import Define
from tests.integration.api.conftest import Run, WithKey
from tests.support.media_files import GIF, b64, jpeg_header, pdf, png

PHOTO = png(7, 5)


def image(id: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": id}}]}


@pytest.mark.parametrize(
    ("data", "media_type", "facts"),
    [
        (PHOTO, "image/png", {"width": 7, "height": 5}),
        (GIF, "image/gif", {"width": 1, "height": 1}),
        (jpeg_header(640, 480), "image/jpeg", {"width": 640, "height": 480}),
        (pdf("One", "Two", "Three"), "application/pdf", {"pages": 3}),
        (pdf("One", "Two", packed=True), "application/pdf", {"pages": 2}),
        ("Größe".encode(), "text/plain", {}),
    ],
)
def test_uploaded_file_is_recognised(client: Client, data: bytes, media_type: str, facts: dict[str, int]) -> None:
    stored = client.upload(data, name="a file.x")
    assert stored["id"] == "file_" + hashlib.sha256(data).hexdigest()
    assert (stored["media_type"], stored["bytes"], stored["name"]) == (media_type, len(data), "a file.x")
    assert stored.items() >= facts.items()
    assert client.download(stored["id"]) == data
    assert client.file(stored["id"]) == stored


def test_same_content_is_one_file(http: httpx2.Client, client: Client) -> None:
    answers = [http.post("/v1/files", params={"name": name}, content=PHOTO) for name in ("one.png", "two.png")]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert [file["name"] for file in client.files()] == ["one.png"]


def test_upload_reads_a_path(client: Client, tmp_path: Any) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(PHOTO)
    assert client.upload(path)["name"] == client.upload(str(path))["name"] == "photo.png"


@pytest.mark.parametrize(
    ("data", "headers", "status", "said"),
    [
        (b"", {}, 422, "it is empty"),
        (b"\x00\x01", {}, 422, "its type is not recognised"),
        (b"<svg/>", {"Content-Type": "image/svg+xml"}, 422, "'image/svg+xml' is not accepted"),
        (b"<html>", {"Content-Type": "image/png"}, 422, "its content is text/plain"),
        (b"--x", {"Content-Type": "multipart/form-data; boundary=x"}, 422, "curl --data-binary @FILE"),
        (png(8001, 1), {}, 413, "8001 × 1 pixels"),
        (png(padding=4_000_000), {}, 413, "bytes in base64, and the API takes 5,242,880"),
        (pdf("x") + b"trailer << /Encrypt 9 0 R >>", {}, 422, "is encrypted"),
        (b"x" * (25 << 20), {}, 413, "larger than the 25,165,824 bytes"),
        (b"x", {"Content-Encoding": "gzip"}, 415, "must not be compressed"),
    ],
)
def test_bad_upload_is_refused(
    http: httpx2.Client, client: Client, data: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    refused = http.post("/v1/files", content=data, headers=headers)
    assert (refused.status_code, said in refused.json()["detail"]) == (status, True), refused.text
    assert list(client.files()) == []


def test_content_is_never_run(http: httpx2.Client, client: Client) -> None:
    hostile = client.upload(b"<script>alert(1)</script>", name='a";.html')["id"]
    answers = {id: http.get(f"/v1/files/{id}/content") for id in (hostile, client.upload(PHOTO)["id"])}
    for answer in answers.values():
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
    assert answers[hostile].headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answers[hostile].headers["Content-Disposition"].startswith("attachment; filename*=UTF-8''a%22%3B.html")


def test_namespace_has_a_limit(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = get_settings().model_copy(update={"files_bytes": len(PHOTO) + 1})
    monkeypatch.setattr("shared.tasks.files.get_settings", lambda: settings)
    client.upload(PHOTO)
    with pytest.raises(errors.TooLarge, match=r"more than .* bytes .MINION_FILES_BYTES"):
        client.upload(b"other")
    client.upload(PHOTO)


def test_file_in_use_cannot_be_deleted(client: Client, agents: None, database: Engine) -> None:
    id = client.upload(PHOTO)["id"]
    task = client.submit("Echo", {"photo": {"$file": id}}, labels={"a": "b"})
    with pytest.raises(errors.Conflict, match="is in use"):
        client.delete_file(id)
    assert client.get(task).input == {"photo": {"$file": id}}
    client.cancel(task)
    with database.begin() as connection:
        connection.execute(text("DELETE FROM task_outcomes"))
        connection.execute(text("DELETE FROM tasks"))
    assert client.delete_file(id)["id"] == id
    with pytest.raises(errors.NotFound, match="There is no file"):
        client.file(id)


def test_missing_file_is_refused_at_every_entry_point(client: Client, agents: None, database: Engine) -> None:
    id = "file_" + "0" * 64
    with pytest.raises(errors.InvalidInput, match="there is no file"):
        client.submit("Echo", {"$file": id})
    with pytest.raises(errors.InvalidInput, match="there is no file"):
        client.submit_many([{"agent": "Echo", "messages": [image(id)]}])
    with database.begin() as connection, pytest.raises(Exception, match="There is no file"):
        connection.execute(
            text("SELECT minion_submit('Echo', jsonb_build_object('$file', CAST(:id AS text)))"), {"id": id}
        )


def test_tenant_sees_its_files_and_those_of_its_tasks(client: Client, with_key: WithKey, agents: None) -> None:
    ours, theirs = (with_key("submitter", tenant=tenant) for tenant in ("ours", "theirs"))
    own = ours.post("/v1/files", content=PHOTO).json()["id"]
    assert own != client.upload(PHOTO)["id"]
    assert theirs.get(f"/v1/files/{own}").status_code == 404
    refused = theirs.post("/v1/tasks", json={"agent": "Echo", "input": {"$file": own}})
    assert (refused.status_code, "there is no file" in refused.text) == (422, True)
    assert ours.post("/v1/tasks", json={"agent": "Echo", "input": {"$file": own}}).status_code == 201
    shared = client.upload(b"for ours")["id"]
    assert ours.get(f"/v1/files/{shared}").status_code == 404
    client.submit("Echo", {"$file": shared}, key="ours")
    assert ours.get(f"/v1/files/{shared}/content").content == b"for ours"
    assert [each["id"] for each in ours.get("/v1/files").json()["items"]] == [own]
    assert len(list(client.files())) == 3


def test_file_of_another_tenant_is_refused_wherever_it_is_named(with_key: WithKey, agents: None) -> None:
    ours, theirs = (with_key("submitter", tenant=tenant) for tenant in ("ours", "theirs"))
    own = ours.post("/v1/files", content=PHOTO).json()["id"]
    summary = {"type": "compaction", "content": "x", "source": [{"file_id": own}]}
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": [summary]}]
    for request in ({"input": {"a": [{"$file": own, "b": 1}]}}, {"messages": [*said, said[0]]}):
        refused = theirs.post("/v1/tasks", json={"agent": "Echo", **request})
        assert (refused.status_code, "there is no file" in refused.text) == (422, True), refused.text
        assert theirs.get(f"/v1/files/{own}").status_code == 404


def test_unused_files_are_deleted_after_their_retention(
    client: Client, agents: None, database: Engine, settings: Settings
) -> None:
    used, scheduled, _ = (client.upload(each)["id"] for each in (PHOTO, b"scheduled", b"unused"))
    client.submit("Echo", {"$file": used})
    client.put_schedule("daily", {"agent": "Echo", "input": {"$file": scheduled}}, interval_seconds=86_400)
    assert prune_files(database, settings) == 0
    with database.begin() as connection:
        connection.execute(text("UPDATE files SET uploaded_at = now() - :age"), {"age": timedelta(days=31)})
    assert prune_files(database, settings.model_copy(update={"retention_files": 0.0})) == 0
    assert prune_files(database, settings) == 1
    assert {each["id"] for each in client.files()} == {used, scheduled}
    assert next(client.audit(act="file.prune"))["after"] == {"files": 1, "bytes": 6}
    assert client.upload(PHOTO)["id"] == used


def test_erasure_deletes_the_files_of_a_tenant(client: Client, agents: None) -> None:
    id, both = client.upload(PHOTO)["id"], client.upload(b"both")["id"]
    task = client.submit("Echo", {"a": {"$file": id}, "b": {"$file": both}}, key="acme")
    client.submit("Echo", {"$file": both}, key="other")
    client.cancel(task)
    client.erase(tenant="acme")
    assert [each["id"] for each in client.files()] == [both]


def test_command_puts_and_gets_files(run_cli: Run, tmp_path: Any) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(PHOTO)
    id = run_cli("files", "put", str(path)).out.strip()
    assert id.startswith("file_")
    assert "photo.png" in run_cli("files", "list").out
    assert run_cli("files", "get", id, "-o", str(tmp_path / "copy.png")).code == 0
    assert (tmp_path / "copy.png").read_bytes() == PHOTO
    assert "is deleted" in run_cli("files", "delete", id).out
    assert run_cli("files", "list").line == "No files."


def test_messages_with_large_files_keep_the_idempotency_key(client: Client, define: Define, agents: None) -> None:
    data = b64(png(padding=90_000))
    source = {"type": "base64", "media_type": "image/png", "data": data}
    asked = {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}], "idempotency_key": "k"}
    first, second = (client.submit("Echo", **asked) for _ in range(2))
    assert first.id == second.id
    assert first.messages[0]["content"][0]["source"]["type"] == "file"
