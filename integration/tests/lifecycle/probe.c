/* What only system calls tell, of this process's parent where it can be asked for, else of what it inherited. */
#include <linux/keyctl.h>
#include <stdio.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <sched.h>

static void session(int pid) {
    char path[64], state;
    int ppid, group, session, tty, foreground;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file || fscanf(file, "%*d (%*[^)]) %c %d %d %d %d %d", &state, &ppid, &group, &session, &tty, &foreground) != 6) {
        puts("stat can't be read");
        return;
    }
    printf("leads its group: %d\nleads its session: %d\nterminal: %d\n", group == pid, session == pid, tty);
    printf("is in the foreground: %d\nhas a parent inside: %d\n", foreground == group, ppid != 0);
}

int main(void) {
    session(getppid());
    char name[256] = "none";
    syscall(SYS_keyctl, KEYCTL_DESCRIBE, KEY_SPEC_SESSION_KEYRING, name, sizeof name);
    printf("keyring: %s\n", name);
    printf("secure bits: %d\nno new privileges: %d\nkeeps capabilities: %d\n", prctl(PR_GET_SECUREBITS),
           prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), prctl(PR_GET_KEEPCAPS));
    printf("personality: %x\nscheduler: %d\npriority: %ld\nio priority: %ld\n", personality(0xffffffff),
           sched_getscheduler(0), syscall(SYS_getpriority, 0, 0), syscall(SYS_ioprio_get, 1, 0));
    printf("io flusher: %d\nTHP: %d\n", prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0), prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    struct stat stream;
    for (int fd = 0; fd < 3; fd++)
        if (fstat(fd, &stream) == 0)
            printf("stream %d: %o %d:%d\n", fd, stream.st_mode & S_IFMT, stream.st_uid, stream.st_gid);
    return 0;
}
