"""Instruction tuning: conversations, of which the assistant's turns are scored, and bare text. The model keeps its own head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tov.data.cells import BadRow, NotGold, as_text, check_gold
from tov.data.labels import Reading
from tov.data.rows import Convert, Layout, settled
from tov.sinks import json_text
from tov.tasks.base import Defaults, Part, Task
from tov.tasks.turns import history, read_context, read_turns
from tov.text.chat import NOTHING, Context, Message, prepare
from tov.text.shown import KINDS
from tov.text.spans import Rendered, render, render_bare

if TYPE_CHECKING:
    from tov.text.encode import Encoded


@dataclass(frozen=True)
class Conversation:
    """What the model sees of a row: turns, of which the assistant's are scored.

    Attributes:
        messages: the turns.
        plain: marks bare text (one assistant turn, no chat template, every token scored).
        context: what the chat template is given beside the turns.
        unscored: places of assistant turns that are seen but not scored.
        rejected: of a preference pair, the conversation with the rejected answer in place of the chosen one.
    """

    messages: tuple[Message, ...]
    plain: bool = False
    context: Context = NOTHING
    unscored: frozenset[int] = frozenset()
    rejected: Conversation | None = None
    repaired: ClassVar[bool] = False

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last assistant turn."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The last assistant turn."""
        return str(self.messages[-1].get("content") or "")

    @property
    def text(self) -> str:
        """All that is said, thought and called, a line break between."""
        return "\n".join(text for message in self.messages for text in _texts(message))

    @property
    def content(self) -> list[Any]:
        """All that the model sees (of a pair both answers) and which of it is scored, whatever file format it came in."""
        turns: list[Any] = [[message["role"], message["content"], *_beside(message)] for message in self.messages]
        unscored = [{"unscored": sorted(self.unscored)}] if self.unscored else []
        rejected = [{"rejected": self.rejected.content}] if self.rejected else []
        return [*turns, *_of_context(self.context), *unscored, *rejected]

    @property
    def question(self) -> list[str]:
        """Everything before the last assistant turn; system turns count only where there is nothing else.

        Calls, tools and documents count too, for what is asked depends on them. Bare text stands for itself.
        """
        turns = [message for message in self.prompt if message["role"] not in ("system", "developer")] or self.messages
        calls = [message["tool_calls"] for message in turns if message.get("tool_calls")]
        called = [json_text([settled(call["function"]) for call in one]) for one in calls]  # without their ids
        beside = [json_text(settled(value)) for value in (self.context.tools, self.context.documents) if value]
        return [*(str(message["content"]) for message in turns), *called, *beside]

    @property
    def labels(self) -> set[str]:
        """None: what is predicted is text."""
        return set()


def _texts(message: Message) -> list[str]:
    """A turn's reasoning, words and calls."""
    said = [str(message["content"])]
    thought = [message["reasoning_content"]] if message.get("reasoning_content") else []
    return [*thought, *said, *(json_text(call["function"]) for call in message.get("tool_calls", ()))]


def _beside(message: Message) -> list[Any]:
    """What a turn has beside role and content; in one order of keys, for file formats differ in it."""
    calls = [settled(message["tool_calls"])] if message.get("tool_calls") else []
    rest = {key: message[key] for key in ("name", "reasoning_content", "tool_call_id") if key in message}
    return [*calls, *([rest] if rest else [])]


def _of_context(context: Context) -> list[Any]:
    pairs = {"tools": context.tools, "documents": context.documents, "chat_template_kwargs": context.settings}
    return [{name: settled(value)} for name, value in pairs.items() if value]


def from_messages(row: Mapping[str, Any]) -> Conversation:
    """OpenAI's, Anthropic's and TRL's `messages`."""
    turns, unscored = read_turns(row["messages"], row.get("system"))
    return Conversation(turns, context=read_context(row), unscored=unscored)


def from_sharegpt(row: Mapping[str, Any]) -> Conversation:
    """`conversations` of ShareGPT: from/value, or role/content."""
    turns, unscored = read_turns(row["conversations"], row.get("system"))
    return Conversation(turns, context=read_context(row), unscored=unscored)


def _pair(prompt: str, answer: str, row: Mapping[str, Any], before: Sequence[Message] = ()) -> Conversation:
    system = row.get("system")
    first = [{"role": "system", "content": as_text(system, "system")}] if system else []
    turns = (*first, *before, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Conversation(turns, context=read_context(row))


def from_prompt_completion(row: Mapping[str, Any]) -> Conversation:
    """Two texts, or two lists of turns; an assistant's turn in the prompt is seen but not scored, as TRL has it.

    In TRL's unpaired preferences a `label` that is false marks a completion that is not wanted.
    """
    if _unwanted(row.get("label")):
        raise NotGold("its label is false, so its completion is not wanted")
    return _answered(row, row["prompt"], row["completion"], "completion")


def _unwanted(label: Any) -> bool:
    """Whether a `label` or `kto_tag` says that an answer is not wanted: false, also as a CSV file has it. A number may be a
    class's.
    """
    return str(label).strip().lower() == "false"


def _answered(row: Mapping[str, Any], prompt: Any, completion: Any, name: str) -> Conversation:
    as_turns = [_are_turns(prompt), _are_turns(completion)]
    if any(as_turns) and not all(as_turns):
        raise BadRow(f"of prompt and {name} one is a list of turns, but both must be, or both text")
    if not any(as_turns):
        return _pair(as_text(prompt, "prompt"), as_text(completion, name), row)
    turns, unscored = read_turns([*prompt, *completion], row.get("system"), asked=len(prompt))
    return Conversation(turns, context=read_context(row), unscored=unscored)


def from_preference(row: Mapping[str, Any]) -> Conversation:
    """A preference pair: `chosen` and `rejected`, with a `prompt`, with Alpaca's columns, behind the turns that both begin
    with, or a turn each behind `conversations` or `messages`.

    The chosen answer is scored; the rejected one only for a margin.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    prompt: Any = row.get("prompt")
    if isinstance(chosen, Mapping) and isinstance(rejected, Mapping):  # as LLaMA-Factory and Axolotl have them
        chosen, rejected, prompt = [chosen], [rejected], _turns_before(row)
    if not _are_turns(chosen) or not _are_turns(rejected):
        if prompt is None and row.get("instruction") is not None:
            one, other = (_of_alpaca(row, row[name], name) for name in ("chosen", "rejected"))
            return replace(one, rejected=other)
        if prompt is None:
            raise BadRow(
                "chosen and rejected are text, and there is no prompt that they answer",
                "Name the prompt in a column `prompt`, or write both as lists of turns.",
            )
        prompts = dict.fromkeys(("chosen", "rejected"), prompt)
    elif _are_turns(prompt) and not _begins(chosen, prompt):
        prompts = dict.fromkeys(("chosen", "rejected"), prompt)
    else:  # the prompt is what both begin with, whether a column repeats it or not
        shared = _shared(chosen, rejected)
        prompts = dict.fromkeys(("chosen", "rejected"), chosen[:shared])
        chosen, rejected = chosen[shared:], rejected[shared:]
    one, other = (
        _answered(row, prompts[name], answer, name) for name, answer in (("chosen", chosen), ("rejected", rejected))
    )
    return replace(one, rejected=other)


def _turns_before(row: Mapping[str, Any]) -> list[Any]:
    """What stands before an answer that is a turn by itself."""
    for name in ("prompt", *TALKS):
        if row.get(name) and _are_turns(row[name]):
            return list(row[name])
    if isinstance(row.get("prompt"), str) and row["prompt"]:
        return [{"role": "user", "content": row["prompt"]}]
    raise BadRow(
        "chosen and rejected are a turn each, and there are no turns before them",
        f"Put these into a column {' or '.join(f'`{name}`' for name in ('prompt', *TALKS))}.",
    )


def _begins(turns: Sequence[Any], prompt: Sequence[Any]) -> bool:
    return len(turns) > len(prompt) and list(turns[: len(prompt)]) == list(prompt)


def _shared(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """Turns that both begin with, of which the last is no assistant's: that is an answer, though both give it."""
    shared = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared += 1
    most = min(shared, len(chosen) - 1, len(rejected) - 1)
    if most < 1:
        raise BadRow(
            "chosen and rejected do not begin with the same turns, so there is no prompt",
            "Name the prompt in a column `prompt`, or let both begin with its turns.",
        )
    return most


def _are_turns(value: Any) -> bool:
    """Whether a value is a list of turns, rather than text or its parts."""
    return isinstance(value, list) and (
        not value or any(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value)
    )


def from_alpaca(row: Mapping[str, Any]) -> Conversation:
    """`instruction`, `input`, `output`, and `history`, the turns before."""
    return _of_alpaca(row, row["output"], "output")


def _of_alpaca(row: Mapping[str, Any], answer: Any, name: str) -> Conversation:
    prompt, extra = as_text(row["instruction"], "instruction"), row.get("input")
    if extra:
        extra = as_text(extra, "input")
        prompt = f"{prompt}\n\n{extra}" if prompt else extra
    return _pair(prompt, as_text(answer, name), row, tuple(history(row)))


def from_text(row: Mapping[str, Any]) -> Conversation:
    """Bare text, every token of which is scored; not a row that an annotator rejected."""
    check_gold(row)
    return Conversation(({"role": "assistant", "content": as_text(row["text"], "text")},), plain=True)


def encode(tokenizer: Any, rows: Sequence[Conversation], *, max_length: int) -> Encoded:
    """Tokens and masks of rows; assistant tokens are scored, with the end-of-turn token, in all assistant turns.

    Rows over `max_length` tokens are cut at the end, so a row's answer may be lost: it then has no scored token.

    Args:
        tokenizer: as returned by `tov.text.chat.prepare`.
        rows: conversations.
        max_length: tokens a row may have.

    Raises:
        DataError: the chat template refuses a row or leaves out what is to be scored, or its assistant part cannot be told.
    """
    import numpy as np

    from tov.text.encode import IGNORED, pack
    from tov.text.masks import by_spans

    if not rows:
        return pack([], np.empty(0, np.int64), np.empty(0, np.int64))
    rendered = [_render(tokenizer, row) for row in rows]
    packed, lost = [], []
    for ids, scored in by_spans(tokenizer, rendered):
        labels = np.where(scored, ids, IGNORED)[:max_length]
        labels[:1] = IGNORED  # nothing predicts the first token
        packed.append((ids[:max_length], labels))
        lost.append(int(scored[max_length:].sum()))
    sizes = np.array([int((labels != IGNORED).sum()) for _, labels in packed])
    left_out = np.array([sum(1 << KINDS.index(kind) for kind in row.left_out) for row in rendered])
    return pack(packed, sizes, np.array(lost), left_out)


def _render(tokenizer: Any, row: Conversation) -> Rendered:
    if row.plain:
        return render_bare(tokenizer, row.answer)
    return render(tokenizer, row.messages, row.context, unscored=row.unscored)


def _unlabelled(convert: Callable[[Mapping[str, Any]], Conversation]) -> Convert:
    def converted(row: Mapping[str, Any], _: Reading) -> Conversation:
        if _unwanted(row.get("kto_tag")):  # LLaMA-Factory's
            raise NotGold("its kto_tag is false, so its answer is not wanted")
        return convert(row)

    return converted


BESIDE = ("system", "tools", "functions", "documents", "chat_template_kwargs", "kto_tag")
"""Columns that are read beside the turns."""
TALKS = ("conversations", "messages")


class Instruction(Task[Conversation]):
    """Questions and answers, talks, bare text."""

    name = "instruction"
    title = "instruction tuning"
    layouts = (
        Layout(
            "preference", name, ("chosen", "rejected"), _unlabelled(from_preference), pairs=True,
            beside=("prompt", "instruction", "input", "history", *TALKS, *BESIDE),
        ),
        Layout("messages", name, ("messages",), _unlabelled(from_messages), beside=BESIDE),
        Layout("sharegpt", name, ("conversations",), _unlabelled(from_sharegpt), beside=BESIDE),
        Layout(
            "prompt+completion", name, ("prompt", "completion"), _unlabelled(from_prompt_completion),
            beside=("label", *BESIDE),
        ),
        Layout(
            "alpaca", name, ("instruction", "output"), _unlabelled(from_alpaca), beside=("input", "history", *BESIDE)
        ),
        Layout("text", name, ("text",), _unlabelled(from_text), last=True, beside=("answer",)),
    )  # fmt: skip
    auto_model = "AutoModelForCausalLM"
    peft_type = "CAUSAL_LM"
    new_head = False
    metric = "exact match"
    unit = "token"
    length = "scored tokens"
    defaults = Defaults(
        lora_r=16, learning_rate=5e-4, target_learning_rate_ratio=0.1, amplify=4.0,
        normalize="none", train_learning_rate=5e-4, pilot_train_rows=1024,
    )  # fmt: skip
    by_trl = True
    generates = True

    def encode(
        self, tokenizer: Any, rows: Sequence[Conversation], /, *, max_length: int, labels: tuple[str, ...]
    ) -> Encoded:
        """A scored token's label is its own id."""
        return encode(tokenizer, rows, max_length=max_length)

    def kind(self, row: Conversation) -> str:
        """`text` without a template, `pairs` of answers, or `conversations`."""
        return "text" if row.plain else "pairs" if row.rejected else "conversations"

    def open_tokenizer(self, name: str, load: Callable[..., Any]) -> Any:
        """One with a chat template, the plain one if it has none."""
        return prepare(load())

    def parts(self, row: Conversation) -> list[Part]:
        """The turns by their roles; first what the template is given beside them."""
        beside = [
            Part(name, json_text(value), False) for one in _of_context(row.context) for name, value in one.items()
        ]
        turns = [
            Part(
                "text" if row.plain else message["role"],
                "\n".join(_texts(message)),
                message["role"] == "assistant" and place not in row.unscored,
            )
            for place, message in enumerate(row.messages)
        ]
        return beside + turns
