# What a process sees of itself and of its container. Whatever differs between two runs in any case is left out.
me=/proc/$$
section() { echo "[$1]"; }
section status
grep -E '^(Umask|TracerPid|Uid|Gid|Groups|Sig(Blk|Ign|Cgt)|ShdPnd|Cap|NoNewPrivs|Seccomp|Speculation|Cpus_allowed_list|Mems_allowed_list|Kthread|THP)' $me/status
section limits; sed 's/  */ /g' $me/limits
section files; for file in oom_score_adj timerslack_ns coredump_filter loginuid setgroups uid_map gid_map cgroup personality; do
    echo "$file: $(cat $me/$file 2>&1 | sed "s,/proc/[0-9]*/,,")"
done
section attributes; for file in $me/attr/*; do echo "${file##*/}: $(cat $file 2>&1 | sed 's/[0-9]*//g')"; done
section namespaces; for namespace in $me/ns/*; do
    name=${namespace##*/}
    if grep -qxF "$(readlink $namespace)" /probe/namespaces; then echo "$name: the host's"; else echo "$name: its own"; fi
done
section environment; tr '\0' '\n' <$me/environ
section descriptors; for fd in $me/fd/*; do echo "${fd##*/} $(readlink $fd | sed 's/[0-9]\{4,\}/N/')"; done
section places; echo "$(readlink $me/cwd) $(readlink $me/root)"
section process; /probe/probe
# One more process of a container sees the same container.
[ "$1" = more ] && exit
section mounts; cat $me/mountinfo
section devices; find /dev ! -path '/dev/mqueue/*' ! -path '/dev/shm/*' -exec stat -c '%n %F %a %u:%g %t:%T %N' {} \; | sort
section tree; find / -xdev \( -path /probe -o -path /usr -o -path /bin/\* -o -path /sbin/\* \) -prune -o -exec stat -c '%n %F %a %u:%g' {} \; | sort
section points; cut -d' ' -f5 $me/mountinfo | sort -u | while read -r point; do
    echo "$(stat -c '%n %F %a %u:%g' "$point") $(stat -f -c %T "$point")"
done
section cgroups; find /sys/fs/cgroup -maxdepth 2 2>/dev/null | sort
section names; hostname; cat /proc/sys/kernel/domainname
section network; tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ' | sort; cat /sys/class/net/lo/operstate 2>&1
section kernel; for name in kernel/msgmax kernel/shmmni net/ipv4/ip_forward net/ipv4/ping_group_range net/ipv4/ip_unprivileged_port_start fs/mqueue/msg_max; do
    echo "$name: $(cat /proc/sys/$name 2>&1)"
done
section end
