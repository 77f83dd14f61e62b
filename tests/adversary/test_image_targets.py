"""The attacker chooses image URLs, owns name servers and web servers, and holds certificates for their own names.

They want the enclave to open a connection into its own network: loopback, private and link-local addresses, the
platform's metadata service. They may hide the address in a name, in another spelling, inside an IPv6 address, in a
redirect, or change it between two look-ups. The twin of each refusal is the honest fetch that passes beside it.
"""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InvalidRequest
from confide.upstream.image_format import data_url
from confide.upstream.image_target import IpAddress, is_public, resolve
from confide.upstream.images import ImageFetcher
from image_server import HOST, Authority, ImageServer, Resolver, asking, image_response, told, urls_of
from random_projector import png
from scripted import response

PNG = png()
NOT_OURS = [
    "0.0.0.0",
    "10.0.0.1",
    "100.100.100.200",  # a cloud's metadata service, in the carrier's range
    "127.0.0.1",
    "127.8.8.8",
    "168.63.129.16",  # Azure's host, public by number
    "169.254.169.254",  # the metadata service of most clouds
    "172.16.0.1",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::7f00:1",
    "2001:0:7f00:1::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
    "fc00::1",
    "fd00:ec2::254",  # a cloud's metadata service
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
PUBLIC = ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
PRIVATE_NETWORKS = ["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


async def refused(fetcher: ImageFetcher, url: str) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        await fetcher.inline(asking(url))
    assert caught.value.status == 400
    assert caught.value.param == "messages[0].content[1]"
    return caught.value


@pytest.mark.parametrize("address", NOT_OURS)
async def test_a_name_that_resolves_into_our_network_is_refused_without_a_connection(
    authority: Authority, address: str
) -> None:
    async with ImageServer(authority, image_response(PNG)) as server:
        resolver = Resolver(address)
        error = await refused(server.fetcher(resolve=resolver, may_connect=is_public), server.url())
        assert resolver.asked == [(HOST, server.port)]
        assert server.accepted == 0
        assert address not in told(error)
        assert HOST not in told(error)


async def test_twin_the_same_name_is_fetched_where_its_address_may_be_connected_to(authority: Authority) -> None:
    async with ImageServer(authority, image_response(PNG)) as server:
        assert urls_of(await server.fetcher().inline(asking(server.url()))) == [data_url("image/png", PNG)]


@pytest.mark.parametrize("address", PUBLIC)
def test_twin_public_addresses_may_be_connected_to(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(network=st.sampled_from(PRIVATE_NETWORKS), offset=st.integers(min_value=0, max_value=2**16 - 1))
def test_no_form_of_a_private_address_is_public(network: str, offset: int) -> None:
    inner = int(ipaddress.IPv4Network(network).network_address) + offset
    forms: list[IpAddress] = [
        ipaddress.IPv4Address(inner),
        ipaddress.IPv6Address(inner),
        ipaddress.IPv6Address(0xFFFF << 32 | inner),
        ipaddress.IPv6Address(0xFFFF << 48 | inner),
        ipaddress.IPv6Address(0x64FF9B << 96 | inner),
        ipaddress.IPv6Address(0x64FF9B0001 << 80 | inner),
        ipaddress.IPv6Address(0x2002 << 112 | inner << 80 | 1),
        ipaddress.IPv6Address(0x2001 << 112 | inner << 64),
        ipaddress.IPv6Address(0x2001 << 112 | 0x08080808 << 64 | inner ^ 0xFFFF_FFFF),
    ]
    assert not any(is_public(form) for form in forms)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "%31%32%37.0.0.1",
        "127。0。0。1",
        "１２７.0.0.1",
    ],
)
async def test_no_spelling_of_loopback_is_connected_to(authority: Authority, host: str) -> None:
    async with ImageServer(authority, image_response(PNG)) as server:
        await refused(server.fetcher(resolve=resolve, may_connect=is_public), server.url(host=host))
        assert server.accepted == 0


async def test_twin_a_name_resolved_by_the_platform_is_fetched(authority: Authority) -> None:
    async with ImageServer(authority, image_response(PNG)) as server:

        def is_loopback(address: IpAddress) -> bool:
            return address.is_loopback

        async def resolve_v4(host: str, port: int) -> list[object]:
            return [address for address in await resolve(host, port) if address.version == 4]

        fetcher = server.fetcher(resolve=resolve_v4, may_connect=is_loopback)
        inlined = await fetcher.inline(asking(server.url(host="localhost")))
        assert urls_of(inlined) == [data_url("image/png", PNG)]


@pytest.mark.parametrize("addresses", [("127.0.0.1", "10.0.0.1"), ("127.0.0.1", "::1"), ()])
async def test_one_address_that_may_not_be_connected_to_refuses_the_name(
    authority: Authority, addresses: tuple[str, ...]
) -> None:
    async with ImageServer(authority, image_response(PNG)) as server:
        await refused(server.fetcher(resolve=Resolver(*addresses)), server.url())
        assert server.accepted == 0


async def test_a_name_that_changes_between_look_ups_is_looked_up_once(authority: Authority) -> None:
    async with ImageServer(authority, image_response(PNG)) as checked, ImageServer(authority, [response(b"")]) as other:
        resolver = Resolver("127.0.0.1")

        async def rebinding(host: str, port: int) -> object:
            first = list(await resolver(host, port))
            resolver.addresses = [ipaddress.ip_address("127.0.0.2")]
            return first

        fetcher = checked.fetcher(resolve=rebinding)
        assert urls_of(await fetcher.inline(asking(checked.url()))) == [data_url("image/png", PNG)]
        assert len(resolver.asked) == 1
        assert other.accepted == 0


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"303 See Other", b"307 Temporary", b"308 Permanent"])
async def test_a_redirect_into_our_network_is_not_followed(authority: Authority, status: bytes) -> None:
    async with ImageServer(authority, image_response(PNG)) as inner:
        location = b"Location: " + inner.url("/secret", host="localhost").encode()
        async with ImageServer(authority, [response(b"", location, status=status)]) as server:
            fetcher = server.fetcher(ports=(server.port, inner.port))
            error = await refused(fetcher, server.url())
            assert "redirect" in error.message
            assert "localhost" not in told(error)
            assert len(server.requests) == 1
            assert inner.accepted == 0


async def test_a_certificate_of_another_name_ends_it_before_the_request(authority: Authority) -> None:
    async with ImageServer(authority, image_response(PNG), names=["attacker.test"]) as server:
        error = await refused(server.fetcher(), server.url())
        assert "certificate" in error.message
        assert "attacker" not in told(error)
        assert server.requests == []


async def test_a_certificate_of_an_unknown_authority_ends_it_before_the_request(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = Authority(tmp_path_factory.mktemp("stranger"))
    async with ImageServer(stranger, image_response(PNG)) as server, ImageServer(authority, []) as trusted:
        await refused(trusted.fetcher(ports=(server.port,)), server.url())
        assert server.requests == []


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("http://images.test/a.png", "https: only"),
        ("HTTP://images.test/a.png", "https: only"),
        ("https://user@images.test:{port}/", "user name"),
        ("https://user:password@images.test:{port}/", "user name"),
        ("https://images.test\\@attacker.test:{port}/", "user name"),
        ("https://images.test/", "port"),
        ("https://images.test:22/", "port"),
        ("https://images.test:0/", "port"),
        ("https://images.test:{port}\t/", "not a URL"),
        ("https://images.test:{port}x/", "not a URL"),
        ("https://images test:{port}/", "not a URL"),
        ("https://.images.test:{port}/", "not a URL"),
        ("https://images..test:{port}/", "not a URL"),
        ("https://images.test.:{port}/", "not a URL"),
        ("https://:{port}/", "not a URL"),
        ("https://?{port}", "not a URL"),
        ("https://[::1:{port}/", "not a URL"),
        ("https://[fe80::1%25eth0]:{port}/", "not a URL"),
        ("https://a%00b:{port}/", "not a URL"),
        ("https://images.test:{port}/" + "a" * 70_000, "not a URL"),
    ],
)
async def test_a_url_of_another_shape_is_refused_without_a_look_up(authority: Authority, url: str, match: str) -> None:
    async with ImageServer(authority, image_response(PNG)) as server:
        resolver = Resolver("127.0.0.1")
        error = await refused(server.fetcher(resolve=resolver), url.format(port=server.port))
        assert match in error.message
        assert "images" + ".test" not in told(error)
        assert resolver.asked == []
        assert server.accepted == 0


@pytest.mark.parametrize("host", ["xn--zz--", "a" * 63 + ".test", "under_score.test", "-dash.test"])
async def test_an_odd_name_is_the_callers_fault_whatever_tls_makes_of_it(authority: Authority, host: str) -> None:
    async with ImageServer(authority, image_response(PNG)) as server:
        await refused(server.fetcher(), server.url(host=host))
        assert server.requests == []
