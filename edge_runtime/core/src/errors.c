#include <fmpq/fmpq.h>

#ifndef FMPQ_VERSION /* given only to test what a gateway says to firmware of another one */
#define FMPQ_VERSION "0.1.0"
#endif

static const struct {
    int code;
    const char *name, *text;
} table[] = {
#define X(name, code, text) {code, #name, text},
#include <fmpq/errors.inc>
#undef X
};

#define ENTRIES (sizeof(table) / sizeof(table[0]))

const char *fmpq_error_name(int code)
{
    for (unsigned i = 0; i < ENTRIES; i++)
        if (table[i].code == code)
            return table[i].name;
    return "FMPQ_E_UNKNOWN";
}

const char *fmpq_error_text(int code)
{
    for (unsigned i = 0; i < ENTRIES; i++)
        if (table[i].code == code)
            return table[i].text;
    return "unknown error";
}

int fmpq_error_code(unsigned index)
{
    return index < ENTRIES ? table[index].code : -1;
}

const char *fmpq_version(void)
{
    return FMPQ_VERSION;
}
