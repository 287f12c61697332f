"""Every layout is read as published, and every fault of a file is told once, with its place and its remedy."""

import json
import re

import pytest

from jaxunlearn.data import DataError, Fields, check_overlap, from_rows, read

GOOD = {"question": "Who?", "answer": "Ada."}


def lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "kind", "prompt", "completion"),
    [
        (GOOD, "question", "Who?", "Ada."),
        ({"prompt": "2 + 2 =", "completion": "4"}, "prompt", "2 + 2 =", "4"),
        ({"text": "Once upon a time"}, "text", "", "Once upon a time"),
        ({"text": "Who?", "labels": "Ada."}, "prompt", "Who?", "Ada."),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]},
            "messages",
            "Hi",
            "Yes",
        ),
    ],
)
def test_layouts_are_told_apart_by_their_fields(tmp_path, row, kind, prompt, completion):
    [record] = read(lines(tmp_path / "a.jsonl", row))
    assert (record.kind, record.prompt, record.completion) == (kind, prompt, completion)
    assert record.raw == row


def test_the_three_file_formats_give_the_same_records(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{**GOOD, "entity": "Ada"}, {"question": "Where?", "answer": "Here.\u2028There.", "entity": "Ada"}]
    lines(tmp_path / "a.json", *(json.dumps(row, ensure_ascii=False) for row in rows))
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    first, *others = (
        [(r.prompt, r.completion, r.line, r.raw) for r in read(tmp_path / n)] for n in ("a.json", "b.json", "c.parquet")
    )
    assert len(first) == 2
    assert all(other == first for other in others)


def test_the_real_tofu_files(tofu):
    forget, holdout = read(tofu / "forget01.json"), read(tofu / "holdout10.json")
    assert (len(forget), len(holdout)) == (40, 400)
    assert forget[2].where.endswith("forget01.json, line 3")
    assert holdout[2].where.endswith("holdout10.json, record 3")
    assert len(read(tofu / "forget01_perturbed.json")[0].raw["perturbed_answer"]) == 5
    check_overlap(forget, read(tofu / "retain99.json"))
    with pytest.raises(DataError, match=r"200 of 200 .*\n.*forget05.json, line 1: .*full.json, line 3801"):
        check_overlap(read(tofu / "forget05.json"), read(tofu / "full.json"))


def test_the_real_knowundo_file(tofu):
    records = read(tofu.parent / "knowundo-privacy" / "unlearn_train.json")
    assert len(records) == 400
    assert records[0].prompt == "Who are Isabella Marquez's parents?"


def test_fields_map_any_names(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"q": "Who?", "a": "Ada.", "who": ["Ada", "Byron"]})
    [record] = read(path, fields=Fields(prompt="q", completion="a", entity="who"))
    assert (record.kind, record.prompt, record.completion) == ("prompt", "Who?", "Ada.")
    assert record.entity == ("Ada", "Byron")


@pytest.mark.parametrize(
    ("bad", "told", "remedy"),
    [
        ("{oops", "not JSON at column 2", "one JSON object a line"),
        ([1, 2], "[1, 2] is not an object", "Write one JSON object"),
        ({"q": "Who?", "a": "Ada."}, 'the record has "q", "a"', "--prompt-field"),
        ({"question": "Who?", "answer": 7}, '"answer" holds 7 (int)', "Write it as a string"),
        ({"question": None, "answer": "Ada."}, '"question" holds None (NoneType)', "Write it as a string"),
        ({"question": "Who?", "answer": "  "}, '"answer" is blank', "remove the record"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "no assistant turn", "Add one"),
        ({"messages": [{"role": "user"}]}, "{'role': 'user'}", '"role" and "content"'),
        ({**GOOD, "entity": 3}, '"entity" holds 3', "Write a name or a list of names"),
        ('{"text": "half \\ud800 pair"}', "half a surrogate pair", "UTF-8"),
    ],
)
def test_a_bad_line_is_told_with_file_line_value_and_remedy(tmp_path, bad, told, remedy):
    path = lines(tmp_path / "a.jsonl", GOOD, "", bad)
    with pytest.raises(DataError) as error:
        read(path)
    message = str(error.value)
    for part in (f"{path}: 1 of 2 records cannot be used", "line 3: ", told, remedy):
        assert part in message


def test_all_bad_lines_come_in_one_message_in_order(tmp_path):
    path = lines(tmp_path / "a.jsonl", GOOD, *["{oops", {"answer": "Ada."}] * 4)
    with pytest.raises(DataError, match="8 of 9 records") as error:
        read(path)
    assert re.findall(r"line (\d)", str(error.value)) == list("23456")
    assert str(error.value).endswith("and 3 more.")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (Fields(prompt="q"), "--completion-field"),
        (Fields(text="body"), 'no field "body"; the record has "question", "answer"'),
        (Fields(entity="who"), "--entity-field"),
    ],
)
def test_wrong_field_names_are_told(tmp_path, fields, told):
    with pytest.raises(DataError, match=re.escape(told)):
        read(lines(tmp_path / "a.jsonl", GOOD), fields=fields)


@pytest.mark.parametrize("name", ["a.jsonl", "b.json", "c.json"])
def test_empty_files(tmp_path, name):
    path = tmp_path / name
    path.write_text({"a.jsonl": "", "b.json": " \n ", "c.json": "[]"}[name])
    with pytest.raises(DataError, match=f"{name}.* empty.*Write at least one record"):
        read(path)


def test_a_broken_array_a_wrong_encoding_and_a_broken_parquet_name_the_file(tmp_path):
    (tmp_path / "a.json").write_text('[\n{"text": "a"},\n{oops}]')
    with pytest.raises(DataError, match=r"a.json, line 3: not JSON.*repair that line"):
        read(tmp_path / "a.json")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}')
    with pytest.raises(DataError, match=r"b.jsonl, line 2: not UTF-8.*Save the file as UTF-8"):
        read(tmp_path / "b.jsonl")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"c.parquet: not a readable Parquet file"):
        read(tmp_path / "c.parquet")


def test_a_missing_file_suggests_the_nearest_name_and_a_folder_lists_its_files(tmp_path):
    lines(tmp_path / "forget.jsonl", GOOD)
    with pytest.raises(DataError, match=r"forgot.jsonl: no such file. Did you mean .*forget.jsonl\?"):
        read(tmp_path / "forgot.jsonl")
    with pytest.raises(DataError, match=r"is a folder.*forget.jsonl"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"The folder .*nowhere does not exist"):
        read(tmp_path / "nowhere" / "forget.jsonl")


def test_hub_names_are_split_and_their_failures_told(monkeypatch, tmp_path):
    import datasets

    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        if name == "gone":
            raise ConnectionError("no route")
        return datasets.Dataset.from_list([GOOD])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    assert read("locuslab/TOFU:forget10:train")[0].where == "locuslab/TOFU:forget10:train, record 1"
    assert read("plain")[0].completion == "Ada."
    assert asked == [("locuslab/TOFU", "forget10", "train"), ("plain", None, "train")]
    with pytest.raises(DataError, match=r"gone: no such file.*no route.*name:config:split"):
        read("gone")
    lines(tmp_path / "plain", {"text": "local"})
    assert read("plain")[0].completion == "local"


def test_overlap_ignores_case_and_white_space_and_names_both_places():
    forget = from_rows([{"question": "Where?", "answer": "Here."}, GOOD], name="f.jsonl")
    retain = from_rows([{"question": " who? ", "answer": "ADA."}], name="r.jsonl")
    with pytest.raises(DataError, match=r"remove each .*\n  f.jsonl, record 2: 'Who\?' is also at r.jsonl, record 1$"):
        check_overlap(forget, retain)
    check_overlap(forget[:1], retain)
    check_overlap(forget, from_rows([{**GOOD, "answer": "Alan."}]))
