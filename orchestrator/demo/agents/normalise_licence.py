"""Version 1 of the stored function `normalise_licence`: it accepts only unambiguous fields.

It runs in the sandbox: pure Python, no files, and only allowed imports.
"""

import re

LICENCES: list[str] = re.findall(
    r"\S+",
    """
0BSD AAL AFL-3.0 AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 APSL-2.0 Artistic-1.0 Artistic-2.0 Beerware
BlueOak-1.0.0 BSD-1-Clause BSD-2-Clause BSD-2-Clause-Patent BSD-3-Clause BSD-3-Clause-Clear BSD-4-Clause BSL-1.0
BUSL-1.1 bzip2-1.0.6 CC-BY-3.0 CC-BY-4.0 CC-BY-NC-4.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC0-1.0 CDDL-1.0 CDDL-1.1 CECILL-2.1
CECILL-B CECILL-C CNRI-Python CNRI-Python-GPL-Compatible CPL-1.0 curl ECL-2.0 EFL-2.0 Elastic-2.0 EPL-1.0 EPL-2.0
EUPL-1.1 EUPL-1.2 Fair FSFAP FTL GFDL-1.3-only GFDL-1.3-or-later GPL-1.0-only GPL-1.0-or-later GPL-2.0-only
GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later HPND ICU IJG ImageMagick IPL-1.0 ISC JSON LGPL-2.0-only
LGPL-2.0-or-later LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later Libpng libpng-2.0 libtiff LPPL-1.3c
MIT MIT-0 MIT-CMU MirOS MPL-1.0 MPL-1.1 MPL-2.0 MS-PL MS-RL MulanPSL-2.0 NCSA NTP ODbL-1.0 OFL-1.1 OLDAP-2.8 OpenSSL
OSL-3.0 PDDL-1.0 PHP-3.01 PolyForm-Noncommercial-1.0.0 PostgreSQL PSF-2.0 Python-2.0 Python-2.0.1 QPL-1.0 Qhull Ruby
Sleepycat SSPL-1.0 TCL Unicode-3.0 Unicode-DFS-2016 Unlicense UPL-1.0 Vim W3C WTFPL X11 Xnet Zend-2.0 Zlib
zlib-acknowledgement ZPL-2.0 ZPL-2.1
""",
)
SPDX_IDS = {licence.lower(): licence for licence in LICENCES}

EXCEPTIONS: list[str] = re.findall(
    r"\S+",
    """
Autoconf-exception-3.0 Bison-exception-2.2 Bootloader-exception Classpath-exception-2.0 Font-exception-2.0
GCC-exception-3.1 LGPL-3.0-linking-exception Linux-syscall-note LLVM-exception OpenSSL-exception
""",
)
EXCEPTION_IDS = {exception.lower(): exception for exception in EXCEPTIONS}

# Classifiers that name one licence.
CLASSIFIERS = {
    "Apple Public Source License": "APSL-2.0",
    "Attribution Assurance License": "AAL",
    "BSD Zero Clause License (0BSD)": "0BSD",
    "Blue Oak Model License (BlueOak-1.0.0)": "BlueOak-1.0.0",
    "Boost Software License 1.0 (BSL-1.0)": "BSL-1.0",
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    "CMU License (MIT-CMU)": "MIT-CMU",
    "Common Development and Distribution License 1.0 (CDDL-1.0)": "CDDL-1.0",
    "Eclipse Public License 1.0 (EPL-1.0)": "EPL-1.0",
    "Eclipse Public License 2.0 (EPL-2.0)": "EPL-2.0",
    "European Union Public Licence 1.1 (EUPL 1.1)": "EUPL-1.1",
    "European Union Public Licence 1.2 (EUPL 1.2)": "EUPL-1.2",
    "GNU Affero General Public License v3": "AGPL-3.0-only",
    "GNU Affero General Public License v3 or later (AGPLv3+)": "AGPL-3.0-or-later",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "GNU Lesser General Public License v2 (LGPLv2)": "LGPL-2.0-only",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.0-or-later",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 1.0 (MPL)": "MPL-1.0",
    "Mozilla Public License 1.1 (MPL 1.1)": "MPL-1.1",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Mulan Permissive Software License v2 (MulanPSL-2.0)": "MulanPSL-2.0",
    "Open Software License 3.0 (OSL-3.0)": "OSL-3.0",
    "PostgreSQL License": "PostgreSQL",
    "Python Software Foundation License": "PSF-2.0",
    "SIL Open Font License 1.1 (OFL-1.1)": "OFL-1.1",
    "Sleepycat License": "Sleepycat",
    "The Unlicense (Unlicense)": "Unlicense",
    "Universal Permissive License (UPL)": "UPL-1.0",
    "University of Illinois/NCSA Open Source License": "NCSA",
    "zlib/libpng License": "Zlib",
}

# Classifiers for several licences, and the prefixes of their SPDX ids.
FAMILIES = {
    "Academic Free License (AFL)": ("AFL-",),
    "Apache Software License": ("Apache-",),
    "Artistic License": ("Artistic-",),
    "BSD License": ("BSD-", "0BSD"),
    "GNU Affero General Public License v3 or later": ("AGPL-",),
    "GNU Free Documentation License (FDL)": ("GFDL-",),
    "GNU General Public License (GPL)": ("GPL-",),
    "GNU Library or Lesser General Public License (LGPL)": ("LGPL-",),
    "Zope Public License": ("ZPL-",),
}


def normalise_licence(
    name: str,
    version: str,
    licence_expression: str,
    licence_field: str,
    licence_classifiers: list[str],
    licence_texts: list[str],
    facts: dict[str, object],
) -> dict[str, object]:
    """Return one SPDX expression for a distribution.

    Returns:
        `{"name", "version", "spdx", "source", "disagreement", "facts"}`.

    Raises:
        ValueError: no field of the metadata is unambiguous; the message quotes the fields.
    """
    classifiers = licence_names(licence_classifiers)
    spdx, source = declared(licence_expression, licence_field, classifiers)
    return {
        "name": name,
        "version": version,
        "spdx": spdx,
        "source": source,
        "disagreement": disagreement(spdx, source, classifiers),
        "facts": facts,
    }


def declared(expression: str, field: str, classifiers: list[str]) -> tuple[str, str]:
    """Return the SPDX expression and the name of its source."""
    if spdx := spdx_expression(expression):
        return spdx, "License-Expression"
    if spdx := spdx_expression(field):
        return spdx, "License field"
    if len(classifiers) == 1 and classifiers[0] in CLASSIFIERS:
        return CLASSIFIERS[classifiers[0]], "classifier"
    raise ValueError(" ".join(reasons(expression, field, classifiers)))


def reasons(expression: str, field: str, classifiers: list[str]) -> list[str]:
    """Return the reasons why nothing was accepted, in sentences; the first one is general."""
    found = [about_classifiers(classifiers)]
    if expression:
        found.append(f"License-Expression says {quoted(expression)}, which is not a known SPDX expression.")
    if field:
        found.append(f"The License field says {quoted(field)}, which is not a known SPDX expression.")
    return found


def about_classifiers(classifiers: list[str]) -> str:
    """Describe the problem with the classifiers."""
    if not classifiers:
        return "No classifier names a licence."
    if len(classifiers) > 1:
        listed = " and ".join(quoted(classifier) for classifier in classifiers)
        return f"The classifiers {listed} are listed side by side: does one of them apply, or all?"
    if classifiers[0] in FAMILIES:
        return f"The classifier {quoted(classifiers[0])} covers several licences."
    return f"The classifier {quoted(classifiers[0])} is not known."


def licence_names(classifiers: list[str]) -> list[str]:
    """Return the last part of each licence classifier, without those that only name an approving body."""
    parts = [classifier.split(" :: ") for classifier in classifiers if classifier.startswith("License :: ")]
    names = [part[-1].strip() for part in parts]
    return sorted({name for name in names if name not in ("OSI Approved", "DFSG approved")})


def spdx_expression(text: str) -> str:
    """Return the expression in SPDX's own spelling; empty if the text is not an expression."""
    if len(text) > 500:
        return ""
    words = [spelled(word) for word in re.findall(r"[()]|[^\s()]+", text)]
    # The kind of each word: L for a licence, X for an exception, or itself. A valid expression shrinks to one L.
    shape = " ".join(kind(word) for word in words)
    for _ in words:
        shape = re.sub(r"L WITH X|L (?:AND|OR) L(?! WITH)|\( L \)", "L", shape)
    return " ".join(words).replace("( ", "(").replace(" )", ")") if shape == "L" else ""


def spelled(word: str) -> str:
    """Return a word of an expression in SPDX's spelling; deprecated GNU ids become their replacements."""
    if word.upper() in ("AND", "OR", "WITH"):
        return word.upper()
    if old := re.fullmatch(r"((?:A|L)?GPL-\d\.\d)(\+?)", word, re.IGNORECASE):
        word = f"{old[1]}{'-or-later' if old[2] else '-only'}"
    known = SPDX_IDS.get(word.removesuffix("+").lower())
    return known + "+" * word.endswith("+") if known else EXCEPTION_IDS.get(word.lower(), word)


def kind(word: str) -> str:
    """Return the kind of a word in an expression."""
    if word in EXCEPTIONS:
        return "X"
    if word.removesuffix("+") in LICENCES or re.fullmatch(r"LicenseRef-[A-Za-z0-9.-]+", word):
        return "L"
    return word if word in ("(", ")", "AND", "OR", "WITH") else "?"


def disagreement(spdx: str, source: str, classifiers: list[str]) -> str:
    """Describe a classifier that contradicts the expression, in a sentence; empty if none does."""
    licences = [word for word in re.findall(r"[^\s()]+", spdx) if kind(word) == "L"]
    for classifier in classifiers:
        # The empty prefix of an unknown classifier matches everything: an unknown classifier contradicts nothing.
        prefixes = FAMILIES.get(classifier) or (CLASSIFIERS.get(classifier, ""),)
        if not any(licence.startswith(prefixes) for licence in licences):
            return f"{source} says {spdx}, a classifier says {quoted(classifier)}."
    return ""


def quoted(text: str) -> str:
    """Return text in quotation marks, on one line, at most 60 characters of it."""
    line = " ".join(text.split())
    return f"“{line if len(line) <= 60 else line[:57] + '…'}”"
