# Generated from minions/aio/keys.py by `make client`: change that file.
"""API keys and logins of browsers, as methods of the client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from minions.transport import Transport
from minions.wire import PAGE, given, segment, to_json

MARK = "mk_"
SHOWN = 9
"""Characters of a key, with the mark, that are stored and shown, so that people can tell keys apart."""


class Keys:
    """The methods of `minions.Client` that are about API keys and logins.

    They need a key with the role `admin`.
    """

    _transport: Transport

    def create_api_key(
        self,
        name: str,
        role: str,
        *,
        payloads: bool | None = None,
        namespace: str | None = None,
        agents: Sequence[str] = (),
        capabilities: Sequence[str] = (),
        tenant: str | None = None,
        requests_per_minute: int | None = None,
        expires_in: float | timedelta | None = None,
    ) -> dict[str, Any]:
        """Create an API key. The answer contains its text, `key`, which is shown only once.

        Args:
            name: its name in records.
            role: `viewer`, `submitter`, `operator`, `approver`, `author` or `admin`.
            payloads: whether it sees inputs, outputs, prompts, messages and errors; by default as the role does.
            namespace: the only namespace that it reaches.
            agents: the only agents whose tasks it reaches.
            capabilities: the only capabilities whose tasks it reaches.
            tenant: the only tenant key whose tasks it reaches; with `*` at the end, all that begin so.
            requests_per_minute: the requests that it may send to each orchestrator in a minute; None: no quota.
            expires_in: seconds until it expires.

        Raises:
            Conflict: the name is taken.
            Forbidden: it would be allowed more than the key of this client.
            InvalidInput: a field is invalid.
        """
        fields = given(
            name=name,
            role=role,
            payloads=payloads,
            namespace=namespace,
            agents=list(agents) or None,
            capabilities=list(capabilities) or None,
            tenant=tenant,
            requests_per_minute=requests_per_minute,
            expires_in=_seconds(expires_in),
        )
        created: dict[str, Any] = self._transport.post("/v1/keys", to_json(fields, what="The key"), safe=False)
        return created

    def api_keys(self, *, revoked: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the API keys, the oldest first, without their texts.

        Args:
            revoked: include the revoked ones.
        """
        return self._transport.pages("/v1/keys", {"revoked": revoked, "limit": PAGE})

    def api_key(self, key: str | UUID) -> dict[str, Any]:
        """Return one API key, without its text.

        Args:
            key: here and in the methods below: its name, its prefix or its id. Of its whole text, only the prefix is
                sent.

        Raises:
            NotFound: there is no such key.
            AmbiguousId: several namespaces have a key of that name.
        """
        found: dict[str, Any] = self._transport.get(_path(key))
        return found

    def rotate_api_key(
        self, key: str | UUID, *, overlap: float | timedelta | None = None, expires_in: float | timedelta | None = None
    ) -> dict[str, Any]:
        """Replace the text of a key. The answer's `key` is shown only once.

        Args:
            overlap: for how many seconds the previous text stays valid; a day by default.
            expires_in: seconds until the key expires; by default, its expiry stays as it is.

        Raises:
            NotFound, AmbiguousId: as for `api_key`.
            Conflict: the key was revoked, or has expired and gets no new expiry.
        """
        fields = given(overlap=_seconds(overlap), expires_in=_seconds(expires_in))
        body = to_json(fields, what="The rotation")
        rotated: dict[str, Any] = self._transport.post(f"{_path(key)}/rotate", body, safe=False)
        return rotated

    def revoke_api_key(self, key: str | UUID) -> dict[str, Any]:
        """End a key within a second, everywhere.

        Raises:
            NotFound, AmbiguousId: as for `api_key`.
        """
        revoked: dict[str, Any] = self._transport.delete(_path(key))
        return revoked

    def sessions(self, *, ended: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the logins of browsers, the newest first.

        Args:
            ended: include those that are over; they are kept for a week.
        """
        return self._transport.pages("/v1/sessions", {"ended": ended, "limit": PAGE})

    def revoke_session(self, session: str | UUID) -> dict[str, Any]:
        """End a login within a second, everywhere.

        Raises:
            NotFound: there is no such login.
        """
        ended: dict[str, Any] = self._transport.delete(f"/v1/sessions/{segment(session)}")
        return ended

    def revoke_sessions_of(self, user: str) -> list[str]:
        """End all logins of a user, such as `oidc:alice@example.com`, and return their ids."""
        ended: list[str] = self._transport.delete("/v1/sessions", params={"user": user})["ended"]
        return ended


def _seconds(given: float | timedelta | None) -> float | None:
    return given.total_seconds() if isinstance(given, timedelta) else given


def _path(key: str | UUID) -> str:
    named = str(key)
    if named.startswith(MARK):
        # The whole text would be in the logs of proxies.
        named = named[:SHOWN]
    return f"/v1/keys/{segment(named)}"
