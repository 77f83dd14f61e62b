"""The attacker relays plain HTTP and gives something unproven the name of an answer that is proven.

`confide.proof(object)` leads from what an SDK returned to what was checked about it, by request id, receipt id or
response id. With the id of an earlier answer on a list of models, on an error, or on a stream that is not over, they
want a person to see its proof there. Unproven things lead to no proof. The twin: each answer leads to its own.
"""

from typing import Any

import httpx2
import openai
import pytest

import confide
from attested_service import ANSWER, API_KEY, CHAT, MODEL, AttestedService, error
from callers import EVERY, PROMPT, Kind, asking
from confide.client.proof import NoProof


@pytest.fixture
def earlier(service: AttestedService) -> confide.Proof:
    """The proof of an answer that came before."""
    with asking(service) as caller:
        assert caller.ask() == ANSWER
        return confide.proof(caller.answer)


@pytest.mark.parametrize("kind", EVERY)
def test_each_answer_leads_to_its_own_proof(service: AttestedService, kind: Kind) -> None:
    found = []
    with asking(service, kind) as caller:
        for _ in range(3):
            caller.ask()
            found.append(confide.proof(caller.answer))
    assert len({proof.receipt_id for proof in found}) == 3
    assert [proof.receipt_id for proof in found] == list(service.receipts)[-3:]


def borrowing(earlier: confide.Proof) -> dict[str, Any]:
    names = ("x_request_id", "request_id", "x_receipt_id")
    return dict.fromkeys(names, earlier.receipt_id)


def test_a_list_of_models_borrows_no_proof(service: AttestedService, earlier: confide.Proof) -> None:
    service.alter["models"] = lambda reply, _: reply.but(**borrowing(earlier))
    with asking(service) as caller:
        models = caller.sdk.models.list()
        assert [model.id for model in models] == [MODEL]
        with pytest.raises(NoProof):
            confide.proof(models)
        raw = caller.client.get(service.url + "/v1/models")
        with pytest.raises(NoProof):
            confide.proof(raw)


def test_an_object_with_the_id_of_an_answer_borrows_no_proof(service: AttestedService, earlier: confide.Proof) -> None:
    service.alter["unknown"] = lambda reply, _: reply.holding(
        {"id": earlier.chat_id, "object": "model", "created": 1, "owned_by": "vendor"}
    ).but(status=200)
    with asking(service) as caller:
        model = caller.sdk.models.retrieve("a-model")
        assert model.id == earlier.chat_id
        with pytest.raises(NoProof):
            confide.proof(model)


def test_an_error_borrows_no_proof(service: AttestedService, earlier: confide.Proof) -> None:
    borrowed = borrowing(earlier) | {"x_receipt_id": None}
    service.alter["answer"] = lambda reply, _: error(400, "invalid_request_error").but(**borrowed)
    with asking(service) as caller:
        with pytest.raises(openai.BadRequestError) as caught:
            caller.ask()
        for each in (caught.value, caught.value.response, caught.value.request_id):
            with pytest.raises(NoProof):
                confide.proof(each)


def test_a_stream_that_is_not_over_borrows_no_proof(service: AttestedService, earlier: confide.Proof) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(**borrowing(earlier))
    body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "stream": True}
    with (
        confide.Client(service.policy(), headers={"authorization": f"Bearer {API_KEY}"}) as client,
        client.stream("POST", service.url + CHAT, json=body) as response,
    ):
        with pytest.raises(NoProof):
            confide.proof(response)
        with pytest.raises(confide.VerificationError) as caught:
            response.read()
        assert caught.value.check == "receipt-3"
        with pytest.raises(NoProof):
            confide.proof(response)


def test_a_response_of_another_client_has_no_extension_that_counts(earlier: confide.Proof) -> None:
    """What is no Proof of ours is none, whatever it is called."""
    response = httpx2.Response(200, extensions={"confide.proof": "VERIFIED"})
    with pytest.raises(NoProof):
        confide.proof(response)
    assert confide.proof(earlier.receipt_id) is earlier
