#!/bin/sh
# An SPDK target on core 0 for a comparison, with nvmf_tgt and rpc.py in $PATH and huge pages reserved.
#   spdk.sh start KIND PORT [FILE]    KIND: raw (RAM disk), null (touches no data), cas (Open CAS write-back over RAM
#                                     disks, all hits), cas-file (its cache on FILE, made for it)
#   spdk.sh pid PORT | stop PORT
# $SPDK_TGT_OPTS: options of nvmf_tgt about memory; "--no-huge -s 2048" does without huge pages.
set -eu

what=$1
shift
[ "$what" = start ] && kind=$1 && shift
port=$1
state=${TMPDIR:-/tmp}/forebay-compare-spdk-$port

rpc() { rpc.py -s "$state.sock" "$@" >/dev/null; }

stop() {
    [ -e "$state.pid" ] || return 0
    pid=$(cat "$state.pid")
    kill -INT "$pid" 2>/dev/null || true
    tries=100
    while kill -0 "$pid" 2>/dev/null && [ "$tries" -gt 0 ]; do
        sleep 0.1
        tries=$((tries - 1))
    done
    kill -9 "$pid" 2>/dev/null || true
    rm -f "$state.pid" "$state.sock"
}

start() {
    if [ -e "$state.pid" ] && kill -0 "$(cat "$state.pid")" 2>/dev/null; then
        echo "spdk.sh: port $port: already running" >&2
        exit 1
    fi
    # A target that cannot be set up is not left behind.
    trap stop EXIT
    # Several targets share the core, one at a time: the others are held still.
    # shellcheck disable=SC2086
    setsid nohup nvmf_tgt -m 0x1 -r "$state.sock" -u --num-trace-entries 0 -i $((port % 1000)) \
        --disable-cpumask-locks ${SPDK_TGT_OPTS:---huge-unlink} >"$state.log" 2>&1 </dev/null &
    echo $! >"$state.pid"
    tries=100
    until rpc spdk_get_version 2>/dev/null; do
        if ! kill -0 "$(cat "$state.pid")" 2>/dev/null || [ "$tries" -eq 0 ]; then
            tail "$state.log" >&2
            exit 1
        fi
        sleep 0.1
        tries=$((tries - 1))
    done
    rpc nvmf_create_transport -t TCP
    case $kind in
    raw) rpc bdev_malloc_create -b Bdev0 256 4096 ;;
    null) rpc bdev_null_create Bdev0 256 4096 ;;
    cas)
        rpc bdev_malloc_create -b Cache0 512 4096
        rpc bdev_malloc_create -b Core0 256 4096
        rpc bdev_ocf_create --cache-line-size 4 Bdev0 wb Cache0 Core0
        ;;
    cas-file)
        truncate -s 512M "$2"
        rpc bdev_aio_create "$2" Cache0 4096
        rpc bdev_malloc_create -b Core0 256 4096
        rpc bdev_ocf_create --cache-line-size 4 Bdev0 wb Cache0 Core0
        ;;
    *)
        echo "spdk.sh: $kind: one of raw, null, cas, cas-file" >&2
        exit 1
        ;;
    esac
    nqn=nqn.2016-06.io.spdk:$kind
    rpc nvmf_create_subsystem "$nqn" -a -s ANCHOR0001
    rpc nvmf_subsystem_add_ns "$nqn" Bdev0
    rpc nvmf_subsystem_add_listener "$nqn" -t TCP -a 127.0.0.1 -s "$port"
    trap - EXIT
}

case $what in
start) start "$@" ;;
pid) cat "$state.pid" ;;
stop) stop ;;
*)
    echo "spdk.sh: start KIND PORT [FILE] | pid PORT | stop PORT" >&2
    exit 1
    ;;
esac
