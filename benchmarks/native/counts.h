/* What the load client has seen of the fake CLI's lines, and how it tells. */
#include <string.h>
#include <sys/resource.h>

#include "samples.h"

#define HEAD "{\"type\":\"stream_event\",\"event\":{\"type\":\"content_block_delta\",\"index\":0," \
    "\"delta\":{\"type\":\"text_delta\",\"text\":\"n="
#define NUMBER (sizeof HEAD - 1)
#define STAMP (NUMBER + 10 + 3)
#define TEXT (STAMP + 19 + 1)

static struct {
    unsigned long lines, bytes, lost, reordered, other;
    long opened, done, failed, started, complete;
    long codes[5000];
    long long first, last;
    char note[200];
} seen;
static struct samples latency, to_info, to_first, to_close;
static long long began;

static void event(const char *name) {
    printf("{\"event\":\"%s\",\"t\":%lld,\"lines\":%lu}\n", name, now(), seen.lines);
    fflush(stdout);
}

static void note(const char *text, size_t size) {
    if (seen.note[0]) return;
    for (size_t i = 0; i < size && i < sizeof seen.note - 1; i++)
        seen.note[i] = text[i] == '"' || text[i] == '\\' || text[i] < ' ' ? '\'' : text[i];
}

static unsigned long long digits(const unsigned char *at, int width) {
    unsigned long long value = 0;
    while (width--) value = value * 10 + *at++ - '0';
    return value;
}

static void print_codes(void) {
    const char *comma = "";
    printf("\"codes\":{");
    for (int i = 0; i < 5000; i++)
        if (seen.codes[i]) printf("%s\"%d\":%ld", comma, i, seen.codes[i]), comma = ",";
    printf("},");
}

static void print_end(int gave_up) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("{\"event\":\"end\",\"connections\":%ld,\"failed\":%ld,\"gave_up\":%s,\"lines\":%lu,\"bytes\":%lu,", seen.done,
           seen.failed, gave_up ? "true" : "false", seen.lines, seen.bytes);
    printf("\"lost\":%lu,\"reordered\":%lu,\"other\":%lu,\"note\":\"%s\",", seen.lost, seen.reordered, seen.other, seen.note);
    printf("\"span_s\":%.6f,\"wall_s\":%.6f,", (seen.last - seen.first) / 1e9, (now() - began) / 1e9);
    print_samples("latency", &latency);
    print_samples("to_info", &to_info);
    print_samples("to_first", &to_first);
    print_samples("to_close", &to_close);
    print_codes();
    printf("\"client_cpu_s\":%.3f}\n", used.ru_utime.tv_sec + used.ru_stime.tv_sec +
           (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
}
