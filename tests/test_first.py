"""A dictionary of another tool meets its model: it is measured if it fits, and refused if not."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monosemy.cli.main import main
from monosemy.coders import Dictionary, attach, diagnose, meet
from monosemy.corpus import Corpus
from monosemy.errors import UserError
from monosemy.evaluation import evaluate
from monosemy.formats import Given, export, load
from monosemy.lm import LM
from monosemy.report.build import run_facts
from monosemy.training import Run

IMPORTED = {"source": "somewhere", "format": "saelens", "settings": {}, "notes": []}


@pytest.fixture
def stranger(run: Run) -> Dictionary:
    """The run's dictionary as another tool's files would give it: weights and names alone."""
    own = run.dictionary
    return Dictionary(
        copy.deepcopy(own.coder),
        replace(
            own.provenance,
            training={"imported": dict(IMPORTED)},
            corpus={"source": "theirs/text"},
            hookpoint="blocks.1.hook_resid_post",
        ),
        torch.zeros(own.width),
        torch.zeros(own.d_in),
        1.0,
        None,
    )


def test_what_fits_is_completed(stranger: Dictionary, run: Run, lm: LM, corpus: Corpus) -> None:
    found = meet(stranger, lm, corpus)
    assert found.healthy
    own = run.dictionary
    assert stranger.hookpoint == "layers.1"
    assert stranger.fingerprint is not None
    assert stranger.provenance.corpus == corpus.describe()
    assert stranger.provenance.training["imported"]["trained_on"] == {"source": "theirs/text"}
    assert stranger.l0 == pytest.approx(own.l0, rel=0.1)
    fires = own.strength > 0
    assert (stranger.strength > 0)[fires].float().mean() > 0.9
    assert diagnose(stranger, lm).expected == stranger.fingerprint.expected
    assert diagnose(stranger, lm).healthy


def test_strengths_are_the_largest_activations_on_that_text(
    stranger: Dictionary, lm: LM, corpus: Corpus
) -> None:
    meet(stranger, lm, corpus)
    most = torch.zeros(stranger.width)
    count = 0
    for batch in stranger.provenance.stream(lm, corpus, "held_out"):
        x = lm.capture(batch.tokens, ["layers.1"], attention_mask=batch.attention_mask)["layers.1"]
        rows = x[batch.counted].float()
        most = torch.maximum(most, stranger.encode(rows).amax(0))
        count += len(rows)
        if count >= 16_384:
            break
    torch.testing.assert_close(stranger.strength, most, rtol=1e-4, atol=1e-4)
    assert stranger.provenance.training["held_out"]["tokens"] == count


@pytest.mark.parametrize("hookpoint", ["layers.2.mlp", "embed"])
def test_a_wrong_hook_point_is_refused_and_the_right_one_named(
    stranger: Dictionary, lm: LM, corpus: Corpus, hookpoint: str
) -> None:
    found = meet(stranger, lm, corpus, hookpoint)
    assert (found.cause, stranger.fingerprint) == ("hook point", None)
    assert "--hookpoint layers.1" in found.advice
    with pytest.raises(UserError, match=r"`layers.1` far better"):
        attach(stranger, lm, hookpoint)


def test_a_place_that_files_do_not_name_is_looked_for(
    stranger: Dictionary, lm: LM, corpus: Corpus
) -> None:
    unknown = replace(stranger, provenance=replace(stranger.provenance, hookpoint="unknown"))
    found = meet(unknown, lm, corpus)
    assert (found.cause, found.advice) == (
        "hook point",
        "import it again with --hookpoint layers.1",
    )


def test_a_target_that_files_do_not_name(stranger: Dictionary, lm: LM, corpus: Corpus) -> None:
    unknown = replace(stranger, provenance=replace(stranger.provenance, target="unknown"))
    found = meet(unknown, lm, corpus)
    assert (found.cause, found.advice) == ("hook point", "import it again with --target HOOKPOINT")


def test_a_scale_that_was_never_folded(stranger: Dictionary, lm: LM, corpus: Corpus) -> None:
    coder = stranger.coder
    with torch.no_grad():  # the dictionary of activations eight times as large
        coder.W_enc.div_(8)
        coder.W_dec.mul_(8)
        coder.b_dec.mul_(8)
    found = meet(stranger, lm, corpus)
    assert found.cause == "scale"
    factor = float(found.advice.split("--scale ")[1].split(",")[0])
    assert 4 <= factor <= 16  # with a larger one more features fire, which explains more


@pytest.mark.parametrize("normalise", ["layer_norm", "rms"])
def test_no_scale_is_advised_where_each_token_is_divided_by_its_own(
    normalise: str, stranger: Dictionary, lm: LM, corpus: Corpus
) -> None:
    """An import with --scale or --centred would be refused."""
    stranger.coder.normalise = normalise
    found = meet(stranger, lm, corpus)
    assert "--scale" not in found.advice and "--centred" not in found.advice


def test_activations_of_a_centred_model(lm: LM, run: Run, corpus: Corpus) -> None:
    """A coder of centred activations, given what is far from centred."""
    found = meet(_of_centred(run, lm, corpus), lm, corpus)
    assert (found.cause, found.advice) == ("scale", "import it again with --centred True")


def _of_centred(run: Run, lm: LM, corpus: Corpus) -> Dictionary:
    from monosemy.activations import LiveActivations
    from monosemy.coders import ReLU

    d = run.dictionary.d_in
    stream = run.dictionary.provenance.stream(lm, corpus, "train")
    x = next(iter(LiveActivations(lm, stream, ["layers.1"])))["layers.1"]
    flat = x - x.mean(1, keepdim=True)
    coder = ReLU(d, 2 * d).requires_grad_(False)
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    mean = flat.mean(0)
    # exact on centred activations; on others it makes much of their mean
    centre = torch.eye(d) + 6 / d
    coder.W_enc.copy_(both @ centre)
    coder.b_enc.copy_(-coder.W_enc @ mean)
    coder.W_dec.copy_(both)
    coder.b_dec.copy_(mean)
    return Dictionary(
        coder,
        replace(run.dictionary.provenance, training={"imported": dict(IMPORTED)}),
        torch.zeros(2 * d),
        torch.zeros(d),
        1.0,
        None,
    )


def test_noise_belongs_nowhere(stranger: Dictionary, lm: LM, corpus: Corpus) -> None:
    with torch.no_grad():
        stranger.coder.W_dec.normal_(std=3)
    found = meet(stranger, lm, corpus)
    assert found.cause == "base model"
    assert "explains less than the mean" in found.explanation
    assert stranger.fingerprint is None
    meet(stranger, lm, corpus, insist=True)
    assert stranger.fingerprint is not None


def test_another_width_is_refused_even_by_insisting(stranger: Dictionary, corpus: Corpus) -> None:
    other = LM("builtin:stdlib")
    found = meet(stranger, other, corpus, "layers.1", insist=True)
    assert found.cause == "hook point"
    assert "width 256" in found.explanation
    assert stranger.fingerprint is None


def test_evaluation_meets_it_before_it_opens_text(stranger: Dictionary, lm: LM) -> None:
    """The text that others trained on may be anywhere; what it was measured on here is not."""
    result = evaluate(stranger, lm, suites=["reconstruction"], tokens=600)
    assert stranger.fingerprint is not None
    assert result.context["corpus"]["source"] == "builtin:stdlib"


def test_facts_say_where_it_was_read_from(stranger: Dictionary, lm: LM, corpus: Corpus) -> None:
    meet(stranger, lm, corpus)
    facts = run_facts(stranger, "tiny", "text", None)
    assert facts["read from"] == "somewhere (saelens)"
    assert facts["trained on"].startswith("theirs/text")
    assert "seed" not in facts


def test_import_doctor_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], topk_files: Path
) -> None:
    """The commands on files, as a user would."""
    run = tmp_path / "run"
    main(["import", str(topk_files), "--model", "builtin:stdlib", "--out", str(run)])
    centred = ["--centred", "True", "--out", str(tmp_path / "centred")]  # as the doctor advises
    main(["import", str(topk_files), "--model", "builtin:stdlib", *centred])
    assert load(tmp_path / "centred").coder.normalise == "centre"
    main(["doctor", str(run)])
    assert "a fingerprint is recorded" in capsys.readouterr().out
    main(["doctor", str(run)])
    assert "the fingerprint replays" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["doctor", str(run), "--data", "builtin:stdlib"])
    assert left.value.code == 2
    with pytest.raises(SystemExit):
        main(["import", str(topk_files), "--out", str(run)])
    assert "exists" in capsys.readouterr().err
    back = tmp_path / "back"
    main(["export", str(run), "--to", "sparsify", "--out", str(back)])
    x = torch.randn(20, 256) * 10
    again = load(back, given=Given(model="builtin:stdlib"))
    torch.testing.assert_close(again.encode(x), load(run).encode(x), rtol=1e-4, atol=1e-3)


@pytest.fixture
def topk_files(tmp_path: Path) -> Path:
    """A TopK coder of the mean and the largest components, as sparsify's files."""
    from monosemy import open_corpus
    from monosemy.activations import LiveActivations
    from monosemy.coders import Provenance, TopK

    lm = LM("builtin:stdlib")
    provenance = Provenance(model="builtin:stdlib", hookpoint="layers.2", context=64)
    stream = provenance.stream(lm, open_corpus("builtin:stdlib"), "train")
    x = next(iter(LiveActivations(lm, stream, ["layers.2"])))["layers.2"][:1024]
    mean = x.mean(0)
    axes = torch.linalg.svd(x - mean, full_matrices=False).Vh[:64]
    coder = TopK(256, 128, k=48).requires_grad_(False)
    coder.W_enc.copy_(torch.cat([axes, -axes]))
    coder.W_dec.copy_(coder.W_enc)
    coder.b_dec.copy_(mean)
    coder.b_enc.copy_(-coder.W_enc @ mean)
    none = torch.zeros(256)
    dictionary = Dictionary(coder, provenance, torch.ones(128), none, 1.0, None)
    folder = tmp_path / "layers.2"
    export(dictionary, "sparsify", folder)
    return folder
