"""The process that workers are forked from: it has one thread, keeps what they must share, and does nothing else.

    parent ──fork, before it starts a loop or a thread──▶ fork server ──fork, whenever one is asked for──▶ worker
    parent ──number and one end of a socket pair──▶ fork server ──pid, then exit status──▶ parent

A process with threads or a running event loop cannot be forked safely, and the parent has both. Forked and not started
anew, because workers must have the same keys and none may pass through a pipe, a file or a variable: they are in the
memory that every worker is born with. The fork server ends when the parent does; so do workers (`gateway/worker.py`).
"""

import asyncio
import contextlib
import gc
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from confide.errors import CannotTell

ASKED = struct.Struct("!i")  # the number of a worker to start, or less than 0 to kill that worker
SAID = struct.Struct("!iii")  # what happened, to which worker, and its process id or exit status
FORKED, ENDED = 0, 1

Start = Callable[[int, socket.socket], int]


class Forked:
    """One worker process. `ended`: its exit status, less than 0 for a signal, once it has ended."""

    def __init__(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        self.number = number
        self.pid: asyncio.Future[int] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()


class ForkServer:
    """The parent's end. `lost`: set when the fork server has ended, after which no worker can be started."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._forked: dict[int, Forked] = {}
        self._said = b""
        self.lost = asyncio.Event()

    def watch(self) -> None:
        """Begin to hear what it says."""
        self._control.setblocking(False)
        asyncio.get_running_loop().add_reader(self._control, self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._control)

    def fork(self, number: int, end: socket.socket) -> Forked:
        """Start this worker, with its end of the line. Raises CannotTell when the fork server is gone."""
        forked = Forked(number)
        try:
            socket.send_fds(self._control, [ASKED.pack(number)], [end.fileno()])
        except OSError as error:
            raise CannotTell("the process that starts workers has ended", remedy="Start the service again.") from error
        self._forked[number] = forked
        return forked

    def kill(self, number: int) -> None:
        """kill -9, unless it has ended: its parent knows whether the process id is still its own."""
        with contextlib.suppress(OSError):
            self._control.send(ASKED.pack(-number))

    def _read(self) -> None:
        try:
            data = self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self.lost.set()
            return
        self._said += data
        while len(self._said) >= SAID.size:
            what, number, value = SAID.unpack_from(self._said)
            self._said = self._said[SAID.size :]
            forked = self._forked[number]
            (forked.pid if what == FORKED else forked.ended).set_result(value)


@contextlib.contextmanager
def fork_server(prepare: Callable[[], Start]) -> Iterator[socket.socket]:
    """A fork server, ended on exit; the parent's end of its control socket. For a process that has one thread.

    `prepare`: called once, in the fork server, so that the parent does not get what it draws. It gives what a worker
    does in its own process: given its number and its end of the line, that returns an exit status.
    """
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        ours.close()
        with exiting():
            with contextlib.suppress(ConnectionError):  # the parent is gone
                run(theirs, prepare())
            os._exit(0)
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


@contextlib.contextmanager
def exiting() -> Iterator[None]:
    """Whatever happens within, the process ends here: what its parent was about to do is not its business."""
    try:
        yield
    except BaseException:  # noqa: BLE001 - it is shown, and nothing is above that could handle it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)


def run(control: socket.socket, start: Start) -> NoReturn:
    """Fork and reap until the parent is gone."""
    os.setsid()  # Ctrl-C on a terminal goes to a whole group; the parent drains first
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    awake, wake = os.pipe()
    for end in (awake, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    gc.collect()
    gc.freeze()  # what is here by now every worker shares, as long as nobody writes to it
    workers: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([control.fileno(), awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
        for pid, status in reaped(workers):
            control.sendall(SAID.pack(ENDED, workers.pop(pid), status))
        if control.fileno() not in ready:
            continue
        asked, ends, _, _ = socket.recv_fds(control, ASKED.size, 1)
        if not asked:
            os._exit(0)
        number = ASKED.unpack(asked)[0]
        if number < 0:
            for pid in [pid for pid, each in workers.items() if each == -number]:
                os.kill(pid, signal.SIGKILL)
            continue
        pid = os.fork()
        if pid == 0:
            with exiting():
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.close(awake)
                os.close(wake)
                control.close()
                os._exit(start(number, socket.socket(fileno=ends[0])))
        os.close(ends[0])
        workers[pid] = number
        control.sendall(SAID.pack(FORKED, number, pid))


def reaped(workers: dict[int, int]) -> Iterator[tuple[int, int]]:
    """The children that have ended, each with its exit status."""
    for pid in tuple(workers):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found == pid:
            yield pid, os.waitstatus_to_exitcode(status)
