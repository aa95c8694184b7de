"""How much is chosen, and how: the settings of a choice, and the ways in which a number of tokens may be written."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tov.config.presets import by_task
from tov.config.settings import Settings, setting
from tov.errors import ConfigError

Transform = Literal["identity", "abs", "positive"]
Normalize = Literal["none", "initial-loss"]
Rule = Literal["score+random", "score-only", "sample", "round-robin"]
UNITS = {"k": 10**3, "m": 10**6, "g": 10**9}
MOST_TOKENS = 10**15
"""More than any pool has; a number with a large exponent is refused, not written out."""


def tokens_of(value: Any) -> Any:
    """A number of tokens as it may be written: `2000000`, `2_000_000`, `2e6`, `500k`, `2M`, `1.5G`.

    Raises:
        ConfigError: it is no whole number from 1 to `MOST_TOKENS`.
    """
    text = str(value).strip()
    unit = UNITS.get(text[-1:].lower())
    try:
        number = Decimal(text[:-1] if unit else text) * (unit or 1)
        whole = 1 <= number <= MOST_TOKENS and number == number.to_integral_value()
    except ArithmeticError:  # no number, or NaN, or beyond all bounds
        whole = False
    if not whole or isinstance(value, bool):
        raise ConfigError(
            f"{value!r} is no number of tokens.",
            allowed="a whole number of tokens, e.g. 2000000, 2_000_000, 2e6, 500k, 2M or 1.5G",
            fix="Write one of these.",
        )
    return int(number)


def written(share: float) -> Fraction:
    """The number as it is written, 3/10 for 0.3: sums and multiples of it are exact."""
    return Fraction(str(share))


def share_of(source: str, value: Any) -> float:
    """A share as it may be written: `0.3`, `30%`.

    Raises:
        ConfigError: it is no number from 0 to 1.
    """
    text = str(value).strip()
    try:
        number = Decimal(text[:-1]) / 100 if text.endswith("%") else Decimal(text)
        fits = 0 <= number <= 1
    except ArithmeticError:  # no number, or NaN
        fits = False
    if not fits or isinstance(value, bool):
        raise ConfigError(
            f"{source}={value} is no share.",
            allowed="a number above 0 and at most 1, e.g. 0.5 or 50%; 0 takes nothing from the source",
            fix="Write one of these behind '='.",
        )
    return float(number)


def _shares_in(value: Any) -> dict[str, str]:
    """Source -> share, of `SOURCE=SHARE` words."""
    words = [str(word) for word in value] if isinstance(value, (list, tuple)) else [str(value)]
    pairs = [word.rpartition("=")[::2] for word in words]
    shares = dict(pairs)
    if "" in shares or len(shares) < len(pairs):
        raise ConfigError(
            f"'{' '.join(words)}' {'has a share of no source' if '' in shares else 'names a source twice'}.",
            allowed="pairs SOURCE=SHARE, e.g. web=0.3, one for a source",
            fix="Name the source before '='." if "" in shares else "Give it once.",
        )
    return shares


TokenCount = Annotated[int, BeforeValidator(lambda value: value if value is None else tokens_of(value))]


class RuleSettings(Settings):
    """How a score becomes a choice."""

    transform: Transform = setting(
        "choice", "function F that is applied to each token's gain before the mean", "positive", used_by=("gain",)
    )
    normalize: Normalize | None = setting(
        "choice", "divisor of a row's score: none, or the row's log-loss under the base state (relative improvement); "
        f"auto: {by_task('normalize')}", None, used_by=("gain",),
    )  # fmt: skip
    nearness: float = setting(
        "choice", "weight w of nearness, a row's largest cosine to a target row: rows are ranked by (1 - w) percentile(score) "
        "+ w percentile(nearness)", 0.0, ge=0, le=1, used_by=("gain",), unless=0.0,
    )  # fmt: skip
    uncertainty: float = setting(
        "choice", "weight u of uncertainty, a row's mean log[p (1 - p)] under the base states; the score's weight is 1 - w - u",
        0.0, ge=0, le=1, used_by=("gain",), unless=0.0,
    )  # fmt: skip
    rule: Rule | None = setting(
        "choice", "rule of the choice: half by score and half at random; all by score; a draw with probability proportional to "
        "exp(score); or round robin, in which each target row takes its best free row; auto: the method's own rule "
        "(tov: score+random)", None, used_by=("rule",),
    )  # fmt: skip
    bins: int | None = setting(
        "choice", "length bins of equal capacity, by scored tokens, each with the same quota; auto: the method's own number "
        "(tov: 10)", None, ge=1, used_by=("rule",),
    )  # fmt: skip
    source_cap: dict[str, Annotated[float, Field(gt=0, le=1)]] = setting(
        "choice", "maximum share of one source among the chosen rows: for every source (0.3), or for some (web=0.2 books=0.5)",
        {}, used_by=("rule",), unless={},
    )  # fmt: skip

    @model_validator(mode="after")
    def _leaves_the_score_a_share(self) -> RuleSettings:
        if self.nearness + self.uncertainty > 1 + 1e-9:
            raise ConfigError(
                f"--nearness {self.nearness:g} and --uncertainty {self.uncertainty:g} are more than 1 together.",
                allowed="weights of at most 1 together: what is left is the score's",
                fix="Lower one of the two.",
            )
        return self


class SelectionSettings(RuleSettings):
    """How much is chosen from scores, and how."""

    amount_needed: ClassVar[bool] = True
    n: int | None = setting("choice", "number of rows to choose; or give --tokens", None, ge=1, unless=None)
    tokens: TokenCount | None = setting(
        "choice", "tokens to choose, in place of --n: rows are taken until the next one does not fit; a row has the tokens "
        "that a training passes, prompt and answer, within --max-length; 500k, 2M, 1.5G, 2_000_000, 2e6", None, unless=None,
    )  # fmt: skip
    share: dict[str, Annotated[float, Field(ge=0, le=1)]] = setting(
        "choice", "share of the choice (of the rows, or of the tokens) that comes from a source (web=0.3 books=20%), or that "
        "one of several targets has (maths=0.5); the sources, and the targets, that are not named share the rest", {},
        unless={},
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_amount(self) -> SelectionSettings:
        if self.n is not None and self.tokens is not None:
            raise ConfigError(
                f"--n {self.n} and --tokens {self.tokens} both say how much to choose.",
                allowed="one of the two",
                fix="Leave one of them out.",
            )
        if self.amount_needed and self.n is None and self.tokens is None:
            raise ConfigError(
                "Neither --n nor --tokens is given.",
                allowed="--n, a number of rows, or --tokens, a number of tokens",
                fix="Say how much to choose, e.g. --n 1000 or --tokens 2M.",
            )
        return self

    @field_validator("share", mode="before")
    @classmethod
    def _from_words(cls, value: Any) -> Any:
        pairs = value if isinstance(value, dict) else _shares_in(value)
        return {source: share_of(source, share) for source, share in pairs.items()}
