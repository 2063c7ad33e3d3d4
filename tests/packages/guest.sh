# The Debian in which tests/packages.sh tries the packages, and how it looks at them there. To be sourced.
# shellcheck shell=bash

# ---- The machine

clean() {
  [ -z "$guest" ] || shut_down
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM

install_tools() {
  local missing=() program
  for program in debootstrap systemd-nspawn lintian rpm rpmlint nsenter; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
  [ ${#missing[@]} -eq 0 ] && return
  say "Installing tools"
  apt-get -q -o APT::Sandbox::User=root update
  DEBIAN_FRONTEND=noninteractive apt-get -q -o APT::Sandbox::User=root install -y --no-install-recommends \
    debootstrap systemd-container lintian rpm rpmlint util-linux dpkg-dev
}

make_tree() {
  local tree=$cache/$1
  [ -e "$tree" ] && return
  say "Making a Debian $1 in $tree (about a minute, once)"
  mkdir -p "$cache"
  rm -rf "$tree.new"
  debootstrap --variant=minbase --include="$include" "$1" "$tree.new" >"$work/debootstrap" ||
    { tail -n 20 "$work/debootstrap" >&2; fail "there is no Debian $1"; }
  echo '127.0.0.1 localhost' >>"$tree.new/etc/hosts"
  mv "$tree.new" "$tree"
}

# Boots it with changes in memory only, and without any network but its own loopback.
boot() {
  local name=conserver-$1-$$ tree=$cache/$1
  (
    # Where systemd does not run, the guest is given control groups of its own in place of the machine's.
    keep=()
    if ! [ -d /run/systemd/system ]; then
      keep=(--keep-unit)
      for group in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
        if [ -d "$group" ]; then
          mkdir -p "$group/$name"
          sh -c 'echo $PPID' >"$group/$name/cgroup.procs"
        fi
      done
    fi
    exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn -q -D "$tree" -M "$name" --register=no "${keep[@]}" \
      --console=pipe --volatile=overlay --private-network --bind-ro="$work:/test" -b
  ) </dev/null >"$work/console" 2>&1 &
  nspawn=$!
  wait_for 60 "the guest boots" has_booted
}

has_booted() {
  kill -0 "$nspawn" 2>/dev/null || { cat "$work/console" >&2; fail "the guest does not boot"; }
  guest=$(pgrep -P "$nspawn" | head -n 1) && [ -n "$guest" ] &&
    in_guest 'systemctl is-system-running --wait' 2>/dev/null | grep -Eq 'running|degraded'
}

shut_down() {
  in_guest 'systemctl poweroff' >/dev/null 2>&1 || true
  for _ in $(seq 100); do
    kill -0 "$nspawn" 2>/dev/null || break
    sleep 0.1
  done
  kill -KILL "$nspawn" 2>/dev/null || true
  wait "$nspawn" 2>/dev/null || true
  guest=
  # What systemd in the guest has made there goes with it.
  find /sys/fs/cgroup/{unified,systemd}/conserver-*-$$ -depth -type d -exec rmdir {} + 2>/dev/null || true
}

# Runs a line of shell in the guest.
in_guest() {
  nsenter -t "$guest" -a -r -w env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive sh -c "$1"
}

# ---- Checks

check() {
  local what=$1
  shift
  if "$@" >"$work/output" 2>&1; then
    passed=$((passed + 1))
    printf 'ok      %s\n' "$what"
  else
    failed=$((failed + 1))
    printf 'FAILED  %s\n' "$what"
    sed 's/^/        /' "$work/output"
    [ -z "$guest" ] || in_guest 'journalctl -u conserver --no-pager -n 15 -o cat; systemctl status -n0 conserver' 2>&1 |
      sed 's/^/        | /' || true
  fi
}

# Waits until a command succeeds.
wait_for() {
  local seconds=$1 what=$2 end
  shift 2
  end=$((SECONDS + seconds))
  until "$@"; do
    if [ $SECONDS -ge $end ]; then
      echo "not within $seconds s: $what"
      return 1
    fi
    sleep 0.2
  done
}

is_active() { in_guest 'systemctl is-active --quiet conserver'; }
is_activating() { [ "$(property ActiveState)" = activating ]; }
property() { in_guest "systemctl show -P $1 conserver"; }
redis() { in_guest "redis-cli $*"; }
equals() { [ "$1" = "$2" ] || { echo "$1 is not $2"; return 1; }; }
contains() { case $1 in *"$2"*) ;; *) echo "$2 is not in: $1"; return 1 ;; esac; }
stored() { in_guest 'find /var/lib/conserver/vcons -name "*.json" 2>/dev/null | wc -l'; }
has_stored() { equals "$(stored)" "$1"; }
main_pid_is_new() { [ "$(property MainPID)" != "$1" ] && is_active; }
workers() { in_guest 'pgrep "^conserver-w" | sort' || true; }
workers_are_new() { [ -n "$(workers)" ] && [ -z "$(comm -12 <(echo "$1") <(workers))" ]; }
logged() { in_guest "journalctl ${2:--u conserver} --no-pager -o cat | grep -cF -- '$1'"; }
install_deb() { in_guest "dpkg --force-confold -i /test/*-$1_*.deb 2>&1"; }
is_gone() { ! in_guest "ls -d $1"; }
