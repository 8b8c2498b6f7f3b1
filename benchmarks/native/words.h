/* What the load client was asked for; the words are explained in load.c. */
#include <stdlib.h>
#include <string.h>

static struct {
    int port, info, hold;
    long total, at_once;
    unsigned long lines, skip;
    double ramp, pause, limit;
    const char *path, *prompt, *say;
} want = {.total = 1, .at_once = 1, .info = 1, .lines = 1, .limit = 60, .path = "/ws/claude", .prompt = "1 0 200"};

static void take_word(char *word) {
    char *value = strchr(word, '=');
    if (!value) return;
    *value++ = 0;
    struct { const char *name; double *number; } reals[] = {
        {"ramp", &want.ramp}, {"pause", &want.pause}, {"limit", &want.limit}};
    for (size_t i = 0; i < 3; i++) if (!strcmp(word, reals[i].name)) *reals[i].number = atof(value);
    if (!strcmp(word, "port")) want.port = atoi(value);
    if (!strcmp(word, "info")) want.info = atoi(value);
    if (!strcmp(word, "hold")) want.hold = atoi(value);
    if (!strcmp(word, "total")) want.total = atol(value);
    if (!strcmp(word, "at_once")) want.at_once = atol(value);
    if (!strcmp(word, "lines")) want.lines = atol(value);
    if (!strcmp(word, "skip")) want.skip = atol(value);
    if (!strcmp(word, "path")) want.path = value;
    if (!strcmp(word, "prompt")) want.prompt = value;
    if (!strcmp(word, "say")) want.say = value;
}
