"""How a record is written as one text, and which characters of it carry loss.

Questions and answers go through a `Template`; prompts and completions are joined as they are (one space where neither
side brings white space); chats are written by the tokenizer's own chat template, and the assistant's turns are found
in the result by rendering the conversation up to each turn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxunlearn.data.errors import DataError, shorten
from jaxunlearn.data.records import Record


@dataclass(frozen=True)
class Template:
    """The text of a question and its answer, with `{prompt}` and `{completion}` once each, in this order.

    Raises:
        DataError: a placeholder is missing, repeated or out of order.

    Example:
        >>> Template().parts
        ('Question: ', '\\nAnswer: ', '')
    """

    question: str = "Question: {prompt}\nAnswer: {completion}"

    def __post_init__(self) -> None:
        counts = self.question.count("{prompt}"), self.question.count("{completion}")
        if counts != (1, 1) or self.question.index("{prompt}") > self.question.index("{completion}"):
            raise DataError(
                f"template {shorten(self.question)} must hold {{prompt}} and then {{completion}}, once each, "
                f"as in 'Question: {{prompt}}\\nAnswer: {{completion}}'."
            )

    @property
    def parts(self) -> tuple[str, str, str]:
        """What stands before the prompt, between prompt and completion, and after the completion."""
        before, rest = self.question.split("{prompt}")
        between, after = rest.split("{completion}")
        return before, between, after


class Rendered(NamedTuple):
    """A text, the [start, end) characters that carry loss, whether begin and end tokens are still to be added."""

    text: str
    spans: tuple[tuple[int, int], ...]
    framed: bool = True
    where: str = ""


def render(record: Record, tokenizer: Any, template: Template) -> Rendered:
    """Write `record` as one text.

    Raises:
        DataError: a chat whose tokenizer has no chat template, or whose template hides an assistant turn.

    Example:
        >>> from jaxunlearn.data.records import from_rows
        >>> render(from_rows([{"prompt": "2 + 2 =", "completion": "4"}])[0], None, Template())[:2]
        ('2 + 2 = 4', ((8, 9),))
    """
    if record.kind == "messages":
        return _chat(record, tokenizer)
    start, end = prompt_text(record, template), ""
    if record.kind == "question":
        end = template.parts[2]
    text = start + record.completion
    return Rendered(text + end, ((len(start), len(text)),), True, record.where)


def prompt_text(record: Record, template: Template) -> str:
    """All that precedes the completion: also what a model is given when it is asked to generate."""
    if record.kind == "question":
        before, between, _ = template.parts
        return f"{before}{record.prompt}{between}"
    spaced = record.prompt[-1:].isspace() or record.completion[:1].isspace() or not record.prompt
    return record.prompt if spaced else record.prompt + " "


def _chat(record: Record, tokenizer: Any) -> Rendered:
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "it is a chat, but the tokenizer has no chat template. Use a model with one, or write the record as "
            '{"prompt": ..., "completion": ...}.'
        )
    turns = [{"role": role, "content": content} for role, content in record.messages]

    def written(count: int, prompt: bool = False) -> str:
        return (
            tokenizer.apply_chat_template(turns[:count], tokenize=False, add_generation_prompt=prompt) if count else ""
        )

    try:
        text = written(len(turns))
        spans = tuple(_turn(text, index, turns, written) for index, turn in enumerate(turns) if _speaks(turn))
    except DataError:
        raise
    except Exception as error:  # templates raise whatever their author chose
        raise DataError(f"the chat template refuses it ({error}). Reorder its roles, user first.") from None
    return Rendered(text, spans, False, record.where)


def _speaks(turn: dict[str, str]) -> bool:
    return turn["role"] == "assistant" and bool(turn["content"].strip())


def _turn(text: str, index: int, turns: list[dict[str, str]], written: Callable[..., str]) -> tuple[int, int]:
    """Where the assistant's turn `index` stands in `text`, with the mark that ends it."""
    content = turns[index]["content"].strip()
    for before in (written(index, True), written(index)):
        start = text.find(content, _shared(before, text))
        if start >= 0:
            break
    else:
        raise DataError(f"the chat template leaves out the assistant turn {shorten(content)}. Remove that turn.")
    so_far = written(index + 1).rstrip()
    closed = text.startswith(so_far) and len(so_far) >= start + len(content)
    return start, len(so_far) if closed else start + len(content)


def _shared(a: str, b: str) -> int:
    """How many characters two texts have in common at their start."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
