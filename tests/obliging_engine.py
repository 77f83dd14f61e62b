"""A scripted engine that can be asked anything: it has a template, a tokenizer, and vectors for every text."""

import base64
import json
from collections.abc import Callable
from typing import Any

from confide.config import Config, Limits, Model, Pricing
from confide.gateway.openapi.inference import EMBEDDING_MODEL, MODEL
from gateway_app import VECTOR_LENGTH
from scripted import Script, SeenRequest, response

EVERY_PRICE = Pricing(image="0.1", request="0.2", input_cache_read="0.3", input_cache_write="0.4")
CONFIG = Config(
    model=(
        Model(id=MODEL, upstream_model="scripted", pricing=EVERY_PRICE),
        Model(id=EMBEDDING_MODEL, kind="embeddings", upstream_model="scripted"),
    ),
    limits=Limits(queue=1024),
)


def obliging(generate: Callable[[dict[str, Any]], Script]) -> Callable[[SeenRequest], Script]:
    """What to do for each request. `generate`: for one that asks for text, by its body."""

    def follow(request: SeenRequest) -> Script:
        match request.target:
            case b"/apply-template":
                return [told({"prompt": request.body.decode()})]
            case b"/tokenize":
                return [told({"tokens": [1] * len(request.body)})]
            case b"/detokenize":
                return [told({"content": "abc"})]
            case b"/v1/embeddings":
                return [vectors(json.loads(request.body)["input"])]
        return generate(json.loads(request.body))

    return follow


def vectors(texts: list[object]) -> bytes:
    one = base64.b64encode(bytes(4 * VECTOR_LENGTH)).decode()
    data = [{"object": "embedding", "index": index, "embedding": one} for index, _ in enumerate(texts)]
    return told({"object": "list", "data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}})


def told(document: object) -> bytes:
    return response(json.dumps(document).encode())
