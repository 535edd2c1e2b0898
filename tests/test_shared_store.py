"""Looks shared by several processes: claims, results, takeovers; two real searches, of which one is killed."""

import sqlite3
import threading
import time
from collections import Counter

import optuna
import pytest
from stages import failure
from synthetic import FULL, World, small_race

import racing
import shared_store
from candidate_store import CandidateStore
from candidates import Candidate, SearchError
from shared_store import SharedStore

SETTINGS = {"model": "world", "lengths": (1, 2)}
CONFIG = (60, 50, 40, 30)
LOOK = Candidate(CONFIG, 180.0, 81.5, "crossover", (FULL, (30, 30, 30, 30)))


@pytest.fixture(params=["sqlite:///{}/store.db", "journal:{}/store.log"])
def url(request, tmp_path):
    return request.param.format(tmp_path)


@pytest.fixture
def stores(url):
    """What two workers of the same search hold."""
    return SharedStore(url, SETTINGS), SharedStore(url, SETTINGS)


@pytest.fixture
def hurry(monkeypatch):
    """Waiting that takes no seconds."""
    monkeypatch.setattr(shared_store, "POLL", 0.01)
    monkeypatch.setattr(racing, "PATIENCE", 0.3)


# ---- claims --------------------------------------------------------------------------------------------------------


def test_a_look_that_one_claimed_is_refused_to_the_other(stores):
    one, other = stores
    assert one.claim(CONFIG, 0) and not other.claim(CONFIG, 0)
    assert other.claim(CONFIG, 5) and other.claim(FULL, 0)


def test_of_two_that_claim_at_once_one_gets_the_look(stores, monkeypatch):
    one, other = stores
    add = other._add

    def overtaken(record, values=None):  # after the other had seen that nobody holds it
        monkeypatch.setattr(other, "_add", add)
        assert one.claim(CONFIG, 0)
        add(record, values)

    monkeypatch.setattr(other, "_add", overtaken)
    assert not other.claim(CONFIG, 0)


def test_a_claim_is_taken_over_by_one_and_then_respected(stores, url):
    (one, other), third = stores, SharedStore(url, SETTINGS)
    assert one.claim(CONFIG, 0) and not other.claim(CONFIG, 0)
    assert other.claim(CONFIG, 0, takeover=True)
    third.refresh()
    assert not third.claim(CONFIG, 0) and not one.refresh() is None and not one.claim(CONFIG, 0)


def test_a_refused_claim_is_no_news(stores):
    one, other = stores
    one.claim(CONFIG, 0)
    other.refresh()
    assert not other.claim(CONFIG, 0) and not one.refresh()


def test_a_finished_look_is_never_granted_again(stores):
    one, other = stores
    assert one.claim(CONFIG, 0)
    one.append(LOOK, 0, [80.0, 83.0])
    for store in stores:
        assert not store.claim(CONFIG, 0) and not store.claim(CONFIG, 0, takeover=True)
    assert other.claim(CONFIG, 2)


def test_pending_is_what_was_claimed_and_is_not_there_yet(stores):
    one, other = stores
    assert not other.pending
    one.claim(CONFIG, 0)
    other.refresh()
    assert other.pending and other.claimed == {CONFIG} and not other.known
    one.append(LOOK, 0, [80.0, 83.0])
    other.refresh()
    assert not other.pending and other.claimed == {CONFIG}


# ---- results -------------------------------------------------------------------------------------------------------


def test_results_reach_the_other_with_candidate_and_scores(stores):
    one, other = stores
    one.append(LOOK, 0, [80.0, 83.0])
    one.append(LOOK, 2, [12.5])
    assert other.refresh() and other.known == one.known == {CONFIG: [80.0, 83.0, 12.5]}
    assert other.candidates == {CONFIG: LOOK}


def test_of_two_results_of_a_look_the_first_counts(stores):
    one, other = stores
    one.append(LOOK, 0, [80.0, 83.0])
    other.append(LOOK, 0, [1.0, 2.0])
    one.refresh()
    assert one.known == other.known == {CONFIG: [80.0, 83.0]}


def test_other_settings_never_mix(url):
    one, other = SharedStore(url, SETTINGS), SharedStore(url, SETTINGS | {"model": "another"})
    one.append(LOOK, 0, [80.0])
    other.refresh()
    assert not other.known and other.claim(CONFIG, 0) and other.worker == 0


def test_who_joins_later_knows_everything_and_its_own_number(stores, url):
    stores[0].append(LOOK, 0, [80.0])
    late = SharedStore(url, dict(reversed(SETTINGS.items())))
    assert late.known == {CONFIG: [80.0]} and [store.worker for store in (*stores, late)] == [0, 1, 2]


def test_a_record_is_taken_once(stores, monkeypatch):
    one, other = stores
    taken, take = [], other._take
    monkeypatch.setattr(other, "_take", lambda record, values: taken.append(record) or take(record, values))
    for begin in range(5):
        one.append(LOOK, begin, [float(begin)])
        other.refresh()
        other.refresh()
    assert [record["begin"] for record in taken] == list(range(5))


@pytest.mark.parametrize(
    "url", ["sqlite:////absent/folder/store.db", "oracle9://host/db", "store", "journal:/absent/f"]
)
def test_a_storage_that_cannot_be_opened_is_one_line(url, dynamic, squad_v1_file, tmp_path, capsys):
    with pytest.raises(SearchError, match="--search_storage") as error:
        SharedStore(url, SETTINGS)
    assert "\n" not in str(error.value)
    command = ("--model_name_or_path", dynamic, "--validation_file", squad_v1_file, "--do_search", "--search_storage")
    message = failure(capsys, *command, url, "--search_split", "validation", "--output_dir", tmp_path)
    assert f"--search_storage {url} cannot be opened" in message


def test_tables_that_another_worker_makes_at_the_same_time_are_waited_for(tmp_path, hurry, monkeypatch):
    failures = [
        "(sqlite3.IntegrityError) UNIQUE constraint failed",
        "(sqlite3.OperationalError) table studies already exists",
    ]
    make = optuna.storages.RDBStorage.__init__

    def another_was_faster(self, *args, **kwargs):
        if failures:
            raise sqlite3.DatabaseError(failures.pop())
        make(self, *args, **kwargs)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", another_was_faster)
    assert SharedStore(f"sqlite:///{tmp_path}/store.db", SETTINGS).worker == 0 and not failures


# ---- waiting -------------------------------------------------------------------------------------------------------


def test_waiting_ends_with_news_or_with_the_patience(stores, hurry):
    one, other = stores
    began = time.monotonic()
    assert not other.wait(0.2) and time.monotonic() - began >= 0.2
    threading.Timer(0.1, one.claim, (CONFIG, 0)).start()
    assert other.wait(60)


def test_the_clock_may_jump(url, hurry, monkeypatch):
    jumps = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr(time, "time", lambda: 1.7e9 - next(jumps))
    one, other = SharedStore(url, SETTINGS), SharedStore(url, SETTINGS)
    assert one.claim(CONFIG, 0) and not other.claim(CONFIG, 0) and other.refresh() is False
    began = time.monotonic()
    assert not other.wait(0.2) and 0.2 <= time.monotonic() - began < 10


FEW = {
    "iterations": 1,
    "population_size": 3,
    "mutation_size": 3,
    "crossover_size": 0,
    "confirmed": 3,
    "looks": (5, 40),
}


def test_what_a_dead_worker_claimed_is_waited_for_and_then_taken_over(stores, hurry):
    dead, store = stores
    for config, begin in [(FULL, 0), (FULL, 5), ((64, 60, 60, 60), 0)]:
        assert dead.claim(config, begin)
    waits, wait = [], store.wait
    store.wait = lambda patience: waits.append(patience) or wait(patience)
    world = World(questions=40)
    frontier = small_race(world, store=store, **FEW).run()
    assert sorted(world.asked[FULL]) == list(range(40)) and frontier[-1].length_config == FULL
    assert waits and all(patience >= 0.3 for patience in waits)
    assert (64, 60, 60, 60) not in world.asked  # a first look that nobody needs


def test_two_who_wait_for_a_dead_one_do_not_wake_each_other_for_ever(url, hurry):
    dead = SharedStore(url, SETTINGS)
    assert dead.claim(FULL, 0)
    worlds = [World(questions=40) for _ in range(2)]
    searches = [small_race(world, seed=i, store=SharedStore(url, SETTINGS), **FEW) for i, world in enumerate(worlds)]
    threads = [threading.Thread(target=search.run, daemon=True) for search in searches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    asked = Counter((config, n) for world in worlds for config in world.asked for n in world.asked[config])
    assert set(asked.values()) == {1}


def test_a_search_on_a_shared_store_equals_one_on_a_file(stores, tmp_path):
    frontiers = [
        small_race(World(questions=40), store=store, **FEW).run()
        for store in (stores[0], CandidateStore(tmp_path / "store.jsonl", SETTINGS))
    ]
    assert frontiers[0] == frontiers[1]
