# The guest's first file system: busybox, guest/init, and the modules that it takes to mount the host's files.
# All other modules are loaded from there.

early_modules=(virtio_pci 9p 9pnet_virtio overlay)

# Prints the initramfs for the kernel in folder $1, built unless the cache has that very one.
build_initramfs() {
    local kernel=$1 key image
    key=$({ basename "$kernel"; cat "$lab/guest/init" "$lab/host/initramfs.sh" "$(command -v busybox)"; } | sha256sum)
    image=$cache/initramfs-${key:0:16}
    [ -e "$image" ] || pack_initramfs "$kernel" "$image" || return 1
    echo "$image"
}

pack_initramfs() {
    local kernel=$1 image=$2 root=$2.root release file
    release=$(kernel_release "$kernel")
    rm -rf "$root"
    mkdir -p "$root"/{bin,sbin,modules,proc,sys,dev,host,overlay,root}
    cp "$(command -v busybox)" "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    install -m 755 "$lab/guest/init" "$root/init"
    # The kernel loads modules by this name, from its first root: it shall find all of them.
    printf '#!/bin/sh\nexec /bin/busybox chroot /root /sbin/modprobe "$@"\n' >"$root/sbin/modprobe"
    chmod 755 "$root/sbin/modprobe"
    modprobe -d "$kernel" -S "$release" --show-depends -a "${early_modules[@]}" |
        awk '$1 == "insmod" && !seen[$2]++ { print $2 }' |
        while read -r file; do
            cp "$file" "$root/modules/"
            basename "$file" >>"$root/modules/order"
        done || return 1
    (cd "$root" && find . | cpio --quiet -o -H newc) >"$image.part" || return 1
    rm -rf "$root"
    mv "$image.part" "$image"
}
