"""A whole release in one file: what it is made of, what is made, how good it must be, and where it goes.

Options on a command line are forgotten. A recipe lies beside the model, under version control, and gives the same
bytes again. A wrong field in it must not cost an export of hours, so everything that can be known from the file is
checked when it is read, and told with its line.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from hermetiq.api.options import ExportOptions, LayoutName, PublishOptions, VerifyOptions
from hermetiq.checkpoint.hub import is_hub_id, snapshot
from hermetiq.errors import HermetiqError
from hermetiq.lined_yaml import LinedYaml
from hermetiq.quantize.spec import FORMATS, parse
from hermetiq.rules import named

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_REMEDY: Final = "docs/python.md has every field"
_ALL: Final = "all"
"""Limit of the artifacts that have none of their own."""
_FILES: Final = (".gguf", ".jsonl", ".txt")
"""No Hub id ends like this."""
_WORDS: Final = {
    "missing": "is missing",
    "model_type": "fields are expected here, each as `name: value`",
    "tuple_type": "a list is expected",
}
"""What is told of an error, by pydantic's name for it; pydantic's own words where it is not here."""


def _folder(info: ValidationInfo) -> Path:
    """Where relative paths begin: in the recipe's folder."""
    return Path() if info.context is None else Path(info.context["folder"])


def _beside(text: str, info: ValidationInfo) -> str:
    """A path from the recipe's folder on, or a Hub id.

    Raises:
        ValueError: a path of the working folder, from where another run need not start.
    """
    path = _folder(info) / text
    try:
        if path.exists() or not is_hub_id(text) or text.endswith(_FILES):
            return str(path)
        strayed = Path(text).exists()
    except OSError as error:
        raise ValueError(f"no path: {error.strerror}") from error
    if strayed:
        raise ValueError(f"{text} lies in the working folder, and not beside the recipe")
    return text


def _read_by(read: Callable[[str], str]) -> AfterValidator:
    """Text that `read` takes and spells in its one way; its error becomes that of the field."""

    def check(text: str) -> str:
        try:
            return read(text)
        except HermetiqError as error:
            raise ValueError("; ".join(filter(None, (error.what, error.remedy)))) from error

    return AfterValidator(check)


def _hub_id(text: str) -> str:
    if not is_hub_id(text):
        raise HermetiqError(f"{text!r} is no Hub id", remedy="give ORG/NAME")
    return text


def _limited(text: str) -> str:
    return text if text in (_ALL, *FORMATS) else str(parse(text))


def _init_tags(text: str, info: ValidationInfo) -> str:
    """Checked as `--init-tags` is; the path of a parent begins in the recipe's folder."""
    # Imported late: it brings torch along, and few recipes ask for it.
    from hermetiq.repair import InitTags

    try:
        started = InitTags.parse(text)
    except HermetiqError as error:
        raise ValueError(f"{error.what}; {error.remedy}") from error
    return f"parent:{_beside(started.argument, info)}" if started.kind == InitTags.PARENT else text


Place = Annotated[str, AfterValidator(_beside)]
File = Annotated[Path, Field(strict=False), AfterValidator(lambda path, info: _folder(info) / path)]
HubId = Annotated[str, _read_by(_hub_id)]
Kl = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Nats per token."""


class _Section(BaseModel):
    """Fields as they are declared, of the types they are declared with, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Calibration(_Section):
    """The text that statistics are taken from."""

    corpus: Place | None = None
    """`.jsonl`, `.txt` or a `datasets` id; built in by default."""
    rows: int = Field(default=128, ge=1)
    row_tokens: int = Field(default=512, ge=32)
    seed: int = 0


class Thresholds(_Section):
    """How good the artifacts must be."""

    max_kl: Annotated[
        dict[Annotated[str, _read_by(_limited)], Kl],
        BeforeValidator(lambda value: value if isinstance(value, dict) else {_ALL: value}),
    ] = Field(default_factory=dict)
    """Largest mean KL per token: a number, or numbers by spec, format or `all`; the nearest counts."""


class Publishing(_Section):
    """Where the release goes, and what its card says."""

    repo: HubId
    layout: LayoutName = "per-format"
    base_model: str | None = None
    """Hub id of the model that was quantized, or `none`."""
    license: str | None = None
    private: bool = False


class ReleaseRecipe(_Section):
    """The file. Paths in it begin in its folder; what is left out is as the command line has it."""

    source: Place
    """Folder, .gguf file or Hub id."""
    revision: str | None = None
    """Commit of a Hub id; without it the source is what the Hub has that day."""
    adapter: Place | None = None
    out: File | None = None
    """Folder of the export, where the command line names none."""
    to: Annotated[
        tuple[Annotated[str, _read_by(lambda text: str(parse(text)))], ...], Field(strict=False, min_length=1)
    ]
    name: str | None = None
    ignore: Annotated[tuple[Annotated[str, _read_by(lambda text: named(text).name)], ...], Field(strict=False)] = ()
    sequential: bool = False
    imatrix: bool | None = None
    measurement: File | None = None
    repair: bool = False
    init_tags: Annotated[str, AfterValidator(_init_tags)] | None = None
    chat_template: File | None = None
    base_model: bool = False
    """The model has no chat template, and that is right."""
    calibration: Calibration = Calibration()
    thresholds: Thresholds = Thresholds()
    publish: Publishing | None = None

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a recipe.

        Raises:
            HermetiqError: no such file, not YAML, or fields that are missing, unknown or wrong: `FILE:LINE: FIELD` of
                the first, and a line for each other.
        """
        lined = LinedYaml.read(Path(path))
        try:
            return cls.model_validate(lined.data, context={"folder": Path(path).parent})
        except ValidationError as error:
            wrong = [(lined.place(each["loc"]), _what(each)) for each in error.errors(include_url=False)]
            (where, what), *others = dict.fromkeys(wrong)
            told = "\n".join((what, *(f"{place}: {fault}" for place, fault in others)))
            raise HermetiqError(told, where=where, remedy=_REMEDY) from None

    @field_validator("revision")
    @classmethod
    def _of_the_hub(cls, revision: str | None, info: ValidationInfo) -> str | None:
        source = info.data.get("source", "")
        if revision is not None and source and not (is_hub_id(source) and not Path(source).exists()):
            raise ValueError("only a Hub id has revisions")
        return revision

    @field_validator("thresholds")
    @classmethod
    def _served(cls, thresholds: Thresholds, info: ValidationInfo) -> Thresholds:
        specs = [parse(text) for text in info.data.get("to", ())]
        known = {_ALL, *(name for spec in specs for name in (str(spec), spec.format))}
        if strangers := [name for name in thresholds.max_kl if specs and name not in known]:
            raise ValueError(f"max_kl limits {strangers[0]!r}, which `to` does not make")
        return thresholds

    @property
    def path(self) -> str:
        """The source as it is opened; of a revision, the folder that it is downloaded to.

        Raises:
            HermetiqError: the Hub does not give it.
        """
        return self.source if self.revision is None else str(snapshot(self.source, revision=self.revision))

    @property
    def folder(self) -> Path:
        """`out`.

        Raises:
            HermetiqError: the recipe names none.
        """
        if self.out is None:
            raise HermetiqError("the recipe names no folder", where="out", remedy="give OUT, or `out:` in the recipe")
        return self.out

    @property
    def repo(self) -> str:
        """`publish.repo`.

        Raises:
            HermetiqError: the recipe does not say where to publish.
        """
        return self._publishing.repo

    def export_options(self) -> ExportOptions:
        """For `hermetiq.export`."""
        return ExportOptions(
            to=self.to,
            adapter=self.adapter,
            ignore=self.ignore,
            name=self.name,
            calibration=self.calibration.corpus,
            rows=self.calibration.rows,
            row_tokens=self.calibration.row_tokens,
            seed=self.calibration.seed,
            sequential=self.sequential,
            imatrix=self.imatrix,
            measurement=self.measurement,
            repair=self.repair,
            init_tags=self.init_tags,
            chat_template=self.chat_template,
            base_model=self.base_model,
        )

    def verify_options(self) -> VerifyOptions:
        """For `hermetiq.verify`."""
        own = {name: limit for name, limit in self.thresholds.max_kl.items() if name != _ALL}
        common = self.thresholds.max_kl.get(_ALL)
        every = {} if common is None else {parse(text).format: common for text in self.to}
        parent = self.init_tags if self.init_tags and self.init_tags.startswith("parent:") else None
        return VerifyOptions(adapter=self.adapter, max_kl={**every, **own}, init_tags=parent)

    def publish_options(self) -> PublishOptions:
        """For `hermetiq.publish`.

        Raises:
            HermetiqError: the recipe does not say where to publish.
        """
        goal = self._publishing
        return PublishOptions(
            layout=goal.layout, base_model=goal.base_model, license=goal.license, private=goal.private
        )

    @property
    def _publishing(self) -> Publishing:
        if self.publish is None:
            raise HermetiqError(
                "the recipe says nothing of it", where="publish", remedy="add `publish:` with its `repo:`"
            )
        return self.publish


_FIELDS: Final = sorted(
    {name for kind in (ReleaseRecipe, Calibration, Thresholds, Publishing) for name in kind.model_fields}
)


def _what(error: ErrorDetails) -> str:
    """An error in our words; the place is told beside it."""
    kind = error["type"]
    if kind == "extra_forbidden":
        near = get_close_matches(str(error["loc"][-1]), _FIELDS, n=1)
        return f"no such field{f'; {near[0]} is one' if near else ''}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    return _WORDS.get(kind, error["msg"])
