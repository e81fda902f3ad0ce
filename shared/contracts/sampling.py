"""Sampling settings that each model accepts.

A neutral value (temperature 1, top_p 1, no top_k, penalties 0) is accepted by every model and never sent. Any other
value that the model does not accept is refused when the agent is stored, never dropped silently.

Claude models accept `top_k`, and `temperature` (at most 1) or `top_p` (not both), up to Opus 4.6, Sonnet 4.6 and Haiku
4.5; later ones refuse them ("`temperature` is deprecated for this model", HTTP 400), and no Claude model knows the
penalties. A model with an unknown name is treated like the latest.
"""

from __future__ import annotations

import re

from shared.errors import InvalidDefinition

NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "top_k": None}
LAST_WITH_SAMPLING = {"opus": (4, 6), "sonnet": (4, 6), "haiku": (4, 5)}

AUTO = "auto"
OFFLINE = "offline"


def settings_to_send(settings: dict[str, float | None]) -> dict[str, float]:
    """Return the settings that differ from neutral, which are sent to the model."""
    return {name: value for name, value in settings.items() if value is not None and value != NEUTRAL[name]}


def check(model: str, settings: dict[str, float | None], *, where: str) -> None:
    """Refuse settings that the model does not accept.

    Raises:
        InvalidDefinition: names the setting, the model and what to do.
    """
    chosen = settings_to_send(settings)
    refused = [name for name, value in chosen.items() if not _honours(model, name, value)]
    if refused:
        raise InvalidDefinition(
            f"{where}: the model {model!r} cannot honour {', '.join(f'{name}={chosen[name]:g}' for name in refused)}. "
            f"{_advice(refused)}",
        )
    if {"temperature", "top_p"} <= chosen.keys():
        raise InvalidDefinition(f"{where}: the model {model!r} accepts temperature or top_p, not both.")


def _advice(refused: list[str]) -> str:
    neutral = ", ".join(f"{name}: {NEUTRAL[name]:g}" for name in refused if NEUTRAL[name] is not None)
    return f"Leave it out, or set the neutral value ({neutral})." if neutral else "Leave it out."


def _honours(model: str, name: str, value: float) -> bool:
    if name in ("presence_penalty", "frequency_penalty"):
        return False
    if model == OFFLINE:
        return name == "temperature" and value == 0
    return _takes_sampling(model) and (value <= 1 or name == "top_k")


def _takes_sampling(model: str) -> bool:
    modern = re.match(r"claude-(opus|sonnet|haiku)-(\d+)(?:-(\d))?(?:-\d{8})?$", model)
    if modern:
        family, major, minor = modern.group(1), int(modern.group(2)), int(modern.group(3) or 0)
        return (major, minor) <= LAST_WITH_SAMPLING[family]
    return re.match(r"claude-(3|2|instant)\b", model) is not None
