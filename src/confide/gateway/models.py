"""The models of one service: which id or alias is served by which upstream, and how each is described."""

from collections.abc import Iterable, Mapping

from confide.config import Model
from confide.errors import ModelNotFound
from confide.upstream.base import Upstream


class ServedModel:
    """A configured model with the upstream that serves it. `created`: Unix seconds."""

    def __init__(self, model: Model, upstream: Upstream, *, created: int, is_tee: bool) -> None:
        self.model = model
        self.upstream = upstream
        self.created = created
        self.is_tee = is_tee

    def document(self) -> dict[str, object]:
        """The catalogue entry (wire contract 3.1). Nothing in it is evidence."""
        model, upstream = self.model, self.upstream
        inputs = list(model.modalities)
        return {
            "id": model.id,
            "object": "model",
            "created": self.created,
            "owned_by": model.provider,
            "name": model.name or model.id,
            "description": model.description or upstream.description,
            "context_length": model.context_length or upstream.context_length,
            "max_output_length": model.context_length or upstream.context_length,
            "pricing": {"prompt": model.pricing.prompt, "completion": model.pricing.completion},
            "providers": [model.provider],
            "metadata": {"tee": self.is_tee, "simulated_tee": not self.is_tee},
            "is_tee": self.is_tee,
            "architecture": {
                "modality": f"{'+'.join(inputs)}->text",
                "input_modalities": inputs,
                "output_modalities": ["text"],
            },
            "input_modalities": inputs,
            "output_modalities": ["text"],
            "supported_parameters": sorted(upstream.supported_parameters),
        }


class ModelTable:
    """Looks models up by id, alias and provider. Ids are compared byte for byte."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self.models = tuple(models)
        self._by_name: Mapping[str, ServedModel] = {
            name: served for served in self.models for name in (served.model.id, *served.model.aliases)
        }

    def find(self, name: str) -> ServedModel:
        """The model with this id or alias. Raises ModelNotFound, which does not repeat the name."""
        served = self._by_name.get(name)
        if served is None:
            raise ModelNotFound("no such model; GET /v1/models lists those there are", param="model")
        return served

    def get(self, name: str) -> ServedModel | None:
        return self._by_name.get(name)

    def of_provider(self, provider: str) -> list[ServedModel]:
        """Models of a provider, or with an alias under `provider/` (wire contract 3.1); an unknown one has none."""
        return [
            served
            for served in self.models
            if served.model.provider == provider
            or any(name.startswith(f"{provider}/") for name in (served.model.id, *served.model.aliases))
        ]
