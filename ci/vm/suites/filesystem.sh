# shellcheck shell=bash
# A file system on each volume: made, filled, checked, trimmed.
CHECKS=5
LIMIT=400

# mkfs (which discards the whole device first), a tree of files, unmount, fsck, mount again, checksums.
filesystem() {
    local device
    connect "$1"
    device=$(device_of "$1")
    mkfs.ext4 -q -F "$device"
    mount "$device" /mnt
    write_tree /mnt 12
    umount /mnt
    midway "$device"
    e2fsck -fn "$device"
    mount "$device" /mnt
    check_tree /mnt
    umount /mnt
}
# On one volume a block of metadata, for fsck to find; on the other a block of data, which only the checksums can find.
sabotage_filesystem() {
    case $1 in
    4k) midway() { spoil "$1" "$(inode_table_of "$1")"; } ;;
    512) midway() { mount "$1" /mnt && place=$(place_of /mnt/d3/sub/f1048576) && umount /mnt && spoil "$1" "$place"; } ;;
    esac
}
inode_table_of() { echo $(($(dumpe2fs "$1" 2>/dev/null | sed -n 's/.*Inode table at \([0-9]*\).*/\1/p' | head -n 1) * 4096)); }

# The byte of the device where file $1 begins.
place_of() { echo $(($(filefrag -v -b4096 "$1" | awk '$1 == "0:" { print $4 + 0 }') * 4096)); }

# Files deleted, fstrim: at least their bytes are trimmed, they read as the namespace promises (DLFEAT), other files stay.
trim() {
    local device place trimmed
    connect "$1"
    device=$(device_of "$1")
    mkfs.ext4 -q -F "$device"
    mount "$device" /mnt
    write_tree /mnt 4
    head -c 33554432 /dev/urandom >/mnt/large
    sync /mnt/large
    place=$(place_of /mnt/large)
    rm /mnt/large
    sync
    trimmed=$(fstrim -v /mnt | sed 's/.*(\([0-9]*\) bytes).*/\1/')
    ((trimmed >= 33554432)) || fail "fstrim trimmed $trimmed bytes"
    umount /mnt
    reads_as_discarded "$device" "$place" 1048576
    e2fsck -fn "$device"
    mount "$device" /mnt
    check_tree /mnt
    umount /mnt
}
sabotage_trim() { fstrim() { echo '/mnt: 1 KiB (1024 bytes) trimmed'; }; }

for volume in 4k 512; do check "filesystem_$volume" filesystem "$volume"; done
for volume in 4k 512; do check "fstrim_$volume" trim "$volume"; done
check kernel_log kernel_log
