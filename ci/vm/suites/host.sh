# shellcheck shell=bash
# What an administrator does with nvme-cli: discover, connect in every way, look at all that the target says of itself.
CHECKS=23
LIMIT=400

# --- discovery

discover() {
    local out=$RUN/out port
    port=$(port_of "$1")
    discovered "$1" >"$out"
    holds "$out" '.genctr >= 0' '[.records[] | select(.subtype == "nvme subsystem")] | length == 1' \
        ".records[] | select(.subtype == \"nvme subsystem\") |
        .trtype == \"tcp\" and .adrfam == \"ipv4\" and .traddr == \"$ADDRESS\" and .trsvcid == \"$port\" and (.subnqn | startswith(\"nqn.\"))"
}
sabotage_discover() { lying discover '.records[].trsvcid = "4"'; }

# --- connect: queues, digests, submission queue flow control

# Connects with $1 queues, digests on or off ($2), flow control on or off ($3), and sees by the bytes on the wire that the
# connection speaks so: a read of 4 KiB comes back as one C2HData and one response capsule, 24 bytes of header each; digests
# add 4 bytes to each header and to the data (NVMe/TCP transport 1.0 §3.3.1). A target may leave out the capsule (SUCCESS flag)
# only without flow control.
connect_with() {
    local queues=$1 digests=$2 flow=$3 options=(-i "$1") data=4120 response=24 device before bytes
    [[ $digests == off ]] || options+=(--hdr-digest --data-digest) data=$((data + 8)) response=28
    [[ $flow == on ]] || options+=(--disable-sqflow)
    connect 4k "${options[@]}"
    same "$(<"$(controller_dir 4k)/queue_count")" $((queues + 1)) 'queues, the admin queue included'
    device=$(device_of 4k)
    before=$(received)
    dd if="$device" of=/dev/null bs=4096 count=256 iflag=direct status=none
    # Keep-alive responses come in between; 256 reads make them less than one byte of each.
    bytes=$((($(received) - before) / 256))
    echo "a read costs $bytes bytes"
    if [[ $flow == on ]] || ((bytes != data)); then same "$bytes" $((data + response)) 'bytes received for a read'; fi
    write_then_verify "$device" --bs=16k --size=4m --iodepth=8
}
# Bytes that the host's sockets to volume 4k have received.
received() {
    ss -tinH "dport = :$(port_of 4k)" | grep -o 'bytes_received:[0-9]*' | awk -F: '{ n += $2 } END { print n }'
}
# One queue too few, or digests the other way round, or SUCCESS where it is not allowed.
sabotage_connect_with() {
    case $* in
    '1 off on') swap=--disable-sqflow ;;
    4*) swap=--nr-io-queues=3 ;;
    *on*) swap=drop ;;
    *) swap=--hdr-digest ;;
    esac
    nvme() {
        local argument arguments=()
        for argument in "$@"; do [[ $swap == drop && $argument == *-digest ]] || arguments+=("$argument"); done
        [[ $1 != connect || $swap == drop ]] || arguments+=("$swap")
        command nvme "${arguments[@]}"
    }
}

# --- what the target says of itself

list() {
    local out=$RUN/out device size
    connect 4k && connect 512
    nvme list -o json >"$out"
    holds "$out" '.Devices | length == 2'
    for volume in 4k 512; do
        device=$(device_of "$volume")
        size=$(blockdev --getsize64 "$device")
        holds "$out" ".Devices[] | select(.DevicePath == \"$device\") | .NameSpace == 1 and .PhysicalSize == $size and
            .SectorSize == $(block_size_of "$volume") and .MaximumLBA * .SectorSize == $size and .UsedBytes <= $size and
            (.SerialNumber | length > 0) and (.ModelNumber | length > 0) and (.Firmware | length > 0)"
    done
    nvme list-subsys -o json >"$out"
    holds "$out" "[.[].Subsystems[] | select(.NQN == \"$(nqn_of 4k)\") | .Paths[] | select(.Transport == \"tcp\" and .State == \"live\")] | length == 1"
}
sabotage_list() { lying list '.Devices[1].SectorSize = 520'; }

id_ctrl() {
    local out=$RUN/out
    connect 4k
    nvme id-ctrl "/dev/$(controller_of 4k)" -o json >"$out"
    local expected=(
        ".cntlid == $(<"$(controller_dir 4k)/cntlid") and .subnqn == \"$(nqn_of 4k)\""
        '(.sn | length > 0) and (.mn | length > 0) and (.fr | length > 0)'
        '.ver >= 66304 and .cntrltype == 1' # 1.3, and an I/O controller
        '.sqes == 102 and .cqes == 68 and .icdoff == 0 and .ioccsz >= 4 and .iorcsz >= 1'
        '.kas > 0 and .maxcmd > 0 and .nn > 0 and .sgls % 4 != 0'
        # CMIC bits 1 and 3: more controllers than one, and ANA; then MNAN counts and the ANA fields mean something.
        '(.cmic / 2 | floor) % 2 == 1 and (.cmic / 8 | floor) % 2 == 1'
        '.mnan >= 1 and .mnan <= .nn and .anagrpmax >= .nanagrpid and .nanagrpid >= 1 and .anacap % 2 == 1'
        # ONCS bits 2 and 3: Dataset Management and Write Zeroes.
        '(.oncs / 4 | floor) % 4 == 3'
    )
    holds "$out" "${expected[@]}"
}
sabotage_id_ctrl() { lying id-ctrl '.mnan = 0'; }

id_ns() {
    local out=$RUN/out device volume=$1
    connect "$volume"
    device=$(device_of "$volume")
    nvme id-ns "$device" -o json >"$out"
    same "$(blockdev --getss "$device")" "$(block_size_of "$volume")" 'logical block size'
    holds "$out" "pow(2; .lbafs[.flbas % 16].ds) == $(block_size_of "$volume") and .lbafs[.flbas % 16].ms == 0" \
        ".nsze * $(block_size_of "$volume") == $(blockdev --getsize64 "$device") and .ncap <= .nsze and .nuse <= .ncap" \
        '.nmic % 2 == 1 and .anagrpid >= 1' '.nguid | test("^[0-9a-f]{32}$") and . != "0" * 32'
}
sabotage_id_ns() { lying id-ns '.nsze += 1'; }

# The descriptor list (CNS 03) repeats the NGUID of id-ns, and has the UUID that the host took for its own.
ns_descs() {
    local out=$RUN/out device nguid
    connect 4k
    device=$(device_of 4k)
    nvme ns-descs "$device" -o json >"$out"
    nguid=$(nvme id-ns "$device" | awk '$1 == "nguid" { print $3 }')
    holds "$out" ".[\"ns-descs\"] | any(.type == \"nguid\" and (.nguid | gsub(\"-\"; \"\")) == \"$nguid\")" \
        ".[\"ns-descs\"] | any(.type == \"uuid\" and .uuid == \"$(<"/sys/block/${device#/dev/}/uuid")\")" \
        '.["ns-descs"] | any(.type == "csi" and (.csi | tonumber) == 0)'
}
sabotage_ns_descs() { lying ns-descs '.["ns-descs"] |= map(select(.type != "uuid"))'; }

list_ns() {
    connect 4k
    nvme list-ns "/dev/$(controller_of 4k)" -o json >"$RUN/out"
    holds "$RUN/out" '.nsid_list | map(.nsid) == [1]'
}
sabotage_list_ns() { lying list-ns '.nsid_list += [{nsid: 2}]'; }

# A refused command (a read past the end), then as many entries as the controller claims, whose newest bears the number that
# the SMART log counts to.
error_log() {
    local out=$RUN/out device count entries
    connect 512
    device=$(device_of 512)
    if nvme read "$device" -s $(($(blockdev --getsize64 "$device") / 512)) -c 0 -z 512 >"$RUN/read" 2>&1; then
        fail 'a read past the end succeeded'
    fi
    grep -qi "$PAST_END" "$RUN/read" || fail "a read past the end: $(tail -n 1 "$RUN/read")"
    expect_past_end
    # At most what fits into one command: not every target (6.1's nvmet) heeds the offset that the next one starts from.
    entries=$(($(nvme id-ctrl "$device" | awk '$1 == "elpe" { print $3 }') + 1))
    ((entries <= 64)) || entries=64
    count=$(nvme smart-log "$device" | awk '$1 == "num_err_log_entries" { print $3 }')
    nvme error-log "$device" -e "$entries" -o json >"$out"
    holds "$out" ".errors | length == $entries" "[.errors[].error_count] | max == $count" \
        '[.errors[] | select(.error_count > 0) | .error_count] | . == (unique | reverse)'
}
sabotage_error_log() { lying error-log '.errors[0].error_count += 2'; }

smart_log() {
    local out=$RUN/out device reads units
    connect 512
    device=$(device_of 512)
    nvme smart-log "$device" >"$out"
    reads=$(awk '$1 == "host_read_commands" { print $3 }' "$out")
    units=$(awk '/^[Dd]ata.[Uu]nits.[Rr]ead/ { sub(/.*: */, ""); print $1 + 0 }' "$out")
    dd if="$device" of=/dev/null bs=64k count=64 iflag=direct status=none
    nvme smart-log "$device" -o json >"$out"
    # A data unit is 1000 blocks of 512 B: 4 MiB are 8.2 of them.
    holds "$out" '.critical_warning == 0 and .percent_used <= 100 and .avail_spare >= .spare_thresh and (.media_errors | tonumber) == 0' \
        "(.host_read_commands | tonumber) - ${reads:-none} | . >= 64 and . < 200" \
        "(.data_units_read | tonumber) - ${units:-none} | . >= 8 and . < 20"
}
sabotage_smart_log() { lying smart-log '.host_read_commands = "3"'; }

ana_log() {
    local out=$RUN/out device group
    connect 4k
    device=$(device_of 4k)
    group=$(nvme id-ns "$device" | awk '$1 == "anagrpid:" { print $2 }')
    nvme ana-log "$device" -o json >"$out"
    holds "$out" ".ngrps >= 1 and (.[\"ANA DESC LIST \"] | length) == .ngrps" \
        ".[\"ANA DESC LIST \"][] | select(.grpid == ${group:-0}) | .state == \"optimized\" and (.NSIDS | map(.nsid)) == [1]"
    same "$(cat "$(controller_dir 4k)"/nvme*c*n1/ana_state)" optimized 'state of the path'
}
sabotage_ana_log() { lying ana-log '.["ANA DESC LIST "][0].state = "inaccessible"'; }

fw_log() {
    connect 4k
    nvme fw-log "/dev/$(controller_of 4k)" -o json >"$RUN/out"
    holds "$RUN/out" '.[] | has("Active Firmware Slot (afi)")'
}
sabotage_fw_log() { lying fw-log '.[] = {}'; }

features() {
    local controller value
    connect 4k
    controller=/dev/$(controller_of 4k)
    value=$(feature "$controller" 7)
    (((value & 0xffff) >= 3 && (value >> 16) >= 3)) || fail "number of queues: $value"
    value=$(feature "$controller" 0xf)
    same "$value" $((KEEP_ALIVE * 1000)) 'keep-alive timeout, ms'
    # The kernel asked for the notices that it handles: namespace attributes (bit 8) and ANA change (bit 11).
    value=$(feature "$controller" 0xb)
    (((value & 0x900) == 0x900)) || fail "asynchronous events: $value"
}
feature() { nvme get-feature "$1" -f "$2" | sed -n 's/.*[Vv]alue: *\(0x[0-9a-f]*\)$/\1/p' | { read -r value && echo $((value)); }; }
sabotage_features() { nvme() { command nvme "$@" | sed 's/0x00003a98/0x00001388/'; }; }

# --- disconnect and reconnect

reconnect() {
    local controller device nqn
    connect 4k
    controller=$(controller_of 4k) device=$(device_of 4k) nqn=$(nqn_of 4k)
    head -c 1048576 /dev/urandom >"$RUN/data"
    dd if="$RUN/data" of="$device" bs=64k seek=7 oflag=direct status=none
    nvme disconnect -n "$nqn" >"$RUN/out"
    grep -q 'disconnected 1 controller' "$RUN/out" || fail "nvme disconnect: $(<"$RUN/out")"
    [[ ! -e /sys/class/nvme/$controller && ! -b $device ]] || fail "$controller is still there"
    midway "$device"
    connect 4k
    dd if="$(device_of 4k)" bs=64k skip=7 count=16 iflag=direct status=none | cmp - "$RUN/data" || fail 'data differs after reconnecting'
}
sabotage_reconnect() { midway() { connect 4k && spoil "$(device_of 4k)" $((9 * 65536)) && nvme disconnect-all; }; }

for volume in 4k 512; do check "discover_$volume" discover "$volume"; done
for queues in 1 4; do
    for digests in off on; do
        for flow in on off; do
            check "connect_${queues}_queues_digests_${digests}_sqflow_$flow" connect_with "$queues" "$digests" "$flow"
        done
    done
done
check list list
check id_ctrl id_ctrl
check id_ns_4k id_ns 4k
check id_ns_512 id_ns 512
check ns_descs ns_descs
check list_ns list_ns
check error_log error_log
check smart_log smart_log
check ana_log ana_log
check fw_log fw_log
check features features
check disconnect_reconnect reconnect
check kernel_log kernel_log
