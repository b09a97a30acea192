/* Semihosting: text and an exit code to an emulator or a debug probe. A program that links semihost.c ends with code 9 at a fault. */
#ifndef FMPQ_SEMIHOST_H
#define FMPQ_SEMIHOST_H
#include <stdint.h>

void fmpq_semihost_text(const char *text);
void fmpq_semihost_number(const char *name, int64_t value); /* the name, then the value in decimal */
_Noreturn void fmpq_semihost_exit(uint32_t code);
#endif
