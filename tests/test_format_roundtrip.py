"""A dictionary of every architecture, written in every format that holds it, and read again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from foreign import dictionary_of
from small_coders import VARIANTS, D, build
from torch.testing import assert_close

import monosemy
from monosemy.coders import ARCHITECTURES, Dictionary, meet
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.formats import FORMATS, Given, export
from monosemy.lm import LM
from monosemy.training import Run

MODEL = "EleutherAI/pythia-70m"
WRITABLE = [name for name, found in FORMATS.items() if found.write is not None]
SAYS_PLACE = {"saelens", "dictionary_learning", "sparsify", "circuit_tracer", "llamascopium"}
SAYS_MODEL = SAYS_PLACE - {"llamascopium"}
HOLDS = {
    "saelens": {*ARCHITECTURES} - {"groupmax"},
    "dictionary_learning": {*ARCHITECTURES} - {"groupmax"},
    "sparsify": {"topk", "groupmax"},
    "gemma_scope": {*ARCHITECTURES} - {"groupmax", "topk", "gated"},
    "llamascopium": {*ARCHITECTURES} - {"groupmax", "gated"},
    "circuit_tracer": {*ARCHITECTURES} - {"groupmax", "topk", "gated"},
}
"""Of dictionaries that are plain but for free norms."""


def made(architecture: str, to: str, variant: str = "free") -> Dictionary:
    transcodes = to == "circuit_tracer" or variant in ("skip", "transcoder")
    places = {"hookpoint": "layers.3.mlp.input", "target": "layers.3.mlp"} if transcodes else {}
    return dictionary_of(build(architecture, variant), model=MODEL, **places)


@pytest.mark.parametrize("to", WRITABLE)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_format_holds_is_the_same_when_read_again(
    architecture: str, to: str, tmp_path: Path
) -> None:
    before = made(architecture, to)
    if architecture not in HOLDS[to]:
        with pytest.raises(UserError, match=f"has no .*{architecture}"):
            export(before, to, tmp_path / "out")
        assert not list(tmp_path.iterdir())
        return
    lost = export(before, to, tmp_path / "out")
    after = monosemy.load(tmp_path / "out")
    is_same(before, after)
    assert (after.hookpoint == before.hookpoint) is (to in SAYS_PLACE)
    assert (after.provenance.target == before.provenance.target) or to not in SAYS_PLACE
    assert (after.provenance.model == MODEL) is (to in SAYS_MODEL)
    assert to in SAYS_MODEL or "the model" in " ".join(lost)
    assert "fingerprint" in " ".join(lost)
    about = Given(model=MODEL, hookpoint=before.hookpoint, target=before.provenance.target)
    after = monosemy.load(tmp_path / "out", given=about)
    assert (after.hookpoint, after.explains) == (before.hookpoint, before.explains)
    again = export(after, to, tmp_path / "again")
    assert len(again) >= 1
    is_same(after, monosemy.load(tmp_path / "again"), tolerance=1e-6)


@pytest.mark.parametrize("to", WRITABLE)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "batch_topk", "relu"])
def test_a_variant_is_the_same_when_read_again_or_refused(
    architecture: str, variant: str, to: str, tmp_path: Path
) -> None:
    before = made(architecture, to, variant)
    try:
        export(before, to, tmp_path / "out")
    except UserError as error:
        assert variant in ("skip", "transcoder") or architecture not in HOLDS[to], error
        assert not list(tmp_path.iterdir())
        return
    about = Given(target=before.provenance.target)
    is_same(before, monosemy.load(tmp_path / "out", given=about))


def is_same(before: Dictionary, after: Dictionary, tolerance: float = 1e-5) -> None:
    x = torch.randn(64, D)
    z = before.encode(x)
    # Where a threshold is met by chance, rounding decides.
    sure = (z - after.encode(x)).abs().amax(1) < 1e-3
    assert sure.float().mean() > 0.95 and 0 < (z > 0).float().mean() < 1
    assert_close(after.encode(x)[sure], z[sure], atol=tolerance, rtol=1e-5)
    out = before.reconstruct(x)[sure]
    assert_close(after.reconstruct(x)[sure], out, atol=10 * tolerance, rtol=1e-4)


@pytest.mark.parametrize("to", WRITABLE)
def test_what_was_trained_here_fits_its_model_when_it_comes_back(
    to: str, run: Run, lm: LM, corpus: Corpus, tmp_path: Path
) -> None:
    if to in ("sparsify", "circuit_tracer"):
        with pytest.raises(UserError, match=re.compile("has no `batch_topk`")):
            export(run.dictionary, to, tmp_path / "out")
        return
    export(run.dictionary, to, tmp_path / "out")
    place = run.dictionary.hookpoint
    after = monosemy.load(tmp_path / "out", given=Given(model=lm.name, hookpoint=place))
    found = meet(after, lm, corpus)
    assert found.healthy, found.explanation
    assert after.fingerprint is not None
    before = run.dictionary.fingerprint
    assert before is not None
    assert after.fingerprint.expected.fvu == pytest.approx(before.expected.fvu, abs=0.05)
