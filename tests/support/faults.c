/* Preloaded into a process: counts its calls that read or change files below a directory, and has the N-th of them fail,
   or kill the process before the call. Reads, writes and everything else go through libc here, Python's own buffers
   included, so that nothing is missed as it would be around functions of `os`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN, CREATE, READ, WRITE, SYNC, RENAME, LINK, UNLINK, RMDIR, MKDIR, SIZE, ATTRIBUTES, COPY, THREAD, KINDS };
enum { LOGGED = 1 << 16 };

/* Shared with children, so that their parent can read what they did. */
static struct { atomic_int calls, struck; unsigned char kinds[LOGGED]; } *log_;
static char below[4096];
static int armed, at, stays, counted, errors[KINDS];
static atomic_int clock_reads;
static int clock_at;
static long clock_step;

/* What is counted: the kinds in the mask `kinds`. The call number `number` fails with `codes[kind]`, or the process is
   killed where that is -1; `onwards`: so do all later ones. */
void arm(const char *directory, int kinds, int number, int onwards, const int *codes) {
    strncpy(below, directory, sizeof below - 1);
    counted = kinds, at = number, stays = onwards;
    memcpy(errors, codes, sizeof errors);
    atomic_store(&log_->calls, 0);
    atomic_store(&log_->struck, 0);
    armed = 1;
}

/* The system's time is stepped at its N-th reading. */
void step_clock(int number, long seconds) { atomic_store(&clock_reads, 0); clock_at = number; clock_step = seconds; }

int calls(void) { return atomic_load(&log_->calls); }
int struck(void) { return atomic_load(&log_->struck); }
int kind_of(int number) { return log_->kinds[(number - 1) % LOGGED]; }

__attribute__((constructor)) static void prepare(void) {
    log_ = mmap(NULL, sizeof *log_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

/* Whether this call is to fail; errno is set then. */
static int strikes(int kind) {
    if (!armed || !(counted >> kind & 1)) return 0;
    int number = atomic_fetch_add(&log_->calls, 1) + 1;
    log_->kinds[(number - 1) % LOGGED] = kind;
    if (number != at && !(stays && number > at && at)) return 0;
    atomic_fetch_add(&log_->struck, 1);
    if (errors[kind] < 0) kill(getpid(), SIGKILL);
    errno = errors[kind];
    return 1;
}

static int inside(const char *path) { return path && (path[0] != '/' || !strncmp(path, below, strlen(below))); }

static int fd_inside(int fd) {
    char link[40], path[4096];
    if (!armed) return 0;
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    errno = before;
    if (size < 0) return 0;
    path[size] = 0;
    return path[0] == '/' && inside(path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define BY_PATH(kind, result, name, types, path, ...) \
    result name types { REAL(name); if (armed && inside(path) && strikes(kind)) return -1; return real(__VA_ARGS__); }
#define BY_FD(kind, result, name, types, fd, ...) \
    result name types { REAL(name); if (fd_inside(fd) && strikes(kind)) return -1; return real(__VA_ARGS__); }
#define OPENS(name, types, path, ...) \
    int name types { \
        REAL(name); mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
        int kind = flags & (O_WRONLY | O_RDWR | O_CREAT) ? CREATE : OPEN; \
        if (armed && inside(path) && strikes(kind)) return -1; \
        return real(__VA_ARGS__, flags, mode); \
    }

OPENS(open, (const char *path, int flags, ...), path, path)
OPENS(open64, (const char *path, int flags, ...), path, path)
OPENS(openat, (int fd, const char *path, int flags, ...), path, fd, path)
OPENS(openat64, (int fd, const char *path, int flags, ...), path, fd, path)
BY_FD(READ, ssize_t, read, (int fd, void *data, size_t size), fd, fd, data, size)
BY_FD(READ, ssize_t, pread, (int fd, void *data, size_t size, off_t from), fd, fd, data, size, from)
BY_FD(READ, ssize_t, pread64, (int fd, void *data, size_t size, off64_t from), fd, fd, data, size, from)
BY_FD(WRITE, ssize_t, write, (int fd, const void *data, size_t size), fd, fd, data, size)
BY_FD(WRITE, ssize_t, writev, (int fd, const struct iovec *data, int count), fd, fd, data, count)
BY_FD(WRITE, ssize_t, pwrite, (int fd, const void *data, size_t size, off_t to), fd, fd, data, size, to)
BY_FD(WRITE, ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t to), fd, fd, data, size, to)
BY_FD(SYNC, int, fsync, (int fd), fd, fd)
BY_FD(SYNC, int, fdatasync, (int fd), fd, fd)
BY_FD(SYNC, int, syncfs, (int fd), fd, fd)
BY_PATH(RENAME, int, rename, (const char *a, const char *b), a, a, b)
BY_PATH(RENAME, int, renameat, (int fd, const char *a, int to, const char *b), a, fd, a, to, b)
BY_PATH(RENAME, int, renameat2, (int fd, const char *a, int to, const char *b, unsigned flags), a, fd, a, to, b, flags)
BY_PATH(LINK, int, link, (const char *a, const char *b), b, a, b)
BY_PATH(LINK, int, linkat, (int fd, const char *a, int to, const char *b, int flags), b, fd, a, to, b, flags)
BY_PATH(LINK, int, symlink, (const char *a, const char *b), b, a, b)
BY_PATH(LINK, int, symlinkat, (const char *a, int to, const char *b), b, a, to, b)
BY_PATH(UNLINK, int, unlink, (const char *path), path, path)
BY_PATH(UNLINK, int, unlinkat, (int fd, const char *path, int flags), path, fd, path, flags)
BY_PATH(RMDIR, int, rmdir, (const char *path), path, path)
BY_PATH(MKDIR, int, mkdir, (const char *path, mode_t mode), path, path, mode)
BY_PATH(MKDIR, int, mkdirat, (int fd, const char *path, mode_t mode), path, fd, path, mode)
BY_PATH(SIZE, int, truncate, (const char *path, off_t size), path, path, size)
BY_PATH(SIZE, int, truncate64, (const char *path, off64_t size), path, path, size)
BY_FD(SIZE, int, ftruncate, (int fd, off_t size), fd, fd, size)
BY_FD(SIZE, int, ftruncate64, (int fd, off64_t size), fd, fd, size)
BY_FD(ATTRIBUTES, int, fchmod, (int fd, mode_t mode), fd, fd, mode)
BY_PATH(ATTRIBUTES, int, chmod, (const char *path, mode_t mode), path, path, mode)
BY_FD(ATTRIBUTES, int, futimens, (int fd, const struct timespec times[2]), fd, fd, times)
BY_PATH(ATTRIBUTES, int, utimensat, (int fd, const char *path, const struct timespec times[2], int flags), path, fd, path, times, flags)
BY_FD(ATTRIBUTES, int, fsetxattr, (int fd, const char *name, const void *value, size_t size, int flags), fd, fd, name, value, size, flags)
BY_FD(COPY, ssize_t, copy_file_range, (int from, off64_t *at_, int to, off64_t *into, size_t size, unsigned flags), to, from, at_, to, into, size, flags)

/* These return the error. */
int posix_fallocate(int fd, off_t from, off_t size) {
    REAL(posix_fallocate);
    return fd_inside(fd) && strikes(SIZE) ? errno : real(fd, from, size);
}
int posix_fallocate64(int fd, off64_t from, off64_t size) {
    REAL(posix_fallocate64);
    return fd_inside(fd) && strikes(SIZE) ? errno : real(fd, from, size);
}
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    REAL(pthread_create);
    return strikes(THREAD) ? errno : real(thread, attributes, run, argument);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(clock, now);
    if (clock_step && clock == CLOCK_REALTIME && atomic_fetch_add(&clock_reads, 1) >= clock_at) now->tv_sec += clock_step;
    return result;
}
