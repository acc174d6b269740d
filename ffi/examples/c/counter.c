/* A program with three functions in C: a counter, a look at it, and one that calls both.
 *
 *     cc -I ffi/c/include counter.c -L target/release -lhalfmoon_c -o counter
 *     halfmoon deploy ./counter
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "halfmoon.h"

struct key {
    const uint8_t *data;
    size_t len;
    unsigned long count;
};

/* Adds one to the counter. May run more than once, so it works out everything anew. */
static int32_t add_one(hm_txn *txn, void *user) {
    struct key *key = user;
    hm_value *old = NULL;
    char text[32] = "0";
    int32_t status = hm_txn_read(txn, "counters", key->data, key->len, &old);
    if (status != HM_OK && status != HM_ABSENT) {
        return status;
    }
    if (status == HM_OK && hm_value_len(old) < sizeof text) {
        memcpy(text, hm_value_data(old), hm_value_len(old));
        text[hm_value_len(old)] = '\0';
    }
    hm_value_free(old);
    key->count = strtoul(text, NULL, 10) + 1;
    int len = snprintf(text, sizeof text, "%lu", key->count);
    return hm_txn_write(txn, "counters", key->data, key->len, (const uint8_t *)text, (size_t)len);
}

/* Counts one up; the input names the counter. The result is the new count, as text. */
static int32_t count(hm_ctx *ctx, const uint8_t *input, size_t input_len, void *user) {
    (void)user;
    if (input_len == 0) {
        static const char why[] = "name a counter";
        return hm_fail(ctx, (const uint8_t *)why, sizeof why - 1);
    }
    struct key key = {input, input_len, 0};
    int32_t status = hm_transaction(ctx, add_one, &key);
    if (status != HM_OK) {
        return status;
    }
    char text[32];
    int len = snprintf(text, sizeof text, "%lu", key.count);
    return hm_return(ctx, (const uint8_t *)text, (size_t)len);
}

/* The count, without changing it. */
static int32_t look(hm_ctx *ctx, const uint8_t *input, size_t input_len, void *user) {
    (void)user;
    hm_value *value = NULL;
    int32_t status = hm_read(ctx, "counters", input, input_len, &value);
    if (status == HM_ABSENT) {
        return hm_return(ctx, (const uint8_t *)"0", 1);
    }
    if (status != HM_OK) {
        return status;
    }
    hm_return(ctx, hm_value_data(value), hm_value_len(value));
    hm_value_free(value);
    return HM_OK;
}

static void make(hm_output *output, void *user) {
    const char *made = user;
    hm_output_set(output, (const uint8_t *)made, strlen(made));
}

/* Counts up by two calls at once, and makes a receipt once. */
static int32_t twice(hm_ctx *ctx, const uint8_t *input, size_t input_len, void *user) {
    hm_pending *pending[2] = {NULL, NULL};
    hm_value *value = NULL;
    uint8_t id[16];
    int32_t status = HM_OK;
    for (int i = 0; i < 2 && status == HM_OK; i++) {
        status = hm_call_async(ctx, "count", input, input_len, &pending[i]);
    }
    for (int i = 0; i < 2; i++) {
        if (pending[i] == NULL) {
            continue;
        }
        int32_t joined = hm_join(ctx, pending[i], &value);
        if (joined == HM_OK) {
            hm_value_free(value);
        } else if (status == HM_OK) {
            status = joined;
        }
    }
    if (status != HM_OK || (status = hm_uuid(ctx, id)) != HM_OK) {
        return status;
    }
    if ((status = hm_side_effect(ctx, make, user, &value)) != HM_OK) {
        return status;
    }
    status = hm_write(ctx, "receipts", id, sizeof id, hm_value_data(value), hm_value_len(value));
    hm_value_free(value);
    if (status != HM_OK || (status = hm_call(ctx, "look", input, input_len, &value)) != HM_OK) {
        return status;
    }
    hm_return(ctx, hm_value_data(value), hm_value_len(value));
    hm_value_free(value);
    return HM_OK;
}

int main(void) {
    const hm_options reading = {.read_only = true};
    hm_app *app = hm_app_new();
    if (hm_app_table(app, "counters", HM_PROTOCOL_AUTO, false, true) != HM_OK ||
        hm_app_table(app, "receipts", HM_PROTOCOL_AUTO, false, false) != HM_OK ||
        hm_app_function(app, "count", count, NULL, NULL) != HM_OK ||
        hm_app_function(app, "look", look, NULL, &reading) != HM_OK ||
        hm_app_function(app, "twice", twice, "made in C", NULL) != HM_OK) {
        return EXIT_FAILURE;
    }
    return hm_serve(app);
}
