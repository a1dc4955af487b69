# What the lab needs from the machine: installed when root, named otherwise.

# Appends PACKAGE to `missing` unless COMMAND is there.
need() {
    command -v "$1" >/dev/null || missing+=("$2")
}

install_packages() {
    local rxe=$1 missing=()
    need qemu-system-x86_64 qemu-system-x86
    need busybox busybox-static
    need cpio cpio
    need modprobe kmod
    need xz xz-utils
    if $rxe; then
        need ip iproute2
        need rdma iproute2
        need ibv_devices ibverbs-utils
        need rping rdmacm-utils
        need ib_read_bw perftest
        [ -e /etc/libibverbs.d/rxe.driver ] || missing+=(ibverbs-providers)
    fi
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        say "please install: ${missing[*]}"
        return 1
    fi
    say "installing ${missing[*]}"
    if ! apt_install "${missing[@]}" >"$cache/packages.log" 2>&1; then
        tail -n 20 "$cache/packages.log" >&2
        return 1
    fi
}

apt_install() {
    apt-get update -q && DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q -o DPkg::Lock::Timeout=300 --no-install-recommends "$@"
}
