#!/usr/bin/env bash
# Installs what is missing, builds conserver, and shows it at work. Arguments go to `conserver demo`.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m==> %s\033[0m\n' "$*"; }

fail() {
  printf 'quickstart.sh: %s\n' "$*" >&2
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

command -v cargo >/dev/null || fail "there is no cargo: install Rust from https://rustup.rs"

if ! command -v redis-server >/dev/null || ! command -v cc >/dev/null; then
  say "Installing Redis and a C compiler"
  if command -v apt-get >/dev/null; then
    # Without the sandbox: its user may not be able to use a private folder for temporary files.
    apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o APT::Sandbox::User=root)
    as_root "${apt[@]}" update
    as_root "${apt[@]}" install -y --no-install-recommends redis-server gcc libc6-dev
  elif command -v dnf >/dev/null; then
    as_root dnf install -y gcc
    # Newer ones have Valkey in the place of Redis.
    as_root dnf install -y redis || as_root dnf install -y valkey-compat-redis
  else
    fail "install these by hand: redis-server and a C compiler"
  fi
fi

say "Building conserver (some minutes the first time)"
cargo build --release --locked

say "conserver demo"
exec "${CARGO_TARGET_DIR:-target}/release/conserver" demo "$@"
