from __future__ import annotations

import pytest

CATEGORIES = [
    ("MIT", "permissive"),
    ("Apache-2.0 AND BSD-2-Clause", "permissive"),
    ("PSF-2.0", "permissive"),
    ("MPL-2.0", "weak-copyleft"),
    ("LGPL-3.0-only", "weak-copyleft"),
    ("GPL-2.0-only WITH Classpath-exception-2.0", "weak-copyleft"),
    ("GPL-3.0-or-later", "strong-copyleft"),
    ("AGPL-3.0-only", "strong-copyleft"),
    ("MIT AND GPL-3.0-only", "strong-copyleft"),
    ("MIT OR GPL-3.0-only", "permissive"),
    ("(MIT OR GPL-3.0-only) AND MPL-2.0", "weak-copyleft"),
    ("((GPL-3.0-only))", "strong-copyleft"),
    ("LicenseRef-Ours", "other"),
    ("BUSL-1.1", "other"),
    (")(", "other"),
]


def judge(classify, spdx):
    return classify("example", "1.0", spdx, "License-Expression", "", {"requirements": ["a", "b"], "summary": "s"})


@pytest.mark.parametrize(("spdx", "category"), CATEGORIES)
def test_licence_has_a_category(classify, spdx, category):
    assert judge(classify, spdx)["category"] == category


def test_permissive_choice_is_no_conflict(classify):
    assert judge(classify, "MIT OR GPL-3.0-only")["conflicts"] == []


def test_every_conflicting_licence_is_named(classify):
    conflicts = judge(classify, "MIT AND (MPL-2.0 OR GPL-3.0-only)")["conflicts"]

    assert [conflict.partition(":")[0] for conflict in conflicts] == ["GPL-3.0-only", "MPL-2.0"]


def test_lists_among_the_facts_become_lengths(classify):
    assert judge(classify, "MIT")["facts"] == {"requirements": 2, "summary": "s"}
