"""Several worker processes are one service: the same keys, one store, one engine, one end (ADR 20)."""

import hashlib
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

import confide
from confide.protocol.sse import DONE
from crew import (
    CHAT,
    LOCAL,
    MODEL,
    Engine,
    answers,
    busy,
    callers,
    engine,
    is_running,
    log_lines,
    nonce_report,
    parent_of,
    pids,
    prompt,
    prove,
    served_by,
    until,
)
from outside import Verifier
from running import CONFIDE, Running, running
from simulated_machine import simulating

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")

ATTESTED = 'tls = "attested"'


def fresh(base: Path) -> Path:
    home = base / "home"
    home.mkdir(mode=0o700)
    return home


@pytest.fixture
def upstream() -> Iterator[Engine]:
    with engine() as found:
        yield found


@contextmanager
def serving(
    base: Path,
    upstream: Engine,
    *,
    workers: int = 2,
    server: str = "",
    rest: str = "",
    environ: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    config = LOCAL.format(workers=workers, server=server, rest=rest, port=upstream.port)
    with running(fresh(base), config=config, environ=environ) as service:
        yield service


def test_a_receipt_of_one_worker_is_proven_by_the_keyset_that_another_serves(tmp_path: Path, upstream: Engine) -> None:
    with serving(tmp_path, upstream, workers=3) as service, callers(service) as by_worker:
        digests = {client.get("/health").headers["x-aci-keyset-digest"] for client in by_worker.values()}
        assert len(digests) == 1
        for asked_of, client in by_worker.items():
            other = by_worker[asked_of % 3 + 1]
            nonce = os.urandom(32).hex()
            verifier = Verifier(service.url, service.home)
            assert verifier.believe(nonce_report(other, nonce), nonce) in digests
            for stream in (False, True):
                request = client.build_request("POST", CHAT, json=prompt(stream=stream))
                answer = client.send(request)
                receipt = other.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}")
                assert receipt.status_code == 200, receipt.text
                proven = verifier.proven(
                    receipt.content,
                    receipt_id=answer.headers["x-receipt-id"],
                    sent=request.content,
                    response_sha256=hashlib.sha256(answer.content).digest(),
                )
                assert proven.outcome == "complete"
                assert served_by(service, answer.headers["x-receipt-id"]) == asked_of


@pytest.mark.parametrize("kind", [("tsm", "--tee", "tdx"), ("tsm", "--tee", "snp"), ("dstack",)], ids=" ".join)
def test_workers_have_the_same_keys_whatever_the_platform(
    tmp_path: Path, upstream: Engine, kind: tuple[str, ...]
) -> None:
    """Also where the keys are drawn at the start, as with configfs-tsm, and after a worker was started again."""
    with (
        simulating(tmp_path / "machine", *kind) as machine,
        serving(tmp_path, upstream, server=ATTESTED, environ=machine.environ) as service,
    ):
        with callers(service, verify=False) as by_worker:
            before = {signer(client) for client in by_worker.values()}
            first = by_worker[1].post(CHAT, json=prompt())
        killed = pids(service)[2]
        os.kill(killed, signal.SIGKILL)
        until(lambda: pids(service)[2] != killed)
        with callers(service, verify=False) as by_worker:
            after = {signer(client) for client in by_worker.values()}
            for client in by_worker.values():
                assert client.get(f"/v1/aci/receipts/{first.headers['x-receipt-id']}").status_code == 200
        assert len(before | after) == 1
        verified = subprocess.run(
            [CONFIDE, "verify", service.url, *machine.trust], capture_output=True, text=True, check=False
        )
        assert verified.returncode == 0, verified.stdout + verified.stderr


def signer(client: httpx2.Client) -> tuple[str, str]:
    """What this worker's documents are signed with: the digest of its keyset, and its request signature's address."""
    asked = client.post(CHAT, json=prompt())
    proof = client.get(f"/v1/signature/{asked.json()['id']}").json()
    return asked.headers["x-aci-keyset-digest"], proof["signing_address"]


@pytest.mark.long
def test_the_keyset_is_rotated_everywhere_at_the_same_moment(tmp_path: Path, upstream: Engine) -> None:
    rest = "[attester]\nkeyset_lifetime_s = 10\n"
    with serving(tmp_path, upstream, rest=rest) as service, callers(service) as by_worker:
        one, other = by_worker.values()
        seen: dict[str, str] = {}
        until_s = time.monotonic() + 20
        while len(seen) < 3 and time.monotonic() < until_s:
            before = one.get("/health").headers["x-aci-keyset-digest"]
            asked = other.post(CHAT, json=prompt())
            after = one.get("/health").headers["x-aci-keyset-digest"]
            assert asked.headers["x-aci-keyset-digest"] in (before, after)
            seen.setdefault(asked.headers["x-aci-keyset-digest"], asked.headers["x-receipt-id"])
        assert len(seen) == 3
        for digest, receipt_id in seen.items():
            receipt = one.get(f"/v1/aci/receipts/{receipt_id}").json()
            assert receipt["workload_keyset_digest"] == digest
            until(lambda digest=digest: one.get(f"/v1/aci/keysets/{digest}").status_code == 200)  # type: ignore[misc]


def test_a_killed_worker_loses_no_receipt_and_is_started_again(tmp_path: Path, upstream: Engine) -> None:
    with serving(tmp_path, upstream) as service:
        with busy(service, 8) as askers:
            until(lambda: len(answers(askers)) > 40)
            for _ in range(2):
                killed = pids(service)[1]
                os.kill(killed, signal.SIGKILL)
                at = len(answers(askers))
                until(lambda at=at: len(answers(askers)) > at + 40, "the other went on")  # type: ignore[misc]
                until(lambda killed=killed: pids(service)[1] != killed, "it was started again")  # type: ignore[misc]
        assert {line["exit_status"] for line in log_lines(service) if line["event"] == "worker.exited"} == {-9}
        prove(service, answers(askers))
        until(lambda: len({line["worker"] for line in log_lines(service) if line["event"] == "request"}) == 2)


def test_sigterm_drains_all_workers(tmp_path: Path, upstream: Engine) -> None:
    with serving(tmp_path, upstream) as service, callers(service) as by_worker, ExitStack() as closing:
        upstream.go_on.clear()
        streams = [closing.enter_context(c.stream("POST", CHAT, json=prompt(stream=True))) for c in by_worker.values()]
        parts = [stream.iter_raw() for stream in streams]
        received = [next(each) for each in parts]
        service.process.send_signal(signal.SIGTERM)
        with httpx2.Client(base_url=service.url) as other:
            until(lambda: other.get("/health/ready").json() == {"status": "draining"})
            assert other.post(CHAT, json=prompt()).status_code == 503
        service.process.send_signal(signal.SIGTERM)
        upstream.go_on.set()
        received = [first + b"".join(rest) for first, rest in zip(received, parts, strict=True)]
        assert service.process.wait(20) == 0
        assert all(each.endswith(DONE) and b'"error"' not in each for each in received)
        assert not any(is_running(pid) for pid in pids(service).values())
    outcomes = {line["worker"]: line["outcome"] for line in log_lines(service) if line.get("stream")}
    assert outcomes == {1: "complete", 2: "complete"}


def test_a_worker_that_is_told_to_end_drains_alone(tmp_path: Path, upstream: Engine) -> None:
    """The others take its connections meanwhile, and it is started again."""
    with serving(tmp_path, upstream) as service, callers(service) as by_worker:
        upstream.go_on.clear()
        with by_worker[1].stream("POST", CHAT, json=prompt(stream=True)) as stream:
            parts = stream.iter_raw()
            received = next(parts)
            ended = pids(service)[1]
            os.kill(ended, signal.SIGTERM)
            until(lambda: by_worker[2].get("/health/ready").json() == {"status": "ready"})
            time.sleep(1)  # it might have been the whole service that was told
            for _ in range(8):
                with httpx2.Client(base_url=service.url) as new:
                    asked = new.post(CHAT, json=prompt())
                    assert served_by(service, asked.headers["x-receipt-id"]) == 2
            upstream.go_on.set()
            assert (received + b"".join(parts)).endswith(DONE)
        until(lambda: pids(service)[1] != ended)


def test_the_workers_end_with_their_parent(tmp_path: Path, upstream: Engine) -> None:
    with serving(tmp_path, upstream) as service:
        workers = pids(service).values()
        service.kill()
        until(lambda: not any(is_running(pid) for pid in workers))
    with running(service.home, "--config", str(service.home / "confide.toml")) as again:  # the state is free
        assert httpx2.get(f"{again.url}/health/ready").json() == {"status": "ready"}


@pytest.mark.long
def test_a_reload_changes_all_workers_or_none(tmp_path: Path, upstream: Engine) -> None:
    with serving(tmp_path, upstream) as service, callers(service) as by_worker:
        file = service.home / "confide.toml"
        good = file.read_text() + 'aliases = ["also"]\n'
        file.write_text(good)
        assert reload(service).returncode == 0
        for client in by_worker.values():
            assert client.post(CHAT, json=prompt(model="also")).status_code == 200
        file.write_text(good.replace("also", "other") + '[[upstream]]\nname = "unused"\nkind = "local"\n')
        refused = reload(service)
        assert refused.returncode == 2
        assert "nothing was changed" in refused.stderr
        key = service.home / "upstream.key"
        key.write_text("secret")
        staged = good.replace("also", "other").replace("cache_salt", f'key_file = "{key}"\ncache_salt')
        file.write_text(staged)
        os.kill(pids(service)[2], signal.SIGSTOP)  # it does not answer, so nobody may run by the new file
        try:
            refused = reload(service)
        finally:
            os.kill(pids(service)[2], signal.SIGCONT)
        assert refused.returncode == 2
        assert "does not answer" in refused.stderr
        for client in by_worker.values():
            assert client.post(CHAT, json=prompt(model="also")).status_code == 200
        assert reload(service).returncode == 0
        killed = pids(service)[1]
        os.kill(killed, signal.SIGKILL)
        until(lambda: pids(service)[1] != killed)
        with callers(service) as now:
            for client in now.values():
                assert client.post(CHAT, json=prompt(model="other")).status_code == 200
                assert client.post(CHAT, json=prompt(model="also")).status_code == 404


def reload(service: Running) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "CONFIDE_HOME": str(service.home)}
    return subprocess.run([CONFIDE, "reload"], capture_output=True, text=True, env=environ, check=False)


def test_a_tenant_has_one_cache_salt_at_all_workers(tmp_path: Path, upstream: Engine) -> None:
    with serving(tmp_path, upstream) as service, callers(service) as by_worker:
        for client in by_worker.values():
            client.post(CHAT, json=prompt())
        salts = {each["cache_salt"] for each in upstream.prompts}
    assert len(salts) == 1


def test_the_official_sdk_is_served_and_proven_by_all(tmp_path: Path, upstream: Engine) -> None:
    with serving(tmp_path, upstream, server=ATTESTED) as service, ExitStack() as closing:
        root = service.home / "simulator" / "root.pem"
        answered = []
        for _ in range(6):
            verifying = closing.enter_context(confide.Client(confide.Policy(trust_roots=(root,))))
            client = OpenAI(base_url=f"{service.url}/v1", api_key="any", http_client=verifying, max_retries=0)
            answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hello"}])
            proof = confide.proof(answer)
            assert proof is not None
            assert answer.choices[0].message.content == "whole"
            with client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "Hello"}], stream=True
            ) as chunks:
                assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "half whole"
            answered.append(answer)
        until(lambda: {line["worker"] for line in log_lines(service) if line["event"] == "request"} == {1, 2})


def test_all_workers_show_the_same_certificate(tmp_path: Path, upstream: Engine) -> None:
    """Whoever was given it to trust meets the same everywhere, also at a worker that was started again."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with serving(tmp_path, upstream, server=ATTESTED) as service:
        certificates = certificates_of(service, context)
        killed = pids(service)[1]
        os.kill(killed, signal.SIGKILL)
        until(lambda: pids(service)[1] != killed)
        certificates |= certificates_of(service, context)
    assert len(certificates) == 1


def certificates_of(service: Running, context: ssl.SSLContext) -> set[bytes | None]:
    """What eight connections at a time are shown."""
    address = ("127.0.0.1", int(service.url.rsplit(":", 1)[1]))
    with ExitStack() as closing:
        opened = [
            closing.enter_context(context.wrap_socket(socket.create_connection(address), server_hostname="localhost"))
            for _ in range(8)
        ]
        return {each.getpeercert(binary_form=True) for each in opened}


def test_an_attester_that_does_not_work_ends_the_start(tmp_path: Path, upstream: Engine) -> None:
    home = fresh(tmp_path)
    (home / "confide.toml").write_text(
        LOCAL.format(workers=2, server="", rest='[attester]\nkind = "tsm"\n', port=upstream.port)
    )
    environ = {**os.environ, "CONFIDE_HOME": str(home), "TSM_SIMULATOR_ENDPOINT": str(home / "nobody.sock")}
    command: list[str | Path] = [CONFIDE, "serve", "--port", "0", "--config", home / "confide.toml"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)
    assert done.returncode == 2
    assert '[attester] kind = "tsm"' in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_open_service_for_everybody_is_refused_before_anything_is_started(tmp_path: Path, upstream: Engine) -> None:
    home = fresh(tmp_path)
    text = LOCAL.format(workers=2, server='host = "0.0.0.0"', rest="", port=upstream.port)
    (home / "confide.toml").write_text(text)
    command: list[str | Path] = [CONFIDE, "serve", "--port", "0", "--config", home / "confide.toml"]
    environ = {**os.environ, "CONFIDE_HOME": str(home)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)
    assert done.returncode == 2
    assert "no API key" in done.stderr
    assert "worker" not in done.stderr


def test_every_worker_knows_a_new_key_and_that_one_is_revoked(tmp_path: Path, upstream: Engine) -> None:
    with serving(tmp_path, upstream) as service, callers(service) as by_worker:
        key = keys(service, "create", "laptop").strip()

        def statuses(**headers: str) -> list[int]:
            return [client.post(CHAT, json=prompt(), headers=headers).status_code for client in by_worker.values()]

        until(lambda: statuses() == [401, 401])
        assert statuses(authorization=f"Bearer {key}") == [200, 200]
        key_id = next(word for word in keys(service, "list").split() if word.startswith("key_"))
        keys(service, "revoke", key_id)
        until(lambda: statuses(authorization=f"Bearer {key}") == [401, 401])


def keys(service: Running, *arguments: str) -> str:
    """What `confide keys` prints."""
    environ = {**os.environ, "CONFIDE_HOME": str(service.home)}
    done = subprocess.run([CONFIDE, "keys", *arguments], capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_service_ends_when_no_worker_can_be_started(tmp_path: Path, upstream: Engine) -> None:
    with (
        simulating(tmp_path / "machine", "tsm", "--tee", "tdx") as machine,
        serving(tmp_path, upstream, environ=machine.environ) as service,
    ):
        machine.terminate()
        for pid in pids(service).values():
            os.kill(pid, signal.SIGKILL)
        assert service.process.wait(60) == 3
        assert "the workers ended, and could not be started again" in service.stderr.read_text()
        assert "Traceback" not in service.stderr.read_text()


def test_the_service_drains_when_it_could_start_no_worker_any_more(tmp_path: Path, upstream: Engine) -> None:
    with serving(tmp_path, upstream) as service, callers(service) as by_worker, ExitStack() as closing:
        upstream.go_on.clear()
        streams = [closing.enter_context(c.stream("POST", CHAT, json=prompt(stream=True))) for c in by_worker.values()]
        parts = [stream.iter_raw() for stream in streams]
        received = [next(each) for each in parts]
        [forks] = {parent_of(pid) for pid in pids(service).values()}
        assert forks != service.process.pid
        os.kill(forks, signal.SIGKILL)
        until(lambda: any(line["event"] == "forks.exited" for line in log_lines(service)))
        upstream.go_on.set()
        assert all((first + b"".join(rest)).endswith(DONE) for first, rest in zip(received, parts, strict=True))
        assert service.process.wait(60) == 3


def test_connections_are_spread_over_the_workers(tmp_path: Path, upstream: Engine) -> None:
    with serving(tmp_path, upstream) as service, ExitStack() as closing:
        receipts = []
        clients = [closing.enter_context(httpx2.Client(base_url=service.url)) for _ in range(24)]
        for client in clients:
            receipts.append(client.post(CHAT, json=prompt()).headers["x-receipt-id"])
        shares = [served_by(service, receipt) for receipt in receipts]
    assert 8 <= shares.count(1) <= 16


def test_each_line_of_the_log_is_whole_and_names_its_worker(tmp_path: Path, upstream: Engine) -> None:
    def ask(url: str) -> None:
        with httpx2.Client(base_url=url, timeout=30) as client:
            for _ in range(50):
                assert client.post(CHAT, json=prompt()).status_code == 200

    with serving(tmp_path, upstream) as service:
        askers = [threading.Thread(target=ask, args=(service.url,)) for _ in range(8)]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    requests = [line for line in log_lines(service) if line["event"] == "request"]
    assert len(requests) == 400
    assert {line["worker"] for line in requests} == {1, 2}
    assert service.stdout.read_text() == f"confide: ready on {service.url}\n"
