"""Captions from every kind of file, classes in sentences, guidance scales from words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rcg.core.errors import UserError
from rcg.synthesis.plan import SCALES, Plan, parse_scales
from rcg.synthesis.prompts import caption_prompts, class_prompts, read_captions, representation_prompts


def test_captions_of_every_kind_of_file(tmp_path: Path) -> None:
    captions = ["a dog", "two, cats", "ein großer Hund"]
    (tmp_path / "a.txt").write_text("\n".join([*captions, "", "  "]), encoding="utf-8")
    (tmp_path / "a.csv").write_text('n,caption\n1,a dog\n2,"two, cats"\n3,ein großer Hund\n', encoding="utf-8-sig")
    (tmp_path / "a.tsv").write_text("n\tcaption\n1\ta dog\n2\ttwo, cats\n3\tein großer Hund\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"caption": c}) for c in captions))
    for kind in ("txt", "csv", "tsv", "jsonl"):
        assert read_captions(tmp_path / f"a.{kind}") == captions
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, captions)))
    assert read_captions(tmp_path / "b.jsonl") == captions


def test_a_caption_may_hold_separators_that_end_no_line(tmp_path: Path) -> None:
    captions = ["a dog\u2028on a sofa", "two\x85cats", "a\x0cship"]
    (tmp_path / "a.txt").write_text("\r\n".join(captions), encoding="utf-8", newline="")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(c, ensure_ascii=False) for c in captions), encoding="utf-8")
    assert read_captions(tmp_path / "a.txt") == read_captions(tmp_path / "a.jsonl") == captions


def test_captions_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    assert read_captions(tmp_path / "a.parquet", "text") == ["a", "b"]
    with pytest.raises(UserError, match=r"no column 'caption'; name one with --column \(text\)"):
        read_captions(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        read_captions(tmp_path / "b.parquet")


def test_captions_of_a_hugging_face_data_set(tmp_path: Path) -> None:
    """As `save_to_disk` writes it, in several files; and as a repository in Parquet, of which a split and a column are named."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    saved = tmp_path / "saved"
    saved.mkdir()
    for i, texts in enumerate((["a dog", None], ["two cats"])):
        table = pa.table({"n": [1] * len(texts), "caption": texts})
        with pa.OSFile(str(saved / f"data-{i}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (saved / "left-over.arrow").write_bytes(b"of a computation")
    files = [{"filename": f"data-{i}.arrow"} for i in range(2)]
    (saved / "state.json").write_text(json.dumps({"_data_files": files}))
    assert read_captions(saved) == ["a dog", "two cats"]
    assert read_captions(saved / "data-1.arrow") == ["two cats"]
    with pytest.raises(UserError, match=r"no column 'text'; name one with --column \(n, caption\)"):
        read_captions(saved, "text")

    repository = tmp_path / "captions" / "data"
    repository.mkdir(parents=True)
    for split, texts in (("train", ["x", "y"]), ("test", ["z"])):
        parquet.write_table(pa.table({"text": texts}), repository / f"{split}-00000-of-00001.parquet")
    assert read_captions(f"hf:{tmp_path}/captions:train:text") == ["x", "y"]
    assert read_captions(f"hf:{tmp_path}/captions:test", "text") == ["z"]
    (tmp_path / "broken.arrow").write_bytes(b"ARROW1 not really")
    with pytest.raises(UserError, match="cannot be read"):
        read_captions(tmp_path / "broken.arrow")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="holds no tables"):
        read_captions(tmp_path / "pictures")
    with pytest.raises(UserError, match="there is no folder"):
        read_captions(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text\nx\n", r"no column 'caption'"),
        ("a.jsonl", "{\n", "line 1 of .* is no JSON"),
        ("a.jsonl", '"x"\n{"n": 1}\n', "line 2 of .* has no text"),
        ("a.jsonl", '"x"\n{"caption": "half \\ud83d"}\n', "line 2 of .* holds half a character"),
        ("a.txt", "\n \n", "holds no captions"),
        ("a.doc", "x", "says nothing"),
    ],
)
def test_files_that_cannot_be_used(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_captions(tmp_path / name)
    with pytest.raises(UserError, match="there is no file"):
        read_captions(tmp_path / "absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"gro\xdf")
    with pytest.raises(UserError, match="no UTF-8"):
        read_captions(tmp_path / "latin.txt")


def test_prompts() -> None:
    assert [p.text for p in caption_prompts(["a", "b", "a"])] == ["a", "b"]
    made = class_prompts(["dog", "cat"], ["a {}", "the {}"])
    assert [(p.text, p.class_name) for p in made] == [
        ("a dog", "dog"),
        ("the dog", "dog"),
        ("a cat", "cat"),
        ("the cat", "cat"),
    ]
    assert len({p.number for p in representation_prompts(100)}) == 100
    with pytest.raises(UserError, match=r"must hold \{\} once"):
        class_prompts(["dog"], ["a thing"])


def test_guidance_scales() -> None:
    assert parse_scales(["2", "3.5"]) == (2, 3.5)
    assert parse_scales(["2:4", "8"]) == (2, 3, 4, 8)
    assert parse_scales(["1:2:0.25"]) == (1, 1.25, 1.5, 1.75, 2)
    assert parse_scales(["mixed"]) == SCALES["mixed"] == (2, 3, 4, 5, 6, 8, 10, 12)
    for word in ("x", "3:2", "1:2:0", "1:2:1e-320", "-1", "nan", "1:2:3:4", "0:1000:0.001"):
        with pytest.raises(UserError, match="guidance-scales"):
            parse_scales([word])


def test_an_image_follows_from_its_caption_not_from_its_place() -> None:
    one = Plan(caption_prompts(["a", "b", "c"]), 4, (2.0, 3.0), 7, 2)
    two = Plan(caption_prompts(["x", "c", "a"]), 6, (2.0, 3.0), 7, 5)
    for i, j in ((0, 2), (2, 1)):
        a, b = one.pictures(i), two.pictures(j)[:4]
        assert [(p.number, p.seed, p.scale) for p in a] == [(p.number, p.seed, p.scale) for p in b]
        assert sorted(p.scale or 0 for p in a) == [2, 2, 3, 3]
    assert one.num_shards == 2
    assert list(one.keys(1)) == [2]
    seeds = {p.seed for key in range(3) for p in one.pictures(key)}
    assert len(seeds) == 12
    assert Plan(one.prompts, 4, (), 7, 2).pictures(0)[0].scale is None
