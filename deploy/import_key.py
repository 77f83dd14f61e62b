"""Give the service an API key whose token is known elsewhere: `import_key.py NAME SHA256`.

For a guest that nobody can log into. What is stored of a key is the SHA-256 of its token, which may be public: a token
has 256 random bits. So the digest can stand in the measured configuration, and the token never comes near the machine.
Nothing changes when a key with this digest is there already, revoked ones included.
"""

import re
import secrets
import sys
import time
from contextlib import closing
from pathlib import Path

from confide import config
from confide.errors import ConfigError
from confide.store.database import connect, explained, locate, prepare_keys

INSERT = """INSERT INTO keys (id, name, sha256, created_at) SELECT ?1, ?2, ?3, ?4
    WHERE NOT EXISTS (SELECT 1 FROM keys WHERE sha256 = ?3)"""


def import_key(path: Path, name: str, sha256: bytes) -> bool:
    """Store the key in the database at `path`; False where it was there. Raises ConfigError."""
    prepare_keys(path)
    with explained(path), closing(connect(path, synchronous="full")) as db:
        row = (f"key_{secrets.token_hex(6)}", name, sha256, int(time.time()))
        return db.execute(INSERT, row).rowcount == 1


def main(arguments: list[str]) -> int:
    """0 when the key is there now, 2 on wrong usage or a file that cannot be used."""
    if len(arguments) != 2 or re.fullmatch(r"[!-~]{1,100}", arguments[0]) is None:
        print("usage: import_key.py NAME SHA256, NAME without spaces", file=sys.stderr)
        return 2
    name, digest = arguments
    if re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        print("SHA256: expected 64 hex digits in lower case", file=sys.stderr)  # what it was may be the token itself
        return 2
    try:
        added = import_key(locate(config.load(None).store.url, config.home()), name, bytes.fromhex(digest))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"the key {name} is {'added' if added else 'there already'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
