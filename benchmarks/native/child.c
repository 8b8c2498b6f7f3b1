/* A CLI for measurements: says lines as fast as a pipe takes them, or at a rate, each with its number and its time.
 *
 * It reads one stream-json user line whose content is a script, COUNT RATE SIZE [THEN [AT]]:
 *   COUNT lines, RATE a second (0: as fast as it goes, in writes of 64 KiB), SIZE bytes each, and then
 *   exit (the default), wait (until it is killed, or for MAX_WAIT seconds).
 *   AT is when it goes on behind its first line, in CLOCK_MONOTONIC nanoseconds, so that many can begin at once.
 * A paced line carries the CLOCK_MONOTONIC nanoseconds of its writing. With the word `alone` as its first argument it
 * speaks the whole contract on its own, for a relay that knows none: the info line first, then {"prompt","meta"}.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_WAIT 600
#define CHUNK 65536
#define HEAD "{\"type\":\"stream_event\",\"event\":{\"type\":\"content_block_delta\",\"index\":0," \
    "\"delta\":{\"type\":\"text_delta\",\"text\":\"n="
#define NUMBER (sizeof HEAD - 1)           /* where ten digits of the line's number stand */
#define STAMP (NUMBER + 10 + 3)            /* where nineteen digits of its time stand, behind " t=" */
#define TEXT (STAMP + 19 + 1)
#define SHORT_TAIL "\"}},\"session_id\":\"bench\"}\n"
#define LONG_TAIL "\"}},\"session_id\":\"5f1c0c6e-5a55-4d0c-9d33-0c1a2e4a7b10\",\"parent_tool_use_id\":null," \
    "\"uuid\":\"0b9c7d1e-3f7a-4c58-8a52-6d1f0e9b4c27\"}\n"

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void write_all(const char *data, size_t size) {
    while (size) {
        ssize_t n = write(1, data, size);
        if (n < 0 && errno != EINTR) _exit(3);
        if (n > 0) data += n, size -= n;
    }
}

static void digits(char *at, int width, unsigned long long value) {
    while (width--) at[width] = '0' + value % 10, value /= 10;
}

/* Lay out one line of `size` bytes without its newline; returns its length with it. */
static size_t lay_out(char *line, size_t size) {
    const char *tail = size + 1 >= TEXT + sizeof LONG_TAIL ? LONG_TAIL : SHORT_TAIL;
    size_t ends = strlen(tail), pad = size + 1 > TEXT + ends ? size + 1 - TEXT - ends : 0;
    memcpy(line, HEAD, NUMBER);
    memcpy(line + NUMBER + 10, " t=", 3);
    digits(line + STAMP, 19, 0);
    line[TEXT - 1] = ' ';
    memset(line + TEXT, 'x', pad);
    memcpy(line + TEXT + pad, tail, ends);
    return TEXT + pad + ends;
}

static void sleep_until(long long at) {
    struct timespec t = {at / 1000000000, at % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR);
}

static void say_fast(unsigned long number, unsigned long count, const char *line, size_t length) {
    size_t fits = length > CHUNK ? 1 : CHUNK / length;
    char *chunk = malloc(fits * length);
    for (size_t i = 0; i < fits; i++) memcpy(chunk + i * length, line, length);
    while (number < count) {
        size_t lines = count - number < fits ? count - number : fits;
        for (size_t i = 0; i < lines; i++) digits(chunk + i * length + NUMBER, 10, number++);
        write_all(chunk, lines * length);
    }
    free(chunk);
}

static void say_paced(unsigned long count, double rate, char *line, size_t length) {
    long long gap = 1e9 / rate, began = now();  /* runs that begin in step must not speak in step: */
    long long due = began + (began * 0x9E3779B97F4A7C15ull >> 20) % gap;  /* no pid, as in a namespace all are alike */
    for (unsigned long number = 0; number < count; number++, due += gap) {
        if (number) sleep_until(due);
        digits(line + NUMBER, 10, number);
        digits(line + STAMP, 19, now());
        write_all(line, length);
    }
}

/* Read the first line of stdin; returns where the script in it begins, or NULL. */
static char *read_script(char *buffer, size_t size, const char *key) {
    size_t held = 0;
    while (held < size - 1 && !memchr(buffer, '\n', held)) {
        ssize_t n = read(0, buffer + held, size - 1 - held);
        if (n <= 0) break;
        held += n;
    }
    buffer[held] = 0;
    char *at = strstr(buffer, key);
    if (!at) return NULL;
    at += strlen(key);
    return at + strspn(at, " :\"");
}

int main(int count, char **words) {
    static char buffer[16384];
    int alone = count > 1 && !strcmp(words[1], "alone");
    if (alone) write_all("{\"info\":\"send {prompt,meta}\"}\n", 30);
    char *script = read_script(buffer, sizeof buffer, alone ? "\"prompt\"" : "\"content\""), then[8] = "exit";
    unsigned long lines;
    long long at = 0;
    double rate;
    size_t size;
    if (!script || sscanf(script, "%lu %lf %zu %7[a-z] %lld", &lines, &rate, &size, then, &at) < 3) return 2;
    char *line = malloc(size + 1024);
    size_t length = lay_out(line, size);
    if (rate > 0) say_paced(lines, rate, line, length);
    else {
        if (at) say_fast(0, 1, line, length), sleep_until(at);
        say_fast(at ? 1 : 0, lines, line, length);
    }
    if (!strcmp(then, "wait")) sleep(MAX_WAIT);
    return 0;
}
