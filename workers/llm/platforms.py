"""Claude on the platforms of Google, Amazon and Microsoft, through the classes of the Anthropic SDK.

A key in MINION_PROVIDER_KEYS, or a namespace's own one, is an access token for Google Cloud, a key of Amazon Bedrock,
or a key of the resource in Azure. Without one, the credentials of Google Cloud and AWS are those that the platforms'
own libraries find: a role, a workload identity, a profile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import anthropic

from shared.errors import ModelError, ModelUnavailable
from shared.providers import Provider
from workers.llm.accounts import Account
from workers.llm.base import Block
from workers.llm.failures import Failures

NEEDS = {"vertex": ("google.auth", "google-auth"), "bedrock": ("boto3", "boto3")}
"""The module and the package that find a platform's credentials. Both are extras of the server's package."""
OF_CREDENTIALS = ("google.auth.", "botocore.")


def create(account: Account, options: dict[str, Any]) -> Any:
    """Create the SDK's client for an account.

    Args:
        options: arguments that all classes of clients take.

    Raises:
        ModelError: there are no credentials, or a package is missing.
    """
    provider, key = account.provider, account.key
    if key is None:
        _require(provider)
    common = {**options, "base_url": provider.address}
    match provider.kind:
        case "vertex":
            return anthropic.AnthropicVertex(
                region=provider.region or "", project_id=provider.project or "", access_token=key, **common
            )
        case "bedrock":
            return anthropic.AnthropicBedrockMantle(aws_region=provider.region, api_key=key, **common)
    return anthropic.AnthropicFoundry(api_key=key, **common)


@contextmanager
def credentials(account: Account) -> Iterator[None]:
    """Report credentials that a platform's library does not find, or cannot renew.

    Raises:
        ModelError: there are none.
        ModelUnavailable: they cannot be renewed now.
    """
    if not account.provider.is_platform or account.key is not None:
        yield
        return
    try:
        yield
    except Exception as error:
        why = error.__cause__ if isinstance(error, anthropic.APIConnectionError) else error
        if not _is_of_credentials(why):
            raise
        failures = Failures(account)
        said = f"{failures.api} needs credentials, and they are not available: {failures.without_key(str(why))}"
        kind = ModelUnavailable if getattr(why, "retryable", False) else ModelError
        raise kind(said[:1_000]) from None


def refuse_files(messages: list[dict[str, Any]], provider: Provider) -> None:
    """Refuse blocks whose content is a file of the Files API, which only the Anthropic API has.

    Raises:
        ModelError: names the block and its place.
    """
    for place, block in _blocks(messages):
        source = block.get("source")
        if isinstance(source, dict) and source.get("type") == "file":
            raise ModelError(
                f"{place}: the provider {provider.name!r} cannot read a {block.get('type')} from the Files API of "
                "Anthropic: send its content, or its address."
            )


def _blocks(messages: list[dict[str, Any]]) -> Iterator[tuple[str, Block]]:
    """Yield the blocks of messages, and of tools' results in them, with their places."""
    for number, message in enumerate(messages):
        content = message["content"] if isinstance(message["content"], list) else []
        for index, block in enumerate(content):
            place = f"messages.{number}.content.{index}"
            yield place, block
            inner = block.get("content")
            for position, part in enumerate(inner if isinstance(inner, list) else []):
                if isinstance(part, dict):
                    yield f"{place}.content.{position}", part


def _require(provider: Provider) -> None:
    if provider.kind not in NEEDS:
        raise ModelError(
            f"There is no key for the provider {provider.name!r}: set it in MINION_PROVIDER_KEYS for the workers."
        )
    module, package = NEEDS[provider.kind]
    try:
        import_module(module)
    except ModuleNotFoundError:
        raise ModelError(
            f"The provider {provider.name!r} needs a key in MINION_PROVIDER_KEYS, or the package `{package}`, which "
            f"finds credentials: install `minions-server[{provider.kind}]` for the workers."
        ) from None


def _is_of_credentials(error: BaseException | None) -> bool:
    """Return whether an error is one of the platforms' libraries, or the SDK's about their answers."""
    if error is None:
        return False
    return type(error).__module__.startswith(OF_CREDENTIALS) or (
        type(error) is RuntimeError and "redentials" in str(error)
    )
