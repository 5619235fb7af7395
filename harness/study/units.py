"""The units that a study may use, and how a count of tokens becomes whole batches.

Token counts take the decimal suffixes k, M, B, T (`10B` is 10,000,000,000) and an optional `~` in front, which asks
for rounding to whole batches. Lengths and batches are integers, `2^n`, `Ki` or `Mi`; `32k` as a length is refused,
because it is read as 32,000 by some and as 32,768 by others. All arithmetic is exact.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

LARGEST = 2**63 - 1  # of a whole number: what a plan prints, and every seed, is read by others as 64 bits
LONGEST_SHOWN = 80  # characters of a value in a message
HIGHEST_RATE = 1e6  # and multiple of one: far above any that trains, and no product of two is beyond a double

# As many digits as anything here can mean: thousands of them, or such an exponent, would be a number all the same.
_NUMBER = r"\d{1,30}(?:\.\d{1,30})?|\.\d{1,30}"
_COUNT = re.compile(rf"(~?)({_NUMBER})([A-Za-z]*)", re.ASCII)
_POWER = re.compile(r"(~?)2\^(\d{1,2})", re.ASCII)
_TIMES = re.compile(r"(\d{1,30}(?:\.\d{1,30})?(?:e-?\d{1,2})?|\.\d{1,30})x", re.ASCII)
_RATIO = re.compile(r"(\d{1,30})/(\d{1,30})", re.ASCII)
_EVERY = re.compile(r"every\s+(\S+)")
_QUOTED = re.compile(rf"[-+]?(?:{_NUMBER})(?:[eE][-+]?\d{{1,3}})?", re.ASCII)  # what is a number without quotes
_POINTS = re.compile(rf"({_NUMBER})\s*pp", re.ASCII)


class UnitError(ValueError):
    """A value that cannot be read. `str(error)` says what is wrong and what was expected."""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """A number of tokens as written. `about` is the `~`: the count may be rounded to whole batches."""

    value: Fraction
    about: bool
    text: str


@dataclass(frozen=True, slots=True)
class FlopsOf:
    """As many tokens as make the whole path cost what `arm`'s costs."""

    arm: str


@dataclass(frozen=True, slots=True)
class Rate:
    """A learning rate as written: absolute, or (`times`) a multiple of `optimizer.lr`."""

    value: Fraction
    times: bool

    def resolve(self, peak: float) -> float:
        """The absolute rate. `0.1x` of 6e-3 is the double nearest to 6e-4, as if `6e-4` had been written."""
        return float(self.value * exact(peak)) if self.times else float(self.value)


@dataclass(frozen=True, slots=True)
class Margin:
    """A difference that a study allows, positive, in the metric's own unit. points: written in percentage points."""

    value: float
    points: bool


def exact(number: int | float) -> Fraction:
    """The decimal that was written, as an exact fraction: 0.1 is 1/10 and not the double next to it."""
    return Fraction(repr(number)) if isinstance(number, float) else Fraction(number)


def cut(text: str) -> str:
    """As much of what was written as a message shows."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def kind(value: Any) -> str:
    """What a value of the file is, in words, for messages."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`, true or false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text `{cut(value)}`" + (", in quotes, and no number" if _QUOTED.fullmatch(value) else "")
    return "a mapping" if isinstance(value, dict) else "a list"


def parse_tokens(value: Any) -> TokenCount:
    """A count of tokens: `512`, `10B`, `~0.26M`, `2^30`.

    Raises `UnitError` for anything else, for counts that are not whole numbers (unless `~`) and for negative ones.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise UnitError(f"{value} is negative; expected a count of tokens such as 10B")
        return _counted(TokenCount(Fraction(value), False, str(value)))
    if isinstance(value, float) and math.isfinite(value) and value >= 0 and value == int(value):
        raise UnitError(f"{value} is a decimal number; expected a count of tokens, here {with_suffix(int(value))}")
    if not isinstance(value, str):
        raise UnitError(f"is {kind(value)}; expected a count of tokens such as 10B, ~0.26M, 2^30 or 500000")
    count = _parse_power(value) or _parse_count(value)
    if not count.about and count.value.denominator != 1:
        raise UnitError(f"`{value}` is not a whole number of tokens; write a whole number, or ~{value} to round")
    return _counted(count)


def _counted(count: TokenCount) -> TokenCount:
    if count.value > LARGEST:
        raise UnitError(f"{count.text} is more than 64 bits hold; expected a count of tokens such as 10B")
    return count


def _parse_power(text: str) -> TokenCount | None:
    match = _POWER.fullmatch(text)
    return TokenCount(Fraction(2 ** int(match[2])), bool(match[1]), text) if match else None


def _parse_count(text: str) -> TokenCount:
    match = _COUNT.fullmatch(text)
    if not match:
        raise UnitError(f"`{text}` is not a count of tokens; expected one such as 10B, ~0.26M, 2^30 or 500000")
    about, number, suffix = match.groups()
    factor = DECIMAL.get(suffix) or BINARY.get(suffix)
    if factor is None:
        raise UnitError(f"`{text}` has the unknown unit `{suffix}`; expected k, M, B or T (decimal), Ki or Mi (binary)")
    return TokenCount(Fraction(number) * factor, bool(about), text)


def parse_size(value: Any) -> int:
    """A length or a batch: a positive integer, `2^n`, `4Ki` or `1Mi`. `32k` is ambiguous and refused."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise UnitError(f"{value} is not positive; expected a length such as 2048, 2^11 or 2Ki")
        return _held(value, str(value))
    if isinstance(value, str):
        if power := _POWER.fullmatch(value):
            if not power[1]:
                return _held(2 ** int(power[2]), value)
        elif (match := _COUNT.fullmatch(value)) and not match[1]:
            return _sized(value, Fraction(match[2]), match[3])
    raise UnitError(f"is {kind(value)}; expected a whole length such as 2048, 2^11 or 2Ki")


def _held(size: int, text: str) -> int:
    if size > LARGEST:
        raise UnitError(f"{text} is more than 64 bits hold; expected a whole length such as 2048, 2^11 or 2Ki")
    return size


def _sized(text: str, number: Fraction, suffix: str) -> int:
    if suffix in BINARY or suffix == "":
        size = number * BINARY.get(suffix, 1)
        if size.denominator == 1 and size > 0:
            return _held(int(size), text)
    power = "kmbt".find(suffix.lower()) + 1 if len(suffix) == 1 else 0
    if power:
        readings = f"{int(number * 1000**power)} or {int(number * 1024**power)}"
        raise UnitError(f"`{text}` is ambiguous as a length; expected {readings}")
    raise UnitError(f"`{text}` is not a length; expected a whole one such as 2048, 2^11 or 2Ki")


def parse_share(value: Any) -> Fraction:
    """A share of a mixture in [0, 1], exact: `0.3` is 3/10; `1/3` may be written as text."""
    share: Fraction | None = None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        share = exact(value)
    elif isinstance(value, str) and (match := _RATIO.fullmatch(value)) and int(match[2]):
        share = Fraction(int(match[1]), int(match[2]))
    if share is None:
        raise UnitError(f"is {kind(value)}; expected a share from 0 to 1 such as 0.3 or 1/3")
    if not 0 <= share <= 1:
        raise UnitError(f"{value} is not a share; expected a number from 0 to 1")
    return share


def write_share(share: Fraction) -> float | int | str:
    """A share as a user would write it: a decimal where it is exact, else `7/30`."""
    if share.denominator == 1:
        return int(share)
    return float(share) if exact(float(share)) == share else f"{share.numerator}/{share.denominator}"


def parse_rate(value: Any) -> Rate:
    """A learning rate: a number from 0, or `0.1x`, which is times `optimizer.lr`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        if value < 0:
            raise UnitError(f"{value} is negative; expected a learning rate from 0")
        return _trained(Rate(exact(value), False), value)
    if isinstance(value, str) and (match := _TIMES.fullmatch(value)):
        return _trained(Rate(Fraction(match[1]), True), value)
    raise UnitError(f"is {kind(value)}; expected a learning rate such as 3e-4, or 0.1x (times optimizer.lr)")


def _trained(rate: Rate, value: Any) -> Rate:
    if rate.value > HIGHEST_RATE:
        raise UnitError(f"{value} is higher than any rate; expected one such as 3e-4, or 0.1x (times optimizer.lr)")
    return rate


def parse_start(value: Any) -> Rate | Literal["base"]:
    """Where a schedule starts: a learning rate, or `base` for the rate at which the base was left."""
    if value == "base":
        return "base"
    try:
        return parse_rate(value)
    except UnitError as error:
        raise UnitError(f"{error}, or base (the rate at which the base was left)") from None


def parse_warmup_start(value: Any) -> Rate | Literal["base", "previous"]:
    """Where a warm-up starts: a learning rate, `base`, or `previous` for the rate at which the stage before ended."""
    if value in ("base", "previous"):
        return "base" if value == "base" else "previous"
    try:
        return parse_rate(value)
    except UnitError as error:
        raise UnitError(f"{error}, base (as base.lr) or previous (where the stage before ended)") from None


@lru_cache(maxsize=1024)  # asked for at every point of every run
def parse_every(text: str) -> TokenCount | None:
    """The interval of `every 1B`; None when the text is not of that form. Raises `UnitError` for a bad count."""
    match = _EVERY.fullmatch(text)
    return parse_tokens(match[1]) if match else None


DURATION_PATTERN = r"^([0-9]+d)?([0-9]+h)?([0-9]+m)?$"
_DURATION = re.compile(r"(?=.)(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?", re.ASCII)


def parse_duration(value: Any) -> int:
    """Seconds of `12h`, `1h30m` or `2d`. Raises `UnitError` for anything else and for nothing."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    days, hours, minutes = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    seconds = 60 * (minutes + 60 * (hours + 24 * days))
    if not seconds:
        raise UnitError(f"is {kind(value)}; expected a duration such as 12h, 1h30m or 2d")
    return seconds


def parse_margin(value: Any) -> Margin:
    """`0.5pp` is 0.005 of a share; a number is in the metric's own unit. Raises `UnitError` for 0 and below."""
    margin: Margin | None = None
    if isinstance(value, str) and (match := _POINTS.fullmatch(value)):
        margin = Margin(float(Fraction(match[1]) / 100), True)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        margin = Margin(float(value), False)
    if margin is None:
        raise UnitError(f"is {kind(value)}; expected a margin such as 0.5pp for a score, or 0.01 for bits per byte")
    if margin.value <= 0:
        raise UnitError(f"{value} is no margin; expected one above 0, such as 0.5pp")
    return margin


def whole_batches(count: TokenCount, batch: int) -> int:
    """Tokens in whole batches: rounded to the nearest (halves up) after `~`, else exact.

    Raises `UnitError`, naming the two nearest counts, when the count does not fit and has no `~`.
    """
    batches = count.value / batch
    if count.about:
        return math.floor(batches + Fraction(1, 2)) * batch
    if batches.denominator != 1:
        below, above = math.floor(batches) * batch, math.ceil(batches) * batch
        raise UnitError(
            f"{count.text} is not a whole number of batches of {batch:,} tokens; expected one of the "
            f"nearest, {below:,} and {above:,}, or ~{count.text} to round"
        )
    return int(count.value)


def with_suffix(count: int) -> str:
    """A count of tokens as a user would write it: 1500000000 is `1.5B`."""
    for suffix in ("T", "B", "M", "k"):
        if count >= DECIMAL[suffix] and count * 100 % DECIMAL[suffix] == 0:
            return f"{count / DECIMAL[suffix]:g}{suffix}"
    return str(count)
