# shellcheck shell=bash
# The target goes away and comes back under verified load; the host waits, reconnects, and finds every byte.
CHECKS=5
LIMIT=600

# Load on volume $1 while its target is ended (by $2: stop or kill) and started again, three times while fio writes and once
# while it verifies. No I/O may fail: the host holds it back until it is connected again.
restarts() {
    local volume=$1 how=$2 device shape bytes load
    # What the host's driver says of a lost connection, and no more than that: not `I/O error`, not `timeout`.
    expect_kernel 'nvme nvme[0-9]+: (starting error recovery|failed to connect socket: -111|failed to send request -(32|104)|queue [0-9]+: .*)$'
    expect_kernel 'block nvme[0-9]+n1: no usable path - requeuing I/O$'
    expect_kernel 'nvme_ns_head_submit_bio: [0-9]+ callbacks suppressed$'
    # A keep-alive that meets a connection on its way down ends unsent; its round trip is then counted from the one before.
    expect_kernel 'nvme nvme[0-9]+: (long keepalive RTT \([0-9]+ ms\)|failed nvme_keep_alive_end_io error=10)$'
    expect_restart
    connect "$volume" -i 4 --reconnect-delay=1 --ctrl-loss-tmo=60
    device=$(device_of "$volume")
    shape=(--bssplit=4k/40:16k/30:64k/20:256k/10 --size=64m --iodepth=8 --rw=randwrite --verify=crc32c)
    # The rate makes it last: about 20 s of writing, longer than three restarts on a busy machine.
    run_fio "$device" "${shape[@]}" --do_verify=0 --rate=3200k,3200k &
    load=$! # starting the target changes $!
    for _ in 1 2 3; do restart_under "$load" "$volume" "$how" 2; done
    wait "$load"
    bytes=$(fio_bytes write)
    midway "$device"
    run_fio "$device" "${shape[@]}" --verify_only=1 --rate=8m,8m &
    load=$!
    restart_under "$load" "$volume" "$how" 1
    wait "$load"
    same "$(fio_bytes read)" "$bytes" 'bytes verified'
}

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

# Lost data after stop; a host that gives up at once after kill, so that I/O fails.
sabotage_restarts() {
    case $2 in
    stop) midway() { spoil "$1" 5242880; } ;;
    kill) nvme() { if [[ $1 == connect ]]; then command nvme "$@" --ctrl-loss-tmo=0; else command nvme "$@"; fi; } ;;
    esac
}

for how in stop kill; do
    for volume in 4k 512; do check "${how}_and_restart_$volume" restarts "$volume" "$how"; done
done
check kernel_log kernel_log
