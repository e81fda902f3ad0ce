"""The stored function `classify_licence`: the category of an SPDX expression, and its conflicts.

It runs in the sandbox: pure Python, no files, and only allowed imports. It is a reading aid, not legal advice.
"""

import re

RANKS = ["permissive", "weak-copyleft", "strong-copyleft", "other"]

PERMISSIVE: list[str] = re.findall(
    r"\S+",
    """
0BSD AAL AFL-3.0 Apache-1.1 Apache-2.0 Artistic-2.0 Beerware BlueOak-1.0.0 BSD-1-Clause BSD-2-Clause
BSD-2-Clause-Patent BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSL-1.0 bzip2-1.0.6 CC0-1.0 CECILL-B CNRI-Python
CNRI-Python-GPL-Compatible curl ECL-2.0 EFL-2.0 Fair FSFAP FTL HPND ICU IJG ImageMagick ISC Libpng libpng-2.0 libtiff
MIT MIT-0 MIT-CMU MirOS MulanPSL-2.0 NCSA NTP OLDAP-2.8 OpenSSL PDDL-1.0 PHP-3.01 PostgreSQL PSF-2.0 Python-2.0
Python-2.0.1 Qhull TCL Unicode-3.0 Unicode-DFS-2016 Unlicense UPL-1.0 W3C WTFPL X11 Xnet Zlib zlib-acknowledgement
ZPL-2.0 ZPL-2.1
""",
)
WEAK = ("APSL-", "CDDL-", "CECILL-C", "CPL-", "EPL-", "IPL-", "LGPL-", "MPL-", "MS-PL", "MS-RL")
STRONG = ("AGPL-", "CECILL-2", "EUPL-", "GPL-", "OSL-", "QPL-", "Sleepycat")
# With these, a GPL library may be linked into a program under any terms.
LINKING_EXCEPTIONS = ("Classpath-exception-2.0", "GCC-exception-3.1", "LGPL-3.0-linking-exception")

CONFLICTS = {
    "weak-copyleft": "changes to it have to be published under the same licence",
    "strong-copyleft": "a work that contains it has to be published under the same licence",
    "other": "it is not on the list of licences with known terms; a person must read it",
}


def classify_licence(
    name: str, version: str, spdx: str, source: str, disagreement: str, facts: dict[str, object]
) -> dict[str, object]:
    """Return the category of an expression and its conflicts with a permissive policy.

    Returns:
        `{"name", "version", "spdx", "source", "category", "conflicts", "disagreement", "facts"}`. Lists among the facts
        are replaced by their lengths, so that a thousand results still fit in a small document.
    """
    category = category_of(spdx)
    return {
        "name": name,
        "version": version,
        "spdx": spdx,
        "source": source,
        "category": category,
        "conflicts": [] if category == "permissive" else conflicts(spdx),
        "disagreement": disagreement,
        "facts": {key: len(value) if isinstance(value, list) else value for key, value in facts.items()},
    }


def category_of(expression: str) -> str:
    """Return the category of an expression: the licensee may choose among OR, but must comply with all of AND."""
    # Innermost parentheses first: each is replaced by the category of its contents.
    while "(" in expression:
        shorter = re.sub(r"\(([^()]*)\)", lambda part: without_parentheses(part[1]), expression)
        if shorter == expression:
            return "other"
        expression = shorter
    return without_parentheses(expression)


def without_parentheses(expression: str) -> str:
    """Return the category of an expression without parentheses."""
    ranks = [max(rank(licence) for licence in choice.split(" AND ")) for choice in expression.split(" OR ")]
    return RANKS[min(ranks)]


def rank(licence: str) -> int:
    """Return the distance of one licence from permissive, as an index of `RANKS`."""
    licence, _, exception = licence.strip().partition(" WITH ")
    licence = licence.removesuffix("+")
    if licence in RANKS:
        return RANKS.index(licence)
    if licence in PERMISSIVE:
        return 0
    if licence.startswith(WEAK) or (licence.startswith("GPL-") and exception in LINKING_EXCEPTIONS):
        return 1
    return 2 if licence.startswith(STRONG) else 3


def conflicts(expression: str) -> list[str]:
    """Return one sentence for each licence of the expression that is not permissive."""
    licences = sorted({part.strip(" ()") for part in re.split(r" AND | OR ", expression)})
    return [f"{licence}: {CONFLICTS[RANKS[rank(licence)]]}" for licence in licences if rank(licence)]
