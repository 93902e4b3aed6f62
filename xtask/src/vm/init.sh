#!/usr/bin/busybox sh
# The guest's first process: mounts what a Linux system has, runs /vm/0, /vm/1, ... and powers off.
# The second serial port carries results only, in lines that begin with the token of this boot; the
# kernel's messages go to the first. TOKEN is filled in when the initramfs is made.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
/usr/bin/busybox mount -t proc proc /proc
/usr/bin/busybox --install -s 2>/dev/null
mount -t devtmpfs dev /dev
exec 3>/dev/ttyS1
stty -F /dev/ttyS1 raw 115200

frame() { echo "TOKEN $*" >&3; }
now() { read -r now _ < /proc/uptime; }
attempt() { # a mount may be missing in a kernel: say so, go on
    said=$("$@" 2>&1) || frame warning "$*: $said"
}

attempt mount -t sysfs sysfs /sys
mkdir -p /dev/pts /dev/shm
attempt mount -t devpts -o gid=5,mode=620 devpts /dev/pts
attempt mount -t tmpfs -o mode=1777 shm /dev/shm
attempt mount -t tmpfs -o mode=755 run /run
attempt mount -t tracefs tracefs /sys/kernel/tracing
attempt mount -t bpf bpf /sys/fs/bpf
attempt mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
attempt ip link set lo up
for module in /vm/modules/*.ko; do
    [ -e "$module" ] && attempt insmod "$module"
done
hostname ksnap-vm
ulimit -l unlimited
umask 022

# Ends every user process but this one and cat; names what was there in $left.
sweep() {
    for entry in /proc/[0-9]*; do
        pid=${entry#/proc/}
        [ "$pid" = 1 ] || [ "$pid" = "$cat" ] && continue
        readlink "$entry/exe" >/dev/null || continue # a kernel thread, a zombie, or gone
        read -r name < "$entry/comm" || continue
        kill -KILL "$pid" && [ "$name" != timeout ] && left="$left$pid $name
"
    done 2>/dev/null
}

now; frame hello "$(uname -r)" "$now"
i=0
while [ -x /vm/$i ]; do
    read -r limit < /vm/$i.limit
    rm -f /run/vm.out
    mkfifo /run/vm.out
    cat /run/vm.out >&3 &
    cat=$!
    now; frame begin $i "$now"
    # A session of its own and no descriptor of ours. The limit's watcher is busybox's timeout.
    setsid timeout -k 5 "$limit" /vm/$i </dev/null >/run/vm.out 2>&1 3>&-
    code=$?
    now; ended=$now
    left=
    sweep; sweep
    wait "$cat"
    echo >&3
    printf %s "$left" | while read -r pid name; do frame left $i "$pid" "$name"; done
    frame end $i $code "$ended"
    i=$((i + 1))
done
frame bye
exec 3>&-
poweroff -f
