"""Commands that run on, as processes of their own."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

TELLS_WITHIN_S = 60


class Running:
    """A `leasemesh ... --json` that runs on.

    Attributes:
        process: it.
        told: all that was read of it so far.
    """

    def __init__(self, process):
        self.process = process
        self.told = []

    def wait_for(self, event, **wanted):
        """Return the next such event that has these values."""
        while True:
            line = self.process.stdout.readline()
            assert line, f"it ended without {event}; told: {self.told}; said: {self.process.stderr.read()}"
            told = json.loads(line)
            self.told.append(told)
            if told["event"] == event and wanted.items() <= told.items():
                return told

    def stop(self, number=signal.SIGINT):
        """Send it a signal and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(TELLS_WITHIN_S)


@contextmanager
def running(command, *arguments, **environment):
    """A command that runs on, with --json; it is killed at the end of the block, should it not have ended."""
    line = [sys.executable, "-m", "leasemesh", command, "--json", *map(str, arguments)]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )
    # What a test waits for comes in milliseconds; should it not come, the end of the process ends the waiting.
    deadline = threading.Timer(TELLS_WITHIN_S, process.kill)
    deadline.start()
    with process:
        try:
            yield Running(process)
        finally:
            process.kill()
            deadline.cancel()
