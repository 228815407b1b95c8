"""The files of a run: what is torn at their end, what a user did to them, and the articles that are asked about."""

import random
import time

import pytest
from corpora import made_up_articles, write_jsonl

from minigpt.common.errors import UserError
from minigpt.settings.parse import defaults
from minigpt.synth.articles import ArticleSource, key_of, names_of, short_hash
from minigpt.synth.store import Appender, recover


def rows_about(ids, pairs=3):
    return [
        {"question": "问", "answer": "答", "id": id, "source": "w/a", "pair": n, "pairs": pairs}
        for id in ids
        for n in range(1, pairs + 1)
    ]


def hash_of(id):
    return short_hash(key_of("w/a", id))


def test_whatever_is_torn_at_the_end_of_a_file_is_cut_off_and_the_rest_stays(tmp_path):
    about, own = rows_about((1, 2, 3)), [{"question": "我的", "answer": "自己写的"}, {"x": 1}]
    rows = [own[0], *about[:6], "no JSON", own[1], *about[6:]]
    whole = write_jsonl(tmp_path / "whole.jsonl", rows).read_bytes()
    ends = [0]
    for line in whole.splitlines(keepends=True):
        ends.append(ends[-1] + len(line))
    first = {1: 1, 2: 4, 3: 9}  # the line behind which each article begins
    for size in range(len(whole) + 1):
        path, torn = tmp_path / "saves.jsonl", tmp_path / "saves.jsonl.torn"
        path.write_bytes(whole[:size])
        torn.unlink(missing_ok=True)
        done, left = recover(path), path.read_bytes()
        lines, at_end = sum(end <= size for end in ends[1:]), size in ends
        if not at_end:
            lines += size + 1 in ends and size + 1 != ends[8]  # a last line that lacks its line end alone is whole
            # An article of which some rows are there is asked about again, and of these no row stays.
            lines = next((line for line in first.values() if line < lines < line + 3), lines)
        assert left == whole[: ends[lines]], size
        assert done == {hash_of(id) for id, line in first.items() if lines > line}, size
        assert torn.exists() == (len(left) < size)
        if torn.exists():
            assert left + torn.read_bytes() == whole[:size] + b"\n"
        assert recover(path) == done and path.read_bytes() == left


def test_a_file_that_a_user_has_thinned_keeps_every_row_and_is_read_quickly(tmp_path):
    chance = random.Random(1)
    rows = [row for row in rows_about(range(3000)) if chance.random() < 0.6]
    path = write_jsonl(tmp_path / "saves.jsonl", rows)
    whole, started = path.read_bytes(), time.process_time()
    assert recover(path) == {hash_of(row["id"]) for row in rows} and path.read_bytes() == whole
    assert time.process_time() - started < 10  # it takes a twentieth of a second
    for last in ([1], [1, 2], [2], [3], [1, 3], [2, 3]):
        path = write_jsonl(path, [row for row in rows_about([1, 2]) if row["id"] == 1 or row["pair"] in last])
        whole = path.read_bytes()
        assert recover(path) == {hash_of(1), hash_of(2)} and path.read_bytes() == whole
    for last in ([2], [1, 3], [2, 3]):  # an editor has left the line end away
        path = write_jsonl(path, [row for row in rows_about([1, 2]) if row["id"] == 1 or row["pair"] in last])
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        assert recover(path) == {hash_of(1), hash_of(2)} and path.read_bytes() == whole
    path.write_bytes(whole + b'{"quest')  # and the next article is torn
    assert recover(path) == {hash_of(1), hash_of(2)} and path.read_bytes() == whole
    assert (tmp_path / "saves.jsonl.torn").read_bytes() == b'{"quest\n'


def test_rejects_are_mended_too_and_a_file_that_is_not_there_has_nothing(tmp_path):
    path = write_jsonl(tmp_path / "rejects.jsonl", [{"source": "w/a", "id": n} for n in (1, 2)])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:9])
    assert recover(path, whole=True) == {hash_of(1), hash_of(2)} and path.read_bytes() == whole
    path.write_bytes(whole[:-1])
    assert recover(path, whole=True) == {hash_of(1), hash_of(2)} and path.read_bytes() == whole
    assert recover(tmp_path / "none.jsonl") == set()


def test_nothing_is_added_to_a_file_that_was_closed(tmp_path):
    saves = Appender(tmp_path / "saves.jsonl")
    saves.add([{"x": 1}])
    saves.close()
    with pytest.raises(UserError, match="closed already"):
        saves.add([{"x": 2}])
    assert (tmp_path / "saves.jsonl").read_bytes() == b'{"x": 1}\n'


def test_articles_are_known_by_file_and_id_and_the_sample_is_a_share_of_them(tmp_path):
    rows = [
        {"id": 1, "title": "甲", "text": "甲在乙。" * 99},
        {"text": "没有编号。"},
        {"id": 1, "text": "又一个。"},
        {"text": ""},
    ]
    write_jsonl(tmp_path / "wiki/deep/a.jsonl", rows)
    write_jsonl(tmp_path / "wiki/b.jsonl", [{"id": 1, "text": "另一篇。"}])
    settings = defaults("generate")
    settings.input_dir, settings.article_chars = [str(tmp_path / "wiki")], 50
    source = ArticleSource(settings)
    found = [(article.source, article.id, article.text) for article in source]
    ends = [("wiki/deep/a.jsonl", 1, "甲在乙。" * 12), ("wiki/deep/a.jsonl", "line 2", "没有编号。")]
    assert found == [("wiki/b.jsonl", 1, "另一篇。"), *ends]
    assert source.skipped.total() == 1 and source.problems.counts.total() == 1 and source.read == source.total
    settings.article_sample = 0.3
    write_jsonl(tmp_path / "wiki/b.jsonl", made_up_articles(200, 1))
    first = [article.key for article in ArticleSource(settings) if article]
    assert 30 < len(first) < 100 and first == [article.key for article in ArticleSource(settings) if article]


def test_two_folders_of_one_name_are_told(tmp_path):
    for name in ("x", "y"):
        write_jsonl(tmp_path / name / "wiki/a.jsonl", made_up_articles(1))
    with pytest.raises(UserError, match=r"both go by wiki/a\.jsonl"):
        names_of([tmp_path / "x/wiki", tmp_path / "y/wiki"])
    assert list(names_of([tmp_path / "x/wiki", tmp_path / "x/wiki/a.jsonl"]).values()) == ["wiki/a.jsonl"]
