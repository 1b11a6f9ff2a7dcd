"""A worker process of a study: makes the runs that it is told to on its standard input, one after another."""

from __future__ import annotations

import json
import os
import sys
import traceback


def serve() -> int:
    """Read ``{"arguments": [...], "log": FILE}`` a line, run it, answer with the exit code a line."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for line in sys.stdin:
        message = json.loads(line)
        with open(message["log"], "a", encoding="utf-8") as log:
            for stream in (1, 2):  # of the process: what C libraries and further processes print belongs there too
                os.dup2(log.fileno(), stream)
        code = _run(message["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
        print(code, file=answers, flush=True)
    return 0


def _run(arguments: list[str]) -> int:
    from jtln.cli.run import main

    try:
        return main(arguments)
    except BaseException:  # a crash of one run is not the end of the worker
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:  # a process of trainer=ddp, which Lightning starts with this run's arguments
        from jtln.cli.run import main

        sys.exit(main(sys.argv[1:]))
    sys.exit(serve())
