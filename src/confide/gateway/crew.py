"""The workers of a service as their parent has them: started, told, heard, and started again when they end."""

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping

from confide.config import Config
from confide.engine.slot_service import EngineStands, SlotService
from confide.errors import ConfideError, ConfigError
from confide.gateway.accepting import ConnectionCounts
from confide.gateway.control import (
    Abandon,
    Begin,
    Commit,
    Drain,
    HasOpened,
    Listen,
    SessionStands,
    Stage,
    ToWorker,
    Verified,
    Verify,
    WrongKey,
)
from confide.gateway.forkserver import ForkServer
from confide.gateway.turning import Found, Turns, paced
from confide.gateway.worker_process import LOOK_IN_LOG, WorkerProcess, no_answer
from confide.telemetry.logs import Log
from confide.upstream.verified import SessionUpstream

OPEN_WITHIN_S = 180.0  # platforms may take a minute for a quote, and workers ask for theirs one after the other
STAGE_WITHIN_S = 20.0
ENDED_WITHIN_S = 10.0
AFTER_DRAIN_S = 16.0  # for the end of what a drain has stopped, and of connections
BACKOFF_FIRST_S = 0.25
BACKOFF_MOST_S = 30.0
STEADY_S = 60.0  # a worker that lived this long starts again without back-off
MOST_FAILURES = 5  # in a row, while nobody serves


class Crew:
    """All workers. `services`: the slots of each engine. `changing`: held while one starts, and while all change."""

    def __init__(
        self,
        config: Config,
        forks: ForkServer,
        services: Mapping[str, SlotService],
        counts: ConnectionCounts,
        turns: Turns,
        log: Log,
    ) -> None:
        self.led: Mapping[str, SessionUpstream] = {}
        self.changing = asyncio.Lock()
        self.hopeless = asyncio.Event()
        self._config = config
        self._forks = forks
        self._services = services
        self._counts = counts
        self._turns = turns
        self._log = log
        self._workers: dict[int, WorkerProcess] = {}
        self._engine: EngineStands | None = None
        self._identity: str | None = None
        self._is_listening = False
        self._is_ending = False
        self._chain: bytes | None = None
        self._staging = 0
        self._failures = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def open_all(self) -> list[HasOpened]:
        """Start all, and end from now on those that hang. Raises ConfigError for the first that cannot serve."""
        self._spawn(paced(self._config.server.worker_timeout_s, self._look), "turning")
        numbers = range(1, self._config.server.workers + 1)
        workers = await asyncio.gather(*(self._open(number) for number in numbers))
        return [worker.opened.result() for worker in workers]

    async def listen_all(self) -> None:
        """Have all accept connections, and look after them from now on. Raises ConfigError when one has ended."""
        self._is_listening = True
        workers = tuple(self._workers.values())
        for worker in workers:
            worker.tell(Listen(self._chain))
        for worker in workers:
            await any_of(worker.listens, worker.is_gone)
        if len(self._workers) < self._config.server.workers or not all(each.listens.is_set() for each in workers):
            raise ConfigError("a worker process ended before it could serve", remedy=LOOK_IN_LOG)
        for worker in workers:
            self._spawn(self._keep(worker), f"worker {worker.number}")
        self._spawn(self._watch_forks(), "forks")

    def tell_all(self, message: ToWorker) -> None:
        for worker in self._workers.values():
            worker.tell(message)

    def tell_engine(self, message: EngineStands) -> None:
        """Whether the engine serves: to all, and to those that come."""
        self._engine = message
        self.tell_all(message)

    def tell_session(self, upstream: SessionUpstream) -> None:
        """The session of an upstream, to all."""
        if self.led.get(upstream.name) is upstream:
            self.tell_all(standing(upstream))

    def _asked(self, worker: WorkerProcess, message: Verify | WrongKey) -> None:
        """A worker asks of an attested upstream, or has seen another key there."""
        upstream = self.led.get(message.name)
        if isinstance(message, WrongKey):
            if upstream is not None:
                upstream.revoke(message.session_id)
        else:
            self._spawn(answer(worker, upstream, message), f"verify {message.name}")

    async def stage(self, new: Config) -> None:
        """Have all workers get ready for it. Raises ConfigError when one cannot, and then none will run by it."""
        workers = [worker for worker in self._workers.values() if worker.is_open]
        self._staging += 1
        message = Stage(self._staging, new.upstream, new.model)
        pending = [worker.stage(message) for worker in workers]
        if pending:
            await asyncio.wait(pending, timeout=STAGE_WITHIN_S)
        late = no_answer(self._staging)
        answers = [each.result() if each.done() else late for each in pending]
        refused = next((each for each in answers if each.error is not None), None)
        if refused is not None:
            self.tell_all(Abandon())
            raise ConfigError(refused.error or "", remedy=refused.remedy)

    def commit(self, new: Config) -> None:
        """Have all run by what was staged, and those that start from now on."""
        self._config = new
        self.tell_all(Commit())

    async def drain(self, drain_s: float) -> None:
        """Have all workers drain and end; those that take too long are killed."""
        self._is_ending = True
        self.tell_all(Drain())
        workers = tuple(self._workers.values())
        for worker in workers:
            if not worker.is_open:
                self._forks.kill(worker.number)
        await self._until_gone(workers, drain_s + AFTER_DRAIN_S)
        await self.kill()

    async def kill(self) -> None:
        """End all that are left at once."""
        self._is_ending = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        workers = tuple(self._workers.values())
        for worker in workers:
            self._forks.kill(worker.number)
        await self._until_gone(workers, ENDED_WITHIN_S)

    def _left(self, worker: WorkerProcess) -> None:
        """Its line has ended."""
        self._counts.leave(worker.number - 1)
        if self._workers.get(worker.number) is worker:
            del self._workers[worker.number]

    async def _until_gone(self, workers: tuple[WorkerProcess, ...], within_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                for worker in workers:
                    await worker.is_gone.wait()

    async def _open(self, number: int) -> WorkerProcess:
        """Start one, until it could serve. Raises ConfideError once there is no such process any more."""
        worker = WorkerProcess(number, self._services, asked=self._asked, left=self._left)
        await worker.start(self._forks)
        self._workers[number] = worker
        worker.tell(Begin(self._config.upstream, self._config.model))
        if self._engine is not None:
            worker.tell(self._engine)
        for upstream in self.led.values():
            worker.tell(standing(upstream))
        try:
            self._require_same_keys(await self._has_opened(worker))
        except ConfideError:
            self._forks.kill(number)
            await self._ended(worker)
            raise
        self._log.write("worker.ready", worker=number, pid=await worker.process.pid)
        if self._is_listening:
            worker.tell(Listen(self._chain))
        return worker

    async def _has_opened(self, worker: WorkerProcess) -> HasOpened:
        try:
            async with asyncio.timeout(OPEN_WITHIN_S):
                return await worker.opened
        except TimeoutError as error:
            raise ConfigError("a worker process took too long to start", remedy=LOOK_IN_LOG) from error

    def _require_same_keys(self, opened: HasOpened) -> None:
        """What one signs, the others must be able to vouch for. Raises ConfigError."""
        if self._identity is None:
            self._identity, self._chain = opened.identity, opened.chain
        if opened.identity != self._identity:
            raise ConfigError(
                "the platform gave the workers different keys", remedy="Serve with one worker, or mend the platform."
            )

    async def _keep(self, worker: WorkerProcess) -> None:
        """Wait for its end, and start it again; back off while it does not last."""
        loop = asyncio.get_running_loop()
        delay_s = BACKOFF_FIRST_S
        while True:
            began = loop.time()
            await self._ended(worker)
            if loop.time() - began > STEADY_S:
                delay_s = BACKOFF_FIRST_S
            worker, delay_s = await self._again(worker.number, delay_s)

    async def _again(self, number: int, delay_s: float) -> tuple[WorkerProcess, float]:
        """The same number, started again until that succeeds, and how long to wait the next time."""
        while not self._is_ending:
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, BACKOFF_MOST_S)
            try:
                async with self.changing:
                    worker = await self._open(number)
            except (ConfideError, OSError) as error:  # OSError: no descriptors left
                self._log.write("worker.start_failed", worker=number, error=type(error).__name__)
                self._failures += 1
                if self._failures >= MOST_FAILURES and not self._workers:
                    self.hopeless.set()
            else:
                self._failures = 0
                return worker, delay_s
        raise asyncio.CancelledError

    def _look(self) -> None:
        """End the workers that hang. What they held is free at once; that they are started again is up to `_keep`."""
        for worker in tuple(self._workers.values()):
            found = worker.silence.look(self._turns.of(worker.number - 1)) if worker.is_open else Found.TURNING
            if found is Found.LATE:
                self._log.write("worker.late", worker=worker.number, pid=worker.process.pid.result())
            elif found is Found.HUNG:
                self._forks.kill(worker.number)
                worker.let_go()
                self._log.write("worker.hung", worker=worker.number, pid=worker.process.pid.result())

    async def _ended(self, worker: WorkerProcess) -> None:
        """Until the process is gone and was reaped."""
        await worker.is_gone.wait()
        try:
            async with asyncio.timeout(ENDED_WITHIN_S):
                status = await asyncio.shield(worker.process.ended)
        except TimeoutError:  # it let go of its line, and lives
            self._forks.kill(worker.number)
            status = await worker.process.ended
        self._counts.leave(worker.number - 1)  # again: one that was let go may have counted on for a moment
        self._log.write("worker.exited", worker=worker.number, exit_status=status)

    async def _watch_forks(self) -> None:
        await self._forks.lost.wait()
        self._log.write("forks.exited")
        self.hopeless.set()

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:  # a fault of ours: better no service than half of one
            self._log.write("fault", error=type(task.exception()).__name__)
            self.hopeless.set()


def standing(upstream: SessionUpstream) -> SessionStands:
    """How it stands now."""
    session = upstream.session
    return SessionStands(upstream.name, session, "" if session else upstream.reason)


async def answer(worker: WorkerProcess, upstream: SessionUpstream | None, asked: Verify) -> None:
    """Tell it how an upstream stands, unless it knows that; verified now if it has no session."""
    if upstream is not None:
        if upstream.session is None:
            await upstream.verify()
        if upstream.session is None or upstream.session.id != asked.known:
            worker.tell(standing(upstream))
    worker.tell(Verified(asked.ticket))


async def any_of(*events: asyncio.Event) -> None:
    """Until one of them is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
