"""What a value may be, by the name of its kind, and how each is called for the person who writes the file."""

from typing import Annotated

import msgspec

DESCRIBED = "docs/configuration.md describes every setting."

HOST = r"^[^\s/\x00-\x1f]+\Z"
FILE_PATH = r"^[^\x00]+\Z"
STORE_URL = r"^sqlite:///[^\x00-\x1f]+\Z"
MODEL_ID = r"^[^\s\x00-\x1f]+\Z"
DECIMAL = r"^[0-9]+(\.[0-9]+)?\Z"
DOMAIN = r"^(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*\Z"
COMMIT = r"^([0-9a-f]{40}|[0-9a-f]{64})\Z"
LABEL = r"^[!-~]+\Z"
IMAGE_DIGEST = r"^sha256:[0-9a-f]{64}\Z"
GPU_URL = r"^https?://[!-~]+\Z"
VENDOR_URL = r"^(https://[!-~]+|http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?/?)\Z"
ARGUMENT = r"^[^\x00]*\Z"
UPSTREAM_NAME = r"^[a-z0-9][a-z0-9._-]*\Z"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*\Z"
BASE_URL = r"^(https?://[^\s/?#@\x00-\x1f]+[^\s?#@\x00-\x1f]*|unix:/[^\x00?#]+)\Z"
HEX_64 = r"^[0-9a-f]{64}\Z"
NONCE = "${nonce}"  # where the 64 hex digits of a request's nonce go

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]  # what TOML and a database hold
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]  # a day; keeps `inf` out, which no timer takes
Host = Annotated[str, msgspec.Meta(min_length=1, max_length=253, pattern=HOST)]
FilePath = Annotated[str, msgspec.Meta(min_length=1, pattern=FILE_PATH)]
StoreUrl = Annotated[str, msgspec.Meta(pattern=STORE_URL)]
ModelId = Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=MODEL_ID)]
Decimal = Annotated[str, msgspec.Meta(pattern=DECIMAL)]
Domain = Annotated[str, msgspec.Meta(pattern=DOMAIN)]
Commit = Annotated[str, msgspec.Meta(pattern=COMMIT)]
ImageDigest = Annotated[str, msgspec.Meta(pattern=IMAGE_DIGEST)]
Label = Annotated[str, msgspec.Meta(min_length=1, max_length=2000, pattern=LABEL)]
GpuUrl = Annotated[str, msgspec.Meta(max_length=2000, pattern=GPU_URL)]
VendorUrl = Annotated[str, msgspec.Meta(max_length=2000, pattern=VENDOR_URL)]
Argument = Annotated[str, msgspec.Meta(max_length=4096, pattern=ARGUMENT)]
UpstreamName = Annotated[str, msgspec.Meta(max_length=64, pattern=UPSTREAM_NAME)]
Variable = Annotated[str, msgspec.Meta(max_length=200, pattern=VARIABLE)]
BaseUrl = Annotated[str, msgspec.Meta(max_length=2000, pattern=BASE_URL)]
Hex64 = Annotated[str, msgspec.Meta(pattern=HEX_64)]

# What msgspec says about types and patterns, in words for the person who writes the file.
WORDS = {
    "`object`": "a table",
    "`array`": "an array",
    "`str`": "text",
    "`int`": "a whole number",
    "`float`": "a number",
    "`bool`": "true or false",
    "`null`": "nothing",
    f" matching regex {HOST!r}": " that is a host name or an address",
    f" matching regex {FILE_PATH!r}": " that is a path",
    f" matching regex {STORE_URL!r}": " of the form sqlite:///FILE",
    f" matching regex {MODEL_ID!r}": " without spaces",
    f" matching regex {DECIMAL!r}": ' that is a decimal number, such as "0.0000002"',
    f" matching regex {DOMAIN!r}": " that is a host name in lower case",
    f" matching regex {COMMIT!r}": " that is a full commit, 40 or 64 hex digits in lower case",
    f" matching regex {LABEL!r}": " in ASCII without spaces",
    f" matching regex {GPU_URL!r}": " of the form http://… or https://… without spaces",
    f" matching regex {VENDOR_URL!r}": " that is an https URL, or http://127.0.0.1 with a port",
    f" matching regex {ARGUMENT!r}": " without NUL",
    f" matching regex {UPSTREAM_NAME!r}": " of letters a to z, digits and . _ -",
    f" matching regex {VARIABLE!r}": " that is the name of a variable",
    f" matching regex {BASE_URL!r}": " of the form http://…, https://… or unix:/PATH, without credentials and query",
    f" matching regex {HEX_64!r}": " of 64 hex digits in lower case",
    f" matching regex {IMAGE_DIGEST!r}": " that is sha256: and 64 hex digits in lower case",
}
