"""`confide`: one file a command. Errors become a sentence, a remedy and an exit status (architecture 5)."""

import errno
import importlib
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from confide import __version__
from confide.errors import CannotTell, ConfideError, ConfigError

# A command's file is imported when the command runs: all rooms together cost a second, which `--help` should not pay.
# name: (where it is, its line in `confide --help`)
COMMANDS = {
    "serve": ("confide.cli.serve:serve", "Run the service; by default an embedded model, a simulated TEE."),
    "reload": ("confide.cli.reload:reload", "Let the running service read its configuration again."),
    "ask": ("confide.cli.ask:ask", "Ask one question and verify the answer."),
    "verify": ("confide.cli.verify:verify", "Verify a service, and ask it nothing else."),
    "audit": ("confide.cli.audit:audit", "Check a proof again from its file, without any network."),
    "evidence": ("confide.cli.evidence:app", "Inspect and verify one piece of TEE evidence, offline."),
    "simulate": ("confide.cli.simulate:app", "Simulated TEEs and vendors, to rehearse with."),
    "proxy": ("confide.cli.proxy:proxy", "A local endpoint that verifies for tools that cannot."),
    "keys": ("confide.cli.keys:app", "Create, list and revoke API keys."),
    "tls": ("confide.cli.tls:app", "Ask for a certificate for the attested TLS key."),
    "models": ("confide.cli.models:app", "List, fetch, add and remove model weights."),
    "doctor": ("confide.cli.doctor:doctor", "Check what this machine can do, and say what to mend."),
}

# What the system may refuse to any write or read, wherever it happens: the machine's state, not a fault of ours.
BROKEN_PIPE = 128 + signal.SIGPIPE
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EIO}


class Commands(TyperGroup):
    """The table above as a group: a line of help for each, and the real command once it is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, line) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=line))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that `args` begin with, imported."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(COMMANDS[name][0]) if name in COMMANDS else command, rest


def load(target: str) -> Any:
    """`module:name` as a command. A function is a command, a `typer.Typer` a group of them."""
    module, _, name = target.partition(":")
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, typer.Typer):
        return typer.main.get_group(found)
    single = typer.Typer(add_completion=False)
    single.command()(found)
    return typer.main.get_command(single)


app = typer.Typer(
    name="confide",
    cls=Commands,
    help="An OpenAI-compatible inference service that proves what it did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"confide {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=print_version, is_eager=True, help="Print the version."),
) -> None:
    """Exit status: 0 verified or done, 1 not verified, 2 wrong usage or start refused, 3 could not find out."""


def main() -> None:
    """Entry point of the program.

    Exit status: the error's own (errors.py); 2 also where the system refuses (a full disk, a permission); 130 on
    Ctrl-C, and 141 where the reader of our output went away, as for any program that a closed pipe ends. A fault of
    ours ends with 3: nothing was found out, and a script must not take it for "not verified" (1). It is shown without
    its text, which may hold a prompt or a key.
    """
    try:
        app(prog_name="confide")
    except ConfideError as error:
        refusal = error
    except OSError as error:
        refusal = refused_by_system(error) if error.errno in REFUSALS else fault(error)
    except Exception as error:  # noqa: BLE001 - the boundary to the person at the keyboard: one line, no traceback
        refusal = fault(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # the library makes a 1 of it: "not verified"
            sys.exit(BROKEN_PIPE)
        raise
    show(refusal)
    sys.exit(refusal.exit_status)


def refused_by_system(error: OSError) -> ConfideError:
    """What the system would not do, and where it says so."""
    where = f"{error.filename}: " if isinstance(error.filename, str) else ""
    return ConfigError(
        f"{where}{error.strerror}", remedy="Check permissions and free space there; `confide doctor` looks at both."
    )


def fault(error: Exception) -> ConfideError:
    """Something unforeseen: its type and the line of ours it came from, never its text."""
    ours = Path(__file__).parent.parent
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(ours)]
    at = f" at {Path(frames[-1].filename).relative_to(ours)}:{frames[-1].lineno}" if frames else ""
    return CannotTell(
        f"unforeseen {type(error).__name__}{at}, confide {__version__}",
        remedy="This is a fault of Confide: please report the line above, with what you ran.",
    )


def show(error: ConfideError) -> None:
    """`error: …` and what to do next, on standard error."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("error:", style="bold red", end=" ")
    console.print(error.message, markup=False)
    if error.remedy:
        console.print(error.remedy, markup=False)


if __name__ == "__main__":
    main()
