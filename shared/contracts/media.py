"""Images, PDF and plain text as the Messages API takes them: types, signatures, sizes, and what they cost in tokens.

Limits and formulas are those of the API's documentation: "Vision" and "PDF support".
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from shared.errors import InvalidInput, TooLarge

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
PDF = "application/pdf"
TEXT = "text/plain"
FILE_TYPES = (*IMAGE_TYPES, PDF, TEXT)

MAX_IMAGE_BYTES = 5 << 20
"""Of an image in base64."""
MAX_REQUEST_BYTES = 32 << 20
MAX_IMAGES = 600
MAX_PIXELS = 8000
"""Per side."""
MANY_IMAGES = 20
MAX_PIXELS_OF_MANY = 2000
"""Per side, if a request has more than MANY_IMAGES."""
MAX_PAGES = 600

PATCH = 28
MOST_IMAGE_TOKENS = 4784
"""Larger images are scaled down. Models before Opus 4.7 scale them to 1,568 tokens."""
PAGE_TOKENS = 3000 + 1568
"""Up to 3,000 for the text of a page, and the picture of it."""
UNKNOWN_PAGES = 10
"""Pages that are assumed of a document that the API fetches."""

SIGNATURES = {
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    # Writers may put up to 1,024 bytes before the header.
    PDF: re.compile(rb".{0,1024}?%PDF-", re.DOTALL),
}
PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
# The dictionary of an object stream, and the beginning of any stream. Both are found in one pass.
STREAM = re.compile(rb"/ObjStm\b|\bstream\r?\n")
ENCRYPTED = re.compile(rb"/Encrypt\s+\d+\s+\d+\s+R|/Encrypt\s*<<")
# Bounds for hostile files. Writers put at most some hundred objects into a stream.
MOST_STREAMS = 4096
MOST_UNPACKED = 64 << 20
LARGEST_STREAM = 1 << 20
LARGEST_PACKED = 256 << 10
LONGEST_DICTIONARY = 1024


@dataclass(frozen=True, slots=True)
class Media:
    """The facts of a file.

    Attributes:
        width, height: of an image, in pixels; None if its header cannot be read.
        pages: of a PDF; None if they cannot be counted.
    """

    media_type: str
    size: int
    width: int | None = None
    height: int | None = None
    pages: int | None = None

    @property
    def is_image(self) -> bool:
        return self.media_type in IMAGE_TYPES

    @property
    def tokens(self) -> int:
        """The estimated tokens, on the high side."""
        if self.is_image:
            return image_tokens(self.width, self.height)
        return (self.pages or UNKNOWN_PAGES) * PAGE_TOKENS if self.media_type == PDF else math.ceil(self.size / 3)


def image_tokens(width: int | None, height: int | None) -> int:
    """Return the tokens of an image: one for each patch of 28 × 28 pixels."""
    if not width or not height:
        return MOST_IMAGE_TOKENS
    return min(MOST_IMAGE_TOKENS, math.ceil(width / PATCH) * math.ceil(height / PATCH))


def decode(data: str, *, where: str) -> bytes:
    """Return the bytes of standard base64.

    Raises:
        InvalidInput: it is not.
    """
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(
            f"{where}: the data is not valid base64 ({error}). Send standard base64 with padding, without line breaks "
            "and without `data:`.",
            path=where,
        ) from None


def inspect(data: bytes, media_type: str | None, *, where: str) -> Media:
    """Return the facts of a file, whose content must match its type.

    Args:
        media_type: the declared type; None: it is recognised.
        where: its place or name, for errors.

    Raises:
        InvalidInput: the type is not accepted, or the content is of another type.
        TooLarge: it exceeds a limit of the API.
    """
    declared = _recognised(data) if media_type is None else media_type.partition(";")[0].strip().lower()
    if declared is None:
        raise InvalidInput(f"{where}: its type is not recognised. Accepted are {', '.join(FILE_TYPES)}.", path=where)
    if declared not in FILE_TYPES:
        raise InvalidInput(
            f"{where}: the media type {declared[:100]!r} is not accepted; accepted are {', '.join(FILE_TYPES)}.",
            path=where,
        )
    if not data:
        raise InvalidInput(f"{where}: it is empty.", path=where)
    if not _has_type(data, declared):
        found = _recognised(data) or "none of the accepted types"
        raise InvalidInput(
            f"{where}: its media type is {declared}, but its content is {found}. Send the type of the content.",
            path=where,
        )
    if declared in IMAGE_TYPES:
        _check_size(data, where)
    media = _facts(data, declared)
    _check_limits(media, data, where)
    return media


def check_together(media: list[Media], *, what: str) -> None:
    """Check the limits of all files of one request to the API.

    Raises:
        TooLarge: there are too many, or they are too large.
    """
    size = sum(math.ceil(each.size / 3) * 4 for each in media)
    images = [each for each in media if each.is_image]
    pages = sum(each.pages or 0 for each in media)
    if size > MAX_REQUEST_BYTES:
        raise TooLarge(
            f"The files of {what} have {size:,} bytes in base64, and a request to the API has at most "
            f"{MAX_REQUEST_BYTES:,}. Send fewer or smaller files, or links (`https://…`)."
        )
    if len(images) > MAX_IMAGES:
        raise TooLarge(f"{what} has {len(images)} images, and a request to the API has at most {MAX_IMAGES}.")
    largest = max((max(each.width or 0, each.height or 0) for each in images), default=0)
    if len(images) > MANY_IMAGES and largest > MAX_PIXELS_OF_MANY:
        raise TooLarge(
            f"{what} has {len(images)} images, one with a side of {largest} pixels: with more than {MANY_IMAGES} "
            f"images, each side has at most {MAX_PIXELS_OF_MANY}. Scale the images down."
        )
    if pages > MAX_PAGES:
        raise TooLarge(f"The PDFs of {what} have {pages} pages, and a request to the API has at most {MAX_PAGES}.")


def _recognised(data: bytes) -> str | None:
    # A text may be about PDF.
    likely = PDF if data.lstrip().startswith(b"%PDF-") else TEXT
    return next((each for each in (*IMAGE_TYPES, likely, PDF) if _has_type(data, each)), None)


def _has_type(data: bytes, media_type: str) -> bool:
    if media_type != TEXT:
        return SIGNATURES[media_type].match(data) is not None
    try:
        return "\x00" not in data.decode("utf-8")
    except UnicodeDecodeError:
        return False


def _facts(data: bytes, media_type: str) -> Media:
    if media_type == PDF:
        return Media(media_type, len(data), pages=_pages(data))
    width, height = _dimensions(data, media_type) or (None, None)
    return Media(media_type, len(data), width, height)


def _check_size(data: bytes, where: str) -> None:
    size = math.ceil(len(data) / 3) * 4
    if size > MAX_IMAGE_BYTES:
        raise TooLarge(
            f"{where}: the image has {size:,} bytes in base64, and the API takes {MAX_IMAGE_BYTES:,}. Scale it down: "
            "the model sees at most 2,576 pixels a side."
        )


def _check_limits(media: Media, data: bytes, where: str) -> None:
    if media.is_image and max(media.width or 0, media.height or 0) > MAX_PIXELS:
        raise TooLarge(
            f"{where}: the image has {media.width} × {media.height} pixels, and the API takes {MAX_PIXELS} a side. "
            "Scale it down."
        )
    if media.media_type == PDF:
        if (media.pages or 0) > MAX_PAGES:
            raise TooLarge(f"{where}: the PDF has {media.pages} pages, and the API takes {MAX_PAGES}. Split it.")
        if ENCRYPTED.search(data[-4096:]):
            raise InvalidInput(
                f"{where}: the PDF is encrypted, which the API refuses. Remove its password.", path=where
            )


def _dimensions(data: bytes, media_type: str) -> tuple[int, int] | None:
    """Return width and height from an image's header; None if it is cut off."""
    try:
        match media_type:
            case "image/png":
                width, height = struct.unpack_from(">II", data, 16)
            case "image/gif":
                width, height = struct.unpack_from("<HH", data, 6)
            case "image/webp":
                return _webp(data)
            case "image/jpeg":
                return _jpeg(data)
            case _:
                return None
    except struct.error:
        return None
    return width, height


def _webp(data: bytes) -> tuple[int, int] | None:
    match data[12:16]:
        case b"VP8X":
            return tuple(int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))  # type: ignore[return-value]
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _pages(data: bytes) -> int | None:
    """Return the number of page objects, also of those in compressed object streams; None if there are none."""
    return sum(sum(1 for _ in PAGE.finditer(part)) for part in chain([data], _object_streams(data))) or None


def _object_streams(data: bytes) -> Iterator[bytes]:
    """Yield the contents of the compressed object streams, within the bounds for hostile files."""
    room = MOST_UNPACKED
    for begin in islice(_beginnings(data), MOST_STREAMS):
        try:
            part = zlib.decompressobj().decompress(data[begin : begin + LARGEST_PACKED], min(room, LARGEST_STREAM))
        except zlib.error:
            continue
        yield part
        room -= len(part)
        if room <= 0:
            return


def _beginnings(data: bytes) -> Iterator[int]:
    """Yield where the contents of object streams begin."""
    described = -LONGEST_DICTIONARY
    for found in STREAM.finditer(data):
        if found[0] == b"/ObjStm":
            described = found.end()
        elif found.start() - described < LONGEST_DICTIONARY:
            described = -LONGEST_DICTIONARY
            yield found.end()
