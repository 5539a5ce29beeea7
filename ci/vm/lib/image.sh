# shellcheck shell=bash
# The kernel and the initramfs that the guest boots. Uses $here, $repository, $cache, $work, $target and $binary of `run`.

# Modules of the guest, with what they depend on.
readonly MODULES=(virtio_pci virtio_blk ext4 crc32c_generic loop dm-mod dm-flakey tcp_diag nvme-tcp nvmet nvmet-tcp)

# Programs of the guest besides busybox; with the libraries that ldd names.
readonly PROGRAMS=(
    bash nvme fio jq ss ip modprobe mkfs.ext4 fsck.ext4 e2fsck filefrag dumpe2fs blkdiscard fstrim blockdev losetup
    mountpoint timeout sha256sum cmp dd stat truncate setsid dmsetup
)

# Sets $vmlinuz, $modules (a tree with lib/modules) and $kernel (its release). $1: package, or empty for the default one.
find_kernel() {
    local package=$1
    [[ -n $package ]] || package=$(current_kernel)
    [[ -n $package ]] || { as_root apt-get update -qq && package=$(current_kernel); } || true
    # Without package lists (a machine off the network) the kernel of an earlier run will do.
    [[ -n $package ]] || package=$(cd "$cache" && printf '%s\n' linux-image-* | grep -v '\*' | tail -n 1)
    [[ -n $package ]] || { echo "vm: no linux-image package known to apt-get" >&2; exit 1; }
    modules=$cache/$package
    if [[ ! -d $modules ]]; then
        echo "vm: fetching $package"
        rm -rf "$modules.new" && mkdir -p "$modules.new"
        (
            cd "$modules.new" || exit
            # Package lists may be older than the mirror.
            download "$package" || { as_root apt-get update -qq && download "$package"; }
            dpkg-deb -x ./*.deb . && rm -rf ./*.deb usr
            find lib -name '*.ko.xz' -exec xz -d {} +
            depmod -b . "$(ls lib/modules)"
        )
        mv "$modules.new" "$modules"
    fi
    kernel=$(ls "$modules/lib/modules")
    vmlinuz=$modules/boot/vmlinuz-$kernel
}

# linux-image-amd64 is an empty package that depends on the current kernel.
current_kernel() { apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9]\)/\1/p' | sed -n 1p; }
download() { apt-get -qq -o APT::Sandbox::User=root download "$1"; }

# Copies programs $2... into the tree $1, each at its own path, with its libraries.
copy_programs() {
    local tree=$1 program path library
    shift
    for program in "$@"; do
        path=$(command -v "$program") || { echo "vm: no program $program" >&2; exit 1; }
        install -D "$path" "$tree$path"
        # A static program has no libraries: ldd then fails, and says so on stderr.
        { ldd "$path" 2>/dev/null || true; } | grep -o '/[^ ]*' | while read -r library; do
            [[ -e $tree$library ]] || install -D "$library" "$tree$library"
        done
    done
}

copy_modules() {
    local tree=$1 module file
    for module in "${MODULES[@]}"; do
        modprobe -S "$kernel" -d "$modules" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
    done | sort -u | while read -r file; do
        file=$(realpath "$file")
        install -D "$file" "$tree${file#"$(realpath "$modules")"}"
    done
    cp "$modules/lib/modules/$kernel"/modules.{order,builtin,builtin.modinfo} "$tree/lib/modules/$kernel/"
    depmod -b "$tree" "$kernel"
}

# Writes the tree $1 as a cpio archive, not compressed: unpacking costs the emulated processor more than reading.
archive() { (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio --quiet -o -H newc --owner 0:0); }

# Sets $base to an archive of all that does not change from run to run, made anew when a program or the kernel changed.
build_base_image() {
    local key tree=$work/base
    key=$({
        echo "$kernel"
        cat "$here/lib/image.sh"
        for program in busybox "${PROGRAMS[@]}"; do stat -L -c '%n %s %Y' "$(command -v "$program" || echo /)"; done
    } | sha256sum | cut -c 1-16)
    base=$cache/base-$key.cpio
    [[ ! -f $base ]] || return 0
    echo "vm: building the guest's base image"
    mkdir -p "$tree"/{bin,dev,proc,sys,run,tmp,mnt,data,root,etc/nvme,usr/lib/ssl,var/tmp}
    install "$(command -v busybox)" "$tree/bin/busybox"
    # Commands which the programs above do not bring come from busybox; its links must not hide them.
    copy_programs "$tree" "${PROGRAMS[@]}"
    local applet
    for applet in $(busybox --list); do
        local found=0 directory
        for directory in bin sbin usr/bin usr/sbin; do [[ ! -e $tree/$directory/$applet ]] || found=1; done
        ((found)) || ln -s busybox "$tree/bin/$applet"
    done
    # The kernel loads modules by itself through this name.
    [[ -e $tree/sbin/modprobe ]] || { mkdir -p "$tree/sbin" && ln -s "$(command -v modprobe)" "$tree/sbin/modprobe"; }
    # glibc opens this by name when a thread is cancelled (fio does that).
    copy_libgcc "$tree"
    copy_modules "$tree"
    : >"$tree/usr/lib/ssl/openssl.cnf"
    ln -s /run "$tree/var/run"
    echo root:x:0:0::/root:/bin/sh >"$tree/etc/passwd"
    echo root:x:0: >"$tree/etc/group"
    # A host identifier and the NQN that holds it; both fixed, so that the target can allow this host by name.
    echo 6f72f5a8-3c1b-4f0d-9a55-0d4fb0a1c001 >"$tree/etc/nvme/hostid"
    echo nqn.2014-08.org.nvmexpress:uuid:6f72f5a8-3c1b-4f0d-9a55-0d4fb0a1c001 >"$tree/etc/nvme/hostnqn"
    rm -f "$cache"/base-*.cpio
    archive "$tree" >"$base.new" && mv "$base.new" "$base"
}

copy_libgcc() {
    local library
    library=$(ldconfig -p | sed -n 's/.*libgcc_s.so.1 .*x86-64.* => //p' | head -n 1)
    [[ -z $library ]] || install -D "$library" "$1$library"
}

# Writes the initramfs of suite $1 to $2: the base image and, as a second archive, what changes: scripts and binary.
build_image() {
    local suite=$1 tree=$work/overlay-$1
    mkdir -p "$tree/vm" "$tree/etc" "$tree/bin"
    install -m 755 "$here/guest/init" "$tree/init"
    cp "$here"/guest/*.sh "$here/guest/forebay.toml" "$tree/vm/"
    cp "$here/suites/$suite.sh" "$tree/vm/suite.sh"
    cp -r "$repository/bench/fio" "$tree/vm/fio"
    if [[ $target == forebay ]]; then
        copy_programs "$tree" "$binary"
        # Not by its own path: that may lie below a directory where the guest mounts something.
        mv "$tree$binary" "$tree/bin/forebay"
    fi
    { cat "$base"; archive "$tree"; } >"$2"
}
