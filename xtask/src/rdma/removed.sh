# The demo over RDMA; after its second slice the device is removed, which ends only when all nodes have let
# go of it.
cd /srv
/mnt/halfmoon DEMO --output /srv/removed >said 2>&1 &
demo=$!
tail -f said --pid $demo &
while ! grep -q 'mix, slice 2' said && kill -0 $demo; do sleep 0.2; done
# What nodes have written is in their files, once each was written anew or has had the time for it: a node
# whose lanes carry nothing has nothing to write.
touch mark
looks=0
until [ -z "$(find removed/state -name lanes.prom ! -newer mark)" ] || [ $looks = 20 ]; do
    sleep 0.1
    looks=$((looks + 1))
done
sum() {
    awk "/^halfmoon_lane_bytes_$1_total/ { all += \$2 } END { printf \"%d\", all }" \
        removed/state/*/lanes.prom
}
echo "before the removal: $(sum rdma) bytes over RDMA, $(sum tcp) bytes over TCP"
timeout 60 rdma link delete rxe0
removal=$?
echo "the removal ended with $removal"
wait $demo
status=$?
wait
[ $status = 0 ] || tail -n 60 removed/state/*.log
[ $removal = 0 ] && exit $status
exit 1
