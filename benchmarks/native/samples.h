/* Durations in nanoseconds, all kept, and their percentiles as JSON. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MOST_SAMPLES 8000000

struct samples {
    long long *values;
    size_t count, room;
};

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void add_sample(struct samples *s, long long value) {
    if (s->count == MOST_SAMPLES) return;
    if (s->count == s->room) {
        s->room = s->room ? s->room * 2 : 1024;
        s->values = realloc(s->values, s->room * sizeof *s->values);
        if (!s->values) abort();
    }
    s->values[s->count++] = value;
}

static int compare(const void *a, const void *b) {
    long long x = *(const long long *)a, y = *(const long long *)b;
    return (x > y) - (x < y);
}

static double share_us(const struct samples *s, double share) {
    size_t at = s->count * share;
    return s->values[at < s->count ? at : s->count - 1] / 1e3;
}

/* Print `"name":{...},` in microseconds; null where there is none. */
static void print_samples(const char *name, struct samples *s) {
    if (!s->count) {
        printf("\"%s\":null,", name);
        return;
    }
    qsort(s->values, s->count, sizeof *s->values, compare);
    printf("\"%s\":{\"count\":%zu,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f},", name, s->count,
           share_us(s, .5), share_us(s, .9), share_us(s, .99), share_us(s, .999), share_us(s, 1));
}
