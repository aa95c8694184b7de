"""Instruction tuning: conversations, of which the assistant's turns are scored, and bare text. The model keeps its own head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tov.data.cells import BadRow, as_text, named_kind
from tov.data.rows import Convert, Layout
from tov.tasks.base import Defaults, Task
from tov.text.chat import Message, has_generation_mask, prepare, render, render_bare

if TYPE_CHECKING:
    from tov.text.encode import Encoded


@dataclass(frozen=True)
class Conversation:
    """What the model sees of a row: turns, of which the assistant's are scored.

    `plain` marks bare text (one assistant turn, no chat template, every token scored).
    """

    messages: tuple[Message, ...]
    plain: bool = False

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
        """All turns, a line break between."""
        return "\n".join(str(message["content"]) for message in self.messages)

    @property
    def content(self) -> list[Any]:
        """All that the model sees: roles, contents and tool calls, whatever file format they came in."""
        return [[message["role"], message["content"], *_calls(message)] for message in self.messages]

    @property
    def question(self) -> list[str]:
        """Everything before the last assistant turn; system turns count only where there is nothing else.

        Bare text stands for itself.
        """
        turns = [message for message in self.prompt if message["role"] not in ("system", "developer")] or self.messages
        return [str(message["content"]) for message in turns]

    @property
    def labels(self) -> set[str]:
        """None: what is predicted is text."""
        return set()

    @property
    def repaired(self) -> bool:
        """Never."""
        return False


def _calls(message: Message) -> list[Any]:
    return [_settled(message["tool_calls"])] if message.get("tool_calls") else []


def _settled(value: Any) -> Any:
    """Without the nulls that Arrow adds and in one order of keys, which differ between file formats."""
    if isinstance(value, Mapping):
        return {key: _settled(value[key]) for key in sorted(value) if value[key] is not None}
    return [_settled(entry) for entry in value] if isinstance(value, list) else value


SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "bot": "assistant", "bing": "assistant", "bard": "assistant", "system": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
ROLES = ("system", "developer", "user", "assistant", "tool")


def _message(message: Any, position: int) -> Message:
    if not isinstance(message, Mapping):
        raise BadRow(f"turn {position} is {named_kind(message)}, but must have role and content")
    role = message.get("role")
    if role not in ROLES:
        raise BadRow(f"turn {position} has role {role!r}, which is none of {', '.join(ROLES)}")
    fields = {key: value for key, value in message.items() if value is not None}
    if "content" not in fields and fields.get("tool_calls"):
        return {**fields, "content": ""}
    return {**fields, "content": as_text(fields.get("content"), f"turn {position} ({role}): content")}


def _turns(messages: Any) -> tuple[Message, ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BadRow(f"the list of turns is {'empty' if messages == [] else named_kind(messages)}")
    turns = tuple(_message(message, position) for position, message in enumerate(messages, 1))
    # A trailing user turn has no answer to score and no effect on the answers before it.
    while turns and turns[-1]["role"] != "assistant":
        turns = turns[:-1]
    if not turns:
        raise BadRow("no assistant turn")
    return turns


def from_messages(row: Mapping[str, Any]) -> Conversation:
    """OpenAI's and TRL's `messages`."""
    return Conversation(_turns(row["messages"]))


def from_sharegpt(row: Mapping[str, Any]) -> Conversation:
    """`conversations` of ShareGPT: from/value, or role/content."""
    turns = row["conversations"]
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRow(f"conversations is {named_kind(turns)}, but must be a list of turns")
    messages: list[Any] = []
    if row.get("system"):
        messages.append({"role": "system", "content": row["system"]})
    for position, turn in enumerate(turns, 1):
        if isinstance(turn, Mapping) and turn.get("from") is not None:
            role = SHAREGPT_ROLES.get(str(turn["from"]))
            if role is None:
                raise BadRow(f"turn {position} is from {turn['from']!r}, who is none of {', '.join(SHAREGPT_ROLES)}")
            turn = {"role": role, "content": turn.get("value")}
        messages.append(turn)
    return Conversation(_turns(messages))


def _pair(prompt: str, answer: str, system: Any = None) -> Conversation:
    first = [{"role": "system", "content": as_text(system, "system")}] if system else []
    turns = (*first, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Conversation(turns)


def from_prompt_completion(row: Mapping[str, Any]) -> Conversation:
    """Two texts, or two lists of turns."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return Conversation(_turns([*prompt, *completion]))
    return _pair(as_text(prompt, "prompt"), as_text(completion, "completion"), row.get("system"))


def from_alpaca(row: Mapping[str, Any]) -> Conversation:
    """`instruction`, `input`, `output`."""
    prompt, extra = as_text(row["instruction"], "instruction"), row.get("input")
    if extra:
        prompt = f"{prompt}\n\n{as_text(extra, 'input')}"
    return _pair(prompt, as_text(row["output"], "output"), row.get("system"))


def from_text(row: Mapping[str, Any]) -> Conversation:
    """Bare text, every token of which is scored."""
    return Conversation(({"role": "assistant", "content": as_text(row["text"], "text")},), plain=True)


def encode(tokenizer: Any, rows: Sequence[Conversation], *, max_length: int) -> Encoded:
    """Tokens and masks of rows; assistant tokens are scored, with the end-of-turn token, in all assistant turns.

    Rows over `max_length` tokens are cut at the end, so a row's answer may be lost: it then has no scored token.

    Args:
        tokenizer: as returned by `tov.text.chat.prepare`.
        rows: conversations.
        max_length: tokens a row may have.

    Raises:
        DataError: the chat template refuses a row, or its assistant part cannot be told.
    """
    import numpy as np

    from tov.text.encode import IGNORED, pack
    from tov.text.masks import by_generation_mask, by_spans

    if not rows:
        return pack([], np.empty(0, np.int64), np.empty(0, np.int64))
    marked = has_generation_mask(tokenizer) and tokenizer.is_fast and not any(row.plain for row in rows)
    if marked:
        pairs = [by_generation_mask(tokenizer, row.messages) for row in rows]
    else:
        pairs = by_spans(
            tokenizer,
            [render_bare(tokenizer, row.answer) if row.plain else render(tokenizer, row.messages) for row in rows],
        )
    packed, lost = [], []
    for ids, scored in pairs:
        labels = np.where(scored, ids, IGNORED)[:max_length]
        labels[:1] = IGNORED  # nothing predicts the first token
        packed.append((ids[:max_length], labels))
        lost.append(int(scored[max_length:].sum()))
    sizes = np.array([int((labels != IGNORED).sum()) for _, labels in packed])
    return pack(packed, sizes, np.array(lost))


def _unlabelled(convert: Callable[[Mapping[str, Any]], Conversation]) -> Convert:
    return lambda row, _: convert(row)


class Instruction(Task[Conversation]):
    """Questions and answers, talks, bare text."""

    name = "instruction"
    title = "instruction tuning"
    layouts = (
        Layout("messages", name, ("messages",), _unlabelled(from_messages)),
        Layout("sharegpt", name, ("conversations",), _unlabelled(from_sharegpt)),
        Layout("prompt+completion", name, ("prompt", "completion"), _unlabelled(from_prompt_completion)),
        Layout("alpaca", name, ("instruction", "output"), _unlabelled(from_alpaca)),
        Layout("text", name, ("text",), _unlabelled(from_text), last=True),
    )
    auto_model = "AutoModelForCausalLM"
    peft_type = "CAUSAL_LM"
    new_head = False
    metric = "exact match"
    unit = "token"
    length = "scored tokens"
    defaults = Defaults(
        lora_r=16, learning_rate=5e-4, target_learning_rate_ratio=0.1, amplify=4.0,
        normalize="none", train_learning_rate=5e-4,
    )  # fmt: skip
    by_trl = True
    generates = True

    def encode(
        self, tokenizer: Any, rows: Sequence[Conversation], /, *, max_length: int, labels: tuple[str, ...]
    ) -> Encoded:
        """A scored token's label is its own id."""
        return encode(tokenizer, rows, max_length=max_length)

    def open_tokenizer(self, name: str, load: Callable[..., Any]) -> Any:
        """One with a chat template, the plain one if it has none."""
        return prepare(load())
