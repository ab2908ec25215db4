"""Make text to train on: conversations in a model's chat template, or what a model writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from monosemy.artefact import disk_error
from monosemy.cli.console import console
from monosemy.corpus import Document
from monosemy.corpus.files import read_rows
from monosemy.errors import UserError
from monosemy.lm import LM, chat_document, generate_documents
from monosemy.lm.load import load_tokenizer
from monosemy.progress import Task


@dataclass(frozen=True)
class Chat:
    """Write conversations in a model's chat template; tokens of certain roles will count."""

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """A file of JSON lines, each with `messages`: a list of {"role", "content"}."""
    model: str
    """The model whose template it is: a folder, or a Hugging Face id."""
    out: Path
    """File of JSON lines to write; give it to `--data`."""
    roles: tuple[str, ...] = ("assistant",)
    """Whose words count."""

    def run(self) -> None:
        """Write the file."""
        _check_new(self.out)
        tokenizer = load_tokenizer(self.model)
        draft, count, silent = _draft(self.out), 0, 0
        with _opened(draft, "w") as file:
            for number, row in read_rows(self.data):
                where = f"{self.data.name}:{number}"
                document = chat_document(row, tokenizer, self.roles, where)
                silent += not document.spans
                _write(file, document)
                count += 1
        if not count:
            draft.unlink()
            raise UserError(f"{self.data} holds no conversation")
        draft.replace(self.out)
        console.print(
            f"{count} conversations, {silent} of them without a word of {', '.join(self.roles)}: "
            f"{self.out}",
            markup=False,
        )


@dataclass(frozen=True)
class Generate:
    """Have a model continue prompts; only what it wrote will count. Goes on where it stopped."""

    prompts: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PROMPTS")]
    """A text file with a prompt on each line."""
    out: Path
    """File of JSON lines to write; give it to `--data`."""
    model: str = "builtin:stdlib"
    """`builtin:stdlib`, a folder, or a Hugging Face id."""
    each: int = 1
    """Continuations of each prompt."""
    tokens: int = 100
    """To write for each, at most."""
    temperature: float = 1.0
    """0 takes the likeliest token each time."""
    seed: int = 0
    """Of the draws."""
    device: str | None = None
    """`cpu`, `cuda`, `mps`; default the best there is."""

    def run(self) -> None:
        """Write the file."""
        for name in ("each", "tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", "allowed: 1 and above")
        _check_new(self.out)
        try:
            lines = self.prompts.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {self.prompts}: {error}", "check the path") from error
        prompts = [line for line in lines if line.strip() for _ in range(self.each)]
        if not prompts:
            raise UserError(f"{self.prompts} holds no prompt", "write one on each line")
        lm, draft = LM(self.model, device=self.device), _draft(self.out)
        done = _whole_lines(draft)
        with _opened(draft, "a") as file, Task("write", len(prompts), "texts") as task:
            task.advance(done)
            for document in generate_documents(
                lm,
                prompts,
                tokens=self.tokens,
                temperature=self.temperature,
                seed=self.seed,
                skip=done,
            ):
                _write(file, document)
                task.advance(1)
        draft.replace(self.out)
        console.print(f"{len(prompts)} texts: {self.out}", markup=False)


@dataclass(frozen=True)
class Command:
    """Options of `monosemy corpus`."""

    action: Annotated[
        Annotated[Chat, tyro.conf.subcommand("chat", prefix_name=False)]
        | Annotated[Generate, tyro.conf.subcommand("generate", prefix_name=False)],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Do what was asked."""
        self.action.run()


def _check_new(out: Path) -> None:
    if out.suffix != ".jsonl":
        raise UserError(f"out is `{out}`", "give a name that ends in .jsonl")
    if out.exists():
        raise UserError(f"`{out}` exists", "choose another name, or remove it")


def _draft(out: Path) -> Path:
    return out.with_name(f".{out.name}.draft")


def _opened(path: Path, mode: str) -> Any:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open(mode, encoding="utf-8")
    except OSError as error:
        raise disk_error(path, error) from error


def _write(file: Any, document: Document) -> None:
    row = {"text": document.text, "spans": document.spans}
    try:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
    except OSError as error:
        raise disk_error(Path(file.name), error) from error


def _whole_lines(draft: Path) -> int:
    """Return how many texts an interrupted draft holds; cut off one that was written in part."""
    if not draft.exists():
        return 0
    content = draft.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        draft.write_bytes(whole)
    return whole.count(b"\n")
