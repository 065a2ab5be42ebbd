#!/bin/sh
# Prints the path of a Python 3.10, 3.11 or 3.12 that can make virtual environments; for the Makefile.
#
#   find_python.sh           the first that works: python3, python3.12, ... on PATH, then pyenv's own versions
#   find_python.sh PYTHON    this one (a name on PATH or a path), or an error
set -u

# Python 2 must be able to read it too.
probe='
import sys
version = sys.version_info[:2]
if version < (3, 10) or version > (3, 12):
    print("is Python %d.%d" % version)
else:
    try:
        import ensurepip, venv
    except ImportError:
        print("is Python %d.%d without its venv module (Debian, Ubuntu: the package python%d.%d-venv)" % (version * 2))
    else:
        print("works " + sys.executable)
'
seen=

# A candidate counts only if it runs: pyenv has a shim for each version that it knows, and the shim of one that
# isn't selected answers "command not found".
try() {
    answer=$("$1" -c "$probe" 2>/dev/null) || answer="does not run"
    case $answer in
        "works "*)
            printf '%s\n' "${answer#works }"
            exit 0
            ;;
    esac
    seen="$seen
  $1 $answer"
}

if [ "${1:-}" ]; then
    try "$1"
    echo "error: PYTHON=$1 can't be used; BERTchen needs Python 3.10, 3.11 or 3.12 with venv:$seen" >&2
    exit 1
fi
for name in python3 python3.12 python3.11 python3.10 python; do
    if command -v "$name" >/dev/null 2>&1; then try "$name"; fi
done
for path in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[0-2].*/bin/python3; do
    if [ -x "$path" ]; then try "$path"; fi
done
echo "error: BERTchen needs Python 3.10, 3.11 or 3.12 with venv, and none was found.
Install one, or name it: make PYTHON=/path/to/python3.11 ...${seen:+
Looked at:$seen}" >&2
exit 1
