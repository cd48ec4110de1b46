"""The hashes of RFC 6962, section 2.1, over one byte string of hashes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256

WIDTH = 32


def leaf(text: bytes) -> bytes:
    """The hash of an entry."""
    return sha256(b"\x00" + text).digest()


def split(hashes: bytes | bytearray) -> Iterator[bytes]:
    """The hashes one by one."""
    for at in range(0, len(hashes), WIDTH):
        yield bytes(hashes[at : at + WIDTH])


class Roots:
    """The root over a growing log, by whole subtrees: (height, hash), highest first."""

    def __init__(self) -> None:
        self._stack: list[tuple[int, bytes]] = []

    def add(self, hashes: bytes | bytearray) -> None:
        """Add the next leaves."""
        stack = self._stack
        for right in split(hashes):
            height, node = 0, right
            while stack and stack[-1][0] == height:
                node = sha256(b"\x01" + stack.pop()[1] + node).digest()
                height += 1
            stack.append((height, node))

    def root(self) -> bytes:
        """The root over all leaves so far."""
        node = b""
        for _, left in reversed(self._stack):
            node = sha256(b"\x01" + left + node).digest() if node else left
        return node or sha256().digest()


def root_of(hashes: bytes | bytearray) -> bytes:
    """The root over these leaves."""
    roots = Roots()
    roots.add(hashes)
    return roots.root()


def path_leads(start: bytes, position: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether an audit path (lowest sibling first) leads from a leaf to the root. By the definition: the tree splits at
    the largest power of two, and the last sibling of the path belongs to the topmost split."""
    return 0 <= position < size and _climb(start, position, size, list(path)) == root


def _climb(start: bytes, position: int, size: int, path: list[bytes]) -> bytes | None:
    if size == 1:
        return start if not path else None
    if not path:
        return None
    half = 1
    while half * 2 < size:
        half *= 2
    sibling = path.pop()
    if position < half:
        below = _climb(start, position, half, path)
        return None if below is None else sha256(b"\x01" + below + sibling).digest()
    below = _climb(start, position - half, size - half, path)
    return None if below is None else sha256(b"\x01" + sibling + below).digest()
