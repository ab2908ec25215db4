"""Neuronpedia: files for its bulk import, and requests of its upload interface.

The import takes the columns of a table from the keys of a file's first line, so that all lines have
the same; it refuses NUL characters, and numbers that are not finite.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monosemy.artefact import write_text
from monosemy.errors import UserError, reason
from monosemy.formats.sites import LOST, Group, Showing, SiteOptions, finite

URL = "https://www.neuronpedia.org"
KEY = "NEURONPEDIA_API_KEY"
"""Environment variable with the user's key."""
METHOD = "monosemy"
MOST_LOGITS, MOST_TOKENS, MOST_TEXT = 20, 1024, 512
"""Logits of each end, tokens of a context and characters of an explanation that are taken."""
_TRIES = 6
_PAUSE = 2.0
_LONGEST_PAUSE = 300.0
Rows = dict[str, Any]


def write(run: Path, folder: Path, options: SiteOptions) -> list[str]:
    """Write the layout of the bulk import: MODEL/SOURCE/ with tables as JSON lines.

    Raises:
        UserError: the run has no index.
    """
    showing = Showing(run, options)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    place = folder / showing.model.replace("/", "_") / showing.source
    for name, row in _tables(showing, now).items():
        _lines(place / f"{name}.jsonl", [row])
    for number, features in enumerate(showing.batches()):
        name = f"batch-{number}.jsonl.gz"
        _lines(place / "features" / name, (_feature(showing, f, now) for f in features))
        activations = (row for f in features for row in _activations(showing, f, now))
        _lines(place / "activations" / name, activations)
        explained = [row for f in features for row in _explanations(showing, f, now)]
        if explained:
            _lines(place / "explanations" / name, explained)
    return [
        *LOST,
        "embeddings of explanations: Neuronpedia makes them with a model of its own",
        f"the model's layers and neurons: model.jsonl says {showing.layer + 1} and 0, which matter "
        "only where Neuronpedia does not know the model",
    ]


# --- files ----------------------------------------------------------------------------------


def _tables(showing: Showing, now: str) -> dict[str, Rows]:
    options, dictionary = showing.options, showing.dictionary
    creator, title = options.creator, f"{options.name} ({dictionary.coder.architecture})"
    layers = showing.layer + 1
    return {
        "release": {
            "name": options.name,
            "description": f"{title}, made with monosemy",
            "descriptionShort": title,
            "creatorName": creator,
            "creatorNameShort": creator,
            "creatorId": creator,
            "creatorEmail": None,
            "visibility": "PUBLIC",
            "isNewUi": True,
            "featured": False,
            "urls": [],
            "defaultSourceSetName": options.name,
            "defaultSourceId": showing.source,
            "defaultUmapSourceIds": [],
            "createdAt": now,
        },
        "model": {
            "id": showing.model,
            "instruct": False,
            "creatorId": creator,
            "displayNameShort": showing.model,
            "displayName": showing.model,
            "tlensId": showing.model,
            "dimension": dictionary.d_in,
            "visibility": "PUBLIC",
            "defaultSourceSetName": options.name,
            "defaultSourceId": showing.source,
            "inferenceEnabled": False,
            "layers": layers,
            "neuronsPerLayer": 0,
            "owner": creator,
            "website": None,
            "createdAt": now,
            "updatedAt": now,
        },
        "sourceset": {
            "modelId": showing.model,
            "name": options.name,
            "creatorId": creator,
            "creatorName": creator,
            "creatorEmail": None,
            "hasDashboards": True,
            "visibility": "PUBLIC",
            "description": f"{title} at {dictionary.provenance.explains}",
            "type": dictionary.provenance.explains,
            "urls": [],
            "releaseName": options.name,
            "defaultOfModelId": None,
            "defaultRange": 1,
            "defaultShowBreaks": True,
            "showDfa": False,
            "showCorrelated": True,
            "showHeadAttribution": False,
            "showUmap": False,
            "createdAt": now,
        },
        "source": {
            "id": showing.source,
            "modelId": showing.model,
            "setName": options.name,
            "creatorId": creator,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "inferenceHosts": [],
            "saelensConfig": None,
            "saelensRelease": None,
            "saelensSaeId": None,
            "hfRepoId": None,
            "hfFolderId": None,
            "visibility": "PUBLIC",
            "defaultOfModelId": None,
            "hasUmap": False,
            "num_prompts": showing.rows,
            "num_tokens_in_prompt": showing.index.text.context,
            "dataset": showing.corpus,
            "notes": None,
            "createdAt": now,
        },
    }


def _feature(showing: Showing, feature: int, now: str) -> Rows:
    arrays = showing.index.arrays("similar")
    near = arrays["decoder_ids"][feature] >= 0 if "decoder_ids" in arrays else []
    return {
        "modelId": showing.model,
        "layer": showing.source,
        "index": str(feature),
        "creatorId": showing.options.creator,
        "createdAt": now,
        "maxActApprox": float(showing.index.max[feature]),
        "hasVector": True,
        "vector": showing.directions[feature].tolist(),
        "vectorLabel": None,
        "vectorDefaultSteerStrength": None,
        "hookName": showing.dictionary.provenance.explains,
        "topkCosSimIndices": arrays["decoder_ids"][feature][near].tolist() if len(near) else [],
        "topkCosSimValues": arrays["decoder_scores"][feature][near].tolist() if len(near) else [],
        **showing.columns(feature),
        "sourceSetName": showing.options.name,
    }


def _activations(showing: Showing, feature: int, now: str) -> Iterator[Rows]:
    number = 0
    for group in showing.groups(feature):
        for context in group.contexts:
            values = context.activations
            largest = max(range(len(values)), key=values.__getitem__)
            yield {
                "id": _id(showing.model, showing.source, feature, number),
                "tokens": context.tokens,
                "index": str(feature),
                "layer": showing.source,
                "modelId": showing.model,
                "maxValue": values[largest],
                "maxValueTokenIndex": largest,
                "minValue": min(values),
                "values": values,
                "creatorId": showing.options.creator,
                "dataSource": showing.corpus,
                "dataIndex": str(context.place),
                "dfaValues": [],
                "dfaTargetIndex": None,
                "dfaMaxValue": None,
                "lossValues": [],
                "logitContributions": None,
                "binMin": group.low,
                "binMax": group.high,
                "binContains": group.share,
                "qualifyingTokenIndex": context.peak,
                "createdAt": now,
            }
            number += 1


def _explanations(showing: Showing, feature: int, now: str) -> Iterator[Rows]:
    row = showing.index.table("explanations").get(feature) or {}
    if row.get("explanation"):
        yield {
            "id": _id(showing.model, showing.source, feature, "explanation"),
            "modelId": showing.model,
            "layer": showing.source,
            "index": str(feature),
            "description": row["explanation"],
            "authorId": showing.options.creator,
            "triggeredById": None,
            "typeName": METHOD,
            "explanationModelName": row.get("model"),
            "notes": None,
            "createdAt": now,
        }


def _id(*parts: object) -> str:
    """Return an id of a cuid's form, the same for the same parts: what is there is not doubled."""
    return "c" + hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _lines(path: Path, rows: Iterable[Rows]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(text)
    else:
        path.write_text("".join(text), "utf-8")


# --- requests -------------------------------------------------------------------------------


def requests(run: Path, options: SiteOptions) -> Iterator[tuple[str, Rows]]:
    """Yield paths and bodies of the requests that upload a run, within the limits of the site.

    Features that do not fire have no activations, which the site asks for, and are left out.

    Raises:
        UserError: the run has no index.
    """
    showing = Showing(run, options)
    described = f"{showing.dictionary.coder.architecture} at {showing.dictionary.hookpoint}"
    name = options.name.replace("_", "-")
    yield (
        "/api/source-set/new",
        {"name": name, "modelId": showing.model, "description": described[:128]},
    )
    source = f"{showing.layer}-{name}"
    for features in showing.batches():
        sent = [_sent(showing, f) for f in features if showing.index.counts[f]]
        if sent:
            yield (
                "/api/feature/upload-batch",
                {"modelId": showing.model, "source": source, "features": sent},
            )


def _sent(showing: Showing, feature: int) -> Rows:
    promoted, suppressed = showing.lens(feature)
    explanations = [
        {"text": row["description"][:MOST_TEXT], "methodName": METHOD}
        | ({"modelName": row["explanationModelName"]} if row["explanationModelName"] else {})
        for row in _explanations(showing, feature, "")
    ]
    body: Rows = {
        "index": feature,
        "density": showing.view(feature).density,
        "topLogits": _logits(promoted),
        "bottomLogits": _logits(suppressed),
        "activations": [row for g in showing.groups(feature) for row in _sent_contexts(g)],
    }
    if explanations:
        body["explanations"] = explanations
    cleaned: Rows = finite(body)
    return cleaned


def _logits(tokens: list[tuple[str, float]]) -> list[Rows]:
    return [{"token": token, "value": value} for token, value in tokens[:MOST_LOGITS]]


def _sent_contexts(group: Group) -> Iterator[Rows]:
    for context in group.contexts:
        row: Rows = {
            "tokens": context.tokens[:MOST_TOKENS],
            "values": context.activations[:MOST_TOKENS],
        }
        if group.low >= 0:
            row |= {
                "quantileMin": group.low,
                "quantileMax": group.high,
                "quantileFraction": group.share,
            }
        yield row


def upload(
    run: Path,
    options: SiteOptions,
    done: Path,
    *,
    url: str = URL,
    say: Callable[[str], None] = lambda _: None,
    pause: float = _PAUSE,
) -> int:
    """Send a run's features, and go on after the last request that was accepted.

    What the site is too busy for (429, 5xx) is sent again, after as long as it asks for.

    Args:
        run: its folder.
        options: what it is to be called.
        done: file that keeps which requests were accepted.
        url: of the site.
        say: is told what happens.
        pause: seconds before the first repetition; doubled each time.

    Returns:
        Requests sent now.

    Raises:
        UserError: no key, or the site refuses; what was accepted before stays.
    """
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise UserError(f"{KEY} is not set", "make a key in your account there, and export it")
    accepted = set(done.read_text("utf-8").split()) if done.is_file() else set()
    sent = 0
    for path, body in requests(run, options):
        content = json.dumps(body, allow_nan=False).encode()
        mark = hashlib.sha256(f"{url}{path}".encode() + content).hexdigest()
        if mark in accepted:
            continue
        say(f"{path}: {len(body.get('features', [])) or 'new set'}, {len(content):,} bytes")
        _send(url.rstrip("/") + path, content, key, pause)
        accepted.add(mark)
        write_text(done, "\n".join(sorted(accepted)) + "\n")
        sent += 1
    return sent


def _send(url: str, content: bytes, key: str, pause: float) -> None:
    for attempt in range(_TRIES):
        headers = {"Content-Type": "application/json", "X-Api-Key": key}
        request = urllib.request.Request(url, content, headers, method="POST")
        wait = pause * 2**attempt
        try:
            with _no_redirects().open(request, timeout=120):
                return
        except urllib.error.HTTPError as error:
            said = error.read(500).decode("utf-8", "replace").replace(key, "***")
            problem = f"{url} answers {error.code}: {said}"
            if error.code != 429 and error.code < 500:
                raise UserError(problem, "what was accepted before stays") from None
            asked = error.headers.get("Retry-After", "")
            wait = float(asked) if asked.isdigit() else wait
        except OSError as error:
            problem = f"{url} cannot be reached: {reason(error)}"
        if attempt + 1 < _TRIES:
            time.sleep(min(wait, _LONGEST_PAUSE))
    raise UserError(problem, "give the same command again later: it goes on where it stopped")


def _no_redirects() -> urllib.request.OpenerDirector:
    class Stay(urllib.request.HTTPRedirectHandler):
        """The key goes to the site that was named, and to no other."""

        def redirect_request(self, *_: Any) -> None:
            return None

    return urllib.request.build_opener(Stay)
