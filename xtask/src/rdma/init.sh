#!/bin/sh
# The first program of the emulated machine: loads what is needed, takes the host's files as its own
# (they cannot be changed from here), runs the script it was given, and says how that ended.
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
for module in virtio_pci crc32_generic crc32c_generic virtio_rng virtio_blk virtio_net 9pnet_virtio 9p overlay \
    ext4 veth ib_uverbs rdma_rxe; do
    modprobe "$module" || echo "no module $module"
done
ip link set lo up
script=
for word in $(cat /proc/cmdline); do
    case $word in halfmoon.script=*) script=${word#*=} ;; esac
done
files=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "$files,cache=loose,ro" host /lower
mount -t tmpfs changes /upper
mkdir -p /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /newroot
mount -t 9p -o "$files" share /newroot/mnt
mount -t ext4 /dev/vda /newroot/srv
for folder in proc sys dev run; do
    mount -o rbind "/$folder" "/newroot/$folder" || mount -o bind "/$folder" "/newroot/$folder"
done
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    chroot /newroot /bin/bash -c "ulimit -l unlimited; cd /srv; exec /bin/bash $script"
echo "halfmoon-status=$?"
poweroff -f
