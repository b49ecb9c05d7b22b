"""Let disk and memory run out under the commands, and see what they say and leave behind.

    python scripts/faults/scarce.py                  # all commands
    python scripts/faults/scarce.py skim run --json results/faults/scarce.json

For each command, with the inputs of kill.py:

    limit      no file may grow beyond a part of what is needed (RLIMIT_FSIZE), several parts in turn
    full       the output is on a file system that is too small (needs root)
    read-only  the output is on a file system that cannot be written (needs root)
    memory     memory for few MB more than what the program itself takes (RLIMIT_AS)

The command must end with exit code 1 and one line, "error: ...", that names the file or memory. Every file
under a final name must be whole, as after a kill, and the same command without the limit must give the
undisturbed result. Where the limit is wide enough, the command ends as ever. The exit code is the number of
failures.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kill
import torch

LIMITS = (2_000, 20_000, 50_000)
FULL = ("16k", "64k")
MEMORY = (8, 16, 32)
"""In MB."""


@contextmanager
def limited(kind: int, value: int) -> Iterator[None]:
    """A soft limit for what is started inside."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system in memory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def can_mount() -> bool:
    """Whether this user may mount."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder), "size=16k"):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def taken() -> int:
    """Address space of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def cases(mounts: bool) -> Iterator[tuple[str, Any]]:
    """Name of each case, and the function of a folder that makes its context."""
    for size in LIMITS:
        yield f"limit {size}", lambda folder, size=size: limited(resource.RLIMIT_FSIZE, size)
    if mounts:
        for size in FULL:
            yield f"full {size}", lambda folder, size=size: mounted(folder, f"size={size}")
        yield "read-only", lambda folder: mounted(folder, "size=16k,ro")
    for size in MEMORY:
        yield f"memory {size}", lambda folder, size=size: limited(resource.RLIMIT_AS, taken() + size * 10**6)


def campaign(name: str, mounts: bool) -> dict[str, dict[str, str]]:
    """What a command said in each case, or what was wrong."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="topreco-scarce-") as root:
        shared, reference, folder, log = (
            Path(root, each) for each in ("shared", "reference", "work", "log.txt")
        )
        shared.mkdir()
        reference.mkdir()
        command = kill.COMMANDS[name](shared)
        kill.complete(command.arguments(reference), log)
        expected = command.result(reference)
        for case, context in cases(mounts):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            log.unlink(missing_ok=True)
            arguments = command.arguments(folder)
            said = ""
            try:
                with context(folder):
                    pid = kill.start(arguments, log)
                    code = kill.finish(pid, kill.TIMEOUT)
                    if code is None:
                        # What hangs holds the folder, which could not be unmounted.
                        kill.kill(pid)
                    said = log.read_text()
                    command.check(folder, reference)
                    left = [path.name for path in folder.rglob("*") if path.name.startswith(".")]
                assert not left, f"temporary files left: {left}"
                if code == 0:
                    said = "enough"
                else:
                    lines = said.splitlines()
                    assert code == 1, f"exit code {code}"
                    assert len(lines) == 1, f"{len(lines)} lines"
                    assert lines[0].startswith("error: "), "no error"
                    # A thread is what often does not fit any more.
                    words = ("memory", "thread") if case.startswith("memory") else (str(folder),)
                    assert any(word in said for word in words), "says not what ran out"
                kill.complete(arguments, log)
                result = command.result(folder)
                assert all(kill.same(result[key], expected[key]) for key in expected), (
                    "another result afterwards"
                )
                found[case] = {"outcome": "ok", "said": said.strip().replace(str(folder), "")}
            except Exception:
                found[case] = {"outcome": "failure", "said": f"{traceback.format_exc()}\n{said[-1500:]}"}
            print(f"{name:14} {case:12} {found[case]['outcome']}: {found[case]['said']}", flush=True)
    return found


def main() -> int:
    """Run the campaign, print what was said."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(kill.COMMANDS)}")
    parser.add_argument("--json", type=Path, help="write what was said to this file")
    arguments = parser.parse_args()
    if unknown := set(arguments.commands) - set(kill.COMMANDS):
        parser.error(f"no command {', '.join(unknown)}; there are {', '.join(kill.COMMANDS)}")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    mounts = can_mount()
    if not mounts:
        print("may not mount: neither full nor read-only file systems")
    results = {name: campaign(name, mounts) for name in arguments.commands or kill.COMMANDS}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return sum(result["outcome"] != "ok" for found in results.values() for result in found.values())


if __name__ == "__main__":
    sys.exit(main())
