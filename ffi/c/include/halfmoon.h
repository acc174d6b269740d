/* The C interface of Halfmoon: exactly-once stateful functions.
 *
 * Made from the sources of the package halfmoon-c; not to be edited.
 *
 * Rules for all functions:
 * - A pointer that is passed is null where that is said to be allowed, or points to what its type
 *   says, for as long as the call lasts. A pair of pointer and length is that many bytes; the
 *   pointer may be null if the length is 0. Texts are UTF-8 and end with a NUL.
 * - Everything is used on the thread that called hm_serve, by one call at a time.
 * - Handles are opaque. What must be freed says so; it is freed once and not used after that.
 * - Functions that return int32_t return one of the HM_ statuses below. What a status other than
 *   HM_OK leaves in places for results is undefined, unless said otherwise.
 * - No function unwinds or jumps over the caller: a fault inside aborts the process, and the
 *   engine attempts the invocation again. Callbacks must not unwind or jump over this library.
 *
 * A function may be attempted more than once. Each attempt must do the same operations with the
 * same arguments; time, random numbers and results of side effects are the same in every attempt.
 */
#ifndef HALFMOON_H
#define HALFMOON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* It is done. */
#define HM_OK 0

/* The object does not exist. */
#define HM_ABSENT 1

/* The function that was called returned an error, or this function does. */
#define HM_FAILED 2

/* The engine refused the operation. The function may go on. */
#define HM_REFUSED 3

/* This attempt is over: return this status at once. */
#define HM_ENDED 4

/* A pointer, length, text or number that is not allowed. */
#define HM_INVALID 5

/* The system chooses how a table is logged. */
#define HM_PROTOCOL_AUTO 0

/* Reads append nothing to the log, a write is one record. */
#define HM_PROTOCOL_HALFMOON_READ 1

/* Writes append nothing to the log, a read is one record. */
#define HM_PROTOCOL_HALFMOON_WRITE 2

/* Everything is logged. */
#define HM_PROTOCOL_BOKI 3

/* Nothing is logged and nothing is promised. */
#define HM_PROTOCOL_UNLOGGED 4

/* The functions and tables of a program. */
typedef struct hm_app hm_app;

/* What is to be known about a function. Zero is the engine's to choose. */
typedef struct hm_options {
    /* Time that one attempt may take, in milliseconds. */
    uint64_t timeout_ms;
    /* Attempts before an instance is parked with its error. */
    uint32_t max_attempts;
    /* Processes of it that one engine runs at once. */
    uint32_t concurrency;
    /* It reads and calls other read-only functions, and has no effect. */
    bool read_only;
} hm_options;

/* The world as one attempt of one invocation sees it. Valid until its function returns. */
typedef struct hm_ctx hm_ctx;

/* What the body of a transaction can use. Valid until the body returns. */
typedef struct hm_txn hm_txn;

/* A value that came from the engine. To be freed. */
typedef struct hm_value hm_value;

/* A call that was begun. To be joined. */
typedef struct hm_pending hm_pending;

/* Where a side effect puts its result. */
typedef struct hm_output hm_output;

/* A function. Its result is what it gives to hm_return, its error what it gives to hm_fail.
 * Returns HM_OK, or the status of the operation because of which it cannot go on. */
typedef int32_t (*hm_function)(hm_ctx *ctx, const uint8_t *input, size_t input_len, void *user);

/* The body of a transaction. HM_OK commits, anything else forgets its writes. May run again. */
typedef int32_t (*hm_body)(hm_txn *txn, void *user);

/* Does something to the world outside and puts its result into `output`. */
typedef void (*hm_effect)(hm_output *output, void *user);

/* A program without functions and tables. Never null. */
hm_app *hm_app_new(void);

/* Frees a program that is not served. Null is allowed. */
void hm_app_free(hm_app *app);

/* Adds a table. `transactional`: transactions use it. */
int32_t hm_app_table(hm_app *app, const char *name, int32_t protocol, bool relaxed,
    bool transactional);

/* Adds a function. `user` is handed to it with each call. `options` may be null. */
int32_t hm_app_function(hm_app *app, const char *name, hm_function function, void *user,
    const hm_options *options);

/* Serves the program's functions to the engine that started it, until the engine ends it. Frees
 * the program. Returns the exit status for the process. */
int32_t hm_serve(hm_app *app);

/* The bytes of a value; they stay valid until it is freed. */
const uint8_t *hm_value_data(const hm_value *value);

/* The number of bytes of a value. */
size_t hm_value_len(const hm_value *value);

/* Frees a value. Null is allowed. */
void hm_value_free(hm_value *value);

/* Which execution of the function this is, 16 bytes: the same in every attempt of it. */
int32_t hm_instance(hm_ctx *ctx, uint8_t *out);

/* Which attempt of the execution this is, from 1. Not the same in every attempt: for logging. */
int32_t hm_attempt(hm_ctx *ctx, uint32_t *out);

/* The text of the last error of an operation; valid until the next one. Empty if there is none. */
const char *hm_error_text(const hm_ctx *ctx);

/* Sets the result of the function, for when it returns HM_OK. */
int32_t hm_return(hm_ctx *ctx, const uint8_t *data, size_t len);

/* Sets the error of the function, for when it returns something else. Returns HM_FAILED. The error
 * is a result: it is recorded, and the function is not attempted again. */
int32_t hm_fail(hm_ctx *ctx, const uint8_t *data, size_t len);

/* Reads an object. HM_OK and a value, or HM_ABSENT. */
int32_t hm_read(hm_ctx *ctx, const char *table, const uint8_t *key, size_t key_len, hm_value **out);

/* Writes an object. */
int32_t hm_write(hm_ctx *ctx, const char *table, const uint8_t *key, size_t key_len,
    const uint8_t *data, size_t len);

/* Deletes an object. That it does not exist is no error. */
int32_t hm_delete(hm_ctx *ctx, const char *table, const uint8_t *key, size_t key_len);

/* Runs `body` so that all it reads and writes happens at one moment, or not at all. It runs again
 * when it met a conflict. Inside of it use hm_txn_ functions only. */
int32_t hm_transaction(hm_ctx *ctx, hm_body body, void *user);

/* Reads an object inside a transaction. HM_OK and a value, or HM_ABSENT. */
int32_t hm_txn_read(hm_txn *txn, const char *table, const uint8_t *key, size_t key_len,
    hm_value **out);

/* Writes an object when the transaction commits. */
int32_t hm_txn_write(hm_txn *txn, const char *table, const uint8_t *key, size_t key_len,
    const uint8_t *data, size_t len);

/* Deletes an object when the transaction commits. */
int32_t hm_txn_delete(hm_txn *txn, const char *table, const uint8_t *key, size_t key_len);

/* Calls a function and waits for its result. HM_OK and a value, or HM_FAILED. */
int32_t hm_call(hm_ctx *ctx, const char *function, const uint8_t *input, size_t input_len,
    hm_value **out);

/* Begins to call a function. It runs meanwhile. */
int32_t hm_call_async(hm_ctx *ctx, const char *function, const uint8_t *input, size_t input_len,
    hm_pending **out);

/* Waits for the result of a call, and frees `pending`. HM_OK and a value, or HM_FAILED. */
int32_t hm_join(hm_ctx *ctx, hm_pending *pending, hm_value **out);

/* Starts a function for which nobody waits, exactly once. `out`, 16 bytes or null, gets its
 * instance. */
int32_t hm_spawn(hm_ctx *ctx, const char *function, const uint8_t *input, size_t input_len,
    uint8_t *out);

/* The time, in ns since 1970: the same in every attempt. */
int32_t hm_now_ns(hm_ctx *ctx, uint64_t *out);

/* A random number, the same in every attempt. */
int32_t hm_random(hm_ctx *ctx, uint64_t *out);

/* A random UUID (version 4), 16 bytes, the same in every attempt. */
int32_t hm_uuid(hm_ctx *ctx, uint8_t *out);

/* Sets the result of a side effect. */
int32_t hm_output_set(hm_output *output, const uint8_t *data, size_t len);

/* Runs `effect` and records its result; `out` gets what is recorded. Once it is recorded, `effect`
 * is not run again in any attempt; until then it may be. */
int32_t hm_side_effect(hm_ctx *ctx, hm_effect effect, void *user, hm_value **out);

/* What was written before is seen by others before what comes after. */
int32_t hm_fence(hm_ctx *ctx);

/* Writes a line to the engine's log. `level`: 1 error, 2 warning, 3 information, 4 debugging. */
int32_t hm_log(hm_ctx *ctx, int32_t level, const char *line);

#ifdef __cplusplus
}
#endif

#endif
