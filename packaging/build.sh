#!/usr/bin/env bash
# Builds the packages into target/packages/: a .deb and a .rpm.
#
#   packaging/build.sh [--target TRIPLE] [--twice] [VERSION-RELEASE]
#
# VERSION-RELEASE is such as 0.2.0-2; default: the version of Cargo.toml and release 1.
#
#   --target TRIPLE   for another machine than this one: x86_64-unknown-linux-musl and aarch64-unknown-linux-musl are
#                     static programs for any Linux, aarch64-unknown-linux-gnu is for this release on arm64. Needs the
#                     C compiler of the target: gcc-aarch64-linux-gnu, musl-tools
#   --twice           builds them again in a copy elsewhere, and fails unless the packages are the same byte for byte
#
# All times in the packages are SOURCE_DATE_EPOCH, by default the time of the commit, else of the newest version in
# CHANGELOG.md. CONSERVER_COMMIT is the commit that `conserver --version` names, by default that of the repository.
#
# cargo-auditable, cargo-deb and cargo-generate-rpm are built into a cache outside the repository where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${CONSERVER_PACKAGING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/conserver-packaging}
cargo_auditable_version=0.7.7
cargo_deb_version=3.8.0
cargo_generate_rpm_version=0.21.1
packages=target/packages
generated=$packages/generated

say() { printf '\n==> %s\n' "$*"; }

fail() {
  printf 'packaging/build.sh: %s\n' "$*" >&2
  exit 1
}

# Prints the path of a cargo tool of this version, which is installed where it is missing.
tool() {
  local name=$1 version=$2
  if ! [ -x "$cache/$name-$version/bin/$name" ]; then
    say "Building $name $version into $cache (some minutes, once)" >&2
    env -u RUSTFLAGS -u CFLAGS cargo install "$name" --version "$version" --locked --root "$cache/$name-$version" >&2
  fi
  printf '%s' "$cache/$name-$version/bin/$name"
}

in_repository() { [ -e .git ] && command -v git >/dev/null; }

# What the source is: the same for every build of it.
identify_source() {
  if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    if in_repository; then
      SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
    else
      SOURCE_DATE_EPOCH=$(date -ud "$(sed -n 's/^## \[[0-9].* - //p' CHANGELOG.md | head -n 1)" +%s)
    fi
  fi
  if [ -z "${CONSERVER_COMMIT:-}" ] && in_repository; then
    CONSERVER_COMMIT=$(git rev-parse HEAD)
    git diff --quiet HEAD || CONSERVER_COMMIT+=" with changes"
  fi
  export SOURCE_DATE_EPOCH CONSERVER_COMMIT=${CONSERVER_COMMIT:-}
}

# Finds what compiles and links for the target, and says what is missing.
prepare_target() {
  local variable=${target//-/_} compiler linker=
  case ${host%%-*}:$target in
    x86_64:x86_64-unknown-linux-musl | aarch64:aarch64-unknown-linux-musl) compiler=musl-gcc ;;
    x86_64:aarch64-unknown-linux-*) compiler=aarch64-linux-gnu-gcc linker=$compiler ;;
    *)
      [ "$target" = "$host" ] || fail "it is not known how to build for $target on $host"
      compiler=cc
      ;;
  esac
  command -v "$compiler" >/dev/null || fail "there is no $compiler, which $target needs: install its package"
  if [ "$linker:$target" = aarch64-linux-gnu-gcc:aarch64-unknown-linux-gnu ] &&
    ! [ -e /usr/lib/aarch64-linux-gnu/libc.so.6 ]; then
    fail "the .deb names the packages of the target's libraries, which are not here: dpkg --add-architecture arm64 &&
    apt-get update && apt-get install libc6:arm64 libgcc-s1:arm64"
  fi
  export "CC_$variable=$compiler"
  [ -z "$linker" ] || export "CARGO_TARGET_${variable^^}_LINKER=$linker"
  if command -v rustup >/dev/null; then
    rustup target add "$target"
  fi
}

# The program, with the list of its libraries in it, without its symbols and the names of folders of this machine.
build_program() {
  local home=${CARGO_HOME:-$HOME/.cargo} cflags
  cflags="-ffile-prefix-map=$PWD=. -ffile-prefix-map=$home=/cargo"
  # musl has no checked functions, which some compilers call by themselves.
  [[ $target != *-musl ]] || cflags+=" -U_FORTIFY_SOURCE"
  RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$PWD=. --remap-path-prefix=$home=/cargo" CFLAGS="${CFLAGS:-} $cflags" \
    CARGO_PROFILE_RELEASE_STRIP=symbols PATH="$(dirname "$cargo_auditable"):$PATH" \
    cargo auditable build --release --locked "${for_target[@]}"
}

write_texts() {
  rm -rf "$generated"
  # Of this machine, and from what the tests have built.
  env -u SOURCE_DATE_EPOCH -u CONSERVER_COMMIT cargo run --quiet --locked --example generate -- "$generated"
  gzip -9n --keep "$generated"/man/*
  gzip -9nc CHANGELOG.md >"$generated/changelog.gz"
  cp "target/${target:+$target/}release/conserver" "$generated/conserver"
}

build_deb() {
  local variant=()
  [[ $target != *-musl ]] || variant=(--variant static)
  "$cargo_deb" --no-build --no-strip --deb-version "$version" --output "$packages/" "${for_target[@]}" "${variant[@]}"
}

# Of copies: a .rpm has the times of its files, which differ from one checkout to the next.
build_rpm() {
  local stage=$packages/rpm requirements=auto out=$PWD/$packages
  case $target in
    *-musl) requirements=disabled ;;
    ?*) requirements=find-requires ;;
  esac
  rm -rf "$stage"
  mkdir -p "$stage/$packages"
  cp -R Cargo.toml README.md LICENSE CHANGELOG.md conserver.service packaging src "$stage"
  cp -R "$generated" "$stage/$generated"
  find "$stage" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
  (cd "$stage" && "$cargo_generate_rpm" --output "$out/" --auto-req "$requirements" "${for_target[@]}" \
    --set-metadata "version = \"${version%-*}\"" --set-metadata "release = \"${version##*-}\"")
  rm -rf "$stage"
}

# Builds them in a copy of the source, and compares.
build_again() {
  local copy built
  copy=$(mktemp -d)
  # shellcheck disable=SC2064
  trap "rm -rf '$copy'" EXIT
  if in_repository; then
    git ls-files -z | tar --null --files-from=- -c | tar -x -C "$copy"
  else
    tar --exclude=./target -c . | tar -x -C "$copy"
  fi
  "$copy/packaging/build.sh" "${for_target[@]}" "$version"
  for built in "$copy/$packages"/*.deb "$copy/$packages"/*.rpm; do
    cmp "$built" "$packages/${built##*/}" || fail "${built##*/} is not reproducible"
  done
  say "Both builds are the same"
}

target=
twice=
version=
while [ $# -gt 0 ]; do
  case $1 in
    --target) target=${2:?--target needs a triple}; shift ;;
    --target=*) target=${1#--target=} ;;
    --twice) twice=yes ;;
    -*) fail "there is no option $1" ;;
    *) version=$1 ;;
  esac
  shift
done
version=${version:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)-1}
[[ $version == *-* ]] || fail "$version is no version with a release, such as 0.2.0-2"
# It knows which packages the libraries come from.
command -v dpkg-shlibdeps >/dev/null || fail "there is no dpkg-shlibdeps: install dpkg-dev"
host=$(rustc -vV | sed -n 's/^host: //p')
for_target=()
if [ -n "$target" ]; then
  for_target=(--target "$target")
  prepare_target
fi
identify_source

cargo_auditable=$(tool cargo-auditable "$cargo_auditable_version")
cargo_deb=$(tool cargo-deb "$cargo_deb_version")
cargo_generate_rpm=$(tool cargo-generate-rpm "$cargo_generate_rpm_version")

say "Building conserver"
build_program
say "Writing the manual, completions and the file of settings"
write_texts
say "Building the packages"
build_deb
build_rpm
say "Built"
ls -l "$packages"/*.deb "$packages"/*.rpm
if [ -n "$twice" ]; then
  say "Building them again"
  build_again
fi
