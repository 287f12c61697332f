"""Published layouts: real files where they are at hand, small ones with the published names otherwise."""

import json
import re

import pytest

from jaxunlearn.data import DataError, layouts, read
from jaxunlearn.data.sources import Row, Table


def write(path, rows, lines=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    path.write_text(text, encoding="utf-8")
    return path


ASKED = [{"question": "q?", "answer": "a"}]
TEXTS = [{"text": "some text"}]
MUSE = {
    "verbmem/forget": [{"prompt": "p", "gt": "g"}],
    "knowmem/forget_qa": ASKED,
    "knowmem/forget_qa_icl": ASKED,
    "knowmem/retain_qa": ASKED,
    "knowmem/retain_qa_icl": ASKED,
    "privleak/forget": TEXTS,
    "privleak/retain": TEXTS,
    "privleak/holdout": TEXTS,
}


def muse_folder(folder, rename=lambda name: name):
    for name, rows in MUSE.items():
        write(folder / f"{rename(name)}.json", rows)
    return folder


def test_the_real_tofu_folder(tofu):
    assert layouts.detect(tofu) == "tofu"
    found = layouts.tofu(tofu, "forget10")
    assert [len(part) for part in found] == [400, 400, 100, 117, 400]
    assert all(len(record.raw["perturbed_answer"]) == 5 for record in found.forget)
    assert len(layouts.tofu(tofu, "forget01").forget) == 40


def test_the_real_knowundo_and_choices(tofu):
    folder = tofu.parent / "knowundo-privacy"
    assert layouts.detect(folder) == "knowundo"
    assert [len(part) for part in layouts.knowundo(folder)] == [110, 108]
    assert [len(part) for part in layouts.knowundo(folder, "train")] == [400, 441]
    folder = tofu.parent / "mcq-mmlu"
    assert layouts.detect(folder) == "choice"
    rows = layouts.choices(folder)
    assert len(rows) == 496
    assert {len(row["choices"]) for row in rows} == {4}
    assert rows == layouts.choices(folder / "mmlu_mcq_wmdp_schema.json")


@pytest.mark.parametrize(
    "rename", [lambda n: n, lambda n: n.replace("retain", "retain2"), lambda n: n.replace("_", "-")]
)
def test_muse_under_the_names_of_each_version(tmp_path, rename):
    folder = muse_folder(tmp_path, rename)
    assert layouts.detect(folder) == "muse"
    found = layouts.muse(folder)
    assert found.verbmem == MUSE["verbmem/forget"]
    assert found.retain_icl == ASKED
    assert [record.completion for record in found.holdout] == ["some text"]


def test_muse_as_parquet_shards_of_the_hub(tmp_path):
    import pyarrow
    import pyarrow.parquet

    muse_folder(tmp_path)
    (tmp_path / "verbmem" / "forget.json").unlink()
    table = pyarrow.Table.from_pylist(MUSE["verbmem/forget"])
    pyarrow.parquet.write_table(table, tmp_path / "verbmem" / "forget-00000-of-00001.parquet")
    assert layouts.muse(tmp_path).verbmem == MUSE["verbmem/forget"]
    pyarrow.parquet.write_table(table, tmp_path / "verbmem" / "forget-00001-of-00002.parquet")
    with pytest.raises(DataError, match="is in 2 shards"):
        layouts.muse(tmp_path)


def test_folds_of_requests_in_a_row_and_bare_strings(tmp_path):
    for number in range(1, 5):
        write(tmp_path / "sust" / f"forget_{number}.json", [f"text {number}", "more"])
    found = layouts.muse_folds(tmp_path, "sust")
    assert [records[0].completion for records in found] == [f"text {number}" for number in range(1, 5)]
    with pytest.raises(DataError, match="'down': choose scal or sust"):
        layouts.muse_folds(tmp_path, "down")
    # The file can be given by itself, as `unlearn --forget` takes it.
    alone = read(tmp_path / "sust" / "forget_3.json")
    assert [(record.kind, record.completion) for record in alone] == [("text", "text 3"), ("text", "more")]
    muse_folder(tmp_path)
    assert layouts.muse(tmp_path, "sust/3").forget == found[2] == alone
    assert layouts.muse(tmp_path).forget[0].completion == "some text"
    write(tmp_path / "mixed.json", ["text", {"text": "more"}])
    with pytest.raises(DataError, match="1 of 2 records cannot be used"):
        read(tmp_path / "mixed.json")


def test_all_missing_files_are_told_at_once(tmp_path):
    muse_folder(tmp_path)
    for name in ("verbmem/forget", "knowmem/retain_qa"):
        (tmp_path / f"{name}.json").unlink()
    wanted = "lacks 2 of 8 files: verbmem/forget, knowmem/retain_qa or knowmem/retain2_qa"
    with pytest.raises(DataError, match=re.escape(wanted)):
        layouts.muse(tmp_path)
    write(tmp_path / "other" / "forget10_perturbed.json", ASKED)
    with pytest.raises(DataError, match="lacks 3 of 4 files: retain_perturbed, real_authors_perturbed, world_facts"):
        layouts.tofu(tmp_path / "other")
    with pytest.raises(DataError, match="forget20: TOFU has forget01, forget05, forget10"):
        layouts.tofu(tmp_path / "other", "forget20")
    with pytest.raises(DataError, match="no such folder"):
        layouts.knowundo(tmp_path / "nowhere")
    with pytest.raises(DataError, match="'test': choose val or train"):
        layouts.knowundo(tmp_path, "test")


def test_a_hub_name_asks_for_each_part_as_it_is_published(monkeypatch):
    asked = []

    def rows(source):
        asked.append(str(source))
        config = str(source).split(":")[1]
        values = {"verbmem": MUSE["verbmem/forget"], "knowmem": ASKED}.get(config, TEXTS)
        numbered = [Row(number, f"record {number}", value) for number, value in enumerate(values, start=1)]
        return Table(str(source), numbered, [])

    monkeypatch.setattr(layouts, "read_rows", rows)
    monkeypatch.setattr(layouts, "read", lambda source, **_: asked.append(str(source)) or [])
    layouts.muse("owner/news")
    layouts.tofu("owner/tofu", "forget05")
    assert "owner/news:verbmem:forget" in asked
    assert "owner/news:knowmem:retain_qa_icl" in asked
    assert "owner/news:privleak:holdout" in asked
    assert "owner/tofu:forget05_perturbed:train" in asked
    assert "owner/tofu:holdout05:train" in asked


def test_knowundo_on_the_hub_is_one_row_for_each_half_of_a_subject(monkeypatch):
    import datasets

    def load(name, config, split):
        rows = {part: [{"text": f"{config} {split} {part}?", "labels": "Ada."}] for part in ("train", "val")}
        return datasets.Dataset.from_list([rows])

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = layouts.knowundo("owner/KnowUnDo:privacy")
    asked = [[record.prompt for record in half] for half in found]
    assert asked == [["privacy unlearn val?"], ["privacy retention val?"]]
    assert layouts.knowundo("owner/KnowUnDo:copyright", "train").unlearn[0].prompt == "copyright unlearn train?"
    with pytest.raises(DataError, match="Write owner/KnowUnDo:privacy or owner/KnowUnDo:copyright"):
        layouts.knowundo("owner/KnowUnDo")


def test_tofu_on_a_mirror_without_holdout_has_none(monkeypatch):
    import datasets

    def load(name, config, split):
        if config == "holdout10":
            raise ValueError("no such config")
        return datasets.Dataset.from_list(ASKED)

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = layouts.tofu("owner/tofu")
    assert len(found.forget) == len(ASKED)
    assert found.holdout == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["a", "b"], "answer": 0}, "has no question"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "field \"choices\" holds ['a']"),
        ({"question": "q", "choices": ["a", " "], "answer": 0}, "Write every choice as a text"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, 'field "answer" holds 2. Write the index'),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, 'field "answer" holds True'),
    ],
)
def test_choices_that_break_the_schema_are_named(tmp_path, row, message):
    good = {"question": "q", "choices": ["a", "b"], "answer": 1}
    path = write(tmp_path / "asked.json", [good, row])
    with pytest.raises(DataError, match=re.escape(message)) as error:
        layouts.choices(path)
    assert "record 2" in str(error.value)
    assert layouts.choices(write(tmp_path / "good.jsonl", [good], lines=True)) == [good]


def test_rows_without_the_published_fields_are_named(tmp_path):
    muse_folder(tmp_path)
    write(tmp_path / "knowmem" / "forget_qa.json", [ASKED[0], {"question": "q?", "answer": 3}])
    with pytest.raises(DataError, match=r'record 2: field "answer" holds 3'):
        layouts.muse(tmp_path)


def test_nothing_recognised(tmp_path):
    assert layouts.detect(tmp_path) is None
    assert layouts.detect("owner/name") is None
    with pytest.raises(DataError, match="holds no file of rows with question, choices and answer"):
        layouts.choices(tmp_path)
