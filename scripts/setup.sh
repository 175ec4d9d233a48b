#!/bin/sh
# Makes the project's virtual environment, or finds it up to date. Plain POSIX sh; needs no terminal.
#
#   scripts/setup.sh            .venv: mcx in editable mode with its development tools, at the locked versions
#   scripts/setup.sh lowest     .venv-lowest: the lower bounds of requirements/lowest.txt
#   scripts/setup.sh lock       write requirements/dev.lock anew from the newest versions
#
# PYTHON=/path/to/python names the interpreter to use where there is no environment yet.
set -eu
cd "$(dirname "$0")/.."
root=$(pwd -P)
mode=${1:-dev}
log=.cache/setup.log
lock=requirements/dev.lock
lowest=requirements/lowest.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV || true

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

show_log() {
    say "the end of $log:" >&2
    grep -v 'WARNING: Location .* is ignored' "$log" | tail -n 30 >&2 || true
}

# --- an interpreter ---------------------------------------------------------------------------------------------------

# A name on PATH proves nothing (a pyenv shim fails where its version is not selected), so run it.
works() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' </dev/null >/dev/null 2>&1; }

find_python() { # prints a Python >= 3.12, or nothing
    if [ -n "${PYTHON:-}" ]; then
        if works "$PYTHON"; then
            echo "$PYTHON"
            return
        fi
        say "PYTHON=$PYTHON is not a Python 3.12 or newer that runs; looking for another" >&2
    fi
    for candidate in python3.14 python3.13 python3.12 python3; do
        if works "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    if command -v pyenv >/dev/null 2>&1; then
        pyenv_root=$(pyenv root 2>/dev/null) || pyenv_root=
        for version in $(pyenv versions --bare 2>/dev/null || true); do
            if works "$pyenv_root/versions/$version/bin/python"; then
                echo "$pyenv_root/versions/$version/bin/python"
                return
            fi
        done
    fi
    if command -v uv >/dev/null 2>&1; then
        candidate=$(uv python find '>=3.12' 2>/dev/null) || candidate=
        if [ -n "$candidate" ] && works "$candidate"; then
            echo "$candidate"
        fi
    fi
}

no_python() {
    fail "mcx needs Python 3.12 or newer, and none was found." \
        "Looked at: \$PYTHON, python3.14, python3.13, python3.12 and python3 on PATH, pyenv's versions, uv." \
        "Remedy: install Python 3.12 with what this system installs software with, for example one of" \
        "    apt-get install python3.12 python3.12-venv     brew install python@3.12     pyenv install 3.12" \
        "or install uv, which gets a Python by itself (uv python install 3.12); then run the same command again." \
        "A Python that is somewhere else: PYTHON=/path/to/python3.12 make setup"
}

# --- an environment ---------------------------------------------------------------------------------------------------

make_venv() { # $1: its folder
    rm -rf "$1"
    python=$(find_python)
    if [ -n "$python" ]; then
        say "making $1 with $("$python" -V 2>&1) ($python)"
        "$python" -m venv "$1" >>"$log" 2>&1 && return
        rm -rf "$1" # a Python without ensurepip leaves half an environment
        if command -v uv >/dev/null 2>&1; then
            say "this Python cannot make environments with pip in them; asking uv"
            uv venv --seed --python "$python" "$1" >>"$log" 2>&1 && return
            rm -rf "$1"
        fi
        show_log
        fail "$python could not make a virtual environment." \
            "Remedy: install its venv module (on Debian and Ubuntu: apt-get install python3-venv), or uv."
    fi
    command -v uv >/dev/null 2>&1 || no_python
    say "no Python 3.12 or newer here; uv gets one and makes $1"
    uv venv --seed --python 3.12 "$1" >>"$log" 2>&1 && return
    rm -rf "$1"
    show_log
    no_python
}

pip_install() { # $1: environment; the rest: arguments of pip install
    into=$1/bin/python
    shift
    if "$into" -m pip --version >/dev/null 2>&1 || "$into" -m ensurepip >>"$log" 2>&1; then
        "$into" -m pip install --quiet --progress-bar off "$@" </dev/null >>"$log" 2>&1
    elif command -v uv >/dev/null 2>&1; then
        uv pip install --quiet --python "$into" "$@" </dev/null >>"$log" 2>&1
    else
        fail "$into has no pip. Remedy: remove $(dirname "$(dirname "$into")") and run this again."
    fi
}

stamp_of() { # $1: environment; the rest: files. What the environment was made from, or nothing where it does not run
    env_python=$1/bin/python
    shift
    [ -x "$env_python" ] || return 0
    runs=$("$env_python" -I -S -c 'import sys
if sys.version_info >= (3, 12): print(sys.version, sys.platform, sys.base_prefix)' 2>/dev/null </dev/null) || return 0
    [ -n "$runs" ] || return 0
    echo "$root"
    echo "$runs"
    cksum "$@"
}

is_current() { # $1: environment; the rest: files
    stamp=$1/.mcx-stamp
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(stamp_of "$@")" ]
}

version_in() { "$1/bin/python" -I -S -c 'import sys; print("Python %d.%d.%d" % sys.version_info[:3])'; }

# Zip downloads, source archives and git on some systems come without the symlinks that join the source tree.
for package in inference estimators; do
    if [ ! -d "mcx/$package" ]; then
        rm -f "mcx/$package"
        ln -s "../$package" "mcx/$package" || fail "cannot make the symlink mcx/$package -> ../$package"
        say "made the missing symlink mcx/$package -> ../$package"
    fi
done

mkdir -p .cache
case $mode in
dev)
    venv=.venv
    if is_current $venv pyproject.toml $lock; then
        say "$venv is up to date ($(version_in $venv))"
        exit 0
    fi
    : >"$log"
    if works $venv/bin/python; then
        say "using $venv ($(version_in $venv))"
    else
        if [ -e $venv ]; then say "$venv has no Python 3.12 or newer that runs; making it anew"; fi
        make_venv $venv
    fi
    rm -f $venv/.mcx-stamp
    say "installing mcx and its development tools at the locked versions (a minute or two when nothing is cached)"
    if ! pip_install $venv -e '.[dev]' -c $lock; then
        say "the locked versions do not fit this Python or platform; installing the newest that do instead"
        if ! pip_install $venv -e '.[dev]'; then
            show_log
            fail "could not install mcx's dependencies into $venv. The whole log: $log"
        fi
    fi
    stamp_of $venv pyproject.toml $lock >$venv/.mcx-stamp
    say "$venv is ready ($(version_in $venv))"
    ;;
lowest)
    venv=.venv-lowest
    if is_current $venv pyproject.toml $lowest; then
        say "$venv is up to date ($(version_in $venv))"
        exit 0
    fi
    : >"$log"
    if [ -z "${PYTHON:-}" ] && works .venv/bin/python; then PYTHON=$root/.venv/bin/python; fi
    make_venv $venv
    say "installing the lowest versions that mcx supports"
    if ! pip_install $venv -e '.[diffusion,plots,storage,testing]' pytest pytest-xdist -c $lowest; then
        show_log
        fail "the pins of $lowest do not install here ($(version_in $venv)). The whole log: $log"
    fi
    stamp_of $venv pyproject.toml $lowest >$venv/.mcx-stamp
    say "$venv is ready ($(version_in $venv))"
    ;;
lock)
    venv=.venv-lock
    : >"$log"
    if [ -z "${PYTHON:-}" ] && works .venv/bin/python; then PYTHON=$root/.venv/bin/python; fi
    make_venv $venv
    say "installing the newest versions"
    if ! pip_install $venv -e '.[dev]'; then
        show_log
        fail "could not install the newest versions. The whole log: $log"
    fi
    {
        echo "# The exact versions that mcx is developed and tested with, as constraints for pip: 'make setup' passes this"
        echo "# file with -c, so a package that another platform does not need is not installed there. 'make lock' writes"
        echo "# it anew: the newest versions that '.[dev]' resolves to in a fresh environment. Do not edit it by hand."
        echo "# Made with $(version_in $venv)."
        "$venv/bin/python" -m pip freeze --exclude-editable 2>>"$log" | grep -E '^[A-Za-z0-9._-]+==' | LC_ALL=C sort -f
    } >$lock.tmp
    mv $lock.tmp $lock
    rm -rf $venv
    say "wrote $lock ($(grep -c == $lock) packages); 'make test' installs and tries them"
    ;;
*)
    fail "unknown argument '$mode': nothing, lowest or lock"
    ;;
esac
