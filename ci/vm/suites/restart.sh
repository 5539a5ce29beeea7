# shellcheck shell=bash
# The target goes away and comes back under verified load; the host waits, reconnects, and finds every byte.
CHECKS=5
LIMIT=600

# Load on volume $1 while its target is ended (by $2: stop or kill) and started again, three times while fio writes and once
# while it verifies. No I/O may fail: the host holds it back until it is connected again.
restarts() {
    local volume=$1 how=$2 device shape bytes load
    expect_lost_connection
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
