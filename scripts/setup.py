#!/usr/bin/env python3
"""Sets up this clone: `setup.py demo` for the demo, `setup.py dev` for tests and checks as well.

Python packages go to `.venv` by hash from `locks/`, Node packages to `node_modules` by hash from
`package-lock.json`, caches to `.cache`, stamps and logs to `.setup`; nothing goes outside the clone.
A second run compares the stamps and returns at once. An interrupted run is taken up by the next.

Exit codes: 0 set up; 1 a stage failed; 2 something that the system must provide is missing.
Standard library only; absent: fetching of Python itself or of system packages.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STATE = ROOT / ".setup"
CACHE = ROOT / ".cache"
PYTHON = (3, 11)
LEVELS = ("demo", "dev")
GMP = ("the GMP headers (gmp.h, for libp2p's fastecdsa)", "libgmp-dev")
STARTED = time.monotonic()


def main():
    """Set up the level that the command line names and return the exit code."""
    if len(sys.argv) != 2 or sys.argv[1] not in LEVELS:
        sys.stderr.write("usage: setup.py demo|dev\n")
        return 2
    level = sys.argv[1]
    if sys.version_info[:2] != PYTHON:
        return run_under_right_python()
    if is_set_up(level):
        return 0
    missing = missing_prerequisites()
    if missing:
        for what, package in missing:
            sys.stderr.write(f"missing: {what}; on Debian or Ubuntu: apt-get install {package}\n")
        return 2
    STATE.mkdir(exist_ok=True)
    with (STATE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another set-up runs in this clone; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if is_set_up(level):
            return 0
        try:
            set_up(level)
        except StageFailedError as failure:
            sys.stderr.write(f"error: {failure}\n")
            return 1
    return 0


class StageFailedError(Exception):
    """A stage's command failed; its last lines are in the message."""


def run_under_right_python():
    """Start again under Python 3.11, or say that it is missing."""
    found = shutil.which("python3.11")
    works = found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
    if not works:
        sys.stderr.write(
            "missing: Python 3.11; on Debian or Ubuntu: apt-get install python3.11 python3.11-venv\n"
        )
        return 2
    os.execv(found, [found, *sys.argv])  # noqa: S606
    return 1


def missing_prerequisites():
    """Return what the system lacks, as (what, Debian package); empty if all is there."""
    missing = []
    try:
        __import__("ensurepip")
        __import__("venv")
    except ImportError:
        missing.append(("Python's venv with pip (ensurepip)", "python3.11-venv"))
    named = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    candidates = [shlex.split(named)[0], "cc", "gcc"]
    compiler = next((path for path in map(shutil.which, candidates) if path), None)
    if compiler is None:
        missing.append(("a C compiler (libp2p's fastecdsa is built from source)", "build-essential"))
        if not [*Path("/usr/include").glob("gmp.h"), *Path("/usr/include").glob("*/gmp.h")]:
            missing.append(GMP)
    else:
        headers = [("stdio.h", "the C library's headers", "libc6-dev", [])]
        headers.append(("gmp.h", *GMP, []))
        include = ["-I", sysconfig.get_path("include")]
        headers.append(("Python.h", "Python's headers (Python.h)", "python3.11-dev", include))
        for header, what, package, options in headers:
            if not compiles(compiler, header, options):
                missing.append((what, package))
    return missing


def compiles(compiler, header, options):
    """Tell whether the preprocessor finds `header`."""
    run = subprocess.run(
        [compiler, *options, "-E", "-x", "c", "-"],
        input=(f"#include <{header}>\n").encode(),
        capture_output=True,
        check=False,
    )
    return run.returncode == 0


def fingerprint(level):
    """Return a hash over everything that decides what `level` installs."""
    state = hashlib.sha256(
        json.dumps([level, str(ROOT), sys.version, os.path.realpath(sys.executable)]).encode()
    )
    for name in ("locks/build.txt", f"locks/{level}.txt", "package.json", "package-lock.json", ".npmrc"):
        state.update(hashlib.sha256((ROOT / name).read_bytes()).digest())
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    parts = [project["build-system"], project["project"], project["tool"]["hatch"]]
    state.update(json.dumps(parts, sort_keys=True).encode())
    return state.hexdigest()


def stamp_path(level):
    """Return the file whose content says for what fingerprint `level` was set up."""
    return STATE / (f"{level}.stamp")


def is_set_up(level):
    """Tell whether `level`, or one that includes it, is in place."""
    if not ((VENV / "bin" / "python").exists() and (ROOT / "node_modules").is_dir()):
        return False
    for satisfying in LEVELS[LEVELS.index(level) :]:
        with contextlib.suppress(OSError):
            if stamp_path(satisfying).read_text("ascii") == fingerprint(satisfying):
                return True
    return False


def set_up(level):
    """Run the stages; the stamp is written last."""
    expected = fingerprint(level)
    for other in LEVELS:
        stamp_path(other).unlink(missing_ok=True)
    installing = STATE / "installing"
    python = VENV / "bin" / "python"
    if installing.exists() or not venv_works(python):
        run_stage("virtual environment", [sys.executable, "-m", "venv", "--clear", str(VENV)])
    installing.touch()
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    pip += ["--no-build-isolation"]
    by_hash = [*pip, "--require-hashes", "--no-deps"]
    run_stage("build tools", [*by_hash, "-r", str(ROOT / "locks" / "build.txt")])
    run_stage(f"Python packages ({level})", [*by_hash, "-r", str(ROOT / "locks" / (f"{level}.txt"))])
    run_stage("this project", [*pip, "--no-deps", "--editable", str(ROOT)])
    installing.unlink()
    npm = [str(VENV / "bin" / "npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    run_stage(f"Node packages ({level})", [*npm, "--omit=dev"] if level == "demo" else npm)
    write_stamp(level, expected)
    say(f"set up for {level}")


def venv_works(python):
    """Tell whether the virtual environment is of this Python and has pip."""
    if not python.exists():
        return False
    probe = "import pip, sys; print(sys.prefix, *sys.version_info[:2])"
    run = subprocess.run([str(python), "-c", probe], capture_output=True, text=True, check=False)
    return run.returncode == 0 and run.stdout.split() == [str(VENV), *map(str, PYTHON)]


def write_stamp(level, content):
    """Write the stamp of `level` atomically."""
    temporary = STATE / (f"{level}.stamp.tmp")
    temporary.write_text(content, "ascii")
    temporary.replace(stamp_path(level))


def run_stage(title, command):
    """Run one command; its output goes to the terminal, or to a log when there is none."""
    say(title)
    environment = dict(os.environ, PATH=f"{VENV / 'bin'}:{os.environ.get('PATH', os.defpath)}")
    environment.update(PIP_CACHE_DIR=str(CACHE / "pip"), npm_config_cache=str(CACHE / "npm"))
    environment.pop("PYTHONPATH", None)
    environment.pop("PIP_USER", None)
    if sys.stdout.isatty():
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if code:
            raise StageFailedError(f"{title} failed with exit code {code}")
        return
    log = STATE / f"{title.split(' (')[0].replace(' ', '-').lower()}.log"
    done = threading.Event()
    ticker = threading.Thread(target=tick, args=(title, done), daemon=True)
    ticker.start()
    try:
        with log.open("wb") as output:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
            ).returncode
    finally:
        done.set()
        ticker.join()
    if code:
        last = log.read_text("utf-8", "replace").splitlines()[-20:]
        raise StageFailedError(f"{title} failed with exit code {code}; {log} ends:\n" + "\n".join(last))


def tick(title, done):
    """Say every 20 seconds that a stage goes on."""
    while not done.wait(20):
        say(f"{title} goes on")


def say(what):
    """Print a line of progress with the seconds since the start."""
    sys.stdout.write(f"[{time.monotonic() - STARTED:6.1f} s] {what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the next run takes it up\n")
        sys.exit(130)
