"""Secrets for tools: encrypted at rest, referenced by name, and decrypted only where a call is made.

The key comes from the environment (`MINION_SECRET_KEY`), so that a copy of the database is worthless without it.
Several keys, separated by commas, allow key rotation: the first encrypts, all decrypt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import Connection, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, TEXT

from shared.errors import InvalidInput, NotConfigured, NotFound
from shared.settings import Settings, get_settings

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
REFERENCE = re.compile(r"\$\{secret:([^}]*)\}")
HEADER_VALUE = r"^([\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?)?$"
HEADER_TEXT = re.compile(HEADER_VALUE)
MAX_BYTES = 64 << 10
HIDDEN = "***"

SET = text(
    "INSERT INTO secrets (namespace, name, ciphertext) VALUES (:namespace, :name, :ciphertext) "
    "ON CONFLICT (namespace, name) DO UPDATE SET ciphertext = EXCLUDED.ciphertext, updated_at = now()"
)
LIST = text("SELECT name, created_at, updated_at FROM secrets WHERE namespace = :namespace ORDER BY name LIMIT :most")
DELETE = text("DELETE FROM secrets WHERE namespace = :namespace AND name = :name RETURNING 1")
TIMES = text(
    "SELECT name, updated_at FROM secrets WHERE namespace = :namespace AND name = ANY (:names) ORDER BY name"
).bindparams(bindparam("names", type_=ARRAY(TEXT)))
READ = text("SELECT name, ciphertext FROM secrets WHERE namespace = :namespace AND name = ANY (:names)").bindparams(
    bindparam("names", type_=ARRAY(TEXT))
)


class SecretStore:
    """The secrets of one namespace.

    Args:
        settings: with the key.

    Raises:
        NotConfigured: there is no key, or it is invalid.
    """

    def __init__(self, settings: Settings, namespace: str = "default") -> None:
        self.namespace = namespace
        try:
            self._box = MultiFernet([Fernet(key.strip()) for key in settings.require_secret_key().split(",")])
        except ValueError:
            raise NotConfigured(
                "MINION_SECRET_KEY is not a key: it must be 32 bytes in URL-safe Base64. `minion secrets key` makes "
                "one."
            ) from None

    def set(self, connection: Connection, name: str, value: str) -> None:
        """Store a secret, replacing one of the same name.

        Raises:
            InvalidInput: the name or the size is invalid.
        """
        if not NAME.fullmatch(name):
            raise InvalidInput(
                f"{name[:100]!r} is not the name of a secret: it must be a letter, followed by letters, digits, _ . "
                "and -."
            )
        if not 0 < len(value.encode()) <= MAX_BYTES:
            raise InvalidInput(f"A secret must have 1 to {MAX_BYTES} bytes.")
        ciphertext = self._box.encrypt(value.encode()).decode()
        connection.execute(SET, {"namespace": self.namespace, "name": name, "ciphertext": ciphertext})

    def reveal(self, connection: Connection, names: Collection[str]) -> dict[str, str]:
        """Return the values of secrets, for an imminent call.

        Raises:
            NotFound: there is no secret of that name.
            NotConfigured: none of the keys fits.
        """
        rows = connection.execute(READ, {"namespace": self.namespace, "names": list(names)}).all()
        try:
            found = {row.name: self._box.decrypt(row.ciphertext).decode() for row in rows}
        except InvalidToken:
            raise NotConfigured(
                "MINION_SECRET_KEY does not decrypt the stored secrets. Add the key that encrypted them to it."
            ) from None
        if missing := sorted(set(names) - set(found)):
            raise NotFound(f"There is no secret {missing[0]!r}. `minion secrets set {missing[0]}` stores one.")
        return found


def list_secrets(connection: Connection, namespace: str = "default", most: int | None = None) -> list[dict[str, Any]]:
    """Return names and times, never values, by name; the first ones, if `most` is given."""
    return [dict(row) for row in connection.execute(LIST, {"namespace": namespace, "most": most}).mappings()]


def values_of(connection: Connection, names: Collection[str], namespace: str = "default") -> dict[str, str]:
    """Return the values of secrets, for an imminent call.

    Raises:
        NotFound, NotConfigured: as for `SecretStore.reveal`.
    """
    return SecretStore(get_settings(), namespace).reveal(connection, names)


def times_of(connection: Connection, names: Collection[str], namespace: str = "default") -> dict[str, Any]:
    """Return when each of these secrets was set, as text. Those that do not exist are left out."""
    rows = connection.execute(TIMES, {"namespace": namespace, "names": list(names)})
    return {row.name: row.updated_at.isoformat() for row in rows}


def delete_secret(connection: Connection, name: str, namespace: str = "default") -> None:
    """Remove a secret.

    Raises:
        NotFound: there is no secret of that name.
    """
    if connection.scalar(DELETE, {"namespace": namespace, "name": name}) is None:
        raise NotFound(f"There is no secret {name!r}.")


def new_key() -> str:
    """Generate a key for `MINION_SECRET_KEY`."""
    return Fernet.generate_key().decode()


def references(texts: Iterable[str]) -> set[str]:
    """Return the names of the secrets that texts refer to as `${secret:NAME}`."""
    return {name for given in texts for name in REFERENCE.findall(given)}


def fill(given: str, values: dict[str, str]) -> str:
    """Return a text with its references replaced."""
    return REFERENCE.sub(lambda match: values[match[1]], given)


def fill_headers(headers: Mapping[str, str], values: dict[str, str]) -> dict[str, str]:
    """Return headers with their references replaced.

    Raises:
        NotConfigured: a header cannot carry its secret. The HTTP library's own error would quote it.
    """
    filled = {name: fill(given, values) for name, given in headers.items()}
    for name, value in filled.items():
        if not HEADER_TEXT.fullmatch(value):
            raise NotConfigured(
                f"The header {name} cannot carry its secret, which must be printable ASCII on one line, without spaces "
                "around it. `minion secrets set NAME` stores another one."
            )
    return filled


def scrub(given: str, values: Iterable[str]) -> str:
    """Remove secrets that the other side may have repeated in a text, including their JSON escapes."""
    for value in sorted(values, key=len, reverse=True):
        given = given.replace(value, HIDDEN)
        if "\\" in given:
            given = re.sub("".join(map(_escape_pattern, value)), HIDDEN, given)
    return given


def _escape_pattern(character: str) -> str:
    """Return a pattern for a character in JSON text: some libraries write `/`, `+` or `<` with an escape."""
    plain = re.escape(character)
    return rf"(?:{plain}|\\{plain}|\\u(?i:{ord(character):04x}))"
