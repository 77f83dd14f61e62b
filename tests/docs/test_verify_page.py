"""docs/verify.md is followed to the letter: its blocks, in one shell, against the running service."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from running import Running, home_with_weights, running

PAGE = Path(__file__).parent.parent.parent / "docs" / "verify.md"
SCRIPT = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
TOOLS = ("bash", "curl", "jq", "sha256sum", "openssl")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]

# Where the page has made each file and not yet looked at it.
FETCHED = {"receipt": "jq . receipt.json", "report": "# The digest of the keyset"}

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(bool(MISSING), reason=f"the page needs {', '.join(MISSING)}, which this machine lacks"),
]


@pytest.fixture(scope="module")
def service(engine_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(home_with_weights(tmp_path_factory.mktemp("page"), engine_home)) as started:
        yield started


def follow(script: str, service: Running, at: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=at,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "URL": service.url, "CONFIDE_HOME": str(service.home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_person_who_follows_the_page_verifies_a_receipt(service: Running, tmp_path: Path) -> None:
    done = follow(SCRIPT, service, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nsame: ") == SCRIPT.count('\nsame "') == 6
    assert "DIFFERENT" not in done.stdout
    assert "Signature Verified Successfully" in done.stdout
    assert done.stdout.count("Verified OK") == 2
    assert "platform.pem: OK" in done.stdout
    assert "has not expired" in done.stdout


@pytest.mark.parametrize(
    ("made", "altering", "told"),
    [
        ("receipt", "s/chatcmpl/chatcmp1/ response.json", "DIFFERENT: response read"),
        ("receipt", "s/hello/Hello/ request.json", "DIFFERENT: request sent"),
        ("receipt", "s/complete/truncated/ receipt.json", "Signature Verification Failure"),
        ("report", "s/receipt-/receipt_/ report.json", "DIFFERENT: keyset"),
        ("report", 's/not_after":1/not_after":2/ report.json', "DIFFERENT: keyset"),
    ],
)
def test_what_was_altered_on_the_way_is_noticed(
    service: Running, tmp_path: Path, made: str, altering: str, told: str
) -> None:
    expression, name = altering.rsplit(" ", 1)
    begun, looked_at = SCRIPT.split(FETCHED[made], 1)
    altered = f'before=$(cat {name}); sed -i \'{expression}\' {name}; [ "$before" != "$(cat {name})" ]\n'
    done = follow(begun + altered + FETCHED[made] + looked_at, service, tmp_path)
    assert done.returncode != 0
    assert told in done.stdout + done.stderr


def test_anothers_root_is_not_taken(service: Running, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "root.pem"
    subject = ["-subj", "/CN=Somebody else", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run(
        ["openssl", "req", "-x509", *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    done = follow(f"ROOT={certificate}\n{SCRIPT}", service, tmp_path)
    assert done.returncode != 0
    assert "platform.pem: OK" not in done.stdout
