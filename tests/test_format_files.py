"""Files of other tools that are damaged, odd or hostile: one clear error each, and nothing run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import dictionary_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_coders import build
from torch.testing import assert_close

import monosemy
from monosemy.errors import UserError
from monosemy.formats import FORMATS, export
from monosemy.formats.files import (
    Tensors,
    check_readable,
    needed_count,
    pt_shapes,
    read_json,
    read_npz,
    read_pt,
    read_safetensors,
    read_yaml,
    tensor_shapes,
    tensors_of,
)

# Hostile files


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


def hostile_zip(path: Path, made: Path) -> None:
    torch.save({"encoder.weight": torch.ones(3, 2), "more": Hostile(made)}, path)


def hostile_old(path: Path, made: Path) -> None:
    torch.save({"more": Hostile(made)}, path, _use_new_zipfile_serialization=False)


def hostile_npz(path: Path, made: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, W_enc=np.array([Hostile(made)], dtype=object))


def hostile_npy(path: Path, made: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Hostile(made)], dtype=object), allow_pickle=True)


Writer = Callable[[Path, Path], None]
HOSTILE: list[Writer] = [hostile_zip, hostile_old, hostile_npz, hostile_npy]
NAMES = ["ae.pt", "weights.pt", "weights.pth", "params.npz", "sae.safetensors"]


@pytest.mark.parametrize("write", HOSTILE)
def test_they_would_make_a_folder_if_they_were_unpickled(tmp_path: Path, write: Writer) -> None:
    """So the tests below have something to find."""
    made = tmp_path / "made"
    write(tmp_path / "file", made)
    if write in (hostile_zip, hostile_old):
        torch.load(tmp_path / "file", weights_only=False)
    else:
        found = np.load(tmp_path / "file", allow_pickle=True)
        _ = found["W_enc"] if write is hostile_npz else found
    assert made.exists()


@pytest.mark.parametrize("write", [hostile_zip, hostile_old])
@pytest.mark.parametrize("read", [read_pt, check_readable])
def test_pickled_code_is_refused_by_name_and_not_run(
    tmp_path: Path, write: Writer, read: Callable[[Path], Any]
) -> None:
    file, made = tmp_path / "any.pt", tmp_path / "made"
    write(file, made)
    with pytest.raises(UserError, match=r"(?s)more than tensors.*`\w+.mkdir`.*may run code"):
        read(file)
    assert pt_shapes(file) == {}
    assert not made.exists()


@pytest.mark.parametrize("write", [hostile_npz, hostile_npy])
@pytest.mark.parametrize("read", [read_npz, check_readable])
def test_pickled_arrays_are_refused_and_not_run(
    tmp_path: Path, write: Writer, read: Callable[[Path], Any]
) -> None:
    file, made = tmp_path / "any.npz", tmp_path / "made"
    write(file, made)
    with pytest.raises(UserError, match=r"(?s)more than tensors.*may run code"):
        read(file)
    assert not made.exists()


@pytest.mark.parametrize("write", HOSTILE)
@pytest.mark.parametrize("name", NAMES)
def test_loading_runs_nothing_whatever_a_file_is_called(
    tmp_path: Path, write: Writer, name: str
) -> None:
    folder, made = tmp_path / "folder", tmp_path / "made"
    folder.mkdir()
    write(folder / name, made)
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "AutoEncoder"}}))
    (folder / "cfg.json").write_text(json.dumps({"d_in": 2, "num_latents": 3, "k": 1}))
    for source in (folder, folder / name):
        with pytest.raises(UserError):
            monosemy.load(source)
        for format_name in FORMATS:
            with pytest.raises(UserError):
                monosemy.load(source, format=format_name)
    assert not made.exists()


@pytest.mark.parametrize("has_settings", [True, False])
def test_loading_says_why_a_file_with_code_is_not_read(tmp_path: Path, has_settings: bool) -> None:
    hostile_zip(tmp_path / "ae.pt", tmp_path / "made")
    if has_settings:
        text = json.dumps({"trainer": {"dict_class": "AutoEncoder"}})
        (tmp_path / "config.json").write_text(text)
    for source in (tmp_path, tmp_path / "ae.pt"):
        with pytest.raises(UserError, match="may run code"):
            monosemy.load(source)


def test_hostile_files_beside_a_dictionary_are_left_alone(tmp_path: Path) -> None:
    export(dictionary_of(build("topk")), "sparsify", tmp_path / "run")
    for name in ("optimizer_0.pt", "state.pt"):
        hostile_zip(tmp_path / "run" / name, tmp_path / "made")
    assert monosemy.load(tmp_path / "run").hookpoint == "layers.3"
    assert not (tmp_path / "made").exists()


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"model: !!python/object/apply:builtins.open ['{tmp_path / 'made'}', w]\n")
    with pytest.raises(UserError, match="not valid YAML"):
        read_yaml(file)
    assert not (tmp_path / "made").exists()


def test_yaml_has_names_and_plain_values(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("made: 2001-01-01\n3: x\nlr: 0.5\nall: yes\n")
    assert read_yaml(file) == {"made": "2001-01-01", "3": "x", "lr": 0.5, "all": True}


# Damaged files


def good_bytes(kind: str, folder: Path) -> bytes:
    values = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5)}
    file = folder / f"good.{kind}"
    if kind == "safetensors":
        save_file(values, file)
    elif kind in ("pt", "old"):
        torch.save(values, file, _use_new_zipfile_serialization=kind == "pt")
    elif kind in ("npz", "packed"):
        with file.open("wb") as out:
            save = np.savez if kind == "npz" else np.savez_compressed
            save(out, **{n: v.numpy() for n, v in values.items()})
    elif kind == "json":
        file.write_text(json.dumps({"a": [1, 2, {"b": None}], "c": "text"}))
    else:
        file.write_text("a: [1, 2]\nb:\n  c: 2001-01-01\n  d: text\n")
    return file.read_bytes()


READERS: dict[str, Callable[[Path], Any]] = {
    "safetensors": read_safetensors,
    "pt": read_pt,
    "old": read_pt,
    "npz": read_npz,
    "packed": read_npz,
    "json": read_json,
    "yaml": read_yaml,
}


@pytest.fixture(scope="module", params=READERS)
def good(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Callable[[Path], Any], bytes, Path]:
    """A reader, what it reads, and a path to write changes to."""
    folder = tmp_path_factory.mktemp("good")
    return READERS[request.param], good_bytes(request.param, folder), folder / "changed"


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind != "yaml"])
def test_a_file_cut_short_is_damaged_wherever_it_is_cut(tmp_path: Path, kind: str) -> None:
    whole, file = good_bytes(kind, tmp_path), tmp_path / "cut"
    for length in {*range(0, len(whole), max(len(whole) // 25, 1)), len(whole) - 1}:
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cannot be read|is not valid|may run code"):
            READERS[kind](file)


@settings(max_examples=40)
@given(
    place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), more=st.binary(max_size=9)
)
def test_changed_bytes_give_a_value_or_one_error(
    good: tuple[Callable[[Path], Any], bytes, Path], place: float, byte: int, more: bytes
) -> None:
    read, whole, file = good
    at = int(place * len(whole))
    file.write_bytes(whole[:at] + bytes([byte]) + more + whole[at + 1 + len(more) :])
    try:
        read(file)
    except UserError as error:
        assert str(file) in error.message
    assert isinstance(pt_shapes(file), dict)
    assert isinstance(tensor_shapes(file), dict)


@pytest.mark.parametrize(
    ("kind", "name"), [("pt", "any.pt"), ("npz", "params.npz"), ("safetensors", "w.safetensors")]
)
def test_loading_says_that_a_file_is_damaged(tmp_path: Path, kind: str, name: str) -> None:
    whole = good_bytes(kind, tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    for source in (folder, folder / name):
        with pytest.raises(UserError, match=rf"(?s)`.*{name}` cannot be read.*copy it again"):
            monosemy.load(source)


def test_a_whole_file_of_no_format_is_said_to_be_that(tmp_path: Path) -> None:
    (tmp_path / "any.pt").write_bytes(good_bytes("pt", tmp_path))
    (tmp_path / "good.pt").unlink()
    with pytest.raises(UserError, match=r"no dictionary of a known format\nthere: any.pt; known"):
        monosemy.load(tmp_path)
    with pytest.raises(UserError, match=r"no format `sparsefy`\ndid you mean `sparsify`"):
        monosemy.load(tmp_path, format="sparsefy")
    with pytest.raises(UserError, match="nothing is at"):
        monosemy.load(tmp_path / "else")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not valid JSON"),
        (b"[1, 2]", "holds a list"),
        (b"\xff\xfe{", "cannot be read"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_json_that_is_no_object_is_said(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json")


def test_a_file_that_is_missing_is_named_with_those_there(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    for read in READERS.values():
        with pytest.raises(UserError, match=r"`.*gone` is missing\nbeside it: `other.json`"):
            read(tmp_path / "gone")


def test_what_is_no_mapping_of_tensors_is_said(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list, not tensors by name"):
        tensors_of(read_pt(tmp_path / "list.pt"), tmp_path / "list.pt")
    assert pt_shapes(tmp_path / "list.pt") == {}
    assert pt_shapes(tmp_path) == {}


def test_numbers_among_tensors_are_not_dropped_unseen(tmp_path: Path) -> None:
    found = tensors_of({"k": 3, "much": 10**400, "w": torch.ones(2), "about": "text"}, tmp_path)
    assert int(found.take("k", ())) == 3
    with pytest.raises(UserError, match="not finite"):
        found.take("much", ())
    found.take("w", (2,))
    with pytest.raises(UserError, match="also holds `other`"):
        tensors_of({"other": 1.5}, tmp_path).done()


def test_names_and_shapes_are_told_without_reading(tmp_path: Path) -> None:
    expected = {"a": (3, 4), "b": (5,)}
    for kind in ("pt", "old"):
        good_bytes(kind, tmp_path)
        assert pt_shapes(tmp_path / f"good.{kind}") == expected
    good_bytes("safetensors", tmp_path)
    assert tensor_shapes(tmp_path / "good.safetensors") == expected


# Tensors


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_every_floating_type_becomes_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([0.5, -2.0, 1.5])
    save_file({"a": values.to(dtype)}, tmp_path / "a.safetensors")
    torch.save({"a": values.to(dtype)}, tmp_path / "a.pt")
    for file in (
        read_safetensors(tmp_path / "a.safetensors"),
        tensors_of(read_pt(tmp_path / "a.pt"), tmp_path / "a.pt"),
    ):
        taken = file.take("a", (3,))
        assert taken.dtype == torch.float32
        assert_close(taken, values)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(3, dtype=torch.complex64), "complex64"),
        (torch.ones(3).to_sparse(), "sparse_coo"),
        (torch.ones(3, device="meta"), "no values"),
    ],
)
def test_what_cannot_be_fp32_is_said(value: torch.Tensor, said: str) -> None:
    with pytest.raises(UserError, match=f"`a` of `file` holds {said}"):
        Tensors({"a": value}, Path("file")).take("a", (3,))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    coder = build("topk")
    with torch.no_grad():
        coder.W_dec[3, 2] = bad
    for name in ("sparsify", "dictionary_learning"):
        export(dictionary_of(coder), name, tmp_path / name)
        with pytest.raises(UserError, match=r"`(W_dec|decoder.weight)` of .* not finite"):
            monosemy.load(tmp_path / name)


def test_a_tensor_is_taken_once_by_name_and_shape() -> None:
    file = Tensors({"a": torch.ones(2, 3), "b": torch.ones(4), "c": torch.ones(1)}, Path("file"))
    assert file.take(("z", "a"), (None, 3)).shape == (2, 3)
    with pytest.raises(UserError, match=r"no tensor `y` or `z`\nit has `a` \[2, 3\], `b` \[4\]"):
        file.take(("y", "z"), (1,))
    for shape in [(3, 2), (2,), (2, 3, 1)]:
        with pytest.raises(UserError, match=r"`a` of `file` is \[2, 3\], but should be"):
            file.take("a", shape)
    with pytest.raises(UserError, match="also holds `b`, `c`"):
        file.done()
    file.ignore("b", "c", "not there")
    file.done()


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "3", [3], None])
def test_what_counts_is_a_whole_number(value: object) -> None:
    with pytest.raises(UserError, match="`k`"):
        needed_count({"k": value}, "k", Path("cfg.json"))
    assert needed_count({"k": 3.0}, "k", Path("cfg.json")) == 3


# Folders


def test_a_folder_of_two_formats_at_once_is_asked_about(tmp_path: Path) -> None:
    export(dictionary_of(build("topk")), "sparsify", tmp_path / "a")
    both = tmp_path / "a" / "layers.3"
    export(dictionary_of(build("gated")), "dictionary_learning", tmp_path / "b")
    for file in (tmp_path / "b").iterdir():
        file.rename(both / file.name)
    with pytest.raises(UserError, match=r"several formats at once: .*sparsify.*\nsay which"):
        monosemy.load(both)
    assert monosemy.load(both, format="sparsify").coder.architecture == "topk"
    assert monosemy.load(both, format="dictionary_learning").coder.architecture == "gated"


def test_links_back_up_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    export(dictionary_of(build("topk")), "sparsify", folder)
    (folder / "again").symlink_to(folder)
    (folder / "nowhere").symlink_to(tmp_path / "gone")
    (folder / "more").mkdir()
    (folder / "more" / "up").symlink_to(tmp_path)
    assert monosemy.load(folder).hookpoint == "layers.3"
    (tmp_path / "self").symlink_to(tmp_path / "self")
    with pytest.raises(UserError, match="nothing is at"):
        monosemy.load(tmp_path / "self")


def test_a_link_to_a_dictionary_is_one(tmp_path: Path) -> None:
    export(dictionary_of(build("gated")), "dictionary_learning", tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "there").symlink_to(tmp_path / "a")
    assert monosemy.load(tmp_path / "b").coder.architecture == "gated"


def test_export_writes_into_new_or_empty_folders_only(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export(dictionary_of(build("topk")), "sparsify", tmp_path / "empty")
    with pytest.raises(UserError, match="is not empty"):
        export(dictionary_of(build("topk")), "sparsify", tmp_path / "empty")
    with pytest.raises(UserError, match=r"no format `pt`\n.*allowed"):
        export(dictionary_of(build("topk")), "pt", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
