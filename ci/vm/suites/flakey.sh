# shellcheck shell=bash
# The daemon's cache and backing devices fail as the guest's kernel makes them fail (dm-flakey), under verified load of the kernel
# host, with kill -9 in between: what was acknowledged is there, and what a device alone had and lost is an error and reported.
CHECKS=5
LIMIT=600

readonly HALF=1048576 # sectors: 512 MiB of /dev/vdb for each of the two devices
readonly MAPPER=/dev/mapper
# What the host's driver says of a read that has no good copy: the status Unrecovered Read Error.
readonly LOST_READ='critical medium error, dev nvme[0-9]+(c[0-9]+)?n1|I/O error, dev nvme[0-9]+(c[0-9]+)?n1|nvme[0-9]+(c[0-9]+)?n1: I/O Cmd|Buffer I/O error on dev nvme|[a-z_]+: [0-9]+ callbacks suppressed'

# Gives device $1 (backing or cache) another behaviour: good, or the arguments of dm-flakey behind device and offset.
# The kernel lets operations under way end, then swaps.
behave() {
    local first=0 line
    [[ $1 == backing ]] || first=$HALF
    line="0 $HALF flakey /dev/vdb $first $2"
    [[ $2 != good ]] || line="0 $HALF linear /dev/vdb $first"
    if [[ -e $MAPPER/$1 ]]; then
        dmsetup reload "$1" --table "$line" || return
        dmsetup resume "$1" --noudevsync || return
    else
        dmsetup create "$1" --noudevsync --noudevrules --uuid "forebay-test-$1" --table "$line" || return
        dmsetup mknodes "$1"
    fi
    echo "$1: $2"
}
readonly WRITES_FAIL='0 3600 1 error_writes' ALL_FAILS='0 3600' BY_TURNS='1 1 1 error_writes' WRITES_LOST='0 3600 1 drop_writes'
# A new write-back volume on blank devices that work; its dirty data waits for the time $1.
fresh() {
    local device
    [[ $TARGET == forebay ]] || skip 'what the kernel serves has no cache'
    rm -rf /data/512/state
    for device in backing cache; do
        behave "$device" good
        blkdiscard "$MAPPER/$device"
    done
    sed -e "s|^device = .*|device = \"uring:$MAPPER/cache\"|" \
        -e "s|^backing = .*|backing = \"uring:$MAPPER/backing\"\ndirty_age_max = \"$1\"\nmemory_tier = \"1MiB\"|" \
        /vm/forebay.toml >/etc/forebay.toml
    forebay format "uring:$MAPPER/cache"
    target_start 512
    connect 512 -i 4 --reconnect-delay=1 --ctrl-loss-tmo=60
}

# Every check begins with devices and a daemon of its own; hosts leave before the daemon does.
tidy() {
    killall -q -9 fio || true
    local device
    for device in backing cache; do [[ ! -e $MAPPER/$device ]] || behave "$device" good; done
    if compgen -G '/sys/class/nvme/nvme*' >/dev/null; then command nvme disconnect-all; fi
    killall -q -9 forebay || true
}

complains() { ask stat >"$RUN/said" || true; grep -q "$1" "$RUN/said"; }
clean() { ask volume drain v512 >/dev/null; }

# fio on a part of device $1: written and verified by the same random sequence. $2 names the part and, with it, the seed.
part() {
    case $1 in
    a) echo --offset=0 --size=12m --randseed=11 ;;
    b) echo --offset=64m --size=12m --randseed=12 ;;
    c) echo --offset=128m --size=16m --randseed=13 ;;
    a2) echo --offset=0 --size=12m --randseed=14 ;;
    all) echo --offset=0 --size=16m --randseed=15 ;;
    esac
}
# The options of a load on part $1.
shape() {
    echo --rw=randwrite --verify=crc32c --bssplit=4k/40:16k/30:64k/20:256k/10 --iodepth=8
    part "$1"
}
load() {
    local device=$1 part=$2
    shift 2
    # shellcheck disable=SC2046 # words are meant
    run_fio "$device" $(shape "$part") "$@"
}
write_part() { load "$@" --do_verify=0; }
verify_part() {
    load "$@" --verify_only=1
    local bytes; bytes=$(fio_bytes read)
    ((bytes > 4194304)) || fail "only $bytes bytes verified"
    verified=$((${verified:-0} + bytes))
}
# Verifies part $2 of device $1, of which some has no copy: sets $unreadable to the reads that failed (EIO, ENODATA). A
# read that ends well is right: a wrong one is another error, and fatal.
verify_lossy() {
    # shellcheck disable=SC2046 # words are meant
    start_fio "$1" $(shape "$2") --verify_only=1 --continue_on_error=io --ignore_error=5:61,5:61 || true
    [[ $(fio_error) =~ ^(0|5|61)$ ]] || fail "fio: $(grep -m 1 'verify:' "$RUN/fio" || grep '"error"' "$RUN/fio")"
    unreadable=$(awk '$1 == "\"total_err\"" { print $3 + 0; exit }' "$RUN/fio")
}

# The backing device fails writes every other second, then all writes, then everything; killed and started again in each. Writes of
# the host all succeed, and the backing device alone has them all after it healed.
backing_fails() {
    local device writer how errors=0
    expect_lost_connection
    fresh 300ms
    device=$(device_of 512)
    write_part "$device" all --rate=300k,300k &
    writer=$!
    for how in "$BY_TURNS" "$WRITES_FAIL" "$ALL_FAILS"; do
        behave backing "$how"
        eventually 30 complains 'backing device of volume v512' || fail "stat does not complain of: $how"
        look
        errors=$((errors + $(stat_of '.volumes[0].backing.errors')))
        restart_under "$writer" 512 kill 0.5
        behave backing good
    done
    wait "$writer"
    echo "written in $SECONDS s"
    clean
    echo "drained in $SECONDS s"
    midway "$device"
    verify_part "$device" all
    command nvme disconnect-all
    # The device itself, without Forebay.
    verify_part "$MAPPER/backing" all
    report "3 ways of failing, 3 kills, $errors errors of the backing device, 0 of the host, $verified bytes verified"
}
sabotage_backing_fails() { midway() { spoil "$1" 5242880; }; }

# The cache device refuses writes under load: those go past it, what was clean and what is new is served, dirty data that only the
# cache has is an error and counted. After a kill -9 the cache is refused until its loss is acknowledged, and nothing stale is served.
cache_fails() {
    local device writer dirty lost status=0
    expect_lost_connection
    # While the volume is down nobody is let in.
    expect_kernel 'nvme nvme[0-9]+: (Connect Invalid Data Parameter, subsysnqn "[^"]*"|failed to connect queue: 0 ret=[0-9]+)$'
    expect_kernel "$LOST_READ"
    fresh 1h
    device=$(device_of 512)
    write_part "$device" a
    clean
    write_part "$device" b
    look
    dirty=$(stat_of '.volumes[0].dirty_bytes')
    ((dirty > 4194304)) || fail "only $dirty bytes are dirty"
    behave cache "$WRITES_FAIL"
    write_part "$device" c --rate=1500k,1500k &
    writer=$!
    eventually 30 complains 'cache device' || fail 'stat does not complain of the cache device'
    look
    lost=$(stat_of '.volumes[0].lost_bytes')
    ((lost >= dirty)) || fail "$lost bytes are reported lost, $dirty were dirty"
    verify_part "$device" a
    verify_lossy "$device" b
    ((unreadable > 0)) || fail 'no read of what is lost failed'
    target_kill 512
    behave cache good
    timeout 30 forebay serve --config /etc/forebay.toml >"$RUN/refused" 2>&1 || status=$?
    same "$status" 5 'exit status of a daemon with a cache that failed'
    grep -q -- --lost-cache "$RUN/refused" || fail 'the refusal does not say what to do'
    forebay format "uring:$MAPPER/cache" --force cache
    target_start 512
    eventually 20 complains 'is down' || fail "the volume serves although its cache is lost: $(cat "$RUN/said")"
    ask volume recover v512 --lost-cache --yes
    wait "$writer"
    midway "$device"
    for part in a c; do verify_part "$device" "$part"; done
    report "$dirty bytes dirty, $lost reported lost, $unreadable reads of them failed, none stale, 0 errors of other I/O," \
        "refused after kill -9, $verified bytes verified"
}
sabotage_cache_fails() { midway() { spoil "$1" 5242880; }; }

# The cache device loses writes and says they were done. Dirty data that is not there is a media error, never an older version:
# found at a read or by scrub, listed, and whole again when it is written anew.
cache_loses_writes() {
    local device damaged status=0
    expect_kernel "$LOST_READ"
    fresh 1h
    device=$(device_of 512)
    write_part "$device" a
    behave cache "$WRITES_LOST"
    write_part "$device" a2
    behave cache good
    verify_lossy "$device" a2
    ((unreadable > 100)) || fail "only $unreadable reads of what the device lost failed"
    ask scrub v512 --rate 1GiB >"$RUN/scrub" || status=$?
    same "$status" 3 'exit status of scrub'
    look
    damaged=$(stat_of '.volumes[0].damaged_bytes')
    ((damaged > 1048576)) || fail "only $damaged bytes are reported damaged"
    ask volume where v512 --lba 0-24575 >"$RUN/where"
    grep -qi lost "$RUN/where" || fail 'volume where lists nothing as lost'
    write_part "$device" a2
    look
    same "$(stat_of '.volumes[0].damaged_bytes')" 0 'damaged bytes after all was written again'
    midway "$device"
    verify_part "$device" a2
    report "$damaged bytes reported damaged, $unreadable reads failed, none stale; $verified bytes verified when written again"
}
sabotage_cache_loses_writes() { midway() { spoil "$1" 5242880; }; }

# 6 MiB of the cache device rot, data and structures: what was clean there comes from the backing device, unseen by the host, and
# is counted.
cache_rots() {
    local device healed
    fresh 300ms
    device=$(device_of 512)
    write_part "$device" a
    clean
    dd if=/dev/urandom of=/dev/vdb bs=1M count=6 seek=$((HALF / 2048 + 4)) oflag=direct conv=notrunc status=none
    midway "$device"
    verify_part "$device" a
    look
    healed=$(stat_of '.volumes[0].healed')
    ((healed > 100)) || fail "only $healed blocks healed"
    same "$(stat_of '.volumes[0].damaged_bytes')" 0 'damaged bytes'
    report "$healed blocks healed, 0 errors of the host, $verified bytes verified"
}
sabotage_cache_rots() { midway() { spoil "$1" 5242880; }; }

target_stop 512
target_stop 4k
if [[ $TARGET == forebay ]]; then
    # The kernel closes the files of a process some time after its end.
    for device in backing cache; do eventually 20 behave "$device" good >"$RUN/devices" 2>&1; done
    kernel_mark # past what the kernel says when it loads its device mapper
fi
check backing_fails backing_fails
check cache_fails cache_fails
check cache_loses_writes cache_loses_writes
check cache_rots cache_rots
check kernel_log kernel_log
