#!/bin/sh
# The first program of a server of the rack: file systems, kernel modules, network; then busybox init takes over.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /scratch /opt /sbin /usr/sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /dev/hugepages
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t hugetlbfs hugetlbfs /dev/hugepages
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
# The kernel makes the root folder writable for all, which some programs refuse to trust.
chmod 755 /
mkdir -p /var/run

argument() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

while read -r module; do
	case $module in
	kvm_amd) grep -qw svm /proc/cpuinfo || continue ;;
	kvm_intel) grep -qw vmx /proc/cpuinfo || continue ;;
	esac
	insmod "/lib/modules/$module.ko" || echo "cannot load the module $module"
done </lib/modules/order

number=$(argument bixi.server)
hostname "server-$number"
ip link set lo up
for device in /sys/class/net/*; do
	old=${device##*/}
	case $(cat "$device/address") in
	52:54:00:b1:00:*) new=mgmt address=10.88.0.$number/24 ;;
	52:54:00:b1:01:*) new=underlay address=10.99.0.$number/24 ;;
	*) continue ;;
	esac
	ip link set "$old" name $new
	[ $new = underlay ] && ip link set $new mtu "$(argument bixi.underlay-mtu)"
	ip addr add $address dev $new
	ip link set $new up
done

mount -t ext4 -o noatime /dev/vda /scratch || echo "no scratch disk"
mount -t ext4 -o ro /dev/vdb /opt || echo "no disk of programs"
mkdir -p /run/bixi
ulimit -n 65536
# Programs that bring their own libraries find them on the disk of programs.
export LD_LIBRARY_PATH=/opt/lib
# What programs keep of their user goes when the server is reset.
export HOME=/scratch
exec /sbin/init
