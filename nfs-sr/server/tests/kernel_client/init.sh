#!/bin/busybox sh
# First process of the small machine: mounts the export with Linux's own NFS client and works on it. Prints PASS or FAIL
# lines to the serial port; @PORT@ is the server's.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
while read module; do insmod /modules/$module; done < /modules/order
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2

check() { name=$1; shift; if "$@"; then echo "PASS $name"; else echo "FAIL $name"; fi; }
same() { [ "$(md5sum < $1)" = "$(md5sum < $2)" ]; }
cold() { sync; echo 3 > /proc/sys/vm/drop_caches; }
fails() { ! "$@" 2>/dev/null; }

check mount mount -t nfs -o vers=3,proto=tcp,port=@PORT@,mountproto=tcp,mountport=@PORT@,nolock,hard,timeo=20 10.0.2.2:/export /mnt
cd /mnt || poweroff -f

# Connectathon basic: files and directories by the hundred, links, long names, permissions.
mkdir basic; cd basic
for i in $(seq 100); do echo $i > file-$i; mkdir dir-$i; done
check create [ $(ls | wc -l) = 200 ]
for i in $(seq 100); do rmdir dir-$i; done; for i in $(seq 2 2 100); do rm file-$i; done
check remove [ $(ls | wc -l) = 50 ]
ln file-1 hard; check link [ "$(stat -c %h file-1)" = 2 ]
mv file-3 hard; check rename-over [ "$(cat hard) $(stat -c %h file-1)" = "3 1" ]
ln -s file-5 soft; check symlink [ "$(cat soft) $(readlink soft)" = "5 file-5" ]
chmod 4711 hard; chown 1000:100 hard; chmod 4711 hard
check attributes [ "$(stat -c '%a %u %g' hard)" = "4711 1000 100" ]
mkfifo fifo; mknod null c 1 3; check special [ "$(stat -c %F fifo),$(stat -c %t:%T null)" = "fifo,1:3" ]
check not-empty fails rmdir ../basic
check long-name fails touch $(printf 'n%.0s' $(seq 256))
mkdir -m 700 private; echo secret > private/file
check permission fails su -s /bin/sh nobody -c 'cat /mnt/basic/private/file'

# Connectathon special: a file that is open while it is removed, holes, cold caches.
exec 3<> open; echo kept >&3; rm open; check open-unlinked [ "$(cat /proc/self/fd/3)" = kept ]; exec 3>&-
dd if=/dev/zero of=sparse bs=1 count=1 seek=5000000000 2>/dev/null
check sparse [ "$(stat -c %s sparse)" = 5000000001 -a "$(stat -c %b sparse)" -lt 1000 ]
dd if=/dev/urandom of=/tmp/big bs=1M count=16 2>/dev/null
cp /tmp/big big; cold; check cold same big /tmp/big

# A busy client while the server is killed and started again: no error, nothing lost.
echo BUSY
failed=0
for i in $(seq 6); do dd if=/tmp/big of=busy-$i bs=256k conv=fsync 2>/dev/null || failed=1; done
check busy [ $failed = 0 ]
cold
for i in $(seq 6); do same busy-$i /tmp/big || failed=1; done
check busy-content [ $failed = 0 ]

# Tools that were brought along.
if [ -x /tools/fsx ]; then mkdir /mnt/fsx; check fsx /tools/fsx -N 1000 /mnt/fsx/file > /tmp/fsx.log 2>&1; grep -E "^(PASS|FAIL)" /tmp/fsx.log; fi
if [ -x /tools/pjdfstest ]; then
    mkdir -m 755 /mnt/posix
    /tools/pjdfstest -c /etc/pjdfstest.toml -p /mnt/posix > /tmp/posix.log 2>&1
    grep -E "FAILED$|^Summary" /tmp/posix.log
fi
cd /; check unmount umount /mnt
echo END
poweroff -f
