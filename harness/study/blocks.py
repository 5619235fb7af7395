"""What every block of the schema is made of: strict models, and values that carry their own message.

A field's `description` is what the user reads twice: in the editor, from the JSON Schema, and after `expected` in an
error message. Keys and values that are planned but not built are listed here as `later`: they are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, PlainValidator, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

from harness.study import units
from harness.study.errors import nearest
from harness.study.units import UnitError

SAID = "said"  # type of the errors whose message is written for the user
UNKNOWN_KEY = "extra_forbidden"  # pydantic's type for a key that the block does not have
TEXT_TAG, MAPPING_TAG = "<text>", "<mapping>"  # appear in pydantic's locations, never in a path


class Block(BaseModel):
    """A mapping of the study with a fixed set of keys. `later`: keys that are planned and refused by name; `refused`:
    keys that never will be, and what to say of them."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
    later: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[dict[str, str]] = {}

    @classmethod
    def refusal(cls, key: str) -> str | None:
        """What is said of a key that the block has not, where more is known of it than that."""
        if key in cls.later:
            return f"`{key}` is not supported yet"
        return f"`{key}`: {cls.refused[key]}" if key in cls.refused else None

    @classmethod
    def names(cls) -> list[str]:
        """The keys that a user may write, in order."""
        return [field.alias or name for name, field in cls.model_fields.items()]


def said(message: str) -> PydanticCustomError:
    """An error that reaches the user as it is."""
    return PydanticCustomError(SAID, "{message}", {"message": message})


def not_yet(what: str) -> PydanticCustomError:
    return said(f"`{what}` is not supported yet")


def unit(parse: Callable[[Any], Any], schema: dict[str, Any]) -> Any:
    """Annotation for a value that `parse` reads; `schema` is what an editor accepts for it."""

    def read(value: Any) -> Any:
        try:
            return parse(value)
        except UnitError as error:
            raise said(str(error)) from None

    return _Both(PlainValidator(read), WithJsonSchema(schema))


class _Both:
    """Two annotations as one, so that a unit is declared in one place."""

    def __init__(self, validator: PlainValidator, schema: WithJsonSchema) -> None:
        self._validator, self._schema = validator, schema

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return self._validator.__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> Any:
        return dict(self._schema.json_schema or {})


def choice(*valid: str, later: Sequence[str] = ()) -> BeforeValidator:
    """Annotation for one of `valid`; `later` are the names that are planned and refused as such."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value in later:
            raise not_yet(value)
        if not isinstance(value, str):
            raise said(f"is {units.kind(value)}; expected one of {', '.join(valid)}")
        if value not in valid:
            raise said(f"`{units.cut(value)}` is not known here; {nearest(value, valid)}")
        return value

    return BeforeValidator(check)


def _form(value: Any) -> str | None:
    if isinstance(value, str):
        return TEXT_TAG
    return MAPPING_TAG if isinstance(value, dict | Block) else None


# A union of a text and a mapping: Annotated[Annotated[str, TEXT] | Annotated[SomeBlock, MAPPING], TEXT_OR_MAPPING]
TEXT = Tag(TEXT_TAG)
MAPPING = Tag(MAPPING_TAG)
TEXT_OR_MAPPING = Discriminator(_form)

_COUNT_PATTERN = r"^~?([0-9]*\.?[0-9]+(k|M|B|T|Ki|Mi|Gi)?|2\^[0-9]{1,2})$"
_SIZE_PATTERN = r"^([0-9]+(Ki|Mi|Gi)?|2\^[0-9]{1,2})$"


def _number_or_text(kind: Literal["integer", "number"], pattern: str, **limits: Any) -> dict[str, Any]:
    return {"anyOf": [{"type": kind, **limits}, {"type": "string", "pattern": pattern}]}


def _count(value: Any, least: int) -> units.TokenCount:
    count = units.parse_tokens(value)
    if count.value < least:
        raise UnitError(f"{count.text} is not positive; expected a count of tokens such as 10B")
    return count


def _auto_factor(value: Any) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 1:
        raise UnitError(f"is {units.kind(value)}; expected a number above 1, or auto")
    return float(value)


def _tokens_or_rest(value: Any) -> units.TokenCount | units.FlopsOf | Literal["rest"]:
    if value == "rest":
        return "rest"
    if isinstance(value, dict):
        if set(value) != {"flops_of"} or not isinstance(value["flops_of"], str):
            raise UnitError("is a mapping; expected a count of tokens such as 10B, rest, or {flops_of: ARM}")
        return units.FlopsOf(value["flops_of"])
    try:
        return _count(value, 1)
    except UnitError as error:
        raise UnitError(f"{error}, or rest (what `total` leaves)") from None


def _exact(value: Any, least: int) -> int:
    count = _count(value, least)
    if count.about:
        raise UnitError(f"`{count.text}` would be rounded to nothing known; expected a count without ~")
    return int(count.value)


def _source_or_group(value: Any) -> str | list[str]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise UnitError(f"is {units.kind(value)}; expected the name of a source, or a list of names")
    return value


def _kept(value: Any) -> int | str:
    if value in ("last", "all"):
        return str(value)
    interval = units.parse_every(value) if isinstance(value, str) else None
    if interval is None:
        raise UnitError(f"is {units.kind(value)}; expected last, all, or an interval such as every 1B")
    return _exact(interval.text, 1)


def _duration(value: Any) -> int:
    return units.parse_duration(value)


_COUNT_SCHEMA = _number_or_text("integer", _COUNT_PATTERN, minimum=0)
_FLOPS_OF = {"type": "object", "properties": {"flops_of": {"type": "string"}}, "required": ["flops_of"]}
_REST_SCHEMA = {"anyOf": [*_COUNT_SCHEMA["anyOf"], {"const": "rest"}, {**_FLOPS_OF, "additionalProperties": False}]}
_RATE_SCHEMA = _number_or_text("number", r"^([0-9]*\.?[0-9]+(e-?[0-9]+)?)x$", minimum=0)
_START_SCHEMA = {"anyOf": [*_RATE_SCHEMA["anyOf"], {"const": "base"}]}
_WARMUP_START_SCHEMA = {"anyOf": [*_RATE_SCHEMA["anyOf"], {"enum": ["base", "previous"]}]}
_SHARE_SCHEMA = _number_or_text("number", "^[0-9]+/[0-9]+$", minimum=0, maximum=1)

Tokens = Annotated[units.TokenCount, unit(lambda value: _count(value, 1), _COUNT_SCHEMA)]
TokensOrNone = Annotated[units.TokenCount, unit(lambda value: _count(value, 0), _COUNT_SCHEMA)]
TokensOrRest = Annotated[units.TokenCount | units.FlopsOf | Literal["rest"], unit(_tokens_or_rest, _REST_SCHEMA)]
ExactTokens = Annotated[int, unit(lambda value: _exact(value, 1), _COUNT_SCHEMA)]
TokensSeen = Annotated[int, unit(lambda value: _exact(value, 0), _COUNT_SCHEMA)]
Size = Annotated[int, unit(units.parse_size, _number_or_text("integer", _SIZE_PATTERN, minimum=1))]
Share = Annotated[Fraction, unit(units.parse_share, _SHARE_SCHEMA)]
RateOrTimes = Annotated[units.Rate, unit(units.parse_rate, _RATE_SCHEMA)]
WarmupStart = Annotated[units.Rate | Literal["base", "previous"], unit(units.parse_warmup_start, _WARMUP_START_SCHEMA)]
Start = Annotated[units.Rate | Literal["base"], unit(units.parse_start, _START_SCHEMA)]
Margin = Annotated[
    units.Margin, unit(units.parse_margin, _number_or_text("number", r"^[0-9]*\.?[0-9]+ ?pp$", exclusiveMinimum=0))
]
AutoFactor = Annotated[
    float | Literal["auto"],
    unit(_auto_factor, {"anyOf": [{"type": "number", "exclusiveMinimum": 1}, {"const": "auto"}]}),
]
SourceOrGroup = Annotated[
    str | list[str],
    unit(
        _source_or_group, {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    ),
]
Kept = Annotated[
    int | Literal["last", "all"],
    unit(_kept, {"anyOf": [{"enum": ["last", "all"]}, {"type": "string", "pattern": "^every "}]}),
]
Duration = Annotated[int, unit(_duration, {"type": "string", "pattern": units.DURATION_PATTERN})]
