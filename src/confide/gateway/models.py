"""The models of one service: which id or alias is served by which upstream, and how each is described."""

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from confide.config import Model
from confide.errors import InvalidRequest, ModelNotFound
from confide.upstream.base import SurfaceName, Upstream
from confide.upstream.kinds.embedded_embeddings import EmbeddedEmbeddings
from confide.upstream.router import Candidate, Route

Kind = Literal["chat", "embeddings"]
SERVED_BY = {
    "chat": "this is a chat model: POST /v1/chat/completions serves it",
    "embeddings": "this is an embedding model: POST /v1/embeddings serves it",
}


class ServedModel:
    """A configured model with the upstreams that may serve it. `created`: Unix seconds. `simulated`: our own TEE is."""

    def __init__(self, model: Model, route: Route, *, created: int, simulated: bool, tee_only: bool = False) -> None:
        self.model = model
        self.route = route
        self.created = created
        self.simulated = simulated
        self.tee_only = tee_only

    @classmethod
    def by(cls, model: Model, upstream: Upstream, *, created: int, simulated: bool) -> "ServedModel":
        """Served by one upstream."""
        route = Route([Candidate(upstream, model.weights, name=None)])
        return cls(model, route, created=created, simulated=simulated)

    @property
    def is_tee(self) -> bool:
        """Whether hardware protects its prompts, at every upstream that may get one."""
        return not self.simulated and all(each.upstream.is_attested for each in self.route.candidates)

    @property
    def is_ready(self) -> bool:
        return any(candidate.upstream.is_ready for candidate in self.route.candidates)

    @property
    def description(self) -> str:
        return " or ".join(dict.fromkeys(each.upstream.description for each in self.route.candidates))

    @property
    def vector_length(self) -> int | None:
        """Numbers of a vector that it makes; None where that is not known, or it makes none."""
        found = (each.upstream for each in self.route.candidates)
        embedded = (each.vector_length for each in found if isinstance(each, EmbeddedEmbeddings))
        return self.model.vector_length or next(embedded, None)

    def document(self, app_id: str | None = None) -> dict[str, object]:
        """The catalogue entry (wire contract 3.1). Nothing in it is evidence. `app_id`: what the platform calls this
        application, for models that run inside it.
        """
        model, upstream = self.model, self.route.candidates[0].upstream
        inputs = list(model.modalities)
        is_embedding = model.kind == "embeddings"
        output = "embeddings" if is_embedding else "text"
        context = model.context_length or upstream.context_length
        own = {"appid": app_id} if app_id is not None and self.route.serving == "direct" else {}
        supported = model.supported_parameters or upstream.supported_parameters
        prices = msgspec.structs.asdict(model.pricing)
        return {
            "id": model.id,
            "object": "model",
            "created": self.created,
            "owned_by": model.provider,
            "name": model.name or model.id,
            "description": model.description or self.description,
            "context_length": context,
            "max_output_length": self.vector_length if is_embedding else model.max_output_length or context,
            "pricing": {name: price for name, price in prices.items() if price is not None},
            "providers": [model.provider],
            "metadata": {"tee": self.is_tee, "simulated_tee": self.simulated, **own},
            "is_tee": self.is_tee,
            "architecture": {
                "modality": f"{'+'.join(inputs)}->{output}",
                "input_modalities": inputs,
                "output_modalities": [output],
            },
            "input_modalities": inputs,
            "output_modalities": [output],
            "supported_parameters": sorted(supported),
        }


class ModelTable:
    """Looks models up by id, alias and provider. Ids are compared byte for byte."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self.replace(models)

    def replace(self, models: Iterable[ServedModel]) -> None:
        """From now on these are served. Requests that were admitted go on with what they found."""
        self.models = tuple(models)
        self._by_name: Mapping[str, ServedModel] = {
            name: served for served in self.models for name in (served.model.id, *served.model.aliases)
        }
        upstreams = [each.upstream for served in self.models for each in served.route.candidates]
        self.is_relayed = any(each.reads_body for each in upstreams)
        self._spoken = frozenset(surface for each in upstreams for surface in each.surfaces)

    def is_spoken(self, surface: SurfaceName) -> bool:
        """Whether there is an upstream that speaks it itself."""
        return surface in self._spoken

    def find(self, name: str, ways: frozenset[SurfaceName] | None = None) -> ServedModel:
        """The model with this id or alias, which can be asked in one of these `ways`, None for any.

        Raises ModelNotFound, which does not repeat the name; InvalidRequest for a model of another kind.
        """
        served = self._by_name.get(name)
        if served is None:
            raise ModelNotFound("no such model; GET /v1/models lists those there are", param="model")
        if ways is not None:
            require_kind(served, ways)
        return served

    def get(self, name: str) -> ServedModel | None:
        return self._by_name.get(name)

    def of_kind(self, kind: Kind) -> list[ServedModel]:
        """Each catalogue lists its own: embedding models are left out of the one of chat (wire contract 3.1)."""
        return [served for served in self.models if served.model.kind == kind]

    def of_provider(self, provider: str) -> list[ServedModel]:
        """Chat models of a provider, or with an alias under `provider/` (wire contract 3.1); else none."""
        return [
            served
            for served in self.of_kind("chat")
            if served.model.provider == provider
            or any(name.startswith(f"{provider}/") for name in (served.model.id, *served.model.aliases))
        ]


def require_kind(served: ServedModel, ways: frozenset[SurfaceName]) -> None:
    """Raise InvalidRequest for a model that cannot be asked in any of these `ways`."""
    wanted = "embeddings" if "embeddings" in ways else "chat"
    if served.model.kind != wanted:
        raise InvalidRequest(SERVED_BY[served.model.kind], param="model")
    if ways.isdisjoint(served.route.surfaces):
        raise InvalidRequest("this model is not served here: its engine does not have this surface", param="model")
