# The other machine: two storage nodes, an engine, and a sequencer that stands by.
device 10.9.0.2 || exit 1
await founded

# Runs a node, again and again until it is to end.
keep() {
    role=$1 node=$2
    shift 2
    until [ -e $CUES/end ] || [ -e $CUES/over ]; do
        $HALFMOON run --role $role --node $node --data-dir /srv/$role-$node --meta $META \
            --transport rdma --listen 10.9.0.2:0 "$@" 2>>/srv/$role-$node.log
        sleep 1
    done
}
keep storage 102 --segment-mib 4 &
keep storage 103 --segment-mib 4 &
keep engine 31 --http 10.9.0.2:0 &
keep sequencer 11 --standby &
looks=0
while [ "$($HALFMOON node list --meta $META | grep -Ec '^ *(102|103|31|11) ')" -lt 4 ] && [ $looks -lt 60 ]; do
    sleep 1
    looks=$((looks + 1))
done
cue joined
await load
before=$(written /srv/*/lanes.prom)
await storage
murder storage 102 /srv/storage-102
await engine
murder engine 31 /srv/engine-31
await sequencer
murder sequencer 11 /srv/sequencer-11
await end
pkill -f "$HALFMOON run"
wait
told b "$before" "$(written /srv/*/lanes.prom)"
[ -e $CUES/end ] || tail -n 60 /srv/*.log
cp -r /srv/storage-102 /srv/storage-103 $CUES
cue stopped
