#!/bin/sh
# The first program of a guest: file systems, drivers, network by DHCP, what the instance is told of itself, then busybox
# init with a root shell on the serial port. On the kernel's command line, `bixi.run="command"` runs a command first,
# `bixi.poweroff` powers off after it, `bixi.no-network` leaves the network alone, `bixi.metadata` asks the metadata server
# where there is no cidata disk.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/ TERM=vt100
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
echo "bixi-guest: init at $(cut -d' ' -f1 /proc/uptime) s"

while read -r module; do
	insmod "/lib/modules/$module.ko" || echo "bixi-guest: cannot load $module"
done </lib/modules/order

hostname guest
ip link set lo up
if ! grep -q 'bixi\.no-network' /proc/cmdline; then
	for device in /sys/class/net/eth*; do
		[ -e "$device" ] || continue
		name=${device##*/}
		ip link set "$name" up
		udhcpc -i "$name" -s /bin/lease -O search -O staticroutes -t 10 -T 1 -A 1 -n -q >/dev/null 2>&1 ||
			echo "bixi-guest: no lease on $name"
	done
	grep -q 'bixi\.metadata' /proc/cmdline && with=network
fi
configure "$with"

# The power button powers off, as on any server.
acpid -l /tmp/acpid.log -p /tmp/acpid.pid 2>/dev/null

# User data is run once in the life of an instance; this one lives as long as its memory.
if [ -e /run/user-data ] && [ "$(head -c 2 /run/user-data)" = '#!' ]; then
	chmod 700 /run/user-data
	/run/user-data
	echo "bixi-guest: user data ended with $?"
fi

command=$(sed -n 's/.*bixi\.run="\([^"]*\)".*/\1/p' /proc/cmdline)
if [ -n "$command" ]; then
	sh -c "$command"
	echo "bixi-guest: command ended with $?"
fi
grep -q 'bixi\.poweroff' /proc/cmdline && poweroff -f
echo "bixi-guest: ready at $(cut -d' ' -f1 /proc/uptime) s"
exec /sbin/init
