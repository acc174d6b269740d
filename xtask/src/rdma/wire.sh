# What both machines of a cluster have in common.
META=etcd://10.9.0.1:2379
HALFMOON=/mnt/halfmoon
CUES=/mnt/cues

# A Soft-RoCE device on the wire. The wait is for the address of the link itself, which the kernel first has
# to see to be unique.
device() {
    ip addr add "$1/24" dev eth0 && ip link set eth0 up && sleep 2 && rdma link add rxe0 type rxe netdev eth0
}

cue() { touch "$CUES/$1"; }

# However this ends, the other machine does not wait for it.
trap 'cue over' EXIT

# Waits for one of these, or for the other machine to have given up.
await() {
    while :; do
        for one in "$@" over; do
            [ -e "$CUES/$one" ] && return
        done
        sleep 0.5
    done
}

# Bytes that nodes have written over RDMA and over TCP, by the files that they keep; those of processes that
# were killed are in `killed`.
written() {
    cat "$@" /srv/killed 2>/dev/null | awk '
        /^halfmoon_lane_bytes_rdma_total/ { rdma += $2 }
        /^halfmoon_lane_bytes_tcp_total/ { tcp += $2 }
        END { printf "%d %d\n", rdma, tcp }'
}

# The same between two of those. Commands (`node list`, `node replace`) ask nodes over TCP: none runs between.
told() {
    echo "$2 $3" | awk -v name="$1" '
        { printf "machine %s: %d bytes over RDMA, %d bytes over TCP\n", name, $3 - $1, $4 - $2 }'
}

# Kills a node; it is started again.
murder() {
    cat "$3/lanes.prom" >>/srv/killed
    pkill -9 -f "role $1 .*node $2 " && echo "killed: $1 $2"
}
