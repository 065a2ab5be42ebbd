"""Environments with nothing but PyTorch, transformers and what these need, without installing PyTorch again.

An environment here is a list of folders for `sys.path` of an interpreter that was started with `-I -S`, which
knows no other packages. One such folder holds links to the packages of this environment that a given package
requires, directly or not; another is filled by pip from a lock file that leaves PyTorch out.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def required_by(names: list[str]) -> set[str]:
    """The named distributions and all that they require here, extras left out."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            requirements = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        found.add(name)
        parsed = (Requirement(requirement) for requirement in requirements)
        waiting += [need.name for need in parsed if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def link_packages(names: list[str], folder: Path) -> Path:
    """Fills `folder` with links to the named distributions and to all that they require."""
    folder.mkdir(parents=True)
    for name in required_by(names):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            link = folder / top
            if not link.is_symlink():
                link.symlink_to(Path(str(found.locate_file(top))))
    return folder


def install(requirements: Path, cache: Path) -> Path:
    """A folder with what a lock file lists, made once for each Python and each content of the file.

    Raises:
        subprocess.CalledProcessError: pip failed, for want of a network say; its output is in `stdout`.
    """
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]
    folder = cache / f"{requirements.stem}-{sys.implementation.cache_tag}-{digest}"
    if folder.exists():
        return folder
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--only-binary=:all:"]
    where = ["--target", str(unfinished), "--requirement", str(requirements)]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *where],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    unfinished.rename(folder)
    return folder
