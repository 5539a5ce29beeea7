# shellcheck shell=bash
# The frame of a check: `check NAME FUNCTION ARGUMENT...` prints one line `ok NAME`, `skip NAME: why` or `not ok NAME: why`.
#
# A function runs in a shell of its own under `set -e`, from a state without hosts and mounts, with a time limit; it ends early
# through `fail WHY` or `skip WHY`. Every kernel message that comes before its end must be one it expects.

readonly RUN=/run/checks     # what one check leaves for the next, and its log
readonly SKIPPED=77          # exit status of `skip`
export CHECK_LIMIT=60        # seconds; a suite sets another one before a `check` that needs it
ran=0

begin_checks() {
    mkdir -p "$RUN"
    mkfifo "$RUN/done"
    exec 9<>"$RUN/done"
    target_prepare
    dmesg -r | wc -l >"$RUN/start"
    : >"$RUN/expected.all"
    kernel_mark
}

fail() { echo "why: $*" >&2 && exit 1; }
skip() { echo "why: $*" >&2 && exit "$SKIPPED"; }

# A point in the middle of a check where a sabotage may step in, by defining it anew.
midway() { :; }

check() {
    local name=$1 status=0 caught='' began=$EPOCHREALTIME
    shift
    ran=$((ran + 1))
    if ((SABOTAGE)); then
        attempt 1 "$@"
        if ((status == 0)); then
            echo "not ok $name: did not notice the sabotage"
            return
        elif ((status != SKIPPED)); then
            caught="noticed: $(why)"
            status=0
        fi
    fi
    ((status == SKIPPED)) || attempt 0 "$@"
    case $status in
    0) echo "ok $name # ${caught:-$(seconds_since "$began") s}" ;;
    "$SKIPPED") echo "skip $name: $(why)" ;;
    *) echo "not ok $name: $(why)" && show_failure "$name" >/dev/ttyS0 ;;
    esac
}

# Runs a check's function (with its sabotage, if $1 is 1) and sets $status. After a check that does not end, nothing
# can be said of the ones that follow: the suite ends.
attempt() {
    local spoil=$1 function=$2 complaints
    shift 2
    tidy >"$RUN/tidy" 2>&1
    : >"$RUN/expected"
    (
        set +e
        (
            set -eEuo pipefail
            trap 'echo "line $LINENO: $BASH_COMMAND: status $?" >&2' ERR
            if ((spoil)); then "sabotage_$function" "$@"; fi
            "$function" "$@"
        ) >"$RUN/log" 2>&1 </dev/null
        echo $? >&9
    ) &
    if ! read -r -t "$CHECK_LIMIT" -u 9 status; then
        echo "no end within $CHECK_LIMIT s" >>"$RUN/log"
        echo w >/proc/sysrq-trigger # the stacks of tasks that wait for a device, into the console
        echo "not ok $name: no end within $CHECK_LIMIT s"
        show_failure "$name" >/dev/ttyS0
        exit 1
    fi
    # In a sabotaged run too: the check must fail by itself, or through the messages that it did not expect.
    complaints=$(kernel_complaints "$(<"$RUN/mark")" "$RUN/expected")
    if [[ -n $complaints ]]; then
        echo "$complaints" >>"$RUN/log"
        ((status != 0 && status != SKIPPED)) || status=1
    fi
    kernel_mark
}

# The reason: the last line that the check wrote.
why() {
    # The first failure says more than the shells around it that it ends.
    { grep -m 1 '^why: ' "$RUN/log" || grep -v '^$' "$RUN/log" | tail -n 1; } | sed 's/^why: //' | cut -c 1-300
}

seconds_since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }

show_failure() {
    echo "--- $1: log" && cat "$RUN/log"
    echo "--- $1: target" && target_log | tail -n 40
    echo "--- $1: end"
}

# The kernel messages of this check.
kernel_mark() { dmesg -r | wc -l >"$RUN/mark"; }

# Declares that kernel messages matching the extended regular expression $1 are part of this check.
expect_kernel() { echo "$1" | tee -a "$RUN/expected" >>"$RUN/expected.all"; }

# Prints what the kernel said after line number $1 of its log that is of level warning or worse and matches no line of file $2.
kernel_complaints() {
    local bad
    # The number in <> is facility * 8 + level; 4 is warning.
    bad=$(dmesg -r | tail -n "+$(($1 + 1))" | awk -F'[<>]' '$2 % 8 <= 4' | { grep -Evf "$2" || true; })
    [[ -z $bad ]] || echo "kernel: $(wc -l <<<"$bad") messages, first $(head -n 1 <<<"$bad")"
}

# The last check of every suite: from the first connect to here the kernel complained of nothing but what its checks expect.
kernel_log() {
    local complaints
    complaints=$(kernel_complaints "$(<"$RUN/start")" "$RUN/expected.all")
    [[ -z $complaints ]] || fail "$complaints"
}
sabotage_kernel_log() {
    dmesg() { command dmesg "$@" && echo '<4>[   99.000000] nvme nvme0: I/O 7 (I/O Cmd) QID 1 timeout'; }
}
