"""The `monosemy` command: finds the command's file and hands over.

Nothing heavy is imported before it is known which command runs, so that `--help` is instant.
"""

from __future__ import annotations

import importlib
import sys

from monosemy.errors import UserError, nearest

COMMANDS = {
    "demo": "train, measure, look at and steer the embedded model, and write a report",
    "train": "train a dictionary on a model's activations",
    "sweep": "train many dictionaries on one pass of the model, and compare them",
    "resume": "go on with an interrupted run or sweep, or add tokens to a finished one",
    "store": "keep activations on disk, so that a model runs once; verify and repair them",
    "evaluate": "measure a dictionary on held-out text, beside baselines",
    "index": "run text through a model once, so that every question about features is a look-up",
    "search": "find features by words, by tokens, or by a text on which they fire",
    "names": "give features names, merge and export them",
    "explain": "have a language model say what features fire on, and test what it says",
    "maximise": "search for the text that excites a feature most",
    "contrast": "find features that differ between paired texts, such as flaws and fixes",
    "app": "look at runs and their features in a browser",
    "features": "see what a dictionary's features fire on",
    "steer": "continue a prompt with a feature turned up or down",
    "attribute": "find the features that make a model answer one prompt of a pair as it does",
    "circuit": "find which features lead to which, and how much of an answer they carry",
    "effects": "measure what features cause, and whether like features have like effects",
    "vector": "make a steering vector, test it on held-out pairs, and find its features",
    "dose": "measure what turning a feature up does and costs, strength by strength",
    "doctor": "check that a dictionary is wired to a model rightly",
    "import": "read a dictionary of another tool: SAELens, sparsify, Gemma Scope and others",
    "releases": "list public releases of dictionaries, which import knows by name",
    "export": "write a dictionary in another tool's format",
    "push": "upload a dictionary to the Hugging Face hub, with a model card",
    "corpus": "make text: conversations in a chat template, or what a model writes",
    "plan": "say what work will take before it is begun: memory, disk, time, cost",
    "stats": "measure what a model's activations are like, before training on them",
    "tokens": "show text as a model reads it, the tokens that count marked",
    "hookpoints": "list where a model's activations can be read and edited",
    "report": "write a run's report as one HTML file",
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; exits with status 2 and one clear message on a user's mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _dispatch(arguments)
    except UserError as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _dispatch(arguments: list[str]) -> None:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(usage())
        return
    if name == "--version":
        from monosemy import __version__

        print(f"monosemy {__version__}")
        return
    if name not in COMMANDS:
        raise UserError(
            f"no command `{name}`",
            f"{nearest(name, COMMANDS)} allowed: {', '.join(COMMANDS)}".strip(),
        )
    module = importlib.import_module(f"monosemy.cli.{name}")
    import tyro

    command = tyro.cli(
        module.Command,
        args=arguments[1:],
        prog=f"monosemy {name}",
        description=module.__doc__,
    )
    command.run()


def usage() -> str:
    """Return what `monosemy --help` prints."""
    lines = [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: monosemy COMMAND [options]",
            "",
            "Find the features a language model computes with.",
            "",
            *lines,
            "",
            "`monosemy COMMAND --help` lists a command's options.",
        ]
    )
