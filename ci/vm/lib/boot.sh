# shellcheck shell=bash
# Boots the guest for one suite, follows its results and judges them. Uses variables of `run` and image.sh.

# The guest's processors: as many as the largest number of I/O queues that a suite asks for, for the host driver opens no
# more queues than processors are online.
readonly PROCESSORS=4

# hardened_usercopy=off: where host and target share a kernel, as here, the host's driver (6.1) sends pages of which neighbours
# melt into one fragment of a packet; where that crosses the end of a huge page, the check of copies takes the receive for an
# attack and kills the receiver (`kernel BUG at mm/usercopy.c`), the kernel's own target as much as a daemon.
readonly KERNEL_ARGUMENTS='console=ttyS0 panic=-1 log_buf_len=8M mitigations=off nokaslr nmi_watchdog=0 hardened_usercopy=off'

# The number that suite $1 declares as $2 (CHECKS or LIMIT).
declared() {
    local value
    value=$(sed -n "s/^$2=\([0-9]*\)\$/\1/p" "$here/suites/$1.sh")
    [[ -n $value ]] || { echo "vm: suites/$1.sh declares no $2=NUMBER" >&2; exit 1; }
    echo "$value"
}

# Two disks, empty and sparse: /dev/vda with ext4 for files of the daemon (a rootfs in memory has no O_DIRECT), and
# /dev/vdb as it is, a backing device of 512 B blocks.
make_disks() {
    truncate -s 32G "$work/vda"
    mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 "$work/vda"
    truncate -s 1G "$work/vdb"
}

start_guest() {
    local limit=$1 log=$2 results=$3 arguments=$4 disk drives=()
    for disk in vda vdb; do
        # cache=unsafe: the machine's power does not fail in these tests, so its own flushes are not waited for.
        drives+=(-drive "if=virtio,format=raw,file=$work/$disk,cache=unsafe,discard=unmap,detect-zeroes=off")
    done
    : >"$results"
    timeout -k 5 "$limit" qemu-system-x86_64 -machine pc -accel tcg,thread=multi -cpu max -smp "$PROCESSORS" -m 3G -nic none \
        -nographic -monitor none -no-reboot -serial "file:$log" -serial "file:$results" "${drives[@]}" \
        -kernel "$vmlinuz" -initrd "$work/initrd" -append "$KERNEL_ARGUMENTS $arguments" </dev/null &
    qemu_pid=$!
}

# Starts the guest until it reaches its own programs, three times at most: under load an emulated processor now and then
# loses its timer while the kernel brings it up (RCU stalls before /init), which says nothing of the target.
boot_guest() {
    local log=$2 try second
    for try in 1 2 3; do
        rm -f "$log"
        start_guest "$@"
        for ((second = 0; second < 90; second++)); do
            if grep -aqs 'Run /init as init process' "$log"; then return 0; fi
            kill -0 "$qemu_pid" 2>/dev/null || break
            sleep 1
        done
        [[ $try != 3 ]] || return 0
        echo "vm: the guest did not reach its own programs; started again"
        kill "$qemu_pid" 2>/dev/null || true
        wait "$qemu_pid" || true
    done
}

# Runs suite $1 and adds its checks to $passed, $failed and $skipped.
run_suite() {
    local suite=$1 limit wanted log=$work/$1.console results=$work/$1.results status=0 began=$SECONDS
    wanted=$(declared "$suite" CHECKS)
    limit=$(declared "$suite" LIMIT)
    ((!sabotage)) || limit=$((limit * 3))
    echo "vm: suite $suite, target $target, kernel $kernel, $wanted checks, limit $limit s"
    build_image "$suite" "$work/initrd"
    make_disks
    boot_guest "$limit" "$log" "$results" "vm.target=$target vm.sabotage=$sabotage"
    tail -n +1 -s 0.2 -f --pid="$qemu_pid" "$results" | sed -u 's/\r$//; /^summary /d; s/^/  /' || true
    wait "$qemu_pid" || status=$?
    qemu_pid=''
    judge "$suite" "$wanted" "$limit" "$status" "$log" <(tr -d '\r' <"$results")
    echo "vm: suite $suite took $((SECONDS - began)) s"
}

# Reads the results of a suite; a guest that did not end its suite, or ran another number of checks, is a failure too.
judge() {
    local suite=$1 wanted=$2 limit=$3 status=$4 log=$5 word name ran=0 summary=''
    while read -r word name; do
        case $word in
        ok) passed+=("${suite}/${name%% *}") ;;
        skip) name=${name%%:*} && skipped+=("${suite}/$name") ;;
        not) name=${name#ok } && failed+=("${suite}/${name%%:*}") ;;
        summary) summary=$name && continue ;;
        *) continue ;;
        esac
        ran=$((ran + 1))
    done <"$6"
    if ((status == 124 || status == 137)); then
        complain "$suite/timeout" "no end within $limit s" "$log"
    elif [[ $summary != "ran=$ran" ]]; then
        complain "$suite/no-summary" "the guest stopped before the end of the suite (QEMU's status $status)" "$log"
    fi
    if ((ran != wanted)); then
        complain "$suite/count" "ran $ran checks, declared $wanted"
    fi
}

# Counts a failure that no check reported: name $1, reason $2, and the tail of the console $3 where that helps.
complain() {
    failed+=("$1")
    echo "  not ok ${1#*/}: $2"
    [[ -z ${3:-} ]] || { echo "  the console's tail:" && tail -n 40 "$3" | sed 's/\r$//; s/^/    /'; }
}
