"""Sampling settings: accepted and sent, or refused when the agent is stored, and never dropped silently."""

from __future__ import annotations

import pytest

from shared.contracts.sampling import NEUTRAL, check, settings_to_send
from shared.errors import InvalidDefinition

WITH_SAMPLING = [
    "claude-opus-4-6",
    "claude-opus-4-20250514",
    "claude-opus-4-5-20251101",
    "claude-sonnet-4-6",
    "claude-sonnet-4-5-20250929",
    "claude-haiku-4-5",
    "claude-3-5-sonnet-20241022",
    "claude-3-opus-latest",
    "claude-2.1",
    "claude-instant-1.2",
]
WITHOUT_SAMPLING = [
    "auto",
    "claude-opus-4-7",
    "claude-sonnet-5-5",
    "claude-haiku-4-6",
    "claude-opus-5",
    "claude-opus-4-10",
    "claude-37",
    "some-other-model",
    "",
]


@pytest.mark.parametrize("model", [*WITH_SAMPLING, *WITHOUT_SAMPLING, "offline"])
def test_neutral_values_are_accepted_and_not_sent(model: str) -> None:
    check(model, dict(NEUTRAL), where="x")
    check(model, dict.fromkeys(NEUTRAL), where="x")
    assert settings_to_send(dict(NEUTRAL)) == settings_to_send(dict.fromkeys(NEUTRAL)) == {}


@pytest.mark.parametrize("model", WITH_SAMPLING)
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.5}, {"top_p": 0.9}])
def test_sampling_models_accept_one_of_two_settings(model: str, settings: dict[str, float | None]) -> None:
    check(model, settings, where="x")
    assert settings_to_send({**NEUTRAL, **settings}) == settings


@pytest.mark.parametrize("model", WITH_SAMPLING)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 0.5, "top_p": 0.5}, "accepts temperature or top_p, not both"),
        ({"temperature": 1.5}, "cannot honour temperature=1.5"),
        ({"presence_penalty": 0.1}, "cannot honour presence_penalty=0.1"),
        (
            {"frequency_penalty": -0.1, "presence_penalty": 1.0},
            "cannot honour frequency_penalty=-0.1, presence_penalty=1",
        ),
    ],
)
def test_settings_that_no_claude_model_supports_are_refused(
    model: str, settings: dict[str, float | None], words: str
) -> None:
    with pytest.raises(InvalidDefinition, match=words):
        check(model, settings, where="x")


@pytest.mark.parametrize("model", WITHOUT_SAMPLING)
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 0.999}, {"top_p": 0.9}])
def test_latest_and_unknown_models_accept_no_sampling(model: str, settings: dict[str, float | None]) -> None:
    with pytest.raises(
        InvalidDefinition, match=r"^agent A: the model .* cannot honour .* Leave it out, or set the neutral"
    ):
        check(model, settings, where="agent A")


def test_offline_planner_accepts_temperature_zero_only() -> None:
    check("offline", {"temperature": 0.0}, where="x")
    with pytest.raises(InvalidDefinition):
        check("offline", {"temperature": 0.1}, where="x")
    with pytest.raises(InvalidDefinition):
        check("offline", {"top_p": 0.0}, where="x")
