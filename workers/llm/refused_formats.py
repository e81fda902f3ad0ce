"""Output schemas that a server has refused to constrain: they are not sent as a format again."""

from __future__ import annotations

from collections import OrderedDict

MOST = 1000


class RefusedFormats:
    """The latest schemas that a server has refused, by their digests, until this process ends."""

    def __init__(self) -> None:
        self._digests: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        """Return whether this schema was refused."""
        return digest in self._digests

    def add(self, digest: str) -> None:
        """Note a refused schema, and forget the oldest one if there are too many."""
        self._digests[digest] = None
        while len(self._digests) > MOST:
            self._digests.popitem(last=False)
