#!/usr/bin/env bash
# Builds the packages into target/packages/: a .deb and a .rpm for this machine's architecture.
#
#   packaging/build.sh [VERSION-RELEASE]    such as 0.2.0-2; default: the version of Cargo.toml and release 1
#
# cargo-deb and cargo-generate-rpm are built into a cache outside the repository where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${CONSERVER_PACKAGING_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/conserver-packaging}
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
    cargo install "$name" --version "$version" --locked --root "$cache/$name-$version" >&2
  fi
  printf '%s' "$cache/$name-$version/bin/$name"
}

version=${1:-$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)-1}
[[ $version == *-* ]] || fail "$version is no version with a release, such as 0.2.0-2"
# It knows which packages the libraries come from.
command -v dpkg-shlibdeps >/dev/null || fail "there is no dpkg-shlibdeps: install dpkg-dev"

cargo_deb=$(tool cargo-deb "$cargo_deb_version")
cargo_generate_rpm=$(tool cargo-generate-rpm "$cargo_generate_rpm_version")

say "Building conserver"
cargo build --release --locked

say "Writing the manual, completions and the file of settings"
rm -rf "$generated"
cargo run --quiet --locked --example generate -- "$generated"
gzip -9n --keep "$generated"/man/*
gzip -9nc CHANGELOG.md >"$generated/changelog.gz"
strip -o "$generated/conserver" target/release/conserver

say "Building the packages"
"$cargo_deb" --no-build --deb-version "$version" --output "$packages/"
"$cargo_generate_rpm" --output "$packages/" \
  --set-metadata "version = \"${version%-*}\"" --set-metadata "release = \"${version##*-}\""

say "Built"
ls -l "$packages"/*.deb "$packages"/*.rpm
