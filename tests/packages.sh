#!/usr/bin/env bash
# Installs the packages in a Debian of their own that is booted with systemd, and tries what an administrator would do:
# start, reload, kill, stop, upgrade under load, removal, purge. Needs root on Debian or Ubuntu; nothing on the machine
# itself is changed but for the tools that are installed. The Debian is kept in a cache.
#
#   tests/packages.sh [RELEASE …]     the releases of Debian, if not `bookworm trixie`
#
# CONSERVER_TEST_PACKAGES=DIR         takes packages of the versions …-1 and …-2 from there instead of building them
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${CONSERVER_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/conserver-tests}/debian
include=systemd,systemd-sysv,dbus,procps,ca-certificates,redis-server,python3,rpm
releases=("$@")
[ ${#releases[@]} -gt 0 ] || releases=(bookworm trixie)
load=3000
passed=0
failed=0
guest=
work=$(mktemp -d)

say() { printf '\n==> %s\n' "$*"; }

fail() {
  printf 'tests/packages.sh: %s\n' "$*" >&2
  exit 1
}

# shellcheck source=tests/packages/guest.sh
. tests/packages/guest.sh

# ---- What is tried

# vCons with fresh UUIDs, one after the other.
make_vcons() {
  local sample
  sample=$(tr -d '\n' <packaging/examples/vcons/292d6185-bb23-4a5d-b2c9-df840d49dafa.vcon.json)
  for _ in $(seq "$1"); do
    printf '%s\n' "${sample/292d6185-bb23-4a5d-b2c9-df840d49dafa/$(</proc/sys/kernel/random/uuid)}"
  done
}

# A configuration whose finished vCons can be counted, with programs in the chain.
configure() {
  in_guest 'cat >/etc/conserver/config.yml' <<'END'
links:
  pause: {module: links.delay, options: {seconds: 0.005}}
  program: {module: links.exec, options: {command: [cat], mode: once}}
  stays: {module: links.python, options: {module: stays, path: /opt/links}}
storages:
  files: {module: storage.file, options: {path: /var/lib/conserver/vcons}}
chains:
  main: {ingress_lists: [default], links: [pause], storages: [files], egress_lists: [done]}
  programs: {ingress_lists: [programs], links: [program, stays], storages: [files], egress_lists: [programmed]}
END
  in_guest 'mkdir -p /opt/links && echo "async def run(uuid, name, opts): return uuid" >/opt/links/stays.py'
  in_guest 'printf "CONSERVER_WORKERS=2\nCONSERVER_VCON_CONCURRENCY=4\n" >>/etc/conserver/conserver.env'
}

packages_themselves() {
  say "The packages"
  check "lintian has nothing to say" lint_deb
  check "rpmlint has nothing to say" lint_rpm
  check "the program carries the list of its libraries" names_libraries
  check "and names the commit it was built from" eval \
    'contains "$("$work/unpacked/usr/bin/conserver" version --json)" "$(git rev-parse HEAD)"'
}

# The libraries that the program carries with it, of which scanners read.
names_libraries() {
  dpkg-deb -x "$work"/*-1_*.deb "$work/unpacked" &&
    objcopy --dump-section ".dep-v0=$work/libraries" "$work/unpacked/usr/bin/conserver" /dev/null &&
    contains "$(python3 -c 'import sys, zlib; print(zlib.decompress(open(sys.argv[1], "rb").read()).decode())' \
      "$work/libraries")" '"name":"redis"'
}

lint_deb() {
  local said
  said=$(lintian --allow-root "$work"/*-1_*.deb 2>&1) || true
  equals "$said" ""
}

lint_rpm() {
  local said
  said=$(rpmlint --file packaging/rpm/rpmlintrc "$work"/*-1.*.rpm 2>&1) || true
  contains "$said" " 0 errors, 0 warnings"
}

installation() {
  in_guest 'systemctl stop redis-server'
  check "the package is installed while Redis is away" install_deb 1
  check "the service is enabled" in_guest 'systemctl is-enabled conserver'
  check "it waits for Redis" wait_for 20 activating is_activating
  in_guest 'systemctl start redis-server'
  check "it is ready once Redis is there" wait_for 30 active is_active
  check "it says so to systemctl status" wait_for 20 status \
    eval 'contains "$(property StatusText)" "1 of 1 workers ready"'
  check "it runs as the user conserver" eval 'equals "$(in_guest "stat -c %U /proc/$(property MainPID)")" conserver'
  check "the configuration is for root and the group alone" is_closed
  check "vCons submitted with the installed program are stored" submit_samples
  check "status shows the daemon" eval 'contains "$(in_guest "conserver status")" "1 of 1 workers ready"'
  check "commands run in a unit with the settings and rights of the service" in_guest \
    'systemd-run -qPG --uid=conserver -p EnvironmentFile=-/etc/conserver/conserver.env conserver dlq ls </dev/null'
}

is_closed() {
  equals "$(in_guest 'stat -c %a:%U:%G /etc/conserver /etc/conserver/* | sort | tr "\n" " "')" \
    "640:root:conserver 640:root:conserver 750:root:conserver "
}

submit_samples() {
  in_guest 'conserver submit /usr/share/doc/conserver/examples/vcons --list default' && wait_for 20 stored has_stored 10
}

unit_file() {
  check "systemd-analyze verify has nothing to say" verify_unit
  check "so with every line that its end proposes" verify_proposals
  local score
  score=$(in_guest 'systemd-analyze security --no-pager conserver' | tail -n 1)
  printf '        %s\n' "$score"
  local version
  version=$(in_guest 'systemctl --version' | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
  check "its type is what this systemd knows" equals "$(property Type)" \
    "$([ "$version" -ge 254 ] && echo notify-reload || echo notify)"
  check "its exposure is at most 2.0" eval 'in_guest "systemd-analyze security --no-pager --threshold=20 conserver"'
}

verify_unit() {
  local said
  said=$(in_guest 'systemd-analyze verify --man=no conserver.service' 2>&1) || true
  # Of this unit alone: the guest's own have theirs.
  equals "$(grep conserver <<<"$said" || true)" ""
}

verify_proposals() {
  local code=0
  in_guest 'mkdir -p /run/systemd/system/conserver.service.d
    { echo "[Service]"; sed -n "s/^#\([A-Z][A-Za-z]*=.*\)/\1/p" /usr/lib/systemd/system/conserver.service
    } >/run/systemd/system/conserver.service.d/all.conf
    systemctl daemon-reload; cat /run/systemd/system/conserver.service.d/all.conf'
  are_in_force || code=1
  in_guest 'rm -r /run/systemd/system/conserver.service.d; systemctl daemon-reload'
  return $code
}

are_in_force() {
  verify_unit && equals "$(property MemoryDenyWriteExecute) $(property ProtectHome)" "no read-only" &&
    contains "$(property SystemCallFilter)" setrlimit && contains "$(property ReadWritePaths)" /srv/vcons
}

reload() {
  configure
  in_guest 'systemctl restart conserver'
  check "it starts with more workers and another configuration" wait_for 30 workers eval \
    'contains "$(property StatusText)" "2 of 2 workers ready"'
  check "links.exec and links.python run within its limits" run_programs
  local before
  before=$(workers)
  check "systemctl reload succeeds" in_guest 'systemctl reload conserver'
  check "and has replaced the workers when it returns" workers_are_new "$before"
  in_guest 'cp -p /etc/conserver/config.yml /root/good.yml && echo "chains: 1" >/etc/conserver/config.yml'
  check "systemctl reload fails with a broken configuration" eval '! in_guest "systemctl reload conserver"'
  check "the fault is in the journal with its line" logged "/etc/conserver/config.yml:1"
  check "the service goes on" is_active
  in_guest 'cp -p /root/good.yml /etc/conserver/config.yml'
  check "systemctl reload succeeds once that is mended" in_guest 'systemctl reload conserver'
}

run_programs() {
  make_vcons 20 >"$work/programs.json"
  in_guest 'conserver submit /test/programs.json --list programs' &&
    wait_for 30 "finished" eval 'equals "$(redis llen programmed)" 20'
}

deaths() {
  local main worker restarts
  main=$(property MainPID)
  in_guest "kill -KILL $main"
  check "the service comes back after its main process was killed" wait_for 20 back main_pid_is_new "$main"
  wait_for 20 workers eval 'contains "$(property StatusText)" "2 of 2 workers ready"' >/dev/null || true
  main=$(property MainPID)
  restarts=$(property NRestarts)
  worker=$(workers | head -n 1)
  in_guest "kill -KILL $worker"
  check "a worker that was killed is replaced" wait_for 20 replaced eval \
    "! grep -qx $worker <(workers) && equals \"\$(workers | wc -l)\" 2"
  check "without a restart of the service" equals "$(property MainPID) $(property NRestarts)" "$main $restarts"
  in_guest "kill -STOP $main"
  check "the watchdog restarts it when the supervisor stands still" wait_for 60 back main_pid_is_new "$main"
  check "and systemd says why" logged "Watchdog timeout"
}

# After reloads with errors and deaths of workers.
journal() {
  local warnings infos
  warnings=$(in_guest 'journalctl -u conserver -t conserver -p warning --no-pager -o cat')
  check "journalctl -p warning shows errors" contains "$warnings" "died unexpectedly"
  check "and warnings" contains "$warnings" "[WARN] "
  check "and no lines of other priorities" eval '! grep -F "[INFO]" <<<"$warnings"'
  infos=$(in_guest 'journalctl -u conserver -t conserver -p info..info --no-pager -o cat')
  check "which have theirs" eval 'contains "$infos" "[INFO] Finished" && ! grep -E "^\[(WARN|ERROR)\]" <<<"$infos"'
  check "the check of a reload has logged an error" contains \
    "$(in_guest 'journalctl -u conserver -t conserver -p err --no-pager -o cat')" "/etc/conserver/config.yml:1"
  check "conserver logs shows the last lines" eval 'equals "$(in_guest "conserver logs -n 5" | wc -l)" 5'
  check "those of a priority" eval 'contains "$(in_guest "conserver logs -p warning -n all")" "died unexpectedly" &&
    ! in_guest "conserver logs -p warning -n all" | grep -F "[INFO]"'
  check "those of a vCon" eval 'contains \
    "$(in_guest "conserver logs 292d6185-bb23-4a5d-b2c9-df840d49dafa")" "Finished 292d6185-bb23-4a5d-b2c9-df840d49dafa"'
  local refused code=0
  refused=$(in_guest 'runuser -u nobody -- conserver logs 2>&1') || code=$?
  check "who may not read the journal is told the group" eval 'equals $code 69 && contains "$refused" systemd-journal'
}

credentials() {
  in_guest 'mkdir -p /etc/conserver/credentials /etc/systemd/system/conserver.service.d
    (umask 077; echo sesame >/etc/conserver/credentials/token)
    printf "[Service]\nLoadCredential=token:/etc/conserver/credentials/token\n" \
      >/etc/systemd/system/conserver.service.d/override.conf
    sed -i "s|^storages:|storages:\n  hook: {module: storage.webhook, options: {webhook-urls: [\"http://127.0.0.1:9\"], \
headers: {Authorization: \"Bearer \${file:token}\"}}}|" /etc/conserver/config.yml
    systemctl daemon-reload'
  check "what LoadCredential= brings is seen by the check of the service" in_guest /usr/libexec/conserver/check-service
  check "but not by a check with what the service has that runs" eval '! in_guest "conserver check --offline"'
  in_guest 'systemctl restart conserver'
  check "and by the service" wait_for 30 active is_active
  check "and then by a check of root's" in_guest 'conserver check --offline'
  in_guest 'systemctl stop conserver'
  check "while it is stopped, a check of root's says why there are none" eval \
    'contains "$(in_guest "conserver check --offline 2>&1" || true)" "conserver.service does not run, so its credentials"'
  in_guest 'systemctl start conserver'
  in_guest 'echo EnvironmentFile=/etc/conserver/none.env >>/etc/systemd/system/conserver.service.d/override.conf
    systemctl daemon-reload'
  check "a file that the unit names and is not there is seen by the check" eval \
    '! in_guest /usr/libexec/conserver/check-service'
  in_guest 'cp -p /root/good.yml /etc/conserver/config.yml
    rm -r /etc/systemd/system/conserver.service.d /etc/conserver/credentials
    systemctl daemon-reload && systemctl restart conserver'
  wait_for 30 active is_active
}

# Commands have the service's settings and rights, whoever runs them.
identity() {
  in_guest 'cp -p /etc/conserver/conserver.env /root/good.env
    echo REDIS_URL=redis://localhost/5 >>/etc/conserver/conserver.env && systemctl restart conserver
    useradd somebody; mkdir -p /root/mine
    cp /usr/share/doc/conserver/examples/vcons/292d6185-bb23-4a5d-b2c9-df840d49dafa.vcon.json /root/mine/
    chmod 700 /root /root/mine'
  wait_for 30 active is_active >/dev/null || true
  redis -n 5 flushdb >/dev/null
  local id=292d6185-bb23-4a5d-b2c9-df840d49dafa as_somebody='runuser -u somebody -- env -i PATH=/usr/bin:/bin conserver'
  check "root submits a file of its own to the Redis of the service" in_guest \
    "cd /root/mine && conserver submit $id.vcon.json --wait --timeout 20"
  check "and nothing is said of another one" eval '[ -z "$(in_guest "conserver get '$id' 2>&1 >/dev/null" | grep note:)" ]'
  check "so do get" in_guest "conserver get $id"
  check "check" eval 'contains "$(in_guest "conserver check")" "localhost/5"'
  check "status" eval 'contains "$(in_guest "conserver status --queues")" "done"'
  check "and dlq" in_guest "conserver dlq ls"
  check "--no-service opts out, and names both" eval \
    'contains "$(in_guest "conserver get '$id' --no-service 2>&1" || true)" "uses redis://localhost/5"'
  check "so does REDIS_URL" eval \
    'contains "$(in_guest "REDIS_URL=redis://localhost/6 conserver get '$id' 2>&1 >/dev/null")" "uses redis://localhost/6"'
  check "but not with --as-service" eval \
    'contains "$(in_guest "REDIS_URL=redis://localhost/6 conserver check --as-service")" "localhost/5"'
  check "no file or folder of root's is left" eval \
    'equals "$(in_guest "find /var/lib/conserver /run/conserver -user root; ls -d /tmp/conserver-* 2>/dev/null")" ""'
  check "the service's user needs no sudo" in_guest "runuser -u conserver -- env -i PATH=/usr/bin:/bin conserver get $id"
  check "somebody is told about the group, with exit code 77" eval \
    'contains "$(in_guest "'"$as_somebody"' get '$id' 2>&1; echo code \$?")" "code 77" &&
     contains "$(in_guest "'"$as_somebody"' status 2>&1" || true)" "usermod -aG conserver somebody"'
  in_guest 'usermod -aG conserver somebody'
  check "and needs no sudo as a member of it" in_guest "$as_somebody get $id && $as_somebody status && $as_somebody dlq ls"
  in_guest 'systemctl stop conserver'
  check "commands of root's use the settings of a service that is stopped" eval \
    'contains "$(in_guest "conserver check")" "localhost/5"'
  check "and leave nothing behind" eval 'equals "$(in_guest "find /var/lib/conserver -user root")" ""'
  in_guest 'cp -p /root/good.env /etc/conserver/conserver.env; systemctl start conserver; userdel somebody'
}

# A second service beside the first.
instances() {
  in_guest 'install -d -g conserver -m 750 /etc/conserver/second
    install -g conserver -m 640 /etc/conserver/config.yml /etc/conserver/conserver.env /etc/conserver/second/
    sed -i s,/var/lib/conserver/,/var/lib/conserver-second/, /etc/conserver/second/config.yml
    echo REDIS_URL=redis://localhost/6 >>/etc/conserver/second/conserver.env'
  check "systemd-analyze verify has nothing to say of an instance" eval \
    'equals "$(in_guest "systemd-analyze verify --man=no conserver@second.service 2>&1" | grep conserver || true)" ""'
  check "check-service checks the instance" in_guest '/usr/libexec/conserver/check-service second'
  check "and not one that has no configuration" eval '! in_guest "/usr/libexec/conserver/check-service third"'
  check "nor does a command find it" eval '! in_guest "conserver status --as-service --instance third"'
  check "a second service starts" in_guest 'systemctl enable --now conserver@second'
  check "beside the first" in_guest 'systemctl is-active conserver conserver@second'
  check "status finds it by its name" eval 'contains "$(in_guest "conserver status --instance second")" "-second (PID "'
  check "and the first one without" eval '! contains "$(in_guest "conserver status")" "-second (PID " >/dev/null'
  check "its monitor listens at a socket" in_guest 'test -S /run/conserver-second/http.sock'
  make_vcons 5 >"$work/second.json"
  check "vCons are submitted to it" in_guest \
    'conserver submit /test/second.json --instance second --wait --timeout 30'
  check "and stored by it" eval \
    'equals "$(in_guest "find /var/lib/conserver-second/vcons -name \\*.json | wc -l")" 5 &&
     equals "$(in_guest "stat -c %U /var/lib/conserver-second/vcons")" conserver'
  check "check has its settings" eval 'contains "$(in_guest "conserver check --instance second")" "localhost/6"'
  check "it is reloaded" in_guest 'systemctl reload conserver@second'
}

second_pid() { in_guest 'systemctl show -P MainPID conserver@second'; }
second_is_new() { [ "$(second_pid)" != "$1" ] && in_guest 'systemctl is-active --quiet conserver@second'; }

upgrade() {
  local main before second
  main=$(property MainPID)
  second=$(second_pid)
  before=$(stored)
  redis del 'done' >/dev/null
  make_vcons "$load" >"$work/load.json"
  in_guest 'conserver submit /test/load.json --list default' >/dev/null
  check "work is under way" wait_for 20 begun eval '[ "$(redis llen 'done')" -ge 100 ]'
  check "the package is upgraded under load" install_deb 2
  check "before all is done" eval '[ "$(redis llen default)" -gt 0 ]'
  check "the new version takes over" wait_for 60 new main_pid_is_new "$main"
  check "so it does for the instance" wait_for 60 new second_is_new "$second"
  check "the old one ended in order" logged "All workers stopped" "_PID=$main"
  check "all $load vCons are finished" wait_for 120 finished eval 'equals "$(redis llen 'done')" "$load"'
  check "each once" eval 'equals "$(redis lrange 'done' 0 -1 | sort -u | wc -l)" "$load"'
  check "and stored" has_stored $((before + load))
  check "nothing is left in a list, in hand or dead" eval 'equals \
    "$(redis llen default) $(redis llen DLQ:default) $(redis keys "conserver:claims:*")" "0 0 "'
  check "the changed configuration is kept" in_guest 'cmp /root/good.yml /etc/conserver/config.yml'

  main=$(property MainPID)
  in_guest 'echo "chains: 1" >/etc/conserver/config.yml'
  check "an upgrade with a broken configuration succeeds and names the fault" eval \
    'contains "$(install_deb 1)" "/etc/conserver/config.yml:1"'
  check "and leaves the running version alone" eval 'equals "$(property MainPID)" '"$main"' && is_active'
  in_guest 'cp -p /root/good.yml /etc/conserver/config.yml && systemctl stop conserver'
  check "an upgrade does not start what was stopped" eval \
    'install_deb 2 && equals "$(property ActiveState)" inactive'
  in_guest 'systemctl start conserver'
}

removal() {
  local files
  files=$(stored)
  check "the package is removed" in_guest 'dpkg -r conserver 2>&1'
  check "the service is stopped and gone" eval '[ -z "$(workers)" ] && [ "$(property LoadState)" != loaded ]'
  check "data and configuration are kept" eval \
    'has_stored '"$files"' && in_guest "cmp /root/good.yml /etc/conserver/config.yml"'
  check "it can be installed again" install_deb 2
  check "and starts with what was kept" wait_for 30 active is_active
  check "so does the instance" wait_for 30 active in_guest 'systemctl is-active --quiet conserver@second'
  in_guest 'echo secret >/etc/conserver/token'
  check "the package is purged" in_guest 'dpkg -P conserver 2>&1'
  check "data and configuration are gone" eval \
    'is_gone /var/lib/conserver && is_gone /etc/conserver && is_gone /var/lib/conserver-second'
  check "and so is all else but the user" nothing_left
}

nothing_left() {
  equals "$(in_guest 'find /etc /usr /var /run -xdev -name "*conserver*" | grep -v "^/var/log/journal"' || true)" "" &&
    in_guest 'getent passwd conserver'
}

broken_from_the_start() {
  in_guest 'mkdir -p /etc/conserver && echo "chains: 1" >/etc/conserver/config.yml'
  local said code=0
  said=$(install_deb 1) || code=$?
  check "the package is installed beside a broken configuration" equals "$code" 0
  check "and says what is wrong" contains "$said" "/etc/conserver/config.yml:1"
  check "the service is enabled" in_guest 'systemctl is-enabled conserver'
  check "and was not started" equals "$(property ActiveState) $(property NRestarts)" "inactive 0"
  in_guest 'systemctl start conserver' 2>/dev/null || true
  check "started by hand it fails, and is not tried for ever" eval 'sleep 5
    equals "$(property ActiveState) $(property ExecMainStatus) $(property NRestarts)" "failed 78 0"'
  in_guest 'cp /etc/conserver/config.yml.dpkg-dist /etc/conserver/config.yml && systemctl restart conserver'
  check "it starts once that is mended" wait_for 30 active is_active
  in_guest 'dpkg -P conserver >/dev/null 2>&1'
}

# rpm needs no rpm distribution: its scripts find what they need in this one.
rpm_package() {
  # Its own, so that a change of a package's scripts shows.
  in_guest 'userdel conserver; groupdel conserver' 2>/dev/null || true
  # Debian's own asks whether this is meant, or does not know the question.
  local rpm='rpm $(rpm --help | grep -o -- --force-debian) --nodeps'
  check "the rpm is installed" in_guest "$rpm"' -ivh /test/*-1.*.rpm 2>&1'
  check "its scripts have made the user" in_guest 'getent passwd conserver'
  check "enabled the service" in_guest 'systemctl is-enabled conserver'
  check "and started it" wait_for 30 active is_active
  check "the configuration is for root and the group alone" is_closed
  check "nothing differs from the package" in_guest 'rpm -V --nodeps conserver'
  check "it works" eval 'redis flushall && submit_samples'
  in_guest 'echo "# changed" >>/etc/conserver/config.yml'
  local main
  main=$(property MainPID)
  check "it is upgraded" in_guest "$rpm"' -Uvh /test/*-2.*.rpm 2>&1'
  check "the new version takes over" wait_for 60 new main_pid_is_new "$main"
  check "the changed configuration is kept" in_guest 'grep -q changed /etc/conserver/config.yml'
  check "it is erased" in_guest 'rpm -e conserver 2>&1'
  check "the service is stopped and gone" eval '[ -z "$(workers)" ] && [ "$(property LoadState)" != loaded ]'
  check "data and changed configuration are kept" eval \
    'has_stored 10 && in_guest "grep -q changed /etc/conserver/config.yml.rpmsave"'
}

# ---- All of it

[ "$(id -u)" -eq 0 ] || fail "this needs root"
install_tools
for release in "${releases[@]}"; do
  make_tree "$release"
done

packages=${CONSERVER_TEST_PACKAGES:-target/packages}
if [ -z "${CONSERVER_TEST_PACKAGES:-}" ]; then
  version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
  packaging/build.sh "$version-2"
  packaging/build.sh "$version-1"
fi
cp "$packages"/conserver_*-[12]_*.deb "$packages"/conserver-*-[12].*.rpm "$work"
chmod 755 "$work"

packages_themselves
for release in "${releases[@]}"; do
  say "Debian $release"
  boot "$release"
  in_guest 'systemctl --version' | head -n 1
  installation
  unit_file
  reload
  deaths
  journal
  credentials
  identity
  instances
  upgrade
  removal
  broken_from_the_start
  rpm_package
  shut_down
done

printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
