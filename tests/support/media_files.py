"""Small images and PDF, made here, so that tests need no binary files."""

from __future__ import annotations

import base64
import struct
import zlib

GIF = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")


def png(width: int = 2, height: int = 1, *, padding: int = 0) -> bytes:
    """Return a grey PNG. `padding` bytes that do not shrink are added to it."""
    rows = (b"\x00" + b"\x80" * width) * height
    noise = bytes((n * 167 + (n >> 8) * 59) % 256 for n in range(padding))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tEXt", b"n\x00" + noise), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def jpeg_header(width: int, height: int) -> bytes:
    """Return the beginning of a JPEG, as far as its dimensions."""
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\x00"
    return b"\xff\xd8\xff\xe0\x00\x04\x00\x00\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame


def pdf(*pages: str, packed: bool = False) -> bytes:
    """Return a PDF with a page for each text. `packed`: its pages are in a compressed object stream."""
    kids = " ".join(f"{3 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>",
    ]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET"
        page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {4 + 2 * number} 0 R "
        page += "/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>"
        objects += [page, f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream"]
    if packed:
        inner = zlib.compress("\n".join(each for each in objects if "/Page" in each).encode())
        head = f"9 0 obj\n<< /Type /ObjStm /N 1 /First 4 /Filter /FlateDecode /Length {len(inner)} >>\nstream\n"
        return b"%PDF-1.5\n" + head.encode() + inner + b"\nendstream\nendobj\n%%EOF\n"
    body, offsets = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    end = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\n"
    )
    return body + f"{end}startxref\n{len(body)}\n%%EOF\n".encode()


def b64(data: bytes) -> str:
    """Return standard base64."""
    return base64.b64encode(data).decode()
