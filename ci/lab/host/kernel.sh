# The guest's kernel: Debian's 6.1, unpacked into the cache and never installed. Later ones panic with the
# emulated IOMMU.

# Prints the cached kernel's folder, which holds vmlinux and lib/modules/.
fetch_kernel() {
    local name version home
    read -r name version <<<"$(newest_kernel)"
    if [ -z "$name" ] && [ "$(id -u)" -eq 0 ]; then
        apt-get update -q >&2
        read -r name version <<<"$(newest_kernel)"
    fi
    if [ -z "$name" ]; then
        say "apt knows no linux-image-6.1.0-*-amd64: add Debian 12 to its sources, or update its lists"
        return 1
    fi
    home=$cache/kernel-${name#linux-image-}_${version//[^A-Za-z0-9.+~-]/_}
    [ -d "$home" ] || unpack_kernel "$name=$version" "$home" || return 1
    echo "$home"
}

# Prints NAME and VERSION of the newest 6.1 kernel package, or nothing where apt knows none. The answer is kept
# until apt's lists change: apt takes two seconds to give it.
newest_kernel() {
    local kept=$cache/newest-kernel name
    if [ ! "$kept" -nt /var/lib/apt/lists ]; then
        name=$(apt-cache pkgnames linux-image-6.1.0- | grep -E '^[a-z-]+-6\.1\.0-[0-9]+-amd64$' |
            sort -V | tail -n 1)
        [ -n "$name" ] || return 0
        echo "$name $(apt-cache policy "$name" | awk '$1 == "Candidate:" { print $2 }')" >"$kept"
    fi
    cat "$kept"
}

unpack_kernel() {
    local package=$1 home=$2
    say "fetching $package"
    rm -rf "$home.part"
    mkdir "$home.part"
    # As root apt would download as its own user, who may not write here.
    (cd "$home.part" && apt-get download -q -o APT::Sandbox::User=root "$package") >&2 || return 1
    dpkg -x "$home.part"/*.deb "$home.part" || return 1
    rm "$home.part"/*.deb
    [ -d "$home.part/lib/modules" ] || { say "$package holds no lib/modules"; return 1; }
    depmod -b "$home.part" "$(kernel_release "$home.part")" || return 1
    extract_vmlinux "$home.part"/boot/vmlinuz-* >"$home.part/vmlinux" || return 1
    mv "$home.part" "$home"
}

# A kernel that has to unpack itself takes five seconds longer to boot under emulation.
extract_vmlinux() {
    local offset
    offset=$(LC_ALL=C grep -obUaP '\xfd7zXZ\x00' "$1" | head -n 1 | cut -d : -f 1)
    [ -n "$offset" ] || { say "$1 is not compressed with xz"; return 1; }
    # xz stops reading where its stream ends, which is no failure.
    xz -dc --single-stream < <(tail -c "+$((offset + 1))" "$1")
}

kernel_release() {
    local modules
    modules=("$1"/lib/modules/*)
    basename "${modules[0]}"
}
