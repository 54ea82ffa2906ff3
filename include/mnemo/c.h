/* SPDX-License-Identifier: MIT */
#ifndef MNEMO_C_H
#define MNEMO_C_H

/*
 * mnemo for hosts in C and in languages that call C: a kNN memory beside any language model. The host hands over one
 * state a token and a row of logits, and gets the logits back.
 *
 *     mnemo_options options = MNEMO_OPTIONS_INIT;
 *     options.key_dim = d, options.vocab_size = vocab;
 *     mnemo_memory* memory = NULL;
 *     mnemo_session* session = NULL;
 *     if (mnemo_create(&options, &memory) != MNEMO_OK) puts(mnemo_last_error());
 *     mnemo_add(memory, &states, next_tokens);               while reading a text
 *     mnemo_session_open(memory, &session);                  one for each sequence
 *     mnemo_mix_logits(session, &state, logits, vocab, 0, MNEMO_LOGITS);   at each step, before a token is chosen
 *
 * Every function returns MNEMO_OK or another status; mnemo_last_error() says what was wrong. Nothing is printed, no
 * exception comes out, and after an error everything is as it was before the call. Pointers are used during a call and
 * never kept. Any number of sessions may read one memory at the same time, each from one thread at a time; mnemo_add
 * must not run beside anything else on the same memory.
 */

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define MNEMO_API
#else
#define MNEMO_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Statuses. */
enum {
    MNEMO_OK = 0,
    MNEMO_ERROR = 1,     /* wrong sizes, files or values; mnemo_last_error() says which */
    MNEMO_NO_MEMORY = 2, /* the system has no more */
    MNEMO_READ_ONLY = 3  /* the memory was opened from files without `load` */
};
/* Element types of states and of stored keys. */
enum { MNEMO_FLOAT32 = 0, MNEMO_FLOAT16 = 1, MNEMO_BFLOAT16 = 2 };
/* What near means. */
enum { MNEMO_L2 = 0, MNEMO_INNER_PRODUCT = 1, MNEMO_COSINE = 2 };
/* What a row of mnemo_mix_logits is, before and after. */
enum { MNEMO_LOGITS = 0, MNEMO_LOG_PROBS = 1 };

typedef struct mnemo_memory mnemo_memory;
typedef struct mnemo_session mnemo_session;

/* Begin with MNEMO_OPTIONS_INIT. `size` tells the library which fields the caller was compiled with; those added later
 * keep their defaults. */
typedef struct mnemo_options {
    size_t size;        /* sizeof(mnemo_options) */
    int32_t key_dim;    /* width of a state; opening: 0 takes the file's */
    int32_t vocab_size; /* bounds the tokens; 0: unknown; opening: 0 takes the file's */
    int32_t key_type;   /* of the stored keys: MNEMO_FLOAT16 halves memory and time; opening: the file's */
    int32_t metric;     /* opening: the file's */
    int32_t k;          /* entries recalled for a state */
    float temperature;  /* of the softmax over their scores */
    float lambda;       /* weight of the memory, 0 to 1 */
    int32_t load;       /* opening: 0 maps the files, read-only; 1 copies them, so that mnemo_add works */
    const char* model;  /* a name or hash of the host's weights, or NULL. Saved; opening: another one is refused */
    const char* key_tap; /* which state is the key, or NULL. Saved; opening: another one is refused */
} mnemo_options;
#define MNEMO_OPTIONS_INIT                                                                                             \
    { sizeof(mnemo_options), 0, 0, MNEMO_FLOAT16, MNEMO_L2, 1024, 1.0f, 0.25f, 0, NULL, NULL }

/* States [rows, dim] of the host. */
typedef struct mnemo_rows {
    size_t size;      /* sizeof(mnemo_rows) */
    const void* data; /* row i begins at element i * stride */
    int64_t rows;
    int64_t dim;
    int64_t stride; /* in elements, at least dim */
    int32_t type;   /* MNEMO_FLOAT32, ... */
} mnemo_rows;
#define MNEMO_ROWS_INIT(data, rows, dim) {sizeof(mnemo_rows), (data), (rows), (dim), (dim), MNEMO_FLOAT32}

/* What the last call on this thread that failed had to say; valid until the next one. Never NULL. */
MNEMO_API const char* mnemo_last_error(void);
/* "0.1.0": of the library that runs. */
MNEMO_API const char* mnemo_version(void);

/* An empty memory in RAM. */
MNEMO_API int mnemo_create(const mnemo_options* options, mnemo_memory** memory);
/* The datastore in a folder, as mnemo_save or the C++ library wrote it. */
MNEMO_API int mnemo_open(const char* folder, const mnemo_options* options, mnemo_memory** memory);
/* Writes a datastore folder; an existing one is refused unless `overwrite` is not 0. */
MNEMO_API int mnemo_save(const mnemo_memory* memory, const char* folder, int overwrite);
/* Frees a memory; its sessions must be closed before. NULL is fine. */
MNEMO_API void mnemo_close(mnemo_memory* memory);

MNEMO_API int64_t mnemo_size(const mnemo_memory* memory); /* entries; -1 for NULL */

/* Remembers that states[i] was followed by tokens[i]. All or nothing: a state that is not finite or a token outside the
 * vocabulary is an error that names its row. */
MNEMO_API int mnemo_add(mnemo_memory* memory, const mnemo_rows* states, const int32_t* tokens);

/* The buffers of one sequence, so that a step allocates nothing after the first. */
MNEMO_API int mnemo_session_open(const mnemo_memory* memory, mnemo_session** session);
MNEMO_API void mnemo_session_close(mnemo_session* session);

/* The nearest entries of each state: ids, scores (larger is nearer; L2 gives negated squared distances) and the tokens
 * that followed, all [rows, k] and best first. Where there are fewer: id -1, score -infinity, token -1. Any of the
 * three may be NULL. */
MNEMO_API int mnemo_search(mnemo_session* session, const mnemo_rows* states, int32_t k, int64_t* ids, float* scores,
                           int32_t* tokens);

/* log_p[i]: in, the host's log-probability of targets[i] after states[i]; out, with the memory. For perplexity. */
MNEMO_API int mnemo_score_targets(mnemo_session* session, const mnemo_rows* states, const int32_t* targets,
                                  float* log_p);

/* Mixes the memory into the host's rows [states->rows, vocab] in place; `stride` 0 means vocab. `kind` MNEMO_LOGITS:
 * raw logits stay logits, correct up to a constant. MNEMO_LOG_PROBS: log-probabilities stay log-probabilities. */
MNEMO_API int mnemo_mix_logits(mnemo_session* session, const mnemo_rows* states, float* logits, int64_t vocab,
                               int64_t stride, int kind);

#ifdef __cplusplus
}
#endif

#endif
