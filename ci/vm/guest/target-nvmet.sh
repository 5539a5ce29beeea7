# shellcheck shell=bash
# The kernel's own target in Forebay's place: it tests the rig.

readonly CONFIG=/sys/kernel/config/nvmet

# Linux 6.1's target leaves a read past the end to the block device beneath, which complains.
readonly PAST_END='Internal Error'
expect_past_end() { expect_kernel 'attempt to access beyond end of device'; }
expect_refused() { expect_kernel 'nvmet_tcp: failed cmd'; }
expect_restart() { expect_kernel 'nvmet_tcp: queue [0-9]+ unhandled state'; }

backing_of() { [[ $1 == 4k ]] && echo /data/nvmet-4k || echo /dev/vdb; }

target_prepare() {
    modprobe nvmet-tcp
    mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
    truncate -s 1G /data/nvmet-4k
    local volume port subsystem
    for volume in 4k 512; do
        subsystem=$CONFIG/subsystems/nqn.2026-01.test.vm:$volume
        mkdir -p "$subsystem/namespaces/1"
        echo 1 >"$subsystem/attr_allow_any_host"
        tr -d '\n' </proc/sys/kernel/random/uuid >"$subsystem/namespaces/1/device_nguid"
        backing_of "$volume" >"$subsystem/namespaces/1/device_path"
        echo 1 >"$subsystem/namespaces/1/enable"
        port=$CONFIG/ports/$(port_of "$volume")
        mkdir "$port"
        echo tcp >"$port/addr_trtype"
        echo ipv4 >"$port/addr_adrfam"
        echo "$ADDRESS" >"$port/addr_traddr"
        port_of "$volume" >"$port/addr_trsvcid"
        target_start "$volume"
    done
}

link_of() { echo "$CONFIG/ports/$(port_of "$1")/subsystems/nqn.2026-01.test.vm:$1"; }
target_up() { [[ -L $(link_of "$1") ]]; }
target_start() { ln -s "$CONFIG/subsystems/nqn.2026-01.test.vm:$1" "$(link_of "$1")"; }
# Taking a port's last subsystem away closes its listener and all connections, which is what the host sees of a killed daemon.
target_kill() { rm "$(link_of "$1")"; }
target_stop() { target_kill "$1"; }
target_log() { echo "nvmet writes to the kernel log"; }
