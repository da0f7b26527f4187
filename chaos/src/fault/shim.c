/* Stands between a process and its disk and clock, as LD_PRELOAD: stalls, slows, fills and
 * fails the disk, and notes what a loss of power would take, so that it can be taken.
 *
 * Of files below $QUORATE_FAULTS_ROOT it keeps in $QUORATE_FAULTS/undo:
 *   DEV-INODE  what writes since the last fsync covered: records of struct record, each
 *              followed by the bytes that stood there before
 *   names      one line for each name that was made (C), moved (R) or removed (U), and for
 *              each directory that was synced (S)
 *   saved-N    links to what moves and removals took away, until their directory is synced
 * disk.rs reads them. $QUORATE_FAULTS/control is a struct control, written by disk.rs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    volatile uint32_t stall;      /* nothing is written or synced until it is 0 */
    volatile uint32_t sync_error; /* fsync fails with EIO */
    volatile uint32_t full;       /* writes fail with ENOSPC */
    volatile uint32_t slow_us;    /* what each fsync takes longer */
    volatile int64_t clock_ms;    /* what the wall clock is ahead */
};

struct record {
    uint64_t size; /* of the file before the write */
    uint64_t offset;
    uint64_t length; /* of the bytes that follow */
};

/* A link to what a name stood for that could come back. */
struct kept {
    struct kept *next;
    unsigned number;
    char folder[PATH_MAX];
};

struct file {
    struct file *next;
    dev_t dev;
    ino_t ino;
    int directory;
    int undo, reader; /* -1 until needed */
    pthread_mutex_t lock;
    char path[PATH_MAX];
};

enum { FDS = 65536 };

static struct file foreign;
static struct file *files[FDS]; /* none: not looked at yet */
static struct file *known;
static pthread_mutex_t known_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t names_lock = PTHREAD_MUTEX_INITIALIZER;
static struct control none, *control = &none;
static char root[PATH_MAX], undo_dir[PATH_MAX];
static size_t root_length;
static int names = -1;
static unsigned saved;
static struct kept *links; /* under names_lock */

#define REAL(type, name, ...) static type (*real_##name)(__VA_ARGS__)
REAL(int, open64, const char *, int, ...);
REAL(int, openat64, int, const char *, int, ...);
REAL(int, close, int);
REAL(int, dup2, int, int);
REAL(ssize_t, write, int, const void *, size_t);
REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
REAL(ssize_t, writev, int, const struct iovec *, int);
REAL(ssize_t, pwritev64, int, const struct iovec *, int, off64_t);
REAL(int, ftruncate64, int, off64_t);
REAL(int, fallocate64, int, int, off64_t, off64_t);
REAL(int, fsync, int);
REAL(int, fdatasync, int);
REAL(int, renameat2, int, const char *, int, const char *, unsigned);
REAL(int, unlink, const char *);
REAL(int, unlinkat, int, const char *, int);
REAL(int, link, const char *, const char *);
REAL(int, clock_gettime, clockid_t, struct timespec *);

__attribute__((constructor)) static void start(void) {
#define FIND(name) *(void **)&real_##name = dlsym(RTLD_NEXT, #name)
    FIND(open64); FIND(openat64); FIND(close); FIND(dup2); FIND(write); FIND(pwrite64); FIND(writev);
    FIND(pwritev64); FIND(ftruncate64); FIND(fallocate64); FIND(fsync); FIND(fdatasync); FIND(renameat2);
    FIND(unlink); FIND(unlinkat); FIND(link); FIND(clock_gettime);
    const char *faults = getenv("QUORATE_FAULTS"), *below = getenv("QUORATE_FAULTS_ROOT");
    if (!faults || !below) return;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/control", faults);
    int fd = real_open64(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *at = mmap(NULL, sizeof *control, PROT_READ, MAP_SHARED, fd, 0);
    real_close(fd);
    if (at == MAP_FAILED) return;
    snprintf(undo_dir, sizeof undo_dir, "%s/undo", faults);
    snprintf(path, sizeof path, "%.4000s/names", undo_dir);
    names = real_open64(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (names < 0) return;
    snprintf(root, sizeof root, "%s", below);
    root_length = strlen(root);
    control = at;
}

static int below_root(const char *path) {
    return root_length && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static struct file *file_of(const struct stat64 *st, const char *path) {
    pthread_mutex_lock(&known_lock);
    struct file *file = known;
    while (file && (file->dev != st->st_dev || file->ino != st->st_ino)) file = file->next;
    if (!file && (file = calloc(1, sizeof *file))) {
        file->dev = st->st_dev;
        file->ino = st->st_ino;
        file->directory = S_ISDIR(st->st_mode);
        file->undo = file->reader = -1;
        pthread_mutex_init(&file->lock, NULL);
        file->next = known;
        known = file;
    }
    if (file) snprintf(file->path, sizeof file->path, "%s", path);
    pthread_mutex_unlock(&known_lock);
    return file;
}

/* The file of ours behind a descriptor, or none. */
static struct file *look(int fd) {
    if (fd < 0 || fd >= FDS || !root_length) return NULL;
    struct file *file = __atomic_load_n(&files[fd], __ATOMIC_ACQUIRE);
    if (!file) {
        struct stat64 st;
        char name[64], path[PATH_MAX];
        file = &foreign;
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        ssize_t length = -1;
        if (!fstat64(fd, &st) && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)))
            length = readlink(name, path, sizeof path - 1);
        if (length > 0) {
            path[length] = 0;
            if (below_root(path)) file = file_of(&st, path);
        }
        __atomic_store_n(&files[fd], file ? file : &foreign, __ATOMIC_RELEASE);
    }
    return file == &foreign ? NULL : file;
}

static void forget(int fd) {
    if (fd >= 0 && fd < FDS) __atomic_store_n(&files[fd], NULL, __ATOMIC_RELEASE);
}

static void wait_for_disk(void) {
    while (control->stall) usleep(2000);
}

static int no_room(void) {
    wait_for_disk();
    if (!control->full) return 0;
    errno = ENOSPC;
    return 1;
}

/* Notes what `length` bytes from `offset` held. The file is locked. */
static void save(struct file *file, int fd, uint64_t offset, uint64_t length) {
    struct stat64 st;
    char path[PATH_MAX], block[65536];
    if (fstat64(fd, &st)) return;
    if (file->undo < 0) {
        snprintf(path, sizeof path, "%.4000s/%llu-%llu", undo_dir, (unsigned long long)file->dev,
                 (unsigned long long)file->ino);
        file->undo = real_open64(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        /* The descriptor of the process may be for writing alone, or past the cache. */
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        file->reader = real_open64(path, O_RDONLY | O_CLOEXEC);
    }
    uint64_t size = st.st_size;
    uint64_t there = offset < size ? size - offset : 0;
    if (there > length) there = length;
    struct record record = {size, offset, there};
    int bad = real_write(file->undo, &record, sizeof record) != sizeof record;
    while (there && !bad) {
        ssize_t count = pread64(file->reader, block, there < sizeof block ? there : sizeof block, offset);
        bad = count <= 0 || real_write(file->undo, block, count) != count;
        if (!bad) offset += count, there -= count;
    }
    if (bad) {
        dprintf(2, "the shim cannot note what a write covers\n");
        abort();
    }
}

static uint64_t place(int fd) {
    struct stat64 st;
    if ((fcntl(fd, F_GETFL) & O_APPEND) && !fstat64(fd, &st)) return st.st_size;
    return lseek64(fd, 0, SEEK_CUR);
}

static uint64_t total(const struct iovec *parts, int count) {
    uint64_t sum = 0;
    for (int i = 0; i < count; i++) sum += parts[i].iov_len;
    return sum;
}

#define WRITES(fd, offset, length, call)                  \
    struct file *file = look(fd);                         \
    if (!file || file->directory) return call;            \
    if (no_room()) return -1;                             \
    pthread_mutex_lock(&file->lock);                      \
    save(file, fd, offset, length);                       \
    __auto_type result = call;                            \
    pthread_mutex_unlock(&file->lock);                    \
    return result

ssize_t write(int fd, const void *bytes, size_t length) {
    WRITES(fd, place(fd), length, real_write(fd, bytes, length));
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    WRITES(fd, offset, length, real_pwrite64(fd, bytes, length, offset));
}
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    return pwrite64(fd, bytes, length, offset);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    WRITES(fd, place(fd), total(parts, count), real_writev(fd, parts, count));
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset) {
    WRITES(fd, offset, total(parts, count), real_pwritev64(fd, parts, count, offset));
}
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    return pwritev64(fd, parts, count, offset);
}
int ftruncate64(int fd, off64_t length) {
    WRITES(fd, length, UINT64_MAX, real_ftruncate64(fd, length));
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }
int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
    /* Room that is made changes no byte; a hole does. */
    WRITES(fd, offset, mode & FALLOC_FL_PUNCH_HOLE ? length : 0, real_fallocate64(fd, mode, offset, length));
}
int fallocate(int fd, int mode, off_t offset, off_t length) { return fallocate64(fd, mode, offset, length); }
int posix_fallocate64(int fd, off64_t offset, off64_t length) {
    return fallocate64(fd, 0, offset, length) ? errno : 0;
}
int posix_fallocate(int fd, off_t offset, off_t length) { return posix_fallocate64(fd, offset, length); }

static void name(char kind, const char *path, const char *to, unsigned keep) {
    char line[3 * PATH_MAX];
    int length = keep ? snprintf(line, sizeof line, "%c\t%s\t%s\tsaved-%d-%u\n", kind, path, to, getpid(), keep)
                      : snprintf(line, sizeof line, "%c\t%s\t%s\t\n", kind, path, to);
    if (real_write(names, line, length) != length) abort();
}

static void path_of_link(char *to, size_t size, unsigned number) {
    snprintf(to, size, "%.4000s/saved-%d-%u", undo_dir, getpid(), number);
}

/* What names in `folder` stood for cannot come back any more. The names are locked. */
static void settle(const char *folder) {
    char path[PATH_MAX];
    for (struct kept **at = &links; *at;) {
        struct kept *kept = *at;
        if (strcmp(kept->folder, folder)) {
            at = &kept->next;
            continue;
        }
        path_of_link(path, sizeof path, kept->number);
        real_unlink(path);
        *at = kept->next;
        free(kept);
    }
}

static int sync_file(int fd, int (*call)(int)) {
    struct file *file = look(fd);
    if (!file) return call(fd);
    pthread_mutex_lock(&file->lock);
    wait_for_disk();
    if (control->slow_us) usleep(control->slow_us);
    int result = -1;
    if (control->sync_error) {
        errno = EIO;
    } else if (file->directory) {
        pthread_mutex_lock(&names_lock);
        result = call(fd);
        if (!result) {
            name('S', file->path, "", 0);
            settle(file->path);
        }
        pthread_mutex_unlock(&names_lock);
    } else {
        result = call(fd);
        if (!result && file->undo >= 0 && real_ftruncate64(file->undo, 0)) abort();
    }
    pthread_mutex_unlock(&file->lock);
    return result;
}

int fsync(int fd) { return sync_file(fd, real_fsync); }
int fdatasync(int fd) { return sync_file(fd, real_fdatasync); }

/* Links what stands at `path` into the undo folder; 0 when nothing does. The names are locked. */
static unsigned keep(const char *path) {
    char to[PATH_MAX];
    const char *last = strrchr(path, '/');
    unsigned number = ++saved;
    path_of_link(to, sizeof to, number);
    if (!last || real_link(path, to)) return 0;
    struct kept *kept = malloc(sizeof *kept);
    if (!kept) abort();
    kept->number = number;
    snprintf(kept->folder, sizeof kept->folder, "%.*s", (int)(last - path), path);
    kept->next = links;
    links = kept;
    return number;
}

/* Forgets what was kept last, because nothing became of it. The names are locked. */
static void unkeep(unsigned number) {
    char path[PATH_MAX];
    int error = errno;
    struct kept *kept = links;
    if (!number || !kept || kept->number != number) return;
    path_of_link(path, sizeof path, number);
    real_unlink(path);
    links = kept->next;
    free(kept);
    errno = error;
}

static int opened(const char *path, int flags, mode_t mode, int directory) {
    int ours = (flags & O_CREAT) && below_root(path);
    int there = ours && !access(path, F_OK);
    if (ours && !there && no_room()) return -1;
    if (ours && there && (flags & O_TRUNC)) {
        int fd = real_open64(path, O_RDWR | O_CLOEXEC);
        forget(fd);
        struct file *file = look(fd);
        if (file) {
            pthread_mutex_lock(&file->lock);
            save(file, fd, 0, UINT64_MAX);
            pthread_mutex_unlock(&file->lock);
        }
        forget(fd);
        if (fd >= 0) real_close(fd);
    }
    int fd = real_openat64(directory, path, flags, mode);
    forget(fd);
    if (fd >= 0 && ours && !there) {
        pthread_mutex_lock(&names_lock);
        name('C', path, "", 0);
        pthread_mutex_unlock(&names_lock);
    }
    return fd;
}

#define MODE(flags)                                       \
    mode_t mode = 0;                                      \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                \
        va_list list;                                     \
        va_start(list, flags);                            \
        mode = va_arg(list, mode_t);                      \
        va_end(list);                                     \
    }

int open64(const char *path, int flags, ...) {
    MODE(flags);
    return opened(path, flags, mode, AT_FDCWD);
}
int open(const char *path, int flags, ...) {
    MODE(flags);
    return opened(path, flags, mode, AT_FDCWD);
}
int openat64(int directory, const char *path, int flags, ...) {
    MODE(flags);
    return opened(path, flags, mode, directory);
}
int openat(int directory, const char *path, int flags, ...) {
    MODE(flags);
    return opened(path, flags, mode, directory);
}
int close(int fd) {
    forget(fd);
    return real_close(fd);
}
int dup2(int from, int to) {
    forget(to);
    return real_dup2(from, to);
}

int renameat2(int old, const char *from, int new, const char *to, unsigned flags) {
    if (!below_root(to)) return real_renameat2(old, from, new, to, flags);
    wait_for_disk();
    pthread_mutex_lock(&names_lock);
    unsigned kept = keep(to);
    int result = real_renameat2(old, from, new, to, flags);
    if (result) unkeep(kept);
    else name('R', from, to, kept);
    pthread_mutex_unlock(&names_lock);
    return result;
}
int renameat(int old, const char *from, int new, const char *to) { return renameat2(old, from, new, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

static int removed(const char *path, int directory, int flags) {
    char full[PATH_MAX * 2], folder[PATH_MAX], link[64];
    snprintf(full, sizeof full, "%s", path);
    if (path[0] != '/' && directory != AT_FDCWD) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t length = readlink(link, folder, sizeof folder - 1);
        if (length > 0) {
            folder[length] = 0;
            snprintf(full, sizeof full, "%s/%s", folder, path);
        }
    }
    if (!below_root(full) || (flags & AT_REMOVEDIR)) return real_unlinkat(directory, path, flags);
    wait_for_disk();
    pthread_mutex_lock(&names_lock);
    unsigned kept = keep(full);
    int result = real_unlinkat(directory, path, flags);
    if (result) unkeep(kept);
    else name('U', full, "", kept);
    pthread_mutex_unlock(&names_lock);
    return result;
}

int unlink(const char *path) { return removed(path, AT_FDCWD, 0); }
int unlinkat(int directory, const char *path, int flags) { return removed(path, directory, flags); }

int link(const char *from, const char *to) {
    int result = real_link(from, to);
    if (!result && below_root(to)) {
        pthread_mutex_lock(&names_lock);
        name('C', to, "", 0);
        pthread_mutex_unlock(&names_lock);
    }
    return result;
}

static void shift(struct timespec *now) {
    int64_t ms = control->clock_ms;
    if (!ms) return;
    int64_t ns = now->tv_nsec + (ms % 1000) * 1000000;
    now->tv_sec += ms / 1000 + (ns < 0 ? -1 : ns / 1000000000);
    now->tv_nsec = ns < 0 ? ns + 1000000000 : ns % 1000000000;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = real_clock_gettime ? real_clock_gettime(clock, now) : -1;
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) shift(now);
    return result;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &precise)) return -1;
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *at) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (at) *at = precise.tv_sec;
    return precise.tv_sec;
}
