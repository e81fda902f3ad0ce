"""Results of tools that are content for the model: `{"$content": [block, …]}`, as the Messages API takes blocks.

Large files in them are stored before the step ends, and kept as long as the task.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from shared.contracts.content import CONTENT, Block, content_in, kept_files, our_files
from shared.contracts.strict_json import JsonValue
from shared.database.connections import get_engine, persist, persistently
from shared.errors import InvalidInput, InvalidOutput, TooLarge
from shared.tasks import attachments, files
from shared.tasks.files import NewFile
from workers.steps import Perform, StepResult
from workers.task import ClaimedTask


def keeping_files(perform: Perform, task: ClaimedTask, called: str) -> Perform:
    """Return the effect of a step whose result has its large files in the file store.

    It raises InvalidOutput if the result is content that a model cannot receive.
    """

    def perform_and_keep(step: int) -> StepResult:
        made = perform(step)
        try:
            blocks = content_in(made.output, where=f"The output of {called!r}")
        except (InvalidInput, TooLarge) as error:
            raise InvalidOutput(error.message) from None
        return made if blocks is None else replace(made, output={CONTENT: _kept(blocks, task)})

    return perform_and_keep


def blocks_in(result: JsonValue, task: ClaimedTask) -> list[Block] | None:
    """Return the blocks of a result, whose files are then kept as long as the task; None: it has none.

    Raises:
        InvalidInput, InvalidOutput, TooLarge: the model cannot receive it.
    """
    blocks = content_in(result, where="The result")
    if blocks is not None and (named := _named(blocks)):
        persist(lambda: _store(task, {}, named))
    return blocks


def refuse_foreign_files(value: JsonValue, task: ClaimedTask) -> None:
    """Refuse an input of a sub-task that refers to other files than those of the task: a model has written it.

    Raises:
        InvalidInput: it does.
    """
    if not (named := kept_files([], value)):
        return
    if missing := named - persistently(files.held, task.root_id, task.namespace, sorted(named)):
        raise InvalidInput(f"The file {min(missing)} is not one of this task.")


def _named(blocks: list[Block]) -> set[str]:
    """Return the ids of our files in blocks."""
    return set(our_files(blocks))


def _kept(blocks: list[Block], task: ClaimedTask) -> list[Block]:
    new: dict[str, NewFile] = {}

    def note(file: NewFile) -> str:
        id = files.id_of(file.data)
        new[id] = file
        return id

    kept = attachments.stored(blocks, note)
    assert isinstance(kept, list)
    if named := _named(kept):
        persist(lambda: _store(task, new, named))
    return kept


def _store(task: ClaimedTask, new: dict[str, NewFile], named: set[str]) -> None:
    with get_engine().begin() as connection:
        for file in new.values():
            files.store(connection, task.namespace, file, uploaded_by=f"task:{task.id}")
        _refuse_foreign(connection, task, named - new.keys())
        files.hold(connection, task.id, task.namespace, named)


def _refuse_foreign(connection: Connection, task: ClaimedTask, ids: set[str]) -> None:
    """Refuse files that the task does not have: a tool must not show a model any file whose id it knows."""
    if missing := ids - files.held(connection, task.root_id, task.namespace, sorted(ids)):
        raise InvalidOutput(f"The file {min(missing)} is not one of this task. Return its content.")
