# shellcheck shell=bash
# What is written is what is read, in all sizes, and discarded, zeroed and compared as asked.
CHECKS=11
LIMIT=400

# Sizes from one block to 1 MiB, most of them in between and not powers of two; larger than the host sends in one command,
# in-capsule and through R2T.
mixed() {
    connect "$1" -i 4
    write_then_verify "$(device_of "$1")" --bsrange="$(block_size_of "$1")-1m" --size=96m --iodepth=16
    write_then_verify "$(device_of "$1")" --bs="$(block_size_of "$1")" --size=2m --offset=200m --iodepth=32
}
sabotage_mixed() { midway() { spoil "$1" $((5 * 1048576)); }; }

# The same with digests, which cover every payload.
mixed_digests() {
    connect "$1" -i 2 --hdr-digest --data-digest
    write_then_verify "$(device_of "$1")" --bsrange="$(block_size_of "$1")-1m" --size=48m --iodepth=16
}
sabotage_mixed_digests() { sabotage_mixed; }

# 16 MiB of data, a part of it discarded: that part reads as promised, what is around it stays.
discard() {
    local device
    connect "$1"
    device=$(device_of "$1")
    fill "$device"
    blkdiscard --offset $((3 * 1048576 + 4096)) --length $((5 * 1048576)) "$device"
    reads_as_discarded "$device" $((3 * 1048576 + 4096)) $((5 * 1048576))
    kept_around "$device" $((3 * 1048576 + 4096)) $((5 * 1048576))
}
# Too much is discarded.
sabotage_discard() { blkdiscard() { command blkdiscard --offset 2097152 --length 12582912 "${@: -1}"; }; }

# Write Zeroes: zero whatever DLFEAT says.
zeroes() {
    local device
    connect "$1"
    device=$(device_of "$1")
    fill "$device"
    blkdiscard --zeroout --offset $((1048576 + 4096)) --length $((2 * 1048576)) "$device"
    zero "$device" $((1048576 + 4096)) $((2 * 1048576)) || fail 'not zero after Write Zeroes'
    kept_around "$device" $((1048576 + 4096)) $((2 * 1048576))
}
sabotage_zeroes() { blkdiscard() { :; }; }

# Fills the first 16 MiB of device $1 with the data that $RUN/data keeps.
fill() {
    head -c 16777216 /dev/urandom >"$RUN/data"
    dd if="$RUN/data" of="$1" bs=1M oflag=direct status=none
}
# What is before byte $2 and after the $3 bytes from there on is as `fill` wrote it.
kept_around() {
    local after=$(($2 + $3))
    dd if="$1" bs=1M count=16 iflag=direct of="$RUN/read" status=none
    cmp -n "$2" "$RUN/data" "$RUN/read" || fail 'data before the range changed'
    cmp -i "$after" "$RUN/data" "$RUN/read" || fail 'data after the range changed'
}

# Compare, from the host's passthrough: equal data succeed, other data fail with Compare Failure.
compare() {
    local device
    connect 4k
    supported 4k oncs 0 || skip 'the target does not offer Compare'
    device=$(device_of 4k)
    fill "$device"
    dd if="$RUN/data" of="$RUN/equal" bs=4096 skip=8 count=2 status=none
    head -c 8192 /dev/zero >"$RUN/other"
    nvme compare "$device" -s 8 -c 1 -z 8192 -d "$RUN/equal" || fail 'Compare of equal data failed'
    midway "$device"
    if nvme compare "$device" -s 8 -c 1 -z 8192 -d "$RUN/other" >"$RUN/out" 2>&1; then fail 'Compare found other data equal'; fi
    grep -qi 'compare failure' "$RUN/out" || fail "Compare: $(tail -n 1 "$RUN/out")"
}
sabotage_compare() { midway() { blkdiscard --zeroout --offset 32768 --length 8192 "$1"; }; }

# A command that the target does not offer is refused with a status and nothing else happens.
write_uncorrectable() {
    local device
    connect 4k
    ! supported 4k oncs 1 || skip 'the target offers Write Uncorrectable'
    device=$(device_of 4k)
    fill "$device"
    if nvme write-uncor "$device" -s 4 -c 0 >"$RUN/out" 2>&1; then fail 'Write Uncorrectable succeeded'; fi
    expect_refused
    grep -qi 'invalid command opcode' "$RUN/out" || fail "Write Uncorrectable: $(tail -n 1 "$RUN/out")"
    midway "$device"
    kept_around "$device" 16384 0
}
sabotage_write_uncorrectable() { midway() { spoil "$1" 16384; }; }

# A write with FUA and a Flush succeed, and the data are there.
fua_and_flush() {
    local device
    connect 512
    device=$(device_of 512)
    head -c 8192 /dev/urandom >"$RUN/data"
    nvme write "$device" -s 100 -c 15 -z 8192 -d "$RUN/data" --force-unit-access
    nvme flush "$device" -n 1
    midway "$device"
    nvme read "$device" -s 100 -c 15 -z 8192 -d "$RUN/read-back" # which does not shorten a longer file
    cmp "$RUN/data" "$RUN/read-back" || fail 'data differ'
}
sabotage_fua_and_flush() { midway() { spoil "$1" 53248; }; }

# Whether bit $3 of the id-ctrl field $2 of volume $1 is set.
supported() {
    local value
    value=$(nvme id-ctrl "/dev/$(controller_of "$1")" | awk -v field="$2" '$1 == field { print $3 }')
    (((value >> $3) & 1))
}

for volume in 4k 512; do check "mixed_sizes_$volume" mixed "$volume"; done
check mixed_sizes_512_digests mixed_digests 512
for volume in 4k 512; do check "discard_$volume" discard "$volume"; done
for volume in 4k 512; do check "write_zeroes_$volume" zeroes "$volume"; done
check compare compare
check write_uncorrectable write_uncorrectable
check fua_and_flush fua_and_flush
check kernel_log kernel_log
