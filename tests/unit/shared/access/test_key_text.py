"""The text of API keys."""

from __future__ import annotations

import pytest

from shared.access import key_text


def test_generated_keys_are_well_formed_and_differ() -> None:
    keys = {key_text.generate() for _ in range(200)}
    assert len(keys) == 200
    assert all(key_text.is_well_formed(key) for key in keys)
    assert {len(key) for key in keys} == {52}
    assert all(key.startswith("mk_") for key in keys)


def test_every_mistyped_character_is_noticed() -> None:
    key = key_text.generate()
    for position in range(len(key)):
        other = "A" if key[position] != "A" else "B"
        assert not key_text.is_well_formed(key[:position] + other + key[position + 1 :]), position


@pytest.mark.parametrize(
    "damage", [lambda k: k[:-1], lambda k: k + "0", lambda k: k + "\n", lambda k: f" {k}", str.upper]
)
def test_damaged_keys_are_not_well_formed(damage: object) -> None:
    assert not key_text.is_well_formed(damage(key_text.generate()))  # type: ignore[operator]


def test_digest_is_that_of_the_whole_text() -> None:
    assert len(key_text.digest("mk_a")) == 32
    assert key_text.digest("mk_a") != key_text.digest("mk_b")
