"""Exit 0 when the service on this machine answers `GET /health/ready` with 200. For the image's HEALTHCHECK.

Nothing secret is sent and nothing is concluded from the answer but that the process lives, so the certificate of a TLS
service, which may be its own, is not looked at.
"""

import http.client
import os
import ssl
import sys

TIMEOUT_S = 8.0


def status(port: int) -> int:
    """The HTTP status over TLS, or over plain HTTP where nobody speaks TLS. Raises OSError or HTTPException."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        return get(http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context))
    except ssl.SSLError:
        return get(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S))


def get(connection: http.client.HTTPConnection) -> int:
    """The status of `/health/ready`."""
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status
    finally:
        connection.close()


def main() -> int:
    """0 when ready, 1 otherwise, with the reason on standard error."""
    try:
        got = status(int(os.environ.get("CONFIDE_SERVER_PORT", "8080")))
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"not ready: {error}", file=sys.stderr)
        return 1
    if got != http.client.OK:
        print(f"not ready: status {got}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
