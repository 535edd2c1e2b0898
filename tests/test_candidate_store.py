"""Stores of candidates: what a kill, other settings or a damaged file does to them; published and malformed files."""

import json

import pytest
from small_search import SETTINGS, candidate, run_small

from candidate_store import CandidateStore, load_store
from candidates import Candidate, SearchError, pareto_frontier
from evolution import crossover

# Four rows of the frontier published with QuaLA-MiniLM: length config, MACs, F1, method, parents.
PUBLISHED = """\
(308, 247, 198, 159, 128, 103)\t2484739968\t87.33049546363097\t0\tNone
(269, 253, 252, 202, 104, 34)\t2485456896\t87.76366630183897\t1\t((300, 263, 248, 202, 104, 38),)
(284, 262, 248, 200, 95, 36)\t2510150400\t88.12499528628362\t2\t\
((284, 252, 237, 197, 129, 36), (283, 272, 258, 203, 60, 36))
(315, 251, 242, 159, 142, 33)\t2546934912\t88.33566781744294\t1\t((315, 278, 231, 169, 105, 33),)
"""


# ---- store ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(0, 400, 7))
def test_a_store_cut_at_any_byte_opens_with_its_whole_lines(tmp_path, length):
    path = tmp_path / "store.jsonl"
    run_small(iterations=0, store=CandidateStore(path, SETTINGS))
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    store = CandidateStore(path, SETTINGS)
    lines = whole[:length].count(b"\n")
    assert len(store.known) == max(0, lines - 1)
    assert whole.startswith(path.read_bytes()) and path.read_bytes().count(b"\n") == max(1, lines)


def test_a_torn_last_line_is_logged(tmp_path, caplog):
    path = tmp_path / "store.jsonl"
    CandidateStore(path, SETTINGS)
    path.write_bytes(path.read_bytes() + b'{"le')
    CandidateStore(path, SETTINGS)
    assert "cut off" in caplog.text


def test_every_line_is_synchronised_to_disk(tmp_path, monkeypatch):
    synchronised = []
    monkeypatch.setattr("candidate_store.os.fsync", lambda _: synchronised.append(path.read_bytes().count(b"\n")))
    path = tmp_path / "store.jsonl"
    store = CandidateStore(path, SETTINGS)
    store.append(candidate(1, 2.5, (4, 3)), 0, [2.5])
    assert synchronised == [1, 2]


def test_other_settings_are_refused_naming_what_differs_and_the_remedy(tmp_path):
    path = tmp_path / "store.jsonl"
    CandidateStore(path, SETTINGS)
    before = path.read_bytes()
    with pytest.raises(SearchError) as error:
        CandidateStore(path, {**SETTINGS, "model": "other"})
    message = str(error.value)
    assert "'reader'" in message and "'other'" in message and "questions" not in message and "folder" in message
    assert "\n" not in message and path.read_bytes() == before


@pytest.mark.parametrize("content", ["notes\n", "no newline", '{"candidates": []}', "[1]\n"])
def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "store.jsonl"
    path.write_text(content)
    with pytest.raises(SearchError, match="is no store"):
        CandidateStore(path, SETTINGS)
    assert path.read_text() == content


def test_a_damaged_line_within_a_store_is_named(tmp_path):
    path = tmp_path / "store.jsonl"
    run_small(iterations=0, store=CandidateStore(path, SETTINGS))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "garbage", *lines[2:], ""]))
    with pytest.raises(SearchError, match="line 3"):
        CandidateStore(path, SETTINGS)


def test_settings_with_tuples_match_what_json_made_of_them(tmp_path):
    for _ in range(2):
        CandidateStore(tmp_path / "store.jsonl", {"lengths": (1, 2)})


def test_a_readonly_store_knows_the_scores_and_never_touches_the_file(tmp_path):
    path = tmp_path / "store.jsonl"
    CandidateStore(path, SETTINGS).append(candidate(1, 2.5, (4, 3)), 0, [2.5])
    path.write_bytes(path.read_bytes() + b'{"torn')
    before = path.read_bytes()
    store = CandidateStore(path, SETTINGS, readonly=True)
    store.append(candidate(1, 3.5, (4, 2)), 0, [3.5])
    assert store.known == {(4, 3): [2.5], (4, 2): [3.5]} and path.read_bytes() == before
    CandidateStore(tmp_path / "absent.jsonl", SETTINGS, readonly=True)
    assert not (tmp_path / "absent.jsonl").exists()


# ---- loading -------------------------------------------------------------------------------------------------------


def test_the_published_header_less_tsv_is_read(tmp_path):
    path = tmp_path / "parents-iter30.tsv"
    path.write_bytes(PUBLISHED.replace("\n", "\r\n").encode())  # csv.writer's line ends
    first, second, third, fourth = load_store(path, 6, 384)
    assert first == Candidate((308, 247, 198, 159, 128, 103), 2484739968, 87.33049546363097, "initial")
    assert second.origin == "mutation" and second.parents == ((300, 263, 248, 202, 104, 38),)
    assert third.origin == "crossover" and crossover(*third.parents) == third.length_config
    assert fourth.length_config == (315, 251, 242, 159, 142, 33)
    assert pareto_frontier([fourth, third, first, second]) == [first, second, third, fourth]


def test_a_tsv_with_only_three_columns_is_read(tmp_path):
    path = tmp_path / "store.tsv"
    path.write_text("(4, 3)\t10\t0\n\n(4, 4)\t12\t0.5")
    assert [(c.length_config, c.cost, c.score, c.origin) for c in load_store(path, 2, 4)] == [
        ((4, 3), 10, 0, "loaded"),
        ((4, 4), 12, 0.5, "loaded"),
    ]


@pytest.mark.parametrize("column", range(5))
@pytest.mark.parametrize("text", ["__import__('pathlib').Path('{}').touch()", "(open('{}', 'w'), 3)"])
def test_code_in_a_tsv_is_refused_and_not_executed(tmp_path, column, text):
    columns = ["(4, 3)", "10", "50.0", "0", "None"]
    columns[column] = text.format(tmp_path / "executed")
    path = tmp_path / "store.tsv"
    path.write_text("(4, 4)\t12\t60\t0\tNone\n" + "\t".join(columns) + "\n")
    with pytest.raises(SearchError, match=r"store\.tsv, line 2: "):
        load_store(path, 2, 4)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "line",
    [
        "(4, 3) 10 50",
        "(3, 4)\t10\t50",
        "(5, 4)\t10\t50",
        "(4, 3, 2)\t10\t50",
        "(4, 0)\t10\t50",
        "(4, 3)\tNone\t50",
        "(4, 3)\t10\tnan",
        "(4, 3)\t10\t50\t3\tNone",
        "(4, 3)\t10\t50\t1\t((4, 5),)",
    ],
)
def test_an_invalid_row_is_named_with_file_line_and_remedy(tmp_path, line):
    path = tmp_path / "store.tsv"
    path.write_text(f"(4, 4)\t12\t60\n{line}\n")
    with pytest.raises(SearchError) as error:
        load_store(path, 2, 4)
    message = str(error.value)
    assert f"{path}, line 2: " in message and "Correct or delete it" in message and "\n" not in message


def test_search_results_json_gives_back_the_candidates(tmp_path):
    _, search = run_small()
    path = tmp_path / "search_results.json"
    results = {"seed": 7, "settings": {}, "candidates": [c.record() for c in search.candidates]}
    for indent in (None, 2):
        path.write_text(json.dumps(results, indent=indent) + "\n")
        assert load_store(path, 4, 64) == search.candidates


def test_search_results_json_with_f1_and_without_origin_is_read(tmp_path):
    path = tmp_path / "search_results.json"
    path.write_text('{"candidates": [{"length_config": [4, 3], "macs": 7, "f1": 0}]}')
    assert load_store(path, 2, 4) == [Candidate((4, 3), 7, 0, "loaded")]


@pytest.mark.parametrize(
    "content",
    [
        '{"candidates": [{"length_config": [4, 3], "macs": 7}]}',
        '{"candidates": [{"length_config": "(4, 3', "{", '{"candidates": 3}', "[]", '{"candidates": [7]}',
        '{"candidates": [{"length_config": [4, 3.5], "macs": 7, "score": 1}]}',
        '{"candidates": [{"length_config": 4, "macs": 7, "score": 1}]}',
        '{"candidates": [{"length_config": [4, 3], "macs": 7, "score": 1, "parents": 3}]}',
        '{"candidates": [{"length_config": [4, 3], "macs": 7, "score": 1, "origin": []}]}',
    ],
)  # fmt: skip
def test_malformed_search_results_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "search_results.json"
    path.write_text(content)
    with pytest.raises(SearchError) as error:
        load_store(path, 2, 4)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_contradicting_scores_of_one_config_are_refused(tmp_path):
    path = tmp_path / "store.tsv"
    path.write_text("(4, 4)\t12\t60\n(4, 4)\t12\t60\n")
    assert len(load_store(path, 2, 4)) == 1
    path.write_text("(4, 4)\t12\t60\n(4, 4)\t12\t61\n")
    with pytest.raises(SearchError, match="two scores"):
        load_store(path, 2, 4)


def test_a_store_of_other_settings_is_not_loaded(tmp_path, caplog):
    path = tmp_path / "store.jsonl"
    CandidateStore(path, SETTINGS).append(candidate(1, 2.5, (4, 3)), 0, [2.5])
    assert len(load_store(path, 2, 4, SETTINGS)) == 1 and not caplog.messages
    with pytest.raises(SearchError, match=r"store.jsonl: .*model 'reader', now 'other'; load scores") as error:
        load_store(path, 2, 4, {**SETTINGS, "model": "other"})
    assert "questions" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ("(4, 3)\t10\t50\n", "model, questions, max_length"),
        ('{"max_length": 64, "candidates": [{"length_config": [4, 3], "macs": 7, "f1": 0}]}', "model, questions"),
    ],
)
def test_scores_of_settings_that_a_file_does_not_say_are_warned_about_once(tmp_path, content, missing, caplog):
    (tmp_path / "scores").write_text(content)
    assert len(load_store(tmp_path / "scores", 2, 4, SETTINGS)) == 1
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith(
        f"taken as they are; it does not say their {missing}."
    )


def test_search_results_json_of_another_length_are_not_loaded(tmp_path):
    path = tmp_path / "search_results.json"
    path.write_text('{"max_length": 32, "candidates": [{"length_config": [4, 3], "macs": 7, "f1": 0}]}')
    with pytest.raises(SearchError, match="max_length 32, now 64; load scores"):
        load_store(path, 2, 4, SETTINGS)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SearchError, match="absent.tsv"):
        load_store(tmp_path / "absent.tsv", 2, 4)
