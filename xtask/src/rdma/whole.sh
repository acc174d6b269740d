# The demo over RDMA; the logs if it fails.
/mnt/halfmoon DEMO --output /srv/whole
status=$?
[ $status = 0 ] || tail -n 60 /srv/whole/state/*.log
exit $status
