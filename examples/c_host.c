/* SPDX-License-Identifier: MIT */
/* A host in C, through mnemo/c.h alone: it remembers a text, mixes the memory into its logits at each step, saves the
 * memory and opens it again. The host itself is the smallest that has a state: fading sums of characters. */
#include <mnemo/c.h>

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { D = 24, VOCAB = 128, MOST = 256 };

static float embedding[VOCAB][D];
static float state[D];      /* valid until the next decode() */
static float logits[VOCAB]; /* the same: the memory edits them in place */

static void decode(int token) {
    int j;
    for (j = 0; j < D; ++j) state[j] = 0.8f * state[j] + embedding[token][j];
    for (j = 0; j < VOCAB; ++j) logits[j] = strchr("etaoin shr", j) != NULL && j > 0 ? 2.0f : -2.0f;
}
static int best(void) {
    int i, at = 0;
    for (i = 1; i < VOCAB; ++i)
        if (logits[i] > logits[at]) at = i;
    return at;
}
/* Stops the program if a call failed. */
static void check(int status) {
    if (status == MNEMO_OK) return;
    fprintf(stderr, "%s\n", mnemo_last_error());
    exit(1);
}

/* Greedy text of `length` characters after `prompt`; `session` may be NULL. */
static void write_text(mnemo_session* session, const char* prompt, size_t length, char* out) {
    const mnemo_rows row = MNEMO_ROWS_INIT(state, 1, D);
    size_t i, n = strlen(prompt);
    memset(state, 0, sizeof state);
    strcpy(out, prompt);
    for (i = 0; i < n; ++i) decode(prompt[i]);
    for (; n < length; ++n) {
        if (session != NULL) check(mnemo_mix_logits(session, &row, logits, VOCAB, 0, MNEMO_LOGITS));
        out[n] = (char)best();
        out[n + 1] = '\0';
        decode(out[n]);
    }
}

int main(int count, char** arguments) {
    const char* const text = "The olm lives in caves for a hundred years and needs a meal in ten of them.";
    const char* const prompt = "The olm";
    const size_t length = strlen(text);
    static float states[MOST][D];
    static int32_t next[MOST];
    float log_p[MOST];
    char without[MOST], with[MOST], again[MOST];
    mnemo_options options = MNEMO_OPTIONS_INIT;
    mnemo_memory *memory = NULL, *opened = NULL;
    mnemo_session* session = NULL;
    mnemo_rows rows = MNEMO_ROWS_INIT(states, (int64_t)length - 1, D);
    int64_t ids[2];
    int32_t tokens[2];
    float scores[2];
    double mean = 0;
    size_t i, j;
    const char* const folder = count > 1 ? arguments[1] : "c_host_memory";

    srand(1);
    for (i = 0; i < VOCAB; ++i)
        for (j = 0; j < D; ++j) embedding[i][j] = (float)(rand() % 2001) / 1000.0f - 1.0f;

    options.key_dim = D;
    options.vocab_size = VOCAB;
    options.k = 4;
    options.lambda = 0.8f;
    options.model = "c_host 1";
    options.key_tap = "state";
    check(mnemo_create(&options, &memory));

    /* Reads the text once: what followed each state. */
    for (i = 0; i + 1 < length; ++i) {
        decode(text[i]);
        memcpy(states[i], state, sizeof state);
        next[i] = text[i + 1];
    }
    check(mnemo_add(memory, &rows, next));
    printf("%lld entries, mnemo %s\n", (long long)mnemo_size(memory), mnemo_version());

    check(mnemo_session_open(memory, &session));
    write_text(NULL, prompt, length, without);
    write_text(session, prompt, length, with);
    printf("without memory: %s\nwith memory:    %s\n", without, with);

    /* Looking inside, and scoring a text whose host says 1/128 to every token. */
    rows.rows = 1;
    check(mnemo_search(session, &rows, 2, ids, scores, tokens));
    printf("nearest to the first state: entry %lld at %g, then `%c`\n", (long long)ids[0], (double)scores[0], tokens[0]);
    rows.rows = (int64_t)length - 1;
    for (i = 0; i + 1 < length; ++i) log_p[i] = -logf(VOCAB);
    check(mnemo_score_targets(session, &rows, next, log_p));
    for (i = 0; i + 1 < length; ++i) mean -= (double)log_p[i] / (double)(length - 1);
    printf("perplexity: %d without memory, %.2f with it\n", VOCAB, exp(mean));
    mnemo_session_close(session);

    /* On disk and back. A host of another name gets nothing. */
    check(mnemo_save(memory, folder, 1));
    mnemo_close(memory);
    options.key_tap = "something else";
    if (mnemo_open(folder, &options, &opened) == MNEMO_OK) return 1;
    printf("refused: %s\n", mnemo_last_error());
    options.key_tap = "state";
    check(mnemo_open(folder, &options, &opened));
    check(mnemo_session_open(opened, &session));
    write_text(session, prompt, length, again);
    if (mnemo_add(opened, &rows, next) != MNEMO_READ_ONLY) return 1;
    mnemo_session_close(session);
    mnemo_close(opened);
    return strcmp(with, text) == 0 && strcmp(again, text) == 0 && strcmp(without, text) != 0 && ids[0] == 0 &&
                   scores[0] > -1e-3f && mean < 2
               ? 0
               : 1;
}
