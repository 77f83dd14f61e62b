"""The pages of docs/integrations: what a stranger installs and types, taken from the page and run as it stands there.

What a page cannot know is put in its place: where the service and the proxy are, and the root of a simulated TEE.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from javascript import NODE
from running import CONFIDE

REPOSITORY = Path(__file__).parent.parent.parent
PAGES = REPOSITORY / "docs" / "integrations"
SCRATCH = REPOSITORY / "build" / "integrations"
UV = CONFIDE.with_name("uv")
AS_OF = "2026-11-26"  # what the packages of the pages need is taken as it was then
INSTALLED_WITHIN_S = 300
RUN_WITHIN_S = 100

SERVICE, PROXY, POLICY = "https://inference.example.com", "http://127.0.0.1:8081", "confide.Policy()"
INSTALLING = re.compile(r"^(pip|npm) install (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Place:
    """Where a test has started things, and the root of the simulated TEE that is pinned."""

    service: str
    proxy: str
    root: Path

    def put_into(self, program: str) -> str:
        policy = f'confide.Policy(trust_roots=("{self.root}",))'
        return program.replace(SERVICE, self.service).replace(PROXY, self.proxy).replace(POLICY, policy)


@dataclass(frozen=True)
class Ran:
    """How the programs of a page ended: the exit status of each, and what they wrote, errors after the rest."""

    statuses: tuple[int, ...]
    output: str


class Page:
    """`programs`: the blocks to run, with their language: all but those that install, or start the proxy. `told`: what
    the page says that a user reads where an answer is not proven.
    """

    def __init__(self, name: str) -> None:
        text = (PAGES / f"{name}.md").read_text()
        blocks = BLOCK.findall(text)
        self.directory = SCRATCH / name
        self.needs_proxy = PROXY in text
        self.told = next(block.strip() for language, block in blocks if language == "text")
        self.programs = [
            (language, block)
            for language, block in blocks
            if language in ("python", "js", "sh") and not block.startswith(("pip ", "npm ", "confide proxy "))
        ]
        self._installing = INSTALLING.findall(text)

    def install(self, wheel: Path) -> None:
        """What the page names, and our own wheel, into a directory of the page's own."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for program, packages in self._installing:
            if program == "pip":
                python = self.directory / "bin" / "python"
                pip: list[str | Path] = [
                    UV,
                    "pip",
                    "install",
                    "--quiet",
                    "--only-binary",
                    ":all:",
                    "--exclude-newer",
                    AS_OF,
                ]
                self._carry_out([UV, "venv", "--quiet", "--allow-existing", "--python", sys.executable, self.directory])
                self._carry_out([*pip, "--python", python, "--reinstall-package", "confide", *packages.split(), wheel])
            else:
                (self.directory / "package.json").write_text('{"private": true}')
                npm: list[str | Path] = [
                    NODE.with_name("npm"),
                    "install",
                    "--silent",
                    "--before",
                    AS_OF,
                    "--ignore-scripts",
                ]
                self._carry_out([*npm, "--no-audit", "--no-fund", *packages.split()])

    def run(self, place: Place, home: Path) -> Ran:
        """Every program, one after the other. `home`: where programs keep what they keep."""
        ran = [self._run(language, place.put_into(program), home) for language, program in self.programs]
        output = "".join(done.stdout for done in ran) + "".join(done.stderr for done in ran)
        return Ran(tuple(done.returncode for done in ran), output)

    def _run(self, language: str, program: str, home: Path) -> "subprocess.CompletedProcess[str]":
        command: list[str | Path] = ["bash", "-euo", "pipefail", "-c", program]
        if language == "python":
            command = [self.directory / "bin" / "python", "-W", "ignore", "-c", program]
        elif language == "js":
            (script := self.directory / "page.mjs").write_text(program)
            command = [NODE, script]
        environ = {**self._environ(), "HOME": str(home), "LLM_USER_PATH": str(home)}
        return subprocess.run(command, capture_output=True, text=True, cwd=home, env=environ, timeout=RUN_WITHIN_S)

    def _environ(self) -> dict[str, str]:
        """Of a user who has installed nothing but what the page says."""
        return {
            "PATH": os.pathsep.join([str(self.directory / "bin"), str(NODE.parent), "/usr/local/bin:/usr/bin:/bin"])
        }

    def _carry_out(self, command: Sequence[str | Path]) -> None:
        environ = {**os.environ, "PATH": f"{NODE.parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=self.directory, env=environ, timeout=INSTALLED_WITHIN_S
        )
        assert done.returncode == 0, done.stdout + done.stderr


def built_wheel() -> Path:
    """Our own, as `make wheel` makes it."""
    for older in SCRATCH.glob("confide-*.whl"):
        older.unlink()
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(SCRATCH)]
    subprocess.run(command, capture_output=True, check=True, cwd=REPOSITORY)
    [wheel] = SCRATCH.glob("confide-*.whl")
    return wheel
