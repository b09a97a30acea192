/* fedmpq-edge as the first process of a system that does nothing else: an appliance, or an emulator with little RAM. */
#ifndef FMPQ_BOOT_LINUX_H
#define FMPQ_BOOT_LINUX_H

#define FMPQ_BOOT_COMMANDS "/fedmpq-edge.commands"

/* Mounts /proc and /sys, runs each line of FMPQ_BOOT_COMMANDS as a fedmpq-edge of its own, prints how it ended, and switches off. */
void fmpq_boot(const char *program);
#endif
