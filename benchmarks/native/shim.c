/* Stands between a gateway and the real CLI and notes four moments of CLOCK_MONOTONIC: its own start, the passing of the
 * prompt, the passing of the first token's line, and the end. What the gateway adds is what lies outside of them.
 *
 * CLAUDE_BENCH_CLI is the CLI, which gets our words; CLAUDE_BENCH_NOTES is the file that gets one line,
 * START PROMPT FIRST END in nanoseconds, 0 for what has not passed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROMPT "\"user\""
#define TOKEN "content_block_delta"

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Pass a chunk on, and note when one with the word was about to be passed first; returns 0 at the end of either. */
static int pass(int from, int to, const char *word, long long *noted) {
    static char chunk[1 << 20];
    ssize_t n = read(from, chunk, sizeof chunk);
    if (n < 0 && errno == EINTR) return 1;
    if (n > 0 && !*noted && memmem(chunk, n, word, strlen(word))) *noted = now();
    for (ssize_t at = 0, wrote; at < n; at += wrote)
        if ((wrote = write(to, chunk + at, n - at)) < 0) return 0;
    return n > 0;
}

int main(int count, char **words) {
    long long began = now(), prompt = 0, first = 0;
    int in[2], out[2], status = 1;
    const char *cli = getenv("CLAUDE_BENCH_CLI"), *notes = getenv("CLAUDE_BENCH_NOTES");
    if (!count || !cli || !notes || pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)) return 2;
    pid_t pid = fork();
    if (!pid) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        execv(cli, words);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    signal(SIGPIPE, SIG_IGN);
    struct pollfd ends[] = {{.fd = 0, .events = POLLIN}, {.fd = out[0], .events = POLLIN}};
    while (poll(ends, 2, -1) > 0 || errno == EINTR) {
        if (ends[0].revents && !pass(0, in[1], PROMPT, &prompt)) {
            close(in[1]);
            ends[0].fd = in[1] = -1;
        }
        if (ends[1].revents && !pass(out[0], 1, TOKEN, &first)) break;
    }
    if (in[1] >= 0) close(in[1]);
    waitpid(pid, &status, 0);
    FILE *file = fopen(notes, "w");
    if (!file) return 2;
    fprintf(file, "%lld %lld %lld %lld\n", began, prompt, first, now());
    fclose(file);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
