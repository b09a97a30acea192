#include "json.h"
#include <string.h>

int fmpq_json_take(fmpq_json *j, char c)
{
    if (j->p == j->end || *j->p != c)
        return 0;
    j->p++;
    return 1;
}

static int word(fmpq_json *j, const char *text)
{
    const size_t n = strlen(text);
    if ((size_t)(j->end - j->p) < n || memcmp(j->p, text, n))
        return 0;
    j->p += n;
    return 1;
}

static int is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

int fmpq_json_string(fmpq_json *j, const char **text, size_t *len)
{
    if (!fmpq_json_take(j, '"'))
        return 0;
    *text = j->p;
    while (j->p < j->end && *j->p != '"') {
        if ((unsigned char)*j->p < 0x20)
            return 0;
        if (*j->p++ != '\\')
            continue;
        if (fmpq_json_take(j, 'u')) {
            for (int i = 0; i < 4; i++, j->p++)
                if (j->p == j->end || !is_hex(*j->p))
                    return 0;
        } else if (j->p == j->end || !strchr("\"\\/bfnrt", *j->p) || !*j->p) {
            return 0;
        } else {
            j->p++;
        }
    }
    *len = (size_t)(j->p - *text);
    return fmpq_json_take(j, '"');
}

static size_t digits(fmpq_json *j)
{
    const char *first = j->p;
    while (j->p < j->end && *j->p >= '0' && *j->p <= '9')
        j->p++;
    return (size_t)(j->p - first);
}

int fmpq_json_int(fmpq_json *j, int64_t *value)
{
    const int negative = fmpq_json_take(j, '-');
    const char *first = j->p;
    const size_t n = digits(j);
    int64_t v = 0;
    if (!n || n > 15 || (n > 1 && *first == '0') || (j->p < j->end && strchr(".eE", *j->p) && *j->p))
        return 0;
    for (; first < j->p; first++)
        v = v * 10 + (*first - '0');
    *value = negative ? -v : v;
    return 1;
}

int fmpq_json_bool(fmpq_json *j, int64_t *value)
{
    *value = 0;
    if (word(j, "false"))
        return 1;
    *value = 1;
    return word(j, "true");
}

static int number(fmpq_json *j)
{
    const char *first;
    size_t n;
    fmpq_json_take(j, '-');
    first = j->p;
    n = digits(j);
    if (!n || (n > 1 && *first == '0'))
        return 0;
    if (fmpq_json_take(j, '.') && !digits(j))
        return 0;
    if (fmpq_json_take(j, 'e') || fmpq_json_take(j, 'E')) {
        if (!fmpq_json_take(j, '+'))
            fmpq_json_take(j, '-');
        if (!digits(j))
            return 0;
    }
    return 1;
}

int fmpq_json_skip(fmpq_json *j, int depth)
{
    const char *text;
    size_t len;
    char close;
    if (j->p == j->end || depth > 32)
        return 0;
    if (*j->p == '"')
        return fmpq_json_string(j, &text, &len);
    if (*j->p != '{' && *j->p != '[')
        return word(j, "null") || word(j, "true") || word(j, "false") || number(j);
    close = *j->p++ == '{' ? '}' : ']';
    if (fmpq_json_take(j, close))
        return 1;
    do {
        if (close == '}' && (!fmpq_json_string(j, &text, &len) || !fmpq_json_take(j, ':')))
            return 0;
        if (!fmpq_json_skip(j, depth + 1))
            return 0;
    } while (fmpq_json_take(j, ','));
    return fmpq_json_take(j, close);
}
