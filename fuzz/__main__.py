"""Run the fuzz targets one after the other: `python -m fuzz --seconds 60 [--only chat]`.

A target is a file in this folder with `fuzz_one(data)`, which raises on what a parser must never do, and `main()`.
Inputs worth keeping and findings are left in `build/fuzz/`.
"""

import argparse
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
KEPT = FOLDER.parent / "build" / "fuzz"
WITHOUT_ATHERIS = """\
fuzz: atheris is not installed, and the locked requirements leave it out. Install it where you want to fuzz:
  {python} -m pip install atheris
"""


def targets() -> list[str]:
    """The names of the files in this folder that are targets."""
    return sorted(module.name for module in pkgutil.iter_modules([str(FOLDER)]) if not module.name.startswith("_"))


def options(arguments: list[str]) -> argparse.Namespace:
    """What the command line asked for."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz every parser, each for some seconds.")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="for each target (default 60)")
    parser.add_argument("--only", choices=targets(), help="this target and no other")
    asked = parser.parse_args(arguments)
    if asked.seconds < 1:
        parser.error("--seconds must be at least 1")
    return asked


def run(target: str, *, seconds: int) -> None:
    """Fuzz in this process, which libFuzzer ends itself: with 0 when the time is up, otherwise after a finding."""
    import atheris

    with atheris.instrument_imports(include=["confide", "fuzz"]):
        module = importlib.import_module(f"fuzz.{target}")
    corpus = KEPT / target
    corpus.mkdir(parents=True, exist_ok=True)
    sys.argv = [target, f"-max_total_time={seconds}", f"-artifact_prefix={KEPT}/{target}-", str(corpus)]
    module.main()


def main() -> int:
    """The exit status: 0 without a finding, 1 with one, 2 when it could not start."""
    asked = options(sys.argv[1:])
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write(WITHOUT_ATHERIS.format(python=sys.executable))
        return 2
    if asked.only:
        run(asked.only, seconds=asked.seconds)
        return 0
    found = [target for target in targets() if not _survives(target, seconds=asked.seconds)]
    sys.stdout.write(f"fuzz: findings in {', '.join(found)}: see {KEPT}\n" if found else "fuzz: nothing found\n")
    return 1 if found else 0


def _survives(target: str, *, seconds: int) -> bool:
    # A process each: libFuzzer ends the one it runs in.
    command = [sys.executable, "-m", "fuzz", "--only", target, "--seconds", str(seconds)]
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603  our own command line


if __name__ == "__main__":
    sys.exit(main())
