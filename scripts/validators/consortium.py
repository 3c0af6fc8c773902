"""Builds the validators' programs from pinned Go modules, and hands every other command to the launcher.

Standard library only, so that it runs before the clone is set up. Absent: what the commands do
(`launcher/`). Exit codes: 0 done; 1 failed; 2 Go is missing, or nothing is built yet.
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

MODULE = Path(__file__).resolve().parent
ROOT = MODULE.parent.parent
STATE = ROOT / ".consortium"
BUILDS = STATE / "build"
DEFAULT = "default"
GO = (1, 24, 9)
VM = "srEXiWaHuhNyGwPUi444Tu47ZEDwxTWrbQiuD7FmgSAQ6X7Dy"
AVALANCHEGO = "github.com/ava-labs/avalanchego"
STARTED = time.monotonic()


class UnavailableError(Exception):
    """Something that the command needs is missing; the message is one line."""


def main():
    """Run the command line and return the exit code."""
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["build"]:
            return build_command(arguments[1:])
        return launch(arguments)
    except UnavailableError as reason:
        sys.stderr.write(f"{reason}\n")
        return 2
    except subprocess.CalledProcessError as failure:
        sys.stderr.write(f"error: {' '.join(map(str, failure.cmd))} failed with {failure.returncode}\n")
        return 1


def build_command(arguments):
    """`build`: make the programs, unless they are there and up to date."""
    parser = argparse.ArgumentParser(
        prog="scripts/consortium build", description="Build the validators' programs."
    )
    parser.add_argument("--name", default=DEFAULT, help="name of the build; `upgrade N --to NAME` takes it")
    parser.add_argument("--stamp", default="", help="text that the engine shows as its commit")
    given = parser.parse_args(arguments)
    for text in (given.name, given.stamp or DEFAULT):
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}", text):
            parser.error(f"{text!r}: letters, digits, dots, dashes and underscores only")
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (STATE / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another build runs in this clone; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        build(BUILDS / given.name, given.stamp)
    return 0


def build(target, stamp):
    """Compile into a new directory and put it in place when it is whole."""
    go, environment = toolchain()
    wanted = fingerprint(go, stamp)
    if is_built(target) and (target / "fingerprint").read_text("ascii") == wanted:
        say(f"{target.relative_to(ROOT)} is up to date")
        return
    unfinished = target.with_name(f".{target.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "plugins").mkdir(parents=True)
    compile_with(go, environment, ["mod", "download"], "modules")
    linker = f"-ldflags=-X {AVALANCHEGO}/version.GitCommit={stamp}"
    programs = [
        ("engine", "avalanchego", f"{AVALANCHEGO}/main"),
        ("virtual machine", f"plugins/{VM}", "./vm"),
    ]
    if target.name == DEFAULT:
        programs.append(("launcher", "launcher", "./launcher"))
    for name, output, package in programs:
        compile_with(go, environment, ["build", "-v", linker, "-o", unfinished / output, package], name)
    (unfinished / "fingerprint").write_text(wanted, "ascii")
    replaced = target.with_name(f".{target.name}.old")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        # Validators that run keep the programs that they have open.
        target.rename(replaced)
    unfinished.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)
    say(f"built {target.relative_to(ROOT)}")


def toolchain():
    """Return the Go program and its environment.

    Go's own caches are used where they exist: a warm one saves minutes. Otherwise they go into the clone, and
    stay there.
    """
    go = shutil.which("go")
    if go is None:
        raise UnavailableError(
            "missing: Go 1.24.9 or newer (https://go.dev/dl); the validators are built from source"
        )
    environment = dict(os.environ, GOTOOLCHAIN="local", GOFLAGS="-mod=readonly -buildvcs=false", GOWORK="off")
    shown = query(go, environment, "env", "GOVERSION", "GOMODCACHE", "GOCACHE").splitlines()
    version, *caches = shown
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < GO:
        raise UnavailableError(f"missing: Go 1.24.9 or newer; {go} is {version}")
    for variable, place, cache in zip(("GOMODCACHE", "GOCACHE"), ("mod", "build"), caches, strict=True):
        ours = ROOT / ".cache" / "go" / place
        if ours.is_dir() or not Path(cache).is_dir():
            environment[variable] = str(ours)
    return go, environment


def query(go, environment, *arguments):
    """Return what a Go command prints."""
    return subprocess.run(
        [go, *arguments], cwd=MODULE, env=environment, capture_output=True, text=True, check=True
    ).stdout


def fingerprint(go, stamp):
    """Return a hash over everything that decides what the programs are."""
    state = hashlib.sha256(f"{query(go, os.environ, 'version')}\n{stamp}\n{Path(__file__).name}".encode())
    for path in sorted([*MODULE.rglob("*.go"), MODULE / "go.mod", MODULE / "go.sum"]):
        state.update(f"{path.relative_to(MODULE)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()


def is_built(target):
    """Tell whether a build is whole; it is put in place in one step."""
    return (target / "fingerprint").is_file()


def compile_with(go, environment, arguments, title):
    """Run one Go command, and say every 20 seconds how far it is; what it prints is shown when it fails."""
    say(title)
    lines = []
    done = threading.Event()
    ticker = threading.Thread(target=tick, args=(title, lines, done), daemon=True)
    ticker.start()
    try:
        with subprocess.Popen(
            [go, *arguments],
            cwd=MODULE,
            env=environment,
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
        raise subprocess.CalledProcessError(process.returncode, [go, *arguments])


def tick(title, lines, done):
    """Say every 20 seconds that a step goes on."""
    while not done.wait(20):
        say(f"{title} goes on, {len(lines)} packages so far")


def launch(arguments):
    """Replace this process by the launcher."""
    launcher = BUILDS / DEFAULT / "launcher"
    if not is_built(launcher.parent):
        raise UnavailableError("the validators' programs are not built; run `scripts/consortium build` first")
    os.execv(launcher, ["scripts/consortium", "--state", str(STATE), *arguments])  # noqa: S606


def say(what):
    """Print a line of progress with the seconds since the start."""
    sys.stderr.write(f"[{time.monotonic() - STARTED:6.1f} s] {what}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the next build takes it up\n")
        sys.exit(130)
