"""Dose and response: exact at 0, each figure what it says, and the budget is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from monosemy.cli.dose import Command
from monosemy.cli.main import main
from monosemy.coders import Add, Dictionary
from monosemy.corpus import Corpus, open_corpus
from monosemy.errors import UserError
from monosemy.evaluation.dose import (
    DoseResponse,
    Family,
    Writing,
    best_place,
    clamping,
    dose_response,
    prompted,
    pushing,
    raising,
    random_direction,
    random_feature,
    strength_at,
    unparsed_shares,
)
from monosemy.evaluation.neutral import Neutral
from monosemy.evaluation.openings import openings
from monosemy.evaluation.wanted import (
    Concept,
    LogProbability,
    Reencoded,
    Sample,
    concepts_in,
)
from monosemy.intervene import FeatureEdit
from monosemy.lm import LM, Continuation
from monosemy.metrics import LossEffect
from monosemy.metrics.side_effects import side_effects
from monosemy.training import Run

PROMPTS = ["def function_3(value):\n", "def f(x):\n", "def other(path, name):\n"]
WRITING = Writing(tokens=8, temperature=0.7, samples=2)


@pytest.fixture(scope="module")
def feature(run: Run) -> int:
    return int(run.dictionary.strength.argmax())


@pytest.fixture(scope="module")
def neutral(run: Run, corpus: Corpus) -> Neutral:
    stream = run.dictionary.provenance.stream(run.lm, corpus, "held_out")
    return Neutral(run.lm, stream, tokens=200, draws=200)


@pytest.fixture(scope="module")
def curve(run: Run, feature: int, neutral: Neutral) -> DoseResponse:
    return dose_response(
        run.lm,
        raising(run.dictionary, feature),
        Reencoded(run.dictionary, feature),
        PROMPTS,
        neutral,
        strengths=(1.0, 0.0, 4.0),
        writing=WRITING,
        draws=200,
    )


def test_at_strength_0_there_is_no_side_effect_at_all(
    run: Run, feature: int, neutral: Neutral, curve: DoseResponse
) -> None:
    assert [dose.strength for dose in curve.doses] == [0.0, 1.0, 4.0]
    families = [
        random_direction(run.dictionary, feature),
        random_feature(run.dictionary, feature),
        pushing("nothing", "layers.0", torch.zeros(run.dictionary.d_in)),
    ]
    found = [neutral.measure(f.hookpoint, [f.at(0.0)])[0] for f in families]
    none = curve.doses[0]
    for effects in (*found, {"ce": none.ce, "kl": none.kl, "top1": none.top1}):
        assert all((v.value, v.low, v.high) == (0, 0, 0) for v in effects.values())
    plain = run.lm.write(PROMPTS[0], max_new_tokens=8, temperature=0.7, seed=0)
    assert none.example == plain.text
    assert curve.doses[1].kl.value > 0 and curve.doses[2].kl.value > curve.doses[1].kl.value


def test_side_effects_are_those_of_a_whole_pass(
    run: Run, corpus: Corpus, feature: int, neutral: Neutral
) -> None:
    lm, family = run.lm, raising(run.dictionary, feature)
    found = neutral.measure(family.hookpoint, [family.at(2.0)])[0]
    effect, changed, left = LossEffect(["steered"]), 0.0, 200
    for batch in run.dictionary.provenance.stream(lm, corpus, "held_out"):
        targets, counted = batch.next_tokens()
        rows = int((counted.sum(1).cumsum(0) < left).sum()) + 1
        counted[rows:] = False
        original = lm.logits(batch.tokens, attention_mask=batch.attention_mask)
        with lm.edit(FeatureEdit(run.dictionary, [Add({feature: 2.0})])):
            steered = lm.logits(batch.tokens, attention_mask=batch.attention_mask)
        effect.update(original, [("steered", steered)], targets, counted)
        changed += float((original.argmax(-1) != steered.argmax(-1))[counted].sum())
        break
    figures = effect.compute()
    assert found["kl"].value == pytest.approx(figures["steered"]["kl"], rel=1e-3)
    rise = figures["steered"]["ce"] - figures["original"]["ce"]
    assert found["ce"].value == pytest.approx(rise, rel=1e-3, abs=1e-5)
    assert found["top1"].value == pytest.approx(changed / neutral.tokens)
    for value in found.values():
        assert value.low <= value.value <= value.high


def test_divergence_has_its_known_values() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    found = side_effects(p.log() + 3.0, q.log(), torch.tensor([1]))
    kl = 0.5 * np.log(2) - 0.25 * np.log(2)
    assert found[0] == pytest.approx([-np.log(2), kl, 1.0], abs=1e-6)
    assert side_effects(p[:0], q[:0], torch.tensor([], dtype=torch.long)).shape == (0, 3)


def test_a_push_moves_text_by_the_vector_and_nothing_else(run: Run) -> None:
    lm, vector = run.lm, torch.randn(run.dictionary.d_in)
    tokens = lm.encode(PROMPTS[0])
    before = lm.capture(tokens, ["layers.1"])["layers.1"]
    with lm.edit(pushing("push", "layers.1", vector).at(1.5)):
        after = lm.capture(tokens, ["layers.1"])["layers.1"]
    special = torch.isin(tokens, torch.tensor(sorted(lm.special_ids)))
    assert torch.equal(before[special], after[special])
    torch.testing.assert_close(after[~special], before[~special] + 1.5 * vector)


def test_a_random_direction_goes_as_far_as_the_feature(run: Run, feature: int) -> None:
    d = run.dictionary
    drawn = [random_direction(d, feature, seed).at(1.0).vector for seed in (0, 1)]  # type: ignore[union-attr]
    assert not torch.equal(*drawn)
    for vector in drawn:
        size = float(d.strength[feature] * d.coder.W_dec[feature].norm())
        assert float(vector.norm()) == pytest.approx(size, rel=1e-4)


def samples_of(lm: LM, *texts: tuple[str, str]) -> list[Sample]:
    found = []
    for prompt, text in texts:
        start = lm.encode(prompt).shape[1]
        found.append(Sample(prompt, Continuation(lm.encode(prompt + text)[0], start, text)))
    return found


def test_what_arrives_is_what_the_encoder_finds_on_what_was_written(run: Run, feature: int) -> None:
    lm, d = run.lm, run.dictionary
    samples = samples_of(lm, (PROMPTS[0], "    return value"), (PROMPTS[1], "x"))
    with lm.edit(raising(d, feature).at(2.0)):
        found = Reencoded(d, feature).measure(lm, samples)
        for value, sample in zip(found, samples, strict=True):
            x = lm.capture(sample.written.tokens[None], [d.hookpoint])[d.hookpoint][0]
            z = d.encode(x[sample.written.start :])[:, feature]
            assert value == pytest.approx(float(z.mean() / d.strength[feature]), rel=1e-4)
    assert found.max() > 0


def test_log_probability_is_that_of_the_whole_text(run: Run, feature: int) -> None:
    lm = run.lm
    samples = samples_of(lm, (PROMPTS[0], "x"), (PROMPTS[2], "return"))
    texts = ("    return value", "pass")
    with lm.edit(raising(run.dictionary, feature).at(1.0)):
        found = LogProbability(texts).measure(lm, samples)
        for value, sample in zip(found, samples, strict=True):
            sums = []
            for text in texts:
                new = torch.tensor(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
                whole = torch.cat([lm.encode(sample.prompt)[0], new])
                log_p = lm.logits(whole[None])[0].log_softmax(-1)[:-1]
                each = log_p.gather(-1, whole[1:, None])[:, 0]
                sums.append(float(each[-len(new) :].sum()))
            assert value == pytest.approx(np.mean(sums), rel=1e-4)


def test_the_parser_says_what_was_written(lm: LM) -> None:
    samples = samples_of(
        lm,
        ("def f(x):\n", '    """Return it.'),
        ("def f(x):\n", "    for y in x:\n        print(y)"),
        ("def f(x):\n    for y in x:\n", "        print(y)"),
        ("def f(x):\n", "    try:\n        g("),
        ("def f(x):\n", "    x )\n    for y in x:\n        pass"),
    )
    found = concepts_in(samples, ["docstring", "loop_for", "try"])
    assert found.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
    shares = unparsed_shares(samples)
    assert shares is not None and shares[:3].tolist() == [0, 0, 0] and shares[4] == 1
    assert unparsed_shares(samples_of(lm, ("The quick brown fox", " jumps over"))) is None


def test_the_strength_found_costs_what_was_allowed(
    run: Run, feature: int, neutral: Neutral
) -> None:
    for family in (raising(run.dictionary, feature), random_direction(run.dictionary, feature)):
        for budget in (0.001, 0.02):
            strength = strength_at(family, neutral, budget)
            cost = neutral.measure(family.hookpoint, [family.at(strength)])[0]["kl"].value
            assert 0.95 * budget <= cost <= budget
    nothing = pushing("nothing", "layers.1", torch.zeros(run.dictionary.d_in))
    assert strength_at(nothing, neutral, 0.1) == 256
    huge = pushing("huge", "layers.1", torch.full((run.dictionary.d_in,), 1e6).cumsum(0))
    assert strength_at(huge, neutral, 1e-6) == 0


def test_the_best_dose_is_within_the_budget(
    run: Run, feature: int, neutral: Neutral, curve: DoseResponse
) -> None:
    small, large = curve.doses[1].kl.value, curve.doses[2].kl.value
    assert curve.best(large).wanted.value == max(dose.wanted.value for dose in curve.doses)
    assert curve.best((small + large) / 2).kl.value <= small
    assert curve.best(0.0).strength == 0
    other = DoseResponse("other", "layers.0", curve.effect, curve.doses[:1])
    assert best_place([other, curve], large) is curve
    with pytest.raises(UserError, match="KL of at most -1"):
        curve.best(-1)
    with pytest.raises(UserError, match="none of 1 curves"):
        best_place([curve], -1)
    costly = DoseResponse("costly", "layers.0", curve.effect, curve.doses[2:])
    assert best_place([costly, curve], small) is curve


def test_methods_draw_the_same_and_curves_are_json(
    run: Run, feature: int, neutral: Neutral, curve: DoseResponse
) -> None:
    again = dose_response(
        run.lm,
        clamping(run.dictionary, feature),
        Concept("comment"),
        PROMPTS,
        neutral,
        strengths=[0.0],
        writing=WRITING,
        draws=50,
    )
    assert len(again.doses[0].each) == len(PROMPTS)
    values = json.loads(json.dumps(curve.to_dict()))
    assert values["doses"][1]["each"] == curve.doses[1].each.tolist()
    assert values["doses"][1]["wanted"]["value"] == pytest.approx(curve.doses[1].each.mean())
    for dose in curve.doses:
        assert dose.perplexity.low <= dose.perplexity.value <= dose.perplexity.high
        assert 0 <= dose.distinct.value <= 1


def test_a_prefix_is_measured_like_an_edit(run: Run, neutral: Neutral) -> None:
    lm, prefix = run.lm, "def g(x):\n    return 1\n\n\n"
    dose = prompted(
        lm, prefix, LogProbability(("return",)), PROMPTS, neutral, writing=WRITING, draws=50
    )
    for value, prompt in zip(dose.each, PROMPTS, strict=True):
        new = torch.tensor(lm.tokenizer("return", add_special_tokens=False)["input_ids"])
        whole = torch.cat([lm.encode(prefix + prompt)[0], new])
        log_p = lm.logits(whole[None])[0].log_softmax(-1)[:-1].gather(-1, whole[1:, None])[:, 0]
        assert value == pytest.approx(float(log_p[-len(new) :].sum()), rel=1e-4)
    assert dose.kl.value > 0
    nothing = neutral.measure_prefix("")
    assert nothing["kl"].value == 0
    with pytest.raises(UserError, match="leaves no room"):
        neutral.measure_prefix("def " * 60)


def test_openings_are_headers_of_python_and_first_lines_of_prose() -> None:
    source = "import os\n\n\ndef f(x):\n    return x\n\n\ndef g(\n    y,\n):\n    return y\n"
    held_out = open_corpus([source, "\n  The first line.\nThe second.", source], held_out=0.0)
    found = openings(held_out, 10, part="train")
    assert {d.text for d in found} == {"def f(x):\n", "The first line."}
    assert len(openings(held_out, 1, part="train")) == 1
    with pytest.raises(UserError, match="nothing in the train part"):
        openings(open_corpus(["x = 1\n"], held_out=0.0), 3, part="train")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda run: raising(run.dictionary, 96), "no feature 96"),
        (lambda run: clamping(run.dictionary, -1), "no feature -1"),
        (lambda run: Concept("docstrings"), "docstring"),
        (lambda run: LogProbability(()), "empty"),
        (lambda run: LogProbability(("",)), "empty"),
        (lambda run: Reencoded(run.dictionary, 1000), "1000"),
        (lambda run: Writing().write(run.lm, []), "no prompt"),
        (lambda run: Neutral(run.lm, []), "no text"),
    ],
)
def test_what_cannot_be_measured_is_refused(run: Run, make, told: str) -> None:
    with pytest.raises(UserError, match=told):
        make(run)


def test_no_strength_is_refused(run: Run, feature: int, neutral: Neutral) -> None:
    family: Family = raising(run.dictionary, feature)
    with pytest.raises(UserError, match="no strength"):
        dose_response(run.lm, family, Concept("try"), PROMPTS, neutral, strengths=[])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("dose")
    (folder / "text").mkdir()
    for number, text in enumerate(texts):
        (folder / f"text/{number}.py").write_text(text)
    where = ["--model", str(checkpoint), "--data", str(folder / "text"), "--hookpoint", "layers.1"]
    small = "--width 64 --k 6 --tokens 8192 --batch 512 --pool 2048 --context 32"
    main(["train", *where, *small.split(), "--out", str(folder / "run")])
    return folder / "run"


def test_on_the_command_line(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    feature = int(Dictionary.from_pretrained(saved).strength.argmax())
    asked = f"dose {saved} --feature {feature} --strengths 1 --count 2 --tokens 4"
    asked += " --neutral 200 --device cpu"
    main(f"{asked} --concept return --prefix pass".split())
    out = capsys.readouterr().out
    assert "share with return" in out and "random direction" in out and "prefix" in out
    values = json.loads((saved / "dose.json").read_text())
    assert [dose["strength"] for dose in values["curves"][0]["doses"]] == [0, 1]
    assert len(values["prompts"]) == 2 and values["best"]["prefix"]["kl"]["value"] > 0
    later = Reencoded(Dictionary.from_pretrained(saved), feature)
    command = Command(saved, feature, later=saved, target=feature)
    assert command._wanted(later.dictionary).name == later.name
    for wrong, told in {
        f"{asked} --concept returns": "return",
        f"{asked} --concept return --continuation x": "several effects",
        f"{asked} --target 1": "go together",
        f"{asked} --prompts {saved}/none": "cannot read",
        f"dose {saved} --feature 64": "no feature 64",
    }.items():
        with pytest.raises(SystemExit):
            main(wrong.split())
        assert told in capsys.readouterr().err, wrong
