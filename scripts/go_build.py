"""Builds programs from pinned Go modules: which toolchain, whether a build is up to date, progress while it compiles.

Standard library only, so that it runs before the clone is set up. Absent: what is built (`validators/`, `ipfs/`).
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STARTED = time.monotonic()
# For a short build, and the same for all, so that what programs share is compiled once: without a program's own
# execution profile, by which all that it imports is compiled apart, and without what only debuggers read.
LEAN = ["-pgo=off", "-gcflags=all=-dwarf=false"]


class UnavailableError(Exception):
    """Something that the command needs is missing; the message is one line."""


class Module:
    """A Go module of this clone and the toolchain that builds it.

    Go's own caches are used where they exist: a warm one saves minutes. Otherwise they go into the clone, and
    stay there.
    """

    def __init__(self, directory, least, what):
        self.directory = directory
        missing = f"missing: Go {'.'.join(map(str, least))} or newer"
        self.go = shutil.which("go")
        if self.go is None:
            raise UnavailableError(f"{missing} (https://go.dev/dl); {what} from source")
        self.environment = dict(
            os.environ, GOTOOLCHAIN="local", GOFLAGS="-mod=readonly -buildvcs=false", GOWORK="off"
        )
        version, *caches = self.query("env", "GOVERSION", "GOMODCACHE", "GOCACHE").splitlines()
        if tuple(int(number) for number in re.findall(r"\d+", version)[:3]) < least:
            raise UnavailableError(f"{missing}; {self.go} is {version}")
        for variable, place, cache in zip(("GOMODCACHE", "GOCACHE"), ("mod", "build"), caches, strict=True):
            ours = ROOT / ".cache" / "go" / place
            if ours.is_dir() or not Path(cache).is_dir():
                self.environment[variable] = str(ours)

    def query(self, *arguments):
        """Return what a Go command prints."""
        return subprocess.run(
            [self.go, *arguments],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def fingerprint(self, *settings):
        """Return a hash over everything that decides what the programs are."""
        state = hashlib.sha256("\n".join([self.query("version"), *LEAN, *settings]).encode())
        sources = [*self.directory.rglob("*.go"), self.directory / "go.mod", self.directory / "go.sum"]
        for path in sorted(sources):
            name = path.relative_to(self.directory)
            state.update(f"{name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
        return state.hexdigest()

    def build(self, directory, packages, title, *, linker=(), tags=""):
        """Compile packages into a directory, all at once, so that one is compiled while another is linked.

        `packages` maps each package to its program's path in the directory. Every 20 seconds a line says how far
        it is; what Go prints is shown when it fails.
        """
        settings = [*LEAN, f"-ldflags={' '.join(['-w', *linker])}", f"-tags={tags}"]
        self._run(["build", "-v", *settings, "-o", f"{directory}{os.sep}", *packages], title)
        for package, name in packages.items():
            program = directory / name
            program.parent.mkdir(exist_ok=True)
            (directory / Path(package).name).rename(program)

    def _run(self, arguments, title):
        """Run one Go command and report its progress."""
        say(title)
        lines = []
        done = threading.Event()
        ticker = threading.Thread(target=tick, args=(title, lines, done), daemon=True)
        ticker.start()
        try:
            with subprocess.Popen(
                [self.go, *arguments],
                cwd=self.directory,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                lines.extend(process.stderr)
        finally:
            done.set()
            ticker.join()
        if process.returncode:
            sys.stderr.writelines(lines[-20:])
            raise subprocess.CalledProcessError(process.returncode, [self.go, *arguments])


@contextmanager
def only_build(lock):
    """Wait for other builds in this clone."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another build runs in this clone; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def replaced(target, fingerprint):
    """Give a new directory for what is built, and put it in place when it is whole."""
    unfinished = target.with_name(f".{target.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    (unfinished / "fingerprint").write_text(fingerprint, "ascii")
    former = target.with_name(f".{target.name}.old")
    shutil.rmtree(former, ignore_errors=True)
    if target.exists():
        # Processes that run keep the programs that they have open.
        target.rename(former)
    unfinished.rename(target)
    shutil.rmtree(former, ignore_errors=True)
    say(f"built {target.relative_to(ROOT)}")


def is_built(target):
    """Tell whether a build is whole; it is put in place in one step."""
    return (target / "fingerprint").is_file()


def is_current(target, fingerprint):
    """Tell whether a build is whole and made of what is here now, and say so."""
    current = is_built(target) and (target / "fingerprint").read_text("ascii") == fingerprint
    if current:
        say(f"{target.relative_to(ROOT)} is up to date")
    return current


def tick(title, lines, done):
    """Say every 20 seconds that a step goes on."""
    while not done.wait(20):
        say(f"{title} goes on, {len(lines)} packages so far")


def say(what):
    """Print a line of progress with the seconds since the start."""
    sys.stderr.write(f"[{time.monotonic() - STARTED:6.1f} s] {what}\n")
    sys.stderr.flush()
