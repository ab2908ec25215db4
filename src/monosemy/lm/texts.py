"""Text made with a model: conversations in its chat template, and what it writes itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from monosemy.corpus import Document
from monosemy.errors import UserError
from monosemy.lm.lm import LM

MESSAGES = ("messages", "conversation", "conversations")
"""Columns in which data sets hold conversations."""


def chat_document(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    roles: Sequence[str] = ("assistant",),
    id: str = "",
) -> Document:
    """Return a conversation in a model's chat template; what certain roles say counts, no more.

    Args:
        row: has a list of {"role", "content"} under `messages` or a similar name.
        tokenizer: has the chat template.
        roles: whose words count.
        id: of the document.

    Raises:
        UserError: no chat template, no conversation, or one that the template refuses.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "the model's tokenizer has no chat template", "take a model made for conversation"
        )
    name = next((name for name in MESSAGES if name in row), None)
    if name is None or not isinstance(row[name], Sequence) or not row[name]:
        raise UserError(
            f"{id or 'the row'} holds no conversation; columns: {', '.join(map(str, row))}",
            f"one of {', '.join(MESSAGES)} must hold a list of objects with role and content",
        )
    messages = [_message(message, id) for message in row[name]]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # whatever the template, a program of its own, raises
        raise UserError(
            f"{id or 'a conversation'} does not fit the model's chat template: {error}",
            "many templates want user and assistant in turn, and system first or not at all",
        ) from error
    bos = tokenizer.bos_token
    if isinstance(bos, str) and text.startswith(bos):
        text = text[len(bos) :]  # every row of text begins with one anyway
    spans, place = [], 0
    for message in messages:
        said = message["content"].strip()
        found = text.find(said, place)
        if found < 0:
            continue
        place = found + len(said)
        if message["role"] in roles and said:
            spans.append((found, place))
    return Document(id=id, text=text, spans=tuple(spans))


def _message(message: Any, where: str) -> dict[str, str]:
    try:
        role, content = str(message["role"]), message["content"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{where or 'a conversation'} has a message without role or content",
            'each must be an object such as {"role": "user", "content": "..."}',
        ) from error
    if not isinstance(content, str):
        raise UserError(f"{where}: a message's content is a {type(content).__name__}, not text")
    return {"role": role, "content": content}


def generate_documents(
    lm: LM,
    prompts: Iterable[str],
    *,
    tokens: int = 100,
    temperature: float = 1.0,
    seed: int = 0,
    skip: int = 0,
) -> Iterator[Document]:
    """Yield prompts as the model continues them; only what it wrote counts.

    Args:
        lm: the model.
        prompts: openings.
        tokens: to write for each, at most.
        temperature: 0 takes the likeliest token each time.
        seed: the document of number n is drawn with seed + n.
        skip: prompts that were done before.

    Raises:
        UserError: not a model that generates, or an empty prompt.
    """
    for number, prompt in enumerate(prompts):
        if number < skip:
            continue
        written = lm.generate(
            prompt, max_new_tokens=tokens, temperature=temperature, seed=seed + number
        )
        text = prompt + written
        yield Document(id=str(number), text=text, spans=((len(prompt), len(text)),))
