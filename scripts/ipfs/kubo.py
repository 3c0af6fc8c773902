"""Builds the `ipfs` program from a pinned Go module, for the tests against a real Kubo.

Standard library only, so that it runs before the clone is set up. Exit codes: 0 done; 1 failed; 2 Go is missing.
"""

import argparse
import subprocess
import sys
from pathlib import Path

MODULE = Path(__file__).resolve().parent
sys.path.insert(0, str(MODULE.parent))
from go_build import ROOT, Module, UnavailableError, is_current, only_build, replaced  # noqa: E402

STATE = ROOT / ".kubo"
BUILD = STATE / "build"
GO = (1, 25, 0)
PACKAGE = "github.com/ipfs/kubo/cmd/ipfs"
# A map of a dependency refuses every Go that was not out when it was written.
TAGS = "untested_go_version"


def main():
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/kubo", description=__doc__)
    parser.add_argument("command", choices=["build", "path"], help="build it; print where it is")
    if parser.parse_args().command == "path":
        sys.stdout.write(f"{BUILD / 'ipfs'}\n")
        return 0
    try:
        with only_build(STATE / "build.lock"):
            build()
    except UnavailableError as reason:
        sys.stderr.write(f"{reason}\n")
        return 2
    except subprocess.CalledProcessError as failure:
        sys.stderr.write(f"error: {' '.join(map(str, failure.cmd))} failed with {failure.returncode}\n")
        return 1
    return 0


def build():
    """Compile into a new directory and put it in place when it is whole."""
    module = Module(MODULE, GO, "Kubo is built")
    wanted = module.fingerprint(TAGS)
    if is_current(BUILD, wanted):
        return
    with replaced(BUILD, wanted) as unfinished:
        module.build(unfinished, {PACKAGE: "ipfs"}, "Kubo", tags=TAGS)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the next build takes it up\n")
        sys.exit(130)
