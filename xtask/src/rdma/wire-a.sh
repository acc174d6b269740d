# The machine with the metadata store, the sequencer in charge, a storage node that stays, an engine, and the
# load.
device 10.9.0.1 || exit 1
etcd --data-dir /srv/etcd --listen-client-urls http://10.9.0.1:2379 \
    --advertise-client-urls http://10.9.0.1:2379 >/srv/etcd.log 2>&1 &
while ! (: </dev/tcp/10.9.0.1/2379) 2>/dev/null; do sleep 0.5; done
$HALFMOON dev --data-dir /srv/dev --meta $META --transport rdma --engines 1 --standbys 0 \
    --replace-after-s 0 --segment-mib 4 --port 0 >/srv/dev.log 2>&1 &
dev=$!
while ! grep -q '^halfmoon is up' /srv/dev.log; do
    kill -0 $dev || { tail -n 60 /srv/dev.log; exit 1; }
    sleep 0.5
done
cue founded
await joined
# Two of the three members are on the other machine from here on: no append is durable without it.
for pair in '2 102' '3 103'; do
    $HALFMOON node replace $pair --meta $META || { tail -n 60 /srv/dev.log; exit 1; }
done
$HALFMOON node list --meta $META
$HALFMOON demo --cluster $META --protocols halfmoon-read --quick --rate 10 --reservations 2000 \
    --output /srv/demo >/srv/said 2>&1 &
demo=$!
tail -f /srv/said --pid $demo &
tail=$!
said() { while ! grep -q "$1" /srv/said && kill -0 $demo 2>/dev/null; do sleep 0.5; done; }
said 'deployed and populated'
before=$(written /srv/dev/*/lanes.prom)
cue load
said 'mix, slice 2'
cue storage
said 'kills under'
# One of the two is in charge.
murder sequencer 10 /srv/dev/sequencer-10
sleep 5
cue engine
sleep 5
cue sequencer
wait $demo
status=$?
wait $tail
[ $status = 0 ] || tail -n 100 /srv/dev.log
kill $dev
wait $dev
cue end
await stopped
told a "$before" "$(written /srv/dev/*/lanes.prom)"
mv /mnt/cues/storage-* /srv/dev
$HALFMOON verify --data-dir /srv/dev && exit $status
exit 1
