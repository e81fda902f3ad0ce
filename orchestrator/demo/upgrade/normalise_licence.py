"""Version 2 of the stored function `normalise_licence`: if the fields are ambiguous, it reads the licence.

A stored function is self-contained, so this is version 1 with `read_texts` and `read_words` added. It recognises
licences by their distinguishing phrases; it does not compare texts word by word.

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

# Patterns of phrases that no other licence has, in lower case with single spaces. All patterns of a tuple must match.
PHRASES = {
    "Apache-1.1": (r"apache software license,? version 1\.1",),
    "Apache-2.0": (r"apache license,? version 2\.0", r"apache\.org/licenses"),
    "Artistic-2.0": (r"the artistic license 2\.0",),
    "BSL-1.0": (r"boost software license - version 1\.0",),
    "CC0-1.0": (r"cc0 1\.0 universal",),
    "EPL-1.0": (r"eclipse public license - v 1\.0",),
    "EPL-2.0": (r"eclipse public license - v 2\.0",),
    "ISC": (
        r"distribute this software for any purpose with or without fee is hereby granted",
        r"provided that the above copyright notice",
    ),
    "MIT": (
        r"permission is hereby granted, free of charge, to any person obtaining a copy",
        r"without restriction, including without limitation the rights to use",
        r"this permission notice.{0,40} shall be included",
    ),
    "MPL-1.1": (r"mozilla public license,? version 1\.1",),
    "MPL-2.0": (r"mozilla public license,? v(ersion|\.) ?2\.0",),
    "NCSA": (r"university of illinois/ncsa open source license",),
    "PSF-2.0": (r"python software foundation license version 2",),
    "UPL-1.0": (r"the universal permissive license \(upl\), version 1\.0",),
    "Unlicense": (r"this is free and unencumbered software released into the public domain",),
    "WTFPL": (r"do what the fuck you want to public license",),
    "ZPL-2.1": (r"zope public license \(zpl\) version 2\.1",),
    "Zlib": (r"altered source versions must be plainly marked as such",),
}

# Common values of the License field. A bare family ("BSD", "GPL") is not among them, because it names no licence.
WORDS = {
    "Apache-2.0": r"(the )?apache( software)?( licen[cs]e)?,? ?(v|version )?2(\.0)?( licen[cs]e)?",
    "BSD-2-Clause": r"(the )?(simplified bsd|freebsd|bsd[- ]2[- ]clause|(2|two)[- ]clause bsd)( licen[cs]e)?",
    "BSD-3-Clause": r"(the )?((new|modified|revised) bsd|bsd[- ]3[- ]clause|(3|three)[- ]clause bsd)( licen[cs]e)?",
    "ISC": r"(the )?isc( licen[cs]e)?( \(iscl\))?",
    "MIT": r"(the )?(mit|expat)( licen[cs]e)?( \(mit\))?",
    "MPL-2.0": r"(mozilla public licen[cs]e|mpl),? ?(v|version )?2(\.0)?( \(mpl[ -]2\.0\))?",
    "PSF-2.0": r"psf(l| licen[cs]e)?|python software foundation( licen[cs]e)?( version 2)?",
    "Unlicense": r"(the )?unlicense",
    "ZPL-2.1": r"(zope public licen[cs]e|zpl) (v|version )?2\.1",
    "Zlib": r"zlib( licen[cs]e)?|zlib/libpng( licen[cs]e)?",
}
GNU = {"affero ": "AGPL", "lesser ": "LGPL", "library ": "LGPL", "": "GPL"}


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
        ValueError: neither the metadata nor the licence files identify the licence; the message quotes them.
    """
    classifiers = licence_names(licence_classifiers)
    spdx, source = declared(licence_expression, licence_field, classifiers, licence_texts)
    contradiction = disagreement(spdx, source, classifiers) or other_text(spdx, source, licence_texts)
    return {
        "name": name,
        "version": version,
        "spdx": spdx,
        "source": source,
        "disagreement": contradiction,
        "facts": facts,
    }


def declared(expression: str, field: str, classifiers: list[str], texts: list[str]) -> tuple[str, str]:
    """Return the SPDX expression and the name of its source."""
    if spdx := spdx_expression(expression):
        return spdx, "License-Expression"
    if spdx := spdx_expression(field):
        return spdx, "License field"
    if len(classifiers) == 1 and classifiers[0] in CLASSIFIERS:
        return CLASSIFIERS[classifiers[0]], "classifier"
    # The text is binding; some projects put all of it into the License field.
    if spdx := read_texts([*texts, field], dual="dual" in field.lower()):
        return spdx, "licence text"
    if spdx := read_words(field):
        return spdx, "licence words"
    raise ValueError(" ".join(reasons(expression, field, classifiers, texts)))


def read_texts(texts: list[str], dual: bool) -> str:
    """Return the licences in the texts.

    Several are joined with AND, the cautious reading, unless the metadata calls the licence dual.
    """
    found = {licence for text in texts for licence in recognised(" ".join(text.lower().split()))}
    return (" OR " if dual else " AND ").join(sorted(found))


def other_text(spdx: str, source: str, texts: list[str]) -> str:
    """Describe the contents of the licence files in a sentence, if no licence in the expression matches; else empty."""
    read = read_texts(texts, dual=False)
    if not read or set(read.split(" AND ")) & set(re.findall(r"[^\s()]+", spdx)):
        return ""
    return f"{source} says {spdx}, the licence files read like {read}."


def recognised(text: str) -> set[str]:
    """Return the licences whose distinguishing phrases are in a text of lower-case words with single spaces."""
    found = {licence for licence, phrases in PHRASES.items() if all(re.search(phrase, text) for phrase in phrases)}
    # MPL 2.0 and EPL 2.0 name the GNU licences as compatible ones.
    if not found & {"MPL-2.0", "EPL-2.0"}:
        found |= gnu_licence(text)
    return found | bsd_licence(text)


def bsd_licence(text: str) -> set[str]:
    """Return the BSD variant, determined from its clauses, if its whole list of conditions is present."""
    conditions = re.search(
        r"redistribution and use in source and binary forms.{0,3000}?this software is provided", text
    )
    if not conditions:
        return set()
    clauses = conditions[0]
    if "all advertising materials mentioning" in clauses:
        return {"BSD-4-Clause"}
    return {"BSD-3-Clause" if "endorse or promote" in clauses else "BSD-2-Clause"}


def gnu_licence(text: str) -> set[str]:
    """Return the GNU licence that a text is, or that its notice names, by the first mention with a version."""
    named = re.search(r"gnu (affero |lesser |library |)general public license.{0,80}?version (\d)(\.\d)?", text)
    if not named:
        return set()
    # Each licence's own text explains how to allow later versions; only a notice does allow them.
    whole = "everyone is permitted to copy and distribute verbatim copies" in text
    later = "any later version" in text and not whole
    return {f"{GNU[named[1]]}-{named[2]}{named[3] or '.0'}-{'or-later' if later else 'only'}"}


def read_words(field: str) -> str:
    """Return the licence that a License field of a few words means; empty if it is ambiguous."""
    words = " ".join(field.lower().split())
    found = [licence for licence, pattern in WORDS.items() if re.fullmatch(pattern, words)]
    if gnu := re.fullmatch(r"(?:gnu )?(a|l)?gpl[ -]?(?:v|version )?(\d)(\.\d)?(\+| or later)?", words):
        later = "or-later" if gnu[4] else "only"
        found.append(f"{(gnu[1] or '').upper()}GPL-{gnu[2]}{gnu[3] or '.0'}-{later}")
    return found[0] if found else ""


def reasons(expression: str, field: str, classifiers: list[str], texts: list[str]) -> list[str]:
    """Return the reasons why nothing was accepted, in sentences; the first one is general."""
    found = [about_classifiers(classifiers)]
    if expression:
        found.append(f"License-Expression says {quoted(expression)}, which leaves it open.")
    if field:
        found.append(f"The License field says {quoted(field)}, which leaves it open.")
    found.append("No licence file says more." if texts else "It ships no licence file.")
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
