"""A listing goes on to its end, however odd; one that never ends is an error that says so."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from conftest import files_in
from robosat_pink.container import hardware
from robosat_pink.datasets import scans
from robosat_pink.datasets.sides import Side, list_sides
from robosat_pink.errors import DataError
from robosat_pink.storage import Location, listings
from robosat_pink.storage.listings import MAX_REPEATS, _LoopDetector
from s3_answers import Store, forget_credentials, give_keys, listed, served


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    forget_credentials(monkeypatch, tmp_path)
    give_keys(monkeypatch)
    monkeypatch.setattr(listings, "LOOP_CHECK_AFTER_S", 0.5)
    monkeypatch.setattr(listings, "PAGE_TIMEOUT_S", 20.0)
    with served() as store:
        yield store


def bucket(store: Store) -> Location:
    return Location.parse(f"listed-{store.server.server_port}/below", endpoint_url=store.url)


def token_of(path: str) -> int:
    return int(parse_qs(urlsplit(path).query).get("continuation-token", ["0"])[0])


@pytest.mark.parametrize("keys", [1, 3, 1000])
def test_listing_that_repeats_its_token_is_an_error_that_says_where_and_how_many_pages(store: Store, keys: int) -> None:
    names = [f"below/scene/5/1/{y}.tif" for y in range(keys)]
    store.listing = listed(*names, token="again", prefixes=("below/scene/",))
    for ask, where in ((bucket(store).directories, ""), (lambda: files_in(bucket(store), "scene"), "/scene")):
        with pytest.raises(
            DataError, match=rf"/below{where}: the listing repeats itself: scene/.*[\d,]+ pages or more.*token"
        ):
            ask()
    assert len(store.asked) < 4000


def test_listing_that_repeats_itself_after_some_pages_is_found_too(store: Store) -> None:
    def page(path: str) -> bytes:
        number = token_of(path)
        keys = [f"below/scene/{number}/1/{y}.tif" for y in range(1000)]
        return listed(*keys, token=str(number + 1 if number < 7 else 3))

    store.listing = page
    with pytest.raises(
        DataError, match=r"/below/scene: the listing repeats itself: scene/\d/1/\d+\.tif came more than 10"
    ):
        bucket(store).pages("scene", lambda page: None)


def test_listing_of_empty_pages_without_end_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "PAGE_TIMEOUT_S", 1.0)

    def page(path: str) -> bytes:
        return listed(prefixes=("below/scene/",)) if "delimiter" in path else listed(token="again")

    store.listing = page
    sides = [Side(bucket(store), ".*", kind, "expression") for kind in ("images", "masks")]
    with pytest.raises(DataError, match=r"/below/scene: no file was listed for 1 s, though the store answers"):
        list_sides(sides)
    store.listing = listed(token="again")
    with pytest.raises(DataError, match=r"/below: no file was listed for 1 s, though the store answers"):
        bucket(store).directories()


def test_listing_of_directories_that_takes_long_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And looked into meanwhile, by a listing that ends."""
    monkeypatch.setattr(listings, "LOOP_CHECK_AFTER_S", 0.0)

    def page(path: str) -> bytes:
        number = token_of(path)
        if "delimiter" not in path:
            return listed("below/a/1.tif")
        return listed(prefixes=(f"below/{number}/",), token=str(number + 1) if number < 50 else "")

    store.listing = page
    assert bucket(store).directories() == sorted(str(number) for number in range(51))


def test_empty_pages_repeated_keys_and_any_order_are_no_fault(store: Store) -> None:
    """As gateways and S3 Express list."""

    def page(path: str) -> bytes:
        number = token_of(path)
        keys = [] if number % 3 == 1 else [f"below/scene/{(number * 7919) % 100}/{y}/1.tif" for y in range(40, 0, -1)]
        return listed(*keys, "below/scene/often.tif", *keys[:2], token=str(number + 1) if number < 60 else "")

    store.listing = page
    found = [file.path for file in files_in(bucket(store), "scene")]
    assert len(set(found)) == 41 * 40 + 1  # of 61 pages, 20 have nothing else
    assert found.count("often.tif") == 61


def test_two_keys_must_come_again_and_again_before_a_listing_counts_as_repeating_itself() -> None:
    one, other = _LoopDetector("here"), _LoopDetector("here")
    for number in range(10 * MAX_REPEATS):
        one.check(["first", *(f"{number}/{y}" for y in range(10))])
    rounds = itertools.cycle([str(number)] for number in range(30))
    with pytest.raises(DataError, match=r"^here: the listing repeats itself: \d+ came more than 10 times"):
        any(map(other.check, itertools.islice(rounds, 1000)))


@pytest.mark.parametrize("of", ["directories", "files"])
def test_page_that_fills_the_memory_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch, of: str) -> None:
    monkeypatch.setattr(scans, "LOOK_S", 0.02)
    monkeypatch.setattr(scans, "MOST_GROWN", 50_000_000)
    is_over = threading.Event()

    def page(path: str) -> bytes:
        if "delimiter" in path and of == "files":
            return listed(prefixes=("below/scene/",))
        is_over.wait(20)
        return listed()

    store.listing = page
    held = itertools.count(hardware.resident_bytes(), 10_000_000)
    monkeypatch.setattr(hardware, "resident_bytes", lambda: next(held))
    with pytest.raises(
        DataError, match=r"/below: to list it has taken 60\.0 MB of memory .*a page of the listing does not"
    ):
        list_sides([Side(bucket(store), ".*", kind, "expression") for kind in ("images", "masks")])
    is_over.set()


def test_memory_of_what_is_kept_of_a_listing_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = scans.MemoryWatch(["here"])
    monkeypatch.setattr(hardware, "resident_bytes", lambda: memory.began + scans.MOST_GROWN + 1)
    memory.kept = 1
    memory.check()
    memory.kept = 0
    with pytest.raises(DataError, match=r"^here: to list it has taken 2\.0 GB"):
        memory.check()


def test_listing_of_directories_that_ends_while_it_is_looked_into_holds(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the look goes: here its pages are empty without end."""
    monkeypatch.setattr(listings, "LOOP_CHECK_AFTER_S", 0.0)
    monkeypatch.setattr(listings, "PAGE_TIMEOUT_S", 2.0)
    looked_into = threading.Event()

    def page(path: str) -> bytes:
        if "delimiter" not in path:
            looked_into.set()
            return listed(token="again")
        assert looked_into.wait(20)
        return listed(prefixes=("below/a/",))

    store.listing = page
    assert bucket(store).directories() == ["a"]
