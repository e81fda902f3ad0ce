from __future__ import annotations

import asyncio

import pytest

from shared.sandbox.confined import event_loop


def test_loop_runs_tasks_and_sleeps() -> None:
    async def main() -> list[int]:
        async def part(number: int) -> int:
            await asyncio.sleep(0.001 * number)
            return number

        return await asyncio.gather(part(2), part(1))

    assert event_loop.run(main()) == [2, 1]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_endless_wait_is_a_deadlock() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(event_loop.Deadlock):
        event_loop.run(main())


def test_executor_runs_in_the_calling_thread() -> None:
    async def main() -> object:
        loop = asyncio.get_running_loop()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 / 0)
        return await asyncio.to_thread(lambda: 7)

    assert event_loop.run(main()) == 7
