"""Builds the validators' programs from pinned Go modules, and hands every other command to the launcher.

Standard library only, so that it runs before the clone is set up. Absent: what the commands do
(`launcher/`). Exit codes: 0 done; 1 failed; 2 Go is missing, or nothing is built yet.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

MODULE = Path(__file__).resolve().parent
sys.path.insert(0, str(MODULE.parent))
from go_build import ROOT, Module, UnavailableError, is_built, is_current, only_build, replaced  # noqa: E402

STATE = ROOT / ".consortium"
BUILDS = STATE / "build"
DEFAULT = "default"
GO = (1, 24, 9)
VM = "srEXiWaHuhNyGwPUi444Tu47ZEDwxTWrbQiuD7FmgSAQ6X7Dy"
AVALANCHEGO = "github.com/ava-labs/avalanchego"


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
    with only_build(STATE / "build.lock"):
        build(BUILDS / given.name, given.stamp)
    return 0


def build(target, stamp):
    """Compile into a new directory and put it in place when it is whole."""
    module = Module(MODULE, GO, "the validators are built")
    wanted = module.fingerprint(stamp, Path(__file__).name)
    if is_current(target, wanted):
        return
    packages = {f"{AVALANCHEGO}/main": "avalanchego", "./vm": f"plugins/{VM}"}
    if target.name == DEFAULT:
        packages["./launcher"] = "launcher"
    with replaced(target, wanted) as unfinished:
        linker = ["-X", f"{AVALANCHEGO}/version.GitCommit={stamp}"]
        module.build(unfinished, packages, "validators", linker=linker)


def launch(arguments):
    """Replace this process by the launcher."""
    launcher = BUILDS / DEFAULT / "launcher"
    if not is_built(launcher.parent):
        raise UnavailableError("the validators' programs are not built; run `scripts/consortium build` first")
    os.execv(launcher, ["scripts/consortium", "--state", str(STATE), *arguments])  # noqa: S606


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the next build takes it up\n")
        sys.exit(130)
