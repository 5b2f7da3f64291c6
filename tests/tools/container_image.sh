#!/usr/bin/env bash
# Writes the file system of a container image to standard output, as tar. With podman it takes the place of AWS's own
# image: the C library and the root certificates of this machine, which are all that a function's binary needs, and what
# SAM calls while it adds its runtime emulator (sh, mv, chmod). The argument is a binary whose libraries go in.
set -euo pipefail

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

copy() { mkdir -p "$root$(dirname "$1")"; cp -L "$1" "$root$1"; }

chmod 755 "$root"
mkdir -p "$root/tmp" "$root/usr/bin"
ln -s usr/bin "$root/bin"
for program in sh mv chmod; do
  found=$(readlink -f "$(command -v "$program")")
  cp "$found" "$root/usr/bin/$program"
  ldd "$found"
done >"$root/tmp/libraries"
ldd "$1" >>"$root/tmp/libraries"
grep -oE '/[^ ]+' "$root/tmp/libraries" | sort -u | while read -r library; do copy "$library"; done
rm "$root/tmp/libraries"
for certificates in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
  test ! -e "$certificates" || copy "$certificates"
done
tar -C "$root" -c .
