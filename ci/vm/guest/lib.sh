# shellcheck shell=bash
# What the suites share: volumes, connecting and looking at the host's side.
#
# Two volumes are served, named by their block size: `4k` and `512`, each by a target of its own (see target-*.sh).

readonly ADDRESS=127.0.0.1
# Seconds; the default is 5, which a guest of four processors on a busy machine of two may miss without anybody's fault.
readonly KEEP_ALIVE=15

port_of() { [[ $1 == 4k ]] && echo 4420 || echo 4421; }
block_size_of() { [[ $1 == 4k ]] && echo 4096 || echo 512; }

# Back to where every check begins: no load, no mounts, no controllers, both targets up.
tidy() {
    # A check that failed may have left its load; where that waits for a device, disconnecting ends it.
    killall -q -9 fio || true
    if mountpoint -q /mnt; then umount /mnt; fi
    if compgen -G '/sys/class/nvme/nvme*' >/dev/null; then command nvme disconnect-all; fi
    local volume
    for volume in 4k 512; do target_up "$volume" || target_start "$volume"; done
}

discovered() { nvme discover -t tcp -a "$ADDRESS" -s "$(port_of "$1")" -o json; }

# The NQN of the only NVM subsystem that the target of volume $1 names in discovery; asked once, for that takes a while.
nqn_of() {
    local kept=$RUN/nqn-$1
    if [[ ! -s $kept ]]; then
        command nvme discover -t tcp -a "$ADDRESS" -s "$(port_of "$1")" |
            awk '/^subtype:/ { nvm = /nvme subsystem/ } /^subnqn:/ && nvm { print $2; exit }' >"$kept"
    fi
    [[ -s $kept ]] || fail "discovery names no subsystem for volume $1"
    cat "$kept"
}

# Connects to volume $1 with further options $2... of nvme connect and waits for the block device.
connect() {
    local volume=$1 nqn
    shift
    nqn=$(nqn_of "$volume")
    nvme connect -t tcp -a "$ADDRESS" -s "$(port_of "$volume")" -n "$nqn" --keep-alive-tmo="$KEEP_ALIVE" "$@"
    eventually 10 settled "$volume" || fail "no block device after connect"
}
settled() {
    local device; device=$(device_of "$1")
    # The kernel makes the node, then reads the partition table; opening the device waits for that.
    [[ -b $device ]] && sleep 0.1 && blockdev --getsize64 "$device" >/dev/null
}

# The sysfs directory of the controller connected to volume $1, its name, and the block device of namespace 1.
controller_dir() {
    local directory
    for directory in /sys/class/nvme/nvme*; do
        if [[ -f $directory/address ]] && grep -q "trsvcid=$(port_of "$1")" "$directory/address"; then
            echo "$directory" && return
        fi
    done
    fail "no controller connected to volume $1"
}
controller_of() { basename "$(controller_dir "$1")"; }
device_of() {
    # With native multipath the namespace belongs to the subsystem, whose number need not be the controller's.
    local directory subsystem
    directory=$(controller_dir "$1")
    for subsystem in /sys/class/nvme-subsystem/nvme-subsys*; do
        if [[ -e $subsystem/$(basename "$directory") ]]; then
            echo "/dev/nvme${subsystem##*nvme-subsys}n1" && return
        fi
    done
}
state_of() { cat "$(controller_dir "$1")/state"; }

# Repeats a command until it succeeds, for at most $1 seconds. Only a look that began after them decides: an emulated
# processor may lose its timer and stand still for longer than that, and what was seen before then says nothing.
eventually() {
    local limit=$1 began=$SECONDS looked last
    shift
    for ((last = 0; ; )); do
        looked=$SECONDS
        if "$@"; then return 0; fi
        if ((last)); then return 1; fi
        sleep 0.05
        if ((SECONDS - looked > 3)); then stood_still $((SECONDS - looked)); fi
        last=$((SECONDS - began >= limit))
    done
}
# Leaves a note for the line of results.
stood_still() { echo "the guest stood still for $1 s" | tee -a "$RUN/still"; }

# Fails unless all the jq expressions $2... hold on the JSON in file $1; names the first that does not, and what it saw.
# One call for many, because jq takes half a second to start in emulation.
holds() {
    local file=$1 expression program='' false expressions=0
    shift
    # An expression without a result, or with one that is false, does not hold.
    for expression in "$@"; do program+="if ([$expression] | length > 0 and all) then empty else \$ARGS.positional[$((expressions++))] end, "; done
    false=$(jq -r "first(${program}empty)" "$file" --args "$@") || fail "no JSON as expected: $(head -c 300 "$file")"
    [[ -z $false ]] || fail "not so: $false; got: $(jq -c . "$file" | cut -c 1-1500)"
}

# Fails unless two values are equal; $3 says what they are.
same() { [[ $1 == "$2" ]] || fail "$3: $1 instead of $2"; }

# Runs fio on file or device $1 with options $2... and fails on any error in its report, which is left in $RUN/fio.
run_fio() {
    start_fio "$@" || fail "fio: $(grep -m 1 -iE 'verify:|err' "$RUN/fio" || tail -n 1 "$RUN/fio")"
    [[ $(fio_error) == 0 ]] || fail "fio: $(grep -m 1 'verify:' "$RUN/fio" || grep '"error"' "$RUN/fio")"
}
start_fio() {
    local file=$1
    shift
    # No state files: they would be made in the directory of all checks.
    fio --name=check --verify_state_save=0 --filename="$file" --ioengine=libaio --direct=1 --verify_fatal=1 --randseed=7 \
        --output-format=json --output="$RUN/fio" "$@"
}
# The first error number that it met, or 0.
fio_error() { awk '$1 == "\"error\"" { print $3 + 0; exit }' "$RUN/fio"; }
# The bytes that the last fio moved: $1 is read or write.
fio_bytes() { awk -v part="\"$1\"" '$1 == part { found = 1 } found && $1 == "\"io_bytes\"" { print $3 + 0; exit }' "$RUN/fio"; }

# One restart of the target of volume $2, after $4 seconds, while process $1 loads it.
restart_under() {
    local load=$1 volume=$2 how=$3
    sleep "$4"
    kill -0 "$load" || fail 'the load ended before the restart'
    "target_$how" "$volume"
    eventually 15 in_state "$volume" connecting || fail "the host did not notice: state $(state_of "$volume")"
    sleep 0.3
    target_start "$volume"
    eventually 30 in_state "$volume" live || fail "the host did not come back: state $(state_of "$volume")"
    kill -0 "$load" || fail 'the load ended during the restart'
}
in_state() { [[ $(state_of "$1") == "$2" ]]; }

# What the host's driver says of a lost connection, and no more than that: not `I/O error`, not `timeout`.
expect_lost_connection() {
    expect_kernel 'nvme nvme[0-9]+: (starting error recovery|failed to connect socket: -111|failed to send request -(32|104)|queue [0-9]+: .*)$'
    expect_kernel 'block nvme[0-9]+n1: no usable path - requeuing I/O$'
    expect_kernel 'nvme_ns_head_submit_bio: [0-9]+ callbacks suppressed$'
    # A keep-alive that meets a connection on its way down ends unsent; its round trip is then counted from the one before.
    expect_kernel 'nvme nvme[0-9]+: (long keepalive RTT \([0-9]+ ms\)|failed nvme_keep_alive_end_io error=10)$'
}

# Writes to device $1 at random with fio options $2..., then reads all of it again and compares checksums: two runs of fio
# with one random sequence.
write_then_verify() {
    local file=$1 bytes
    shift
    run_fio "$file" --rw=randwrite --verify=crc32c --do_verify=0 "$@"
    bytes=$(fio_bytes write)
    ((bytes > 0)) || fail 'fio wrote nothing'
    midway "$file"
    run_fio "$file" --rw=randwrite --verify=crc32c --verify_only=1 "$@"
    same "$(fio_bytes read)" "$bytes" 'bytes verified'
}

# Spoils one block at byte $2 of device $1, as a target that loses a write would.
spoil() { dd if=/dev/urandom of="$1" bs=4096 count=1 seek="$(($2 / 4096))" oflag=direct conv=notrunc status=none; }

# A tree of files under $1: $2 directories of 8 files, sizes from 0 to 1 MiB, with their checksums in $RUN/sums.
write_tree() {
    local root=$1 directories=$2 directory file
    for ((directory = 0; directory < directories; directory++)); do
        mkdir -p "$root/d$directory/sub"
        for file in 0 1 511 4096 5000 65536 300000 1048576; do
            head -c "$file" /dev/urandom >"$root/d$directory/sub/f$file"
        done
        ln "$root/d$directory/sub/f4096" "$root/d$directory/link"
        ln -s sub/f5000 "$root/d$directory/symlink"
    done
    (cd "$root" && find . -type f -exec sha256sum {} + | sort) >"$RUN/sums"
}

check_tree() { (cd "$1" && sha256sum --quiet -c "$RUN/sums") || fail "checksums differ: $(tail -n 1 "$RUN/log")"; }

# For sabotages: the JSON that `nvme $1` prints goes through the jq program $2, as if the target had said that.
lying() {
    lie_about=$1 lie=$2
    nvme() {
        if [[ $1 == "$lie_about" && $* == *json* ]]; then command nvme "$@" | jq "$lie"; else command nvme "$@"; fi
    }
}

# Whether $3 bytes at byte $2 of device $1 are zero.
zero() { piece "$@" | cmp -n "$3" - /dev/zero; }
# Reads $3 bytes at byte $2 of device $1, past the page cache.
piece() { dd if="$1" bs=1M iflag=direct,skip_bytes,count_bytes skip="$2" count="$3" status=none; }

# What was discarded reads as DLFEAT promises (NVMe Base 2.0, Identify Namespace, bits 2:0): 1 zeroes, 2 ones; with 0 it may
# be anything, but the same each time.
reads_as_discarded() {
    local promise; promise=$(($(nvme id-ns "$1" | awk '$1 == "dlfeat" { print $3 }') % 8))
    echo "DLFEAT $promise"
    case $promise in
    0) [[ $(piece "$@" | sha256sum) == "$(piece "$@" | sha256sum)" ]] || fail 'a discarded range reads differently each time' ;;
    1) zero "$@" || fail 'a discarded range is not zero' ;;
    2) piece "$@" | tr '\377' '\0' | cmp -n "$3" - /dev/zero || fail 'a discarded range is not all ones' ;;
    *) fail "DLFEAT $promise is reserved" ;;
    esac
}
