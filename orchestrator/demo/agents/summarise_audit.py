"""The stored function `summarise_audit`: totals, conflicts, failures and the most surprising findings of an audit.

It runs in the sandbox: pure Python, no files, and only allowed imports.
"""

import collections

LISTED = 12
NOTE_LENGTH = 200
FINDING_LENGTH = 400

# Licences that require their text in every copy.
TEXT_REQUIRED = ("Apache-", "BSD-", "ISC", "MIT", "MPL-", "LGPL-", "GPL-", "AGPL-", "PSF-", "Python-")


def summarise_audit(results: list[dict[str, object]]) -> dict[str, object]:
    """Return the summary of an audit.

    Args:
        results: an entry for each distribution, `{"state": "succeeded", "output"}` or
            `{"state": "failed", "error": {"message"}, "input": {"name", "version"}}`.

    Returns:
        `{"title", "headline", "findings", "rows"}`: totals, sentences with the most surprising first, and one small
        row for each distribution.
    """
    judged = [entry["output"] for entry in results if isinstance(entry.get("output"), dict) and succeeded(entry)]
    failed = [entry for entry in results if not succeeded(entry)]
    rows = [judged_row(output) for output in judged] + [failed_row(entry) for entry in failed]
    rows.sort(key=lambda row: str(row["name"]).lower())
    return {
        "title": f"Licence audit of {len(rows)} Python distributions",
        "headline": headline(rows, judged),
        "findings": findings(rows, judged),
        "rows": rows,
    }


def succeeded(entry: dict[str, object]) -> bool:
    """Return whether the audit of a distribution reached a verdict."""
    return entry.get("state") == "succeeded"


def judged_row(output: object) -> dict[str, object]:
    """Return the row of a distribution with a verdict."""
    notes = [str(note) for note in items(output, "conflicts")]
    notes.append(text(output, "disagreement"))
    return {
        "name": text(output, "name"),
        "version": text(output, "version"),
        "licence": text(output, "spdx"),
        "category": text(output, "category"),
        "bytes": fact(output, "bytes"),
        "native": fact(output, "native_files"),
        "note": shortened(" ".join(note for note in notes if note), NOTE_LENGTH),
    }


def failed_row(entry: object) -> dict[str, object]:
    """Return the row of a distribution without a verdict."""
    asked = part(entry, "input")
    return {
        "name": text(asked, "name") or "?",
        "version": text(asked, "version"),
        "licence": "",
        "category": "failed",
        "bytes": 0,
        "native": 0,
        "note": shortened(reason(part(entry, "error")) or text(entry, "state"), NOTE_LENGTH),
    }


def reason(error: dict[str, object]) -> str:
    """Return the message of the first cause, without the name of the function that raised it."""
    cause = part(part(error, "cause"), "error") or error
    return text(cause, "message").split("ValueError: ")[-1]


def headline(rows: list[dict[str, object]], judged: list[object]) -> dict[str, object]:
    """Return the totals, which are small enough for a prompt."""
    licences = collections.Counter(text(output, "spdx") for output in judged)
    return {
        "distributions": len(rows),
        "failed": len(rows) - len(judged),
        "conflicts": sum(1 for output in judged if items(output, "conflicts")),
        "bytes": sum(fact(output, "bytes") for output in judged),
        "files": sum(fact(output, "files") for output in judged),
        "with_native_code": sum(1 for output in judged if fact(output, "native_files")),
        "categories": dict(collections.Counter(str(row["category"]) for row in rows).most_common()),
        "licences": dict(licences.most_common(LISTED)),
    }


def findings(rows: list[dict[str, object]], judged: list[object]) -> list[str]:
    """Return findings that are not obvious, the most important first."""
    found = [
        *conflicting(judged),
        *unjudged(rows),
        *disagreeing(judged),
        *without_text(judged),
        *missing_files(judged),
        *largest(judged),
        *native(judged),
        *most_requirements(judged),
    ]
    return [shortened(sentence, FINDING_LENGTH) for sentence in found]


def conflicting(judged: list[object]) -> list[str]:
    """Return one sentence for each licence that a permissive policy does not allow."""
    by_licence: dict[str, list[str]] = {}
    for output in judged:
        if items(output, "conflicts"):
            by_licence.setdefault(text(output, "spdx"), []).append(text(output, "name"))
    return [f"{licence} conflicts with a permissive policy: {listed(names)}." for licence, names in by_licence.items()]


def unjudged(rows: list[dict[str, object]]) -> list[str]:
    """Report the distributions whose licence could not be determined."""
    names = [str(row["name"]) for row in rows if row["category"] == "failed"]
    return [f"{count(names, 'distribution')} could not be judged: {listed(names)}."] if names else []


def disagreeing(judged: list[object]) -> list[str]:
    """Report the distributions whose metadata are contradictory."""
    return [
        f"The metadata of {text(output, 'name')} contradicts itself: {text(output, 'disagreement')}"
        for output in judged
        if text(output, "disagreement")
    ][:LISTED]


def without_text(judged: list[object]) -> list[str]:
    """Report the distributions without a licence file although the licence requires its text in every copy."""
    names = [
        text(output, "name")
        for output in judged
        if not fact(output, "licence_files") and text(output, "spdx").startswith(TEXT_REQUIRED)
    ]
    if not names:
        return []
    return [f"{count(names, 'distribution')} under licences that require a licence file ship none: {listed(names)}."]


def missing_files(judged: list[object]) -> list[str]:
    """Report the distributions whose record lists missing files."""
    names = [text(output, "name") for output in judged if fact(output, "missing_files")]
    total = sum(fact(output, "missing_files") for output in judged)
    return [f"{total} recorded files are missing on disk, in {listed(names)}."] if names else []


def largest(judged: list[object]) -> list[str]:
    """Report the three largest distributions."""
    total = sum(fact(output, "bytes") for output in judged)
    top = sorted(judged, key=lambda output: fact(output, "bytes"), reverse=True)[:3]
    share = sum(fact(output, "bytes") for output in top) * 100 // max(1, total)
    names = [f"{text(output, 'name')} ({fact(output, 'bytes') / 1e6:.1f} MB)" for output in top]
    return [f"{', '.join(names)} make up {share} % of {total / 1e6:.0f} MB."] if len(judged) > len(top) else []


def native(judged: list[object]) -> list[str]:
    """Report the number of distributions with machine code, and the one with the most native files."""
    with_code = [output for output in judged if fact(output, "native_files")]
    if not with_code:
        return []
    most = max(with_code, key=lambda output: fact(output, "native_files"))
    return [
        f"{len(with_code)} of {len(judged)} contain native code; {text(most, 'name')} alone has "
        f"{fact(most, 'native_files')} native files."
    ]


def most_requirements(judged: list[object]) -> list[str]:
    """Report the distribution with the most requirements, extras included."""
    if not judged:
        return []
    most = max(judged, key=lambda output: fact(output, "requirements"))
    alone = sum(1 for output in judged if not fact(output, "requirements"))
    return [
        f"{text(most, 'name')} names {fact(most, 'requirements')} requirements, counting its extras; "
        f"{alone} distributions name none."
    ]


def listed(names: list[str]) -> str:
    """Return the first names, and the number of the others."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def count(names: list[str], noun: str) -> str:
    """Return a number with its noun."""
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"


def shortened(sentence: str, length: int) -> str:
    """Shorten a sentence to at most that many characters."""
    return sentence if len(sentence) <= length else sentence[: length - 1] + "…"


def part(value: object, key: str) -> dict[str, object]:
    """Return an object inside an object; an empty one if it is missing."""
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def items(value: object, key: str) -> list[object]:
    """Return a list inside an object; an empty one if it is missing."""
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, list) else []


def text(value: object, key: str) -> str:
    """Return the text inside an object; empty if it is missing."""
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, str) else ""


def fact(output: object, key: str) -> int:
    """Return a number among the facts of a result; 0 if it is missing."""
    number = part(output, "facts").get(key)
    return number if isinstance(number, int) else 0
