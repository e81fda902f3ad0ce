"""Errors of model calls in clear sentences: the API's answer, and what to do. They never contain a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from shared.errors import ModelError, ModelUnavailable
from shared.providers import ANTHROPIC
from shared.secret_store import scrub
from workers.llm.accounts import Account

WORTH_ASKING_AGAIN = frozenset({408, 409, 429})
MAX_MESSAGE = 1_100
MAX_QUOTED = 300
"""Characters of an answer that cannot be read."""


@dataclass(frozen=True, slots=True)
class Failures:
    """The errors of calls with one account."""

    account: Account

    @property
    def api(self) -> str:
        """The API in a sentence."""
        provider = self.account.provider
        return "The Anthropic API" if provider.name == ANTHROPIC else f"The provider {provider.name!r}"

    @property
    def address_setting(self) -> str:
        """The setting that has its address."""
        return "ANTHROPIC_BASE_URL" if self.account.provider.name == ANTHROPIC else "MINION_PROVIDERS"

    def refusal(
        self,
        status: int,
        said: str,
        request_id: str | None,
        *,
        again: bool,
        model: str = "",
        cost_unknown: bool = False,
    ) -> ModelError:
        """Describe an error status in the API's own words."""
        detail: dict[str, Any] = {"http_status": status, **({"cost_unknown": True} if cost_unknown else {})}
        said = f"{status}: {said}"
        if again:
            return self.with_request_id(ModelUnavailable, f"{self.api} answered {said}", request_id, **detail)
        if status in (401, 403):
            said = f"{self.api} refused the key: check {self.account.source}. It answered {said}"
        elif status == 404 and model:
            said = f"{self.api} does not know the model {model!r}. It answered {said}"
        elif 300 <= status < 400:
            said = (
                f"{self.api} redirects to another address, and a key is sent to its own address alone: correct "
                f"{self.address_setting}. It answered {status}"
            )
        else:
            said = f"{self.api} answered {said}"
        return self.with_request_id(ModelError, said, request_id, **detail)

    def unreadable(self, why: object, request_id: str | None = None) -> ModelError:
        """Describe an answer that is not one."""
        # Not the other way round: half a key would be left.
        shown = self.without_key(str(why) or type(why).__name__)[:MAX_QUOTED]
        said = f"{self.api}'s answer cannot be read: {shown}"
        return self.with_request_id(ModelError, said, request_id, cost_unknown=True)

    def lost(self, cause: BaseException, request_id: str | None = None) -> ModelError:
        """Describe a request that was not sent, or whose answer did not arrive."""
        if isinstance(cause, httpx2.UnsupportedProtocol):
            return ModelError(f"{self.address_setting} cannot be used: it must begin with http:// or https://.")
        if isinstance(cause, httpx2.LocalProtocolError):
            # The message would quote the header, including its secrets.
            return ModelError(
                f"The request to {self.api[0].lower()}{self.api[1:]} cannot be sent: check {self._headers}."
            )
        said = str(cause) or type(cause).__name__
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError | httpx2.PoolTimeout):
            return self.with_request_id(ModelUnavailable, f"{self.api} cannot be reached: {said}", request_id)
        return self.cut_off(said, request_id)

    def cut_off(self, why: str, request_id: str | None) -> ModelError:
        """Describe a connection that was lost after the request may have been read."""
        said = f"The connection to {self.api[0].lower()}{self.api[1:]} was lost during the call: {why}"
        return self.with_request_id(ModelUnavailable, said, request_id, cost_unknown=True)

    def with_request_id(self, kind: type[ModelError], said: str, request_id: str | None, **detail: Any) -> ModelError:
        """Return an error with the request's id, for the provider's support. The id is quoted, because errors are
        grouped by their words without quoted parts.
        """
        said = self.without_key(said)[:MAX_MESSAGE]
        if request_id:
            return kind(f'{said} (request "{request_id}")', **detail, request_id=request_id)
        return kind(said, **detail)

    def without_key(self, said: str) -> str:
        """Remove the key from a text: a gateway may echo the request."""
        return scrub(said, [self.account.key]) if self.account.key else said

    @property
    def _headers(self) -> str:
        return "ANTHROPIC_CUSTOM_HEADERS" if self.account.provider.name == ANTHROPIC else self.account.source


def is_worth_it(status: int, headers: Mapping[str, str] | None = None) -> bool:
    """Return whether a retry is worthwhile: as the API says, else by the status."""
    should_retry = (headers or {}).get("x-should-retry")
    if should_retry in ("true", "false"):
        return should_retry == "true"
    return status in WORTH_ASKING_AGAIN or status >= 500
