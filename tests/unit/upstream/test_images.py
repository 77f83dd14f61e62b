"""Images become checked data URLs, or the caller is told which part to change."""

import asyncio
import base64
import binascii
import contextlib
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InvalidRequest
from confide.upstream.image_format import MAX_JPEG_SCANS, MAX_PIXELS, check_data_url, data_url, pixels_of
from confide.upstream.images import ImageFetcher, ImageLimits
from image_server import HOST, Authority, ImageServer, Resolver, asking, gif, image_response, told, urls_of
from random_projector import png, png_chunk
from scripted import HANG, LAST_CHUNK, REPEAT, RESET, Script, chunk, chunked_head, response

PARAM = "messages[0].content[1]"
PNG = png()
TYPE = b"Content-Type: image/png"
MAGIC = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF89a": "image/gif",
    b"RIFF1234WEBPVP8": "image/webp",
}


def jpeg(width: int = 3, height: int = 2, *, before: bytes = b"", scans: int = 1) -> bytes:
    """The frame of a JPEG: enough for what is checked, not for a decoder."""
    application = b"\xff\xe0" + struct.pack(">H", 4) + b"ab"
    frame = b"\xff\xc2" + struct.pack(">HBHHB", 8, 8, height, width, 0)
    return b"\xff\xd8" + application + before + frame + b"\xff\xda\x00\x02" * scans + b"\xff\xd9"


def webp(kind: bytes, body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


WEBP_CANVAS = webp(b"VP8X", bytes(4) + (6).to_bytes(3, "little") + (4).to_bytes(3, "little"))
WEBP_LOSSLESS = webp(b"VP8L", b"\x2f" + struct.pack("<I", 6 | 4 << 14))
WEBP_LOSSY = webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 7, 5 | 0x4000))


def png_with(header: bytes, *chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(chunks) + png_chunk(b"IEND", b"")


def small_header(width: int = 8, height: int = 8) -> bytes:
    return struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def zeros(mebibytes: int) -> bytes:
    deflating = zlib.compressobj(9)
    return b"".join(deflating.compress(bytes(1 << 20)) for _ in range(mebibytes)) + deflating.flush()


def refusal(url: str, **bounds: int) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        check_data_url(url, param=PARAM, **bounds)
    return refused.value


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


# Data URLs


@pytest.mark.parametrize(
    ("media_type", "data", "pixels"),
    [
        ("image/png", PNG, 64),
        ("image/png", png(300, 200), 60_000),
        ("image/jpeg", jpeg(), 6),
        ("image/jpeg", jpeg(before=b"\xff\xff\xfe\x00\x05abc"), 6),
        ("image/gif", gif(20, 10), 200),
        ("image/webp", WEBP_CANVAS, 35),
        ("image/webp", WEBP_LOSSLESS, 35),
        ("image/webp", WEBP_LOSSY, 35),
    ],
    ids=["png", "larger png", "jpeg", "jpeg with fill byte", "gif", "webp canvas", "webp lossless", "webp lossy"],
)
def test_an_image_of_each_format_is_taken_and_its_size_is_read(media_type: str, data: bytes, pixels: int) -> None:
    check_data_url(data_url(media_type, data), param=PARAM)
    assert pixels_of(data, media_type) == pixels


@given(magic=st.sampled_from([b"", *MAGIC]), data=st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(magic: bytes, data: bytes) -> None:
    for media_type in MAGIC.values():
        with contextlib.suppress(InvalidRequest):
            check_data_url(data_url(media_type, magic + data), param=PARAM)


@given(cut=st.integers(min_value=8, max_value=len(PNG) - 17))  # 17: the last byte of the data, its CRC, IEND
def test_a_png_cut_anywhere_before_the_end_of_its_data_is_refused(cut: int) -> None:
    assert "damaged" in refusal(data_url("image/png", PNG[:cut])).message


@pytest.mark.parametrize(
    "payload",
    [
        base64.b64encode(PNG).decode()[:-1],
        base64.b64encode(PNG).decode() + "=",
        base64.b64encode(PNG).decode() + "\n",
        base64.b64encode(PNG).decode().replace("A", "-", 1),
        "ü" + base64.b64encode(PNG).decode(),
        "=",
    ],
    ids=["short", "excess padding", "line feed", "URL alphabet", "not ASCII", "padding alone"],
)
def test_base64_that_is_not_strict_is_refused(payload: str) -> None:
    refused = refusal(f"data:image/png;base64,{payload}")
    assert refused.param == PARAM
    assert "base64" in refused.message


@pytest.mark.parametrize("media_type", ["image/svg+xml", "image/bmp", "image/tiff", "image/x-icon"])
def test_a_type_outside_the_list_is_refused_with_the_list(media_type: str) -> None:
    refused = refusal(data_url(media_type, PNG))
    assert refused.message.endswith("send image/png, image/jpeg, image/webp or image/gif")


def test_the_type_must_be_that_of_the_bytes() -> None:
    assert refusal(data_url("image/jpeg", PNG)).message == "the image is said to be image/jpeg, its bytes are image/png"
    assert "none of the formats" in refusal(data_url("image/png", b"BM" + bytes(60))).message


def test_the_common_misspelling_of_jpeg_is_taken() -> None:
    check_data_url(data_url("image/jpg", jpeg()), param=PARAM)


def test_the_bound_on_bytes_is_exact() -> None:
    url = data_url("image/png", PNG)
    check_data_url(url, param=PARAM, max_bytes=len(PNG))
    assert "too large" in refusal(url, max_bytes=len(PNG) - 1).message


@pytest.mark.parametrize(
    ("media_type", "data"),
    [
        ("image/gif", gif(20_000, 20_000)),
        ("image/png", png_with(small_header(25_000, 25_000), png_chunk(b"IDAT", zlib.compress(b"\0")))),
        ("image/jpeg", jpeg(65_500, 65_500)),
        ("image/webp", webp(b"VP8X", bytes(4) + b"\xff" * 6)),
    ],
)
def test_a_header_that_declares_too_many_pixels_is_refused(media_type: str, data: bytes) -> None:
    assert f"at most {MAX_PIXELS} pixels" in refusal(data_url(media_type, data)).message


def test_a_png_that_inflates_far_beyond_its_pixels_is_refused() -> None:
    bomb = png_with(small_header(), png_chunk(b"IDAT", zeros(8)))
    assert "far more data" in refusal(data_url("image/png", bomb)).message


def test_a_png_that_inflates_beyond_its_pixels_in_many_chunks_is_refused() -> None:
    deflated = zeros(8)
    chunks = [png_chunk(b"IDAT", deflated[start : start + 512]) for start in range(0, len(deflated), 512)]
    assert "far more data" in refusal(data_url("image/png", png_with(small_header(), *chunks))).message


@pytest.mark.parametrize(
    "data",
    [
        PNG[:8] + png_chunk(b"CgBI", bytes(4)) + PNG[8:],
        png_with(small_header(), png_chunk(b"CgBI", bytes(4)), png_chunk(b"IDAT", zlib.compress(bytes(200)))),
        png_with(small_header(), png_chunk(b"IDAT", b"not deflated")),
        png_with(small_header(0, 8), png_chunk(b"IDAT", zlib.compress(bytes(200)))),
        png_with(small_header(), b"\0\0\0\0tEXt\0\0\0\0" * 20_000),
    ],
    ids=["another chunk first", "unknown critical chunk", "not deflated", "no width", "endless chunks"],
)
def test_a_png_that_is_not_laid_out_as_one_is_refused(data: bytes) -> None:
    assert "damaged" in refusal(data_url("image/png", data)).message


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff" * 100_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 100_000,
        b"\xff\xd8\xff\xe0\xff\xffab",
        jpeg(0, 5),
    ],
    ids=["fill bytes alone", "segments alone", "cut in a segment", "no width"],
)
def test_a_jpeg_without_a_frame_is_refused(data: bytes) -> None:
    assert "damaged" in refusal(data_url("image/jpeg", data)).message


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    check_data_url(data_url("image/jpeg", jpeg(scans=MAX_JPEG_SCANS)), param=PARAM)
    assert "scans" in refusal(data_url("image/jpeg", jpeg(scans=MAX_JPEG_SCANS + 1))).message


# Requests without remote images


async def test_a_request_without_images_comes_back_as_it_is() -> None:
    request = asking()
    assert await ImageFetcher(ImageLimits()).inline(request) is request


async def test_a_request_with_good_data_urls_comes_back_as_it_is() -> None:
    request = asking(data_url("image/png", PNG), data_url("image/gif", gif()))
    assert await ImageFetcher(ImageLimits()).inline(request) is request


async def test_a_data_url_is_given_to_the_engine_in_lower_case() -> None:
    request = asking("DATA:image/PNG;BASE64," + base64.b64encode(PNG).decode())
    assert urls_of(await ImageFetcher(ImageLimits()).inline(request)) == [data_url("image/png", PNG)]


async def test_a_broken_data_url_is_refused_naming_its_part() -> None:
    request = asking(data_url("image/png", PNG), "data:image/png;base64,!!!!")
    with pytest.raises(InvalidRequest) as refused:
        await ImageFetcher(ImageLimits()).inline(request)
    assert refused.value.param == "messages[0].content[2]"


async def test_more_images_than_allowed_are_refused_naming_the_first_beyond() -> None:
    urls = [data_url("image/png", PNG)] * 9
    await ImageFetcher(ImageLimits()).inline(asking(*urls[:8]))
    with pytest.raises(InvalidRequest, match="at most 8 images") as refused:
        await ImageFetcher(ImageLimits()).inline(asking(*urls))
    assert refused.value.param == "messages[0].content[9]"


async def test_the_pixels_of_one_request_are_counted_together(authority: Authority) -> None:
    image = data_url("image/png", PNG)
    async with ImageServer(authority, image_response(PNG)) as server:
        fetcher = server.fetcher(max_total_pixels=3 * 64)
        await fetcher.inline(asking(image, server.url(), image))
        for urls, param in (([image] * 4, 4), ([image] * 3 + [server.url()], 4)):
            with pytest.raises(InvalidRequest, match="too large together") as refused:
                await fetcher.inline(asking(*urls))
            assert refused.value.param == f"messages[0].content[{param}]"


async def test_remote_images_are_refused_when_switched_off() -> None:
    with pytest.raises(InvalidRequest, match="send the image as a data: URL") as refused:
        await ImageFetcher(ImageLimits()).inline(asking("https://images.test/cat.png"))
    assert refused.value.param == PARAM


# Remote images


async def fetch_refused(server: ImageServer, fetcher: ImageFetcher, url: str | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        await fetcher.inline(asking(url or server.url()))
    assert refused.value.param == PARAM
    said = told(refused.value)
    assert HOST not in said
    assert str(server.port) not in said
    await server.until_open(0)
    return refused.value


async def test_a_remote_image_becomes_a_data_url_and_the_request_is_not_changed(authority: Authority) -> None:
    async with ImageServer(authority, image_response(PNG)) as server:
        request = asking(server.url("/cat.png?size=2#ignored"))
        inlined = await server.fetcher().inline(request)
        await server.until_open(0)
        assert urls_of(inlined) == [data_url("image/png", PNG)]
        assert urls_of(request) == [server.url("/cat.png?size=2#ignored")]
        assert server.requests[0].target == b"/cat.png?size=2"


async def test_what_a_server_is_told(authority: Authority) -> None:
    async with ImageServer(authority, image_response(PNG, "image/png", b"Set-Cookie: a=b")) as server:
        fetcher = server.fetcher()
        for _ in range(2):
            await fetcher.inline(asking(server.url()))
        expected = {
            b"host": f"{HOST}:{server.port}".encode(),
            b"accept": b"image/png, image/jpeg, image/webp, image/gif",
            b"accept-encoding": b"identity",
            b"user-agent": b"confide",
        }
        assert [dict(seen.headers) for seen in server.requests] == [expected, expected]
        assert {seen.method for seen in server.requests} == {b"GET"}


async def test_a_name_is_resolved_once_and_no_connection_is_kept(authority: Authority) -> None:
    async with ImageServer(authority, image_response(PNG)) as server:
        resolver = Resolver("127.0.0.1")
        fetcher = server.fetcher(resolve=resolver)
        await fetcher.inline(asking(server.url()))
        await fetcher.inline(asking(server.url()))
        assert resolver.asked == [(HOST, server.port)] * 2
        assert server.accepted == 2


async def test_remote_and_sent_images_keep_their_places(authority: Authority) -> None:
    sent = data_url("image/png", png(2, 2))
    async with ImageServer(authority, image_response(PNG)) as server:
        inlined = await server.fetcher().inline(asking(sent, server.url("/1"), sent, server.url("/2")))
        assert urls_of(inlined) == [sent, data_url("image/png", PNG)] * 2


async def test_a_broken_sent_image_is_refused_before_anything_is_fetched(authority: Authority) -> None:
    async with ImageServer(authority, image_response(PNG)) as server:
        with pytest.raises(InvalidRequest, match="base64") as refused:
            await server.fetcher().inline(asking(server.url(), "data:image/png;base64,!!!!"))
        assert refused.value.param == "messages[0].content[2]"
        assert server.accepted == 0


async def test_four_are_fetched_at_a_time(authority: Authority) -> None:
    gate = asyncio.Event()
    async with ImageServer(authority, [gate, *image_response(PNG)]) as server:
        resolver = Resolver("127.0.0.1")
        task = asyncio.create_task(server.fetcher(resolve=resolver).inline(asking(*[server.url()] * 8)))
        await server.asked(4)
        assert len(resolver.asked) == 4
        gate.set()
        assert urls_of(await task) == [data_url("image/png", PNG)] * 8


async def test_the_first_failure_ends_the_other_fetches(authority: Authority) -> None:
    answers: list[Script] = [[HANG], [response(b"", status=b"404 Not Found")]]
    async with ImageServer(authority, *answers) as server:
        with pytest.raises(InvalidRequest, match="404"):
            await server.fetcher().inline(asking(server.url("/1"), server.url("/2")))
        await server.until_open(0)


async def test_a_caller_that_leaves_ends_its_fetch(authority: Authority) -> None:
    async with ImageServer(authority, [HANG]) as server:
        task = asyncio.create_task(server.fetcher().inline(asking(server.url())))
        await server.asked(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.left(1)


async def test_a_proxy_of_the_environment_is_not_used(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with ImageServer(authority, image_response(PNG)) as server:
        assert urls_of(await server.fetcher().inline(asking(server.url()))) == [data_url("image/png", PNG)]


@pytest.mark.parametrize(
    ("script", "match"),
    [
        (image_response(PNG, "text/html"), "this type of image is not taken"),
        (image_response(PNG, "image/jpeg"), "its bytes are image/png"),
        (image_response(b"<html>" * 20), "none of the formats"),
        (image_response(gif(20_000, 20_000), "image/gif"), "pixels"),
        ([response(PNG)], "this type of image is not taken"),
        (image_response(PNG, "image/png", b"Content-Encoding: gzip"), "compressed"),
        (image_response(b"", "image/png"), "none of the formats"),
        ([response(PNG, TYPE, status=b"404 Not Found")], "answered 404"),
        ([response(PNG, TYPE, status=b"500 Internal Server Error")], "answered 500"),
        ([response(PNG, TYPE, status=b"206 Partial Content")], "answered 206"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\nContent-Type: image/png\r\n\r\nabc", RESET], "broke off"),
        ([b"SSH-2.0-OpenSSH_9.6\r\n\r\n"], "broke off"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"], "broke off"),
        ([RESET], "broke off"),
    ],
)
async def test_an_answer_that_is_no_image_is_the_callers_to_fix(
    authority: Authority, script: Script, match: str
) -> None:
    async with ImageServer(authority, script) as server:
        assert match in (await fetch_refused(server, server.fetcher())).message


async def test_a_length_beyond_the_bound_is_refused_before_the_body(authority: Authority) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 10485761\r\n\r\n"
    async with ImageServer(authority, [head, HANG]) as server:
        assert "too large" in (await fetch_refused(server, server.fetcher())).message


async def test_a_body_without_a_length_is_counted(authority: Authority) -> None:
    endless: Script = [chunked_head(TYPE), chunk(PNG), REPEAT, chunk(bytes(16 * 1024))]
    async with ImageServer(authority, endless) as server:
        refused = await fetch_refused(server, server.fetcher(max_image_bytes=256 * 1024))
        assert refused.message == "the image is too large; send at most 262144 bytes"
        await server.left(1)


async def test_a_body_without_a_length_within_the_bound_is_taken(authority: Authority) -> None:
    halves: Script = [chunked_head(TYPE), chunk(PNG[:20]), chunk(PNG[20:]), LAST_CHUNK]
    async with ImageServer(authority, halves) as server:
        assert urls_of(await server.fetcher().inline(asking(server.url()))) == [data_url("image/png", PNG)]


async def test_the_images_of_one_request_share_a_bound(authority: Authority) -> None:
    async with ImageServer(authority, image_response(PNG)) as server:
        fetcher = server.fetcher(max_total_bytes=len(PNG) * 2)
        await fetcher.inline(asking(*[server.url()] * 2))
        with pytest.raises(InvalidRequest, match="too large together"):
            await fetcher.inline(asking(*[server.url()] * 3))


@pytest.mark.parametrize(
    "script",
    [
        [HANG],
        [b"HTTP/1.1 200 OK\r\n", HANG],
        [chunked_head(TYPE), chunk(PNG), HANG],
        [chunked_head(TYPE), REPEAT, chunk(b"x")],
    ],
    ids=["silence", "half a head", "half a body", "a drip"],
)
async def test_the_deadline_holds_whatever_trickles_in(authority: Authority, script: Script) -> None:
    async with ImageServer(authority, script) as server:
        refused = await fetch_refused(server, server.fetcher(total_s=0.25))
        assert refused.message == "the image did not arrive in time; send it as a data: URL"
        await server.left(1)


async def test_the_deadline_holds_while_a_name_is_resolved(authority: Authority) -> None:
    async def never(host: str, port: int) -> list[object]:
        await asyncio.get_running_loop().create_future()
        return []

    async with ImageServer(authority, image_response(PNG)) as server:
        refused = await fetch_refused(server, server.fetcher(resolve=never, total_s=0.05))
        assert "in time" in refused.message


async def test_a_port_where_nobody_listens_is_the_callers_to_fix(authority: Authority) -> None:
    async with ImageServer(authority, image_response(PNG)) as server:
        fetcher = server.fetcher()
        url = server.url()
    with pytest.raises(InvalidRequest, match="cannot be reached"):
        await fetcher.inline(asking(url))


def test_the_data_url_is_the_standard_one() -> None:
    head, _, payload = data_url("image/gif", gif()).partition(",")
    assert (head, binascii.a2b_base64(payload)) == ("data:image/gif;base64", gif())
