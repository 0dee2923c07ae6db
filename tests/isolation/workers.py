"""Processes that call tools of one store at once. This file is also their program: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from isolation.calls import Job, Lanes, content
from isolation.checker import Anomaly, Txn, check

from agent_gantry_state import Gantry

_WHO = {"session": "s1", "user": "ada"}
_PATIENCE = 180.0


class Workers:
    """Some processes, for any number of histories one after the other."""

    def __init__(self, count: int) -> None:
        # They are to test the package that this process does, wherever that is.
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-W", "error", str(pathlib.Path(__file__)), str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **paths},
            )
            for number in range(count)
        ]
        self._pool = ThreadPoolExecutor(count)

    def __len__(self) -> int:
        return len(self._processes)

    def run(self, url: str, app: str, job: Job) -> list[Txn]:
        """Have all of them do a job at once."""
        line = json.dumps([url, app, dataclasses.asdict(job)])
        late = threading.Timer(_PATIENCE, self.close)
        late.start()
        try:
            for stage in (line, "go"):
                answers = list(self._pool.map(lambda process, stage=stage: self._ask(process, stage), self._processes))
        finally:
            late.cancel()
        return [Txn(**each) for answer in answers for each in answer]

    def _ask(self, process: subprocess.Popen[str], line: str) -> Any:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, "a process of callers has died, or did not end in time; what it said is above"
        return json.loads(answer)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        self._pool.shutdown(wait=False)


def history(where: Any, app: str, job: Job, workers: Workers | None) -> tuple[list[Txn], list[Anomaly]]:
    """Have a job done, by processes or, with None, here; what was called, and what must not have been seen."""
    if workers is not None:
        txns = workers.run(where, app, job)
    else:
        with Gantry(where, app=app, **_WHO) as gantry, Gantry(where, app=app, **_WHO) as other:
            lanes = [Lanes(each, job, name) for each, name in ((gantry, "0"), (other, "1"))]
            with ThreadPoolExecutor(len(lanes)) as pool:
                txns = [txn for made in pool.map(Lanes.run, lanes) for txn in made]
    with Gantry(where, app=app, **_WHO) as gantry:
        final, counters = content(gantry)
    return txns, check(txns, final, counters)


def _main(number: str) -> None:
    for line in sys.stdin:
        url, app, job = json.loads(line)
        with Gantry(url, app=app, **_WHO) as gantry:
            # Connected, so that all of them begin at once.
            content(gantry)
            print("0", flush=True)
            sys.stdin.readline()
            txns = Lanes(gantry, Job(**job), number).run()
        print(json.dumps([dataclasses.asdict(txn) for txn in txns]), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
