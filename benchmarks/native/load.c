/* Many WebSocket clients in one process: sends a prompt on each, reads its lines, counts what is lost or out of order.
 *
 * Words are NAME=VALUE: port, path, total (connections), at_once, ramp (new ones a second; 0: at once), prompt, say (a
 * whole message in place of a prompt's),
 * info (1: wait for the info frame), lines (expected on each), skip (lines of each whose latency does not count),
 * pause (seconds for which a connection reads nothing, behind its first line), hold (1: the children stay, and the
 * clients leave when a line comes on stdin; `look` is answered by {"event":"looked"} and ends the counting of
 * latencies, `clear` begins it anew), limit (seconds in all).
 *
 * Prints JSON, one object a line: {"event":"started"} when each connection has had `skip` lines, and at least one,
 * {"event":"paused"} and {"event":"resumed"}, {"event":"complete"} when all lines are in and `hold` is set, and at
 * last {"event":"end", ...}, whose `span_s` begins with the first line behind `started`. Durations are microseconds,
 * times CLOCK_MONOTONIC nanoseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "counts.h"
#include "words.h"

#define ROOM (256 * 1024)
#define LINGER 3000000000LL /* for a server that does not close its side */

enum state { IDLE, SHAKING, WAITING, STREAMING, LEAVING };

struct connection {
    int fd;
    enum state state;
    long long began, asked, paused, closed;
    unsigned char *data, *message;
    size_t held, room, message_size;
    unsigned long next, lines;
};

static struct connection *connections;
static int poll_fd, free_slots, frozen;

static void watch(struct connection *c, int how, unsigned events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(poll_fd, how, c->fd, &e);
}

static void finish(struct connection *c, int failed) {
    if (c->state == IDLE) return;
    close(c->fd);
    c->state = IDLE;
    seen.done++;
    seen.failed += failed;
    if (c->next < want.lines) seen.lost += want.lines - c->next;
    free_slots++;
}

/* Send one masked frame; a client here never says more than fits into the socket. */
static void send_frame(struct connection *c, int opcode, const void *data, size_t size) {
    unsigned char head[8] = {0x80 | opcode, 0x80 | size}, frame[16384];
    size_t at = 2;
    if (size >= 126) head[1] = 0x80 | 126, head[2] = size >> 8, head[3] = size, at = 4;
    memcpy(frame, head, at);
    memset(frame + at, 0, 4); /* a mask of zeros is a mask */
    memcpy(frame + at + 4, data, size);
    if (send(c->fd, frame, at + 4 + size, MSG_NOSIGNAL) < 0 && errno != EAGAIN) c->closed = now();
}

static void ask(struct connection *c) {
    char text[9000];
    const char *form = want.say ? "%s" : "{\"prompt\":\"%s\",\"meta\":\"BENCH\"}";
    int size = snprintf(text, sizeof text, form, want.say ? want.say : want.prompt);
    c->state = STREAMING;
    c->asked = now();
    send_frame(c, 1, text, size);
}

static void count_order(struct connection *c, unsigned long number) {
    if (number == c->next) c->next++;
    else if (number > c->next) seen.lost += number - c->next, c->next = number + 1;
    else {
        seen.reordered++;
        if (seen.lost) seen.lost--;
    }
}

static void on_first(struct connection *c, long long at) {
    add_sample(&to_first, at - c->asked);
    if (want.pause > 0) {
        c->paused = at + want.pause * 1e9;
        watch(c, EPOLL_CTL_MOD, 0);
        event("paused");
    }
}

static void on_line(struct connection *c, const unsigned char *data, size_t size, long long at) {
    if (size < TEXT || memcmp(data, HEAD, NUMBER)) {
        seen.other++;
        note((const char *)data, size);
        return;
    }
    count_order(c, digits(data + NUMBER, 10));
    seen.lines++, seen.bytes += size;
    seen.last = at;
    if (!seen.first) seen.first = at;
    if (!c->lines++) on_first(c, at);
    if (c->lines > want.skip && !frozen) {
        long long stamp = digits(data + STAMP, 19);
        if (stamp) add_sample(&latency, at - stamp);
    }
    if (c->lines == (want.skip ? want.skip : 1) && ++seen.started == want.total) event("started"), seen.first = 0;
    if (want.hold && c->lines == want.lines && ++seen.complete == want.total) event("complete");
}

static void on_message(struct connection *c, int opcode, const unsigned char *data, size_t size, long long at) {
    if (c->state == WAITING) {
        add_sample(&to_info, at - c->began);
        ask(c);
    } else if (opcode == 1 || opcode == 2) on_line(c, data, size, at);
}

static void on_close(struct connection *c, const unsigned char *data, size_t size, long long at) {
    int code = size >= 2 ? data[0] << 8 | data[1] : 1005;
    seen.codes[code < 5000 ? code : 0]++;
    add_sample(&to_close, at - c->began);
    send_frame(c, 8, data, size < 2 ? 0 : 2);
    c->state = LEAVING;
    c->closed = at + LINGER;
}

/* A part of a message that comes in several frames; fragments are rare, so they are copied. */
static void on_fragment(struct connection *c, int opcode, const unsigned char *data, size_t size, int last, long long at) {
    c->message = realloc(c->message, c->message_size + size + 1);
    memcpy(c->message + c->message_size, data, size);
    c->message_size += size;
    if (!last) return;
    size = c->message_size, c->message_size = 0;
    on_message(c, opcode ? opcode : 1, c->message, size, at);
}

static void on_frame(struct connection *c, int first, const unsigned char *data, size_t size, long long at) {
    int opcode = first & 15, last = first & 128;
    if (opcode == 8) on_close(c, data, size, at);
    else if (opcode == 9) send_frame(c, 10, data, size);
    else if (opcode < 3 && (!last || !opcode)) on_fragment(c, opcode, data, size, last, at);
    else if (opcode < 3) on_message(c, opcode, data, size, at);
}

/* Take one frame from the front of `data`; returns its whole size, or 0 where it is not all there. */
static size_t take_frame(struct connection *c, const unsigned char *data, size_t held, long long at) {
    if (held < 2) return 0;
    size_t size = data[1] & 127, start = 2;
    if (size == 126) {
        if (held < (start = 4)) return 0;
        size = data[2] << 8 | data[3];
    } else if (size == 127) {
        if (held < (start = 10)) return 0;
        size = 0;
        for (int i = 2; i < 10; i++) size = size << 8 | data[i];
    }
    if (held < start + size) return 0;
    on_frame(c, data[0], data + start, size, at);
    return start + size;
}

/* Take the answer to the handshake; returns its size, 0 where it is not all there, -1 where it is a refusal. */
static long take_head(struct connection *c) {
    unsigned char *end = memmem(c->data, c->held, "\r\n\r\n", 4);
    if (!end) return 0;
    if (memcmp(c->data, "HTTP/1.1 101", 12)) {
        note((char *)c->data, end - c->data);
        return -1;
    }
    c->state = WAITING;
    if (!want.info) ask(c);
    return end + 4 - c->data;
}

static int parse(struct connection *c, long long at) {
    size_t start = 0, took;
    if (c->state == SHAKING) {
        long head = take_head(c);
        if (head <= 0) return head;
        start = head;
    }
    while (c->state != LEAVING && (took = take_frame(c, c->data + start, c->held - start, at))) start += took;
    memmove(c->data, c->data + start, c->held -= start);
    if (c->held == c->room) c->data = realloc(c->data, c->room *= 2);
    return 0;
}

static void on_readable(struct connection *c) {
    ssize_t n = read(c->fd, c->data + c->held, c->room - c->held);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        if (c->state == STREAMING) seen.codes[1006]++, add_sample(&to_close, now() - c->began);
        finish(c, c->state != LEAVING && c->state != STREAMING);
        return;
    }
    c->held += n;
    if (parse(c, now()) < 0) finish(c, 1);
}

static void shake_hands(struct connection *c) {
    char text[1000];
    int size = snprintf(text, sizeof text,
                        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n",
                        want.path, want.port);
    if (send(c->fd, text, size, MSG_NOSIGNAL) < 0) finish(c, 1);
}

static void open_one(struct connection *c) {
    struct sockaddr_in to = {AF_INET, htons(want.port), {htonl(INADDR_LOOPBACK)}, {0}};
    unsigned char *data = c->data;
    size_t room = c->room;
    *c = (struct connection){.state = SHAKING, .data = data, .room = room, .began = now(), .message = c->message};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    seen.opened++, free_slots--;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to)) {
        note(strerror(errno), strlen(strerror(errno)));
        finish(c, 1);
        return;
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
    shake_hands(c);
}

static void open_due(void) {
    long due = want.ramp > 0 ? 1 + (now() - began) / 1e9 * want.ramp : want.total;
    for (long i = 0; i < want.at_once && free_slots && seen.opened < want.total && seen.opened < due; i++)
        if (connections[i].state == IDLE) open_one(&connections[i]);
}

static void look_at_clocks(void) {
    long long at = now();
    for (long i = 0; i < want.at_once; i++) {
        struct connection *c = &connections[i];
        if (c->state != IDLE && c->closed && at > c->closed) finish(c, 0);
        if (c->state != IDLE && c->paused && at > c->paused) {
            c->paused = 0;
            event("resumed");
            watch(c, EPOLL_CTL_MOD, EPOLLIN);
        }
    }
}

/* `look` asks how many lines there are and ends the counting of latencies, `clear` begins it anew; all else, and the
 * end of stdin, is to leave. */
static void hear(void) {
    char word[100];
    ssize_t n = read(0, word, sizeof word);
    if (n < 0) return;
    if (n >= 4 && !memcmp(word, "look", 4)) {
        frozen = 1;
        event("looked");
        return;
    }
    if (n >= 5 && !memcmp(word, "clear", 5)) {
        frozen = 0, latency.count = 0;
        event("cleared");
        return;
    }
    for (long i = 0; i < want.at_once; i++)
        if (connections[i].state != IDLE) send_frame(&connections[i], 8, "\x03\xe8", 2), finish(&connections[i], 0);
    seen.opened = seen.done = want.total;
}

int main(int count, char **words) {
    struct epoll_event events[256];
    struct connection input = {0};
    for (int i = 1; i < count; i++) take_word(words[i]);
    connections = calloc(want.at_once, sizeof *connections);
    for (long i = 0; i < want.at_once; i++) connections[i].data = malloc(connections[i].room = ROOM);
    free_slots = want.at_once;
    poll_fd = epoll_create1(0);
    began = now();
    if (want.hold) watch(&input, EPOLL_CTL_ADD, EPOLLIN);
    while (seen.done < want.total && now() - began < want.limit * 1e9) {
        open_due();
        int n = epoll_wait(poll_fd, events, 256, seen.opened < want.total && want.ramp > 0 ? 2 : 100);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == &input) hear();
            else if (c->state != IDLE && !c->paused) on_readable(c);
        }
        look_at_clocks();
    }
    print_end(seen.done < want.total);
    return 0;
}
