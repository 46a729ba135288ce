"""The bodies of Ollama's routes that are about models: show, pull, delete. Calls nothing."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from forgellm.api.schemas.body import Body, Name, honoured, only


def plain(model: str) -> str:
    """The name without `:latest`, which means nothing here."""
    return model.removesuffix(":latest") or model


class About(Body, frozen=True, kw_only=True):
    """What these bodies have. Several clients of Ollama send no Content-Type, and older ones `name`."""

    ALIASES: ClassVar[Mapping[str, str]] = {"name": "model"}
    NEEDS_TYPE: ClassVar[bool] = False

    model: Annotated[Name, honoured("which model; `:latest` at its end means nothing")]

    @property
    def name(self) -> str:
        return plain(self.model)


class ShowBody(About, frozen=True, kw_only=True):
    """POST /api/show."""

    verbose: Annotated[bool | None, only(False, "the lists of a tokenizer are not shown")] = None
    system: Annotated[str | None, only("", "a model is shown as it is")] = None
    template: Annotated[str | None, only("", "a model is shown as it is")] = None
    options: Annotated[dict[str, Any] | None, only({}, "a model is shown as it is")] = None


class OllamaPullBody(About, frozen=True, kw_only=True):
    """POST /api/pull."""

    model: Annotated[Name, honoured("the repository, ORG/NAME or ORG/NAME@REVISION; `:latest` means nothing")]
    stream: Annotated[bool, honoured("the progress as lines of JSON; false: one answer when the model is here")] = True
    insecure: Annotated[bool | None, only(False, "which hub it is, and each file, is always checked")] = None


class OllamaDeleteBody(About, frozen=True, kw_only=True):
    """DELETE /api/delete."""

    model: Annotated[Name, honoured("the repository ORG/NAME, which is removed with all its revisions")]
