#!/bin/sh
# Install what is missing: Debian packages (as root), then the virtual environment from the lock file.
# usage: setup.sh run|test
set -eu
cd "$(dirname "$0")/../.."

have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }
missing=""
need() { have "$1" || missing="$missing $2"; } # command, package

need python3 python3
[ -e /usr/share/doc/python3-venv ] || missing="$missing python3-venv"
need runc runc
need crun crun
need unshare util-linux
# Alone in a container: without shared libraries.
static_busybox() { busybox --help 2>/dev/null | head -n 1 | grep -q BusyBox && ! ldd "$(command -v busybox)" >/dev/null 2>&1; }
static_busybox || missing="$missing busybox-static"
if [ "${1:-run}" = test ]; then
  need ctr containerd
  need docker-registry docker-registry
  need skopeo skopeo
  need umoci umoci
  need zstd zstd
  need bsdtar libarchive-tools
  need ps procps
  need ip iproute2
  need mkfs.xfs xfsprogs
  need openssl openssl
  need criu criu
fi
if [ -n "$missing" ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "these Debian packages are missing:$missing; run this as root, or: apt-get install$missing" >&2
    exit 1
  fi
  echo "installing$missing" >&2
  apt-get update -qq
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# Debian's interpreter by its full path: the one first on PATH may be a version manager's shell script.
python=/usr/bin/python3
[ -x "$python" ] || python=$(command -v python3)
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; $python is $("$python" --version)" >&2
  exit 1
}

wanted=$(cat requirements.lock pyproject.toml plugins/*/pyproject.toml contrib/quickstart/setup.sh | sha256sum | cut -c1-16)
stamp=.venv/.installed
[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && exit 0
echo "setting up .venv" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
set -- -e .
for plugin in plugins/*/; do set -- "$@" -e "$plugin"; done
.venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation "$@"
# pip compiles what it copies, not these: where PYTHONDONTWRITEBYTECODE is set, every start would.
.venv/bin/python -m compileall -q aiocontainerd plugins/*/aiocontainerd_*
echo "$wanted" >"$stamp"
