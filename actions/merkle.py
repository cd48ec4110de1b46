"""The tree of RFC 6962, section 2.1: what is appended can be proven to be there, and never to have been anything else.

Pure, over hashes of leaves. `CompactRange` appends in constant memory; the proofs need all hashes of the leaves below
the size they are about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

EMPTY_ROOT = hashlib.sha256().digest()


def leaf_hash(data: bytes) -> bytes:
    """The hash of one leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees side by side."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass
class CompactRange:
    """The roots of the complete subtrees of the first `size` leaves, largest first."""

    size: int = 0
    peaks: list[bytes] = field(default_factory=list)

    def append(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        carried, position = leaf, self.size
        while position & 1:
            carried = node_hash(self.peaks.pop(), carried)
            position >>= 1
        self.peaks.append(carried)
        self.size += 1

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Add the hashes of the next leaves."""
        for leaf in leaves:
            self.append(leaf)

    def copy(self) -> CompactRange:
        """Another range that goes on from here."""
        return CompactRange(self.size, list(self.peaks))

    @property
    def root(self) -> bytes:
        """The hash of the tree over all leaves so far."""
        if not self.peaks:
            return EMPTY_ROOT
        *rest, root = self.peaks
        for peak in reversed(rest):
            root = node_hash(peak, root)
        return root


class Tree:
    """All levels of the tree over a fixed sequence of leaves, for many proofs at once."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        """Takes the hashes of the leaves; one pass over them, and as much memory again."""
        self.size = len(leaves)
        self._levels: list[Sequence[bytes]] = [leaves]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            whole = len(below) - len(below) % 2
            self._levels.append([node_hash(below[at], below[at + 1]) for at in range(0, whole, 2)])

    @property
    def root(self) -> bytes:
        """The hash of the tree."""
        return self._range(0, self.size)

    def inclusion(self, position: int) -> tuple[bytes, ...]:
        """The audit path of the leaf at `position`, lowest sibling first. Raises ValueError outside the tree."""
        if not 0 <= position < self.size:
            raise ValueError(f"there is no leaf {position} among {self.size}")
        return tuple(self._path(position, 0, self.size))

    def consistency(self, size: int) -> tuple[bytes, ...]:
        """The proof that the first `size` leaves are the start of this tree. Raises ValueError outside the tree."""
        if not 0 < size <= self.size:
            raise ValueError(f"there is no tree of {size} leaves in one of {self.size}")
        return tuple(self._subproof(size, 0, self.size, whole=True))

    def _range(self, start: int, end: int) -> bytes:
        """The root over the leaves from `start` (a multiple of the subtree's size) up to `end`."""
        count = end - start
        if count == 0:
            return EMPTY_ROOT
        height = count.bit_length() - 1
        if count == 1 << height:
            return self._levels[height][start >> height]
        split = start + _split(count)
        return node_hash(self._range(start, split), self._range(split, end))

    def _path(self, position: int, start: int, end: int) -> list[bytes]:
        if end - start == 1:
            return []
        split = start + _split(end - start)
        if position < split:
            return [*self._path(position, start, split), self._range(split, end)]
        return [*self._path(position, split, end), self._range(start, split)]

    def _subproof(self, size: int, start: int, end: int, *, whole: bool) -> list[bytes]:
        if size == end:
            return [] if whole else [self._range(start, end)]
        split = start + _split(end - start)
        if size <= split:
            return [*self._subproof(size, start, split, whole=whole), self._range(split, end)]
        return [*self._subproof(size, split, end, whole=False), self._range(start, split)]


def included(leaf: bytes, position: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether the audit path leads from the leaf's hash at `position` to the root of a tree of `size` leaves."""
    if not 0 <= position < size:
        return False
    node, last, found = position, size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if node & 1 or node == last:
            found = node_hash(sibling, found)
            while node & 1 == 0 and node != 0:
                node, last = node >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and found == root


def consistent(earlier: int, later: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Whether the proof shows that the tree of `later` leaves begins with that of `earlier` leaves."""
    if not 0 < earlier <= later:
        return False
    if earlier == later:
        return not proof and old_root == new_root
    path = list(proof)
    if earlier & (earlier - 1) == 0:
        path.insert(0, old_root)  # a whole subtree: its root is known and not in the proof
    if not path:
        return False
    node, last = earlier - 1, later - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while node & 1 == 0 and node != 0:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _split(count: int) -> int:
    """The largest power of two smaller than `count`."""
    return int(1 << (count - 1).bit_length() - 1)
