/* Stands between a gateway and the real CLI and notes three moments of CLOCK_MONOTONIC: its own start, the passing of
 * the first token's line, and the end. What the gateway adds is what lies outside of them.
 *
 * CLAUDE_BENCH_CLI is the CLI, which gets our words and our stdin; CLAUDE_BENCH_NOTES is the file that gets one line,
 * START FIRST END in nanoseconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TOKEN "content_block_delta"

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Pass on what comes; returns when the first token was about to be passed, or 0. */
static long long pump(int from) {
    static char chunk[1 << 20];
    long long first = 0;
    ssize_t n;
    while ((n = read(from, chunk, sizeof chunk)) > 0 || (n < 0 && errno == EINTR)) {
        if (n > 0 && !first && memmem(chunk, n, TOKEN, sizeof TOKEN - 1)) first = now();
        for (ssize_t at = 0, wrote; at < n; at += wrote)
            if ((wrote = write(1, chunk + at, n - at)) < 0) return first;
    }
    return first;
}

int main(int count, char **words) {
    long long began = now();
    int out[2], status = 1;
    const char *cli = getenv("CLAUDE_BENCH_CLI"), *notes = getenv("CLAUDE_BENCH_NOTES");
    if (!count || !cli || !notes || pipe2(out, O_CLOEXEC)) return 2;
    pid_t pid = fork();
    if (!pid) {
        dup2(out[1], 1);
        execv(cli, words);
        _exit(127);
    }
    close(out[1]);
    long long first = pump(out[0]);
    waitpid(pid, &status, 0);
    FILE *file = fopen(notes, "w");
    if (!file) return 2;
    fprintf(file, "%lld %lld %lld\n", began, first, now());
    fclose(file);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
