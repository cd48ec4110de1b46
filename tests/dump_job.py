"""`python -m tests.dump_job WORLD SPEC`: a job of the tests, as `drbot job SPEC` is one of the product."""

import asyncio
import json
import sys
from pathlib import Path

from actions.backup.engines import PhysicalEngines
from actions.backup.jobs import Engines, main
from actions.site import Site
from tests.dump_world import DumpWorld, Keys
from tests.fakes.dump_tests import NoDumpTests
from tests.fakes.files import memory_files

if __name__ == "__main__":
    said = json.loads(Path(sys.argv[1]).read_text())
    world = DumpWorld(
        Site.model_validate(said["site"]),
        said["values"],
        Path(said["directory"]),
        said["database"],
        said["bucket"],
        Keys(identity=said["values"]["IDENTITY"]),
    )
    none = PhysicalEngines(world.site, {})
    engines = Engines(world.engine, none, none, NoDumpTests(), world.tables, memory_files())
    sys.exit(asyncio.run(main(Path(sys.argv[2]), engines)))
