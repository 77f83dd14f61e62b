"""Where an image may be fetched from: an https name all of whose addresses are public.

A caller chooses the URL and may own the name server, so the host means nothing until it is resolved, and everything
after that goes to the address that was checked. What this does not stop: a public address of our own machine. Callers
reach that without our help.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

import httpx2

from confide.upstream.image_format import ImageRefused

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[IpAddress]]]
MayConnect = Callable[[IpAddress], bool]

HTTPS_PORT = 443
HOST_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291 2.4: the only range handed out; fec0::/10 is not in it
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052; the local-use range 64:ff9b:1::/48 stays refused
# Azure's host answers its guests on this public address, with their credentials.
PLATFORM_SERVICES = frozenset({ipaddress.IPv4Address("168.63.129.16")})
NOT_PUBLIC = "the image's host has no public address, or one that is not; send the image as a data: URL"


@dataclass(frozen=True, slots=True)
class Target:
    """What to ask, and of whom. `host`: lower-case A-labels, or an IP address without brackets."""

    url: httpx2.URL
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        return self.url.netloc.decode("ascii")

    def at(self, address: IpAddress) -> httpx2.URL:
        """The same URL with the address in place of the name: nothing resolves it again."""
        return self.url.copy_with(host=str(address))


def parse_target(text: str, ports: Collection[int]) -> Target:
    """Take a URL apart with the parser that will send it. Raises ImageRefused, which does not quote it."""
    url = parsed(text)
    host = "" if url is None else url.raw_host.decode("ascii")
    if url is None or not is_host(host):
        raise ImageRefused("this is not a URL that can be fetched; send the image as a data: URL")
    if url.scheme != "https":
        raise ImageRefused("an image is fetched over https: only; use https:, or send it as a data: URL")
    if url.userinfo:
        raise ImageRefused("a user name or password in an image URL is not taken; send the image as a data: URL")
    port = HTTPS_PORT if url.port is None else url.port
    if port not in ports:
        raise ImageRefused("images are not fetched from this port; use the default one, or send a data: URL")
    return Target(url, host, port)


def parsed(text: str) -> httpx2.URL | None:
    """The URL, None where it is none."""
    try:
        return httpx2.URL(text)
    except httpx2.InvalidURL:
        return None


def is_host(host: str) -> bool:
    """Whether this is a name as DNS has them, or an address."""
    return HOST_NAME.fullmatch(host) is not None or is_address(host)


def is_address(host: str) -> bool:
    """Whether this is an IP address in its usual form, without a zone: those are of this machine's links."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host


async def resolve(host: str, port: int) -> Sequence[IpAddress]:
    """The addresses of a name, best first. Raises OSError, UnicodeError where it is no name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(address[0]) for *_, address in found]


async def checked_address(target: Target, resolve: Resolve, may_connect: MayConnect) -> IpAddress:
    """The address to connect to: the first, if all of them may be connected to. Raises ImageRefused.

    One message for "no such name" and "not a public one": the names of our own network are not the caller's to probe.
    """
    try:
        addresses = await resolve(target.host, target.port)
    except (OSError, UnicodeError):
        addresses = []
    if not addresses or not all(may_connect(address) for address in addresses):
        raise ImageRefused(NOT_PUBLIC)
    return addresses[0]


def is_public(address: IpAddress) -> bool:
    """Whether every address that a packet to this one may arrive at is a public one."""
    return all(is_public_itself(end) for end in destinations(address))


def destinations(address: IpAddress) -> tuple[IpAddress, ...]:
    """The address itself, or the IPv4 ones inside it that a translator or a tunnel goes on to."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    if address in NAT64:
        return (ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF),)
    return address.teredo or tuple(filter(None, (address.ipv4_mapped, address.sixtofour))) or (address,)


def is_public_itself(address: IpAddress) -> bool:
    """By the IANA registries, as `ipaddress` has them, which calls some multicast and reserved ranges global."""
    if isinstance(address, ipaddress.IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    special = address.is_multicast or address.is_reserved or address in PLATFORM_SERVICES
    return address.is_global and not special
