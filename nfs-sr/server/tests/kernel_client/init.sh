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
OPTIONS=vers=3,proto=tcp,port=@PORT@,mountproto=tcp,mountport=@PORT@,hard,timeo=20

# Without nolock the client starts its lock daemon first, which needs a port mapper and a status daemon that are not here, and
# would need NLM of the server. The kernel's word on it is printed.
timeout 30 mount -t nfs -o $OPTIONS 10.0.2.2:/export /mnt 2> /tmp/lock; status=$?
echo "LOCK status $status: $(tr '\n' ' ' < /tmp/lock) $(dmesg | grep -i lockd | tail -1)"
if [ $status = 0 ]; then
    echo "LOCK mounted"
    umount /mnt
fi
check mount mount -t nfs -o $OPTIONS,nolock 10.0.2.2:/export /mnt
cd /mnt || poweroff -f

# Connectathon's basic tests, by their numbers there.
mkdir basic; cd basic
tree() { for d in a b; do mkdir $1/$d; for f in 1 2 3 4 5; do echo $f > $1/$d/$f; done; [ $2 = 0 ] || tree $1/$d $(($2 - 1)); done; }
tree . 3; check 1-tree-made [ $(find . | wc -l) = 181 ]
rm -r a b; check 2-tree-removed [ $(find . | wc -l) = 1 ]
mkdir deep; cd deep; check 3-directory-known [ "$(pwd -P)" = /mnt/basic/deep ]; cd ..
for i in $(seq 10); do touch file-$i; done
attributes() { for i in $(seq 10); do chmod 0 file-$i; [ $(stat -c %a file-$i) = 0 ] && chmod 0666 file-$i && [ $(stat -c %a file-$i) = 666 ] || return 1; done; }
check 4-attributes attributes
dd if=/dev/urandom of=/tmp/one bs=8k count=128 2>/dev/null
cp /tmp/one one; cold; check 5-written-and-read same one /tmp/one
for i in $(seq 200); do : > list-$i; done; cold
check 6-list [ $(ls | grep -c '^list-') = 200 ]
list() { for f in list-*; do rm $f || return 1; done; [ $(ls | grep -c '^list-') = 0 ]; }
check 6-list-while-removing list
links() { for i in $(seq 10); do mv file-$i new-$i && ln new-$i link-$i && [ $(stat -c %h new-$i) = 2 ] && rm link-$i && [ $(stat -c %h new-$i) = 1 ] || return 1; done; }
check 7-link-and-rename links
renames() { for i in $(seq 10); do mv new-$i file-$i && [ ! -e new-$i ] || return 1; done; echo x > over; mv file-1 over; [ "$(cat over)" = "" ]; }
check 7a-rename renames
symlinks() { for i in $(seq 10); do ln -s target-$i soft-$i; [ "$(readlink soft-$i)" = target-$i ] || return 1; rm soft-$i; done; }
check 8-symlink symlinks
check 9-statfs [ "$(stat -f -c %b /mnt)" -gt 0 ]
chmod 4711 over; chown 1000:100 over; chmod 4711 over
check owner [ "$(stat -c '%a %u %g' over)" = "4711 1000 100" ]
mkfifo fifo; mknod null c 1 3; check special-files [ "$(stat -c %F fifo),$(stat -c %t:%T null)" = "fifo,1:3" ]
check not-empty fails rmdir ../basic
check long-name fails touch $(printf 'n%.0s' $(seq 256))
mkdir -m 700 private; echo secret > private/file
check permission fails su -s /bin/sh nobody -c 'cat /mnt/basic/private/file'

# Connectathon's special tests, by their names there. (telldir and dupreq need what a shell cannot do; the tests of the protocol do it.)
cd /mnt; mkdir special; cd special
exec 3<> open; echo kept >&3; rm open; check op_unlk [ "$(cat /proc/self/fd/3)" = kept ]; echo more >&3; check op_unlk-write [ $? = 0 ]; exec 3>&-
check op_unlk-clean [ "$(ls -A)" = "" ]
echo old > target; echo new > source; exec 3< target; mv source target
check op_ren [ "$(cat <&3) $(cat target)" = "old new" ]; exec 3<&-
exec 3<> mode; chmod 0 mode; echo text >&3; cold; check op_chmod [ "$(cat /proc/self/fd/3)" = text ]; exec 3>&-
excl() { set -o noclobber; (: > once) 2>/dev/null && fails sh -c 'set -o noclobber; : > once'; }
check excltest excl; set +o noclobber
dd if=/dev/zero of=sparse bs=1 count=1 seek=5000000000 2>/dev/null
check bigfile [ "$(stat -c %s sparse)" = 5000000001 -a "$(stat -c %b sparse)" -lt 1000 ]
holey() { for i in 0 3 7; do dd if=/tmp/one of=holes bs=4093 count=1 seek=$i conv=notrunc 2>/dev/null; done; cold; [ "$(dd if=holes bs=4093 skip=4 count=1 2>/dev/null | tr -d '\0' | wc -c)" = 0 ] && [ "$(dd if=holes bs=4093 skip=7 2>/dev/null | md5sum)" = "$(dd if=/tmp/one bs=4093 count=1 2>/dev/null | md5sum)" ]; }
check holey holey
cuts() { for n in 0 1 4095 4097 1000000 12; do truncate -s $n cut && [ $(stat -c %s cut) = $n ] || return 1; done; }
check truncate cuts
idem() { for i in $(seq 25); do mkdir d && echo $i > d/f && ln d/f d/g && mv d/g d/h && ln -s f d/s && [ "$(cat d/s)" = $i ] && rm -r d || return 1; done; }
check nfsidem idem
touch -d '2001-02-03 04:05:06' times; cold; check touchn [ "$(date -u -r times +%s)" = 981173106 ]
cd /mnt
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

# How long a client waits at most for a write to be stable when the server is killed once and started again, in milliseconds.
now() { read up _ < /proc/uptime; echo $((${up%.*} * 1000 + 1${up#*.}0 - 1000)); }
echo GAP
longest=0; failed=0; end=$(($(now) + 12000))
while [ $(now) -lt $end ]; do
    begun=$(now); dd if=/tmp/one of=gap bs=4k count=1 conv=notrunc,fsync 2>/dev/null || failed=1; took=$(($(now) - begun))
    [ $took -le $longest ] || longest=$took
done
check gap [ $failed = 0 ]
echo "LONGEST $longest"

# fsx and pjdfstest.
mkdir fsx; check fsx /tools/fsx -N 1000 /mnt/fsx/file > /tmp/fsx.log 2>&1; grep -E "^(PASS|FAIL)" /tmp/fsx.log
mkdir -m 755 posix
/tools/pjdfstest -c /etc/pjdfstest.toml -p /mnt/posix > /tmp/posix.log 2>&1
grep -E "FAILED$|^Summary|[0-9]+ passed" /tmp/posix.log
cd /; check unmount umount /mnt
echo END
poweroff -f
