# shellcheck shell=bash
# The frame of a check: `check NAME FUNCTION ARGUMENT...` prints one line `ok NAME`, `skip NAME: why` or `not ok NAME: why`.
#
# A function runs in a shell of its own under `set -e`, from a state without hosts and mounts, with a time limit; it ends early
# through `fail WHY` or `skip WHY`. Every kernel message that comes before its end must be one it expects.

readonly RUN=/run/checks     # what one check leaves for the next, and its log
readonly SKIPPED=77          # exit status of `skip`
export CHECK_LIMIT=150       # seconds, many times what a check takes: the machine may be busy
# What the kernel may say at any time: the emulation is slow.
readonly NOISE='hrtimer: interrupt took|perf: interrupt took too long|clocksource: '
ran=0
spoiled=0                    # whether the last attempt was a sabotaged one

begin_checks() {
    mkdir -p "$RUN"
    mkfifo "$RUN/done"
    exec 9<>"$RUN/done"
    target_prepare
    : >"$RUN/complaints"
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
    0) echo "ok $name # ${caught:-$(seconds_since "$began") s}$(counts)" ;;
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
    # Between checks nothing is overlooked, but clearing up after a sabotage may make the kernel complain.
    if ((spoiled)); then kernel_mark; fi
    spoiled=$spoil
    : >"$RUN/expected"
    : >"$RUN/report"
    : >"$RUN/still"
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
        echo "not ok $name: no end within $CHECK_LIMIT s $(summary_of "$(kernel_complaints)")"
        echo w >/proc/sysrq-trigger # the stacks of tasks that wait for a device, into the console
        show_failure "$name" >/dev/ttyS0
        exit 1
    fi
    # In a sabotaged run too: the check must fail by itself, or through the messages that it did not expect.
    complaints=$(kernel_complaints)
    if [[ -n $complaints ]]; then
        summary_of "$complaints" >>"$RUN/log"
        ((spoil)) || echo "$complaints" >>"$RUN/complaints"
        ((status != 0 && status != SKIPPED)) || status=1
    fi
    kernel_mark
}

# Says what a check counted, for the line of results.
report() { echo "$*" >"$RUN/report"; }
counts() { [[ ! -s $RUN/report ]] || echo "; $(<"$RUN/report")"; [[ ! -s $RUN/still ]] || echo "; $(paste -sd, "$RUN/still")"; }

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

# From here on kernel messages are the next check's.
kernel_mark() { dmesg -r | wc -l >"$RUN/mark"; }

# Declares that kernel messages matching the extended regular expression $1 are part of this check.
expect_kernel() { echo "$1" >>"$RUN/expected"; }

# Prints what the kernel said since the mark that is of level warning or worse and that the check does not expect.
kernel_complaints() {
    # The number in <> is facility * 8 + level; 4 is warning.
    dmesg -r | tail -n "+$(($(<"$RUN/mark") + 1))" | awk -F'[<>]' '$2 % 8 <= 4' |
        { grep -Ev "$NOISE" || true; } | { grep -Evf "$RUN/expected" || true; }
}
summary_of() { [[ -z $1 ]] || echo "kernel: $(wc -l <<<"$1") messages, first $(head -n 1 <<<"$1")"; }

# The last check of every suite: the kernel complained of nothing but what the checks before expect.
kernel_log() {
    local complaints
    complaints=$(cat "$RUN/complaints" && kernel_complaints)
    [[ -z $complaints ]] || fail "$(summary_of "$complaints")"
}
sabotage_kernel_log() {
    dmesg() { command dmesg "$@" && echo '<4>[   99.000000] nvme nvme0: I/O 7 (I/O Cmd) QID 1 timeout'; }
}
