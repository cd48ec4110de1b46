"""Ports of loopback for the demo's servers."""

import contextlib
import socket


def free_ports(count: int) -> list[int]:
    """Different TCP ports of 127.0.0.1 that nobody uses at this moment."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
