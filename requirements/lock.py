"""Rewrite the lock files: hashes for every file, releases at least a week old, no registry named.

The official SDKs under test are exempt from the wait: the tests promise the current releases. Those in JavaScript are
locked in tests/js.
"""

import datetime
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).parent
WAIT = datetime.timedelta(days=7)
NO_WAIT = ("openai", "anthropic")
JAVASCRIPT = HERE.parent / "tests" / "js"
JAVASCRIPT_SDKS = ("openai", "@anthropic-ai/sdk")
JAVASCRIPT_PACKAGES = (*JAVASCRIPT_SDKS, "zod")


def main() -> None:
    today = datetime.datetime.now(datetime.UTC).date()
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        python = Path(scratch, "bin", "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
        for name in ("setup", "runtime", "build", "dev", "fuzz", "js"):
            compile_lock(python.with_name("uv"), name, today)
        lock_javascript(python)


def compile_lock(uv: Path, name: str, today: datetime.date) -> None:
    command = [
        *(uv, "pip", "compile", "--quiet", "--upgrade", "--universal", "--python-version", "3.11", "--generate-hashes"),
        *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
        *("--exclude-newer", str(today - WAIT)),
    ]
    for package in NO_WAIT:
        command += ["--exclude-newer-package", f"{package}={today + datetime.timedelta(days=1)}"]
    command += [f"{name}.in", "--output-file", f"{name}.txt"]
    subprocess.run(command, check=True, cwd=HERE, stdout=sys.stderr)


def lock_javascript(python: Path) -> None:
    """With the npm that the tests use: another one's lock may differ."""
    locked = ["--quiet", "--require-hashes", "--only-binary", ":all:", "-r", str(HERE / "js.txt")]
    subprocess.run([python, "-m", "pip", "install", *locked], check=True)
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [
        *(python.with_name("npm"), "install", "--silent", "--package-lock-only", f"--min-release-age={WAIT.days}"),
        *(f"--min-release-age-exclude={sdk}" for sdk in JAVASCRIPT_SDKS),
        *(f"{package}@latest" for package in JAVASCRIPT_PACKAGES),
    ]
    subprocess.run(command, check=True, cwd=JAVASCRIPT, env=environment, stdout=sys.stderr)


if __name__ == "__main__":
    main()
