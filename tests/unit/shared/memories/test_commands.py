"""The memory tool's commands, with the results and errors that the API documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from shared.contracts.server_tools import Memory
from shared.errors import InvalidInput
from shared.memories import commands
from shared.memories.paths import checked_path

LIMITS = Memory(per="agent", max_bytes=2000, max_file_bytes=1000)


class Store:
    """Files in memory."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = dict(files)

    @property
    def sizes(self) -> Mapping[str, int]:
        return {path: len(text.encode()) for path, text in sorted(self.files.items())}

    def read(self, path: str) -> str:
        return self.files[path]


def run(files: dict[str, str], **arguments: Any) -> str:
    """Runs a command, and changes the files."""
    fields = commands.checked(arguments)
    if fields["command"] == "view":
        return commands.view(Store(files), fields)
    made = commands.change(Store(files), fields, LIMITS)
    for path, content in made.files.items():
        if content is None:
            del files[path]
        else:
            files[path] = content
    return made.result


def test_empty_memory_can_be_viewed() -> None:
    assert run({}, command="view", path="/memories").splitlines()[1:] == ["0B\t/memories"]


def test_directory_is_listed_with_sizes_two_levels_deep() -> None:
    files = {
        "/memories/notes.txt": "x" * 100,
        "/memories/people/ana.md": "y" * 1536,
        "/memories/people/deep/er/file": "z",
        "/memories/.hidden": "h",
        "/memories/node_modules/m": "m",
    }
    assert run(files, command="view", path="/memories/") == (
        "Here're the files and directories up to 2 levels deep in /memories, excluding hidden items and node_modules:\n"
        "1.6K\t/memories\n"
        "100B\t/memories/notes.txt\n"
        "1.5K\t/memories/people/\n"
        "1.5K\t/memories/people/ana.md\n"
        "1B\t/memories/people/deep/"
    )


def test_file_is_shown_with_line_numbers() -> None:
    files = {"/memories/a": "one\ntwo\nthree"}
    said = "Here's the content of /memories/a with line numbers:\n"
    assert run(files, command="view", path="/memories/a") == f"{said}     1\tone\n     2\ttwo\n     3\tthree"
    assert run(files, command="view", path="/memories/a", view_range=[2, -1]) == f"{said}     2\ttwo\n     3\tthree"
    assert run(files, command="view", path="/memories/a", view_range=[1, 1]) == f"{said}     1\tone"


def test_file_is_created_changed_moved_and_deleted() -> None:
    files: dict[str, str] = {}
    a = "/memories/a.txt"
    assert run(files, command="create", path=a, file_text="one\ntwo\n") == f"File created successfully at: {a}"
    assert run(files, command="str_replace", path=a, old_str="two", new_str="2") == (
        "The memory file has been edited. Here is the snippet showing the change (with line numbers):\n"
        "     1\tone\n     2\t2\n     3\t"
    )
    assert run(files, command="insert", path=a, insert_line=1, insert_text="1.5\n") == f"The file {a} has been edited."
    assert files == {a: "one\n1.5\n2\n"}
    said = f"Successfully renamed {a} to /memories/d/b.txt"
    assert run(files, command="rename", old_path=a, new_path="/memories/d/b.txt") == said
    assert run(files, command="rename", old_path="/memories/d", new_path="/memories/e") == (
        "Successfully renamed /memories/d to /memories/e"
    )
    assert files == {"/memories/e/b.txt": "one\n1.5\n2\n"}
    assert run(files, command="delete", path="/memories/e") == "Successfully deleted /memories/e"
    assert files == {}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            {"command": "view", "path": "/memories/x"},
            "The path /memories/x does not exist. Please provide a valid path.",
        ),
        ({"command": "create", "path": "/memories/a", "file_text": ""}, "Error: File /memories/a already exists"),
        (
            {"command": "str_replace", "path": "/memories/x", "old_str": "a", "new_str": "b"},
            "Error: The path /memories/x does not exist. Please provide a valid path.",
        ),
        (
            {"command": "str_replace", "path": "/memories/a", "old_str": "no", "new_str": "b"},
            "No replacement was performed, old_str `no` did not appear verbatim in /memories/a.",
        ),
        (
            {"command": "str_replace", "path": "/memories/a", "old_str": "o", "new_str": "b"},
            "No replacement was performed. Multiple occurrences of old_str `o` in lines: 1, 2. Please ensure it is "
            "unique",
        ),
        (
            {"command": "insert", "path": "/memories/x", "insert_line": 0, "insert_text": "a"},
            "Error: The path /memories/x does not exist",
        ),
        (
            {"command": "insert", "path": "/memories/a", "insert_line": 3, "insert_text": "a"},
            "Error: Invalid `insert_line` parameter: 3. It should be within the range of lines of the file: [0, 2]",
        ),
        ({"command": "delete", "path": "/memories/x"}, "Error: The path /memories/x does not exist"),
        ({"command": "delete", "path": "/memories"}, "Error: Cannot delete the /memories directory itself"),
        (
            {"command": "rename", "old_path": "/memories/x", "new_path": "/memories/y"},
            "Error: The path /memories/x does not exist",
        ),
        (
            {"command": "rename", "old_path": "/memories/a", "new_path": "/memories/d"},
            "Error: The destination /memories/d already exists",
        ),
        (
            {"command": "rename", "old_path": "/memories/d", "new_path": "/memories/d/e"},
            "Error: The destination /memories/d/e is inside of /memories/d",
        ),
        (
            {"command": "create", "path": "/memories/a/b", "file_text": ""},
            "Error: The path /memories/a is a file, not a directory",
        ),
        ({"command": "create", "path": "/memories/d", "file_text": ""}, "Error: The path /memories/d is a directory"),
        ({"command": "view", "path": "/memories/a", "view_range": [3, 1]}, "Error: Invalid `view_range` parameter"),
        ({"command": "create", "path": "/memories/b"}, "Error: The command `create` needs `file_text`, a text."),
        ({"command": "undo_edit", "path": "/memories/a"}, "Error: `command` must be one of view, create"),
        (
            {"command": "create", "path": "/memories/b", "file_text": "x" * 1001},
            "Error: The file /memories/b would have 1,001 bytes, and 1,000 is the most",
        ),
        ({"command": "insert", "path": "/memories/a", "insert_line": True, "insert_text": ""}, "a whole number"),
    ],
)
def test_command_that_cannot_be_done_is_an_error(arguments: dict[str, Any], error: str) -> None:
    files = {"/memories/a": "one\ntwo", "/memories/d/c": "c"}
    with pytest.raises(InvalidInput) as caught:
        run(files, **arguments)
    assert caught.value.message.startswith(error) or error in caught.value.message
    assert files == {"/memories/a": "one\ntwo", "/memories/d/c": "c"}


def test_memory_that_is_full_takes_no_more() -> None:
    files = {"/memories/a": "x" * 900, "/memories/b": "x" * 900}
    with pytest.raises(InvalidInput, match="The memory would have 2,100 bytes, and 2,000 is the most"):
        run(files, command="create", path="/memories/c", file_text="x" * 300)
    run(files, command="delete", path="/memories/a")
    run(files, command="create", path="/memories/c", file_text="x" * 300)


def test_error_names_a_bounded_number_of_occurrences() -> None:
    files = {"/memories/a": "a\n" * 1_000_000}
    with pytest.raises(InvalidInput, match=r"in lines: 1, 2, .*, 19, 20, …\. Please"):
        run(files, command="str_replace", path="/memories/a", old_str="a")


def test_path_has_one_form_of_an_accent() -> None:
    assert checked_path("/memories/cafe\u0301/") == checked_path("/memories/caf\xe9") == "/memories/caf\xe9"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "memories/a",
        "/memoriesx/a",
        "/memories/../etc/passwd",
        "/memories/a/../../b",
        "/memories/./a",
        "/memories//a",
        "/memories/%2e%2e/a",
        "/memories/%2E%2E%2Fa",
        "/memories/..\\a",
        "/memories/a\nb",
        "/memories/a\0",
        "/memories/\ud800",
        "/memories/\u202etxt.a",
        "/memories/a\u200b",
        "/memories/" + "a" * 500,
        "",
    ],
)
def test_path_outside_of_the_memory_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="Invalid path"):
        checked_path(path)
