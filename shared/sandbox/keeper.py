"""Keeps the zygote that the processes of a worker share."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from shared.errors import MinionError
from shared.sandbox.door import Door
from shared.sandbox.fork_server import ZygoteLost
from shared.sandbox.host import Sandbox

logger = logging.getLogger(__name__)


class Keeper:
    """Starts a zygote when a process asks for one, and again when it has ended.

    To be made by a process that lives longer than the others, before it forks them. The zygote ends with it.

    Args:
        preload: packages for `Sandbox`.
    """

    def __init__(self, preload: Iterable[str] = ()) -> None:
        self._preload = tuple(preload)
        self.door = Door()
        threading.Thread(target=self._keep, name="sandbox keeper", daemon=True).start()

    def _keep(self) -> None:
        while self.door.await_request():
            # It parks no children for itself.
            with Sandbox(self._preload, pool=0, entrance=self.door.entrance) as sandbox:
                try:
                    sandbox.share()
                except (MinionError, ZygoteLost) as error:
                    # Each of the processes then tries to start its own, and reports why it cannot.
                    logger.warning("the zygote cannot be shared: %s", error)
                    self.door.turn_away()
