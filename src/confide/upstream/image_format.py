"""What an image must be before any decoder sees it: strict base64, one of four formats, bounded when decoded.

Proved on return of `check_image`: the bytes are of the stated format, they declare no more than `max_pixels`, the data
of a PNG inflates to no more than its pixels need, and a JPEG has no more scans than real ones have. Not proved: that
the image decodes. The engine says so, with 400.

Why so much: decoders allocate what a header declares and inflate before they compare. Measured on the embedded engine,
35 bytes of GIF took 2.4 GB and 15 s, and 1.5 MB of PNG, declared as 8 × 8 pixels, 1.7 GB.
"""

import binascii
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping

from confide.errors import ConfideError, InvalidRequest

MAX_IMAGE_BYTES = 10 * 1024 * 1024
MAX_PIXELS = 32 * 1024 * 1024  # above what a phone's camera makes; 96 MiB as RGB
MAX_PNG_CHUNKS = 16_384  # 10 MiB in the smallest chunks that encoders write
MAX_JPEG_SEGMENTS = 2_048  # before the frame header; fill bytes count
MAX_JPEG_SCANS = 200  # a progressive JPEG has about ten, and each costs a pass over all pixels
PIECE_BYTES = 16 * 1024  # of deflated data, which inflates to 17 MB at most

ACCEPTED = "image/png, image/jpeg, image/webp or image/gif"
MISNAMED = {"image/jpg": "image/jpeg"}  # no registered type, but what many clients write
DATA_URL = re.compile(r"data:(?P<type>[^;,]{1,64});base64,", re.IGNORECASE)

START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # ITU-T T.81 B.1.1.3: these three are tables
START_OF_SCAN = b"\xff\xda"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
PNG_MOST_BYTES_PER_PIXEL = 8  # RGBA of 16 bits
PNG_MOST_BYTES_PER_ROW = 4  # filter bytes and padding; interlaced, there are up to twice as many rows
DAMAGED = "the image is damaged"


class ImageRefused(ConfideError):
    """This image is not taken. The message quotes neither the URL nor the image."""


def check_data_url(url: str, *, param: str, max_bytes: int = MAX_IMAGE_BYTES, max_pixels: int = MAX_PIXELS) -> None:
    """Check a `data:` URL of an image part (wire contract 2.3). Raises InvalidRequest naming `param`."""
    try:
        read_data_url(url, max_bytes=max_bytes, max_pixels=max_pixels)
    except ImageRefused as error:
        raise InvalidRequest(error.message, param=param) from error


def read_data_url(url: str, *, max_bytes: int, max_pixels: int) -> tuple[str, bytes]:
    """The media type and the bytes of a base64 `data:` URL. Raises ImageRefused."""
    head = DATA_URL.match(url)
    if head is None:
        raise ImageRefused("expected a URL that begins with data:image/<type>;base64,")
    media_type = accepted_type(head["type"])
    if (len(url) - head.end()) * 3 // 4 > max_bytes + 2:  # before a copy is made; the exact check is below
        raise too_large(max_bytes)
    data = strict_base64(url[head.end() :])
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    check_image(data, media_type, max_pixels=max_pixels)
    return media_type, data


def data_url(media_type: str, data: bytes) -> str:
    """The `data:` URL of an image."""
    return f"data:{media_type};base64,{binascii.b2a_base64(data, newline=False).decode('ascii')}"


def strict_base64(text: str) -> bytes:
    """RFC 4648 section 4: padded, no other characters, no white space. Raises ImageRefused."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # binascii.Error is one; characters outside ASCII give the plain one
        pass
    raise ImageRefused("the image is not valid base64; use the standard alphabet, padded, without white space")


def accepted_type(text: str) -> str:
    """The media type of a Content-Type value or a data URL, in lower case. Raises ImageRefused for any other."""
    media_type = text.partition(";")[0].strip().lower()
    media_type = MISNAMED.get(media_type, media_type)
    if media_type not in SIZE_READERS:
        raise ImageRefused(f"this type of image is not taken; send {ACCEPTED}")
    return media_type


def check_image(data: bytes, media_type: str, *, max_pixels: int) -> None:
    """Hold the bytes against what they are said to be and against the bounds. Raises ImageRefused."""
    found = type_of(data)
    if found != media_type:
        raise ImageRefused(f"the image is said to be {media_type}, its bytes are {found or 'of none of the formats'}")
    if pixels_of(data, media_type) > max_pixels:
        raise ImageRefused(f"the image is too large; send at most {max_pixels} pixels")
    if media_type == "image/png":
        check_png_length(data)
    if media_type == "image/jpeg" and data.count(START_OF_SCAN) > MAX_JPEG_SCANS:
        raise ImageRefused(f"the image has more than {MAX_JPEG_SCANS} scans; save it as a baseline JPEG")


def type_of(data: bytes) -> str | None:
    """The media type that the first bytes belong to, None for none of ours."""
    if data.startswith(PNG_SIGNATURE):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def pixels_of(data: bytes, media_type: str) -> int:
    """Width times height as the header declares them. Raises ImageRefused where it declares none."""
    try:
        width, height = SIZE_READERS[media_type](data)
    except (struct.error, IndexError):
        width = height = 0
    if not width or not height:
        raise ImageRefused(DAMAGED)
    return width * height


def png_size(data: bytes) -> tuple[int, int]:
    """IHDR, which must come first (PNG specification 5.6, 11.2.1)."""
    kind, width, height = struct.unpack_from(">4s2I", data, len(PNG_SIGNATURE) + 4)
    return (width, height) if kind == b"IHDR" else (0, 0)


def gif_size(data: bytes) -> tuple[int, int]:
    """The logical screen (GIF89a specification 18); a frame may not leave it."""
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def jpeg_size(data: bytes) -> tuple[int, int]:
    """The first frame header, found segment by segment (ITU-T T.81 B.1.1, B.2.2)."""
    at = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        prefix, marker, length = struct.unpack_from(">BBH", data, at)
        if prefix != 0xFF:
            break
        if marker in START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 1 if marker == 0xFF else 2 + length  # a fill byte, or a segment to skip
    return 0, 0


def webp_size(data: bytes) -> tuple[int, int]:
    """The canvas, or the one frame (WebP container specification; RFC 6386 9.1 for `VP8 `)."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return (width & 0x3FFF, height & 0x3FFF) if data[12:16] == b"VP8 " else (0, 0)


SIZE_READERS: Mapping[str, Callable[[bytes], tuple[int, int]]] = {
    "image/png": png_size,
    "image/jpeg": jpeg_size,
    "image/gif": gif_size,
    "image/webp": webp_size,
}


def check_png_length(data: bytes) -> None:
    """Inflate, and stop where there is more than the pixels need. Raises ImageRefused."""
    width, height = png_size(data)
    most = width * height * PNG_MOST_BYTES_PER_PIXEL + height * PNG_MOST_BYTES_PER_ROW + PIECE_BYTES
    inflating, inflated = zlib.decompressobj(), 0
    try:
        for piece in png_pieces(data):
            inflated += len(inflating.decompress(piece))
            if inflated > most or inflating.eof:
                break
    except (zlib.error, struct.error):
        inflated = 0
    if not inflated:
        raise ImageRefused(DAMAGED)
    if inflated > most:
        raise ImageRefused("the image holds far more data than its pixels need; save it again as a plain PNG")


def png_pieces(data: bytes) -> Iterator[memoryview]:
    """The deflated data in pieces (PNG specification 5.3). Raises ImageRefused, struct.error where a chunk is cut.

    An unknown critical chunk ends it: Apple's CgBI makes decoders read the same data in another way than we do.
    """
    view, at = memoryview(data), len(PNG_SIGNATURE)
    for _ in range(MAX_PNG_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = view[at + 8 : at + 8 + length]
        if len(body) < length or (kind[:1].isupper() and kind not in PNG_CRITICAL):
            raise ImageRefused(DAMAGED)
        if kind == b"IEND":
            return
        if kind == b"IDAT":
            yield from (body[start : start + PIECE_BYTES] for start in range(0, length, PIECE_BYTES))
        at += 12 + length
    raise ImageRefused(DAMAGED)


def too_large(max_bytes: int) -> ImageRefused:
    return ImageRefused(f"the image is too large; send at most {max_bytes} bytes")
