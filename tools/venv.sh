# Sourced by the scripts beside it: `make_venv EXTRAS` makes the checkout's .venv or
# brings it up to date, and sets VENV_PYTHON. EXTRAS is '' or such as 'test,clients'.

REPO_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
VENV_DIR="$REPO_ROOT/.venv"
VENV_PYTHON="$VENV_DIR/bin/python"
VENV_INCOMPLETE="$VENV_DIR/incomplete"  # there while something is being installed

# Prints the first Python >= 3.11 that can make virtual environments.
find_python() {
  local candidate path without_venv=''
  for candidate in python3.13 python3.12 python3.11 python3; do
    path="$(command -v "$candidate")" || continue
    # A version manager's shim may be found and still not run.
    "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    if "$path" -c 'import ensurepip, venv' 2>/dev/null; then
      echo "$path"
      return
    fi
    without_venv="$path"
  done
  if [ -n "$without_venv" ]; then
    echo "error: $without_venv cannot make virtual environments (no venv or ensurepip)." >&2
    echo 'What to do: install the venv package of that Python (python3-venv on Debian or Ubuntu).' >&2
  else
    echo 'error: no Python 3.11 or newer found (tried python3.13, 3.12, 3.11 and python3).' >&2
    echo 'What to do: install Python 3.11 or newer and put it on the PATH.' >&2
  fi
  return 1
}

# Prints what an installation depends on, hashed: it is repeated when that changes.
venv_state() {
  "$VENV_PYTHON" - "$REPO_ROOT" <<'PYTHON'
import hashlib, pathlib, sys
root = sys.argv[1]
state = hashlib.sha256(f'{root}\n{sys.version}'.encode())
for name in ('pyproject.toml', 'tools/constraints.txt'):
  state.update(pathlib.Path(root, name).read_bytes())
print(state.hexdigest())
PYTHON
}

# Whether .venv is one that a killed run left half made, or that no longer runs.
venv_is_unusable() {
  [ -e "$VENV_INCOMPLETE" ] ||
    ! "$VENV_PYTHON" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

make_venv() {
  local extras="$1" stamp state python
  stamp="$VENV_DIR/installed-${extras:-core}"
  if [ -e "$VENV_DIR" ] && venv_is_unusable; then
    echo 'Remaking .venv: it is incomplete or no longer runs.'
    rm -rf "$VENV_DIR"
  fi
  if [ ! -e "$VENV_DIR" ]; then
    python="$(find_python)" || return 1
    echo "Making .venv with $python ..."
    mkdir "$VENV_DIR"
    touch "$VENV_INCOMPLETE"
    "$python" -m venv "$VENV_DIR"
  fi
  state="$(venv_state)"
  if [ ! -e "$VENV_INCOMPLETE" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
    return
  fi
  echo "Installing resmerge-jax${extras:+ with the extras $extras} into .venv ..."
  touch "$VENV_INCOMPLETE"
  "$VENV_PYTHON" -m pip install -qq --disable-pip-version-check \
    -c "$REPO_ROOT/tools/constraints.txt" -e "$REPO_ROOT${extras:+[$extras]}"
  # Extras include the core.
  echo "$state" | tee "$stamp" >"$VENV_DIR/installed-core"
  rm "$VENV_INCOMPLETE"
}
