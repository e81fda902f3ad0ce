"""Both versions of the stored function, against the licence fields of real distributions."""

from __future__ import annotations

import re

import pytest

from orchestrator.demo import distributions

MIT = """Copyright (c) 2020 Somebody
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify. The above copyright notice and this permission notice (including the next paragraph)
shall be included in all copies."""
BSD_2 = """Redistribution and use in source and binary forms, with or without modification, are permitted provided
that the following conditions are met: 1. Redistributions of source code must retain the notice. 2. Redistributions in
binary form must reproduce it. THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS "AS IS"."""
BSD_3 = BSD_2.replace("THIS", "3. The name of the author may not be used to endorse or promote products.\nTHIS")
BSD_4 = BSD_2.replace("THIS", "3. All advertising materials mentioning features must display this.\nTHIS")
APACHE = """Licensed under the Apache License, Version 2.0 (the "License"); you may obtain a copy at
    http://www.apache.org/licenses/LICENSE-2.0"""
APACHE_FULL = "Apache License\n Version 2.0, January 2004\n http://www.apache.org/licenses/\n TERMS AND CONDITIONS"
MPL = "This Source Code Form is subject to the terms of the Mozilla Public License,\nv. 2.0."
LGPL_3 = """GNU LESSER GENERAL PUBLIC LICENSE Version 3, 29 June 2007
Everyone is permitted to copy and distribute verbatim copies. … or any later version."""
GPL_2_NOTICE = """you can redistribute it under the terms of the GNU General Public License as published by the Free
Software Foundation; either version 2 of the License, or (at your option) any later version."""
AGPL = "GNU AFFERO GENERAL PUBLIC LICENSE Version 3, 19 November 2007"
ISC = """Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby
granted, provided that the above copyright notice and this permission notice appear in all copies."""
PSF = "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2\n--------"
ZLIB = "2. Altered source versions must be plainly marked as such, and must not be misrepresented"
UNLICENSE = "This is free and unencumbered software released into the public domain."

ACCEPTED_BY_BOTH = [
    # License-Expression, License field, classifiers, result, source
    ("MIT", "", (), "MIT", "License-Expression"),
    ("mit", "", (), "MIT", "License-Expression"),
    ("Apache-2.0 OR BSD-2-Clause", "", (), "Apache-2.0 OR BSD-2-Clause", "License-Expression"),
    ("(MIT or apache-2.0) AND PSF-2.0", "", (), "(MIT OR Apache-2.0) AND PSF-2.0", "License-Expression"),
    (
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "",
        (),
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "License-Expression",
    ),
    ("LGPL-2.1+", "", (), "LGPL-2.1-or-later", "License-Expression"),
    ("GPL-3.0", "", (), "GPL-3.0-only", "License-Expression"),
    ("LicenseRef-Ours AND MIT", "", (), "LicenseRef-Ours AND MIT", "License-Expression"),
    ("", "BSD-3-Clause", ("BSD License",), "BSD-3-Clause", "License field"),
    ("", "MIT OR Apache-2.0", ("MIT License", "Apache Software License"), "MIT OR Apache-2.0", "License field"),
    ("", "MIT license", ("MIT License",), "MIT", "classifier"),
    ("", MIT, ("MIT License",), "MIT", "classifier"),
    ("", "", ("ISC License (ISCL)",), "ISC", "classifier"),
    ("", "", ("Mozilla Public License 2.0 (MPL 2.0)",), "MPL-2.0", "classifier"),
]
REFUSED_BY_1 = [
    # License field, classifiers, texts, answer of version 1, answer of version 2, source
    ("BSD", ("BSD License",), (BSD_3,), "“BSD License” covers several licences", "BSD-3-Clause", "licence text"),
    ("BSD", ("BSD License",), (BSD_2,), "License field says “BSD”", "BSD-2-Clause", "licence text"),
    ("", ("BSD License",), (BSD_4,), "covers several", "BSD-4-Clause", "licence text"),
    ("New BSD", ("BSD License",), (), "License field says “New BSD”", "BSD-3-Clause", "licence words"),
    ("BSD 2-Clause License", ("BSD License",), (), "covers several", "BSD-2-Clause", "licence words"),
    ("Apache 2.0", ("Apache Software License",), (), "covers several", "Apache-2.0", "licence words"),
    ("Apache License, Version 2.0", (), (), "No classifier", "Apache-2.0", "licence words"),
    ("", ("Apache Software License",), (APACHE_FULL,), "covers several", "Apache-2.0", "licence text"),
    (
        "Dual License",
        ("BSD License", "Apache Software License"),
        (APACHE + BSD_3,),
        "one of them apply, or all?",
        "Apache-2.0 OR BSD-3-Clause",
        "licence text",
    ),
    ("", ("MIT License", "ISC License (ISCL)"), (MIT, ISC), "side by side", "ISC AND MIT", "licence text"),
    ("MIT License", (), (), "No classifier names a licence", "MIT", "licence words"),
    ("", (), (MIT,), "No classifier names a licence", "MIT", "licence text"),
    ("", (), (MPL,), "No classifier", "MPL-2.0", "licence text"),
    ("", (), (LGPL_3,), "No classifier", "LGPL-3.0-only", "licence text"),
    ("", (), (GPL_2_NOTICE,), "No classifier", "GPL-2.0-or-later", "licence text"),
    ("", (), (AGPL,), "No classifier", "AGPL-3.0-only", "licence text"),
    ("", (), (PSF,), "No classifier", "PSF-2.0", "licence text"),
    ("", (), (ISC,), "No classifier", "ISC", "licence text"),
    ("", (), (ZLIB,), "No classifier", "Zlib", "licence text"),
    ("", (), (UNLICENSE,), "No classifier", "Unlicense", "licence text"),
    ("LGPLv3+", (), (), "No classifier", "LGPL-3.0-or-later", "licence words"),
    ("GNU GPL v2 or later", (), (), "No classifier", "GPL-2.0-or-later", "licence words"),
    ("PSF", (), (), "No classifier", "PSF-2.0", "licence words"),
    ("zlib License", (), (), "No classifier", "Zlib", "licence words"),
    ("The Unlicense", (), (), "No classifier", "Unlicense", "licence words"),
]
REFUSED_BY_BOTH = [
    ("", (), ()),
    ("BSD", ("BSD License",), ()),
    ("GPL", (), ("All rights reserved.",)),
    ("Dual License", (), ()),
    ("Proprietary", ("Other/Proprietary License",), ("You may not use this.",)),
    ("not MIT", (), ()),
    ("MIT AND", (), ()),
    ("(MIT", (), ()),
    ("MIT WITH MIT", (), ()),
    ("MIT Apache-2.0", (), ()),
    # A text that ends before its conditions do does not determine the number of clauses.
    ("BSD", (), (BSD_2.partition("THIS")[0],)),
]


@pytest.mark.parametrize(("expression", "field", "classifiers", "spdx", "source"), ACCEPTED_BY_BOTH)
def test_both_versions_accept(normalise_v1, normalise_v2, inspected, expression, field, classifiers, spdx, source):
    given = inspected(expression, field, classifiers)

    for normalise in (normalise_v1, normalise_v2):
        found = normalise(**given)
        assert (found["spdx"], found["source"]) == (spdx, source)
        assert found["facts"] == given["facts"]


@pytest.mark.parametrize(("field", "classifiers", "texts", "reason", "spdx", "source"), REFUSED_BY_1)
def test_version_2_reads_what_version_1_refuses(
    normalise_v1, normalise_v2, inspected, field, classifiers, texts, reason, spdx, source
):
    given = inspected("", field, classifiers, texts)

    with pytest.raises(ValueError, match=re.escape(reason)):
        normalise_v1(**given)
    found = normalise_v2(**given)

    assert (found["spdx"], found["source"]) == (spdx, source)


@pytest.mark.parametrize(("field", "classifiers", "texts"), REFUSED_BY_BOTH)
def test_both_versions_refuse(normalise_v1, normalise_v2, inspected, field, classifiers, texts):
    for normalise in (normalise_v1, normalise_v2):
        with pytest.raises(ValueError, match="classifier"):
            normalise(**inspected("", field, classifiers, texts))


def test_classifier_that_contradicts_the_expression_is_reported(normalise_v1, inspected):
    given = inspected("MIT", "", ("Apache Software License",))

    assert "“Apache Software License”" in normalise_v1(**given)["disagreement"]


def test_classifier_for_the_family_of_the_expression_is_accepted(normalise_v1, inspected):
    assert normalise_v1(**inspected("BSD-3-Clause", "", ("BSD License",)))["disagreement"] == ""


def test_version_2_reports_a_text_of_another_licence(normalise_v2, inspected):
    assert "read like MIT" in normalise_v2(**inspected("Apache-2.0", "", (), (MIT,)))["disagreement"]
    assert normalise_v2(**inspected("MIT OR Apache-2.0", "", (), (MIT,)))["disagreement"] == ""


def test_hostile_expression_is_refused_quickly(normalise_v1, inspected):
    with pytest.raises(ValueError, match="classifier"):
        normalise_v1(**inspected("(" * 100_000))


def test_version_2_accepts_installed_licences_of_version_1(normalise_v1, normalise_v2):
    refused = 0
    for distribution in distributions.installed():
        given = distribution.inspect()
        try:
            expected = normalise_v1(**given)["spdx"]
        except ValueError:
            refused += 1
        else:
            assert normalise_v2(**given)["spdx"] == expected
    # Nothing is planted, so the number may change with the lock file; the demo shows that some are refused.
    assert refused > 0
