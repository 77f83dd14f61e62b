"""The images of a chat request, made safe for an engine: checked, and fetched by us where they are remote.

On return of `inline` the request holds no remote URL, so that no engine ever opens one (the embedded one would), and
every image has passed `check_image`. What fails is the caller's to fix: 400 naming the part, never 5xx (wire contract
2.3). A message quotes no URL and no host.

A fetch is one GET over TLS to an address that was checked, with the name of the URL in SNI, in the Host header and in
the certificate. The bare transport is used instead of a client: it follows no redirect, keeps no cookie, reads no proxy
from the environment and logs no URL.
"""

import asyncio
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import httpx2
import msgspec

from confide.errors import InvalidRequest
from confide.protocol.chat import ChatRequest
from confide.protocol.chat_messages import ImagePart, Message, UserMessage
from confide.upstream.image_format import (
    MAX_IMAGE_BYTES,
    MAX_PIXELS,
    ImageRefused,
    accepted_type,
    check_data_url,
    check_image,
    data_url,
    pixels_of,
    read_data_url,
    too_large,
)
from confide.upstream.image_target import (
    HTTPS_PORT,
    IpAddress,
    MayConnect,
    Resolve,
    Target,
    checked_address,
    is_public,
    parse_target,
    resolve,
)

__all__ = ["ImageFetcher", "ImageLimits", "check_data_url", "is_public"]

SWITCHED_OFF = "remote images are switched off here; send the image as a data: URL"
TOO_SLOW = "the image did not arrive in time; send it as a data: URL"
NOT_REACHED = "the image's server cannot be reached, or its certificate does not hold; send a data: URL"
BROKEN_OFF = "the image's server broke off; try again, or send the image as a data: URL"


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What the images of one request may cost. `total_s` is for all its images together, look-ups included.

    `max_total_bytes` counts what is fetched: 24 MiB are 32 MiB of base64, the most that a body could have held.
    """

    remote_images: bool = False
    max_images: int = 8
    max_image_bytes: int = MAX_IMAGE_BYTES
    max_total_bytes: int = 24 * 1024 * 1024
    max_pixels: int = MAX_PIXELS  # of one image
    max_total_pixels: int = 2 * MAX_PIXELS  # 192 MiB as RGB: an engine unpacks all before it uses the first
    concurrent_fetches: int = 4
    connect_s: float = 3.0
    total_s: float = 10.0
    ports: tuple[int, ...] = (HTTPS_PORT,)


@dataclass(frozen=True, slots=True, eq=False)  # by identity: the part holds megabytes
class Place:
    """An image part and where it stands in the request."""

    message: int
    part: int
    image: ImagePart

    @property
    def param(self) -> str:
        return f"messages[{self.message}].content[{self.part}]"

    @property
    def url(self) -> str:
        return self.image.image_url.url


@dataclass(slots=True)
class Budget:
    """What the images of one request may still cost, and until when (loop time)."""

    bytes_left: int
    pixels_left: int
    deadline: float
    fetches: asyncio.Semaphore

    def take(self, *, fetched_bytes: int = 0, pixels: int = 0) -> None:
        """Raises ImageRefused when it is used up."""
        self.bytes_left -= fetched_bytes
        self.pixels_left -= pixels
        if self.bytes_left < 0 or self.pixels_left < 0:
            raise ImageRefused("the images of this request are too large together; send fewer or smaller ones")


class ImageFetcher:
    """Makes the images of requests safe for an engine. One for the whole service; holds no connection."""

    def __init__(
        self,
        limits: ImageLimits,
        *,
        may_connect: MayConnect = is_public,
        ssl_context: ssl.SSLContext | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        """`ssl_context` None means the roots of the platform, whatever SSL_CERT_FILE says."""
        self._limits = limits
        self._may_connect = may_connect
        if ssl_context is None and limits.remote_images:
            ssl_context = httpx2.create_ssl_context(trust_env=False)
        self._ssl = ssl_context
        self._resolve = resolve

    async def inline(self, request: ChatRequest) -> ChatRequest:
        """The request with every image as a checked `data:` URL; the given one is not changed.

        Raises InvalidRequest naming the part. Nothing is fetched before every URL and data URL has been checked.
        """
        places = list(images_of(request))
        if len(places) > self._limits.max_images:
            beyond = places[self._limits.max_images]
            raise InvalidRequest(f"send at most {self._limits.max_images} images in a request", param=beyond.param)
        remote = [place for place in places if place.image.image_url.is_remote]
        targets = [self._target(place) for place in remote]
        budget = self._budget()
        urls = {place: await self._checked(place, budget) for place in places if place not in remote}
        urls.update(zip(remote, await self._fetch_all(remote, targets, budget), strict=True))
        return with_urls(request, urls)

    def _budget(self) -> Budget:
        limits = self._limits
        deadline = asyncio.get_running_loop().time() + limits.total_s
        fetches = asyncio.Semaphore(limits.concurrent_fetches)
        return Budget(limits.max_total_bytes, limits.max_total_pixels, deadline, fetches)

    def _target(self, place: Place) -> Target:
        if not self._limits.remote_images:
            raise InvalidRequest(SWITCHED_OFF, param=place.param)
        try:
            return parse_target(place.url, self._limits.ports)
        except ImageRefused as error:
            raise InvalidRequest(error.message, param=place.param) from error

    async def _checked(self, place: Place, budget: Budget) -> str:
        """The data URL as engines know it: scheme and type in lower case."""
        try:
            media_type, data = await asyncio.to_thread(  # inflating a large PNG takes a while
                read_data_url,
                place.url,
                max_bytes=self._limits.max_image_bytes,
                max_pixels=self._limits.max_pixels,
            )
            budget.take(pixels=pixels_of(data, media_type))
        except ImageRefused as error:
            raise InvalidRequest(error.message, param=place.param) from error
        head = f"data:{media_type};base64,"
        return place.url if place.url.startswith(head) else head + place.url.partition(",")[2]

    async def _fetch_all(self, places: Sequence[Place], targets: Sequence[Target], budget: Budget) -> list[str]:
        """The data URLs, in order. The first failure ends all fetches."""
        refusals: list[BaseException] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._fetch(place, target, budget))
                    for place, target in zip(places, targets, strict=True)
                ]
        except* InvalidRequest as group_of_refusals:
            refusals.extend(group_of_refusals.exceptions)
        if refusals:
            raise refusals[0]
        return [task.result() for task in tasks]

    async def _fetch(self, place: Place, target: Target, budget: Budget) -> str:
        """One image. Every way to fail becomes InvalidRequest here; what the network said stays here."""
        try:
            async with asyncio.timeout_at(budget.deadline), budget.fetches:
                address = await checked_address(target, self._resolve, self._may_connect)
                return await self._get(target, address, budget)
        except ImageRefused as error:
            reason = error.message
        except (TimeoutError, httpx2.TimeoutException):
            reason = TOO_SLOW
        except httpx2.ConnectError:
            reason = NOT_REACHED
        except httpx2.TransportError:
            reason = BROKEN_OFF
        # Outside the handlers: the context of an exception is logged with it, and those quote names and addresses.
        raise InvalidRequest(reason, param=place.param)

    async def _get(self, target: Target, address: IpAddress, budget: Budget) -> str:
        """Ask `address` for the image. Raises ImageRefused, httpx2.TransportError.

        A transport of its own for each fetch: pooled connections are found by address, and one that was opened under
        another name would be used again without a look at its certificate.
        """
        assert self._ssl is not None
        request = httpx2.Request(
            "GET",
            target.at(address),
            headers={
                "Host": target.authority,
                "Accept": "image/png, image/jpeg, image/webp, image/gif",
                "Accept-Encoding": "identity",
                "User-Agent": "confide",
            },
            extensions={"sni_hostname": target.host, "timeout": {"connect": self._limits.connect_s}},
        )
        async with httpx2.AsyncHTTPTransport(verify=self._ssl, trust_env=False) as transport:
            response = await transport.handle_async_request(request)
            async with aclosing(response):
                media_type = self._check_head(response)
                data = await self._read(response, budget)
        await asyncio.to_thread(check_image, data, media_type, max_pixels=self._limits.max_pixels)
        budget.take(pixels=pixels_of(data, media_type))
        return data_url(media_type, data)

    def _check_head(self, response: httpx2.Response) -> str:
        """The media type of a response whose body is worth reading. Raises ImageRefused."""
        if response.is_redirect:
            raise ImageRefused("the image's server redirects, which is not followed; send the final URL or a data: URL")
        if response.status_code != 200:
            raise ImageRefused(f"the image's server answered {response.status_code}; send the image as a data: URL")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ImageRefused("the image's server sent it compressed, unasked; send the image as a data: URL")
        if int(response.headers.get("Content-Length", "0")) > self._limits.max_image_bytes:
            raise too_large(self._limits.max_image_bytes)
        return accepted_type(response.headers.get("Content-Type", ""))

    async def _read(self, response: httpx2.Response, budget: Budget) -> bytes:
        """The body, counted as it comes: a length that was stated may lie or be missing. Raises ImageRefused."""
        data = bytearray()
        async for piece in response.aiter_raw():
            budget.take(fetched_bytes=len(piece))
            data += piece
            if len(data) > self._limits.max_image_bytes:
                raise too_large(self._limits.max_image_bytes)
        return bytes(data)


def images_of(request: ChatRequest) -> Iterator[Place]:
    """Every image part, in order. Only user messages can hold one."""
    for index, message in enumerate(request.messages):
        if isinstance(message, UserMessage) and not isinstance(message.content, str):
            for number, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    yield Place(index, number, part)


def with_urls(request: ChatRequest, urls: Mapping[Place, str]) -> ChatRequest:
    """The request with these URLs in these places; the same object when there is nothing to change."""
    changed = {(place.message, place.part): url for place, url in urls.items() if url != place.url}
    if not changed:
        return request
    messages = tuple(message_with_urls(message, index, changed) for index, message in enumerate(request.messages))
    return msgspec.structs.replace(request, messages=messages)


def message_with_urls(message: Message, index: int, urls: Mapping[tuple[int, int], str]) -> Message:
    if not isinstance(message, UserMessage) or isinstance(message.content, str):
        return message
    parts = tuple(
        part_with_url(part, urls[index, number]) if isinstance(part, ImagePart) and (index, number) in urls else part
        for number, part in enumerate(message.content)
    )
    return msgspec.structs.replace(message, content=parts)


def part_with_url(part: ImagePart, url: str) -> ImagePart:
    return msgspec.structs.replace(part, image_url=msgspec.structs.replace(part.image_url, url=url))
