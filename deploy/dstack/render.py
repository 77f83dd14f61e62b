"""Make the `app-compose.json` that dstack measures, and print its hash, the compose hash.

    python3 deploy/dstack/render.py --image registry.example.com/confide --digest sha256:... \\
        --key-sha256 ... > app-compose.json

Whoever has the source, the image's digest and the digest of the key gets the same bytes, so the same hash, without
asking the deployer. It needs nothing but Python.
"""

import argparse
import hashlib
import json
import re
import string
import sys
from pathlib import Path

COMPOSE = Path(__file__).parent / "docker-compose.yaml"
IMAGE = re.compile(r"[a-z0-9][a-z0-9.:/_-]*[a-z0-9]")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def compose_file(image: str, digest: str, key_sha256: str) -> str:
    """The compose file with its values, and no variable left for anybody to fill. Raises ValueError."""
    for name, value, form in (("image", image, IMAGE), ("digest", digest, DIGEST), ("key-sha256", key_sha256, SHA256)):
        if form.fullmatch(value) is None:
            raise ValueError(f"--{name}: got {value!r}, expected {form.pattern}")
    if "@" in image or ":" in image.rpartition("/")[2]:
        raise ValueError("--image: a repository without tag or digest is expected")
    # What is said about the file is not part of it.
    lines = [line for line in COMPOSE.read_text().splitlines() if not line.startswith("#")]
    filled = string.Template("\n".join(lines) + "\n").substitute(
        IMAGE=image, IMAGE_DIGEST=digest, KEY_SHA256=key_sha256
    )
    if "$" in filled:
        raise ValueError("a variable is left, which would be filled from what nobody measures")
    return filled


def app_compose(compose: str, name: str) -> str:
    """The document that dstack hashes byte for byte: keys from the KMS, no variables, no script, no public log."""
    document = {
        "manifest_version": 2,
        "name": name,
        "runner": "docker-compose",
        "docker_compose_file": compose,
        "kms_enabled": True,
        "gateway_enabled": True,
        "local_key_provider_enabled": False,
        "key_provider_id": "",
        "public_logs": False,
        "public_sysinfo": False,
        "public_tcbinfo": True,
        "allowed_envs": [],
        "no_instance_id": False,
        "secure_time": True,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def main() -> int:
    """The document to standard output without a newline, its hash to standard error; 2 on wrong usage."""
    parser = argparse.ArgumentParser(description="Make app-compose.json and print the compose hash.")
    parser.add_argument("--image", required=True, help="repository of the image, without tag")
    parser.add_argument("--digest", required=True, help="digest of the image: sha256: and 64 hex digits")
    parser.add_argument("--key-sha256", required=True, help="SHA-256 of the first API key's token")
    parser.add_argument("--name", default="confide", help="name of the application (%(default)s)")
    given = parser.parse_args()
    try:
        document = app_compose(compose_file(given.image, given.digest, given.key_sha256), given.name)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sys.stdout.write(document)
    sys.stdout.flush()
    print(f"compose hash {hashlib.sha256(document.encode()).hexdigest()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
