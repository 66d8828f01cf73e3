#!/usr/bin/env bash
# Installs the Debian packages that building and running need, with "test" also those of the tests; does nothing when all are there.
set -euo pipefail

declare -A need=( # package -> a file that proves it is installed
  [qemu-system-x86]=/usr/bin/qemu-system-x86_64
  [ovmf]=/usr/share/OVMF/OVMF_CODE_4M.fd
  [swtpm]=/usr/bin/swtpm
  [swtpm-tools]=/usr/bin/swtpm_setup
  [gcc]=/usr/bin/gcc
  [libc6-dev]=/usr/include/stdlib.h
  [libseccomp-dev]=/usr/include/seccomp.h
  [pkg-config]=/usr/bin/pkg-config
  [protobuf-compiler]=/usr/bin/protoc
  [xz-utils]=/usr/bin/xz
  [debian-archive-keyring]=/usr/share/keyrings/debian-archive-keyring.gpg
)
if [ "${1:-}" = test ]; then
  need[postgresql]=/usr/lib/postgresql
  need[softhsm2]=/usr/bin/softhsm2-util
  need[chromium]=/usr/bin/chromium
  need[containernetworking-plugins]=/usr/lib/cni/bridge
  need[iproute2]=/usr/sbin/tc
  need[qemu-system-common]=/usr/lib/qemu/virtiofsd
  need[iptables]=/usr/sbin/iptables
  need[containerd]=/usr/bin/containerd
  need[runc]=/usr/sbin/runc
  need[busybox-static]=/bin/busybox
  need[e2fsprogs]=/usr/sbin/e2fsck
  need[cryptsetup-bin]=/usr/sbin/veritysetup
  need[fdisk]=/usr/sbin/sfdisk
  need[qemu-utils]=/usr/bin/qemu-img
  need[erofs-utils]=/usr/bin/mkfs.erofs
fi
missing=()
for package in "${!need[@]}"; do
  [ -e "${need[$package]}" ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "deps: all packages are installed"
  exit 0
fi
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort)

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
  else
    echo "deps: missing packages: ${missing[*]}" >&2
    echo "hint: as root, run: apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
fi
echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
if [[ " ${missing[*]} " == *" containerd "* ]] && ! [ -e /usr/sbin/policy-rc.d ]; then
  # Tests start daemons of their own: the package's service is not wanted. What says so to the package goes afterwards.
  trap '"${as_root[@]}" rm -f /usr/sbin/policy-rc.d' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin /usr/sbin/policy-rc.d
fi
"${as_root[@]}" apt-get update -q
"${as_root[@]}" apt-get install -qy --no-install-recommends "${missing[@]}"
