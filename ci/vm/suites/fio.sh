# shellcheck shell=bash
# Every profile of bench/fio, short, by the script that users run them with: no I/O fails, each job does what its name says, and
# its logs bear the names that fio-plot looks for. The profile that verifies notices wrong data.
CHECKS=16
LIMIT=600

readonly PROFILES=/vm/fio RESULTS=/data/fio-results
readonly WRONG_DATA=84 # EILSEQ, fio's error number for it
export FOREBAY_SIZE=8m FOREBAY_TIME=2

# Volume 512 anew, over a backing device that is slow, which drains soon.
slow_volume() {
    target_stop 512
    rm -rf /data/512/state
    forebay format 'uring:/data/512/cache?size=512M' --force cache >/dev/null
    sed -i 's|^backing = .*|backing = "slow:uring:/dev/vdb?read_us=20000\&write_us=3000"\ndirty_age_max = "1s"\nmemory_tier = "1MiB"|' \
        /etc/forebay.toml
    target_start 512
}

# Empties the cache of volume 512.
cold() {
    ask volume set-mode v512 pass-through >/dev/null
    ask volume set-mode v512 write-back >/dev/null
}

# Runs profile $1 and judges its results.
profile() {
    local results=$RESULTS/$1
    case $1 in
    cold-to-warm) FOREBAY_SIZE=16m ;;
    write-back-burst) FOREBAY_TIME=5 ;; # a burst and a part of the quiet after it
    esac
    connect 512 -i 4
    [[ $TARGET == nvmet ]] || before "$1"
    (cd "${RESULTS%/*}" && bash "$PROFILES/run" --yes "$(device_of 512)" "$1")
    midway "$results"
    judge "$results/$1.json" "$results"
    echo "$1 $ios $verified $errors" >>"$RUN/totals"
    report "$ios I/Os"
    [[ $TARGET == nvmet ]] || after "$1"
}
sabotage_profile() { midway() { sed -i 's/"total_ios" : [0-9]*/"total_ios" : 0/' "$1"/*.json; }; }

# Fails unless every job that the results $1 name moved data as it is meant to, without an error, and left its logs in directory
# $2. Sets $ios, $verified (blocks of 4 KiB) and $errors.
judge() {
    local name number rw depth jobs reads writes bytes verify took kind logs
    ios=0 verified=0 errors=0
    jq -r '."global options" as $all | .jobs[] | ($all + ."job options") as $o |
        [.jobname, .error + .total_err, $o.rw, $o.iodepth, $o.numjobs, .read.total_ios, .write.total_ios, .read.io_bytes, $o.verify // "no", .job_runtime] | @tsv' \
        "$1" >"$RUN/jobs"
    while read -r name number rw depth jobs reads writes bytes verify took; do
        ((number == 0)) || fail "job $name: $number errors"
        if [[ $rw == *@(read|rw) ]]; then ((reads > 0)) || fail "job $name read nothing"; fi
        if [[ $rw == *@(write|rw) ]]; then ((writes > 0)) || fail "job $name wrote nothing"; fi
        ios=$((ios + reads + writes)) errors=$((errors + number))
        [[ $verify == no ]] || verified=$((verified + bytes / 4096))
        # A job of less than a few points of a log (250 ms each) may leave none.
        ((took >= 1000)) || continue
        for kind in lat iops; do
            logs=("$2/$rw-iodepth-$depth-numjobs-${jobs}_$kind".*.log)
            [[ -s ${logs[0]} ]] || fail "job $name: no log ${logs[0]##*/}"
            same "${#logs[@]}" "$jobs" "job $name: logs of $kind"
        done
    done <"$RUN/jobs"
    ((ios > 0)) || fail 'no job in the results'
}

# What the daemon says beside it. Profiles that are about a cold cache begin with one.
before() {
    case $1 in
    boot-storm | cold-to-warm) cold ;;
    esac
    look
    hits=$(stat_of '.volumes[0].hits') misses=$(stat_of '.volumes[0].misses')
    drained=$(stat_of '.volumes[0].backing.write.bytes')
}
after() {
    case $1 in
    boot-storm | cold-to-warm)
        look
        hits=$(($(stat_of '.volumes[0].hits') - hits)) misses=$(($(stat_of '.volumes[0].misses') - misses))
        report "$ios I/Os, $hits blocks were hits, $misses misses"
        ((misses > 0)) || fail 'the cache was not cold'
        ;;&
    cold-to-warm)
        # Of four passes the first misses (nearly) all that it reads for the first time, the others nothing: each block is drawn with
        # repetition, so that 1 - 1/e of the 4,096 differ.
        same $((hits + misses)) "$ios" 'blocks that were hits or misses'
        ((misses > 2400 && misses < 2900)) || fail "$misses misses in four passes over 4,096 blocks, of which some 2,590 differ"
        ;;
    boot-storm)
        # The region has 2,048 blocks: no machine's read of one fetches it again.
        ((misses <= 2048)) || fail "$misses misses in a region of 2,048 blocks"
        ;;
    write-back-burst)
        eventually 20 is_clean || fail "$(stat_of '.volumes[0].dirty_bytes') bytes are still dirty"
        drained=$(($(stat_of '.volumes[0].backing.write.bytes') - drained))
        report "$ios I/Os, $drained bytes drained"
        ((drained > 1048576)) || fail "the burst left $drained bytes to drain"
        ;;
    esac
}
is_clean() { look && [[ $(stat_of '.volumes[0].dirty_bytes') == 0 ]]; }

# The sections $2... of the profile that verifies, on device $1; its output is left in $RUN/fio.
verify_sections() {
    local sections=("${@:2}")
    (cd "$RUN" && FOREBAY_DEV=$1 fio "${sections[@]/#/--section=}" --output-format=json --output="$RUN/fio" "$PROFILES/verify.fio")
}
# Fails unless fio, whose exit status is $status, ended for wrong data; $1 says what is wrong.
noticed() {
    ((status != 0)) || fail "fio did not notice that $1"
    same "$(fio_error)" "$WRONG_DATA" 'error of fio'
    report "noticed that $1: $(grep -m 1 -oE 'verify: .* wanted [0-9a-f]+' "$RUN/fio")"
    echo noticed >>"$RUN/noticed"
}

# Another writer spoils one block between writing and reading back.
notices_damage() {
    local device status=0
    connect 512 -i 4
    device=$(device_of 512)
    verify_sections "$device" fill overwrite
    spoil "$device" 5242880
    verify_sections "$device" read-back || status=$?
    noticed 'a block is damaged'
}
sabotage_notices_damage() { spoil() { :; }; }

# Another writer puts older versions of the last 64 blocks back while newer ones are written: each has a sound header and checksum.
notices_old_data() {
    local device status=0 writer
    connect 512 -i 4
    device=$(device_of 512)
    verify_sections "$device" fill
    dd if="$device" of="$RUN/old" bs=256k skip=31 count=1 iflag=direct status=none
    : >"$RUN/putting"
    put_back_on "$device" &
    writer=$!
    verify_sections "$device" overwrite || status=$?
    rm "$RUN/putting"
    wait "$writer"
    noticed 'blocks are older than they should be'
}
put_back_on() { while [[ -e $RUN/putting ]]; do dd if="$RUN/old" of="$1" bs=256k seek=31 oflag=direct conv=notrunc status=none; done; }
sabotage_notices_old_data() { put_back_on() { :; }; }

# No profile is left out, and what all of them did together.
totals() {
    local there ran
    there=$(cd "$PROFILES" && printf '%s\n' *.fio | sed 's/\.fio$//' | sort)
    ran=$(cut -d ' ' -f 1 "$RUN/totals" | sort)
    midway
    same "$ran" "$there" 'profiles run without a failure'
    report "$(awk -v caught="$(wc -l <"$RUN/noticed")" '{ ios += $2; verified += $3; errors += $4 }
        END { printf "%d profiles run, %d I/Os, %d blocks verified, %d errors; wrong data noticed %d times of 2", NR, ios, verified, errors, caught }' \
        "$RUN/totals")"
}
sabotage_totals() { midway() { ran=$(head -n 1 <<<"$ran"); }; }

[[ $TARGET == nvmet ]] || slow_volume >"$RUN/slow" 2>&1
: >"$RUN/totals"
: >"$RUN/noticed"
for file in "$PROFILES"/*.fio; do
    name=$(basename "$file" .fio)
    check "${name//-/_}" profile "$name"
done
check notices_damage notices_damage
check notices_old_data notices_old_data
check kernel_log kernel_log
check totals totals
# For `ci/vm/run --keep`: the guest ends without writing back.
sync
