"""`python -m bot.demo.cluster --directory DIR [--port N] [--kubeconfig-out FILE]`: the stand-in as its own process.

Once it serves, one line of JSON goes to standard output: url, kubeconfig. It runs until SIGINT or SIGTERM.
"""

import argparse
import asyncio
import json
import shutil
import signal
from pathlib import Path

from bot.demo.cluster.stand_in import ClusterStandIn


async def serve(directory: Path, port: int, kubeconfig_out: Path | None) -> None:
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end.set)
    async with ClusterStandIn(directory, port=port) as cluster:
        shown = kubeconfig_out or cluster.kubeconfig
        if kubeconfig_out is not None:
            await asyncio.to_thread(copied, cluster.kubeconfig, kubeconfig_out)
        print(json.dumps({"url": cluster.url, "kubeconfig": str(shown)}), flush=True)
        await end.wait()


def copied(kubeconfig: Path, to: Path) -> None:
    to.touch(mode=0o600)  # it holds the token
    shutil.copyfile(kubeconfig, to)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bot.demo.cluster", description="A Kubernetes API for the demo.")
    parser.add_argument("--directory", type=Path, required=True, help="where logs and the kubeconfig go")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--kubeconfig-out", type=Path, help="write the kubeconfig here as well")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.directory.resolve(), arguments.port, arguments.kubeconfig_out))


if __name__ == "__main__":
    main()
