"""Cost of open pages: the rate of no-op tasks while pages show what happens, beside the rate without them.

    python -m benchmarks.open_pages [--pages 100] [--rounds 5] [--tasks 2000]

Rounds with and without open pages alternate, on the same servers. A page listens to its stream and fetches itself when
that says so, as `live.js` does; half of them are the overview, half the list of tasks. What a browser does with a page
is not measured: it runs on another machine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx2

from benchmarks.environment import Environment
from benchmarks.systems.minions import MinionsTool
from orchestrator.pages.live import MOST_OF_A_LOGIN
from shared.settings import get_settings
from tests.support.browser import Browser
from tests.support.processes import wait_until

PLACES = ("/overview", "/tasks")
GOAL = 0.95


@dataclass
class Shown:
    """What the open pages have received."""

    streams: int = 0
    renewals: int = 0


def main() -> None:
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pages", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=2000)
    options = parser.parse_args()
    without, beside, renewals = [], [], 0
    with Environment(replies=()) as environment:
        system = MinionsTool(environment)
        system.start()
        system.run(options.tasks)
        logins = [_log_in(system.minions.url) for _ in range(-(-options.pages // MOST_OF_A_LOGIN))]
        for _ in range(options.rounds):
            without.append(options.tasks / system.run(options.tasks))
            with opened(system.minions.url, options.pages, logins) as shown:
                beside.append(options.tasks / system.run(options.tasks))
            renewals += shown.renewals
    ratio = statistics.median(beside) / statistics.median(without)
    print(f"{options.rounds} alternating rounds of {options.tasks:,} no-op tasks")
    print(f"  without pages: {_figures(without)}")
    print(f"  with {options.pages} open pages, which renewed themselves {renewals} times: {_figures(beside)}")
    print(f"  ratio {ratio:.3f}, goal {GOAL}{'' if ratio >= GOAL else ': missed'}")


@contextmanager
def opened(url: str, pages: int, logins: list[dict[str, str]]) -> Iterator[Shown]:
    """Keep pages open while the block runs. The logins are those of their browsers, as cookies."""
    shown, loop = Shown(), asyncio.new_event_loop()
    opened = [_page(url, logins[number // MOST_OF_A_LOGIN], PLACES[number % 2], shown) for number in range(pages)]
    running = asyncio.gather(*map(loop.create_task, opened), return_exceptions=True)

    def watch() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(running)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    wait_until(lambda: shown.streams == pages, "all pages are live")
    try:
        yield shown
    finally:
        loop.call_soon_threadsafe(running.cancel)
        thread.join()
        loop.close()


def _log_in(url: str) -> dict[str, str]:
    """Return the cookies of a new login."""
    browser = Browser(url, url)
    assert browser.log_in(get_settings().require_api_key()).status_code == 303
    return {name: value for name, (value, _) in browser.cookies.items()}


async def _page(url: str, cookies: dict[str, str], place: str, shown: Shown) -> None:
    """Show a page, and renew it."""
    async with httpx2.AsyncClient(base_url=url, cookies=cookies, trust_env=False, timeout=None) as http:
        (await http.get(place)).raise_for_status()
        async for _ in _changes(http, place, shown):
            (await http.get(place, headers={"Minion-Live": "1"})).raise_for_status()
            shown.renewals += 1


async def _changes(http: httpx2.AsyncClient, place: str, shown: Shown) -> AsyncIterator[None]:
    """Yield each time the stream of a page says that it has changed."""
    async with http.stream("GET", f"{place}/live") as stream:
        stream.raise_for_status()
        shown.streams += 1
        async for line in stream.aiter_lines():
            if line == "event: changed":
                yield


def _figures(rates: list[float]) -> str:
    return f"{statistics.median(rates):.0f} tasks/s ({min(rates):.0f} to {max(rates):.0f})"


if __name__ == "__main__":
    main()
