/* Just enough JSON for plans and manifests: canonical text (no spaces), checked as it is read. */
#ifndef FMPQ_JSON_H
#define FMPQ_JSON_H
#include <stddef.h>
#include <stdint.h>

typedef struct fmpq_json {
    const char *p, *end;
} fmpq_json;

int fmpq_json_take(fmpq_json *j, char c);                       /* 1 and steps over it if the next character is c */
int fmpq_json_string(fmpq_json *j, const char **text, size_t *len); /* 1; the text between the quotes, escapes as they are */
int fmpq_json_int(fmpq_json *j, int64_t *value);                /* 1 if a whole number of up to 15 digits follows */
int fmpq_json_bool(fmpq_json *j, int64_t *value);
int fmpq_json_skip(fmpq_json *j, int depth);                    /* 1 if one well-formed value was skipped */
#endif
