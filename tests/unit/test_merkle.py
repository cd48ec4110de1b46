"""The tree of RFC 6962, against its published vectors and against the definition written out naively."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actions.merkle import CompactRange, Tree, consistent, included, leaf_hash

# The inputs and results that the reference implementations of Certificate Transparency are tested with.
INPUTS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
PATHS = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCIES = {
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def naive(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + naive(leaves[:split]) + naive(leaves[split:])).digest()


def leaves_of(count: int) -> list[bytes]:
    return [leaf_hash(number.to_bytes(4, "big")) for number in range(count)]


def test_published_roots() -> None:
    hashes = [leaf_hash(data) for data in INPUTS]
    growing = CompactRange()
    for size, root in enumerate(ROOTS, start=1):
        growing.append(hashes[size - 1])
        assert growing.root.hex() == root
        assert Tree(hashes[:size]).root.hex() == root
    assert CompactRange().root.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("case", PATHS)
def test_published_paths(case: tuple[int, int]) -> None:
    position, size = case
    path = Tree([leaf_hash(data) for data in INPUTS[:size]]).inclusion(position)
    assert [part.hex() for part in path] == PATHS[case]


@pytest.mark.parametrize("case", CONSISTENCIES)
def test_published_consistency(case: tuple[int, int]) -> None:
    earlier, later = case
    proof = Tree([leaf_hash(data) for data in INPUTS[:later]]).consistency(earlier)
    assert [part.hex() for part in proof] == CONSISTENCIES[case]


@given(st.integers(0, 130), st.integers(0, 130))
def test_growing_equals_building(first: int, more: int) -> None:
    leaves = leaves_of(first + more)
    growing = CompactRange()
    growing.extend(leaves[:first])
    onward = growing.copy()
    onward.extend(leaves[first:])
    assert growing.root == naive(leaves[:first])
    assert onward.root == Tree(leaves).root == naive(leaves)


@given(st.data())
def test_every_leaf_is_proven_and_nothing_else(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 100))
    position = data.draw(st.integers(0, size - 1))
    leaves = leaves_of(size)
    tree = Tree(leaves)
    path = tree.inclusion(position)
    assert included(leaves[position], position, size, path, naive(leaves))
    assert not included(leaf_hash(b"another"), position, size, path, tree.root)
    other = data.draw(st.integers(0, size + 1))
    if other != position:
        assert not included(leaves[position], other, size, path, tree.root)
    assert not included(leaves[position], position, size, [*path, leaves[0]], tree.root)
    if path:
        assert not included(leaves[position], position, size, path[:-1], tree.root)


@given(st.data())
def test_a_prefix_is_proven_and_another_past_is_not(data: st.DataObject) -> None:
    later = data.draw(st.integers(1, 100))
    earlier = data.draw(st.integers(1, later))
    leaves = leaves_of(later)
    proof = Tree(leaves).consistency(earlier)
    old, new = naive(leaves[:earlier]), naive(leaves)
    assert consistent(earlier, later, proof, old, new)
    edited = list(leaves)
    edited[data.draw(st.integers(0, earlier - 1))] = leaf_hash(b"edited")
    assert not consistent(earlier, later, proof, naive(edited[:earlier]), new)
    assert not consistent(earlier, later, Tree(edited).consistency(earlier), old, naive(edited))
    assert not consistent(earlier, later, [*proof, new], old, new)


def test_outside_the_tree() -> None:
    tree = Tree(leaves_of(3))
    for position in (-1, 3):
        with pytest.raises(ValueError, match="no leaf"):
            tree.inclusion(position)
    for size in (0, 4):
        with pytest.raises(ValueError, match="no tree"):
            tree.consistency(size)
    assert not consistent(0, 3, (), naive([]), tree.root)
    assert not included(leaves_of(1)[0], 0, 0, (), naive([]))
