"""The block allocator and its prefix cache: rules by example. Random use is in `test_schedules.py`."""

import pytest

from local_engine.errors import EngineError
from local_engine.kv_cache import BlockAllocator


def chain(blocks: BlockAllocator, tokens: list[int], salt: bytes = b"") -> list[bytes]:
    hashes: list[bytes] = []
    blocks.extend_hashes(hashes, tokens, len(tokens), salt)
    return hashes


def fill(blocks: BlockAllocator, tokens: list[int], salt: bytes = b"") -> list[int]:
    """A table whose full blocks are computed and published."""
    table: list[int] = []
    assert blocks.grow(table, len(tokens))
    for block, digest in zip(table, chain(blocks, tokens, salt), strict=False):
        blocks.publish(block, digest)
    return table


def test_releasing_twice_is_an_error() -> None:
    blocks = BlockAllocator(2, 4)
    table: list[int] = []
    assert blocks.grow(table, 4)
    copy = list(table)
    blocks.release(table)
    assert table == [] and blocks.num_free == 2
    with pytest.raises(EngineError, match="twice"):
        blocks.release(copy)


def test_growing_beyond_the_pool_changes_nothing() -> None:
    blocks = BlockAllocator(2, 4)
    table: list[int] = []
    assert not blocks.grow(table, 9)
    assert table == [] and blocks.num_free == 2


def test_hashes_name_salt_parents_and_tokens() -> None:
    blocks = BlockAllocator(1, 2)
    first = chain(blocks, [1, 2, 3, 4, 5])
    assert len(first) == 2, "a block that is not full has no hash"
    assert chain(blocks, [1, 2, 3, 4]) == first
    different = [chain(blocks, [1, 2, 3, 4], b"x"), chain(blocks, [9, 2, 3, 4]), chain(blocks, [3, 4, 1, 2])]
    for other in different:
        assert set(other).isdisjoint(first)
    assert chain(blocks, [1, 2, 3, 9])[0] == first[0]
    assert chain(blocks, [1, 2, 3, 9])[1] != first[1]
    assert chain(blocks, [258, 0]) != chain(blocks, [2, 1]), "ids are not run together"


def test_hashes_are_extended_not_made_anew() -> None:
    blocks = BlockAllocator(1, 2)
    hashes: list[bytes] = []
    blocks.extend_hashes(hashes, [1, 2, 3, 4, 5, 6], 3, b"s")
    assert len(hashes) == 1
    blocks.extend_hashes(hashes, [1, 2, 3, 4, 5, 6], 6, b"s")
    assert hashes == chain(blocks, [1, 2, 3, 4, 5, 6], b"s")


def test_a_given_back_block_is_found_until_it_is_needed() -> None:
    blocks = BlockAllocator(4, 2)
    hashes = chain(blocks, [1, 2, 3, 4])
    table = fill(blocks, [1, 2, 3, 4])
    held = list(table)
    assert blocks.find(hashes) == held, "found while it is held, too"
    blocks.release(table)
    assert blocks.find(hashes) == held and blocks.num_free == 4 and blocks.num_cached == 2
    other: list[int] = []
    assert blocks.grow(other, 4)
    assert blocks.find(hashes) == held, "blank blocks go first"
    assert blocks.num_evictions == 0
    assert blocks.grow(other, 6)
    assert blocks.find(hashes) == held[:1], "the tail goes before the head"
    assert blocks.grow(other, 8)
    assert blocks.find(hashes) == [] and blocks.num_evictions == 2 and blocks.num_cached == 0
    blocks.check_integrity([other])


def test_the_least_recently_used_goes_first() -> None:
    blocks = BlockAllocator(3, 1)
    for token in (1, 2, 3):
        blocks.release(fill(blocks, [token]))
    table: list[int] = []
    blocks.share(table, blocks.find(chain(blocks, [1])), 1)
    blocks.release(table)
    assert blocks.grow(table, 2)
    assert [bool(blocks.find(chain(blocks, [token]))) for token in (1, 2, 3)] == [True, False, False]


def test_a_shared_block_is_free_when_its_last_holder_gives_it_back() -> None:
    blocks = BlockAllocator(2, 2)
    first = fill(blocks, [1, 2])
    second: list[int] = []
    blocks.share(second, blocks.find(chain(blocks, [1, 2])), 1)
    assert first == second and blocks.holders(first[0]) == 2
    blocks.check_integrity([first, second])
    blocks.release(first)
    assert blocks.num_free == 1 and blocks.holders(second[0]) == 1
    blocks.release(second)
    assert blocks.num_free == 2 and blocks.num_cached == 1
    blocks.check_integrity([])


def test_sharing_a_cached_block_takes_it_off_the_free_ones() -> None:
    blocks = BlockAllocator(2, 2)
    blocks.release(fill(blocks, [1, 2]))
    found = blocks.find(chain(blocks, [1, 2]))
    assert blocks.num_free == 2 and blocks.num_free_beside(found) == 1
    table: list[int] = []
    blocks.share(table, found, 1)
    assert blocks.num_free == blocks.num_free_beside(found) == 1
    other: list[int] = []
    assert blocks.grow(other, 2) and other != table
    assert not blocks.grow([], 2)


def test_of_two_blocks_with_one_content_one_is_found() -> None:
    blocks = BlockAllocator(3, 2)
    first, second = fill(blocks, [1, 2]), fill(blocks, [1, 2])
    assert blocks.find(chain(blocks, [1, 2])) == first
    blocks.check_integrity([first, second])
    blocks.release(second)
    assert blocks.num_cached == 0, "the double is blank"
    blocks.release(first)
    assert blocks.num_cached == 1
    blocks.check_integrity([])


def test_a_forgotten_block_is_found_no_more() -> None:
    blocks = BlockAllocator(2, 2)
    table = fill(blocks, [1, 2, 3, 4])
    blocks.forget(table[0])
    assert blocks.find(chain(blocks, [1, 2, 3, 4])) == []
    blocks.release(table)
    assert blocks.num_cached == 1
    blocks.check_integrity([])


def test_hits_and_misses_are_counted() -> None:
    blocks = BlockAllocator(4, 2)
    blocks.release(fill(blocks, [1, 2, 3, 4]))
    table: list[int] = []
    blocks.share(table, blocks.find(chain(blocks, [1, 2, 9, 9, 5, 6])), 3)
    assert (blocks.num_hits, blocks.num_misses, blocks.hit_tokens) == (1, 2, 2)


def test_without_caching_nothing_is_found() -> None:
    blocks = BlockAllocator(2, 2, caching=False)
    assert chain(blocks, [1, 2, 3, 4]) == []
    table: list[int] = []
    assert blocks.grow(table, 2)
    blocks.publish(table[0], b"anything")
    assert blocks.find([b"anything"]) == []
    blocks.release(table)
    assert blocks.num_cached == 0 and blocks.num_free == 2


def test_a_leak_is_seen() -> None:
    blocks = BlockAllocator(3, 4)
    table: list[int] = []
    blocks.grow(table, 5)
    blocks.check_integrity([table])
    with pytest.raises(EngineError, match="leaked"):
        blocks.check_integrity([])
    with pytest.raises(EngineError, match="leaked"):
        blocks.check_integrity([table, table])
    with pytest.raises(EngineError, match="leaked"):
        blocks.check_integrity([table, [2 - sum(table) + 1]])
