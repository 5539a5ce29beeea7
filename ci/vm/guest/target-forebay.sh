# shellcheck shell=bash
# The daemon as target: volume `4k` by `serve --quickstart`, volume `512` by `serve --config`.
# Every target-*.sh defines target_prepare, target_start, target_stop, target_kill, target_up and target_log; what
# nvme-cli says of a read past the end of the namespace; and what the kernel may say of that, of a
# refused command and of a restart.

readonly START_LIMIT=30 # seconds until the daemon listens, recovery of dirty data included
readonly STOP_LIMIT=30  # seconds until it ends after SIGTERM
readonly PAST_END='LBA Out of Range'
expect_past_end() { :; }
expect_refused() { :; }
expect_restart() { :; }

target_prepare() {
    mkdir -p /data/4k /data/512 /run/forebay
    cp /vm/forebay.toml /etc/forebay.toml
    forebay format 'uring:/data/512/cache?size=512M' >>/run/forebay/512.log 2>&1
    local volume
    for volume in 4k 512; do target_start "$volume"; done
}

# Starts the daemon of volume $1 and waits until it listens.
target_start() {
    local volume=$1 arguments=(--config /etc/forebay.toml)
    [[ $volume != 4k ]] || arguments=(--quickstart --dir /data/4k/q)
    (cd "/data/$volume" && exec setsid forebay serve "${arguments[@]}" </dev/null >>"/run/forebay/$volume.log" 2>&1 9>&-) &
    echo $! >"/run/forebay/$volume.pid"
    eventually "$START_LIMIT" target_listens "$volume" ||
        fail "forebay serve ${arguments[*]} does not listen: $(tail -n 1 "/run/forebay/$volume.log")"
}

target_listens() {
    target_up "$1" || fail "forebay for $1 ended: $(tail -n 1 "/run/forebay/$1.log")"
    [[ -n $(ss -tlnH "sport = :$(port_of "$1")") ]]
}

pid_of() { cat "/run/forebay/$1.pid"; }
# Just after the fork the process is still a shell on its way to exec; a dead one has no program at all.
target_up() { [[ -n $(readlink "/proc/$(pid_of "$1")/exe") ]]; }
target_gone() { ! target_up "$1"; }

target_kill() {
    kill -9 "$(pid_of "$1")"
    eventually 10 target_gone "$1" || fail "forebay for $1 outlives SIGKILL"
}

# Asks the daemon to stop, which must not take long.
target_stop() {
    kill "$(pid_of "$1")"
    eventually "$STOP_LIMIT" target_gone "$1" || fail "forebay for $1 does not stop within $STOP_LIMIT s of SIGTERM"
}

target_log() { for log in /run/forebay/*.log; do echo "[$log]" && tail -n 15 "$log"; done; }

# The daemon of volume 512, asked over its control socket.
readonly SOCKET=/run/forebay/512.sock
ask() { forebay --socket "$SOCKET" "$@"; }
# Statistics into $RUN/stat; `forebay stat` ends with 3 where something is wrong.
look() { ask -o json stat >"$RUN/stat" || (($? == 3)); }
# A number or text of them.
stat_of() { jq -r "$1" "$RUN/stat"; }
