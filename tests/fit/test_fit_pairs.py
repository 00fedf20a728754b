"""Pairs of sequences: what is read from which file, what is refused, and how they are padded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from fit.made_data import write_parquet
from fit.made_pairs import transducer, write_pairs
from throughtime.fit.data.vocabulary import Vocabulary
from throughtime.fit.errors import FitError
from throughtime.fit.options import PairOptions
from throughtime.fit.tasks.transduce.pairs import encode_pairs, pad_pairs, read_pairs
from throughtime.fit.tasks.transduce.sources import absolute_source, read_sequences, source_name

SOURCES, TARGETS = ["a cat", "the dog sat"], ["un chat", "le chien"]


def read(source: str, need_targets: bool = True, **options: object) -> tuple:
    found = read_sequences(PairOptions(data=source, tokens="words", **options), need_targets)  # type: ignore[arg-type]
    return found.sources, found.targets


def test_all_kinds_of_files_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("".join(f"{s}\t{t}\r\n" for s, t in zip(SOURCES, TARGETS)))
    (tmp_path / "x.en").write_text("\n".join(SOURCES))
    (tmp_path / "x.fr").write_text("\n".join(TARGETS) + "\n")
    text = write_parquet(tmp_path / "text.parquet", source=SOURCES, target=pa.array(TARGETS).dictionary_encode())
    lists = write_parquet(tmp_path / "x.parquet", a=[s.split() for s in SOURCES], b=[t.split() for t in TARGETS])
    expected = [s.split() for s in SOURCES], [t.split() for t in TARGETS]
    assert read(f"tsv:{tmp_path}/x.tsv") == expected
    assert read(f"lines:{tmp_path}/x.en,{tmp_path}/x.fr") == expected
    assert read(f"parquet:{text}") == expected
    assert read(f"parquet:{lists}", source_column="a", target_column="b") == expected


def test_sources_alone(tmp_path: Path) -> None:
    """Enough to predict from."""
    (tmp_path / "x.txt").write_text("\n".join(SOURCES))
    path = write_parquet(tmp_path / "x.parquet", source=SOURCES)
    for source in (f"tsv:{tmp_path}/x.txt", f"lines:{tmp_path}/x.txt", f"parquet:{path}"):
        assert read(source, need_targets=False) == ([s.split() for s in SOURCES], None)


def test_characters_keep_their_spaces(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a b\tc\n")
    assert read_sequences(PairOptions(data=f"tsv:{tmp_path}/x.tsv"), True).sources == [["a", " ", "b"]]


def test_what_a_file_says_of_its_parts_stands(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "x.parquet", source=["a", "b", "c"], target=["x", "y", "z"], part=["train", "test", "val"]
    )
    data = read_pairs(PairOptions(data=f"parquet:{path}", split_column="part"))
    assert [data.part(part).source.rows.tolist() for part in ("train", "validation", "test")] == [[0], [2], [1]]
    assert data.encoding.source.tokens == ("<end>", "<unknown>", "a")
    assert data.test.source.values.tolist() == [1], "what training does not show is unknown"
    assert data.test.written.targets == [["y"]]


def test_names_of_sources(tmp_path: Path) -> None:
    assert source_name(f"lines:{tmp_path}/x.en,{tmp_path}/x.fr") == "x"
    assert absolute_source("lines:x.en,x.fr") == f"lines:{Path.cwd()}/x.en,{Path.cwd()}/x.fr"


@pytest.mark.parametrize(
    ("name", "text", "match", "detail"),
    [
        ("tsv:x.tsv", None, "cannot find the text file", "x.tsv"),
        ("tsv:x.tsv", "", "nothing but white space", "x.tsv"),
        ("tsv:x.tsv", b"\xff\xfe\t", "is not text in UTF-8", "x.tsv"),
        ("tsv:x.tsv", "a\tb\na b\n", "a tab and its target", "line 2 of"),
        ("tsv:x.tsv", "a\tb\n\tb\n", "has at least one token", "every source has at least one token; that of row 1"),
        ("tsv:x.tsv", "a\tb\na\t\n", "has at least one token", "every target"),
        ("lines:x.tsv", "a\n", "there are two files", "got only x.tsv"),
        ("lines:x.tsv,y.tsv", "a\nb\n", "has its target in the same line", "x.tsv has 2 lines, y.tsv has 1"),
        ("csv:x.csv", "", "--data of pairs is", "'csv:x.csv'"),
        ("tsv:", "", "--data of pairs is", "'tsv:'"),
    ],
)
def test_text_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | bytes | None, match: str, detail: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("y.tsv").write_text("a\n")
    if text is not None:
        Path("x.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FitError, match=match) as caught:
        read(name)
    assert detail in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "match", "detail"),
    [
        ({"source": ["a"], "label": ["b"]}, "has no column", "'target'. Its columns are: source, label"),
        ({"source": ["a", None], "target": ["b", "c"]}, "which is no sequence", "row 1 of the column 'source'"),
        ({"source": [["a", None]], "target": ["b"]}, "which is no sequence", "row 0"),
        ({"source": [1.5], "target": ["b"]}, "text or lists of tokens", "'source' holds double"),
    ],
)
def test_parquet_that_is_refused(tmp_path: Path, columns: dict, match: str, detail: str) -> None:
    with pytest.raises(FitError, match=match) as caught:
        read(f"parquet:{write_parquet(tmp_path / 'x.parquet', **columns)}")
    assert detail in str(caught.value)


def test_a_batch_is_padded_and_shared(tmp_path: Path) -> None:
    data = read_pairs(transducer(write_pairs(tmp_path / "x.tsv")).data)
    rows = np.asarray([3, 1, 4, 0, 5])
    whole, *shares = (
        pad_pairs(data.train, rows, rows[part]) for part in (slice(None), slice(0, None, 2), slice(1, None, 2))
    )
    assert whole.source.shape == (5, 16), "a multiple of 16, for which the decoder is compiled"
    for k, row in enumerate(rows):
        tokens = data.train.written.targets[row]
        ids = data.encoding.target.ids(tokens).tolist()
        length = int(whole.target_lengths[k])
        assert whole.said[k, :length].tolist() == [0, *ids]
        assert whole.targets[k, :length].tolist() == [*ids, 0]
        source = data.encoding.source.ids(data.train.written.sources[row]).tolist()
        assert whole.source[k, : whole.lengths[k]].tolist() == source
        assert (whole.source[k, whole.lengths[k] :] == 0).all()
    assert whole.units == int(whole.target_lengths.sum())
    assert {share.units for share in shares} == {whole.units}
    assert torch.equal(torch.cat([share.rows for share in shares]).sort().values, torch.from_numpy(np.sort(rows)))
    assert shares[0].source.shape[1] == shares[1].source.shape[1]


def test_the_most_frequent_tokens() -> None:
    vocabulary = Vocabulary.learn([list("aaabbc"), list("cc<d")], "characters", 2)
    assert vocabulary.tokens == ("<end>", "<unknown>", "a", "c")
    assert vocabulary.ids("cab").tolist() == [3, 2, 1]
    assert vocabulary.join(["a", "c"]) == "ac"
    assert vocabulary.missing("abba<") == ["<", "b"]


def test_a_word_that_looks_like_a_special_token_is_a_word() -> None:
    vocabulary = Vocabulary.learn([["<end>", "b"]], "words", 0)
    assert vocabulary.ids(["<end>"]).tolist() == [2]
    assert vocabulary.join(["<end>", "b"]) == "<end> b"


def test_pairs_are_encoded_as_a_run_knows_them(tmp_path: Path) -> None:
    options = transducer(write_pairs(tmp_path / "x.tsv")).data
    encoding = read_pairs(options).encoding
    (tmp_path / "new.tsv").write_text("abz\n")
    new = encode_pairs(read_sequences(replace(options, data=f"tsv:{tmp_path}/new.tsv"), False), encoding)
    assert new.source.values.tolist() == [*encoding.source.ids("ab"), 1]
    assert new.target is None
    assert new.written.sources == [["a", "b", "z"]]
