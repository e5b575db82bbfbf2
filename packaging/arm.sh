#!/usr/bin/env bash
# Build optplug for ARM (aarch64), and run tests and the demo in a Debian whose Python qemu emulates.
#
#     packaging/arm.sh [TESTS [FOLDER]]
#
# TESTS is what ctest -R takes: by default C tests, and the numbers of steps without Python.
# FOLDER, build/arm by default, takes up to 8 GB and is kept for the next run.  It needs root on an x86_64, and of
# Debian or Ubuntu the packages debootstrap, debian-archive-keyring, qemu-user-static and binfmt-support; on a
# machine that is an ARM, `cmake --workflow --preset test` does more.
set -eu
project=$(cd "$(dirname "$0")/.." && pwd)
core='averages|closures|gradients|guest|plans|scarce|schedules|staged|step' # without those that watch stderr
tests=${1:-"^(test_($core)|(plans|records|lbfgs)\.py)$"}
folder=${2:-$project/build/arm}
root=$folder/root
release=bookworm python=3.11 # its own

[ "$(id -u)" = 0 ] || { echo "$0: needs root, for chroot" >&2; exit 1; }
# In a container nobody has mounted this, or told the kernel.
[ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc 2>/dev/null || true
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64 2>/dev/null || true
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || { echo "$0: needs qemu-user-static, and its binfmt" >&2; exit 1; }

# Run a command there; what is mounted for it goes with it.  In /proc and /sys torch looks for an ARM's processors:
# on this machine's it crashes, and without any it says so on stderr, where tests look; so there are two of qemu's.
inside() {
  # shellcheck disable=SC2016 # it is the inner shell's
  unshare --mount sh -c 'mount -t proc proc "$0/proc" && mount --bind "$0/cpuinfo" "$0/proc/cpuinfo" &&
    mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"' \
    "$root" env -C /optplug HOME=/root CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++ \
    OMP_WAIT_POLICY=passive PIP_NO_INDEX=1 "$@"
}

# The compilers and make are this machine's, which takes a tenth of the time; Python and what is made are ARM's.
# apt cannot install the package with venv: it looks for what that needs, which is of no architecture, for ARM.
if [ ! -e "$folder/made" ]; then
  debootstrap --variant=minbase --include=gcc-aarch64-linux-gnu,g++-aarch64-linux-gnu,make,cmake \
    $release "$root" http://deb.debian.org/debian
  # shellcheck disable=SC2016 # it is the inner shell's
  unshare --mount sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' \
    "$root" env -C /tmp DEBIAN_FRONTEND=noninteractive sh -e -c '
      dpkg --add-architecture arm64
      apt-get update -qq
      apt-get install -qq --no-install-recommends \
        python3-dev:arm64 libgomp1:arm64 libstdc++6:arm64 python3-pip-whl python3-setuptools-whl
      apt-get download "python$0-venv:arm64"
      dpkg --extract python*-venv_*.deb /' $python
  touch "$folder/made"
fi
processors=$root/sys/devices/system/cpu
mkdir -p "$root/optplug" "$processors"/cpu{0,1}/regs/identification
echo 0-1 | tee "$processors"/{possible,present} >/dev/null
echo 0x00000000000f0510 | tee "$processors"/cpu{0,1}/regs/identification/midr_el1 >/dev/null # qemu's
for processor in 0 1; do # the same in words
  printf '%s\n' "processor : $processor" "Features : fp asimd aes pmull sha1 sha2 crc32 cpuid" \
    "CPU implementer : 0x00" "CPU architecture: 8" "CPU variant : 0x0" "CPU part : 0x051" "CPU revision : 0" ""
done >"$root/cpuinfo"
git -C "$project" ls-files -z | tar -C "$project" --null -T - -c | tar -C "$root/optplug" -x

inside cmake --preset default
site=$root/optplug/build/venv/lib/python$python/site-packages
if [ ! -d "$site/torch" ]; then # by this machine's own pip, which takes a tenth of the time
  platforms=(--platform manylinux2014_aarch64)
  for minor in {17..36}; do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
  python3 -m pip install --target "$site" --upgrade \
    --only-binary=:all: --implementation cp --python-version $python "${platforms[@]}" \
    -c "$project/constraints.txt" torch numpy cffi scikit-build-core matplotlib pytest hypothesis
fi
inside cmake --build build --target package demo
# Those of build/tests alone, with the hosts that tests in Python run: to compile all takes too long.
programs=$(inside make -C build/tests help | sed -n 's/^\.\.\. //p' | grep -E "$tests|^host(_dlopened)?$")
# shellcheck disable=SC2086 # they are many
inside make -C build/tests $programs
inside ctest --test-dir build -R "$tests" --output-on-failure
