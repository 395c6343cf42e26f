"""`contextcrf demo` in a process of its own, and a log of what it writes and contacts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Every file opened for writing, folder made, file renamed and address contacted becomes a line of the log.
WATCHED = """
import os, socket, sys

log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and args[2] & WRITING:
        line = "write " + os.path.abspath(os.fsdecode(args[0]))
    elif event in ("os.mkdir", "os.rename"):
        line = "write " + os.path.abspath(os.fsdecode(args[0 if event == "os.mkdir" else 1]))
    elif event == "socket.connect" and isinstance(args[1], tuple):
        line = f"contact {args[1][0]}"
    elif event == "socket.getaddrinfo":
        line = f"contact {args[0]}"
    else:
        return
    os.write(log, line.encode() + b"\\n")

sys.addaudithook(watch)
from contextcrf.cli.main import main
main()
"""


@dataclass
class Served:
    """A running page.

    Attributes:
        address: the address of the page.
        process: the server.
        home: a folder that is its working directory, its home and the parent of its temporary files.
        log: the file with what it wrote and contacted.
    """

    address: str
    process: subprocess.Popen[str]
    home: Path
    log: Path

    @property
    def folders(self) -> list[Path]:
        """Its folders for uploads; there is one while it runs."""
        return list((self.home / "tmp").glob("contextcrf-demo-*"))

    def logged(self, what: str) -> list[str]:
        """The paths that were written ("write") or the addresses that were contacted ("contact")."""
        return [line.removeprefix(what + " ") for line in self.log.read_text().splitlines() if line.startswith(what)]

    def stop(self) -> str:
        """End it by SIGTERM and return what it printed."""
        self.process.send_signal(signal.SIGTERM)
        printed, _ = self.process.communicate(timeout=60)
        return printed


@contextmanager
def served(model: Path, home: Path, *options: str) -> Iterator[Served]:
    """Serve the page of a model on a free port within the block."""
    (home / "tmp").mkdir(parents=True)
    places = {name: str(home) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    places.update(TMPDIR=str(home / "tmp"), MPLCONFIGDIR=str(home / "matplotlib"), PYTHONDONTWRITEBYTECODE="1")
    # torch hands the folder of this process to its children by a variable.
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"} | places
    command = ["demo", str(model), "--port", "0", "--no-browser", *options]
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(home / "log"), *command],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        printed = ""
        while " at http://" not in printed:
            line = process.stdout.readline()
            printed += line
            assert line, f"ended before it served: {printed}"
        yield Served(printed.split(" at ")[-1].split()[0], process, home, home / "log")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
