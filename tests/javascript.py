"""The tests that are written in JavaScript (tests/js), run by Node against a service that a test started.

ended = run(node, "openai", service.url, MODEL)
assert ended["models are listed and retrieved"] is None
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from sdk.builders import EMBEDDING_MODEL

NODE = Path(sys.executable).parent / "node"
SCRIPTS = Path(__file__).parent / "js"
INSTALLED = SCRIPTS / "node_modules" / ".package-lock.json"  # npm writes it last
TEST = re.compile(r'^test\("([^"]+)"', re.MULTILINE)
RUN_WITHIN_S = 100


def names(file: str) -> list[str]:
    """The tests of `tests/js/{file}.test.mjs`."""
    return TEST.findall(script(file).read_text())


def run(node: Path, file: str, url: str, model: str, *, key: str = "any", only: str = ".") -> dict[str, str | None]:
    """Run that file's tests, those whose names match `only`: for each, None where it passed, else what it said."""
    told = {"URL": url, "MODEL": model, "EMBEDDING_MODEL": EMBEDDING_MODEL, "KEY": key}
    environ = {**os.environ, **{f"CONFIDE_{name}": value for name, value in told.items()}}
    command = [str(node), "--test", "--test-reporter=junit", f"--test-name-pattern={only}", str(script(file))]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=RUN_WITHIN_S)
    assert not done.stderr, done.stderr
    ended = {}
    for case in ElementTree.fromstring(done.stdout).iter("testcase"):
        failure = case.find("failure")
        ended[case.attrib["name"]] = None if failure is None else failure.text or "it failed"
    assert ended, done.stdout
    return ended


def script(file: str) -> Path:
    return SCRIPTS / f"{file}.test.mjs"
