/* The limit: a relay in C, one thread and one epoll, that speaks the contract and nothing beyond it.
 *
 * A pipe read of 64 KiB becomes one buffer of frames and one send; while the socket is full the pipe is not read.
 * It has no limits, deadlines or pings, and kills the child's process group when the client leaves: less than a server
 * may do, so that what it reaches can be reached by nobody. Words: PORT CHILD.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sha1.h"

#define CHUNK 65536
#define INFO "{\"info\":\"send {prompt,meta}\"}"

struct session;
struct source { struct session *session; int fd; };

struct session {
    struct source sock, pipe, exit;
    pid_t pid;
    int shaken, ended, exited, dead;
    size_t held, out_at, out_size;
    char in[12288], *rest; /* rest: the beginning of a line */
    size_t rest_size;
    char *out;
    struct session *next_dead;
};

static int poll_fd;
static const char *child;
static struct session *dead;
static char chunk[CHUNK];

static void watch(struct source *s, int how, unsigned events) {
    struct epoll_event e = {.events = events, .data.ptr = s};
    epoll_ctl(poll_fd, how, s->fd, &e);
}

/* A child that is being started holds a copy of each descriptor for a moment, so closing is not enough for epoll. */
static void shut(struct source *s) {
    if (s->fd < 0) return;
    epoll_ctl(poll_fd, EPOLL_CTL_DEL, s->fd, NULL);
    close(s->fd);
    s->fd = -1;
}

static void bury(struct session *s) {
    if (s->dead) return;
    if (s->pid && !s->exited) {
        kill(-s->pid, SIGKILL);
        waitpid(s->pid, NULL, 0);
    }
    shut(&s->sock), shut(&s->pipe), shut(&s->exit);
    s->dead = 1, s->next_dead = dead, dead = s;
}

static void free_dead(void) {
    while (dead) {
        struct session *s = dead;
        dead = s->next_dead;
        free(s->rest), free(s->out), free(s);
    }
}

/* Send what is in `out`; while something stays there the pipe rests. */
static void flush(struct session *s) {
    ssize_t n = send(s->sock.fd, s->out + s->out_at, s->out_size - s->out_at, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) {
        bury(s);
        return;
    }
    int waited = s->out_at > 0 || s->out != NULL;
    if (n > 0) s->out_at += n;
    if (s->out_at < s->out_size) {
        watch(&s->sock, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
        if (s->pipe.fd > 0) watch(&s->pipe, EPOLL_CTL_MOD, 0);
    } else if (waited) {
        free(s->out), s->out = NULL, s->out_at = s->out_size = 0;
        watch(&s->sock, EPOLL_CTL_MOD, EPOLLIN);
        if (s->pipe.fd > 0) watch(&s->pipe, EPOLL_CTL_MOD, EPOLLIN);
    }
}

static void say(struct session *s, const char *data, size_t size) {
    ssize_t n = s->out ? 0 : send(s->sock.fd, data, size, MSG_NOSIGNAL);
    if (n == (ssize_t)size) return;
    if (n < 0 && errno != EAGAIN) {
        bury(s);
        return;
    }
    if (n < 0) n = 0;
    s->out = realloc(s->out, s->out_size + size - n);
    memcpy(s->out + s->out_size, data + n, size - n);
    s->out_size += size - n;
    flush(s);
}

static size_t put_head(char *at, int opcode, size_t size) {
    at[0] = 0x80 | opcode;
    if (size < 126) return at[1] = size, 2;
    if (size < 65536) return at[1] = 126, at[2] = size >> 8, at[3] = size, 4;
    at[1] = 127;
    for (int i = 0; i < 8; i++) at[2 + i] = (uint64_t)size >> (56 - 8 * i);
    return 10;
}

static void say_frame(struct session *s, int opcode, const char *data, size_t size) {
    char frame[256];
    size_t head = put_head(frame, opcode, size);
    memcpy(frame + head, data, size);
    say(s, frame, head + size);
}

/* Say the lines of a chunk; what has no newline yet is kept. */
static void say_lines(struct session *s, const char *data, size_t size) {
    static char *frames;
    static size_t room;
    size_t need = 4 * (size + s->rest_size) + 64, at = 0; /* an empty line becomes two bytes, one byte three */
    if (need > room) frames = realloc(frames, room = need);
    const char *end = data + size, *newline;
    while ((newline = memchr(data, '\n', end - data))) {
        size_t length = newline - data;
        at += put_head(frames + at, 1, s->rest_size + length);
        memcpy(frames + at, s->rest, s->rest_size), at += s->rest_size;
        memcpy(frames + at, data, length), at += length;
        s->rest_size = 0;
        data = newline + 1;
    }
    if (data < end) {
        s->rest = realloc(s->rest, s->rest_size + (end - data));
        memcpy(s->rest + s->rest_size, data, end - data), s->rest_size += end - data;
    }
    if (at) say(s, frames, at);
}

static void close_politely(struct session *s) {
    if (s->ended && s->exited) say_frame(s, 8, "\x03\xe8", 2);
}

static void on_pipe(struct session *s) {
    ssize_t n = read(s->pipe.fd, chunk, CHUNK);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) {
        say_lines(s, chunk, n);
        return;
    }
    if (s->rest_size) say_lines(s, "\n", 1);
    shut(&s->pipe);
    s->ended = 1;
    close_politely(s);
}

static void on_exit_(struct session *s) {
    waitpid(s->pid, NULL, 0);
    shut(&s->exit);
    s->exited = 1;
    close_politely(s);
}

static void start(struct session *s, const char *line, size_t size) {
    extern char **environ;
    int in[2], out[2];
    char *words[] = {(char *)child, "-p", "--input-format", "stream-json", "--output-format", "stream-json", "--verbose", NULL};
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)) return bury(s);
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t how;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    posix_spawnattr_init(&how);
    posix_spawnattr_setflags(&how, POSIX_SPAWN_SETPGROUP);
    int failed = posix_spawn(&s->pid, child, &actions, &how, words, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]), close(out[1]);
    if (failed || write(in[1], line, size) < 0) s->pid = failed ? 0 : s->pid;
    close(in[1]);
    s->pipe.fd = out[0];
    if (failed) return bury(s);
    s->exit.fd = syscall(SYS_pidfd_open, s->pid, 0);
    fcntl(s->pipe.fd, F_SETFL, O_NONBLOCK);
    watch(&s->pipe, EPOLL_CTL_ADD, EPOLLIN);
    watch(&s->exit, EPOLL_CTL_ADD, EPOLLIN);
}

/* The prompt stays as it was quoted: what is a JSON string there is one here. */
static void on_prompt(struct session *s, char *text) {
    char line[12288], *from = strstr(text, "\"prompt\""), *to;
    if (!from || !strstr(text, "\"meta\"") || !(from = strchr(from + 8, '"'))) return bury(s);
    for (to = from + 1; *to && *to != '"'; to++) to += *to == '\\';
    int size = snprintf(line, sizeof line, "{\"type\":\"user\",\"message\":{\"role\":\"user\",\"content\":%.*s\"}}\n",
                        (int)(to - from), from);
    start(s, line, size);
}

/* Take a frame of the client's; returns its whole size, or 0 where it is not all there. */
static size_t take_frame(struct session *s, char *data, size_t held) {
    unsigned char *at = (unsigned char *)data;
    size_t start = 6, size = held > 1 ? at[1] & 127 : 0;
    if (size == 126) start = 8, size = held > 3 ? (size_t)at[2] << 8 | at[3] : sizeof s->in;
    if (held < start + size || held < 6) return 0;
    for (size_t i = 0; i < size; i++) data[start + i] ^= at[start - 4 + i % 4];
    int opcode = at[0] & 15;
    char after = data[start + size];
    data[start + size] = 0;
    if (opcode == 1 && !s->pid) on_prompt(s, data + start);
    if (opcode == 9 && size < 126) say_frame(s, 10, data + start, size);
    if (opcode == 8) bury(s);
    data[start + size] = after;
    return start + size;
}

static size_t shake_hands(struct session *s) {
    char text[300], accept[64], key[100], *end = strstr(s->in, "\r\n\r\n"), *at = strcasestr(s->in, "\r\nSec-WebSocket-Key:");
    unsigned char digest[20];
    if (!end) return 0;
    if (!at || strncmp(s->in, "GET /ws/claude", 14) || sscanf(at + 20, " %60[^\r ]", key) != 1) return bury(s), 0;
    strcat(key, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    sha1(key, digest), base64(digest, accept);
    int size = snprintf(text, sizeof text, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Accept: %s\r\n\r\n", accept);
    size += put_head(text + size, 1, sizeof INFO - 1);
    memcpy(text + size, INFO, sizeof INFO - 1);
    s->shaken = 1;
    say(s, text, size + sizeof INFO - 1);
    return end + 4 - s->in;
}

static void on_socket(struct session *s) {
    ssize_t n = read(s->sock.fd, s->in + s->held, sizeof s->in - 1 - s->held);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return bury(s);
    s->in[s->held += n] = 0;
    size_t at = s->shaken ? 0 : shake_hands(s), took;
    while (s->shaken && !s->dead && (took = take_frame(s, s->in + at, s->held - at))) at += took;
    memmove(s->in, s->in + at, s->held -= at);
}

static void accept_all(int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct session *s = calloc(1, sizeof *s);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        s->sock = (struct source){s, fd}, s->pipe = s->exit = (struct source){s, -1};
        watch(&s->sock, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void on_event(struct source *from, unsigned events) {
    struct session *s = from->session;
    if (s->dead || from->fd < 0) return;
    if (from == &s->pipe) on_pipe(s);
    else if (from == &s->exit) on_exit_(s);
    else {
        if (events & EPOLLOUT) flush(s);
        if (!s->dead && events & ~EPOLLOUT) on_socket(s);
    }
}

static int listen_on(int port) {
    struct sockaddr_in at = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 1024)) return -1;
    return fd;
}

int main(int count, char **words) {
    struct epoll_event events[256], e = {.events = EPOLLIN, .data.ptr = NULL};
    struct rlimit files;
    if (count < 3) return 2;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max, setrlimit(RLIMIT_NOFILE, &files);
    child = words[2];
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on(atoi(words[1]));
    if (listener < 0) return 1;
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        int n = epoll_wait(poll_fd, events, 256, -1);
        for (int i = 0; i < n; i++)
            if (events[i].data.ptr) on_event(events[i].data.ptr, events[i].events);
            else accept_all(listener);
        free_dead();
    }
}
